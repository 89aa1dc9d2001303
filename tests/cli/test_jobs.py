"""The jobs of a new user on SeaweedFS: each is one command, and its name and options are in the help."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import S3Server

from asyncsync import CheckpointConfig, RunConfig, SyncEngine, running_engines
from asyncsync.stores import open_store

from .conftest import Invoke, imported, start

Answer = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.server


@pytest.fixture
def sweep(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A stored experiment of three trials; the store is known from the environment."""
    bucket = f"jobs-{abs(hash(tmp_path)) % 10**8}"
    seaweedfs.create_bucket(bucket)
    for name, value in (
        ("AWS_ACCESS_KEY_ID", seaweedfs.access_key),
        ("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key),
        ("AWS_REGION", "us-east-1"),
        ("ASYNCSYNC_ENDPOINT_URL", seaweedfs.endpoint),
    ):
        monkeypatch.setenv(name, value)

    async def fill() -> None:
        run = RunConfig(
            name="sweep",
            storage_path=f"s3://{bucket}/experiments",
            checkpoint_config=CheckpointConfig(num_to_keep=3),
            storage_options=seaweedfs.storage_options,
        )
        checkpoint = tmp_path / "checkpoint"
        checkpoint.mkdir()
        async with SyncEngine(run, local_dir=tmp_path / "local") as engine:
            for number, loss in enumerate((0.5, 0.2, 0.9)):
                trial = engine.trial(f"trial_{number:05d}", params={"lr": 10.0**-number})
                (checkpoint / "model.pt").write_bytes(bytes([number]) * 300_000)
                await trial.report({"loss": loss}, checkpoint)
                await trial.finish("failed" if number == 2 else "finished", error="boom" if number == 2 else None)

    asyncio.run(fill())
    yield f"s3://{bucket}"


def test_jobs_of_a_new_user(invoke: Invoke, answer: Answer, sweep: str, tmp_path: Path) -> None:
    experiment = f"{sweep}/experiments/sweep"
    first = f"{experiment}/trial_00001"
    jobs: dict[str, tuple[tuple[object, ...], str]] = {
        "check the store": (("doctor", sweep), "conditional writes"),
        "which experiments are there": (("ls", f"{sweep}/experiments"), "sweep\tfinished"),
        "which trials": (("ls", experiment), "trial_00002\tfailed"),
        "why did one fail": (("ls", experiment, "--where", "status=failed"), "boom"),
        "the three best trials": (
            ("ls", experiment, "--sort", "loss", "--order", "min", "--limit", "1"),
            "trial_00001",
        ),
        "the checkpoints of one": (("ls", first), "checkpoint_000000"),
        "what is below any prefix": (("ls", sweep), "experiments/"),
        "the tree": (("tree", experiment, "--depth", "2"), "checkpoint_000000/ (1 file, 293.0 KiB)"),
        "what takes the bytes": (("du", experiment), "trial_00000/"),
        "one file": (("cat", f"{first}/result.json"), '"loss"'),
        "the learning curve": (("history", first), "1 report of trial_00001"),
        "what differs": (("compare", first, f"{experiment}/trial_00000"), "params.lr"),
        "the best": (("best", experiment, "loss", "--order", "min", "--pull", tmp_path / "best"), "trial_00001"),
        "fetch a checkpoint": (("pull", f"{first}/checkpoint_000000", tmp_path / "one"), "fetched 1 file"),
        "is it complete": (("verify", experiment, "--deep"), "everything is there"),
        "copy within the bucket": (("cp", experiment, f"{sweep}/second"), "copied inside the store"),
        "copy to a directory": (("cp", experiment, tmp_path / "copy"), "copied "),
        "promote": (("promote", f"{first}/checkpoint_000000", f"{sweep}/models/v1"), "copied 1 file (293.0 KiB)"),
        "keep one for good": (("pin", f"{first}/checkpoint_000000"), "is kept; marks: pinned"),
        "leave it to retention again": (("unpin", f"{first}/checkpoint_000000"), "is left to retention"),
        "name one": (("tag", f"{first}/checkpoint_000000", "production"), "marks: production"),
        "find it by its name": (
            ("ls", experiment, "--checkpoints", "--where", "tags~production"),
            "trial_00001\tcheckpoint_000000",
        ),
        "one file of a checkpoint": (
            ("pull", f"{first}/checkpoint_000000/model.pt", tmp_path / "file"),
            "fetched 1 file",
        ),
        "what would a pull change": (
            ("pull", f"{first}/checkpoint_000000", tmp_path / "new", "--dry-run"),
            "1 file (293.0 KiB) would be fetched",
        ),
        "send a directory": (("push", tmp_path / "best", f"{sweep}/pushed"), "sent 1 file"),
        "did the store lose anything": (("push", tmp_path / "best", f"{sweep}/pushed", "--check-store"), "1 unchanged"),
        "what would be removed": (("rm", f"{sweep}/second", "--dry-run"), "would remove the experiment"),
        "remove a trial": (("rm", f"{sweep}/second/trial_00002", "--yes"), "removed the trial"),
        "remove an experiment": (("rm", f"{sweep}/second", "--yes"), "removed the experiment"),
        "what is left of killed runs": (("prune", experiment), "would remove 0"),
        "is anything running": (("status", experiment), "sweep: finished"),
        "my settings": (("config", "show"), "ASYNCSYNC_ENDPOINT_URL="),
    }
    for job, (arguments, expected) in jobs.items():
        result = invoke(*arguments)
        assert (result.exit_code, expected in result.stdout) == (0, True), (job, result.output)
    assert len(jobs) >= 25
    assert answer("verify", tmp_path / "copy", "--deep")["ok"]
    assert (tmp_path / "best/model.pt").read_bytes() == b"\x01" * 300_000


def test_a_mistake_is_answered_with_what_was_meant(invoke: Invoke, sweep: str, tmp_path: Path) -> None:
    experiment = f"{sweep}/experiments/sweep"
    for arguments, expected in (
        (("best", experiment, "los"), "did you mean 'loss'?"),
        (("ls", experiment, "--sort", "lr"), "did you mean 'params.lr'?"),
        (("pin", f"{experiment}/trial_00001"), f"ls {experiment}/trial_00001 lists those"),
        (("pull", f"{experiment}/trial_9", tmp_path / "x"), f"asyncsync ls {experiment} shows what is there"),
        (("ls", f"{sweep}-nowhere/x"), "there is no bucket"),
        (("restore", experiment, tmp_path / "x"), "did you mean 'pull'?"),
    ):
        result = invoke(*arguments)
        assert (result.exit_code in (1, 2), expected in result.stderr) == (True, True), (arguments, result.stderr)


@pytest.mark.parametrize("arguments", [("ls",), ("status",), ("best", "loss"), ("ls", "--checkpoints")])
def test_with_keys_given_no_sdk_is_imported(sweep: str, arguments: tuple[str, ...]) -> None:
    """It takes three times as long as the rest of the command."""
    verb, *more = arguments
    url = f"{sweep}/experiments/sweep"
    modules = imported(verb, url, *more)
    assert "asyncsync.stores.s3.listing" in modules
    assert not {"aiobotocore", "botocore"} & modules


def test_a_wrong_secret_is_named_in_plain_words(invoke: Invoke, sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "n0t-the-secret")
    result = invoke("doctor", sweep)
    assert result.exit_code == 1
    assert "FAIL\twrite" in result.stdout
    assert "check the key and its secret, and the permission to write" in result.stdout
    assert "n0t-the-secret" not in result.output


def test_a_killed_copy_continues_where_it_stopped(
    sweep: str, answer: Answer, tmp_path: Path, seaweedfs: S3Server
) -> None:
    """A copy that is killed at any moment leaves only complete files; the same command completes it."""
    target = f"{sweep}/killed"
    process = start("cp", f"{sweep}/experiments/sweep", target, "--bandwidth-limit", "200KB")
    try:
        process.wait(timeout=2.5)
    except Exception:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    assert answer("cp", f"{sweep}/experiments/sweep", target)["ok"]
    assert answer("verify", target, "--deep")["ok"]

    async def listed() -> list[str]:
        async with open_store(target, options=seaweedfs.storage_options) as store:
            return [item.key for item in (await store.list("")).objects]

    assert ".asyncsync/experiment.json" in asyncio.run(listed())
    assert running_engines() == []
