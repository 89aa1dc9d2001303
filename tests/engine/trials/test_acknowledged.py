"""An acknowledged checkpoint never changes: not by a replaced process, a late request or a lost response."""

import asyncio
import random
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from machines import Machine, names, record, stored, told
from onebench import Bench
from stored import check_complete, files_of

from asyncsync import CheckpointConfig, SyncConfig, SyncEngine, TransferConfig
from asyncsync.errors import AsyncsyncError, UnavailableError
from asyncsync.testing import reset_memory, run_virtual
from asyncsync.testing.memory import Request

MIB = 1 << 20
SPLIT = TransferConfig(multipart_threshold=5 * MIB, part_size=5 * MIB)
NEVER = SyncConfig(sync_period=100_000)
Files = dict[str, bytes]


def small(who: str, step: int) -> Files:
    return {"weights": f"{who} {step}".encode() * 50, "config": b"the same for all"}


def equal(who: str, step: int) -> Files:
    return {"weights": b"%d" % step * 100, "config": b"the same for all"}


def parts(who: str, step: int) -> Files:
    return {"weights": _random_bytes(f"{who} {step}", 5 * MIB + 10), "config": b"the same for all"}


def copied(who: str, step: int) -> Files:
    """Most of each is in an earlier one: the store copies it."""
    first = _random_bytes(who, 11 * MIB)
    return {"weights": first if step < 2 else first[: 10 * MIB] + b"%d" % step, "config": who.encode() * 100}


@cache
def _random_bytes(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Driver:
    """One of two processes that both act as the driver; it remembers its acknowledged checkpoints."""

    def __init__(self, bench: Bench, name: str, files: Callable[[str, int], Files]) -> None:
        self.machine, self.bench, self.files = Machine(bench, name), bench, files
        self.acknowledged: dict[str, dict[str, bytes]] = {}
        self.failed: list[AsyncsyncError] = []
        self.steps = count()

    async def report(self, engine: SyncEngine) -> None:
        step = next(self.steps)
        directory = self.machine.home / f"step{step}"
        directory.mkdir(parents=True)
        for name, data in self.files(self.machine.name, step).items():
            (directory / name).write_bytes(data)
        report = await told(engine.trial("t").report({"who": self.machine.name, "step": step}, directory))
        if isinstance(report, AsyncsyncError):
            self.failed.append(report)
        else:
            assert report.checkpoint is not None
            assert report.checkpoint.name not in self.acknowledged
            self.acknowledged[report.checkpoint.name] = files_of(directory)

    def check(self) -> None:
        for name, files in self.acknowledged.items():
            assert stored(self.bench, f"t/{name}/") == files, name
            assert name in names(self.bench)


async def one_alive_while_another_takes_over(
    bench: Bench, files: Callable[[str, int], Files], n: int, *, after: bool, second: bool
) -> bool:
    """Whichever request one of the two stands still at meanwhile. Whether it made so many."""
    first, heir = Driver(bench, "first", files), Driver(bench, "heir", files)
    with pytest.raises(AsyncsyncError) if not second else _whatever():
        async with first.machine.engine(NEVER, resume=False) as old:
            await first.report(old)
            await old.trial("t").sync()
            if not second:
                before, hang = first.machine.network.calls, first.machine.network.hang(n, after=after)
                report = asyncio.create_task(first.report(old))
                await asyncio.wait({report, asyncio.create_task(hang.reached.wait())}, return_when="FIRST_COMPLETED")
                hang.reached.set()
                begun = first.machine.network.calls - before >= n
                async with heir.machine.engine(NEVER) as new:
                    await heir.report(new)
                    hang.release.set()
                    await asyncio.gather(report, heir.report(new))
                    await heir.report(new)
            else:
                hang = heir.machine.network.hang(n, after=after)
                taking_over = asyncio.create_task(_run(heir))
                await asyncio.wait(
                    {taking_over, asyncio.create_task(hang.reached.wait())}, return_when="FIRST_COMPLETED"
                )
                hang.reached.set()
                begun = heir.machine.network.calls >= n
                await first.report(old)
                hang.release.set()
                await asyncio.gather(taking_over, first.report(old))
    check_complete(bench.store.contents)
    first.check()
    heir.check()
    assert bench.store.bucket.uploads == {}
    assert second or len(heir.acknowledged) == 3, heir.failed
    return begun


async def _run(driver: Driver) -> None:
    async def body() -> None:
        async with driver.machine.engine(NEVER) as engine:
            await driver.report(engine)
            await driver.report(engine)

    await told(body())


class _whatever:
    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        return isinstance(error, AsyncsyncError)


@pytest.mark.parametrize(
    ("files", "after", "second"),
    [
        (small, False, False),
        (small, True, False),
        (small, False, True),
        (equal, False, False),
        (equal, True, True),
        (parts, False, False),
        (parts, True, True),
        (copied, False, False),
    ],
)
def test_two_drivers_at_once_change_nothing_acknowledged(
    tmp_path: Path, files: Callable[[str, int], Files], after: bool, second: bool
) -> None:
    n = 0
    begun = True
    while begun:
        n += 1
        (tmp_path / str(n)).mkdir()
        reset_memory()
        bench = Bench(tmp_path / str(n))
        bench.transfer = SPLIT
        begun = run_virtual(one_alive_while_another_takes_over(bench, files, n, after=after, second=second))
    assert n > 5


# retention

KEEP = {
    "1": CheckpointConfig(num_to_keep=1),
    "2": CheckpointConfig(num_to_keep=2),
    "the best": CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="loss", checkpoint_score_order="min"),
}
LOSSES = (0.5, 0.9, 0.7, 0.3)
NOW = TransferConfig(max_attempts=1)


