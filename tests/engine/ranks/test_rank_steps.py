"""Ranks commit a checkpoint only if all report the same step; otherwise every rank learns the steps of the others."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest
from machines import record
from onebench import Bench
from rankbench import KilledError, N, manifest, now, rank, shard_of_step, share_step, together, world

from asyncsync import CheckpointConfig, ConfigError, SyncConfig, SyncEngine, UploadMode
from asyncsync.errors import AccessDeniedError, CheckpointIncompleteError, IntegrityError, SyncTimeoutError
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.planning.rank_agreement import OUTCOME, failure_name, part_name
from asyncsync.sync.records.model import FailureRecord, OutcomeRecord
from asyncsync.testing import run_virtual

PROMPT_SECONDS = 8.0
"""Virtual seconds: the longest pause between two polls, and the requests."""


async def at_steps(bench: Bench, engines: Sequence[SyncEngine], *steps: int) -> list[object]:
    """Every rank reports at its given step; returns the result of each."""
    return await together(*(share_step(bench, engines[n], n, step) for n, step in enumerate(steps)))


def check_durable(bench: Bench, reports: Sequence[object], step: int) -> str:
    """All have it under one name, and it is of this step."""
    (name,) = {report.checkpoint.name for report in reports}
    assert manifest(bench, name).info["step"] == step
    for number in range(N):
        assert bench.store.contents[f"t/{name}/shard_{number}"] == b"%d %d" % (number, step)
    assert record(bench).checkpoints[-1].name == name
    return name


# Steps of reports


def test_ranks_need_a_step_and_record_nothing_without_one(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            for number, engine in enumerate(engines):
                with pytest.raises(ConfigError, match="counting reports cannot notice"):
                    await engine.trial("t").report({}, shard_of_step(bench, number, 1))
            await engines[0].trial("t").report({"loss": 1})  # without a checkpoint there is nothing to match
            check_durable(bench, await at_steps(bench, engines, 5, 5, 5), 5)

    run_virtual(main())
    assert [item.name for item in record(bench).checkpoints] == ["checkpoint_000000"]
    assert len(bench.store.contents["t/result.json"].splitlines()) == 2


@pytest.mark.parametrize("step", [-1, True, 1.0, "1", b"1"])
def test_a_step_is_a_whole_number_from_0_on(bench: Bench, step: object) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            with pytest.raises(ConfigError, match="step="):
                await engine.trial("t").report({}, shard_of_step(bench, 0, 0), step=step)
            with pytest.raises(ConfigError, match="step="):
                await engine.trial("t").skip(step, "no reason")

    run_virtual(main())


def test_a_number_of_another_library_is_a_step(bench: Bench) -> None:
    class Int64:
        def __index__(self) -> int:
            return 7

    async def main() -> None:
        async with bench.engine() as engine:
            await engine.trial("t").report({}, shard_of_step(bench, 0, 0), step=Int64())

    run_virtual(main())
    assert manifest(bench, "checkpoint_000000").info["step"] == 7


# steps that differ


@pytest.mark.parametrize("who", range(N))
@pytest.mark.parametrize("late", [0.0, 30.0, 1000.0])
def test_a_step_that_one_rank_skipped_fails_and_the_next_succeeds(bench: Bench, who: int, late: float) -> None:
    async def main() -> None:
        keep = CheckpointConfig(commit_timeout=500)
        others = [n for n in range(N) if n != who]
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack, keep=keep)
            check_durable(bench, await at_steps(bench, engines, 90, 90, 90), 90)
            began = now()
            skipped = asyncio.gather(*(share_step(bench, engines[n], n, 100) for n in others), return_exceptions=True)
            await asyncio.sleep(late)
            ahead = asyncio.create_task(share_step(bench, engines[who], who, 110))
            for error in await skipped:
                assert isinstance(error, CheckpointIncompleteError)
                if late < 500:
                    told = {f"step {step}": str(error).index(f"step {step}") for step in (100, 110)}
                    assert len(told) == 2
                    assert f"rank {who}" in str(error)
                    assert now() - began < late + PROMPT_SECONDS
                else:
                    assert f"rank(s) {who} did not send" in str(error)
            reports = [*await together(*(share_step(bench, engines[n], n, 110) for n in others)), await ahead]
            check_durable(bench, reports, 110)
            check_durable(bench, await at_steps(bench, engines, 120, 120, 120), 120)

    run_virtual(main())
    assert len(record(bench).checkpoints) == 3


@pytest.mark.parametrize("who", range(N))
def test_a_step_that_only_one_rank_reports_fails_only_there(bench: Bench, who: int) -> None:
    async def main() -> None:
        others = [n for n in range(N) if n != who]
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            check_durable(bench, await at_steps(bench, engines, 100, 100, 100), 100)
            alone = asyncio.create_task(share_step(bench, engines[who], who, 105))
            await asyncio.sleep(60)
            began = now()
            at_110 = [asyncio.create_task(share_step(bench, engines[n], n, 110)) for n in others]
            with pytest.raises(CheckpointIncompleteError, match=rf"rank {who}.* step 105") as raised:
                await alone
            assert "110" in str(raised.value)
            reports = [await share_step(bench, engines[who], who, 110), *[await task for task in at_110]]
            assert now() - began < 4 * PROMPT_SECONDS
            check_durable(bench, reports, 110)

    run_virtual(main())


def test_ranks_that_count_from_different_numbers_raise_at_every_step(bench: Bench) -> None:
    async def main() -> list[list[object]]:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack, keep=CheckpointConfig(commit_timeout=100))

            async def train(number: int, *steps: int) -> list[object]:
                return [(await together(share_step(bench, engines[number], number, step)))[0] for step in steps]

            return await asyncio.gather(train(0, 100, 110, 120), train(1, 100, 110, 120), train(2, 101, 111, 121))

    for number, errors in enumerate(run_virtual(main())):
        for place, error in enumerate(errors):
            assert isinstance(error, CheckpointIncompleteError)
            if (number, place) == (2, 2):  # nobody comes after it, or before
                assert "rank(s) 0, 1 did not send" in str(error)
            else:
                assert f"step {100 + 10 * place + number // 2}" in str(error)
                assert "rank 2" in str(error)
    assert not [key for key in bench.keys(MANIFEST) if "checkpoint_" in key]


def test_steps_may_go_back_where_all_ranks_do(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            for step in (100, 50, 50, 0):
                check_durable(bench, await at_steps(bench, engines, step, step, step), step)

    run_virtual(main())


def test_queued_checkpoints_are_renumbered_with_the_one_before_them(bench: Bench) -> None:
    async def main() -> None:
        keep = CheckpointConfig(max_pending_checkpoints=3)
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack, keep=keep)
            plans = [(10, 20, 30), (10, 20, 30), (5, 10, 20, 30)]
            handles: dict[int, dict[int, object]] = {}
            async with asyncio.TaskGroup() as group:

                async def train(number: int) -> None:
                    for step in plans[number]:
                        report = await share_step(bench, engines[number], number, step, upload=UploadMode.ASYNC)
                        handles.setdefault(step, {})[number] = report.checkpoint
                        report.checkpoint.error_raised = True

                for number in range(N):
                    group.create_task(train(number))
            for step in (10, 20, 30):
                await asyncio.gather(*(handle.durable() for handle in handles[step].values()))
                (name,) = {handle.name for handle in handles[step].values()}
                assert manifest(bench, name).info["step"] == step
            with pytest.raises(CheckpointIncompleteError):
                await handles[5][2].durable()

    run_virtual(main())
    numbers = [item.number for item in record(bench).checkpoints]
    assert numbers == sorted(numbers)
    assert len(numbers) == 3


# records


def test_records_of_ranks_say_their_step_and_generation(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            await at_steps(bench, engines, 7, 7, 7)
            ahead = asyncio.create_task(share_step(bench, engines[2], 2, 9))
            await at_steps(bench, engines[:2], 8, 8)
            check_durable(bench, [*await at_steps(bench, engines[:2], 9, 9), await ahead], 9)

    run_virtual(main())
    contents = bench.store.contents
    for number in range(N):
        part = Manifest.from_bytes(contents[f"t/checkpoint_000000/{part_name(number, N)}"])
        assert (part.info["step"], part.info["generation"]) == (7, 1)
        word = FailureRecord.from_bytes(contents[f"t/checkpoint_000001/{failure_name(number, N)}"])
        assert (word.rank, word.step, word.generation) == (number, 8, 1)
    assert OutcomeRecord.from_bytes(contents[f"t/checkpoint_000000/{OUTCOME}"]) == OutcomeRecord(
        -1, 1, 7, True, nonce=part.info["nonce"]
    )
    lost = OutcomeRecord.from_bytes(contents[f"t/checkpoint_000001/{OUTCOME}"])
    assert (lost.step, lost.committed) == (8, False)
    assert "rank 2" in lost.reason


@pytest.mark.parametrize("key", [OUTCOME, failure_name(1, N)])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"format":1,"kind":"outcome"}'])
def test_a_damaged_record_of_ranks_is_named(bench: Bench, key: str, data: bytes) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            await engines[0].trial("t").sync()
            await bench.store.put(f"t/checkpoint_000000/{key}", data)
            for error in await at_steps(bench, engines, 1, 1, 1):
                assert isinstance(
                    error, IntegrityError | CheckpointIncompleteError
                )  # found by itself, or read from the store
                assert key in str(error)
            check_durable(bench, await at_steps(bench, engines, 2, 2, 2), 2)

    run_virtual(main())


@pytest.mark.parametrize("who", range(N))
def test_no_request_comes_before_the_first_byte_of_a_checkpoint(bench: Bench, who: int) -> None:
    """One small request in addition to parts and manifest decides the outcome."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            await at_steps(bench, engines, 1, 1, 1)
            bench.faults.requests.clear()
            reports = {who: await share_step(bench, engines[who], who, 2, upload=UploadMode.ASYNC)}
            await asyncio.sleep(10)
            for number in set(range(N)) - {who}:
                reports[number] = await share_step(bench, engines[number], number, 2, upload=UploadMode.ASYNC)
                await asyncio.sleep(10)
            await asyncio.gather(*(report.checkpoint.durable() for report in reports.values()))

    run_virtual(main())
    asked = [item for item in bench.faults.requests if "checkpoint_000001" in item.key]
    first = asked[0]
    assert (first.operation, first.key) == ("put", f"t/checkpoint_000001/shard_{who}")
    assert bench.puts("checkpoint_000001/.asyncsync/") == N + 2


