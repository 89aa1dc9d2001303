"""An upload that makes progress is kept: after an interruption this process or the next one resumes it."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from machines import Machine, names, stored, told
from onebench import Bench
from stored import check_complete

from asyncsync import Checkpoint, SyncConfig, SyncEngine, TransferConfig, UploadMode
from asyncsync.disk.journal import Journal, PendingCheckpoint
from asyncsync.errors import AsyncsyncError, SyncTimeoutError
from asyncsync.stores.guard import fenced
from asyncsync.testing import run_virtual
from asyncsync.testing.memory import Request

T = TypeVar("T")
MIB = 1 << 20
PARTS = TransferConfig(multipart_threshold=5 * MIB, part_size=5 * MIB, max_concurrency=1)
QUICK = SyncConfig(sync_period=100_000, sync_timeout=50)
SECONDS = 12.0
"""That a part takes: four are done within the time-out."""
SIZE = 50 * MIB + 11
COUNT = 11


class Slow(Machine):
    """Each part takes ``seconds``."""

    def __init__(self, bench: Bench, name: str = "one", seconds: float = SECONDS) -> None:
        super().__init__(bench, name)
        self.seconds, inner = seconds, self.network.run

        async def run(request: Request, call: Callable[[], Awaitable[T]]) -> T:
            if request.operation == "put_part":
                await asyncio.sleep(self.seconds)
            return await inner(request, call)

        self.network.run = run  # type: ignore[method-assign]

    @property
    def parts(self) -> int:
        """How many were sent to the end."""
        return self.network.count("put_part")

    async def pending(self) -> list[PendingCheckpoint]:
        async with Journal.open(self.home / "state" / "journal.sqlite3") as journal:
            return await journal.pending_checkpoints("memory://b/exp")


@pytest.fixture(autouse=True)
def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that sends a part in pieces has its lease kept in between; these parts take their time in one piece."""
    monkeypatch.setattr(fenced, "LEASE_SECONDS", float("inf"))


@pytest.fixture
def big(bench: Bench) -> Path:
    bench.transfer = PARTS
    return bench.checkpoint("big", weights=random.Random(7).randbytes(SIZE), config=b"small")


async def again(engine: SyncEngine, directory: Path, tries: int = 1, **options: Any) -> object:
    """Report it until it is durable, at most so many times; returns the last result."""
    end: object = None
    for _ in range(tries):
        end = await told(engine.trial("t").report({"loss": 1}, directory, **options))
        if not isinstance(end, SyncTimeoutError):
            break
    return end


def see_that_it_is_there(bench: Bench, big: Path, name: str = "checkpoint_000000") -> None:
    check_complete(bench.store.contents)
    assert name in names(bench)
    assert stored(bench, f"t/{name}/")["weights"] == (big / "weights").read_bytes()
    assert bench.store.bucket.uploads == {}


def test_a_report_of_the_same_directory_resumes_inside_the_file(bench: Bench, big: Path) -> None:
    async def main() -> None:
        one = Slow(bench)
        async with one.engine(QUICK, resume=False) as engine:
            first = await again(engine, big)
            assert isinstance(first, SyncTimeoutError)
            assert "report the same unchanged directory again" in "".join(getattr(first, "__notes__", []))
            assert one.parts == 4
            end = await again(engine, big, 5)
            assert not isinstance(end, AsyncsyncError), end
            assert one.parts == COUNT
            lines = [json.loads(line) for line in (engine.trial("t").dir / "result.json").read_text().splitlines()]
            assert {line["checkpoint_dir_name"] for line in lines} == {"checkpoint_000000"}
            assert [line["training_iteration"] for line in lines] == list(range(1, len(lines) + 1))
        see_that_it_is_there(bench, big)
        assert await one.pending() == []

    run_virtual(main())


