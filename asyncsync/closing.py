"""Syncing many trees at once and telling what failed: for ``engine.sync()`` and for the end of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from asyncsync.checkpoints import may_pass
from asyncsync.errors import AsyncsyncError, SyncFailedError
from asyncsync.scheduler import Scheduler

AT_ONCE = 64
"""Trees that are waited for at once."""
OWN = "the experiment's own files"


async def sync_all(scheduler: Scheduler, keys: Sequence[str], *, tries: int = 1) -> dict[str, BaseException]:
    """Sync these trees; what failed for good or ``tries`` times, by name."""
    left, lasting = list(keys), dict[str, BaseException]()
    for attempt in range(tries):
        if attempt:
            await asyncio.sleep(2.0**attempt)
        failures = await _sync_these(scheduler, left)
        left = [key for key, error in failures.items() if may_pass(error)]
        lasting.update({key: error for key, error in failures.items() if not may_pass(error) or attempt == tries - 1})
        if not left:
            break
    return {key or OWN: error for key, error in lasting.items()}


async def _sync_these(scheduler: Scheduler, keys: Sequence[str]) -> dict[str, BaseException]:
    failures: dict[str, BaseException] = {}
    left = list(reversed(keys))

    async def one_after_the_other() -> None:
        while left:
            key = left.pop()
            try:
                await scheduler.sync(key)
            except (AsyncsyncError, OSError) as error:
                failures[key] = error

    async with asyncio.TaskGroup() as group:
        for index in range(min(len(keys), AT_ONCE)):
            group.create_task(one_after_the_other(), name=f"sync all #{index}")
    return failures


def raise_failures(failures: Mapping[str, BaseException]) -> None:
    """Raise the one failure, or one error that names them all; nothing if there is none."""
    if not failures:
        return
    if len(failures) == 1:
        raise next(iter(failures.values()))
    text = "; ".join(f"{key}: {error}" for key, error in failures.items())
    raise SyncFailedError(f"{len(failures)} things are not durable: {text}", failures)
