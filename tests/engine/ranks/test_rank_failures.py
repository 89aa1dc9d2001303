"""A rank that fails for good reports it through the store, so the other ranks stop waiting."""

import asyncio
import os
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
    now,
    rank,
    shard,
    share,
    together,
    world,
)

from asyncsync import CheckpointConfig, SyncConfig, SyncEngine, UploadMode
from asyncsync.errors import (
    AccessDeniedError,
    AsyncsyncError,
    CheckpointIncompleteError,
    SyncFailedError,
    SyncTimeoutError,
)
from asyncsync.planning.manifest import MANIFEST
from asyncsync.planning.rank_agreement import failure_name
from asyncsync.sync.records.model import FailureRecord
from asyncsync.testing import run_virtual

PROMPT_SECONDS = 6.0
"""Virtual seconds: the longest pause between two polls, and the requests."""


def words(bench: Bench, name: str = "checkpoint_000000") -> dict[int, FailureRecord]:
    """Failure records of the ranks, by rank."""
    keys = {number: f"t/{name}/{failure_name(number, N)}" for number in range(N)}
    contents = bench.store.contents
    return {number: FailureRecord.from_bytes(contents[key]) for number, key in keys.items() if key in contents}


async def one_fails(bench: Bench, engines: list[SyncEngine], number: int = 1) -> list[object]:
    """All ranks report, and the store refuses the shard of one of them."""
    bench.faults.fail(error=AccessDeniedError("quota of this rank is used up"), key=f"shard_{number}", operation="put")
    reports = (share(bench, engine, n) for n, engine in enumerate(engines))
    return await together(*reports)


def check_told(errors: list[object], number: int = 1) -> None:
    for n, error in enumerate(errors):
        if n == number:
            assert isinstance(error, SyncFailedError)
        else:
            assert isinstance(error, CheckpointIncompleteError)
            assert f"checkpoint_000000 is incomplete: of 3 ranks, rank {number} failed: " in str(error)
            assert "quota of this rank is used up" in str(error)


@pytest.mark.parametrize("number", range(N))
def test_the_others_fail_at_once_with_its_name_and_reason(bench: Bench, number: int) -> None:
    async def main() -> list[object]:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            errors = await one_fails(bench, engines, number)
            assert now() < PROMPT_SECONDS
            assert await all_report(bench, engines, "next") == ["checkpoint_000001"] * N
            return errors

    check_told(run_virtual(main()), number)
    assert not bench.keys(f"checkpoint_000000/{MANIFEST}")
    assert [item.name for item in record(bench).checkpoints] == ["checkpoint_000001"]


def test_an_unstorable_name_on_one_rank_fails_all_ranks_promptly(bench: Bench) -> None:
    async def main() -> list[object]:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            sources = [shard(bench, n) for n in range(N)]
            (sources[2] / os.fsdecode(b"\xff")).write_bytes(b"")
            errors = await together(*(e.trial("t").report({}, sources[n], step=0) for n, e in enumerate(engines)))
            assert now() < PROMPT_SECONDS
            assert await all_report(bench, engines, "next") == ["checkpoint_000001"] * N
            return errors

    for number, error in enumerate(run_virtual(main())):
        assert isinstance(error, CheckpointIncompleteError)
        assert ("rank 2 failed: " in str(error)) == (number != 2)
        assert "names that are not UTF-8" in str(error)


@pytest.mark.parametrize("wrong", ["empty", "gone", "changes", "vanishes"])
def test_a_checkpoint_incomplete_on_one_rank_fails_on_all(bench: Bench, wrong: str) -> None:
    """Every rank's error gives the reason."""

    async def main() -> list[object]:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            await all_report(bench, engines, "a")
            sources = [shard(bench, n, "b") for n in range(N)]
            path = sources[1] / "shard_1.pt"
            if wrong in ("empty", "gone"):
                path.unlink()
            if wrong == "gone":
                sources[1].rmdir()
            change = {"changes": lambda: path.write_bytes(b"other" * 100), "vanishes": path.unlink}
            if wrong in change:
                key = "rank-00000-of-00003.json"  # when another rank's part has been sent
                hang = bench.faults.hang(key="checkpoint_000001/shard_1", operation="put")
                bench.faults.hook(
                    1, lambda: (change[wrong](), hang.release.set()), key=key, operation="put", after=True
                )
            began = now()
            errors = await together(*(e.trial("t").report({}, sources[n], step=40) for n, e in enumerate(engines)))
            assert now() - began < PROMPT_SECONDS
            assert len(set(await all_report(bench, engines, "next"))) == 1
            return errors

    for number, error in enumerate(run_virtual(main())):
        assert isinstance(error, AsyncsyncError)
        assert ("rank 1 failed: " in str(error)) == (number != 1)
        assert "shard1b" in str(error)
    assert len(record(bench).checkpoints) == 2


def test_a_rank_with_a_slow_upload_reports_the_failure(bench: Bench) -> None:
    async def main() -> list[object]:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack, sync=SyncConfig(sync_timeout=50))
            bench.faults.hang(key="shard_1", operation="put", times=None)
            errors = await together(*(share(bench, e, n) for n, e in enumerate(engines)))
            assert now() == pytest.approx(50, abs=PROMPT_SECONDS)
            return errors

    first, second, third = run_virtual(main())
    assert isinstance(second, SyncTimeoutError)
    for error in (first, third):
        assert "rank 1 failed: " in str(error)
        assert "sync_timeout=50 s" in str(error)