async def _last_report(bench: Bench, keep: CheckpointConfig, n: int, strike: str) -> bool:
    """Three reports, and a fourth whose ``n``-th request goes wrong; then the process ends, and another one resumes."""
    one, two = Machine(bench, "one"), Machine(bench, "two")
    bench.transfer = NOW
    quick = SyncConfig(sync_period=100_000, sync_timeout=20)
    async with one.killed(quick, keep, resume=False) as engine:
        trial = engine.trial("t")
        await trial.sync()
        for step, loss in enumerate(LOSSES[:-1]):
            await trial.report({"loss": loss}, bench.checkpoint(f"c{step}", weights=b"%d" % step))
            await asyncio.sleep(5)
        kept, before = names(bench), one.network.calls
        _strike(one, n, strike)
        report = await told(trial.report({"loss": LOSSES[-1]}, bench.checkpoint("last", weights=b"last")))
        await asyncio.sleep(30)
        begun = one.network.calls - before >= n
        _see_that_kept_is_there(
            bench, kept, "checkpoint_000003", keep, acknowledged=not isinstance(report, AsyncsyncError)
        )
    _see_that_kept_is_there(bench, kept, "checkpoint_000003", keep, acknowledged=not isinstance(report, AsyncsyncError))
    before_heir = names(bench)
    async with two.engine(quick, keep) as engine:
        await engine.trial("t").report({})
        await engine.trial("t").sync()
    assert set(before_heir) <= set(names(bench))
    check_complete(bench.store.contents)
    return begun


def _strike(machine: Machine, n: int, strike: str) -> None:
    if strike == "refused":
        machine.network.fail(n, UnavailableError("refused"))
    elif strike == "lost":
        machine.network.fail(n, UnavailableError("lost"), after=True)
    else:
        machine.network.hang(n, after=strike == "answer delayed")


def _see_that_kept_is_there(
    bench: Bench, kept: list[str], last: str, keep: CheckpointConfig, *, acknowledged: bool
) -> None:
    """The earlier checkpoints that retention keeps are there, and so is the last one."""
    check_complete(bench.store.contents)
    now = names(bench)
    with_last = [*kept, last]
    if keep.checkpoint_score_attribute is None:
        then = with_last[-(keep.num_to_keep or 0) :]
    else:
        then = [last]  # the best and the newest
    assert now in ([then] if acknowledged else [kept, then]), now
    for name in now:
        assert stored(bench, f"t/{name}/")


@pytest.mark.parametrize(
    ("kept", "strike"),
    [
        ("1", "refused"),
        ("1", "lost"),
        ("1", "delayed"),
        ("1", "answer delayed"),
        ("2", "lost"),
        ("the best", "lost"),
        ("the best", "answer delayed"),
    ],
)
def test_a_failed_checkpoint_does_not_affect_earlier_ones(tmp_path: Path, kept: str, strike: str) -> None:
    keep = KEEP[kept]
    n, begun = 0, True
    while begun:
        n += 1
        (tmp_path / str(n)).mkdir()
        reset_memory()
        begun = run_virtual(_last_report(Bench(tmp_path / str(n)), keep, n, strike))
    assert n > 6


