"""Fail, lose the response of, and cancel at the n-th request to the store, for every n; then check the invariants.

The invariants: every manifest has its objects; every checkpoint in a record has its manifest; the journal knows every
open multipart upload; no request is running and no slot is taken; and the next run succeeds and ends with equal
contents.
"""

import asyncio
import json
import random
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stored import check_complete, files_of

from asyncsync import (
    AsyncsyncError,
    Checkpoint,
    CheckpointConfig,
    RunConfig,
    SyncConfig,
    SyncEngine,
    TransferConfig,
    UploadMode,
    pull,
    push,
)
from asyncsync.disk.journal import Journal, journal_path
from asyncsync.errors import AccessDeniedError, CheckpointIncompleteError, UnavailableError
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.stores.guard.budget import Budget
from asyncsync.sync import session
from asyncsync.sync.records.model import TrialRecord
from asyncsync.sync.upload import assembly as assemble
from asyncsync.testing import Faults, MemoryStore, inject_faults, reset_memory, run_virtual

MIB = 1 << 20
SPLIT = TransferConfig(multipart_threshold=5 * MIB, part_size=5 * MIB, max_attempts=1)
MAIN: list[asyncio.Task[object] | None] = []
"""The task that a cancel is sent to."""
BUDGETS: list[Budget] = []
COMMIT_TIMEOUT = 1000.0
Scene = Callable[[Path], Awaitable[None]]
Check = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _budgets_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Budget):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            BUDGETS.append(self)

    for module in (session,):
        monkeypatch.setattr(module, "Budget", Seen)


def make_tree(root: Path) -> Path:
    (root / "sub").mkdir(parents=True)
    for index in range(4):
        (root / f"sub/f{index}").write_bytes(bytes([index]) * 100)
    (root / "big").write_bytes(bytes(range(256)) * (5 * 4096 + 4))
    return root


async def push_tree(root: Path) -> None:
    await push(root / "tree", "memory://b/push", transfer=SPLIT)


def run_config() -> RunConfig:
    return RunConfig(
        name="exp",
        storage_path="memory://b",
        transfer=SPLIT,
        sync_config=SyncConfig(sync_period=1000, sync_artifacts=True, sync_timeout=500),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
    )


async def train(root: Path) -> None:
    """One trial, three checkpoints, retention, resumed if it is there."""
    async with SyncEngine(run_config(), local_dir=root / "local", resume=True) as engine:
        trial = engine.trial("t", params={"lr": 1})
        for step, mode in enumerate((UploadMode.SYNC, UploadMode.ASYNC, UploadMode.SYNC)):
            await trial.report({"step": step}, root / "tree", upload=mode)
        await trial.finish()


async def end_of_ranks(root: Path, begun: asyncio.Barrier | None = None) -> list[list[str] | BaseException]:
    """Two ranks, two checkpoints; resumed if they exist. A rank that fails ends, as a process would. Returns the
    result of each: the names of its checkpoints, or its error. ``begun``: no rank sends before the other has
    started. A rank that starts after the other gave up cannot tell its failure from an earlier one, and waits for
    ``commit_timeout``.
    """
    run = RunConfig(
        name="exp",
        storage_path="memory://b",
        transfer=TransferConfig(max_attempts=1),
        sync_config=SyncConfig(sync_period=1000, sync_timeout=500),
        checkpoint_config=CheckpointConfig(num_to_keep=2, commit_timeout=COMMIT_TIMEOUT),
    )

    async def one(rank: int) -> list[str]:
        source = root / f"shard{rank}"
        source.mkdir(exist_ok=True)
        (source / f"shard_{rank}").write_bytes(b"%d" % rank * 100)
        local = root / f"machine{rank}"
        async with SyncEngine(run, local_dir=local, resume=True, role="worker", rank=rank, world_size=2) as engine:
            trial = engine.trial("t")
            if begun is not None:
                await trial.report({"step": -1})
                await begun.wait()
            reports = [await trial.report({"step": step}, source, step=step) for step in range(2)]
            await trial.finish()
            return [report.checkpoint.name for report in reports if report.checkpoint is not None]

    return await asyncio.gather(one(0), one(1), return_exceptions=True)


async def train_by_ranks(root: Path) -> None:
    names = await end_of_ranks(root)
    for error in names:
        if isinstance(error, BaseException):
            raise error
    assert names[0] == names[1]


async def known_uploads(uri: str) -> set[str]:
    """Uploads that the journal knows by id or, if the response to the opening request was lost, by key."""
    async with Journal.open(journal_path()) as journal:
        owed = [json.loads(item.payload) for item in await journal.owed(uri)]
        known = {item.upload_id for item in await journal.open_uploads(uri)} | {item.get("upload_id") for item in owed}
    keys = {item["key"] for item in owed if item.get("upload_id") == ""}
    uploads = MemoryStore("b", uri.rpartition("/")[2])
    return known | {upload.upload_id for upload in await uploads.list_multiparts() if upload.key in keys}