@pytest.mark.parametrize("end", ["killed", "left by an error"])
def test_the_next_process_resumes_inside_the_file(bench: Bench, big: Path, end: str) -> None:
    async def main() -> None:
        one = Slow(bench)
        if end == "killed":
            async with one.killed(QUICK, resume=False) as engine:
                assert isinstance(await again(engine, big), SyncTimeoutError)
        else:
            with pytest.raises(ZeroDivisionError):
                async with one.engine(QUICK, resume=False) as engine:
                    assert isinstance(await again(engine, big), SyncTimeoutError)
                    raise ZeroDivisionError
        assert len(await one.pending()) == 1
        for _ in range(5):
            try:
                async with one.engine(QUICK) as engine:
                    result = await again(engine, big)
                    if not isinstance(result, AsyncsyncError):
                        break
                    raise ZeroDivisionError
            except ZeroDivisionError:
                continue
        assert one.parts == COUNT
        see_that_it_is_there(bench, big)
        assert await one.pending() == []

    run_virtual(main())


@pytest.mark.parametrize("what", ["another directory", "changed"])
@pytest.mark.parametrize("where", ["this process", "the next process"])
def test_a_changed_directory_gives_up_its_upload_completely(bench: Bench, big: Path, what: str, where: str) -> None:
    async def main() -> None:
        one = Slow(bench)

        async def other(engine: SyncEngine) -> None:
            if what == "changed":
                (big / "weights").write_bytes(b"short now")
            else:
                bench.checkpoint("small", weights=b"short now")
            directory = big if what == "changed" else bench.tmp_path / "small"
            assert not isinstance(end := await again(engine, directory), AsyncsyncError), end
            await asyncio.sleep(5)
            await engine.trial("t").sync()
            await asyncio.sleep(5)

        if where == "this process":
            async with one.engine(QUICK, resume=False) as engine:
                assert isinstance(await again(engine, big), SyncTimeoutError)
                await other(engine)
        else:
            async with one.killed(QUICK, resume=False) as engine:
                assert isinstance(await again(engine, big), SyncTimeoutError)
            async with one.engine(QUICK) as engine:
                await other(engine)
        assert names(bench) == ["checkpoint_000001"]
        assert stored(bench, "t/checkpoint_000001/")["weights"] == b"short now"
        assert not [key for key in bench.keys() if "checkpoint_000000" in key]
        assert bench.store.bucket.uploads == {}
        assert await one.pending() == []

    run_virtual(main())


@pytest.mark.parametrize("owned", [True, False])
def test_a_call_that_nobody_waits_for_continues_by_itself(bench: Bench, big: Path, owned: bool) -> None:
    data = (big / "weights").read_bytes()

    async def main() -> None:
        one = Slow(bench)
        async with one.engine(QUICK, resume=False) as engine:
            source = Checkpoint.take(big) if owned else Checkpoint.lend(big)
            report = await engine.trial("t").report({}, source, upload=UploadMode.ASYNC)
            assert report.checkpoint is not None
            await report.checkpoint.durable()
            assert one.parts == COUNT
        assert stored(bench, "t/checkpoint_000000/")["weights"] == data
        assert bench.store.bucket.uploads == {}
        assert await one.pending() == []

    run_virtual(main())


def test_an_attempt_in_which_no_byte_moved_fails(bench: Bench, big: Path) -> None:
    async def main() -> None:
        one = Slow(bench, seconds=10_000)
        async with one.engine(QUICK, resume=False) as engine:
            (big / "config").unlink()
            report = await engine.trial("t").report({}, big, upload=UploadMode.ASYNC)
            assert report.checkpoint is not None
            with pytest.raises(SyncTimeoutError):
                await report.checkpoint.durable()
            assert asyncio.get_running_loop().time() < 2 * 50
        assert bench.store.bucket.uploads == {}
        assert await one.pending() == []

    run_virtual(main())


