"""What is sent: many small files, near and far, and one large file. Nothing here outlives the run."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
ROOM = 256 * MIB  # left free in memory-backed storage


@dataclass(frozen=True)
class Case:
    """`files` files of `size` bytes each, sent to a store that answers after `delay_ms` milliseconds."""

    name: str
    group: str
    files: int
    size: int
    delay_ms: int = 0

    @property
    def total(self) -> int:
        return self.files * self.size

    @property
    def large(self) -> bool:
        return self.files == 1


CASES = (
    Case("small-0ms", "small", 5_000, 16 << 10),
    Case("small-30ms", "small", 5_000, 16 << 10, delay_ms=30),
    Case("large", "large", 1, 2 << 30),
)


def chosen(names: list[str]) -> list[Case]:
    """The cases of the groups or names in `names`, in the order of CASES; ValueError for a name that is none."""
    known = {case.group for case in CASES} | {case.name for case in CASES}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no such case: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [case for case in CASES if case.group in names or case.name in names]


def room_for(cases: list[Case]) -> Path:
    """A fresh directory in /dev/shm when that has room for the largest case, so that the disk is not what is
    measured; in the temp dir otherwise."""
    need = max(case.total for case in cases) + ROOM
    memory = "/dev/shm"
    fits = os.path.isdir(memory) and shutil.disk_usage(memory).free >= need
    return Path(tempfile.mkdtemp(prefix="asyncsync-bench-", dir=memory if fits else None))


def write(case: Case, room: Path) -> Path:
    """The files of `case` below `room`, the same for every case of its group: small ones in 50 directories."""
    top = room / case.group
    if not top.exists():
        top.mkdir()
        _write_one(top / "model.bin", case.size) if case.large else _write_many(top, case)
    return top


def _write_one(path: Path, size: int) -> None:
    block = os.urandom(16 * MIB)
    with open(path, "wb") as file:
        for offset in range(0, size, len(block)):
            file.write(block[: size - offset])


def _write_many(top: Path, case: Case) -> None:
    noise = os.urandom(case.size + case.files)  # a window that moves: no two files are alike
    for number in range(case.files):
        directory = top / f"trial_{number % 50:02d}"
        directory.mkdir(exist_ok=True)
        (directory / f"file_{number:05d}.bin").write_bytes(noise[number : number + case.size])
