"""Assembling a file from bytes that the store has: which ranges are sent, which are copied. Pure.

A file is given as *segments*, in order: its parts, each with the place where the store holds the same bytes, if there
is one. The segments become *pieces*, the parts of an upload: with the fewest bytes sent, then the fewest requests, that
the store's rules allow. Segments may arrive a few at a time. A file that has nothing in common with the store's objects
is therefore in flight while the rest of it is still being hashed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

COPIED_RANGE_SIZE = 64 << 20
"""Bytes per copied range. S3 allows 5 GiB, but it responds only when all of them are copied: a few ranges side by side
are faster than one, and even a store that copies 10 MB a second responds within the timeout of a request."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the store holds some bytes: from ``start`` in an object of ``total`` bytes."""

    key: str
    version: str
    start: int
    total: int

    def at(self, offset: int) -> Origin:
        """The place ``offset`` bytes further."""
        return Origin(self.key, self.version, self.start + offset, self.total)


class Segment(NamedTuple):
    """Some bytes of the file with their CRC32C; ``origin`` None: the store does not have them."""

    offset: int
    size: int
    crc32c: int
    origin: Origin | None = None


class PlannedPart(NamedTuple):
    """One part of an upload: sent, or copied from ``origin``."""

    offset: int
    size: int
    origin: Origin | None = None

    @property
    def end(self) -> int:
        """Offset at which the next part begins."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the store and the settings. Sizes in bytes."""

    floor: int
    """Least size of a part, except for the last one (S3: 5 MiB)."""
    part: int
    """Most bytes that are sent in one request, give or take ``floor``."""
    copied: int = COPIED_RANGE_SIZE
    """Most bytes that are copied in one request."""
    ranges: bool = True
    """Whether ranges can be copied; otherwise only whole objects (GCS)."""
    least_source: int = 0
    """Ranges of objects up to this size cannot be copied (S3: 5 MiB)."""
    equal: bool = False
    """All parts but the last must have ``part`` bytes (Cloudflare R2)."""
    request_cost: int = 0
    """Cost of a request, as a number of bytes sent."""


def pieces_of(
    segments: Sequence[Segment], limits: Limits, *, final: bool = True
) -> tuple[list[PlannedPart], list[Segment]]:
    """The pieces of consecutive ``segments``, and the last segments that wait for further ones.

    ``final``: there are no further segments; none is left waiting.
    """
    if limits.equal:
        return _equal(segments, limits), []
    runs = _runs(segments)
    runs = [
        run if not final and index == len(runs) - 1 else _usable(run, limits)  # the last one may grow
        for index, run in enumerate(runs)
    ]
    runs = _joined(_worth_it(_joined(runs), limits))
    decided = len(runs) if final else _decided(runs, limits.floor)
    kept = _joined(_floored(runs[:decided], limits, final=final))
    if not kept:
        return [], list(segments)
    pieces = [piece for run in kept for piece in _split(run, segments, limits)]
    start, end = kept[0].offset, kept[-1].end
    plain = _split(PlannedPart(start, end - start), segments, limits)
    best = min(pieces, plain, key=lambda choice: cost(choice, limits.request_cost))
    return best, [segment for segment in segments if segment.offset >= end]


def _equal(segments: Sequence[Segment], limits: Limits) -> list[PlannedPart]:
    """One piece for each part of the file, copied if one object has all of it. The segments are complete parts."""
    parts: list[list[Segment]] = []
    for segment in segments:
        if parts and segment.offset < parts[-1][0].offset + limits.part:
            parts[-1].append(segment)
        else:
            parts.append([segment])
    return [_usable(run[0], limits) if len(run) == 1 else _sent(run) for run in map(_runs, parts)]


def _sent(runs: Sequence[PlannedPart]) -> PlannedPart:
    return PlannedPart(runs[0].offset, runs[-1].end - runs[0].offset)


def whole_copy(segments: Sequence[Segment]) -> Origin | None:
    """The object that is equal to the whole file, if there is one."""
    runs = _runs(segments)
    if len(runs) != 1 or runs[0].origin is None:
        return None
    origin = runs[0].origin
    return origin if (origin.start, origin.total) == (0, runs[0].size) else None


def cost(pieces: Iterable[PlannedPart], request_cost: int) -> int:
    """Bytes sent, plus the cost of the requests."""
    return sum(request_cost + (0 if piece.origin else piece.size) for piece in pieces)


def _runs(segments: Iterable[Segment]) -> list[PlannedPart]:
    """Neighbouring segments that are sent, or copied from adjacent bytes, as one piece of any size."""
    return _joined([PlannedPart(segment.offset, segment.size, segment.origin) for segment in segments])


def _joined(runs: Iterable[PlannedPart]) -> list[PlannedPart]:
    joined: list[PlannedPart] = []
    for run in runs:
        if joined and _continues(joined[-1], run):
            joined[-1] = joined[-1]._replace(size=joined[-1].size + run.size)
        else:
            joined.append(run)
    return joined