def test_a_late_rank_fails_at_once_and_does_not_complete_it(bench: Bench) -> None:
    async def main() -> list[object]:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            errors = await one_fails(bench, engines[:2])
            await asyncio.sleep(300)
            began = now()
            errors += await together(share(bench, engines[2], 2))
            assert now() - began < PROMPT_SECONDS
            return errors

    check_told(run_virtual(main()))
    assert len(bench.keys("-of-00003.json")) == 2  # of the ranks that sent theirs
    assert not bench.keys(f"checkpoint_000000/{MANIFEST}")


def test_all_that_gave_up_say_why_in_the_words_of_the_first(bench: Bench) -> None:
    """So it stays given up when the one that failed comes back and sends its part after all."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await one_fails(bench, await world(bench, stack))

    run_virtual(main())
    said = words(bench)
    assert sorted(said) == [0, 1, 2]
    assert {word.reason for word in said.values()} == {said[1].reason}


def test_a_rank_that_cannot_tell_is_named_after_the_time_out(bench: Bench) -> None:
    async def main() -> list[object]:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack, keep=CheckpointConfig(commit_timeout=100))
            bench.faults.fail(error=AccessDeniedError("no more"), key="rank-00001-of-00003.failed", times=None)
            errors = await one_fails(bench, engines)
            assert now() == pytest.approx(100, abs=1)
            return errors

    first, second, third = run_virtual(main())
    assert isinstance(second, SyncFailedError)
    for error in (first, third):
        assert "rank(s) 1 did not send their part of step 0 within commit_timeout=100 s" in str(error)


# coming back


async def died_of_a_failure(bench: Bench, engines: list[SyncEngine]) -> None:
    """One checkpoint is complete; all ranks gave up the next because of rank 1; then the job is killed."""
    await all_report(bench, engines, "a")
    bench.faults.fail(error=AccessDeniedError("quota"), key="checkpoint_000001/shard_1", operation="put")
    await together(*(share(bench, engine, n, "lost") for n, engine in enumerate(engines)))
    assert sorted(words(bench, "checkpoint_000001")) == [0, 1, 2]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("delay", [0.0, 30.0])
def test_a_failure_of_an_earlier_generation_does_not_count(bench: Bench, order: tuple[int, ...], delay: float) -> None:
    names: dict[int, str] = {}

    async def one(number: int, wait: float) -> None:
        await asyncio.sleep(wait)
        async with rank(bench, number, machine="new", resume=True) as engine:
            names[number] = (await share(bench, engine, number, "new")).checkpoint.name

    async def main() -> None:
        await killed(bench, lambda engines: died_of_a_failure(bench, engines))
        async with asyncio.TaskGroup() as group:
            for place, number in enumerate(order):
                group.create_task(one(number, delay * place))

    run_virtual(main())
    assert len(set(names.values())) == 1
    check_shards(bench, names[0], "new")


def test_a_rank_without_rank_0_leaves_nothing_for_the_first_generation(bench: Bench) -> None:
    """A rank that waited in vain for rank 0 writes no failure that the first generation would read."""

    async def main() -> None:
        keep = CheckpointConfig(commit_timeout=100)
        async with rank(bench, 1, keep=keep) as one, rank(bench, 2, keep=keep) as two:
            errors = await together(*(share(bench, e, n) for n, e in ((1, one), (2, two))))
            assert ["rank(s) 0 did not send" in str(error) for error in errors] == [True, True]
        async with AsyncExitStack() as stack:
            assert await all_report(bench, await world(bench, stack, resume=True), "b") == ["checkpoint_000000"] * N

    run_virtual(main())
    check_shards(bench, "checkpoint_000000", "b")


def test_a_failed_rank_returns_before_the_others_have_looked(bench: Bench) -> None:
    """The failure record of its earlier process is void: the others find its part."""

    async def main() -> None:
        async with rank(bench, 0) as zero, rank(bench, 2) as two:
            with pytest.raises(KilledError):
                async with rank(bench, 1, exit_grace=0.001) as lost:
                    await all_report(bench, [zero, lost, two], "a")
                    bench.faults.fail(error=AccessDeniedError("quota"), key="shard_1", operation="put")
                    with pytest.raises(SyncFailedError):
                        await share(bench, lost, 1, "b")
                    raise KilledError
            assert sorted(words(bench, "checkpoint_000001")) == [1]
            async with rank(bench, 1, machine="new", resume=True) as one:
                found = await share(bench, one, 1, "b", upload=UploadMode.ASYNC)
                await asyncio.sleep(60)
                await together(*(share(bench, e, n, "b") for n, e in ((0, zero), (2, two))))
                await found.checkpoint.durable()

    run_virtual(main())
    check_shards(bench, "checkpoint_000001", "b")


def test_a_failed_rank_returns_after_the_others_gave_up(bench: Bench) -> None:
    """It resumes from the newest complete checkpoint, loses this step, and is in step again with the next one."""

    async def main() -> None:
        async with rank(bench, 0) as zero, rank(bench, 2) as two:
            with pytest.raises(KilledError):
                async with rank(bench, 1, exit_grace=0.001) as lost:
                    await died_of_a_failure(bench, [zero, lost, two])
                    raise KilledError
            keep = CheckpointConfig(commit_timeout=100)
            async with rank(bench, 1, machine="new", resume=True, keep=keep) as one:
                with pytest.raises(CheckpointIncompleteError, match=r"rank 1 failed: .*quota"):
                    await share(bench, one, 1, "lost")
                assert await all_report(bench, [zero, one, two], "c") == ["checkpoint_000002"] * N

    run_virtual(main())
    check_shards(bench, "checkpoint_000002", "c")
    assert "checkpoint_000001" not in {item.name for item in record(bench).checkpoints}
    assert not bench.keys(f"checkpoint_000001/{MANIFEST}")
    assert sorted(manifest(bench, "checkpoint_000000").files) == ["shard_0.pt", "shard_1.pt", "shard_2.pt"]