@pytest.mark.parametrize("mode", list(UploadMode)[:2])
def test_a_record_that_takes_too_long_costs_nothing_that_was_sent(bench: Bench, big: Path, mode: UploadMode) -> None:
    """Every byte moved in that attempt, though none was on its way when it ended."""

    async def main() -> None:
        one = Slow(bench, seconds=0.0)
        async with one.engine(QUICK, resume=False) as engine:
            await engine.trial("t").sync()
            one.network.hang(operation="put", key="trial.json")
            report = await told(engine.trial("t").report({}, big, upload=mode))
            if mode is UploadMode.SYNC:
                assert isinstance(report, SyncTimeoutError)
                report = await engine.trial("t").report({}, big)
            assert not isinstance(report, AsyncsyncError)
            assert report.checkpoint is not None
            await report.checkpoint.durable()
            assert report.checkpoint.name == "checkpoint_000000"
            assert one.parts == COUNT
        see_that_it_is_there(bench, big)

    run_virtual(main())


def test_leaving_normally_gives_it_up(bench: Bench, big: Path) -> None:
    async def main() -> None:
        one = Slow(bench)
        async with one.engine(QUICK, resume=False) as engine:
            assert isinstance(await again(engine, big), SyncTimeoutError)
        assert bench.store.bucket.uploads == {}
        assert not [key for key in bench.keys() if "checkpoint_000000" in key]
        assert await one.pending() == []

    run_virtual(main())


def test_of_two_that_are_cut_short_at_once_none_leaves_anything(bench: Bench, big: Path) -> None:
    """Two tasks report to one trial; only one upload can be resumed."""
    second = bench.checkpoint("second", weights=random.Random(8).randbytes(SIZE))

    async def main() -> None:
        one = Slow(bench)
        async with one.engine(QUICK, resume=False) as engine:
            ends = await asyncio.gather(again(engine, big), again(engine, second))
            assert all(isinstance(end, SyncTimeoutError) for end in ends)
            end = await again(engine, second, 5)
            assert not isinstance(end, AsyncsyncError), end
            await asyncio.sleep(5)
            await engine.trial("t").sync()
            await asyncio.sleep(5)
        assert [name.split("/")[1] for name in bench.keys("weights")] == names(bench)
        assert bench.store.bucket.uploads == {}
        assert await one.pending() == []

    run_virtual(main())


def test_parts_that_are_done_are_kept_when_less_is_sent_at_once(bench: Bench) -> None:
    """After an attempt in which no part was completed, parts become smaller. An upload that has parts keeps its part
    size, and the next process resumes it unchanged.
    """
    bench.transfer = TransferConfig(multipart_threshold=5 * MIB, part_size=10 * MIB, max_concurrency=1)
    big = bench.checkpoint("big", weights=random.Random(7).randbytes(40 * MIB))

    async def main() -> None:
        one = Slow(bench, seconds=30)
        async with one.killed(QUICK, resume=False) as engine:
            await engine.trial("t").sync()
            assert isinstance(await again(engine, big), SyncTimeoutError)  # one part of 10 MiB is done
            (job,) = [engine.trial("t")._state._suspended]
            assert job is not None
            assert job.tree is not None
            job.tree.send_less_at_once()
            one.seconds = 5
            assert not isinstance(end := await again(engine, big), AsyncsyncError), end
            assert one.parts == 4
        see_that_it_is_there(bench, big)

    run_virtual(main())


def test_the_next_process_resumes_in_parts_of_the_size_that_was_begun(bench: Bench) -> None:
    """The last one may have made them smaller, or the settings were other ones."""
    big = bench.checkpoint("big", weights=random.Random(7).randbytes(40 * MIB))

    async def main() -> None:
        one = Slow(bench, seconds=15)
        bench.transfer = TransferConfig(multipart_threshold=5 * MIB, part_size=5 * MIB, max_concurrency=1)
        async with one.killed(QUICK, resume=False) as engine:
            assert isinstance(await again(engine, big), SyncTimeoutError)
        bench.transfer = TransferConfig(multipart_threshold=5 * MIB, part_size=10 * MIB, max_concurrency=1)
        one.seconds = 5
        async with one.engine(QUICK) as engine:
            assert not isinstance(end := await again(engine, big), AsyncsyncError), end
        assert one.parts == 8
        see_that_it_is_there(bench, big)

    run_virtual(main())
