"""Private: retry a whole operation (a sync, a record) while its errors are transient.

Single requests are retried by :mod:`asyncsync.stores.guard.retry_policy`; this is for operations that still fail after
that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from asyncsync.aio.descriptors import out_of_descriptors
from asyncsync.errors import AsyncsyncError, SyncFailedError
from asyncsync.planning.schedule import BACKOFF_FIRST, BACKOFF_MOST
from asyncsync.runtime import dice

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryHooks:
    """How the caller takes part in the retries."""

    on_failure: Callable[[str], bool]
    """Called with the text of each transient failure; returns whether to retry."""
    wait: Callable[[float, float], Awaitable[None]]
    """``wait(seconds, since)`` sleeps before the next attempt, at most ``seconds``: less if the store has come back
    after ``since`` (event loop's clock)."""


async def retry_transient(attempt: Callable[[], Awaitable[T]], hooks: RetryHooks) -> T:
    """Call ``attempt`` until it succeeds; raise its error if that is not transient or ``hooks`` end the retries.

    Full jitter: the pause is random between 0 and a bound that doubles with each attempt, up to ``BACKOFF_MOST``.
    """
    failures = 0
    while True:
        began = asyncio.get_running_loop().time()
        try:
            return await attempt()
        except AsyncsyncError as error:
            if not is_transient(error) or not hooks.on_failure(str(error)):
                raise
        failures += 1
        await hooks.wait(dice().uniform(0, min(BACKOFF_MOST, BACKOFF_FIRST * 2.0**failures)), began)


def is_transient(error: BaseException) -> bool:
    """Whether the error is transient: a retry may succeed. A failed sync is transient if each of its causes is."""
    if isinstance(error, SyncFailedError):
        return bool(error.failures) and all(is_transient(cause) for cause in error.failures.values())
    return bool(getattr(error, "retryable", False)) or out_of_descriptors(error)
