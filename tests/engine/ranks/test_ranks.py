"""Several ranks write one checkpoint and communicate only through the store."""

import asyncio
import contextlib
import json
import re
from contextlib import AsyncExitStack

import pytest
from machines import record
from onebench import Bench
from rankbench import (
    KilledError,
    N,
    all_report,
    check_shards,
    killed,
    manifest,
    rank,
    shard,
    share,
    together,
    world,
)

from asyncsync import CheckpointConfig, ConfigError, Experiment, SyncConfig, SyncEngine, UploadMode, verify
from asyncsync.errors import AsyncsyncError, CheckpointIncompleteError, ConcurrentWriterError
from asyncsync.planning.manifest import MANIFEST
from asyncsync.remote.prune import prune
from asyncsync.testing import run_virtual


def test_all_ranks_write_one_checkpoint_and_rank_0_names_it(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            assert await all_report(bench, engines) == ["checkpoint_000000"] * N
            assert await all_report(bench, engines, "b") == ["checkpoint_000001"] * N

    run_virtual(main())
    whole = manifest(bench, "checkpoint_000001")
    assert sorted(whole.files) == ["shard_0.pt", "shard_1.pt", "shard_2.pt"]
    assert whole.info["metrics"] == {"loss": 1.0, "from": 0}
    assert [(item.name, item.files) for item in record(bench).checkpoints] == [
        ("checkpoint_000000", N),
        ("checkpoint_000001", N),
    ]
    assert run_virtual(verify("memory://b/exp", deep=True)).ok
    lines = bench.store.contents["t/result.json"].splitlines()
    assert [json.loads(line)["from"] for line in lines] == [0, 0]


def test_the_manifest_follows_the_last_part_and_all_ranks_wait(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            handles = []
            for number in range(N):
                assert not bench.keys(f"checkpoint_000000/{MANIFEST}")
                report = await share(bench, engines[number], number, upload=UploadMode.ASYNC)
                handles.append(report.checkpoint)
                assert not any(handle.is_durable for handle in handles)
                await asyncio.sleep(60)
            for handle in handles:
                await handle.durable()

    run_virtual(main())
    parts = [key for key in bench.keys() if "/rank-" in key and "-of-" in key]
    assert parts == [f"t/checkpoint_000000/.asyncsync/rank-0000{number}-of-00003.json" for number in range(N)]


def test_ranks_have_directories_of_their_own(bench: Bench) -> None:
    async def main() -> None:
        artifacts = SyncConfig(sync_artifacts=True)
        async with AsyncExitStack() as stack:
            engines = [
                await stack.enter_async_context(
                    bench.engine(artifacts, role="worker", rank=number, world_size=N)  # one machine, one local_dir
                )
                for number in range(N)
            ]
            for number, engine in enumerate(engines):
                (engine.trial("t").dir / "log").write_bytes(f"of {number}".encode())
                await engine.trial("t").report({"loss": number})
                await engine.trial("t").sync()

    run_virtual(main())
    logs = {key: data for key, data in bench.store.contents.items() if key.endswith("log")}
    assert logs == {"t/log": b"of 0", "t/rank_00001/log": b"of 1", "t/rank_00002/log": b"of 2"}
    assert bench.keys("result.json") == ["t/result.json"]


def test_without_artifacts_other_ranks_have_no_tree(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            await all_report(bench, await world(bench, stack))

    run_virtual(main())
    assert not [key for key in bench.keys() if key.startswith("t/rank_")]


def test_one_file_in_two_ranks_may_have_one_content(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            same = [shard(bench, n, **{"config.json": b"{}", f"shard_{n}": bytes([n])}) for n in range(N)]
            await asyncio.gather(*(engines[n].trial("t").report({}, same[n], step=0) for n in range(N)))

    run_virtual(main())
    assert len(manifest(bench, "checkpoint_000000").files) == N + 1
    assert run_virtual(verify("memory://b/exp", deep=True)).ok


def test_one_file_with_two_contents_is_reported_to_every_rank(bench: Bench) -> None:
    async def main() -> list[object]:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            wrong = [shard(bench, n, **{"model.pt": bytes([n])}) for n in range(N)]
            return await together(*(engines[n].trial("t").report({}, wrong[n], step=0) for n in range(N)))

    for error in run_virtual(main()):
        assert isinstance(error, ConcurrentWriterError)
        assert re.search(r"ranks \d and \d both wrote 'model.pt'", str(error))
    assert not bench.keys(MANIFEST.join(("checkpoint_000000/", "")))


def test_a_rank_that_never_comes_is_named(bench: Bench) -> None:
    async def main() -> list[object]:
        keep = CheckpointConfig(commit_timeout=100)
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack, keep=keep)
            late = await together(*(share(bench, engines[n], n) for n in (0, 2)))
            start = asyncio.get_running_loop().time()
            late += await together(share(bench, engines[1], 1))
            assert asyncio.get_running_loop().time() - start < 1  # it learns that the others did not wait
            names = await all_report(bench, engines, "next")
            assert names == ["checkpoint_000001"] * N
            return late

    for error in run_virtual(main()):
        assert isinstance(error, CheckpointIncompleteError)
        assert "of 3 ranks, rank(s) 1 did not send their part of step 0 within commit_timeout=100 s" in str(error)
    assert not bench.keys(f"checkpoint_000000/{MANIFEST}")
    assert [item.name for item in record(bench).checkpoints] == ["checkpoint_000001"]


def test_retention_is_rank_0s(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack, keep=CheckpointConfig(num_to_keep=1))
            for step in range(3):
                await all_report(bench, engines, str(step), step=step)

    run_virtual(main())
    assert [item.name for item in record(bench).checkpoints] == ["checkpoint_000002"]
    assert {key.split("/")[1] for key in bench.keys() if "checkpoint_" in key} == {"checkpoint_000002"}


def test_async_reports_of_ranks_are_counted_alike_without_talking(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack, keep=CheckpointConfig(max_pending_checkpoints=4))
            for number, engine in enumerate(engines):
                for step in range(3):
                    source = shard(bench, number, f"s{step}")
                    await engine.trial("t").report({"step": step}, source, step=step, upload=UploadMode.ASYNC)

    run_virtual(main())
    for step in range(3):
        prefix = f"t/checkpoint_00000{step}/"
        assert bench.store.contents[f"{prefix}shard_2.pt"].startswith(f"2 s{step}".encode())
    assert len(record(bench).checkpoints) == 3


async def half_a_checkpoint(bench: Bench, engines: list[SyncEngine]) -> None:
    """One checkpoint is complete; of the next, rank 2 has sent its file but not the record of its part."""
    await all_report(bench, engines, "a")
    hang = bench.faults.hang(key="rank-00002-of-00003", operation="put", times=None)
    for number, engine in enumerate(engines):
        await share(bench, engine, number, "old", upload=UploadMode.ASYNC)
    await hang.reached.wait()
    await asyncio.sleep(1)
    parts = [key for key in bench.keys("-of-00003.json") if "checkpoint_000001" in key]
    assert len(parts) == 2


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("delay", [0.0, 30.0])
def test_all_come_back_in_any_order_and_agree_on_a_number(bench: Bench, order: tuple[int, ...], delay: float) -> None:
    """Nothing of the earlier generation gets into their checkpoint."""
    names: dict[int, list[str]] = {}

    async def one(number: int, wait: float) -> None:
        await asyncio.sleep(wait)
        async with rank(bench, number, machine="new", resume=True) as engine:
            reports = [await share(bench, engine, number, text, upload=UploadMode.ASYNC) for text in ("new", "newer")]
            for report in reports:
                await report.checkpoint.durable()
            names[number] = [report.checkpoint.name for report in reports]

    async def main() -> None:
        await killed(bench, lambda engines: half_a_checkpoint(bench, engines))
        async with asyncio.TaskGroup() as group:
            for place, number in enumerate(order):
                group.create_task(one(number, delay * place))

    run_virtual(main())
    assert names[0] == names[1] == names[2]
    check_shards(bench, names[0][1], "newer")
    assert len(record(bench).checkpoints) == 3
    assert record(bench).epoch == 2
    assert run_virtual(verify("memory://b/exp", deep=True)).ok


@pytest.mark.parametrize("back", [1, 2])
def test_a_rank_back_alone_resumes_the_checkpoint_the_others_await(bench: Bench, back: int) -> None:
    """Whether it had sent its part before it died (rank 1) or not (rank 2)."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            others = [n for n in range(N) if n != back]
            engines = {n: await stack.enter_async_context(rank(bench, n)) for n in others}
            with pytest.raises(KilledError):
                async with rank(bench, back, exit_grace=0.001) as lost:
                    await all_report(bench, [engines.get(n, lost) for n in range(N)], "a")
                    waiting = [await share(bench, engines[n], n, "b", upload=UploadMode.ASYNC) for n in others]
                    hang = bench.faults.hang(key="rank-00002-of-00003", operation="put", times=None)
                    await share(bench, lost, back, "b", upload=UploadMode.ASYNC)
                    await hang.reached.wait()
                    raise KilledError
            if back == 2:
                bench.faults.clear()
            await asyncio.sleep(100)
            assert not any(item.checkpoint.is_durable for item in waiting)
            async with rank(bench, back, machine="new", resume=True) as found:
                report = await share(bench, found, back, "b", upload=UploadMode.ASYNC)
                bench.faults.clear()
                hang.release.set()
                await report.checkpoint.durable()
                assert report.checkpoint.name == "checkpoint_000001"
                for item in waiting:
                    await item.checkpoint.durable()
                engines[back] = found
                await all_report(bench, [engines[n] for n in range(N)], "c")

    run_virtual(main())
    check_shards(bench, "checkpoint_000002", "c")
    assert [item.name for item in record(bench).checkpoints] == [f"checkpoint_00000{n}" for n in range(3)]
    for number in range(N):
        assert bench.store.contents[f"t/checkpoint_000001/shard_{number}.pt"].startswith(f"{number} b".encode())


def test_a_rank_that_runs_on_after_rank_0_was_started_again_loses(bench: Bench) -> None:
    async def main() -> None:
        async with rank(bench, 1) as first, rank(bench, 2) as second:
            with pytest.raises(KilledError):
                async with rank(bench, 0, exit_grace=0.001) as zero:
                    await all_report(bench, [zero, first, second])
                    raise KilledError
            async with rank(bench, 0, machine="new", resume=True) as zero:
                await zero.trial("t").sync()
                before = bench.store.contents
                for engine in (first, second):
                    with pytest.raises(ConcurrentWriterError, match="start this rank again"):
                        await share(bench, engine, 1, "late")
                assert bench.store.contents == before

    run_virtual(main())


@pytest.mark.parametrize("number", [0, 1])
def test_a_second_process_of_a_rank_is_refused_unless_it_resumes(bench: Bench, number: int) -> None:
    async def main() -> None:
        with contextlib.suppress(AsyncsyncError):  # at the end, if there is something that is not durable
            async with rank(bench, number) as zombie:
                await zombie.trial("t").sync()
                with pytest.raises(ConcurrentWriterError):
                    async with rank(bench, number, machine="second") as second:
                        await share(bench, second, number, "second")
                async with rank(bench, number, machine="heir", resume=True) as heir:
                    await heir.trial("t").sync()
                    before = bench.store.contents
                    with pytest.raises(ConcurrentWriterError):
                        await share(bench, zombie, number, "zombie")
                    assert bench.store.contents == before

    run_virtual(main())


def test_a_replaced_rank_that_waits_for_others_writes_no_manifest(bench: Bench) -> None:
    async def main() -> None:
        with contextlib.suppress(AsyncsyncError):  # at the end, if there is something that is not durable
            async with rank(bench, 0, of=2) as zombie:
                late = await share(bench, zombie, 0, "old", upload=UploadMode.ASYNC)
                await asyncio.sleep(60)
                async with rank(bench, 0, of=2, machine="heir", resume=True) as heir:
                    await heir.trial("t").sync()
                    with pytest.raises(ConcurrentWriterError):
                        await late.checkpoint.durable()
                    async with rank(bench, 1, of=2, resume=True) as other:
                        await all_report(bench, [heir, other], "new")

    run_virtual(main())
    assert bench.keys(MANIFEST)[-1:] == ["t/checkpoint_000001/.asyncsync/manifest.json"]
    assert bench.store.contents["t/checkpoint_000001/shard_0.pt"].startswith(b"0 new")


def test_a_driver_may_be_rank_0(bench: Bench) -> None:
    async def main() -> list[str]:
        async with bench.engine(world_size=2) as zero, rank(bench, 1, of=2) as one:
            await all_report(bench, [zero, one])
        return [item.name for item in (await Experiment.open("memory://b/exp")).checkpoints]

    assert run_virtual(main()) == ["checkpoint_000000"]


@pytest.mark.parametrize(
    "wrong", [{"rank": 1}, {"rank": 2, "world_size": 2}, {"rank": -1}, {"world_size": 0}, {"rank": 1, "world_size": 2}]
)
def test_ranks_that_cannot_be_are_refused(bench: Bench, wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        bench.engine(**wrong)


def test_an_incomplete_checkpoint_of_ranks_is_garbage_for_prune(bench: Bench) -> None:
    async def main() -> list[str]:
        async with rank(bench, 0, of=2, keep=CheckpointConfig(commit_timeout=10)) as zero:
            with pytest.raises(CheckpointIncompleteError):
                await share(bench, zero, 0)
        return (await prune("memory://b/exp", dry_run=False, older_than=0)).checkpoints

    assert run_virtual(main()) == ["t/checkpoint_000000/"]
    assert not [key for key in bench.keys() if "checkpoint_" in key]
