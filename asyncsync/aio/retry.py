"""Private: retry something for as long as its errors are transient."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from asyncsync.errors import AsyncsyncError, SyncFailedError
from asyncsync.planning.schedule import BACKOFF_FIRST, BACKOFF_MOST
from asyncsync.runtime import dice

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Again:
    """How something that failed is tried again."""

    after: Callable[[str], bool]
    """Hears of each failure that may pass, and says whether to try again."""
    rest: Callable[[float, float], Awaitable[None]]
    """Waits so many seconds, or less if the reason has gone since the second argument, on the event loop's clock."""


async def persist(attempt: Callable[[], Awaitable[T]], again: Again) -> T:
    """Call ``attempt`` until it works or fails for good; full jitter between tries."""
    tries = 0
    while True:
        began = asyncio.get_running_loop().time()
        try:
            return await attempt()
        except AsyncsyncError as error:
            if not may_pass(error) or not again.after(str(error)):
                raise
        tries += 1
        await again.rest(dice().uniform(0, min(BACKOFF_MOST, BACKOFF_FIRST * 2.0**tries)), began)


def may_pass(error: BaseException) -> bool:
    """Whether trying again later makes sense."""
    if isinstance(error, SyncFailedError):
        return bool(error.failures) and all(may_pass(cause) for cause in error.failures.values())
    return bool(getattr(error, "retryable", False))
