"""Which process this is, so that another one on the same machine can tell whether it has ended."""

from __future__ import annotations

import os
from pathlib import Path

from asyncsync.injected import process_ended, process_identity

_STARTED = 19
"""Field of ``/proc/PID/stat`` after the name: when the process was started, in ticks since the machine was, proc(5)."""


def this_process() -> str:
    """Machine since its last start, process name space, number and start; empty where that cannot be told."""
    if (simulated := process_identity()) is not None:
        return simulated
    return _identity(os.getpid())


def has_ended(identity: str) -> bool:
    """Whether this is known of a process: on another machine, or in another container, it is not."""
    if not identity:
        return False
    if process_identity() is not None:
        return process_ended(identity)
    here, _, process = identity.rpartition(" ")
    number, _, _ = process.partition("/")
    if not number.isdecimal() or not here or here != _here():
        return False
    return _identity(int(number)) != identity


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
