"""The journal's SQLite file: opened, migrated, set aside when it is damaged. Blocking: for the journal's thread."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger("asyncsync")

T = TypeVar("T")
Row = tuple[str, Sequence[Any]]
"""A statement and its parameters."""

APPLICATION = 0x61737963
"""``PRAGMA application_id``: marks the file as ours."""
BUSY_TIMEOUT = 10.0
"""Seconds to wait for another process that writes; tried LOCKED_TRIES times."""
LOCKED_TRIES = 3

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE trees (
        tree BLOB PRIMARY KEY, manifest BLOB NOT NULL, version TEXT NOT NULL, saved REAL NOT NULL);
    CREATE TABLE uploads (
        uri TEXT, key TEXT, upload_id TEXT, local_path BLOB NOT NULL, size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL, inode TEXT NOT NULL, part_size INTEGER NOT NULL, opened REAL NOT NULL,
        PRIMARY KEY (uri, key, upload_id)) WITHOUT ROWID;
    CREATE TABLE parts (
        uri TEXT, key TEXT, upload_id TEXT, number INTEGER, offset INTEGER NOT NULL, size INTEGER NOT NULL,
        etag TEXT NOT NULL, crc32c INTEGER,
        PRIMARY KEY (uri, key, upload_id, number)) WITHOUT ROWID;
    CREATE TABLE owed (
        id INTEGER PRIMARY KEY, uri TEXT NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL, since REAL NOT NULL);
    CREATE INDEX owed_by_uri ON owed (uri, since);
    CREATE TABLE checkpoints (
        uri TEXT, trial TEXT, name TEXT, payload TEXT NOT NULL, accepted REAL NOT NULL,
        PRIMARY KEY (uri, trial, name)) WITHOUT ROWID;
    """,
    """
    CREATE TABLE sent (
        uri TEXT, key BLOB, entry TEXT NOT NULL, since REAL NOT NULL, PRIMARY KEY (uri, key)) WITHOUT ROWID;
    """,
)
"""``MIGRATIONS[n]`` leads from format n to n + 1; the format is ``PRAGMA user_version``. Only ever append."""


class _NotOursError(Exception):
    """The file is an SQLite database, but not a journal that this version knows."""


class Database:
    """One connection. ``path`` None: in memory. Damage and a disk that refuses are dealt with here: the caller's
    work is done in any case, if need be in memory only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._inode: int | None = None
        self.durable = path is not None
        """Whether what is written survives this process."""
        self._connection = self._open()

    def write(self, rows: Sequence[Row]) -> None:
        """Execute all of ``rows`` in one transaction."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            try:
                for statement, parameters in rows:
                    connection.execute(statement, parameters)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

        self._do(work)

    def read(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """All rows of a query."""
        return self._do(lambda connection: connection.execute(statement, parameters).fetchall())

    def close(self) -> None:
        """Close the file; what was written is on disk."""
        self._connection.close()

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        for _ in range(LOCKED_TRIES):
            try:
                return work(self._connection)
            except sqlite3.OperationalError as error:
                if not _is_locked(error):
                    self._give_up_disk(error)
            except (sqlite3.ProgrammingError, sqlite3.IntegrityError, sqlite3.DataError):
                raise  # a mistake of ours, not of the disk
            except sqlite3.DatabaseError as error:
                self._rebuild(error)
        self._give_up_disk("another process keeps it locked")
        return work(self._connection)

    def _open(self) -> sqlite3.Connection:
        if self._path is None:
            return _connect(":memory:")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._inode = _inode(self._path)
            try:
                connection = _connect_patiently(self._path)
            except (_NotOursError, sqlite3.DatabaseError) as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._set_aside(error)
                connection = _connect(self._path)
            self._inode = _inode(self._path)
        except (OSError, sqlite3.Error, _NotOursError) as error:
            self._warn(error)
            return _connect(":memory:")
        return connection

    def _rebuild(self, error: sqlite3.DatabaseError) -> None:
        self._connection.close()
        if self._path is not None and self.durable:
            try:
                self._set_aside(error)
            except OSError as refused:
                self._warn(refused)
                self._path = None
        self._connection = self._open()

    def _set_aside(self, error: Exception) -> None:
        """Keep a file that we cannot use, for whoever wants to look at it, and make room for a new one."""
        assert self._path is not None
        if _inode(self._path) != self._inode:
            return  # another process has been here
        aside = f"{self._path}.broken-{time.time():.0f}-{os.getpid()}"
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(f"{self._path}{suffix}"):
                os.replace(f"{self._path}{suffix}", f"{aside}{suffix}")
        log.warning("the journal %s is not usable (%s): moved to %s, starting a new one", self._path, error, aside)

    def _give_up_disk(self, error: object) -> None:
        """Go on in memory, with what can still be read."""
        if not self.durable:
            return
        memory = _connect(":memory:")
        try:
            self._connection.backup(memory)
        except sqlite3.Error as unreadable:
            log.warning("the journal cannot be read either: %s", unreadable)
            memory.close()
            memory = _connect(":memory:")
        self._connection.close()
        self._connection = memory
        self._warn(error)

    def _warn(self, error: object) -> None:
        self.durable = False
        log.warning(
            "the journal %s cannot be written (%s): going on without it; after a crash, unfinished uploads begin anew",
            self._path,
            error,
        )


def _is_locked(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _connect_patiently(path: Path) -> sqlite3.Connection:
    """Those who open a file at the same moment, as the ranks of one machine do, are in each other's way, and SQLite
    tells some of them at once, whatever its time-out."""
    give_up = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            return _connect(path)
        except sqlite3.OperationalError as error:
            if not _is_locked(error) or time.monotonic() > give_up:
                raise
        time.sleep(random.uniform(0.005, 0.05))  # noqa: S311  spreads; in the journal's own thread


def _connect(path: Path | str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        if path != ":memory:":
            os.chmod(path, 0o600)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection)
        if version < len(MIGRATIONS):
            for script in MIGRATIONS[version:]:
                for statement in filter(str.strip, script.split(";")):  # executescript would commit in between
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION}")
            connection.execute(f"PRAGMA user_version={len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    """The file's format; 0 for a new file."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and application != APPLICATION:
        raise _NotOursError("it belongs to another program")
    if version > len(MIGRATIONS):
        raise _NotOursError(f"its format {version} is newer than {len(MIGRATIONS)}, the one known here")
    return int(version)
