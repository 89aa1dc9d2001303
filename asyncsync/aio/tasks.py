"""Running several coroutines at once. They end together: with the first error, or with the cancel if there was one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from asyncsync.errors import AsyncsyncError, SyncTimeoutError

T = TypeVar("T")


async def run_all(works: Iterable[Coroutine[Any, Any, None]], name: str = "run_all") -> None:
    """Run all of ``works``. The first error cancels the rest and is raised as it is. If the caller is cancelled before
    the rest has ended, the cancel is raised instead: a task group alone would raise the error, and the cancel would be
    lost."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work, name=f"{name} {number}") for number, work in enumerate(works)]
            if tasks:  # wait in here: on leaving, CPython 3.11 counts its own cancel and never uncounts it
                await asyncio.wait(tasks)
    except BaseExceptionGroup as errors:
        if task.cancelling() > before:
            raise asyncio.CancelledError from None
        raise _first_of(errors) from None


async def results_of(calls: Sequence[Callable[[], Awaitable[T]]], name: str = "results_of") -> list[T]:
    """Make all of ``calls`` at once and wait until each has ended. The results, in order, or the error of the first one
    that failed: the others are not cancelled."""
    results: dict[int, T] = {}
    errors: dict[int, Exception] = {}

    async def make(number: int) -> None:
        try:
            results[number] = await calls[number]()
        except Exception as error:  # noqa: BLE001  # raised below
            errors[number] = error

    await run_all((make(number) for number in range(len(calls))), name)
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(calls))]


async def for_each_limited(items: Iterable[T], work: Callable[[T], Awaitable[None]], workers: int) -> None:
    """``await work(item)`` for every item, at most ``workers`` at a time; errors as in :func:`run_all`."""
    rest = iter(items)

    async def worker() -> None:
        for item in rest:
            await work(item)

    await run_all((worker() for _ in range(workers)), name="worker")


async def leave_group(group: asyncio.TaskGroup, error: BaseException | None) -> None:
    """Leave a task group that was entered by hand: wait for its tasks, and raise their errors. ``error``: of the block.
    Only a cancel is passed to the group; the caller raises any other error itself."""
    cancelled = error if isinstance(error, asyncio.CancelledError) else None
    await group.__aexit__(type(cancelled) if cancelled else None, cancelled, None)


def _first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first_of(error) if isinstance(error, BaseExceptionGroup) else error


async def within(timeout: float | None, work: Coroutine[Any, Any, T], what: Callable[[], str]) -> T:
    """Run ``work`` for at most ``timeout`` seconds; SyncTimeoutError once it has stopped."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        result = await asyncio.wait_for(work, timeout)
    except TimeoutError as error:
        if isinstance(error, AsyncsyncError):
            raise
        raise SyncTimeoutError(
            f"{what()} (sync_timeout={timeout:g} s); sent bytes are kept for the next sync"
        ) from None
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError  # wait_for can swallow a cancel that comes with the result (cpython#86296)
    return result
