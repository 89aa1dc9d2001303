"""Browse, choose, copy and remove: each job of a user is one command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored import put_experiment, put_tree, put_trial

from asyncsync import TrialView
from asyncsync.cli.stored.filters import Choice
from asyncsync.errors import ConfigError
from asyncsync.planning.document import EXPERIMENT_RECORD
from asyncsync.sync.records.model import ExperimentRecord
from asyncsync.testing import MemoryStore, reset_memory, run_virtual
from cli.conftest import Invoke

Answer = Callable[..., dict[str, Any]]
SWEEP = "memory://b/sweep"
ROWS = b'{"loss": 3.0, "step": 0}\n{"loss": NaN, "step": 1}\n{"loss": 1.0, "step": 2}\n'


@pytest.fixture(autouse=True)
def sweep() -> MemoryStore:
    reset_memory()
    store = MemoryStore("b", "sweep")

    async def fill() -> None:
        await put_experiment(store, "sweep")
        record = ExperimentRecord("sweep", {"a": "finished", "b": "failed", "c": "finished"}, status="finished")
        await store.put(EXPERIMENT_RECORD, record.to_bytes())
        for name, status, loss in (("a", "finished", 0.3), ("b", "failed", 0.1), ("c", "finished", float("nan"))):
            checkpoint = {"checkpoint_000000": ({"w": name.encode() * 100}, {"loss": loss})}
            params = {"lr": len(name) / 10, "net": {"depth": ord(name)}}
            await put_trial(store, name, checkpoint, status=status, metrics={"loss": loss}, params=params)
        await store.put("a/result.json", ROWS)
        await MemoryStore("b", "plain").put("x/one.txt", b"1234")
        await MemoryStore("b", "plain").put("two.txt", b"12")

    run_virtual(fill())
    return store


def names(document: dict[str, Any]) -> list[str]:
    return [trial["name"] for trial in document["trials"]]


# browse


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ["a", "b", "c"]),
        (("--sort", "loss"), ["a", "b", "c"]),
        (("--sort", "loss", "--order", "min"), ["b", "a", "c"]),
        (("--sort", "params.net/depth", "--order", "max"), ["c", "b", "a"]),
        (("--sort", "name", "--order", "max", "--limit", "2"), ["c", "b"]),
        (("--where", "status=failed"), ["b"]),
        (("--where", "loss<0.2"), ["b"]),
        (("--where", "loss >= 0.3"), ["a"]),
        (("--where", "status!=failed", "--where", "name~a"), ["a"]),
        (("--where", "nothing=1"), []),
        (("--where", "nothing!=1"), ["a", "b", "c"]),
    ],
)
def test_trials_are_sorted_and_filtered(answer: Answer, arguments: tuple[str, ...], expected: list[str]) -> None:
    assert names(answer("ls", SWEEP, *arguments)) == expected


@pytest.mark.parametrize(
    "arguments", [("--where", "status"), ("--sort", "accuracy"), ("--limit", "0"), ("--where", "=1")]
)
def test_an_invalid_choice_is_exit_code_2(invoke: Invoke, arguments: tuple[str, ...]) -> None:
    assert invoke("ls", SWEEP, *arguments).exit_code == 2


def test_an_unknown_sort_names_what_there_is(invoke: Invoke) -> None:
    assert "there are loss, params.lr, params.net" in invoke("ls", SWEEP, "--sort", "accuracy").stderr


def test_a_condition_on_a_name_that_no_row_has_is_noted(invoke: Invoke) -> None:
    """It may be reported later, so it is no error."""
    result = invoke("ls", SWEEP, "--where", "los<1")
    assert (result.exit_code, result.stdout) == (0, invoke("ls", SWEEP, "--where", "loss<0").stdout)
    assert "--where los: no row has it, did you mean 'loss'?" in result.stderr
    assert invoke("ls", SWEEP, "--where", "loss<0").stderr == ""


def test_checkpoints_are_sorted_across_trials(answer: Answer) -> None:
    document = answer("ls", SWEEP, "--checkpoints", "--where", "loss<0.2")
    assert [(trial["name"], len(trial["checkpoints"])) for trial in document["trials"]] == [
        ("a", 0),
        ("b", 1),
        ("c", 0),
    ]


def test_values_of_different_types_can_be_sorted() -> None:
    trials = [TrialView(name, "u", "s", metrics={"m": value}) for name, value in (("a", 2), ("b", "x"), ("c", None))]
    assert [trial.name for trial in Choice(sort="m", order="min").of(trials)] == ["a", "b", "c"]
    with pytest.raises(ConfigError):
        Choice(where=("",))


def test_any_prefix_can_be_listed(answer: Answer, invoke: Invoke) -> None:
    document = answer("ls", "memory://b/plain")
    assert [item["path"] for item in document["objects"]] == ["two.txt", "x/"]
    assert invoke("ls", "memory://b/nothing").exit_code == 1


def test_a_tree_shows_sizes_of_directories(invoke: Invoke) -> None:
    lines = invoke("tree", "memory://b/plain").stdout.splitlines()
    assert lines == [
        "memory://b/plain",
        "|-- x/ (1 file, 4 B)",
        "|   `-- one.txt (4 B)",
        "`-- two.txt (2 B)",
        "2 files, 6 B",
    ]
    assert "checkpoint_000000/ (1 file, 100 B)" in invoke("tree", SWEEP, "--depth", "2").stdout
    assert ".asyncsync" not in invoke("tree", SWEEP).stdout


def test_du_shows_the_largest_first(answer: Answer) -> None:
    document = answer("du", SWEEP)
    sizes = [item["bytes"] for item in document["directories"]]
    assert sizes == sorted(sizes, reverse=True)
    assert document["bytes"] == sum(sizes) + len(b"state")


def test_cat_writes_the_bytes(invoke: Invoke, answer: Answer) -> None:
    assert invoke("cat", f"{SWEEP}/a/result.json").stdout_bytes == ROWS
    assert answer("cat", "memory://b/plain/two.txt")["text"] == "12"
    assert invoke("cat", f"{SWEEP}/a/nothing").exit_code == 1
    assert invoke("cat", "memory://b").exit_code == 2


# choose


def test_the_best_checkpoint_is_fetched(invoke: Invoke, answer: Answer, tmp_path: Path) -> None:
    assert answer("best", SWEEP, "loss")["uri"] == f"{SWEEP}/a/checkpoint_000000"
    result = invoke("best", SWEEP, "loss", "--order", "min", "--pull", tmp_path / "model")
    assert result.stdout.splitlines()[0] == f"{SWEEP}/b/checkpoint_000000"
    assert (tmp_path / "model/w").read_bytes() == b"b" * 100
    assert "metrics there are: loss" in invoke("best", SWEEP, "accuracy").stderr


def test_what_differs_between_two_trials_shows(answer: Answer, invoke: Invoke) -> None:
    document = answer("compare", f"{SWEEP}/a", f"{SWEEP}/b")
    assert document["different"]["params.net/depth"] == [97, 98]
    assert document["different"]["metrics.loss"] == [0.3, 0.1]
    assert "params.lr" in document["equal"]
    assert "params.lr" not in invoke("compare", f"{SWEEP}/a", f"{SWEEP}/b").stdout
    assert "params.lr" in invoke("compare", f"{SWEEP}/a", f"{SWEEP}/b", "--all").stdout
    assert invoke("compare", SWEEP, f"{SWEEP}/b").exit_code == 2


def test_files_of_two_checkpoints_are_compared(answer: Answer) -> None:
    document = answer("compare", f"{SWEEP}/a/checkpoint_000000", f"{SWEEP}/b/checkpoint_000000")
    assert list(document["different"]) == ["w"]


def test_history_is_one_row_per_report(answer: Answer, invoke: Invoke) -> None:
    assert [row["step"] for row in answer("history", f"{SWEEP}/a")["reports"]] == [0, 1, 2]
    assert invoke("history", f"{SWEEP}/a", "--metric", "loss", "--last", "1").stdout == "loss\n1\n3 reports of a\n"
    assert invoke("history", f"{SWEEP}/a", "--metric", "los").exit_code == 2
    assert invoke("history", SWEEP).exit_code == 2


@pytest.mark.parametrize("damage", [b"{", b"[1]\n", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_history_is_an_error_that_names_the_file(invoke: Invoke, sweep: MemoryStore, damage: bytes) -> None:
    run_virtual(sweep.put("a/result.json", ROWS + damage))
    result = invoke("history", f"{SWEEP}/a")
    assert (result.exit_code, "a/result.json is damaged: line 4" in result.stderr) == (1, True)


# change


def test_rm_asks_and_without_an_answer_removes_nothing(invoke: Invoke, sweep: MemoryStore) -> None:
    before = dict(sweep.contents)
    result = invoke("rm", f"{SWEEP}/a")
    assert (result.exit_code, "nothing was removed; --yes" in result.stderr) == (1, True)
    assert "would remove the trial" in invoke("rm", f"{SWEEP}/a", "--dry-run", "--yes").stdout
    assert sweep.contents == before


def test_rm_removes_a_trial_from_store_and_record(invoke: Invoke, answer: Answer, sweep: MemoryStore) -> None:
    assert invoke("rm", f"{SWEEP}/a", "--yes").stdout.startswith(f"removed the trial {SWEEP}/a (")
    assert names(answer("ls", SWEEP)) == ["b", "c"]
    assert invoke("rm", "memory://b/plain", "--yes").exit_code == 1


def test_cp_copies_an_experiment_that_then_verifies(invoke: Invoke, answer: Answer, tmp_path: Path) -> None:
    assert invoke("cp", SWEEP, tmp_path / "copy").exit_code == 1  # a/result.json differs from its manifest
    run_virtual(put_tree(MemoryStore("b", "sweep"), "a/", {"result.json": ROWS}))
    assert invoke("cp", SWEEP, tmp_path / "second").stdout.startswith("copied 7 files (")
    assert answer("verify", tmp_path / "second", "--deep")["ok"]
    assert names(answer("ls", tmp_path / "second")) == ["a", "b", "c"]
    assert invoke("cp", SWEEP, f"{SWEEP}/inside").exit_code == 2


def test_a_promoted_checkpoint_is_a_tree_of_its_own(invoke: Invoke, answer: Answer) -> None:
    assert invoke("promote", f"{SWEEP}/b/checkpoint_000000", "memory://b/models/v1").exit_code == 0
    assert [item["path"] for item in answer("ls", "memory://b/models/v1")["files"]] == ["w"]
    assert invoke("promote", f"{SWEEP}/b", "memory://b/models/v2").exit_code == 2


# push


def test_a_file_may_be_pushed_to_its_whole_address(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    assert invoke("push", tmp_path / "model.pt", "memory://b/models/model.pt").exit_code == 0
    assert invoke("push", tmp_path / "model.pt", "memory://b/others").exit_code == 0
    assert MemoryStore("b", "models").contents["model.pt"] == b"weights"
    assert MemoryStore("b", "others").contents["model.pt"] == b"weights"


def test_push_sends_again_what_the_store_has_lost(answer: Answer, tree: Path) -> None:
    answer("push", tree, "memory://b/tree")
    run_virtual(MemoryStore("b", "tree").delete(["a.txt"]))
    assert answer("push", tree, "memory://b/tree")["files_sent"] == 0
    assert answer("push", tree, "memory://b/tree", "--check-store")["files_sent"] == 1
    assert answer("verify", "memory://b/tree", "--deep")["ok"]


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        (f"{SWEEP}/nothing", f"Check the URL: asyncsync ls {SWEEP} shows what is above it"),
        ("memory://nobody", "Check the URL"),
    ],
)
def test_a_url_with_nothing_names_the_listing_above_it(invoke: Invoke, url: str, hint: str) -> None:
    result = invoke("ls", url)
    assert result.exit_code == 1
    assert result.stderr.rstrip().endswith(hint)


def test_a_plan_without_a_change_has_no_table(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(b"x")
    assert "action\tsize" in invoke("push", tmp_path / "files", "memory://b/plan", "--dry-run").stdout
    assert invoke("push", tmp_path / "files", "memory://b/plan").exit_code == 0
    assert invoke("push", tmp_path / "files", "memory://b/plan", "--dry-run").stdout.startswith("dry run: 0 B of 1 B")
