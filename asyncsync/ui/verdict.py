"""The verdict: whether everything is safe, as one line and one level. Pure. The first rule that applies decides:

1. The store cannot be read, or does not respond: ``unknown``, or ``danger`` if an engine holds what is not stored.
2. The store is unavailable to a running engine of this machine: ``danger``.
3. The driver, or the process of a trial, was killed or sends no heartbeat: ``danger``.
4. A running engine of this machine holds what is not stored: ``risk``.
5. Not all records are read yet: ``unknown``. Some are damaged: ``risk``.
6. An engine of this machine runs: ``safe``; ``unknown`` if other trials run on other machines.
7. It runs elsewhere: ``unknown``, because only its own machine knows what it has not sent.
8. It has ended: ``safe`` if it finished, ``risk`` if it was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asyncsync import Experiment, RunningEngine
from asyncsync.units import duration_text, size_text

NO_RESPONSE_AFTER = 10.0
"""Seconds of reading after which the page says that the store does not respond."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The state of the last attempt to read the store. Times are Unix seconds."""

    read_at: float = 0.0
    """When the shown records were read; 0: none have been."""
    progress: float | None = None
    """When the attempt that runs now began, or last read something."""
    error: str | None = None
    """The reason for which the last attempt failed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``level``: safe, risk, danger or unknown."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class AtRisk:
    """The data that the running engines of this machine hold and the store does not."""

    checkpoints: int
    bytes: int
    lag: float
    """Age of the oldest, seconds."""

    @classmethod
    def of(cls, engines: Sequence[RunningEngine], now: float) -> AtRisk:
        """The sum over engines. The lag has grown since the status files were written."""
        statuses = [engine.status for engine in engines]
        lag = max((engine.lag_at(now) for engine in engines), default=0.0)
        pending = sum(status.pending_checkpoints for status in statuses)
        return cls(pending, sum(status.bytes_at_risk for status in statuses), lag)

    @property
    def text(self) -> str:
        """For people; empty: nothing is at risk."""
        if not (self.checkpoints or self.bytes or self.lag):
            return ""
        if not self.checkpoints:
            return f"reports of the last {duration_text(self.lag)} are not in the store yet"
        noun = "checkpoint" if self.checkpoints == 1 else "checkpoints"
        return f"{self.checkpoints:,} {noun} ({size_text(self.bytes)}) not in the store for {duration_text(self.lag)}"


def verdict_of(
    experiment: Experiment | None, engines: Sequence[RunningEngine], reading: Reading, now: float
) -> Verdict:
    """The verdict; see the rules above."""
    alive = [engine for engine in engines if engine.alive]
    at_risk = AtRisk.of(alive, now).text
    if (unread := _unread(reading, now)) and not alive:
        return Verdict("unknown", unread)
    if unread:
        return Verdict("danger" if at_risk else "unknown", "; ".join(filter(None, (unread, at_risk))))
    if any(not engine.status.store_healthy for engine in alive):
        return Verdict("danger", f"The store is unavailable to the running engine; {at_risk or 'nothing waits for it'}")
    read = experiment if reading.read_at else None
    lost = _lost(read, engines, now) if read is not None else ""
    if lost:
        return Verdict("danger", f"Lost: {lost}")
    if at_risk:
        return Verdict("risk", f"At risk: {at_risk}")
    if read is None:
        return Verdict("unknown", "Reading the records")
    unreadable = sum(trial.shown_status == "unreadable" for trial in read.trials)
    if unreadable:
        return Verdict("risk", f"The records of {_trials(unreadable)} cannot be read")
    return _of_engines(read, alive) if alive else _of_records(read, now)


def holders(experiment: Experiment | None, engines: Sequence[RunningEngine]) -> list[RunningEngine]:
    """The engines that hold work: those that run, and the killed ones whose work nobody continues."""
    return [engine for engine in engines if engine.alive or _is_abandoned(engine, experiment, engines)]


def _is_abandoned(engine: RunningEngine, experiment: Experiment | None, engines: Sequence[RunningEngine]) -> bool:
    """Whether an engine of this machine was killed and held what no other one has continued: the driver of a run
    without a later heartbeat; or a worker with a trial that no engine here runs and whose record was not written since.
    """
    if engine.alive or engine.status.is_safe or experiment is None:
        return False
    if engine.role == "driver":
        return experiment.lost or _was_killed(experiment, [engine])
    updated = {trial.name: trial.updated for trial in experiment.trials}
    here = {name for other in engines if other.alive for name in other.status.trials}
    behind = [name for name, trial in engine.status.trials.items() if trial.durability_lag]
    return not behind or any(name not in here and updated.get(name, 0.0) <= engine.written for name in behind)


def _lost(experiment: Experiment, engines: Sequence[RunningEngine], now: float) -> str:
    """A sentence on the processes that ended without leaving their engines, here or on other machines; empty: none."""
    ended = [engine for engine in engines if not engine.alive]
    held = AtRisk.of([engine for engine in ended if _is_abandoned(engine, experiment, engines)], now).text
    left = f"; it held {held}" if held else ""
    if experiment.lost or _was_killed(experiment, ended):
        since = f"; last heartbeat {duration_text(now - experiment.heartbeat)} ago" if experiment.heartbeat else ""
        return f"the driver has ended without leaving its engine{left}{since}. Resume it"
    if held:
        return f"a process of this machine has ended without leaving its engine{left}. Resume it"
    lost = sum(trial.shown_status == "lost" for trial in experiment.trials)
    return f"the process of {_trials(lost)} has ended. Resume them" if lost else ""


def _of_engines(experiment: Experiment, alive: Sequence[RunningEngine]) -> Verdict:
    """The engines of this machine have stored everything. Trials that run on other machines are not known here."""
    here = {name for engine in alive for name in engine.status.trials}
    running = [trial.name for trial in experiment.trials if trial.shown_status == "running"]
    complete = all(len(engine.status.trials) == engine.trials for engine in alive)
    others = len(running) - sum(engine.trials for engine in alive)
    elsewhere = sum(name not in here for name in running) if complete else others
    if elsewhere > 0:
        text = f"Safe on this machine. What {_trials(elsewhere)} on other machines have not sent is not visible here"
        return Verdict("unknown", text)
    return Verdict("safe", "Safe: everything that was reported is in the store")


def _unread(reading: Reading, now: float) -> str:
    """The reason for which the shown state may be old; empty: it is not."""
    shown = f"; this is its state {duration_text(now - reading.read_at)} ago" if reading.read_at else ""
    if reading.error is not None:
        return f"The store cannot be read: {reading.error}{shown}"
    if reading.progress is not None and now - reading.progress > NO_RESPONSE_AFTER:
        return f"The store has not responded for {duration_text(now - reading.progress)}{shown}"
    return ""


def _of_records(experiment: Experiment, now: float) -> Verdict:
    """Without a running engine on this machine."""
    if experiment.status == "running":
        since = f": last heartbeat {duration_text(now - experiment.heartbeat)} ago" if experiment.heartbeat else ""
        return Verdict("unknown", f"Running on another machine{since}. What it has not sent is not visible here")
    if experiment.status == "interrupted":
        unfinished = sum(trial.shown_status == "unfinished" for trial in experiment.trials)
        return Verdict("risk", f"Interrupted: {_trials(unfinished)} unfinished. Resume it")
    if experiment.status == "unknown":
        return Verdict("unknown", "The driver's record is missing: only the trials' own records are known")
    return Verdict("safe", f"Ended ({experiment.status}): nothing runs, nothing waits")


def _was_killed(experiment: Experiment, ended: Sequence[RunningEngine]) -> bool:
    """Whether the driver was an engine of this machine that was killed since the records were read. A later heartbeat
    is that of another driver."""
    drivers = [engine for engine in ended if engine.role == "driver"]
    return experiment.status == "running" and any(experiment.heartbeat <= engine.written for engine in drivers)


def _trials(number: int) -> str:
    return f"{number:,} {'trial' if number == 1 else 'trials'}"
