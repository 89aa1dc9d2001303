"""What has to be sent: the difference between a snapshot and a manifest. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from asyncsync.planning.manifest import Manifest
from asyncsync.planning.snapshot import FileStat

PART = 16 << 20
"""Bytes per part unless set otherwise: large enough that a request's cost vanishes, small enough to lose little."""
RACY_NS = 20_000_000
"""A file written this close to the scan may have been written again within the clock's tick (git's rule)."""
SCANNED = "scanned_ns"
"""Key in ``Manifest.info``: wall-clock nanoseconds of the scan that the manifest goes back to."""


@dataclass(slots=True)
class Changes:
    """``send``: new or possibly changed; ``skip``: how many are as the manifest says; ``gone``: no longer there."""

    send: list[FileStat] = field(default_factory=list)
    skip: int = 0
    gone: list[str] = field(default_factory=list)


def compare(files: Iterable[FileStat], manifest: Manifest | None, *, checksum: bool = False) -> Changes:
    """Compare by size, mtime and inode; anything in doubt is sent on to hashing. ``checksum``: doubt everything."""
    changes = Changes()
    known = manifest.files if manifest is not None else {}
    racy_from = int(manifest.info.get(SCANNED, 0)) - RACY_NS if manifest is not None else 0
    seen: set[str] = set()
    for file in files:
        seen.add(file.path)
        entry = known.get(file.path)
        if (
            entry is not None
            and entry.size == file.size
            and entry.mtime_ns == file.mtime_ns
            and entry.inode == file.inode
            and file.mtime_ns < racy_from
            and not checksum
        ):
            changes.skip += 1
        else:
            changes.send.append(file)
    changes.gone = [path for path in known if path not in seen] if len(seen) != len(known) or changes.send else []
    return changes


def part_size_for(size: int, wanted: int | None, *, least: int, most: int, max_parts: int) -> int:
    """Bytes per part of a file of ``size``: what was wanted, doubled until the parts are few enough.

    S3 takes 10,000 parts of 5 MiB to 5 GiB (Amazon S3 User Guide, "Multipart upload limits").
    """
    part = max(wanted or PART, least)
    while part * max_parts < size and part < most:
        part = min(part * 2, most)
    if part * max_parts < size:
        raise ValueError(f"{size} bytes do not fit into {max_parts} parts of {most} bytes")
    return part


def cut(size: int, part_size: int) -> list[tuple[int, int]]:
    """(offset, size) of each part."""
    return [(offset, min(part_size, size - offset)) for offset in range(0, size, part_size)]
