"""Fail, lose the answer, and cancel at the n-th request to the store, for every n; then look whether anything is half.

The invariants: no manifest without what it names, no record that names a checkpoint without manifest, no multipart
upload that the journal does not know, no request left running, and the next run succeeds and ends with equal contents.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from asyncsync import (
    AsyncsyncError,
    CheckpointConfig,
    RunConfig,
    SyncConfig,
    SyncEngine,
    TransferConfig,
    UploadMode,
    push,
)
from asyncsync.disk.journal import Journal, journal_path
from asyncsync.errors import AccessDeniedError, UnavailableError
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.records import TRIAL_RECORD, TrialRecord
from asyncsync.testing import Faults, MemoryStore, inject_faults, reset_memory, run_virtual

MIB = 1 << 20
SPLIT = TransferConfig(multipart_threshold=5 * MIB, part_size=5 * MIB, max_attempts=1)
MAIN: list[asyncio.Task[object] | None] = []
"""The task that a cancel is sent to."""
Scene = Callable[[Path], Awaitable[None]]


def make_tree(root: Path) -> Path:
    (root / "sub").mkdir(parents=True)
    for index in range(4):
        (root / f"sub/f{index}").write_bytes(bytes([index]) * 100)
    (root / "big").write_bytes(bytes(range(256)) * (5 * 4096 + 4))
    return root


async def push_tree(root: Path) -> None:
    await push(root / "tree", "memory://b/push", transfer=SPLIT)


async def train(root: Path) -> None:
    """One trial, three checkpoints, retention, resumed if it is there."""
    run = RunConfig(
        name="exp", storage_path="memory://b", transfer=SPLIT,
        sync_config=SyncConfig(sync_period=1000, sync_artifacts=True, sync_timeout=500),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
    )  # fmt: skip
    async with SyncEngine(run, local_dir=root / "local", resume=True) as engine:
        trial = engine.trial("t", params={"lr": 1})
        for step, mode in enumerate((UploadMode.SYNC, UploadMode.ASYNC, UploadMode.SYNC)):
            await trial.report({"step": step}, root / "tree", upload=mode)
        await trial.finish()


def check_whole(store: MemoryStore) -> None:
    contents = store.contents
    for key, data in contents.items():
        if key.endswith(MANIFEST):
            prefix = key.removesuffix(MANIFEST)
            for path, entry in Manifest.from_bytes(data).files.items():
                assert len(contents[prefix + path]) == entry.size, f"{prefix}{path}"
        if key.endswith(TRIAL_RECORD):
            trial = key.removesuffix(TRIAL_RECORD)
            for item in TrialRecord.from_bytes(data).checkpoints:
                assert f"{trial}{item.name}/{MANIFEST}" in contents, f"{trial}{item.name} is named without manifest"


async def known_uploads(uri: str) -> set[str]:
    """Uploads that the journal knows by id or, where the answer to the request that made it was lost, by key."""
    async with Journal.open(journal_path()) as journal:
        owed = [json.loads(item.payload) for item in await journal.owed(uri)]
        known = {item.upload_id for item in await journal.open_uploads(uri)} | {item.get("upload_id") for item in owed}
    keys = {item["key"] for item in owed if item.get("upload_id") == ""}
    uploads = MemoryStore("b", uri.rpartition("/")[2])
    return known | {upload.upload_id for upload in await uploads.list_multiparts() if upload.key in keys}


def count_calls(scene: Scene, tmp_path: Path) -> int:
    faults = inject_faults("b")
    run_virtual(scene(tmp_path))
    return faults.calls


async def once(scene: Scene, root: Path, faults: Faults) -> None:
    """Run a scene that may fail in any way that is told, and see that nothing of it goes on."""
    MAIN[:] = [asyncio.current_task()]
    try:
        await scene(root)
    except (AsyncsyncError, asyncio.CancelledError):
        assert faults.active == 0
    assert faults.active == 0


def sweep(scene: Scene, uri: str, tmp_path: Path, plan: Callable[[Faults, int], None], most: int = 400) -> int:
    (tmp_path / "count").mkdir()
    make_tree(tmp_path / "count/tree")
    reset_memory()
    calls = count_calls(scene, tmp_path / "count")
    assert calls < most
    for n in range(1, calls + 1):
        reset_memory()
        faults = inject_faults("b")
        root = tmp_path / str(n)
        root.mkdir()
        make_tree(root / "tree")
        journal_path().unlink(missing_ok=True)
        plan(faults, n)
        run_virtual(once(scene, root, faults))
        check_whole(MemoryStore("b"))
        open_uploads = set(MemoryStore("b").bucket.uploads)
        assert open_uploads <= run_virtual(known_uploads(uri)), f"call {n}: an upload that nobody knows"
        faults.clear()
        run_virtual(scene(root))
        check_whole(MemoryStore("b"))
        assert set(MemoryStore("b").bucket.uploads) == set(), f"call {n}: an upload was left"
    return calls


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


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_push_is_never_half(tmp_path: Path, plan: Callable[[Faults, int], None]) -> None:
    assert sweep(push_tree, "memory://b/push", tmp_path, plan) > 8


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_a_run_is_never_half(tmp_path: Path, plan: Callable[[Faults, int], None]) -> None:
    assert sweep(train, "memory://b/exp", tmp_path, plan) > 30
