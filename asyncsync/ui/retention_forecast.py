"""The checkpoints that retention will remove next. Pure: the rule is :func:`asyncsync.planning.retention.to_retire`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncsync import CheckpointView
from asyncsync.planning.retention import ranked, score, to_retire


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """The settings of the driver that decide which checkpoints are kept."""

    keep: int | None = None
    attribute: str | None = None
    order: str = "max"
    keep_every: int | None = None
    keep_pinned: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> RetentionRule:
        """From ``Experiment.config``; a field of another type counts as its default."""
        raw = config.get("checkpoint")
        raw = raw if isinstance(raw, Mapping) else {}
        keep, every, attribute = (raw.get(name) for name in ("num_to_keep", "keep_every", "checkpoint_score_attribute"))
        return cls(
            keep if type(keep) is int and keep > 0 else None,
            attribute if isinstance(attribute, str) else None,
            "min" if raw.get("checkpoint_score_order") == "min" else "max",
            every if type(every) is int and every > 0 else None,
            raw.get("keep_pinned") is not False,
        )

    @property
    def text(self) -> str:
        """For people."""
        if self.keep is None:
            return "Every checkpoint is kept."
        best = f"the best {self.keep} by {self.attribute} ({self.order})" if self.attribute else f"the last {self.keep}"
        more = f", every checkpoint whose step is a multiple of {self.keep_every}" if self.keep_every else ""
        pinned = ", and pinned ones" if self.keep_pinned else ""
        return f"Kept are {best}, the latest{more}{pinned}."

    def best(self, checkpoints: Sequence[CheckpointView]) -> str | None:
        """Name of the best checkpoint; None without a score."""
        if self.attribute is None or not checkpoints:
            return None
        return ranked([_Candidate.of(item) for item in checkpoints], self.attribute, self.order)[0].name

    def score(self, metrics: Mapping[str, Any]) -> float:
        """The score of a trial or checkpoint; larger is better for both orders. Without one it is the worst."""
        found = None if self.attribute is None else score(metrics, self.attribute, self.order)
        return float("-inf") if found is None else found

    def removed_next(self, checkpoints: Sequence[CheckpointView]) -> list[str]:
        """Names of the checkpoints that go when the trial reports one that is better than all of these."""
        if self.keep is None or not checkpoints:
            return []
        newest = _Candidate("", max(item.number for item in checkpoints) + 1)
        if self.attribute is not None:
            newest.metrics[self.attribute] = float("inf") if self.order == "max" else float("-inf")
        return to_retire(
            [*map(_Candidate.of, checkpoints), newest],
            self.keep,
            self.attribute,
            self.order,
            keep_every=self.keep_every,
            keep_pinned=self.keep_pinned,
        )


@dataclass(slots=True)
class _Candidate:
    """A checkpoint that retention looks at: a stored one, or the one that a running trial will report next."""

    name: str
    number: int
    metrics: dict[str, Any] = field(default_factory=dict)
    step: int | None = 1
    """Of the next one: not a multiple of ``keep_every`` unless that is 1, and then nothing is removed anyway."""
    pinned: bool = False
    tags: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, item: CheckpointView) -> _Candidate:
        """A stored checkpoint."""
        return cls(item.name, item.number, item.metrics, item.step, item.pinned, item.tags)
