"""The commands from end to end, on a directory and on the store in memory."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import S3Server

from asyncsync import CheckpointConfig, RunConfig, SyncConfig, SyncEngine
from asyncsync.errors import AccessDeniedError
from asyncsync.stores import open_store
from asyncsync.testing import inject_faults

from .conftest import Invoke

Answer = Callable[..., dict[str, Any]]
COMMANDS = ["push", "pull", "watch", "ls", "verify", "prune", "demo"]


@pytest.fixture(params=["directory", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "directory" else "memory://bucket/a"


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# help and usage


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_why_how_and_its_exit_codes(invoke: Invoke, name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    for part in ("Why:", "Examples:", f"asyncsync {name}", "Exit codes:", "--json", "--endpoint-url"):
        assert part in result.stdout


def test_the_group_lists_its_commands_and_exit_codes(invoke: Invoke) -> None:
    text = invoke("--help").stdout
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert "130  interrupted" in text
    assert "demo-read" not in text


def test_the_version_is_reported(invoke: Invoke) -> None:
    assert invoke("--version").stdout.startswith("asyncsync ")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--part-size", "ten"),
        ("--part-size", "1KiB"),
        ("--timeout", "0"),
        ("-o", "region"),
        ("--max-concurrency", "0"),
        ("--bandwidth-limit", "0"),
        ("--unknown",),
    ],
)
def test_wrong_usage_is_exit_code_2(invoke: Invoke, tree: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    url = str(tmp_path / "store") if arguments else "s4://bucket"
    assert invoke("push", tree, url, *arguments).exit_code == 2
    assert not (tmp_path / "store").exists()


def test_nothing_to_push_is_exit_code_2(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("push", tmp_path / "nothing", tmp_path / "store").exit_code == 2


# push and pull


def test_a_pushed_tree_comes_back(invoke: Invoke, tree: Path, url: str, tmp_path: Path) -> None:
    pushed = invoke("push", tree, url)
    assert pushed.exit_code == 0
    assert pushed.stdout.startswith(f"sent 3 files (97.7 KiB) to {url} in ")
    pulled = invoke("pull", url, tmp_path / "copy")
    assert pulled.exit_code == 0
    assert pulled.stdout.startswith(f"fetched 3 files (97.7 KiB) from {url} to ")
    assert contents(tmp_path / "copy") == contents(tree)


def test_the_document_of_push_and_pull(answer: Answer, tree: Path, url: str, tmp_path: Path) -> None:
    pushed = answer("push", tree, url)
    pulled = answer("pull", url, tmp_path / "copy")
    assert (pushed["ok"], pushed["uri"], pushed["files_sent"]) == (True, url, 3)
    assert (pulled["ok"], pulled["files_sent"], pulled["bytes_sent"]) == (True, 3, pushed["bytes_sent"])
    assert pushed["warnings"] == []


def test_an_exact_pull_leaves_nothing_else(
    invoke: Invoke, answer: Answer, tree: Path, url: str, tmp_path: Path
) -> None:
    answer("push", tree, url)
    copy = tmp_path / "copy"
    (copy / "old").mkdir(parents=True)
    (copy / "old" / "model.bin").write_bytes(b"x")
    assert answer("pull", url, copy)["files_deleted"] == 0
    result = invoke("pull", url, copy, "--exact")
    assert (result.exit_code, "1 deleted" in result.stdout) == (0, True)
    assert not (copy / "old").exists()
    assert answer("pull", url, tree.parent, "--exact", code=2)["error"]["type"] == "ConfigError"  # it holds the home


def test_a_dry_run_shows_and_sends_nothing(invoke: Invoke, answer: Answer, tree: Path, url: str) -> None:
    result = invoke("push", tree, url, "--dry-run", "--exclude", "*.tmp")
    assert [line.split("\t")[0:3:2] for line in result.stdout.splitlines()[1:3]] == [
        ["send", "a.txt"],
        ["send", "sub/b.bin"],
    ]
    assert answer("push", tree, url, "--dry-run")["send"][0]["path"] in contents(tree)
    assert invoke("ls", url).exit_code == 1


def test_a_dry_run_shows_the_effects_of_a_push(answer: Answer, invoke: Invoke, tree: Path, url: str) -> None:
    answer("push", tree, url)
    (tree / "sub/b.bin").rename(tree / "moved.bin")
    (tree / "new").write_bytes(b"12345")
    planned = answer("push", tree, url, "--dry-run", "--delete")
    actions = {item["path"]: (item["action"], item["bytes_sent"]) for item in planned["send"]}
    assert actions == {"moved.bin": ("copy", 0), "new": ("send", 5)}
    text = invoke("push", tree, url, "--dry-run", "--delete").stdout
    pushed = answer("push", tree, url, "--delete")
    same = ("bytes_total", "bytes_sent", "bytes_copied", "requests", "files_skipped", "warnings")
    assert {name: planned[name] for name in same} == {name: pushed[name] for name in same}
    assert f"in {pushed['requests']} requests; 2 files changed, 1 deleted, 2 unchanged" in text


def test_a_dry_run_checks_that_the_store_still_has_the_pushed_files(answer: Answer, tree: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    answer("push", tree, url)
    shutil.rmtree(url)
    planned = answer("push", tree, url, "--dry-run")
    assert (planned["bytes_sent"], planned["files_skipped"]) == (planned["bytes_total"], 0)


def test_a_dry_run_shows_the_deletions(answer: Answer, tree: Path, url: str) -> None:
    answer("push", tree, url)
    (tree / "a.txt").unlink()
    assert answer("push", tree, url, "--dry-run")["delete"] == []
    assert answer("push", tree, url, "--dry-run", "--delete")["delete"] == ["a.txt"]


def test_include_exclude_and_delete_choose_the_files(answer: Answer, tree: Path, url: str) -> None:
    answer("push", tree, url, "--exclude", "*.tmp", "--include", "*.txt", "--include", "*.tmp")
    assert [item["path"] for item in answer("ls", url)["files"]] == ["a.txt"]
    (tree / "a.txt").rename(tree / "c.txt")
    assert answer("push", tree, url, "--include", "*.txt", "--delete")["files_deleted"] == 1
    assert [item["path"] for item in answer("ls", url)["files"]] == ["c.txt"]


def test_quiet_prints_nothing(invoke: Invoke, tree: Path, url: str) -> None:
    assert invoke("push", tree, url, "--quiet").output == ""


def test_a_failure_is_one_line_and_exit_code_1(invoke: Invoke, url: str, tmp_path: Path) -> None:
    result = invoke("pull", url, tmp_path / "copy")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")


def test_with_debug_there_is_a_traceback(invoke: Invoke, url: str, tmp_path: Path) -> None:
    assert "Traceback" in invoke("pull", url, tmp_path / "copy", "--debug").stderr


def test_a_failure_is_a_document_too(answer: Answer, url: str, tmp_path: Path) -> None:
    document = answer("pull", url, tmp_path / "copy", code=1)
    assert document["ok"] is False
    assert document["error"]["exit_code"] == 1
    assert document["error"]["type"] == "CheckpointIncompleteError"


def test_a_timeout_is_exit_code_4(answer: Answer, tree: Path) -> None:
    inject_faults("bucket").hang(3)
    document = answer("push", tree, "memory://bucket/a", "--timeout", "0.05", code=4)
    assert document["error"]["type"] == "SyncTimeoutError"
    assert "missing: " in document["error"]["message"]


def test_a_pull_ends_in_time_too(answer: Answer, tree: Path, tmp_path: Path) -> None:
    answer("push", tree, "memory://bucket/a")
    inject_faults("bucket").hang(2)
    document = answer("pull", "memory://bucket/a", tmp_path / "copy", "--timeout", "0.05", code=4)
    assert document["error"]["type"] == "SyncTimeoutError"


def test_store_failures_name_the_files(answer: Answer, tree: Path) -> None:
    inject_faults("bucket").fail(error=AccessDeniedError("not allowed"), key="sub/b.bin", times=None)
    document = answer("push", tree, "memory://bucket/a", code=1)
    assert "sub/b.bin" in document["error"]["message"]


@pytest.mark.server
def test_on_s3_credentials_come_from_the_environment(
    answer: Answer, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seaweedfs: S3Server
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
    url = f"s3://{seaweedfs.create_bucket('command')}/a"
    endpoint = ("--endpoint-url", seaweedfs.endpoint, "--region", "us-east-1")
    assert answer("push", tree, url, *endpoint)["files_sent"] == 3
    assert answer("verify", url, "--deep", *endpoint)["files"] == 3
    answer("pull", url, tmp_path / "copy", *endpoint)
    assert contents(tmp_path / "copy") == contents(tree)


# verify and prune


def test_verify_finds_nothing_wrong_in_a_pushed_tree(answer: Answer, tree: Path, url: str) -> None:
    answer("push", tree, url)
    document = answer("verify", url, "--deep")
    assert (document["ok"], document["files"], document["deep"]) == (True, 3, True)


def test_damage_is_exit_code_3_and_named(invoke: Invoke, answer: Answer, tree: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    answer("push", tree, store)
    data = bytearray((store / "sub" / "b.bin").read_bytes())
    data[5] ^= 1
    (store / "sub" / "b.bin").write_bytes(data)
    (store / "a.txt").unlink()
    result = invoke("verify", store, "--deep")
    assert result.exit_code == 3
    assert "\ndamaged: sub/b.bin: " in result.stdout
    assert "\nreplaced after its manifest was written: sub/b.bin\n" in result.stdout
    assert "\nmissing: a.txt\n" in result.stdout
    document = answer("verify", store, "--deep", code=3)
    assert (document["ok"], list(document["damaged"]), document["missing"]) == (False, ["sub/b.bin"], ["a.txt"])


def test_repair_sends_lost_files_that_the_directory_still_has(
    invoke: Invoke, answer: Answer, tree: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    answer("push", tree, store)
    (store / "a.txt").unlink()
    (store / "sub" / "b.bin").unlink()
    (tree / "sub" / "b.bin").write_bytes(b"something else")
    result = invoke("verify", store, "--repair", tree)
    assert result.exit_code == 3
    assert "\nrepaired: a.txt\n" in result.stdout
    assert "\nnot repaired: sub/b.bin: " in result.stdout
    document = answer("verify", store, "--repair", tree, code=3)
    assert (document["missing"], document["repaired"], list(document["not_repaired"])) == (
        ["sub/b.bin"],
        [],
        ["sub/b.bin"],
    )


def test_prune_is_a_dry_run_by_default(answer: Answer, tmp_path: Path) -> None:
    asyncio.run(_experiment(str(tmp_path / "store")))
    garbage = tmp_path / "store" / "sweep" / "t0" / "checkpoint_000099"
    garbage.mkdir()
    (garbage / "weights").write_bytes(b"x" * 1000)
    sweep = tmp_path / "store" / "sweep"
    arguments = ("prune", sweep, "--older-than", "0")
    for options in ((), ("--yes", "--dry-run")):
        document = answer(*arguments, *options)
        assert (document["dry_run"], document["checkpoints"]) == (True, ["t0/checkpoint_000099/"])
        assert garbage.exists()
    assert answer(*arguments, "--yes")["bytes"] == 1000
    assert not garbage.exists()
    assert answer("verify", sweep, "--deep")["ok"]


# ls


async def _experiment(storage: str, name: str = "sweep") -> None:
    run = RunConfig(
        name=name,
        storage_path=storage,
        sync_config=SyncConfig(sync_artifacts=True),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
    )
    async with SyncEngine(run) as engine:
        for number in range(2):
            trial = engine.trial(f"t{number}", params={"rate": number})
            source = engine.local_dir / f"source{number}"
            source.mkdir(parents=True)
            (source / "weights").write_bytes(os.urandom(1000))
            for step in range(3):
                await trial.report({"loss": 1.0 / (1 + step), "eval": {"acc": 0.5}}, checkpoint=source)
            await trial.finish("failed" if number else "finished", error="no luck\nat all" if number else None)


@pytest.fixture
def storage(url: str) -> str:
    """A storage path with one experiment of two trials."""
    asyncio.run(_experiment(url))
    return url


def test_ls_of_a_storage_path_shows_its_experiments(invoke: Invoke, answer: Answer, storage: str) -> None:
    rows = [line.split("\t") for line in invoke("ls", storage).stdout.splitlines()]
    assert rows[0] == ["experiment", "status", "trials", "started", "updated"]
    assert rows[1][:3] == ["sweep", "finished", "1 failed, 1 finished"]
    document = answer("ls", storage)
    assert document["kind"] == "experiments"
    assert document["experiments"][0]["uri"] == f"{storage}/sweep"
    assert document["experiments"][0]["trials"] == {"failed": 1, "finished": 1}


async def _put(url: str, key: str, data: bytes) -> None:
    async with open_store(url) as store:
        await store.put(key, data)


def test_ls_shows_the_experiments_beside_one_that_cannot_be_read(invoke: Invoke, answer: Answer, storage: str) -> None:
    asyncio.run(_put(storage, "later/.asyncsync/experiment.json", b'{"format":2,"by":"asyncsync 9.0"}'))
    rows = [line.split("\t") for line in invoke("ls", storage).stdout.splitlines()]
    assert [row[:2] for row in rows[1:3]] == [["later", "unreadable"], ["sweep", "finished"]]
    assert rows[3][0].startswith("later unreadable: ")
    assert "/later/.asyncsync/experiment.json is of format 2, written by a newer asyncsync" in rows[3][0]
    assert [item["status"] for item in answer("ls", storage)["experiments"]] == ["unreadable", "finished"]


def test_prune_names_the_directories_that_it_leaves_alone(invoke: Invoke, answer: Answer, storage: str) -> None:
    asyncio.run(_put(storage, "sweep/t0/.asyncsync/trial.json", b"{"))
    asyncio.run(_put(storage, "sweep/t0/checkpoint_000009/weights", b"w"))
    arguments = ("prune", f"{storage}/sweep", "--older-than", "0")
    assert "kept, because it cannot be read: " in invoke(*arguments).stdout
    assert list(answer(*arguments)["unreadable"]) == ["t0/.asyncsync/trial.json"]


def test_ls_of_an_experiment_shows_its_trials(invoke: Invoke, answer: Answer, storage: str) -> None:
    result = invoke("ls", f"{storage}/sweep")
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert rows[1][:6] == ["t0", "finished", "3", "loss=0.3333 eval/acc=0.5", "2", "checkpoint_000002"]
    assert rows[-1] == ["t1 failed: no luck at all"]
    document = answer("ls", f"{storage}/sweep")
    assert (document["kind"], document["name"]) == ("experiment", "sweep")
    trial = document["trials"][1]
    assert (trial["status"], trial["error"], trial["params"]) == ("failed", "no luck\nat all", {"rate": 1})
    assert [item["name"] for item in trial["checkpoints"]] == ["checkpoint_000001", "checkpoint_000002"]


def test_ls_shows_the_checkpoints_of_all_trials(invoke: Invoke, storage: str) -> None:
    rows = [line.split("\t") for line in invoke("ls", f"{storage}/sweep", "--checkpoints").stdout.splitlines()]
    assert [row[:2] for row in rows[1:]] == [[f"t{t}", f"checkpoint_{n:06d}"] for t in (0, 1) for n in (1, 2)]
    assert rows[1][3:5] == ["1", "1000 B"]


def test_ls_of_a_trial_shows_its_checkpoints(invoke: Invoke, answer: Answer, storage: str) -> None:
    lines = invoke("ls", f"{storage}/sweep/t1").stdout.splitlines()
    assert lines[0].startswith("t1: failed, 3 reports, loss=0.3333")
    assert lines[1] == "error: no luck at all"
    document = answer("ls", f"{storage}/sweep/t1")
    assert document["kind"] == "trial"
    assert document["checkpoints"][0]["uri"] == f"{storage}/sweep/t1/checkpoint_000001"


def test_ls_of_a_checkpoint_shows_its_files(answer: Answer, storage: str) -> None:
    document = answer("ls", f"{storage}/sweep/t1/checkpoint_000002")
    assert document["kind"] == "files"
    assert [(item["path"], item["size"]) for item in document["files"]] == [("weights", 1000)]


def test_ls_shows_the_files_of_a_trial_if_asked(answer: Answer, storage: str) -> None:
    paths = [item["path"] for item in answer("ls", f"{storage}/sweep/t1", "--files")["files"]]
    assert "result.json" in paths


def test_ls_of_nothing_is_exit_code_1(invoke: Invoke, url: str) -> None:
    result = invoke("ls", url)
    assert result.exit_code == 1
    assert "holds no experiment" in result.stderr


def test_a_pulled_experiment_can_be_listed(answer: Answer, storage: str, tmp_path: Path) -> None:
    answer("pull", f"{storage}/sweep/t0", tmp_path / "t0")
    assert (tmp_path / "t0" / "checkpoint_000002" / "weights").stat().st_size == 1000
    assert len(json.dumps(answer("ls", f"{storage}/sweep"))) > 100