def count_calls(scene: Scene, tmp_path: Path) -> int:
    run_virtual(scene(tmp_path))
    return inject_faults("b").calls


async def once(scene: Scene, root: Path, faults: Faults) -> None:
    """Run a scene that may raise any reported error, and check that nothing of it keeps running."""
    MAIN[:] = [asyncio.current_task()]
    BUDGETS.clear()
    try:
        await scene(root)
    except (AsyncsyncError, asyncio.CancelledError):
        assert faults.active == 0
    assert faults.active == 0
    assert BUDGETS
    assert all((budget.in_use, budget.waiting) == (0, 0) for budget in BUDGETS), "a slot was not given back"


async def nothing(root: Path) -> None:
    """No setup."""


def sweep(
    scene: Scene,
    tmp_path: Path,
    plan: Callable[[Faults, int], None],
    check: Check,
    *,
    uri: str = "",
    setup: Scene = nothing,
    most: int = 400,
) -> int:
    """``check`` compares the final contents. Returns the number of calls that a fault could hit."""
    begin(tmp_path / "count", setup)
    calls = count_calls(scene, tmp_path / "count")
    assert calls < most
    for n in range(1, calls + 1):
        root = tmp_path / str(n)
        faults = begin(root, setup)
        plan(faults, n)
        run_virtual(once(scene, root, faults))
        check_complete(MemoryStore("b").contents)
        if uri:
            open_uploads = set(MemoryStore("b").bucket.uploads)
            assert open_uploads <= run_virtual(known_uploads(uri)), f"call {n}: an upload that nobody knows"
        faults.clear()
        run_virtual(scene(root))
        check_complete(MemoryStore("b").contents)
        assert set(MemoryStore("b").bucket.uploads) == set(), f"call {n}: an upload was left"
        check(root)
        shutil.rmtree(root)
    return calls


def begin(root: Path, setup: Scene) -> Faults:
    """A new world."""
    reset_memory()
    faults = inject_faults("b")
    root.mkdir()
    make_tree(root / "tree")
    for path in journal_path().parent.glob("journal*"):
        path.unlink()
    run_virtual(setup(root))
    faults.clear()
    faults.requests.clear()
    return faults


def fails(error: Callable[[], Exception], *, after: bool = False) -> Callable[[Faults, int], None]:
    return lambda faults, n: faults.fail(n, error(), after=after) and None


def cancels(*, after: bool) -> Callable[[Faults, int], None]:
    def plan(faults: Faults, n: int) -> None:
        def cancel() -> None:
            assert MAIN[0] is not None
            MAIN[0].cancel()

        faults.hook(n, cancel, after=after)

    return plan


PLANS = {
    "refused": fails(lambda: AccessDeniedError("injected")),
    "unavailable": fails(lambda: UnavailableError("injected")),
    "answer lost": fails(lambda: UnavailableError("injected"), after=True),
    "cancelled before": cancels(after=False),
    "cancelled after": cancels(after=True),
}


def stored(prefix: str) -> dict[str, bytes]:
    contents = MemoryStore("b", prefix).contents
    return {key: data for key, data in contents.items() if not key.startswith(".asyncsync/")}


def trial_record() -> TrialRecord:
    return TrialRecord.from_bytes(MemoryStore("b", "exp/t").contents[TRIAL_RECORD])


def pushed_equals_local(root: Path) -> None:
    assert stored("push") == files_of(root / "tree")


def checkpoints_equal_local(root: Path) -> None:
    record = trial_record()
    assert len(record.checkpoints) == 2
    for item in record.checkpoints:
        assert stored(f"exp/t/{item.name}") == files_of(root / "tree")
    there = {key.split("/")[0] for key in stored("exp/t") if key.startswith("checkpoint_")}
    assert there >= {item.name for item in record.checkpoints}


def pulled_equals_pushed(root: Path) -> None:
    assert files_of(root / "out") == files_of(root / "tree")


each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


@each_plan
def test_push_is_never_half(tmp_path: Path, plan: Callable[[Faults, int], None]) -> None:
    assert sweep(push_tree, tmp_path, plan, pushed_equals_local, uri="memory://b/push") > 8


@each_plan
def test_a_run_is_never_half(tmp_path: Path, plan: Callable[[Faults, int], None]) -> None:
    """Reports, retention, and resuming where an earlier run was struck."""
    assert sweep(train, tmp_path, plan, checkpoints_equal_local, uri="memory://b/exp") > 30


async def pull_tree(root: Path) -> None:
    await pull("memory://b/push", root / "out", transfer=SPLIT)


@each_plan
def test_pull_is_never_half(tmp_path: Path, plan: Callable[[Faults, int], None]) -> None:
    assert sweep(pull_tree, tmp_path, plan, pulled_equals_pushed, setup=push_tree) > 6


