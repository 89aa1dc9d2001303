"""Ray Tune and Ray Train store through asyncsync: Ray and asyncsync see the same experiment."""

from __future__ import annotations

import json

import pytest

from asyncsync import Experiment, verify

pytestmark = [pytest.mark.server, pytest.mark.slow]


async def test_tune_and_asyncsync_see_the_same_sweep(ray_bench):
    seen = ray_bench.run("sweep")
    assert (seen["errors"], seen["can_restore"]) == (0, True)
    experiment = await Experiment.open(f"{ray_bench.uri}/sweep", storage_options=ray_bench.options)
    assert (experiment.status, len(experiment.trials)) == ("finished", 2)
    for trial, item in zip(experiment.trials, sorted(seen["trials"], key=lambda item: item["path"]), strict=True):
        kept = [checkpoint.name for checkpoint in trial.checkpoints]
        assert kept == ["checkpoint_000002", "checkpoint_000003"]
        assert [path.rpartition("/")[2] for path in item["again"]] == kept
        assert item["checkpoint"].endswith(f"exps/sweep/{trial.name}/checkpoint_000003")
        assert set(item["files"]) == {"state.json", "only_3"}
        assert (trial.status, trial.metrics["loss"], item["metadata"]) == ("finished", item["loss"], {"best": True})
        assert f"sweep/{trial.name}/artifact.txt" in ray_bench.keys("sweep")
    assert experiment.best_checkpoint("loss", "min").metrics["loss"] == min(item["loss"] for item in seen["trials"])
    report = await verify(f"{ray_bench.uri}/sweep", deep=True, storage_options=ray_bench.options)
    assert report.ok and not any("checkpoint" in path for path in report.stray)
    assert ray_bench.open_uploads() == []


OF_A_RANK = {"rank_0.bin", "rank_1.bin", "state.json"}
FIRST_ATTEMPT = {"first_attempt_0.bin", "first_attempt_1.bin"}


@pytest.mark.parametrize("kill_at", [0.05])
async def test_a_killed_rank_leaves_nothing_in_a_checkpoint(ray_bench, kill_at):
    seen = ray_bench.run("run", kill_at=kill_at)
    assert (seen["step"], set(seen["files"])) == (3, OF_A_RANK)
    restored = [json.loads((ray_bench.room / f"restored_{rank}.json").read_text()) for rank in range(2)]
    start, files = restored[0]
    assert restored[1] == restored[0] and start in (1, 2, 3)
    assert set(files) == OF_A_RANK | (FIRST_ATTEMPT if start == 3 else set())
    experiment = await Experiment.open(f"{ray_bench.uri}/run", storage_options=ray_bench.options)
    assert [item.name for item in experiment.checkpoints] == ["step_3", "step_2"]
    assert sorted(path.rpartition("/")[2] for path in seen["best"]) == ["step_2", "step_3"]
    left = {key.rpartition("/")[2] for key in ray_bench.keys() if "first_attempt" in key or "/parts/" in key}
    assert left == (FIRST_ATTEMPT if start == 3 else set())
    assert (await verify(f"{ray_bench.uri}/run", deep=True, storage_options=ray_bench.options)).ok
    assert ray_bench.open_uploads() == []


async def test_upload_and_commit_serve_a_plain_storage_path(ray_bench):
    query = f"endpoint_override={ray_bench.server.endpoint.partition('://')[2]}&scheme=http&region=us-east-1"
    seen = ray_bench.run("run", plain=f"{ray_bench.uri}?{query}", kill_at=0.02)
    assert seen["step"] == 3
    assert {name for name in seen["files"] if not name.startswith(".asyncsync")} == OF_A_RANK
    for step in (2, 3):
        path = f"{ray_bench.uri}/run/step_{step}"
        report = await verify(path, deep=True, storage_options=ray_bench.options)
        assert (report.ok, report.stray) == (True, [])
    assert ray_bench.open_uploads() == []


async def test_schedulers_restore_what_was_stored(ray_bench):
    seen = ray_bench.run("schedulers")
    for kind in ("pbt", "hyperband"):
        assert seen[kind]["errors"] == 0
        assert len(seen[kind]["restores"]) >= 1
        assert all(start > 0 and equal for start, equal in seen[kind]["restores"])
        report = await verify(f"{ray_bench.uri}/{kind}", deep=True, storage_options=ray_bench.options)
        assert report.ok and not any("checkpoint" in path for path in report.stray)
    assert ray_bench.open_uploads() == []
