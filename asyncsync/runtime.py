"""What a simulation replaces: the clocks, the dice, and which process and machine this is. Everybody else gets those of
the real machine.

A loop that has a method ``wall_time`` or ``lease_time``, a method ``dice`` that gives a :class:`random.Random`, or one
of ``process_id``, ``process_alive``, ``state_directory`` and ``tree_locks``, is asked for it: see
:mod:`asyncsync.testing.simulation`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from asyncsync.errors import ConfigError

_MACHINE = random.SystemRandom()
_BOOT = getattr(time, "CLOCK_BOOTTIME", None)


def wall_time() -> float:
    """Unix seconds, as this machine believes: for people, never for what is decided."""
    ask = getattr(_loop(), "wall_time", None)
    return time.time() if ask is None else float(ask())


def lease_time() -> float:
    """Seconds on a clock that goes on while the process, or the machine, is stopped (CLOCK_BOOTTIME; where there is
    none the monotonic clock, which stands still in a suspended machine)."""
    ask = getattr(_loop(), "lease_time", None)
    if ask is not None:
        return float(ask())
    return time.monotonic() if _BOOT is None else time.clock_gettime(_BOOT)


def lease_clock() -> Callable[[], float]:
    """:func:`lease_time` as it is for the running loop, to be asked from any thread."""
    ask = getattr(_loop(), "lease_time", None)
    return lease_time if ask is None else ask


def dice() -> random.Random:
    """For pauses and the like; it guards nothing."""
    ask = getattr(_loop(), "dice", None)
    return _MACHINE if ask is None else ask()


def token(size: int = 8) -> str:
    """So many random bytes, in hexadecimal: a name that nobody else has."""
    ask = getattr(_loop(), "dice", None)
    return os.urandom(size).hex() if ask is None else ask().randbytes(size).hex()


def process_id() -> int:
    """Of this process."""
    ask = getattr(_loop(), "process_id", None)
    return os.getpid() if ask is None else int(ask())


def process_alive(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    ask = getattr(_loop(), "process_alive", None)
    if ask is not None:
        return bool(ask(pid))
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it is somebody else's
    return True


def state_directory() -> str | None:
    """The state directory of a simulated machine; None on a real one."""
    ask = getattr(_loop(), "state_directory", None)
    return None if ask is None else str(ask())


def tree_locks() -> Any:
    """The locks of a simulated machine, see :mod:`asyncsync.disk.locks`; None on a real one."""
    ask = getattr(_loop(), "tree_locks", None)
    return None if ask is None else ask()


def process_identity() -> str | None:
    """Which simulated process this is, see :class:`Presence`; None: a real one."""
    ask = getattr(_loop(), "process_identity", None)
    return None if ask is None else str(ask())


def process_ended(identity: str) -> bool:
    """Whether that is known of a simulated process."""
    return bool(_loop().process_ended(identity))


def need_asyncio() -> None:
    """ConfigError unless an event loop of asyncio runs the caller."""
    if _loop() is None:
        raise ConfigError(
            "asyncsync needs asyncio, and no event loop of it is running here: use asyncio.run(main()), or "
            'anyio.run(main, backend="asyncio"); trio is not supported'
        )


def _loop() -> Any:
    return asyncio._get_running_loop()  # noqa: SLF001  None instead of an exception: this is asked for every piece


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
