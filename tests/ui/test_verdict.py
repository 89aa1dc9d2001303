"""One line and one level: what the store and the status files say, never more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from statuses import running_engine

from asyncsync import Experiment, TrialStatus, TrialView
from asyncsync.ui.verdict import Reading, holders, verdict_of

from .conftest import NOW, an_engine

READ = Reading(read_at=NOW)


def experiment(status: str = "finished", *trials: TrialView, **more: Any) -> Experiment:
    return Experiment("e", "s3://b/e", status, list(trials), **more)


def trial(status: str = "finished", **more: Any) -> TrialView:
    return TrialView("t", "s3://b/e/t", status, updated=1.0, **more)


CASES = {
    "a running engine with everything stored": (experiment("running"), [an_engine()], READ, "safe", "Safe"),
    "pending checkpoints": (
        experiment("running"),
        [an_engine(lag=5, size=2048)],
        READ,
        "risk",
        "2 checkpoints (2.0 KiB)",
    ),
    "reports not synced": (experiment("running"), [an_engine(lag=5)], READ, "risk", "reports of the last 5.0 s"),
    "the engine's store is away": (
        experiment("running"),
        [an_engine(healthy=False, lag=5)],
        READ,
        "danger",
        "unavailable",
    ),
    "killed here": (
        experiment("running", lost=True),
        [an_engine(alive=False, lag=5, size=1)],
        READ,
        "danger",
        "it held 2",
    ),
    "killed since it was read": (
        experiment("running", heartbeat=NOW - 9),
        [an_engine(alive=False, lag=5, written=NOW - 8)],
        READ,
        "danger",
        "Lost",
    ),
    "killed here, resumed elsewhere": (
        experiment("running", heartbeat=NOW - 1),
        [an_engine(alive=False, lag=5, written=NOW - 8)],
        READ,
        "unknown",
        "another machine",
    ),
    "a worker killed beside the driver": (
        experiment("running", trial("running")),
        [an_engine(), replace(an_engine(alive=False, lag=5, size=1, written=NOW - 8), role="worker")],
        READ,
        "danger",
        "it held 2",
    ),
    "another machine's trial lost beside the driver": (
        experiment("running", trial("running", lost=True)),
        [an_engine()],
        READ,
        "danger",
        "process of 1 trial",
    ),
    "a damaged record beside the driver": (
        experiment("running", trial("unreadable")),
        [an_engine()],
        READ,
        "risk",
        "cannot be read",
    ),
    "a driver not read yet": (None, [an_engine()], Reading(progress=NOW), "unknown", "Reading"),
    "no heartbeat": (experiment("running", lost=True, heartbeat=400.0), [], READ, "danger", "heartbeat 10 min ago"),
    "a lost worker": (experiment("running", trial("running", lost=True)), [], READ, "danger", "process of 1 trial"),
    "running elsewhere": (experiment("running", heartbeat=990.0), [], READ, "unknown", "heartbeat 10 s ago"),
    "interrupted": (
        experiment("interrupted", trial("running", unfinished=True)),
        [],
        READ,
        "risk",
        "1 trial unfinished",
    ),
    "a damaged record": (experiment("finished", trial("unreadable")), [], READ, "risk", "cannot be read"),
    "ended": (experiment("finished", trial()), [], READ, "safe", "nothing waits"),
    "no driver": (experiment("unknown", trial()), [], READ, "unknown", "driver's record is missing"),
    "not read yet": (None, [], Reading(), "unknown", "Reading"),
    "partly read": (experiment("finished"), [], Reading(progress=NOW), "unknown", "Reading"),
    "silent": (None, [], Reading(progress=NOW - 15), "unknown", "not responded for 15 s"),
    "dead store": (
        experiment("finished"),
        [],
        Reading(NOW - 60, None, "no route"),
        "unknown",
        "no route; this is its state",
    ),
    "dead store, work held": (None, [an_engine(lag=3)], Reading(error="no route"), "danger", "no route; reports"),
}


@pytest.mark.parametrize(("case", "engines", "reading", "level", "text"), CASES.values(), ids=CASES)
def test_the_verdict(case: Any, engines: Any, reading: Reading, level: str, text: str) -> None:
    found = verdict_of(case, engines, reading, NOW)
    assert (found.level, text in found.text) == (level, True), found


def test_trials_on_other_machines_are_not_called_safe() -> None:
    """An engine lists at most 200 of its trials: then their number decides."""
    driver = an_engine()  # it lists none of its trials
    names = [TrialView(f"t{number}", "", "running", updated=1.0) for number in range(3)]
    assert verdict_of(experiment("running", *names[:1]), [driver], READ, NOW).level == "safe"
    found = verdict_of(experiment("running", *names), [driver], READ, NOW)
    assert (found.level, "2 trials on other machines" in found.text) == ("unknown", True)
    lists = replace(driver, status=replace(driver.status, trials={"t0": None}))
    found = verdict_of(experiment("running", *names[:2]), [lists], READ, NOW)
    assert (found.level, "1 trial on other machines" in found.text) == ("unknown", True)


def test_a_killed_worker_whose_trials_go_on_is_not_missed() -> None:
    """Its file stays for days. Its trials are continued by an engine of this machine, or were written since."""
    behind = TrialStatus("t", "running", 3, 900.0, 5.0, 1, 1, {})
    killed = running_engine(alive=False, written=NOW - 8, lag=5, size=1, trials=(behind,), pending_checkpoints=1)
    killed = replace(killed, role="worker")
    for updated, others, level in (
        (NOW - 9, [an_engine()], "danger"),
        (NOW - 7, [an_engine()], "safe"),
        (NOW - 9, [running_engine(trials=(replace(behind, durability_lag=0.0),))], "safe"),
    ):
        stored = experiment("running", TrialView("t", "", "running", updated=updated))
        assert verdict_of(stored, [killed, *others], READ, NOW).level == level
        assert (killed in holders(stored, [killed, *others])) == (level == "danger")


def test_nothing_is_safe_that_was_not_read() -> None:
    """Whatever is known, an unread or unavailable store is never called safe."""
    for read in (Reading(), Reading(progress=NOW - 100), Reading(NOW - 5, None, "away")):
        for status in ("finished", "running", "interrupted", "unknown"):
            for engines in ([], [an_engine()], [an_engine(alive=False)]):
                assert verdict_of(experiment(status), engines, read, NOW).level != "safe"


def test_the_lag_grows_while_the_file_is_not_written() -> None:
    text = verdict_of(experiment("running"), [an_engine(lag=5, written=NOW - 40)], READ, NOW).text
    assert "last 45 s" in text


def test_the_worst_engine_decides() -> None:
    both = [an_engine(), replace(an_engine(lag=9), pid=8)]
    assert verdict_of(experiment("running"), both, READ, NOW).level == "risk"