async def push_large(root: Path) -> None:
    (root / "tree/large").write_bytes(random.Random(1).randbytes(11 * MIB))
    await push_tree(root)


async def push_renamed(root: Path) -> None:
    """The store has the large file under another name: it copies it, in ranges."""
    if (root / "tree/large").exists():
        (root / "tree/large").rename(root / "tree/renamed")
    await push_tree(root)


def renamed_equals_local(root: Path) -> None:
    local = files_of(root / "tree")
    assert {key: data for key, data in stored("push").items() if key != "large"} == local


@each_plan
def test_a_copy_in_ranges_is_never_half(
    tmp_path: Path, plan: Callable[[Faults, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upload is known to the journal before it exists, whenever it ends."""
    limits = assemble.limits_of
    monkeypatch.setattr(assemble, "limits_of", lambda *given: replace(limits(*given), copied=6 * MIB))
    calls = sweep(push_renamed, tmp_path, plan, renamed_equals_local, uri="memory://b/push", setup=push_large)
    assert calls > 5
    begin(tmp_path / "copied", push_large)
    assert count_calls(push_renamed, tmp_path / "copied") == calls
    assert inject_faults("b").count("copy_part") == 2


async def accept_and_die(root: Path) -> None:
    """A checkpoint that asyncsync owns is accepted, and half of it sent, when the process ends."""
    faults = inject_faults("b")
    faults.hang(at=2, operation="put_part", times=None)
    shutil.copytree(root / "tree", root / "owned")
    with pytest.raises(KeyboardInterrupt):
        async with SyncEngine(run_config(), local_dir=root / "local", exit_grace=0.01) as engine:
            await engine.trial("t").report({"step": 0}, Checkpoint.take(root / "owned"), upload=UploadMode.ASYNC)
            await asyncio.sleep(100)
            raise KeyboardInterrupt


async def go_on(root: Path) -> None:
    async with SyncEngine(run_config(), local_dir=root / "local", resume=True):
        pass


def accepted_is_durable(root: Path) -> None:
    (item,) = trial_record().checkpoints
    assert (item.name, item.metrics) == ("checkpoint_000000", {"step": 0})
    assert stored("exp/t/checkpoint_000000") == files_of(root / "tree")
    assert not (root / "owned").exists()


@pytest.mark.parametrize("plan", [pytest.param(PLANS[name], id=name) for name in PLANS if name != "refused"])
def test_pending_checkpoints_are_resumed_completely_or_not_at_all(
    tmp_path: Path, plan: Callable[[Faults, int], None]
) -> None:
    """Without the permanent refusal: it is reported, and the checkpoint is given up."""
    assert sweep(go_on, tmp_path, plan, accepted_is_durable, uri="memory://b/exp", setup=accept_and_die) > 10


def shards_equal_local(root: Path) -> None:
    contents = MemoryStore("b", "exp/t").contents
    for item in trial_record().checkpoints:
        manifest = Manifest.from_bytes(contents[f"{item.name}/{MANIFEST}"])
        assert sorted(manifest.files) == ["shard_0", "shard_1"]
        for rank in range(2):
            assert contents[f"{item.name}/shard_{rank}"] == (root / f"shard{rank}/shard_{rank}").read_bytes()


@each_plan
def test_a_checkpoint_of_ranks_is_never_half(tmp_path: Path, plan: Callable[[Faults, int], None]) -> None:
    assert sweep(train_by_ranks, tmp_path, plan, shards_equal_local, uri="memory://b/exp") > 40


def test_a_rank_refused_any_write_of_a_checkpoint_informs_the_other(tmp_path: Path) -> None:
    """Both end soon: one with the refusal, the other with the name of that rank; or the checkpoint is complete all the
    same.
    """

    async def timed(root: Path) -> tuple[list[list[str] | BaseException], float]:
        return await end_of_ranks(root, asyncio.Barrier(2)), asyncio.get_running_loop().time()

    told, n = 0, 1
    while True:
        faults = begin(tmp_path / str(n), nothing)
        refused = faults.fail(n, AccessDeniedError("injected"), operation="put", key="/checkpoint_")
        ended, seconds = run_virtual(timed(tmp_path / str(n)))
        if refused.seen < n:  # there are no more writes
            break
        n += 1
        assert seconds < COMMIT_TIMEOUT / 10, n
        lost = [rank for rank, end in enumerate(ended) if isinstance(end, CheckpointIncompleteError)]
        if not any(isinstance(end, BaseException) for end in ended):
            continue  # one writer of the manifest was refused, and the other wrote it
        assert len(lost) == 1, (n, ended)
        assert f"rank {1 - lost[0]} failed: " in str(ended[lost[0]])
        told += 1
    assert told >= 8
