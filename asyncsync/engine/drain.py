"""Drain: makes everything durable, for ``engine.sync()``, for ``flush``, and at the end of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from asyncsync.aio.retry import is_transient
from asyncsync.aio.tasks import for_each_limited
from asyncsync.engine.own_files import OwnFiles
from asyncsync.engine.trials.context import EngineContext
from asyncsync.engine.trials.registry import Registry
from asyncsync.engine.trials.runner import CheckpointRunner
from asyncsync.engine.trials.state import TrialState
from asyncsync.engine.trials.upload import LAST_ATTEMPTS
from asyncsync.errors import AsyncsyncError, StoreError, SyncFailedError
from asyncsync.status import FlushReport
from asyncsync.stores.guard.breaker import LONGEST_PROBE_PAUSE, Breaker
from asyncsync.sync.scheduler import Scheduler

PARALLEL_SYNCS = 64
"""Trees that are synced at the same time."""
EXPERIMENT_FILES = "the experiment's own files"
STORE_DOWN_LIMIT = 120.0
"""How long (s) a store must refuse every request before an engine that is being left stops waiting for it. Longer than
a server takes to restart or to change its address, and independent of the amount of data."""
URGENT_SHARE = 0.9
"""Share of a short deadline that is reserved for the newest checkpoints."""


async def run_within(work: Awaitable[None], seconds: float | None, breaker: Breaker | None) -> str:
    """Run ``work`` for at most ``seconds``. With ``breaker``, end it also when the store has refused every request for
    STORE_DOWN_LIMIT seconds. Returns why it was ended; empty if it ran to its end."""
    loop, why = asyncio.get_running_loop(), ""
    began = loop.time()

    def end_if_down(since: float, error: StoreError) -> None:
        nonlocal why
        seconds_down = loop.time() - max(since, began)
        if seconds_down >= STORE_DOWN_LIMIT and not why and not scope.expired():
            why = f"the store has refused every request for {seconds_down:.0f} s, most recently with: {error}"
            scope.reschedule(loop.time())

    try:
        async with asyncio.timeout(seconds) as scope:
            if breaker is not None:
                breaker.on_failing[end_if_down] = None
            await work
    except TimeoutError:
        if not scope.expired():
            raise
        return why or f"not done within {seconds:g} s"
    finally:
        if breaker is not None:
            breaker.on_failing.pop(end_if_down, None)
    return ""


class Drain:
    """Makes an engine's trials durable. ``failures`` and ``report`` are right at any moment, also after a cancel.

    With a deadline the newest checkpoint of every trial goes first, and all other uploads are interrupted. Then come
    the records, then artifacts and older checkpoints. Without a deadline everything goes in order.
    """

    def __init__(
        self, context: EngineContext, registry: Registry, own: OwnFiles | None, runner: CheckpointRunner
    ) -> None:
        self.failures: dict[str, BaseException] = {}
        """Permanent failures, by name."""
        self._context, self._registry, self._own, self._runner = context, registry, own, runner
        self._scheduler = context.scheduler
        self._synced: set[str] = set()
        self._waits_for_store = False

    async def run(self, deadline: float | None) -> None:
        """Run until everything is durable or has failed. ``deadline``: remaining seconds; after most of them,
        unfinished checkpoints share the rest with everything else."""
        urgent = deadline is not None
        self._waits_for_store = not urgent
        if deadline is not None:
            await self._drain_urgent(URGENT_SHARE * deadline)
        else:
            await self._wait_checkpoints()
            await self._wait_for_predecessors()
        await self._sync(self._registry.tree_keys())
        if urgent:
            await self._wait_checkpoints()
            await self._sync([trial.key for trial in self._registry.scheduled() if trial.dirty_since is not None])
        for trial in self._registry.trials.values():
            self.failures.update(trial.take_failures())

    def report(self) -> FlushReport:
        """The items that are durable now and those that are not. A tree counts as durable if a sync of it succeeded
        since the drain began."""
        trials = self._registry.trials.values()
        pending = {f"{trial.key}/{job.name}" for trial in trials for job in trial.jobs}
        checkpoints = {f"{trial.key}/{item.name}" for trial in trials for item in trial.record.checkpoints}
        failed = {"" if name == EXPERIMENT_FILES else name for name in self.failures}
        finished = {trial.key for trial in trials if not self._scheduler.has(trial.key)}
        trees = {*self._registry.tree_keys(), *finished}
        clean = (trees & (self._synced | finished)) - self._registry.not_durable()
        durable = (checkpoints | clean) - pending - failed
        return FlushReport(tuple(sorted(durable)), tuple(sorted((pending | trees | failed) - durable)))

    async def _drain_urgent(self, seconds: float) -> None:
        newest = {key: trial.jobs[-1] for key, trial in self._registry.trials.items() if trial.jobs}
        self._scheduler.pause()
        try:
            self._runner.restrict_to(newest)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    for job in newest.values():
                        await job.handle.wait_ended()
            await for_each_limited(list(self._registry.trials.values()), self._save_record, PARALLEL_SYNCS)
        finally:
            self._scheduler.resume()
            self._runner.lift_restriction()

    async def _save_record(self, trial: TrialState) -> None:
        """Save the record before the trial's artifacts. If this fails, the sync that follows retries it and reports the
        failure."""
        try:
            await trial.prepare()
            await trial.keeper.save()
        except (AsyncsyncError, OSError):
            return

    async def _wait_checkpoints(self) -> None:
        for trial in self._registry.trials.values():
            await trial.wait_durable()

    async def _wait_for_predecessors(self) -> None:
        """Wait until replaced processes cannot write any more. The next sync compares the trees with the store."""
        for trial in self._registry.scheduled():
            with suppress(AsyncsyncError):  # the sync that follows reports it
                await trial.wait_for_predecessor()
        if self._own is not None:
            await self._own.wait_for_predecessor()

    async def _sync(self, keys: Sequence[str]) -> None:
        failures = await sync_all(
            self._scheduler, keys, tries=LAST_ATTEMPTS, done=self._synced, wait=self._store_is_down
        )
        self.failures.update(failures)

    def _store_is_down(self) -> bool:
        """Whether the store as a whole fails. How long that may last is decided by the caller's limit, not by
        attempts."""
        return self._waits_for_store and self._context.session.breaker.failing


async def sync_all(
    scheduler: Scheduler,
    keys: Sequence[str],
    *,
    tries: int = 1,
    done: set[str] | None = None,
    wait: Callable[[], bool] = lambda: False,
) -> dict[str, BaseException]:
    """Sync these trees. Returns the errors of those that failed permanently or ``tries`` times, by name. ``done``
    receives the keys as they become durable. While ``wait()`` is true, a failed attempt does not count."""
    left, lasting, attempt = list(keys), dict[str, BaseException](), 0
    pause = 1.0
    while left:
        failures = await _sync_these(scheduler, left, done if done is not None else set())
        attempt += not wait()
        left = [key for key, error in failures.items() if is_transient(error) and attempt < tries]
        lasting.update({key: error for key, error in failures.items() if key not in left})
        if left:
            pause = min(2 * pause, LONGEST_PROBE_PAUSE)
            await asyncio.sleep(pause)
    return {key or EXPERIMENT_FILES: error for key, error in lasting.items()}


async def _sync_these(scheduler: Scheduler, keys: Sequence[str], done: set[str]) -> dict[str, BaseException]:
    failures: dict[str, BaseException] = {}
    left = list(reversed(keys))

    async def one_after_the_other() -> None:
        while left:
            key = left.pop()
            try:
                await scheduler.sync(key)
            except (AsyncsyncError, OSError) as error:
                failures[key] = error
            else:
                done.add(key)

    async with asyncio.TaskGroup() as group:
        for index in range(min(len(keys), PARALLEL_SYNCS)):
            group.create_task(one_after_the_other(), name=f"sync all #{index}")
    return failures


def raise_failures(failures: Mapping[str, BaseException]) -> None:
    """Raise the only failure as it is, or one SyncFailedError that names several. Does nothing if there is none."""
    if not failures:
        return
    if len(failures) == 1:
        raise next(iter(failures.values()))
    text = "; ".join(f"{key}: {error}" for key, error in failures.items())
    raise SyncFailedError(f"{len(failures)} items are not durable: {text}", failures)