# a part that lands late


def test_a_part_that_lands_after_its_rank_gave_up_completes_nothing(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack, sync=SyncConfig(sync_timeout=50))
            part = f"t/checkpoint_000000/{part_name(1, N)}"
            bench.faults.hang(key=part, operation="put")
            first, second, third = await at_steps(bench, engines, 1, 1, 1)
            assert isinstance(second, SyncTimeoutError)
            for error in (first, third):
                assert "rank 1 failed: " in str(error)
            other = Manifest.from_bytes(bench.store.contents[f"t/checkpoint_000000/{part_name(0, N)}"])
            await bench.store.put(part, Manifest({}, other.info | {"rank": 1}).to_bytes())
            check_durable(bench, await at_steps(bench, engines, 2, 2, 2), 2)
            await asyncio.sleep(1000)

    run_virtual(main())
    assert not bench.keys(f"checkpoint_000000/{MANIFEST}")


async def two_waits_for_one(bench: Bench, engines: Sequence[SyncEngine]) -> list[object]:
    """The part of rank 1 has not landed yet; the handles of ranks 0 and 1."""
    hang = bench.faults.hang(key=f"checkpoint_000000/{part_name(1, N)}", operation="put")
    handles = [
        (await share_step(bench, engine, number, 20, upload=UploadMode.ASYNC)).checkpoint
        for number, engine in enumerate(engines)
    ]
    await asyncio.sleep(20)
    asyncio.get_running_loop().call_later(60, hang.release.set)
    return handles[:2]


