"""Processes are killed at any moment, the store goes away: no incomplete checkpoint is ever seen."""

from __future__ import annotations

import json

import pytest

from asyncsync import Experiment, verify

pytestmark = [pytest.mark.server, pytest.mark.slow]

TUNE, TRAIN = 7, 3
"""Kills in CI; with ``--all`` KILLS of each."""
KILLS = 20
SPREAD = 0.0015
"""Seconds: kill n comes n * n times so much after the start of an upload, which takes about half a second."""
REPLICAS_KILLED_AT = [0.02, 0.1, 0.2]
AWAY = 15
AFTER = 10
"""Most seconds from the return of the store until the checkpoint is durable; starting SeaweedFS is not counted."""


def delays(request, number):
    """Seconds after the start of an upload at which its process is killed."""
    steps = range(KILLS) if request.config.getoption("--all", False) else range(0, KILLS, KILLS // number)
    return [round(SPREAD * step * step, 3) for step in steps]


async def test_trials_killed_in_mid_upload_restart_whole(ray_bench, request):
    kills = delays(request, TUNE)
    seen = ray_bench.run("killed_sweep", delays=kills)
    assert (seen["errors"], len(seen["trials"])) == (0, len(kills))
    for item in seen["trials"]:
        assert item["newest"].endswith("checkpoint_000003")
        assert item["files"] == {"state.json": '{"step": 3}', "weights.bin": 40 << 20}
    for number in range(len(kills)):
        start, files = json.loads((ray_bench.room / f"trial_{number}.restored").read_text())
        whole = {"state.json": '{"step": 1}'} if start == 2 else {"state.json", "weights.bin", "first_attempt"}
        assert start in (2, 3) and (files if start == 2 else set(files)) == whole
    experiment = await Experiment.open(f"{ray_bench.uri}/sweep", storage_options=ray_bench.options)
    assert all([item.number for item in trial.checkpoints] == [0, 1, 2, 3] for trial in experiment.trials)
    report = await verify(f"{ray_bench.uri}/sweep", deep=True, storage_options=ray_bench.options)
    assert report.ok and not any("checkpoint" in path for path in report.stray)
    assert ray_bench.open_uploads() == []


async def test_killed_ranks_never_mix_their_attempts(ray_bench, request):
    kills = delays(request, TRAIN)
    seen = ray_bench.run("killed_ranks", delays=kills)
    steps = range(len(kills))
    assert (seen["step"], set(seen["checkpoints"])) == (steps[-1], {f"step_{step}" for step in steps})
    # Two ranks for each kill, but for those that came before Ray had registered the first checkpoint.
    assert len(seen["restored"]) >= len(steps)
    for files in [*seen["checkpoints"].values(), *(files for _, files in seen["restored"])]:
        ranks = dict(reversed(name.split("-")) for name in files if name != "state.json")
        assert len(files) == 3 and set(ranks) == {"rank_0", "rank_1"} and len(set(ranks.values())) == 1
    report = await verify(f"{ray_bench.uri}/run", deep=True, storage_options=ray_bench.options)
    assert report.ok and not any("step_" in path for path in report.stray)
    assert ray_bench.open_uploads() == []


async def test_a_replaced_replica_leaves_nothing_in_a_checkpoint(ray_bench):
    """Ray replaces the killed rank alone, and the attempt continues: only the process identifies the writer."""
    seen = ray_bench.run("replicas", delays=REPLICAS_KILLED_AT)
    if not seen["supported"]:
        pytest.skip("this version of Ray has no replica groups")
    assert (seen["leaders"], seen["killed"]) == (1, len(REPLICAS_KILLED_AT))
    assert set(seen["checkpoints"]) == {f"step_{step}" for step in range(len(REPLICAS_KILLED_AT) + 1)}
    for files in seen["checkpoints"].values():
        assert len(files) == 2 and files[1] == "state.json" and files[0].endswith("-rank_1")
    report = await verify(f"{ray_bench.uri}/run", deep=True, storage_options=ray_bench.options)
    assert report.ok and not any("step_" in path for path in report.stray)
    assert ray_bench.open_uploads() == []


@pytest.mark.parametrize("case", ["hanging", "refusing"])
def test_a_store_that_is_away_fails_no_report(ray_bench, case):
    seen = ray_bench.run("away", case, seconds=AWAY)
    assert seen["away"] > AWAY - 2
    assert seen["after"] < AFTER


BEFORE_REGISTRATION, AFTER_REGISTRATION = {"s_0"}, {"s_0", "s_1"}
KILLED_BEFORE = {
    "commit": BEFORE_REGISTRATION,
    "write": BEFORE_REGISTRATION,
    "save_run": AFTER_REGISTRATION,
    "": AFTER_REGISTRATION,
}
"""Step of the registration of s_1 that the controller does not reach -> what is registered then."""


async def test_a_killed_controller_registers_nothing_half(ray_bench, request):
    before = list(KILLED_BEFORE) if request.config.getoption("--all", False) else ["write"]
    seen = ray_bench.run("killed_controller", before=before)
    for (name, run), step in zip(seen["runs"].items(), before, strict=True):
        assert run["after_kill"] == dict.fromkeys(KILLED_BEFORE[step], "Directory")
        assert (run["step"], run["registered"]) == (2, dict.fromkeys(["s_0", "s_1", "s_2"], "Directory"))
        experiment = await Experiment.open(f"{ray_bench.uri}/{name}", storage_options=ray_bench.options)
        assert [item.name for item in experiment.checkpoints] == ["s_2", "s_1", "s_0"]
        assert (await verify(f"{ray_bench.uri}/{name}", deep=True, storage_options=ray_bench.options)).ok
    assert ray_bench.open_uploads() == []
