"""What the first sync of a trial costs, and what it finds."""

from onebench import Bench

from asyncsync import SyncConfig, Syncer
from asyncsync.planning.manifest import MANIFEST, Manifest
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
