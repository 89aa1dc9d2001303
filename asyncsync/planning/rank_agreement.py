"""A checkpoint of several ranks: the names of their records, and the manifest that follows from them.

Pure: every process that has all records makes the same manifest, byte by byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from asyncsync.planning.manifest import META_DIR, FileEntry, Manifest

GENERATION = "generation"
"""Key in a record's info: the epoch of the trial in which it was written. Parts of two generations never mix."""
NONCE = "nonce"
"""Key in a record's info: the nonce of the trial. If an experiment was deleted and another one of the same name was
started, epochs start again at 1, and late writes of the old experiment are recognised by their nonce."""
RETURNED = "returned"
"""Key in a record's info: true for a rank that came back during a generation. It cannot know whether the others are
alive, so its part counts only for rank 0: the holder of the trial's record is alive, or the trial does not continue."""
STEP = "step"
"""Key in a record's info: the training step that the rank reported. Parts of two steps never mix."""
OUTCOME = f"{META_DIR}/outcome.json"
"""Below a checkpoint: the record of its outcome, committed or given up. It is only ever created, so the first
rank decides for all."""
_RANK_FIELDS = ("rank", RETURNED)
"""Fields of a record that describe the rank, not the checkpoint."""
_RANKS_IN_MESSAGE = 8
"""Ranks that a message lists for one step."""
_NAME = re.compile(r"rank-(\d{5,})-of-(\d{5,})(\.failed)?\.json")


def rank_name(rank: int) -> str:
    """Directory of a rank's artifacts below its trial: ``rank_00003``."""
    return f"rank_{rank:05d}"


def claim_name(rank: int) -> str:
    """Below a trial: the record of the process that is this rank."""
    return f"{META_DIR}/rank-{rank:05d}.json"


def part_name(rank: int, world_size: int) -> str:
    """Below a checkpoint: the record of the files that this rank sent, ``rank-00003-of-00008.json``."""
    return f"{META_DIR}/rank-{rank:05d}-of-{world_size:05d}.json"


def failure_name(rank: int, world_size: int) -> str:
    """Below a checkpoint: the record of why this rank gave it up, ``rank-00003-of-00008.failed.json``."""
    return f"{META_DIR}/rank-{rank:05d}-of-{world_size:05d}.failed.json"


def rank_of(name: str, world_size: int, *, failed: bool = False) -> int | None:
    """The rank to whose part, or failure, this file name belongs; None if it belongs to none of ``world_size``
    ranks."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[2]) != world_size or (match[3] is not None) != failed:
        return None
    return int(match[1])


@dataclass(frozen=True, slots=True)
class Generation:
    """Ranks that belong together: ``epoch`` and ``nonce`` of the trial's record."""

    epoch: int
    nonce: str = ""

    @property
    def info(self) -> dict[str, object]:
        """The fields that identify this generation in the info of a part."""
        return {GENERATION: self.epoch, NONCE: self.nonce}

    def has(self, info: Mapping[str, object]) -> bool:
        """Whether a part with this info belongs to this generation."""
        return (info.get(GENERATION), info.get(NONCE, "")) == (self.epoch, self.nonce)


class SameFileError(ValueError):
    """Two ranks sent different files of one name."""

    def __init__(self, path: str, ranks: tuple[int, int]) -> None:
        super().__init__(
            f"ranks {ranks[0]} and {ranks[1]} both wrote {path!r} with different content: give the files of the ranks "
            f"different names, such as {rank_name(ranks[1])}/{path}"
        )
        self.path, self.ranks = path, ranks


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Ranks reported different steps. ``step`` is the latest one that cannot become complete: some rank is past it."""

    reason: str
    step: int


def disagreement(steps: Mapping[int, int | None]) -> Disagreement | None:
    """Compare the steps that the ranks reported; None if they are equal."""
    by_step: dict[int | None, list[int]] = {}
    for rank in sorted(steps):
        by_step.setdefault(steps[rank], []).append(rank)
    if len(by_step) < 2:
        return None
    latest = max(map(_order, by_step))
    texts = [f"{_ranks(ranks)}{{}} {_step(step)}" for step, ranks in by_step.items()]
    reason = ", ".join(text.format("" if place else " reported") for place, text in enumerate(texts))
    return Disagreement(reason, max(_order(step) for step in by_step if _order(step) < latest))


def _order(step: int | None) -> int:
    return -1 if step is None else step


def _step(step: int | None) -> str:
    return "no step" if step is None else f"step {step}"


def _ranks(ranks: list[int]) -> str:
    names = ", ".join(map(str, ranks[:_RANKS_IN_MESSAGE])) + (
        f" and {len(ranks) - _RANKS_IN_MESSAGE} more" if len(ranks) > _RANKS_IN_MESSAGE else ""
    )
    return f"rank{'s' if len(ranks) > 1 else ''} {names}"


class MixedPartsError(ValueError):
    """Parts of different steps or generations cannot form one checkpoint."""


def merge(parts: Mapping[int, Manifest]) -> Manifest:
    """The manifest of the whole checkpoint: the files of all ranks, and the info of the lowest one, whichever process
    merges them. SameFileError; MixedPartsError unless all parts belong to one step and one generation."""
    for key in (STEP, GENERATION, NONCE):
        if not _equal(part.info.get(key) for part in parts.values()):
            raise MixedPartsError(
                f"parts of different {key}s: { ({rank: parts[rank].info.get(key) for rank in parts}) }"
            )
    files: dict[str, FileEntry] = {}
    owner: dict[str, int] = {}
    for rank in sorted(parts):
        for path, entry in parts[rank].files.items():
            other = files.setdefault(path, entry)
            if (other.size, other.crc32c) != (entry.size, entry.crc32c):
                raise SameFileError(path, (owner[path], rank))
            owner.setdefault(path, rank)
    first = parts[min(parts)]
    info = {key: value for key, value in first.info.items() if key not in _RANK_FIELDS}
    return Manifest(files, info, first.extra, first.by)


def _equal(values: Iterable[object]) -> bool:
    return len(set(values)) <= 1
