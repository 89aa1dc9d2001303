"""Clocks, random numbers, and the identity of process and machine. A simulation replaces them; otherwise they are those
of the real machine.

An event loop may have methods ``wall_time``, ``lease_time``, ``dice`` (returns a :class:`random.Random`),
``process_id``, ``process_alive``, ``state_directory`` or ``tree_locks``. They are called instead, see
:mod:`asyncsync.testing.simulation`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from asyncsync.errors import ConfigError

_MACHINE = random.SystemRandom()
_LEASE_CLOCK: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


def wall_time() -> float:
    """Unix seconds on this machine's clock: for people, never for decisions."""
    ask = getattr(_loop(), "wall_time", None)
    return time.time() if ask is None else float(ask())


def lease_time() -> float:
    """Seconds on a clock that continues while the process or the machine is suspended (CLOCK_BOOTTIME; without it the
    monotonic clock, which stops in a suspended machine)."""
    return lease_clock()()


def lease_clock() -> Callable[[], float]:
    """:func:`lease_time` of the running loop, callable from any thread."""
    ask: Callable[[], float] | None = getattr(_loop(), "lease_time", None)
    return _LEASE_CLOCK if ask is None else ask


def dice() -> random.Random:
    """Random numbers for pauses and the like; nothing depends on their quality."""
    ask = getattr(_loop(), "dice", None)
    return _MACHINE if ask is None else ask()


def token(size: int = 8) -> str:
    """``size`` random bytes in hexadecimal: a unique name."""
    ask = getattr(_loop(), "dice", None)
    return os.urandom(size).hex() if ask is None else ask().randbytes(size).hex()


def process_id() -> int:
    """ID of this process."""
    ask = getattr(_loop(), "process_id", None)
    return os.getpid() if ask is None else int(ask())


def process_alive(pid: int) -> bool:
    """Whether a process with this ID exists on this machine."""
    ask = getattr(_loop(), "process_alive", None)
    if ask is not None:
        return bool(ask(pid))
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it belongs to another user
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
    """Identity of a simulated process, see :class:`Presence`; None for a real one."""
    ask = getattr(_loop(), "process_identity", None)
    return None if ask is None else str(ask())


def process_ended(identity: str) -> bool:
    """Whether a simulated process is known to have ended."""
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
"""Field of ``/proc/PID/stat`` after the name: start time of the process, in ticks since the machine booted, proc(5)."""


class Presence:
    """A running engine. ``name`` identifies it: boot of the machine, PID namespace, process ID and start of the
    process, and a random number. It is empty where these are not available."""

    _there: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        process = _process()
        self.name = f"{process} {token(4)}" if process else ""
        self._there.add(self.name)

    def leave(self) -> None:
        """The engine has ended and does nothing more."""
        self._there.discard(self.name)

    @classmethod
    def has_ended(cls, name: str) -> bool:
        """Whether the engine is known to have ended. For one on another machine or in another container that is
        unknown."""
        process, _, _ = name.rpartition(" ")
        if not process:
            return False
        if process == _process():
            return name not in cls._there
        if process_identity() is not None:
            return process_ended(process)
        number = cls.pid_of(name)
        return number is not None and _identity(number) != process

    @staticmethod
    def is_of_earlier_boot(name: str) -> bool:
        """Whether an engine of this machine ran before the machine was started again."""
        boot, here = name.partition(" ")[0], _here().partition(" ")[0]
        return bool(boot and here) and boot != here

    @staticmethod
    def pid_of(name: str) -> int | None:
        """The process ID in a name; None if it is one of another machine or container."""
        here, _, which = name.rpartition(" ")[0].rpartition(" ")
        number, _, _ = which.partition("/")
        return int(number) if number.isdecimal() and here and here == _here() else None


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
    """Start time of a process; empty if there is no such process. A zombie counts as ended."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[_STARTED]
