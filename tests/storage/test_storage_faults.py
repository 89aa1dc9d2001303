"""A fault at every call of a store: a checkpoint is complete or does not exist, and the next push succeeds."""

from __future__ import annotations

import asyncio

import pytest

from asyncsync import (
    AccessDeniedError,
    AsyncsyncError,
    ConcurrentWriterError,
    Storage,
    UnavailableError,
    Writer,
    verify,
)

URI = "memory://b/exp"
CALLS = 14
"""More than any of these scenarios makes; a call that is never made strikes nothing."""


async def content(storage, path, target):
    if await storage.stat(path) is None:
        return None
    await storage.pull(path, target)
    return {file.name: file.read_bytes() for file in target.iterdir()}


async def push_alone(storage, bench, attempt):
    files = bench.checkpoint(attempt, shared=attempt.encode() * 100, **{attempt: b"x"})
    await storage.push_checkpoint(files, "t/c", Writer(attempt, "p"), alone=True)


async def push_as_ranks(storage, bench, attempt):
    for rank in range(2):
        files = bench.checkpoint(f"{attempt}{rank}", shared=attempt.encode() * 100, **{f"{attempt}{rank}": b"x"})
        await storage.push_checkpoint(files, "t/c", Writer(attempt, f"p{rank}", rank), alone=False)
    await storage.commit_checkpoint("t/c", attempt, {0: "p0", 1: "p1"})


def expected(push, attempt):
    names = [attempt] if push is push_alone else [f"{attempt}0", f"{attempt}1"]
    return {"shared": attempt.encode() * 100, **dict.fromkeys(names, b"x")}


@pytest.mark.parametrize("push", [push_alone, push_as_ranks])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, CALLS))
async def test_a_refused_call_leaves_no_half_checkpoint(bench, tmp_path, push, after, at):
    async with Storage(URI) as storage:
        await push(storage, bench, "first")
        bench.faults.fail(at, AccessDeniedError("no"), after=after)
        try:
            await push(storage, bench, "second")
        except AsyncsyncError:
            bench.faults.clear()
            seen = await content(storage, "t/c", tmp_path / "between")
            assert seen in (None, expected(push, "first"), expected(push, "second"))
        bench.faults.clear()
        await push(storage, bench, "third")
        assert await content(storage, "t/c", tmp_path / "after") == expected(push, "third")
        await storage.clean_up()
    assert (await verify(URI, deep=True)).ok
    assert not [key for key in bench.keys() if "first" in key or "second" in key]


@pytest.mark.virtual_time
@pytest.mark.parametrize("push", [push_alone, push_as_ranks])
@pytest.mark.parametrize("at", range(1, CALLS))
async def test_a_transient_error_is_not_seen(bench, tmp_path, push, at):
    async with Storage(URI) as storage:
        bench.faults.fail(at, UnavailableError("away"), times=3)
        await push(storage, bench, "first")
        assert await content(storage, "t/c", tmp_path / "after") == expected(push, "first")


@pytest.mark.virtual_time
@pytest.mark.parametrize("push", [push_alone, push_as_ranks])
@pytest.mark.parametrize("at", range(1, CALLS))
async def test_a_cancelled_push_leaves_no_half_checkpoint(bench, tmp_path, push, at):
    async with Storage(URI) as storage:
        hang = bench.faults.hang(at)
        task = asyncio.create_task(push(storage, bench, "first"))
        reached = asyncio.create_task(hang.reached.wait())
        await asyncio.wait([task, reached], return_when=asyncio.FIRST_COMPLETED)
        for each in (task, reached):
            each.cancel()
        await asyncio.gather(task, reached, return_exceptions=True)
        bench.faults.clear()
        seen = await content(storage, "t/c", tmp_path / "between")
        assert seen in (None, expected(push, "first"))
        await push(storage, bench, "second")
        assert await content(storage, "t/c", tmp_path / "after") == expected(push, "second")


@pytest.mark.virtual_time
@pytest.mark.parametrize("away", [15, 60])
async def test_a_store_that_is_back_is_used_within_seconds(bench, away):
    loop = asyncio.get_running_loop()
    async with Storage(URI) as storage:
        bench.faults.fail(1, UnavailableError("away"), times=None)
        began = loop.time()
        loop.call_later(away, bench.faults.clear)
        await push_alone(storage, bench, "first")
        assert away <= loop.time() - began < away + 8


@pytest.mark.virtual_time
@pytest.mark.parametrize("back_at", range(1, CALLS))
@pytest.mark.parametrize("at", range(1, 5))
async def test_a_process_taken_for_dead_spoils_nothing(bench, tmp_path, at, back_at):
    """It hangs at a call, and continues in the middle of the upload of the process that took its place. The one that
    recorded its intent last completes the checkpoint; the other one completed it before, or hears of it."""
    async with Storage(URI) as zombie, Storage(URI) as storage:
        hang = bench.faults.hang(at)
        old = asyncio.create_task(push_alone(zombie, bench, "first"))
        await hang.reached.wait()
        meanwhile = bench.faults.hang(back_at)
        new = asyncio.create_task(push_alone(storage, bench, "second"))
        reached = asyncio.create_task(meanwhile.reached.wait())
        await asyncio.wait([new, reached], return_when=asyncio.FIRST_COMPLETED)
        bench.faults.clear()
        hang.release.set()
        await asyncio.wait([old])
        meanwhile.release.set()
        await asyncio.wait([new])
        reached.cancel()
        await asyncio.wait([reached])
        written = {"first": old.exception(), "second": new.exception()}
        kept = [expected(push_alone, name) for name, error in written.items() if error is None]
        assert await content(storage, "t/c", tmp_path / "after") in kept
        assert all(isinstance(error, ConcurrentWriterError | None) for error in written.values())