def test_a_rank_back_behind_its_part_loses_only_steps_nobody_awaits(bench: Bench) -> None:
    """It had sent step 20, for which they wait, and comes to it once more."""

    async def main() -> None:
        async with rank(bench, 0) as zero, rank(bench, 1) as one:
            with pytest.raises(KilledError):
                async with rank(bench, 2, exit_grace=0.001) as two:
                    waiting = await two_waits_for_one(bench, (zero, one, two))
                    raise KilledError
            async with rank(bench, 2, machine="new", resume=True) as two:
                told = "rank 2 reported step 20 before it was started again, and step 10 now"
                with pytest.raises(CheckpointIncompleteError, match=told):
                    await share_step(bench, two, 2, 10)
                report = await share_step(bench, two, 2, 20)
                for handle in waiting:
                    await handle.durable()
                    assert handle.name == report.checkpoint.name
                check_durable(bench, [report], 20)

    run_virtual(main())


def test_a_rank_back_ahead_of_its_part_does_not_confirm_it(bench: Bench) -> None:
    async def main() -> None:
        async with rank(bench, 0) as zero, rank(bench, 1) as one:
            with pytest.raises(KilledError):
                async with rank(bench, 2, exit_grace=0.001) as two:
                    waiting = await two_waits_for_one(bench, (zero, one, two))
                    raise KilledError
            async with rank(bench, 2, machine="new", resume=True) as two:
                ahead = asyncio.create_task(share_step(bench, two, 2, 30))
                for handle in waiting:
                    with pytest.raises(CheckpointIncompleteError, match=r"reported step 20 .* and step 30 now"):
                        await handle.durable()
                check_durable(bench, [*await at_steps(bench, (zero, one), 30, 30), await ahead], 30)

    run_virtual(main())


