"""The journal's SQLite file: opened, migrated, and set aside if it is damaged. Blocking: for the journal's thread.

SQLite notices a damaged file structure, but not a damaged value. Every row therefore has a digest of its other columns.
A row whose digest does not match is deleted, as if it had never been written.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import xxhash

log = logging.getLogger("asyncsync")

T = TypeVar("T")
Row = tuple[str, Sequence[Any]]
"""A statement and its parameters."""

APPLICATION = 0x61737963
"""``PRAGMA application_id``: marks the file as ours."""
BUSY_TIMEOUT = 10.0
"""Seconds to wait for the lock of another process, LOCKED_TRIES times."""
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
    """
    ALTER TABLE trees ADD COLUMN digest BLOB;
    ALTER TABLE uploads ADD COLUMN digest BLOB;
    ALTER TABLE parts ADD COLUMN digest BLOB;
    ALTER TABLE owed ADD COLUMN digest BLOB;
    ALTER TABLE checkpoints ADD COLUMN digest BLOB;
    ALTER TABLE sent ADD COLUMN digest BLOB;
    UPDATE trees SET digest = row_digest('trees', tree, manifest, version, saved);
    UPDATE uploads SET digest = row_digest(
        'uploads', uri, key, upload_id, local_path, size, mtime_ns, inode, part_size, opened);
    UPDATE parts SET digest = row_digest('parts', uri, key, upload_id, number, offset, size, etag, crc32c);
    UPDATE owed SET digest = row_digest('owed', id, uri, kind, payload, since);
    UPDATE checkpoints SET digest = row_digest('checkpoints', uri, trial, name, payload, accepted);
    UPDATE sent SET digest = row_digest('sent', uri, key, entry, since);
    """,
    """
    CREATE TABLE uploads_4 (
        uri TEXT, key TEXT, upload_id TEXT, kind TEXT NOT NULL, local_path BLOB NOT NULL, size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL, inode TEXT NOT NULL, part_size INTEGER NOT NULL, opened REAL NOT NULL, digest BLOB,
        PRIMARY KEY (uri, key, upload_id)) WITHOUT ROWID;
    INSERT INTO uploads_4 SELECT
        uri, key, CASE upload_id WHEN 'in one piece' THEN '' ELSE upload_id END,
        CASE WHEN upload_id = 'in one piece' THEN 'single' WHEN part_size < 0 THEN 'assembled' ELSE 'multipart' END,
        local_path, size, mtime_ns, inode, abs(part_size), opened, NULL
        FROM uploads WHERE CAST(digest AS BLOB) = row_digest(
            'uploads', uri, key, upload_id, local_path, size, mtime_ns, inode, part_size, opened);
    UPDATE uploads_4 SET digest = row_digest(
        'uploads', uri, key, upload_id, kind, local_path, size, mtime_ns, inode, part_size, opened);
    DROP TABLE uploads;
    ALTER TABLE uploads_4 RENAME TO uploads;
    CREATE TABLE parts_4 (
        uri TEXT, key TEXT, upload_id TEXT, number INTEGER, offset INTEGER NOT NULL, size INTEGER NOT NULL,
        etag TEXT NOT NULL, crc32c INTEGER, resume_token TEXT, digest BLOB,
        PRIMARY KEY (uri, key, upload_id, number)) WITHOUT ROWID;
    INSERT INTO parts_4 SELECT
        uri, key, CASE upload_id WHEN 'in one piece' THEN '' ELSE upload_id END, number, offset, size,
        CASE WHEN etag LIKE 'begun %' THEN '' ELSE etag END, crc32c,
        CASE WHEN etag LIKE 'begun %' THEN substr(etag, 7) END, NULL
        FROM parts WHERE CAST(digest AS BLOB) = row_digest(
            'parts', uri, key, upload_id, number, offset, size, etag, crc32c);
    UPDATE parts_4 SET digest = row_digest(
        'parts', uri, key, upload_id, number, offset, size, etag, crc32c, resume_token);
    DROP TABLE parts;
    ALTER TABLE parts_4 RENAME TO parts;
    """,
    """
    CREATE TABLE segments (
        tree BLOB, name TEXT, document BLOB NOT NULL, digest BLOB, PRIMARY KEY (tree, name));
    """,
)
"""``MIGRATIONS[n]`` leads from format n to n + 1; the format is ``PRAGMA user_version``. Only ever append."""

TABLES: Mapping[str, tuple[str, ...]] = {
    "trees": ("tree", "manifest", "version", "saved"),
    "segments": ("tree", "name", "document"),
    "uploads": (
        "uri",
        "key",
        "upload_id",
        "kind",
        "local_path",
        "size",
        "mtime_ns",
        "inode",
        "part_size",
        "opened",
    ),
    "parts": ("uri", "key", "upload_id", "number", "offset", "size", "etag", "crc32c", "resume_token"),
    "owed": ("id", "uri", "kind", "payload", "since"),
    "checkpoints": ("uri", "trial", "name", "payload", "accepted"),
    "sent": ("uri", "key", "entry", "since"),
}
"""Columns of each table after all migrations; each has ``digest`` too."""

_REFUSALS = frozenset(
    (
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_AUTH,
    )
)
"""SQLite errors of a refusing disk or a locked file. Any other SQLite error counts as damage."""


def row_digest(table: str, *values: object) -> bytes:
    """XXH3-64 of a row. A whole number has the same digest as int and as float: SQLite stores 5 in a REAL column as
    5.0."""
    state = xxhash.xxh3_64(table.encode())
    for value in values:
        kind, data = _encoded(value)
        state.update(b"%c%d:" % (kind, len(data)))
        state.update(data)
    return state.digest()


def _encoded(value: object) -> tuple[bytes, bytes]:
    if value is None:
        return b"0", b""
    if isinstance(value, bytes):
        return b"b", value
    if isinstance(value, str):
        return b"t", value.encode("utf-8", "surrogateescape")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return b"n", repr(value).encode()


def put(table: str) -> str:
    """The statement that writes a row of ``table`` and its digest; its parameters are the columns. (Python 3.12
    deprecates numbered parameters, which could be used twice.)"""
    columns = TABLES[table]
    names, values = ", ".join(columns), ", ".join(f"? AS {column}" for column in columns)
    return (
        f"INSERT OR REPLACE INTO {table} ({names}, digest) "  # noqa: S608
        f"SELECT {names}, row_digest('{table}', {names}) FROM (SELECT {values})"
    )


class _NotOursError(Exception):
    """The SQLite file is not a journal that this version can read."""


class Database:
    """One connection. ``path`` None: in memory. A damaged file and a refusing disk are handled here: the caller's work
    is done in any case, if necessary in memory only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._inode: int | None = None
        self.durable = path is not None
        """Whether written rows survive this process."""
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

    def read(self, table: str, where: Mapping[str, Any], order: str = "") -> list[tuple[Any, ...]]:
        """The rows of ``table`` whose columns match ``where``, in the ``order`` of a column. Rows with a wrong digest
        are deleted, with a warning."""
        columns, parameters = TABLES[table], tuple(where.values())
        condition = f"FROM {table} WHERE " + " AND ".join(f"{name} = ?" for name in where)
        query = f"SELECT {', '.join(columns)}, CAST(digest AS BLOB) {condition}" + (order and f" ORDER BY {order}")

        def work(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            good, bad = [], []
            for *values, digest in connection.execute(query, parameters):
                if row_digest(table, *values) == digest:
                    good.append(tuple(values))
                else:
                    bad.append(digest)
            for digest in bad:
                connection.execute(f"DELETE {condition} AND CAST(digest AS BLOB) IS ?", (*parameters, digest))
            if bad:
                log.warning(
                    "the journal %s is damaged: %d row(s) of %s were altered after they were written, and are dropped; "
                    "their information is read again from the store or from the files",
                    self._path,
                    len(bad),
                    table,
                )
            return good

        return self._do(work)

    def close(self) -> None:
        """Close the file; written rows are on disk."""
        self._connection.close()

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        locked, rebuilt = 0, False
        while True:
            try:
                return work(self._connection)
            except sqlite3.ProgrammingError:
                raise  # a bug of ours, not an error of the disk
            except (sqlite3.Error, UnicodeError) as error:
                if _is_locked(error) and (locked := locked + 1) < LOCKED_TRIES:
                    continue
                if self._is_damage(error):
                    if rebuilt:
                        raise  # a new journal fails in the same way: a bug of ours
                    rebuilt = True
                    self._rebuild(error)
                elif self.durable:
                    self._give_up_disk("another process keeps it locked" if _is_locked(error) else error)
                else:
                    raise

    def _open(self) -> sqlite3.Connection:
        if self._path is None:
            return _connect(":memory:")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._inode = _inode(self._path)
            try:
                connection = _connect_patiently(self._path)
            except (_NotOursError, sqlite3.Error, UnicodeError) as error:
                if not self._is_damage(error):
                    raise
                self._set_aside(error)
                connection = _connect(self._path)
            self._inode = _inode(self._path)
        except (OSError, sqlite3.Error, _NotOursError) as error:
            self._warn(error)
            return _connect(":memory:")
        return connection

    def _is_damage(self, error: Exception) -> bool:
        """Whether the file itself is damaged, in contrast to an error of the disk or a lock of another process."""
        if _code(error) == sqlite3.SQLITE_READONLY:  # a damaged header gives this code too
            return not self.durable or (self._path is not None and os.access(self._path, os.W_OK))
        return _code(error) not in _REFUSALS

    def _rebuild(self, error: Exception) -> None:
        self._connection.close()
        if not self.durable:
            self._connection = _connect(":memory:")
            return
        try:
            self._set_aside(error)
        except OSError as refused:
            self._warn(refused)
            self._path = None
        self._connection = self._open()

    def _set_aside(self, error: Exception) -> None:
        """Keep a file that we cannot use, for a later look, and make room for a new one."""
        assert self._path is not None
        if _inode(self._path) != self._inode:
            return  # another process has been here
        aside = f"{self._path}.broken-{time.time():.0f}-{os.getpid()}"
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(f"{self._path}{suffix}"):
                os.replace(f"{self._path}{suffix}", f"{aside}{suffix}")
        log.warning("the journal %s cannot be used (%s): moved to %s, starting a new one", self._path, error, aside)

    def _give_up_disk(self, error: object) -> None:
        """Continue in memory, with everything that can still be read."""
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
            "the journal %s cannot be written (%s): continuing without it; a crash then loses unfinished uploads",
            self._path,
            error,
        )


def _code(error: Exception) -> int | None:
    """SQLite's primary result code; None for other errors."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def _is_locked(error: Exception) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _connect_patiently(path: Path) -> sqlite3.Connection:
    """Connect, and retry while the file is locked. Processes that open a new file at the same moment, such as the ranks
    of one machine, lock each other out, and SQLite fails some of them at once in spite of its timeout."""
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
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")  # the digest detects damaged text
    connection.create_function("row_digest", -1, row_digest, deterministic=True)
    try:
        if path != ":memory:":
            os.chmod(path, 0o600)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA cell_size_check=ON")
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
        _check_tables(connection)
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


def _check_tables(connection: sqlite3.Connection) -> None:
    """_NotOursError unless all tables have the expected columns and there are no triggers or views."""
    for table, columns in TABLES.items():
        found = tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))
        if found != (*columns, "digest"):
            raise _NotOursError(f"its table {table} is damaged")
    others = "SELECT count(*) FROM sqlite_master WHERE type NOT IN ('table', 'index')"
    if connection.execute(others).fetchone() != (0,):
        raise _NotOursError("it has triggers or views")
