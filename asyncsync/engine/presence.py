"""Which process an engine is in, so that another one on the same machine can tell whether it has ended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from asyncsync.runtime import process_ended, process_identity, token

_STARTED = 19
"""Field of ``/proc/PID/stat`` after the name: when the process was started, in ticks since the machine was, proc(5)."""


class Presence:
    """An engine that is there. ``name`` says which: machine since its last start, process name space, number and start
    of the process, and one more number; empty where that cannot be told."""

    _there: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        process = _process()
        self.name = f"{process} {token(4)}" if process else ""
        self._there.add(self.name)

    def leave(self) -> None:
        """It has ended, and does nothing more."""
        self._there.discard(self.name)

    @classmethod
    def has_ended(cls, name: str) -> bool:
        """Whether this is known of an engine: of one on another machine, or in another container, it is not."""
        process, _, _ = name.rpartition(" ")
        if not process:
            return False
        if process == _process():
            return name not in cls._there
        if process_identity() is not None:
            return process_ended(process)
        here, _, which = process.rpartition(" ")
        number, _, _ = which.partition("/")
        if not number.isdecimal() or not here or here != _here():
            return False
        return _identity(int(number)) != process


def _process() -> str:
    simulated = process_identity()
    return _identity(os.getpid()) if simulated is None else simulated


def _identity(number: int) -> str:
    here, started = _here(), _started(number)
    return f"{here} {number}/{started}" if here and started else ""


def _here() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(number: int) -> str:
    """Empty if there is no such process any more; one that has ended and was not waited for counts as ended."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[_STARTED]