def test_files_of_a_rank_that_died_do_not_interfere(bench: Bench) -> None:
    """It comes to the step again with other bytes, as training does that is not repeated bit for bit."""

    async def main() -> None:
        async with rank(bench, 0) as zero, rank(bench, 1) as one:
            with pytest.raises(KilledError):
                async with rank(bench, 2, exit_grace=0.001) as two:
                    hang = bench.faults.hang(key=part_name(2, N), operation="put")
                    ours = bench.checkpoint("other", shard_2=b"other")
                    await two.trial("t").report({}, ours, step=1, upload=UploadMode.ASYNC)
                    waiting = [
                        await share_step(bench, e, n, 1, upload=UploadMode.ASYNC) for n, e in ((0, zero), (1, one))
                    ]
                    await hang.reached.wait()
                    raise KilledError
            assert bench.store.contents["t/checkpoint_000000/shard_2"] == b"other"
            async with rank(bench, 2, machine="new", resume=True) as two:
                reports = [await share_step(bench, two, 2, 1), *waiting]
                for report in reports:
                    await report.checkpoint.durable()
                check_durable(bench, reports, 1)

    run_virtual(main())
    assert bench.store.contents["t/checkpoint_000000/shard_2"] == b"other"


# giving a step up


@pytest.mark.parametrize("who", range(N))
@pytest.mark.parametrize("first", [True, False])
def test_a_step_that_a_rank_gives_up_fails_for_the_others_with_its_reason(bench: Bench, who: int, first: bool) -> None:
    """It may give the step up before the others report it, or while they wait."""

    async def main() -> None:
        others = [n for n in range(N) if n != who]
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            check_durable(bench, await at_steps(bench, engines, 1, 1, 1), 1)
            began = now()

            async def give_up() -> None:
                await asyncio.sleep(0 if first else 100)
                await engines[who].trial("t").skip(2, reason="the loss is NaN")

            async def report(number: int) -> object:
                await asyncio.sleep(100 if first else 0)
                return await share_step(bench, engines[number], number, 2)

            nothing, *errors = await together(give_up(), *(report(n) for n in others))
            assert nothing is None
            assert now() - began < 100 + PROMPT_SECONDS
            for error in errors:
                assert isinstance(error, CheckpointIncompleteError)
                assert f"rank {who} gave up step 2: the loss is NaN" in str(error)
            check_durable(bench, await at_steps(bench, engines, 3, 3, 3), 3)

    run_virtual(main())
    assert len(record(bench).checkpoints) == 2


def test_a_rank_can_give_up_a_reported_step(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            reports = [await share_step(bench, engines[n], n, 1, upload=UploadMode.ASYNC) for n in (0, 1)]
            await asyncio.sleep(100)
            began = now()
            await engines[1].trial("t").skip(1, reason="the shard is wrong")
            for report in reports:
                with pytest.raises(CheckpointIncompleteError, match="rank 1 gave up step 1: the shard is wrong"):
                    await report.checkpoint.durable()
            assert now() - began < 2 * PROMPT_SECONDS
            with pytest.raises(CheckpointIncompleteError, match="rank 1 gave up step 1"):
                await share_step(bench, engines[2], 2, 1)
            check_durable(bench, await at_steps(bench, engines, 2, 2, 2), 2)

    run_virtual(main())


def test_a_step_that_is_durable_stays_so_when_it_is_given_up(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            check_durable(bench, await at_steps(bench, engines, 1, 1, 1), 1)
            await engines[1].trial("t").skip(1, reason="too late")
            check_durable(bench, await at_steps(bench, engines, 2, 2, 2), 2)

    run_virtual(main())
    assert len(record(bench).checkpoints) == 2


def test_all_ranks_may_give_up_a_step(bench: Bench) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            assert await together(*(engine.trial("t").skip(1, "NaN") for engine in engines)) == [None] * N
            check_durable(bench, await at_steps(bench, engines, 2, 2, 2), 2)

    run_virtual(main())


def test_a_single_process_writes_no_failure_records(bench: Bench) -> None:
    async def main() -> None:
        async with bench.engine() as engine:
            await engine.trial("t").skip(1, "NaN")
            await engine.trial("t").report({}, shard_of_step(bench, 0, 2), step=2)

    run_virtual(main())
    assert [item.name for item in record(bench).checkpoints] == ["checkpoint_000000"]


def test_a_rank_that_cannot_write_its_failure_record_raises(bench: Bench) -> None:
    async def main() -> None:
        async with rank(bench, 1, keep=CheckpointConfig(commit_timeout=100)) as one:
            with pytest.raises(CheckpointIncompleteError, match="rank\\(s\\) 0 did not send"):  # it has not begun
                await one.trial("t").skip(1, "NaN")
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack, resume=True)
            await engines[0].trial("t").sync()
            bench.faults.fail(error=AccessDeniedError("no more"), key=failure_name(1, N))
            with pytest.raises(AccessDeniedError):
                await engines[1].trial("t").skip(2, "NaN")

    run_virtual(main())
