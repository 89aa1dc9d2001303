"""The first sync of a trial: its requests, and the files it finds."""

import asyncio
import threading

import pytest
from onebench import Bench

from asyncsync import SyncConfig, Syncer
from asyncsync.disk.scan import Same, scan
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.planning.patterns import Rules
from asyncsync.planning.snapshot import Snapshot
from asyncsync.sync import tree
from asyncsync.testing import run_virtual

ARTIFACTS = SyncConfig(sync_artifacts=True)


def requests(bench: Bench, trial: str) -> list[str]:
    return [
        f"{request.operation} {request.key}" for request in bench.faults.requests if request.key.startswith(f"{trial}/")
    ]


def test_a_new_trial_costs_its_files_its_record_and_its_manifest(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(ARTIFACTS) as engine:
            trial = engine.trial("t")
            (trial.dir / "log").write_bytes(b"log")
            await trial.sync()

    run_virtual(main())
    assert requests(bench, "t") == ["put t/.asyncsync/trial.json", "put t/log", f"put t/{MANIFEST}"]


def test_a_manifest_that_is_there_before_the_trial_is_taken_over(bench: Bench) -> None:
    earlier = bench.tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "old").write_bytes(b"old")

    async def main() -> None:
        async with Syncer(earlier, "memory://b/exp/t") as syncer:
            await syncer.sync_up()
        async with bench.engine(ARTIFACTS) as engine:
            trial = engine.trial("t")
            (trial.dir / "log").write_bytes(b"log")
            await trial.sync()

    run_virtual(main())
    assert sorted(Manifest.from_bytes(bench.store.contents[f"t/{MANIFEST}"]).files) == ["log", "old"]


def test_a_trial_made_during_the_scan_is_not_an_experiment_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan knows which trials there were when it began; it looks into the directory of one that is new."""
    go_on = threading.Event()

    async def main() -> None:
        began, loop = asyncio.Event(), asyncio.get_running_loop()

        def slow(root: str, rules: Rules, same: Same) -> Snapshot:
            if root.endswith("/exp") and not go_on.is_set():
                loop.call_soon_threadsafe(began.set)
                assert go_on.wait(60)
            return scan(root, rules, same)

        monkeypatch.setattr(tree, "scan", slow)
        async with bench.engine(ARTIFACTS) as engine:
            (engine.local_dir / "searcher").write_bytes(b"state")
            await began.wait()
            trial = engine.trial("t")
            (trial.dir / "log").write_bytes(b"log")
            go_on.set()
            await engine._context.scheduler.idle()
            own = Manifest.from_bytes(bench.store.contents[MANIFEST])
            assert sorted(own.files) == ["searcher"]

    run_virtual(main())
    assert sorted(Manifest.from_bytes(bench.store.contents[MANIFEST]).files) == ["searcher"]
    assert "log" in Manifest.from_bytes(bench.store.contents[f"t/{MANIFEST}"]).files
