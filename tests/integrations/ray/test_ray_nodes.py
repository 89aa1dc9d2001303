"""Three nodes: one agent each serves all their workers, and whoever is killed loses nothing."""

from __future__ import annotations

import pytest

from asyncsync import Experiment, verify

pytestmark = [pytest.mark.server, pytest.mark.slow]

MOST_KIB = 30 << 10
MOST_CPU = 0.4
KILLED_AT = [0.05, 0.3]


@pytest.fixture(scope="module")
def ended(make_ray_bench, tmp_path_factory):
    """The bench after ``programs/nodes.py`` has run, and what it saw."""
    bench = make_ray_bench("nodes", tmp_path_factory.mktemp("nodes"))
    return bench, bench.run("nodes", delays=KILLED_AT)


@pytest.fixture
def bench(ended):
    return ended[0]


@pytest.fixture
def seen(ended):
    return ended[1]


def test_every_node_has_one_agent(seen):
    used = {item["node"]: item["agents"] for item in seen["spread"]["metrics"]}
    assert len(used) == 3
    assert all(item["agents"] == used[item["node"]] for item in seen["spread"]["metrics"])
    assert len({name for names in used.values() for name in names}) == 3 == len(seen["agents"])
    assert {role for role, _, _ in seen["agents"]} == {f"agent of node {node[:8]}" for node in used}
    assert sorted(seen["on_this_machine"]) == sorted(role for role, _, _ in seen["agents"])
    assert sum(durable for _, _, durable in seen["agents"]) == 2 * len(seen["spread"]["metrics"])


def test_a_worker_opens_no_store(seen):
    for item in seen["spread"]["metrics"]:
        assert item["modules"] == []
        assert item["cost"]["kib"] < MOST_KIB and item["cost"]["cpu"] < MOST_CPU


def test_a_worker_whose_agent_is_killed_does_it_itself(seen):
    assert seen["killed"]["errors"] == 0
    for item, (name, files) in zip(seen["killed"]["metrics"], seen["killed"]["newest"], strict=True):
        assert (name, files["weights.bin"]) == ("checkpoint_000003", 1000)
        assert item["later"] != item["first"] and len(item["later"]) == 1


def test_an_upload_in_the_background_outlives_its_worker(seen):
    assert seen["background"] == {"newest": "step_1_False", "outlived": True, "committed": True}


def test_a_drained_node_finishes_its_uploads(seen):
    assert (seen["drained"]["errors"], seen["drained"]["heard"]) == (0, True)
    assert seen["drained"]["newest"] == [["checkpoint_000002", {"state.json": '{"step": 2}', "weights.bin": 40 << 20}]]


def test_a_lost_node_loses_no_checkpoint(seen):
    assert seen["lost"]["errors"] == 0
    assert seen["lost"]["newest"] == [["checkpoint_000002", {"state.json": '{"step": 2}', "weights.bin": 40 << 20}]]
    assert seen["lost"]["metrics"][0]["start"] in (1, 2)


async def test_everything_that_was_stored_is_whole(bench):
    for name in ("spread", "killed", "run", "drained", "lost"):
        uri = f"{bench.uri}/{name}"
        report = await verify(uri, deep=True, storage_options=bench.options)
        assert (report.ok, report.files > 0) == (True, True), name
        experiment = await Experiment.open(uri, storage_options=bench.options)
        assert all(trial.checkpoints for trial in experiment.trials)
    assert bench.open_uploads() == []


def test_no_secret_is_stored(bench):
    secret = bench.server.secret_key.encode()
    stored = bench.contents([key for key in bench.keys() if key.endswith((".json", ".pkl"))])
    assert any(key.endswith("tuner.pkl") for key in stored)
    assert not [key for key, data in stored.items() if secret in data]
    logs = [path for path in bench.room.rglob("*.log") if path.is_file()]
    assert logs and not [path for path in logs if secret in path.read_bytes()]


async def test_a_run_that_grows_and_shrinks_keeps_whole_checkpoints(ray_bench):
    seen = ray_bench.run("elastic")
    assert (seen["ranks"], set(seen["newest"])) == (1, {"state.json", "rank_0"})
    kinds = [files for _, files in seen["restored"]]
    assert ["rank_0", "state.json"] in kinds and ["rank_0", "rank_1", "state.json"] in kinds
    report = await verify(f"{ray_bench.uri}/run", deep=True, storage_options=ray_bench.options)
    assert report.ok and report.trees > 2
    assert ray_bench.open_uploads() == []