@pytest.mark.parametrize("others", [1, 2])
def test_a_time_out_while_others_write_the_same_record_costs_nothing(bench: Bench, others: int) -> None:
    """The stored record names the new checkpoint and no longer the old one; then the new one is given up."""

    async def main() -> None:
        one = Machine(bench, "one")
        quick = SyncConfig(sync_period=100_000, sync_timeout=20)
        async with one.engine(quick, KEEP["1"], resume=False) as engine:
            trial = engine.trial("t")
            await trial.report({}, bench.checkpoint("a", weights=b"a"))
            await trial.sync()
            await asyncio.sleep(30)
            trial._state.touch()
            manifest = one.network.hang(operation="put", key="checkpoint_000001/.asyncsync/manifest.json", after=True)
            hangs = [one.network.hang(number + 1, operation="put", key="trial.json") for number in range(others)]
            report = asyncio.create_task(told(trial.report({}, bench.checkpoint("b", weights=b"b"))))
            await manifest.reached.wait()
            saves = [asyncio.create_task(trial._state.keeper.save())]
            await hangs[0].reached.wait()
            for _ in range(1, others):
                trial._state.touch()
                saves.append(asyncio.create_task(trial._state.keeper.save()))
                await asyncio.sleep(0)
            manifest.release.set()
            await asyncio.sleep(1)
            for hang in hangs[:-1]:
                hang.release.set()
            assert isinstance(await report, AsyncsyncError)
            hangs[-1].release.set()
            await asyncio.gather(*saves)
            await asyncio.sleep(5)
            check_complete(bench.store.contents)
            assert names(bench), record(bench)
            await trial.sync()
            assert len(names(bench)) == 1
            assert stored(bench, f"t/{names(bench)[0]}/")

    run_virtual(main())


def test_a_process_that_slept_sends_nothing_more(bench: Bench) -> None:
    """This holds for every request that was due when its lease expired; here they are due at once."""

    async def main() -> None:
        one, two = Machine(bench, "one"), Machine(bench, "two")
        loop = asyncio.get_running_loop()
        with pytest.raises(AsyncsyncError):
            async with one.engine(SyncConfig(sync_period=100_000, sync_artifacts=True), resume=False) as old:
                trial = old.trial("t")
                await trial.report({"who": "one"}, bench.checkpoint("a"))
                await old.sync()
                quiet = SyncConfig(sync_period=100_000, sync_artifacts=True, heartbeat=None)
                async with two.engine(quiet) as heir:
                    await heir.trial("t").report({"who": "two"}, bench.checkpoint("b"))
                    await heir.sync()
                    loop.advance(60)  # type: ignore[attr-defined]
                    before, asked = bench.store.contents, len(one.network.requests)
                    (trial.dir / "artifact").write_bytes(b"zombie")
                    work = [
                        trial.report({"who": "zombie"}, bench.checkpoint("c", weights=b"zombie" * 100)),
                        trial.sync(),
                        old.sync(),
                        old.trial("u").report({"who": "zombie"}, bench.checkpoint("d")),
                    ]
                    ends = await asyncio.gather(*map(told, work))
                    assert all(isinstance(end, AsyncsyncError) for end in ends)
                    assert bench.store.contents == before
                    writes = {request.operation for request in one.network.requests[asked:]}
                    assert writes <= {"head", "read", "list"}

    run_virtual(main())


def _number_of_lost_answers(
    tmp_path: Path, files: Callable[[str, int], Files], n: int
) -> tuple[bool, int, list[Request]]:
    reset_memory()
    (tmp_path / str(n)).mkdir()
    bench = Bench(tmp_path / str(n))
    bench.transfer = SPLIT

    async def main() -> tuple[bool, int, list[Request]]:
        one = Driver(bench, "one", files)
        async with one.machine.engine(NEVER, KEEP["1"], resume=False) as engine:
            await engine.trial("t").sync()
            for _ in range(2):
                await one.report(engine)
            await asyncio.sleep(10)
            calls = one.machine.network.calls
            if n:
                one.machine.network.fail(n, UnavailableError("lost"), after=True)
            await one.report(engine)
            await asyncio.sleep(10)
            asked = one.machine.network.requests[calls:]
            begun = len(asked) >= n
        assert not one.failed
        assert list(one.acknowledged) == ["checkpoint_000000", "checkpoint_000001", "checkpoint_000002"]
        assert names(bench) == ["checkpoint_000002"]
        assert stored(bench, "t/checkpoint_000002/") == one.acknowledged["checkpoint_000002"]
        assert bench.store.bucket.uploads == {}
        assert not [key for key in bench.keys() if "checkpoint_000001" in key]
        return begun, n, asked

    return run_virtual(main())


@pytest.mark.parametrize("files", [small, equal, parts, copied])
def test_a_request_whose_response_was_lost_is_recognised(tmp_path: Path, files: Callable[[str, int], Files]) -> None:
    """The same number, no upload left open, and no body but the one that was asked for again is sent twice."""
    _, _, plain = _number_of_lost_answers(tmp_path, files, 0)
    n, begun = 1, True
    while begun:
        begun, _, asked = _number_of_lost_answers(tmp_path, files, n)
        n += 1
        bodies = [request for request in asked if request.operation in ("put", "put_part", "copy", "copy_part")]
        before = [request for request in plain if request.operation in ("put", "put_part", "copy", "copy_part")]
        assert len(bodies) <= len(before) + 1, (n, bodies)
        assert len(asked) <= len(plain) + 5, (n, asked)
    assert n > 10
