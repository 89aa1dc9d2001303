"""Events for listeners, and ``status``."""

import asyncio

import pytest
from onebench import Bench

from asyncsync import CheckpointConfig, SyncConfig, SyncReport, UploadMode
from asyncsync.errors import AccessDeniedError, SyncFailedError
from asyncsync.events import Event
from asyncsync.sync.event_stream import BUFFERED_EVENTS
from asyncsync.testing import run_virtual


async def everything(stream: object) -> list[Event]:
    return [event async for event in stream]  # type: ignore[attr-defined]


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_any_number_of_listeners_see_everything_until_the_engine_ends(bench: Bench) -> None:
    async def main() -> list[list[Event]]:
        async with bench.engine(keep=CheckpointConfig(num_to_keep=1)) as engine:
            streams = [engine.events() for _ in range(3)]
            trial = engine.trial("t")
            for _ in range(2):
                await trial.report({}, bench.checkpoint())
        return [await everything(stream) for stream in streams]

    first, *others = run_virtual(main())
    assert all(events == first for events in others)
    told = [kind for kind in kinds(first) if kind.startswith("Checkpoint")]
    assert sorted(told) == sorted(["CheckpointAccepted", "CheckpointDurable"] * 2 + ["CheckpointRetired"])
    assert {"SyncStarted", "SyncFinished"} <= set(kinds(first))


def test_events_report_the_transferred_bytes(bench: Bench) -> None:
    """Bytes in the tree, bytes sent, bytes that the store copied, requests: of syncs as of checkpoints."""

    async def main() -> tuple[SyncReport, list[Event]]:
        async with bench.engine(SyncConfig(sync_artifacts=True)) as engine:
            stream, trial = engine.events(), engine.trial("t")
            await trial.sync()
            (trial.dir / "artifact").write_bytes(b"a" * 5000)
            report = await trial.sync()
            for size in (9_000, 10_000):
                files = {"frozen": b"f" * 50_000, "adapter": b"a" * size}
                await trial.report({}, bench.checkpoint(f"c{size}", **files))
        return report, await everything(stream)

    report, events = run_virtual(main())
    names = ("bytes_total", "bytes_sent", "bytes_copied", "requests")
    syncs = [
        tuple(getattr(event, name) for name in names)
        for event in events
        if event.kind == "SyncFinished" and event.tree == "t"
    ]
    assert tuple(getattr(report, name) for name in names) in syncs
    assert report.bytes_sent >= 5000
    checkpoints = [event for event in events if event.kind == "CheckpointDurable"]
    assert [(event.bytes_total, event.bytes_sent, event.bytes_copied) for event in checkpoints] == [
        (59_000, 59_000, 0),
        (60_000, 10_000, 50_000),
    ]
    assert all(event.requests >= 3 for event in checkpoints)  # two files and the manifest


def test_a_slow_listener_loses_events_and_stalls_nobody(bench: Bench) -> None:
    async def main() -> tuple[int, int]:
        async with bench.engine(SyncConfig(sync_period=1)) as engine:
            stream = engine.events()
            engine.trial("t")
            await asyncio.sleep(2 * BUFFERED_EVENTS)
        seen = await everything(stream)
        return len(seen), stream.dropped

    seen, dropped = run_virtual(main())
    assert seen == BUFFERED_EVENTS
    assert dropped > 0


def test_a_listener_that_left_costs_nothing(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            stream = engine.events()
            await stream.aclose()
            await engine.trial("t").sync()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    run_virtual(main())


def test_a_checkpoint_that_fails_is_an_event(bench: Bench) -> None:
    async def main() -> list[Event]:
        async with bench.engine() as engine:
            stream = engine.events()
            bench.faults.fail(error=AccessDeniedError("not you"), operation="put", key="weights")
            with pytest.raises(SyncFailedError):
                await engine.trial("t").report({}, bench.checkpoint())
        return await everything(stream)

    assert "CheckpointFailed" in kinds(run_virtual(main()))


def test_status_shows_the_lag_and_the_bytes_at_risk(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(SyncConfig(sync_period=10_000)) as engine:
            trial = engine.trial("t")
            await trial.sync()
            assert engine.status().durability_lag == 0
            hang = bench.faults.hang(operation="put", key="weights")
            await trial.report({}, bench.checkpoint(weights=b"w" * 500), upload=UploadMode.ASYNC)
            await asyncio.sleep(42)
            status = engine.status().trials["t"]
            assert status.durability_lag == pytest.approx(42)
            assert (status.bytes_at_risk, status.pending_checkpoints, status.last_durable) == (500, 1, None)
            hang.release.set()
            await trial.sync()
            await asyncio.sleep(1)
            await trial.sync()
            status = engine.status().trials["t"]
            assert (status.durability_lag, status.bytes_at_risk, status.last_durable) == (0, 0, 0)

    run_virtual(main())


def test_flush_reports_durable_trees_and_the_others(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine(SyncConfig(sync_period=10_000)) as engine:
            quick, stuck = engine.trial("quick"), engine.trial("stuck")
            await quick.report({}, bench.checkpoint())
            await stuck.sync()
            hang = bench.faults.hang(operation="put", key="stuck/checkpoint_000000/weights")
            await stuck.report({}, bench.checkpoint(), upload=UploadMode.ASYNC)
            started = asyncio.get_running_loop().time()
            report = await engine.flush(deadline=25)
            assert asyncio.get_running_loop().time() - started <= 25
            assert "quick/checkpoint_000000" in report.durable
            assert "stuck/checkpoint_000000" in report.not_durable
            hang.release.set()
            assert (await engine.flush(deadline=25)).not_durable == ()

    run_virtual(main())