def _continues(before: PlannedPart, run: PlannedPart) -> bool:
    if before.origin is None or run.origin is None:
        return before.origin is run.origin
    return before.origin.at(before.size) == run.origin


def _usable(run: PlannedPart, limits: Limits) -> PlannedPart:
    """The same run, but sent if the store could not copy it."""
    origin = run.origin
    if origin is None:
        return run
    whole = (origin.start, origin.total) == (0, run.size)
    allowed = origin.total > limits.least_source if limits.ranges else whole
    return run if allowed else run._replace(origin=None)


def _worth_it(runs: Sequence[PlannedPart], limits: Limits) -> list[PlannedPart]:
    """Replace copies that cost more than sending. A copy is one more request, and another one if it splits what would
    be sent in one request."""
    result: list[PlannedPart] = []
    for index, run in enumerate(runs):
        between = 0 < index < len(runs) - 1 and runs[index - 1].origin is runs[index + 1].origin is None
        dear = run.origin is not None and run.size <= limits.request_cost * (2 if between else 1)
        result.append(run._replace(origin=None) if dear else run)
    return result


def _decided(runs: Sequence[PlannedPart], floor: int) -> int:
    """The number of runs that later segments cannot change: without a last copy, which may grow, and without runs that
    may have to grow."""
    count = len(runs)
    if runs and runs[-1].origin is not None:
        count -= 1
    while count and runs[count - 1].size < floor:
        count -= 1
    return count


def _floored(runs: Sequence[PlannedPart], limits: Limits, *, final: bool) -> list[PlannedPart]:
    """Make every run but the last of the file at least ``floor`` bytes: short copies are sent instead, and short sent
    runs take bytes from the copies beside them."""
    done: list[PlannedPart] = []
    rest = list(reversed(runs))
    while rest:
        run = rest.pop()
        if (final and not rest) or run.size >= limits.floor:
            done.append(run)
        elif run.origin is not None:
            rest.append(run._replace(origin=None))
        elif done and done[-1].origin is None:
            rest.append(_merge(done.pop(), run))
        elif rest and rest[-1].origin is None:
            rest.append(_merge(run, rest.pop()))
        else:
            _widen(done, run, rest, limits, ends=final and len(rest) == 1)
    return done


def _widen(done: list[PlannedPart], run: PlannedPart, rest: list[PlannedPart], limits: Limits, *, ends: bool) -> None:
    """Take the missing bytes from an adjacent copy that stays large enough, or else all bytes of the smaller one.

    ``ends``: the copy behind it is the last run of the file, which may have any size.
    """
    need = limits.floor - run.size
    before, after = done[-1] if done else None, rest[-1] if rest else None
    if after is not None and limits.ranges and after.size - need >= (1 if ends else limits.floor):
        assert after.origin is not None
        rest[-1] = PlannedPart(after.offset + need, after.size - need, after.origin.at(need))
        done.append(PlannedPart(run.offset, limits.floor))
    elif before is not None and limits.ranges and before.size - need >= limits.floor:
        done[-1] = before._replace(size=before.size - need)
        done.append(PlannedPart(run.offset - need, limits.floor))
    elif before is not None and (after is None or before.size <= after.size):
        rest.append(_merge(done.pop(), run))
    else:
        rest.append(_merge(run, rest.pop()))


def _merge(first: PlannedPart, second: PlannedPart) -> PlannedPart:
    return PlannedPart(first.offset, first.size + second.size)


def _split(run: PlannedPart, segments: Sequence[Segment], limits: Limits) -> list[PlannedPart]:
    """Divide a run into pieces, each for one request."""
    bounds = [segment.offset for segment in segments if run.offset < segment.offset < run.end]
    if run.origin is not None:
        return _split_copy(run, run.origin, bounds, limits)
    pieces: list[PlannedPart] = []
    start = run.offset
    while run.end - start > limits.part:
        # at the border of a segment where there is one: its checksum is known
        cuts = [bound for bound in bounds if limits.floor <= bound - start <= limits.part]
        end = cuts[-1] if cuts else start + limits.part
        if run.end - end < limits.floor:
            break
        pieces.append(PlannedPart(start, end - start))
        start = end
    return [*pieces, PlannedPart(start, run.end - start)]


def _split_copy(run: PlannedPart, origin: Origin, bounds: Sequence[int], limits: Limits) -> list[PlannedPart]:
    """Divide a copied run into about equal pieces, at the border of a segment where there is one: a store that can use
    its own blocks again (Azure) does so for whole blocks."""
    pieces: list[PlannedPart] = []
    start = run.offset
    while limits.ranges and run.end - start > limits.copied:
        step = -(-(run.end - start) // -(-(run.end - start) // limits.copied))
        cuts = [at for at in bounds if limits.floor <= at - start <= limits.copied and run.end - at >= limits.floor]
        end = min(cuts, key=lambda at: abs(at - start - step)) if cuts else start + step
        pieces.append(PlannedPart(start, end - start, origin.at(start - run.offset)))
        start = end
    return [*pieces, PlannedPart(start, run.end - start, origin.at(start - run.offset))]
