"""What is measured: the files, what is done with them, and against which servers. Nothing here outlives the run."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20
ROOM = 512 * MIB  # left free in memory-backed storage
BLOCK = 4 * MIB
DISTINCT = 8  # large files of the trials that differ; the others are hard links to them


@dataclass(frozen=True)
class Data:
    """`trials` directories with the same files in each: (how many, bytes each), ..."""

    name: str
    trials: int
    files: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return self.trials * sum(count for count, _ in self.files)

    @property
    def total(self) -> int:
        return self.trials * sum(count * size for count, size in self.files)

    @property
    def on_disk(self) -> int:
        """Bytes that it takes here, where large files are linked."""
        pages = sum(count * max(size, 4 * KIB) for count, size in self.files if size <= MIB)
        return self.trials * pages + min(self.trials, DISTINCT) * sum(c * size for c, size in self.files if size > MIB)

    @property
    def bulky(self) -> bool:
        """Whether MiB/s says more than files/s."""
        return self.total > self.count * MIB

    def __str__(self) -> str:
        each = " + ".join(f"{count:,} x {_size(size)}" for count, size in self.files)
        return each if self.trials == 1 else f"{self.trials:,} trials x ({each})"


def _size(size: int) -> str:
    return f"{size / MIB:,.0f} MiB" if size >= MIB else f"{size / KIB:,.0f} KiB"


SMALL = Data("small", 50, ((100, 16 * KIB),))
LARGE = Data("large", 1, ((1, 2048 * MIB),))
GIB = Data("gib", 1, ((1, 1024 * MIB),))
TRIALS = Data("trials", 500, ((3, 16 * KIB), (1, 20 * MIB)))
FEW_SMALL = replace(SMALL, name="few-small", trials=10)
FEW_TRIALS = replace(TRIALS, name="few-trials", trials=50)
MANY = Data("many", 100, ((1000, KIB),))


@dataclass(frozen=True)
class Case:
    """`kind`: up, down, again (a tree that the store holds; `changed` of its files differ) or lag (of an event loop
    while it uploads). `servers`: where it runs unless another is asked for. `scheme`: s3, or gs for Cloud Storage."""

    name: str
    kind: str
    data: Data
    servers: tuple[str, ...]
    changed: int = 0
    scheme: str = "s3"

    def on(self, server: str) -> Case:
        """SeaweedFS keeps what it is sent: there it is 50 trials, not 500. gcp-storage-emulator needs 5 ms and more for
        an object, the more the more it has, whoever sends it: there it is 1,000 files, not 5,000."""
        if server == "gcp-storage-emulator" and self.data is SMALL:
            return replace(self, data=FEW_SMALL)
        return replace(self, data=FEW_TRIALS) if server == "seaweedfs" and self.data is TRIALS else self

    def quick(self) -> Case:
        """The same in a few seconds; its numbers are good for finding what broke, not for quoting."""
        if self.data.trials == 1:
            data = replace(self.data, name=f"quick-{self.data.name}", files=((1, self.data.files[0][1] // 4),))
        else:
            trials = min(self.data.trials, max(25, self.data.trials // 10))
            data = replace(self.data, name=f"quick-{self.data.name}", trials=trials)
        return replace(self, data=data, changed=self.changed // 10)


SINKS = ("sink", "sink-30ms", "sink-tls", "sink-tls-30ms")
EMULATORS = ("gcp-storage-emulator", "fake-gcs-server")
KEEPING = ("seaweedfs", *EMULATORS)
SERVERS = (*SINKS, *KEEPING)

CASES = (
    Case("small", "up", SMALL, ("sink", "sink-30ms", "sink-tls", "seaweedfs")),
    Case("large", "up", LARGE, ("sink", "sink-tls", "seaweedfs")),
    Case("trials", "up", TRIALS, ("sink", "seaweedfs")),
    Case("unchanged", "again", MANY, ("sink",)),
    Case("changed", "again", MANY, ("sink",), changed=1000),
    Case("small-down", "down", SMALL, ("seaweedfs",)),
    Case("large-down", "down", GIB, ("seaweedfs",)),
    Case("trials-down", "down", FEW_TRIALS, ("seaweedfs",)),
    Case("lag-small", "lag", SMALL, ("sink",)),
    Case("lag-large", "lag", LARGE, ("sink",)),
    Case("lag-trials", "lag", FEW_TRIALS, ("sink",)),
    Case("gcs-small", "up", SMALL, ("sink", "sink-30ms", *EMULATORS), scheme="gs"),
    Case("gcs-small-down", "down", SMALL, EMULATORS, scheme="gs"),
    Case("gcs-large", "up", GIB, ("sink", "sink-30ms", "gcp-storage-emulator"), scheme="gs"),
    Case("gcs-large-down", "down", GIB, ("gcp-storage-emulator",), scheme="gs"),
)

QUICK_CASES = ("small", "large", "unchanged", "changed", "large-down", "lag-small", "lag-large")
QUICK_SERVERS = {"small": ("sink", "sink-30ms"), "large": ("sink", "sink-tls")}


def chosen(names: list[str] | None, servers: list[str] | None, *, quick: bool) -> list[tuple[Case, str]]:
    """(case, server) in the order of CASES: each on its own servers, but who names both gets what they name.
    ValueError for a name that is none, and for a case that cannot run there."""
    _known(names, [case.name for case in CASES], "case")
    _known(servers, SERVERS, "server")
    pairs = []
    for case in CASES:
        if case.name not in (names or (QUICK_CASES if quick else case.name)):
            continue
        own = [server for server in case.servers if server in QUICK_SERVERS.get(case.name, SERVERS) or not quick]
        for server in servers if servers and names else [server for server in own if server in (servers or own)]:
            wrong_kind = case.kind in ("down", "again") and (server in KEEPING) != (case.kind == "down")
            if wrong_kind or (server not in SINKS and (server in EMULATORS) != (case.scheme == "gs")):
                raise ValueError(f"{case.name} does not run on {server}, only on {', '.join(case.servers)} or the like")
            made = case.on(server)
            pairs.append((made.quick() if quick else made, server))
    return pairs


def _known(names: list[str] | None, allowed: tuple[str, ...] | list[str], what: str) -> None:
    if unknown := [name for name in names or () if name not in allowed]:
        raise ValueError(f"no such {what}: {', '.join(unknown)}; there are {', '.join(allowed)}")


def room_for(pairs: list[tuple[Case, str]]) -> Path:
    """A fresh directory in /dev/shm when that has room for the neediest case, so that the disk is not what is
    measured; in the temp dir otherwise."""
    need = max(_need(case, server) for case, server in pairs) + ROOM
    memory = "/dev/shm"
    fits = os.path.isdir(memory) and shutil.disk_usage(memory).free >= need
    return Path(tempfile.mkdtemp(prefix="asyncsync-bench-", dir=memory if fits else None))


def _need(case: Case, server: str) -> int:
    stored = 4096 * MIB + case.data.total if server == "seaweedfs" else 0  # see servers.py: it starts afresh then
    return case.data.on_disk + stored + (2 * case.data.total if case.kind == "down" else 0)


def write(data: Data, top: Path) -> Path:
    """The files of `data` in directories below `top`; incompressible, and no two small ones alike. Data that is there
    already is used again."""
    source = top / data.name
    if source.exists():
        return source
    making = top / f"{data.name}.making"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    noise = os.urandom(BLOCK)
    for trial in range(data.trials):
        directory = making / f"trial_{trial:05d}"
        directory.mkdir()
        _fill(directory, data, trial, noise, making)
    making.rename(source)
    return source


def _fill(directory: Path, data: Data, trial: int, noise: bytes, top: Path) -> None:
    number = 0
    for count, size in data.files:
        for _ in range(count):
            path = directory / f"file_{number:05d}.bin"
            if size > MIB and trial >= DISTINCT:
                os.link(top / f"trial_{trial % DISTINCT:05d}" / path.name, path)
            else:
                _write(path, size, noise, (trial * 7919 + number * 127) % (BLOCK // 2))
            number += 1


def _write(path: Path, size: int, noise: bytes, start: int) -> None:
    with open(path, "wb") as file:
        if size <= MIB:
            file.write(memoryview(noise)[start : start + size])
            return
        file.write(os.urandom(MIB))
        for offset in range(MIB, size, BLOCK):
            file.write(memoryview(noise)[: size - offset])


def change(source: Path, count: int) -> None:
    """`count` files of a tree get other bytes, all in the same few directories, and a new time."""
    for directory in sorted(os.scandir(source), key=lambda entry: entry.name):
        for entry in os.scandir(directory.path):
            if count == 0:
                return
            size = entry.stat().st_size
            with open(entry.path, "r+b") as file:  # in place: a rename would make it another file
                file.write(os.urandom(min(size, 64)))
            count -= 1


def forget(data: Data, top: Path) -> None:
    """Free the room that it takes."""
    shutil.rmtree(top / data.name, ignore_errors=True)


def same(source: Path, target: Path) -> str | None:
    """What differs between a tree and its copy, or None. What asyncsync keeps beside the data is no part of it."""
    for at, _, names in os.walk(source):
        for name in names:
            path = os.path.join(at, name)
            copy = os.path.join(target, os.path.relpath(path, source))
            if not os.path.exists(copy):
                return f"{copy} is missing"
            if not _equal(path, copy):
                return f"{copy} is not what was sent"
    return None


def _equal(one: str, other: str) -> bool:
    with open(one, "rb") as first, open(other, "rb") as second:
        while True:
            left, right = first.read(BLOCK), second.read(BLOCK)
            if left != right:
                return False
            if not left:
                return True
