"""The journal: everything that must survive a crash so that work can resume. Losing it costs time, never data.

It holds the last manifest of each tree, open uploads with their parts, large files that are in the store and that no
manifest names yet, accepted checkpoints that are not durable yet, and clean-ups that are due in a store. It lives in
the user's state directory, never in a tree. Damaged rows are dropped, see disk/database.py.

Calls that record something are plain: they queue a row, and a thread writes the queue in batches behind them. A row
survives ``kill -9`` once it is written, some milliseconds later; ``await flush()`` waits for that.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from asyncsync.config import state_dir
from asyncsync.disk.database import TABLES, Database, Row, put
from asyncsync.errors import EngineClosedError
from asyncsync.runtime import token, wall_time

T = TypeVar("T")
DELAY = 0.1
"""Seconds for which a row may wait for others, see :meth:`Journal._record`."""
_PUT = {table: put(table) for table in TABLES}


UploadKind = Literal["multipart", "assembled", "single"]
"""``multipart``: every part is sent from the file. ``assembled``: some parts are copied inside the store. ``single``:
the file is sent in one request that can be resumed; the store has no upload ID for it."""


def journal_path() -> Path:
    """Where the journal of this user on this machine is: ``state_dir()/journal.sqlite3``."""
    return state_dir() / "journal.sqlite3"


class UploadName(Protocol):
    """Names one upload of a store: :class:`asyncsync.stores.base.Upload` does."""

    @property
    def key(self) -> str:
        """Key of the object."""

    @property
    def upload_id(self) -> str:
        """The store's ID of the upload; empty for kind ``single``."""


