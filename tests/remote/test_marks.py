"""``pin``, ``unpin`` and ``tag`` from outside a running engine: neither loses, stops or overwrites the other."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onebench import Bench
from stored import put_trial

from asyncsync import CheckpointConfig, Experiment, Trial, pin, tag, unpin, verify
from asyncsync.errors import ConfigError, NotFoundError, UnavailableError, UnsupportedError
from asyncsync.events import CheckpointRetired
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.sync.records.model import MARKED, TrialRecord
from asyncsync.testing import MemoryStore, reset_memory

pytestmark = pytest.mark.virtual_time
KEEP_ONE = CheckpointConfig(num_to_keep=1)
FIRST = "memory://b/exp/t/checkpoint_000000"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    reset_memory()
    return Bench(tmp_path)


def record(bench: Bench) -> TrialRecord:
    return TrialRecord.from_bytes(bench.store.contents[f"t/{TRIAL_RECORD}"])


def names(bench: Bench) -> list[str]:
    return [item.name.removeprefix("checkpoint_00000") for item in record(bench).checkpoints]


async def report(bench: Bench, trial: Trial, number: int) -> None:
    await trial.report({"loss": number}, bench.checkpoint(f"c{number}", w=b"%d" % number))


async def test_a_pin_from_outside_is_kept_by_the_engine_that_runs(bench: Bench) -> None:
    async with bench.engine(keep=KEEP_ONE) as engine:
        trial = engine.trial("t")
        await report(bench, trial, 0)
        assert (await pin(FIRST)).pinned
        assert record(bench).checkpoints[0].pinned, "readers see it at once"
        for number in (1, 2):
            await report(bench, trial, number)
        assert names(bench) == ["0", "2"]
        assert not (await unpin(FIRST)).pinned
        await report(bench, trial, 3)
        assert names(bench) == ["3"]
    assert MARKED.encode() not in bench.store.contents[f"t/{TRIAL_RECORD}"]
    assert (await verify("memory://b/exp", deep=True)).ok


async def test_without_marks_no_request_is_added(bench: Bench) -> None:
    async with bench.engine(keep=KEEP_ONE) as engine:
        for number in range(3):
            await report(bench, engine.trial("t"), number)
    assert not [request for request in bench.faults.requests if request.operation == "get" and "trial" in request.key]


async def test_at_every_request_of_the_engine_a_pin_is_kept_or_refused(bench: Bench) -> None:
    """The sweep: before the n-th request of an engine that retires, another process pins. What it pinned stays with all
    its bytes; what it was refused had been retired; the engine never fails."""
    ends = set()
    for moment in range(1, 200):
        reset_memory()
        bench = Bench(bench.tmp_path / str(moment))
        bench.tmp_path.mkdir()
        hang = bench.faults.hang(moment)

        async def mark() -> str:
            await hang.reached.wait()
            other = await asyncio.gather(pin(FIRST), return_exceptions=True)
            hang.release.set()
            return "pinned" if not isinstance(other[0], BaseException) else type(other[0]).__name__

        marking = asyncio.create_task(mark())
        async with bench.engine(keep=KEEP_ONE) as engine:
            events = engine.events()
            for number in range(3):
                await report(bench, engine.trial("t"), number)
        if not hang.reached.is_set():
            marking.cancel()
            break
        end = await marking
        ends.add(end)
        assert end in ("pinned", "NotFoundError"), (moment, end)
        assert ("0" in names(bench)) == (end == "pinned"), (moment, end, names(bench))
        assert names(bench)[-1] == "2"
        told = [event.checkpoint async for event in events if isinstance(event, CheckpointRetired)]
        assert ("checkpoint_000000" in told) == (end != "pinned"), (moment, end, told)
        assert (await verify("memory://b/exp", deep=True)).ok, moment
    assert ends == {"pinned", "NotFoundError"}
    assert moment > 20


async def test_marks_that_are_set_at_once_are_all_kept(bench: Bench) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        for number in range(4):
            await report(bench, trial, number)
        calls = [tag(FIRST[:-1] + str(number), f"n{number}") for number in range(4)]
        await asyncio.gather(*calls, *(pin(FIRST) for _ in range(3)), report(bench, trial, 4))
    stored = record(bench).checkpoints
    assert [item.tags for item in stored] == [["n0"], ["n1"], ["n2"], ["n3"], []]
    assert stored[0].pinned
    assert len(stored) == 5


async def test_a_tag_moves_within_its_trial_and_keeps_its_checkpoint(bench: Bench) -> None:
    async with bench.engine(keep=CheckpointConfig(num_to_keep=2)) as engine:
        trial = engine.trial("t")
        await report(bench, trial, 0)
        await report(bench, trial, 1)
        await tag(FIRST, "best", "shown")
        assert (await tag(FIRST[:-1] + "1", "best")).tags == ["best"]
        for number in (2, 3, 4):
            await report(bench, trial, number)
        assert names(bench) == ["0", "1", "3", "4"]
        assert (await tag(FIRST, "shown", remove=True)).tags == []
        await report(bench, trial, 5)
        assert names(bench) == ["1", "4", "5"]
        with pytest.raises(ConfigError, match="tagged best"):
            await trial.retire("checkpoint_000001")
    view = (await Experiment.open("memory://b/exp")).checkpoint("t", name="checkpoint_000001")
    assert view.tags == ["best"]


async def test_the_later_of_a_pin_outside_and_an_unpin_inside_counts(bench: Bench) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        await report(bench, trial, 0)
        await pin(FIRST)
        await trial.unpin("checkpoint_000000")
        assert not record(bench).checkpoints[0].pinned
        await trial.pin("checkpoint_000000")
        await unpin(FIRST)
        await trial.sync()
    assert not record(bench).checkpoints[0].pinned


async def test_a_pin_between_two_processes_is_the_successors(bench: Bench) -> None:
    async with bench.engine(keep=KEEP_ONE) as engine:
        await report(bench, engine.trial("t"), 0)
    await pin(FIRST)
    async with bench.engine(keep=KEEP_ONE, resume=True) as engine:
        await report(bench, engine.trial("t"), 1)
        await unpin(FIRST)
        await pin(FIRST)
        await report(bench, engine.trial("t"), 2)
    assert names(bench) == ["0", "2"]


async def test_a_mark_whose_response_is_lost_is_one_mark(bench: Bench) -> None:
    async with bench.engine() as engine:
        trial = engine.trial("t")
        await report(bench, trial, 0)
        bench.faults.fail(1, UnavailableError("lost"), operation="put", key=TRIAL_RECORD, after=True)
        assert (await pin(FIRST)).pinned
        await report(bench, trial, 1)
    assert record(bench).checkpoints[0].pinned


async def test_no_two_versions_of_a_record_are_equal(bench: Bench) -> None:
    """Or a store whose ETag is a hash of the contents would not notice that somebody has written in between."""
    async with bench.engine() as engine:
        await report(bench, engine.trial("t"), 0)
    versions = [bench.store.contents[f"t/{TRIAL_RECORD}"]]
    for change in (pin, unpin, pin, unpin):
        await change(FIRST)
        versions.append(bench.store.contents[f"t/{TRIAL_RECORD}"])
    assert len(set(versions)) == 5


@pytest.mark.parametrize("uri", [FIRST[:-1] + "9", "memory://b/exp/u/checkpoint_000000", "memory://b/nowhere/x"])
async def test_what_is_no_checkpoint_is_named(bench: Bench, uri: str) -> None:
    await put_trial(bench.store, "t", {"checkpoint_000000": ({"a": b"a"}, {})})
    with pytest.raises(NotFoundError, match="checkpoint"):
        await pin(uri)


async def test_a_store_without_conditions_takes_no_mark_of_a_running_trial(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MemoryStore.__init__

    def without_conditions(store: MemoryStore, *args: Any, **options: Any) -> None:
        made(store, *args, **options)
        store.traits = replace(store.traits, conditional_writes=False)

    async with bench.engine() as engine:
        await report(bench, engine.trial("t"), 0)
        with monkeypatch.context() as patch:
            patch.setattr(MemoryStore, "__init__", without_conditions)
            with pytest.raises(UnsupportedError, match=r"trial\.pin"):
                await pin(FIRST)
    assert not record(bench).checkpoints[0].pinned


async def test_a_record_that_another_framework_writes_is_refused(bench: Bench) -> None:
    await put_trial(bench.store, "t", {"checkpoint_000000": ({"a": b"a"}, {})})
    with pytest.raises(UnsupportedError, match="promote"):
        await pin(FIRST)


@pytest.mark.parametrize("name", ["", "a/b", ".", "x" * 300])
async def test_a_tag_is_a_name(bench: Bench, name: str) -> None:
    with pytest.raises(ConfigError):
        await tag(FIRST, name)
