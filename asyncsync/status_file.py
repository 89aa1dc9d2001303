"""The status file of a running engine, in the state directory: other processes of this machine read it.

Written when something has changed, at most once a second, and by the period of the heartbeat: the write costs no
request. It is replaced with one rename, so a reader never sees half of one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from asyncsync.aio.threads import in_thread, in_thread_stoppable
from asyncsync.config import state_dir
from asyncsync.planning.document import DocumentError, parsing
from asyncsync.runtime import Presence, process_alive, process_id, state_directory, token, wall_time
from asyncsync.status import EngineStatus, EngineTotals, OperationTotals, RunningEngine, TrialStatus

log = logging.getLogger("asyncsync")

STATUS_FORMAT = 1
MIN_INTERVAL = 1.0
"""Seconds between two writes; more if a status is expensive, see SHARE_OF_TIME."""
SHARE_OF_TIME = 0.02
"""Largest share of the event loop's time that statuses may take: ten thousand trials are written less often."""
TRIALS_WRITTEN = 200
FORGOTTEN_AFTER = 7 * 86400.0
"""Seconds after which the file of an engine that was killed is removed."""


def status_directory() -> Path:
    """The directory of the status files."""
    return state_dir() / "engines"


@dataclass(frozen=True, slots=True)
class Owner:
    """The engine that a status file describes. ``presence``: its name, see :class:`asyncsync.runtime.Presence`."""

    presence: str
    uri: str
    local_dir: str
    role: str
    rank: int


class StatusFile:
    """Writes the status of one engine until it is removed.

    ``take`` returns the status with at most so many trials, and the number of all; ``changed`` is set when a new one
    is worth a write. A file of an ended engine of the same experiment, directory, role and rank is replaced. If the
    disk refuses a write, that is logged once and nothing more is written.
    """

    def __init__(self, owner: Owner, take: Callable[[int], tuple[EngineStatus, int]], changed: asyncio.Event) -> None:
        self._take, self._changed = take, changed
        self._head = {
            "format": STATUS_FORMAT,
            "engine": owner.presence,
            "machine": _machine(),
            "pid": process_id(),
            "uri": owner.uri,
            "local_dir": owner.local_dir,
            "role": owner.role,
            "rank": owner.rank,
            "started": wall_time(),
        }
        self._path = status_directory() / f"{process_id()}-{token(4)}.json"

    async def run(self, period: float | None) -> None:
        """Write until cancelled. ``period``: longest time between two writes, seconds; None: only after changes."""
        if state_directory() is not None:
            return  # a simulated machine has no other processes that read it
        changed = self._changed
        try:
            await in_thread(self._prepare)
            while True:
                changed.clear()
                began = time.perf_counter()
                document = self._document()
                spent = time.perf_counter() - began
                await in_thread_stoppable(partial(_replace, self._path, document))  # the end comes after the write
                await asyncio.sleep(max(MIN_INTERVAL, spent / SHARE_OF_TIME))
                with suppress(TimeoutError):
                    async with asyncio.timeout(period):
                        await changed.wait()
        except OSError as error:
            log.warning("the status is not visible to 'asyncsync status': %s cannot be written: %s", self._path, error)

    def remove(self) -> None:
        """Remove the file: the engine was left."""
        with suppress(OSError):
            self._path.unlink()

    def _document(self) -> bytes:
        status, trials = self._take(TRIALS_WRITTEN)
        shown = replace(status, trials={name: replace(trial, metrics={}) for name, trial in status.trials.items()})
        document = {**self._head, "written": wall_time(), "trials": trials, "status": asdict(shown)}
        return json.dumps(document, separators=(",", ":")).encode()

    def _prepare(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        same = ("uri", "local_dir", "role", "rank")
        for path, found in _documents():
            ended = not (_is_here(found) and _is_alive(found))
            replaced = _is_here(found) and all(found.get(name) == self._head[name] for name in same)
            if ended and (replaced or wall_time() - _number(found.get("written")) > FORGOTTEN_AFTER):
                path.unlink(missing_ok=True)


def _replace(path: Path, document: bytes, stop: threading.Event) -> None:
    if stop.is_set():
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(document)
    os.replace(temporary, path)


def running_engines() -> list[RunningEngine]:
    """The engines of this machine and user that have a status file: those that run, and those that were killed.

    Sorted by start. Blocking, but only small local files are read. Files that another version wrote are left out, and
    those of other machines that share the state directory: whether their processes live is not known here.
    """
    found = []
    for path, document in _documents():
        if not _is_here(document):
            continue
        try:
            with parsing("status file"):
                found.append(_engine(document))
        except DocumentError as error:
            log.debug("%s is left out: %s", path, error)
    return sorted(found, key=lambda engine: engine.started)


def _documents() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(status_directory().glob("*.json")):
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            log.debug("%s is left out: %s", path, error)  # removed since, or damaged
            continue
        if isinstance(document, dict):
            yield path, document


def _engine(document: dict[str, Any]) -> RunningEngine:
    if document["format"] != STATUS_FORMAT:
        raise ValueError(f"its format is {document['format']!r}")
    raw = dict(document["status"])
    raw["trials"] = {name: TrialStatus(**trial) for name, trial in raw["trials"].items()}
    raw["operations"] = {name: OperationTotals(**item) for name, item in raw["operations"].items()}
    raw["totals"] = EngineTotals(**raw["totals"])
    return RunningEngine(
        uri=str(document["uri"]),
        local_dir=str(document["local_dir"]),
        role=str(document["role"]),
        rank=int(document["rank"]),
        pid=int(document["pid"]),
        started=float(document["started"]),
        written=float(document["written"]),
        alive=_is_alive(document),
        status=EngineStatus(**raw),
        trials=int(document["trials"]),
    )


def _machine() -> str:
    return socket.gethostname()


def _is_here(document: dict[str, Any]) -> bool:
    """Whether an engine of this machine wrote it."""
    return bool(document.get("machine", _machine()) == _machine())


def _is_alive(document: dict[str, Any]) -> bool:
    """Whether the process of this machine may still run. Where the system names no processes uniquely, its ID
    decides."""
    name, pid = document.get("engine"), document.get("pid")
    if name:
        return not (Presence.has_ended(str(name)) or Presence.is_of_earlier_boot(str(name)))
    return isinstance(pid, int) and process_alive(pid)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