@dataclass(frozen=True, slots=True)
class TreeState:
    """The last manifest of a tree, and the version that the store gave it; both None if nothing is known."""

    manifest: bytes | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class OpenPart:
    """A part of an open upload: acknowledged by the store, or begun and resumable. Sizes in bytes."""

    number: int
    offset: int
    """Where the part lies in the object."""
    size: int
    etag: str
    """As the store gave it; empty for a part that is only begun."""
    crc32c: int | None = None
    resume_token: str | None = None
    """Lets a part that is only begun resume; None for a part that the store has acknowledged."""


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An upload that was neither completed nor aborted, and the state of the local file when it was opened."""

    uri: str
    key: str
    upload_id: str
    kind: UploadKind
    local_path: str
    size: int
    mtime_ns: int
    inode: int
    part_size: int
    """Bytes; 0 for kind ``single``."""
    parts: tuple[OpenPart, ...] = ()


@dataclass(frozen=True, slots=True)
class Owed:
    """A clean-up that is due in a store. ``kind`` is ``"abort"``, ``"delete"`` or ``"sweep"``, ``since`` in Unix
    seconds."""

    id: int
    kind: str
    payload: str
    since: float


@dataclass(frozen=True, slots=True)
class PendingCheckpoint:
    """A checkpoint that was accepted and is not durable yet; ``accepted`` is in Unix seconds."""

    trial: str
    name: str
    payload: str
    accepted: float


class Journal:
    """Use as ``async with Journal.open(path)``. ``path`` None: in memory, without a thread.

    Memory: the rows that the thread has not written yet. If the disk refuses, the journal continues in memory and warns
    once.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._database: Database | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._queue: deque[Row] = deque()
        self._writing = False
        self._later: asyncio.TimerHandle | None = None
        self._crash: BaseException | None = None
        self._process = os.getpid()

    @classmethod
    def open(cls, path: Path | None) -> Journal:
        """Does nothing yet: entering opens the file."""
        return cls(path)

    async def __aenter__(self) -> Journal:
        if self._path is None:
            self._database = Database(None)
            return self
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="asyncsync-journal")
        opened: list[Database] = []
        try:
            await self._in_thread(lambda: opened.append(Database(self._path)))
        except BaseException:
            self._executor.submit(_close_all, opened)  # a cancel does not stop the opening
            self._executor.shutdown(wait=False)
            raise
        self._database = opened[0]
        return self

    async def __aexit__(self, *exc: object) -> None:
        database = self._database
        if database is None or os.getpid() != self._process:
            return  # thread and connection are the parent's
        if self._later is not None:
            self._later.cancel()
        self._database = None
        open_ = [database]

        def finish() -> None:
            if open_:
                try:
                    self._drain(open_[0])
                finally:
                    open_.pop().close()

        try:
            await self._in_thread(finish)
        except asyncio.CancelledError:
            if self._executor is not None:
                self._executor.submit(finish)  # the cancel may have removed it from the queue
            raise
        finally:
            if self._executor is not None:
                self._executor.shutdown(wait=False)  # after a cancel the thread ends by itself
        if self._executor is not None:
            self._executor.shutdown(wait=True)  # idle by now: joining it takes microseconds
        self._raise_crash()

    @property
    def durable(self) -> bool:
        """Whether records survive this process: False in memory, and after the disk refused."""
        return self._opened().durable

    async def flush(self) -> None:
        """Wait until everything recorded so far is written."""
        database = self._opened()
        await self._in_thread(lambda: self._drain(database))
        self._raise_crash()

    # -- trees

    def save_tree(self, tree: str, manifest: bytes, version: str) -> None:
        """Record the last manifest of ``tree``, and the version that the store gave it."""
        self._put("trees", _blob(tree), manifest, version, wall_time())

    def save_segment(self, tree: str, name: str, document: bytes) -> None:
        """Record a segment of the manifest of ``tree``, before the manifest that names it."""
        self._put("segments", _blob(tree), name, document)

    def forget_segments(self, tree: str, names: Iterable[str]) -> None:
        """Forget segments that the manifest of ``tree`` does not name any more."""
        for name in names:
            self._record("DELETE FROM segments WHERE tree = ? AND name = ?", _blob(tree), name)

    async def load_segment(self, tree: str, name: str) -> bytes | None:
        """A segment of the last saved manifest."""
        rows = await self._rows("segments", tree=_blob(tree), name=name)
        return rows[0][2] if rows else None

    def forget_tree(self, tree: str) -> None:
        """Forget the manifest of ``tree``."""
        for table in ("trees", "segments"):
            self._record(f"DELETE FROM {table} WHERE tree = ?", _blob(tree), soon=False)  # noqa: S608

    async def load_tree(self, tree: str) -> TreeState:
        """The last saved manifest."""
        rows = await self._rows("trees", tree=_blob(tree))
        return TreeState(*rows[0][1:3]) if rows else TreeState()

    # -- uploads

    def upload_opened(self, upload: OpenUpload) -> None:
        """Record a new upload. Its ``parts`` are not recorded here, see :meth:`part_recorded`."""
        self._put(
            "uploads",
            upload.uri,
            upload.key,
            upload.upload_id,
            upload.kind,
            _blob(upload.local_path),
            upload.size,
            upload.mtime_ns,
            str(upload.inode),  # an inode may be larger than SQLite's signed integers
            upload.part_size,
            wall_time(),
        )

    def part_recorded(self, uri: str, upload: UploadName, part: OpenPart) -> None:
        """Record a part that was begun, or acknowledged by the store."""
        self._put("parts", uri, upload.key, upload.upload_id, *astuple(part))

    def upload_closed(self, uri: str, upload: UploadName) -> None:
        """Forget an upload: it was completed or aborted."""
        for table in ("parts", "uploads"):
            statement = f"DELETE FROM {table} WHERE (uri, key, upload_id) = (?, ?, ?)"  # noqa: S608
            self._record(statement, uri, upload.key, upload.upload_id)

    async def open_uploads(self, uri: str) -> list[OpenUpload]:
        """All open uploads of a store, oldest first, with their parts by number."""
        parts: dict[tuple[str, str], list[OpenPart]] = {}
        for _, key, upload_id, *part in await self._rows("parts", "number", uri=uri):
            parts.setdefault((key, upload_id), []).append(OpenPart(*part))
        found = []
        for _, key, upload_id, kind, path, size, mtime_ns, inode, part_size, _ in await self._rows(
            "uploads", "opened", uri=uri
        ):
            file = (_text(path), size, mtime_ns, int(inode), part_size)
            found.append(OpenUpload(uri, key, upload_id, kind, *file, tuple(parts.get((key, upload_id), ()))))
        return found

    # -- files that no manifest names yet

    def file_sent(self, uri: str, key: str, entry_json: str) -> None:
        """Record a large file that is in the store. Only this row says so until a manifest names the file."""
        self._put("sent", uri, _blob(key), entry_json, wall_time())

    def file_named(self, uri: str, key: str) -> None:
        """Forget the file: a manifest names it now, or it is no longer in the store."""
        self._record("DELETE FROM sent WHERE (uri, key) = (?, ?)", uri, _blob(key))

    async def files_sent(self, uri: str) -> dict[str, str]:
        """All recorded files of a store: key -> entry."""
        return {_text(key): entry for _, key, entry, _ in await self._rows("sent", uri=uri)}

    # -- clean-ups

    def owe(self, uri: str, kind: str, payload: str) -> int:
        """Record a clean-up, before anything else is awaited. Returns its number for :meth:`paid`."""
        # Several processes share the file, so ids are random rather than counted.
        number = int(token(7), 16)
        self._put("owed", number, uri, kind, payload, wall_time())
        return number

    def paid(self, number: int) -> None:
        """Forget a clean-up: it is done."""
        self._record("DELETE FROM owed WHERE id = ?", number)

    async def owed(self, uri: str) -> list[Owed]:
        """All clean-ups due in a store, oldest first."""
        rows = await self._rows("owed", "since", uri=uri)
        return [Owed(number, kind, payload, since) for number, _, kind, payload, since in rows]

    # -- checkpoints

    def checkpoint_accepted(self, uri: str, trial: str, name: str, payload_json: str) -> None:
        """Record an accepted checkpoint: it must become durable, if necessary after a restart."""
        self._put("checkpoints", uri, trial, name, payload_json, wall_time())

    def checkpoint_closed(self, uri: str, trial: str, name: str) -> None:
        """Forget a checkpoint: it is durable, or given up."""
        self._record("DELETE FROM checkpoints WHERE (uri, trial, name) = (?, ?, ?)", uri, trial, name, soon=False)

    async def pending_checkpoints(self, uri: str) -> list[PendingCheckpoint]:
        """Checkpoints that are accepted and not closed, oldest first."""
        return [PendingCheckpoint(*row[1:]) for row in await self._rows("checkpoints", "accepted", uri=uri)]

    # -- the thread

    def _opened(self) -> Database:
        if self._database is None:
            raise EngineClosedError("the journal is not open")
        if os.getpid() != self._process:
            raise EngineClosedError("the journal belongs to the process from which this one was forked; open one here")
        return self._database

    def _put(self, table: str, *values: Any) -> None:
        self._record(_PUT[table], *values)

    def _record(self, statement: str, *parameters: Any, soon: bool = True) -> None:
        """Queue a row for the thread. Unless ``soon``, it waits up to DELAY seconds for other rows, to be written with
        them: right for a row that says only that nothing is left to do, which the next process also finds out."""
        database = self._opened()
        self._queue.append((statement, parameters))
        if self._executor is None:
            self._drain(database)
        elif not self._writing and soon:
            self._write_behind(database)
        elif not self._writing and self._later is None:
            self._later = asyncio.get_running_loop().call_later(DELAY, self._write_delayed)

    def _write_delayed(self) -> None:
        self._later = None
        if self._queue and not self._writing and self._database is not None:
            self._write_behind(self._database)

    def _write_behind(self, database: Database) -> None:
        self._writing = True
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._executor, self._drain, database).add_done_callback(self._written)

    def _written(self, job: asyncio.Future[None]) -> None:
        self._writing = False
        error = None if job.cancelled() else job.exception()
        if error is not None:
            self._crash = self._crash or error
        if self._queue and self._database is not None:
            self._write_behind(self._database)

    def _drain(self, database: Database) -> None:
        """Write the queued rows. Rows queued meanwhile go into the next batch."""
        while self._queue:
            database.write([self._queue.popleft() for _ in range(len(self._queue))])

    async def _rows(self, table: str, order: str = "", **where: Any) -> Sequence[Any]:
        database = self._opened()

        def ask() -> list[Any]:
            self._drain(database)
            return database.read(table, where, order)

        return await self._in_thread(ask)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._executor is None:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _raise_crash(self) -> None:
        if self._crash is not None:
            crash, self._crash = self._crash, None
            raise crash


def _close_all(opened: list[Database]) -> None:
    """Called in the thread that opened them."""
    for database in opened:
        database.close()


def _blob(text: str) -> bytes:
    """As bytes: paths need not be UTF-8, but SQLite's text must be."""
    return text.encode("utf-8", "surrogateescape")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogateescape")
