"""When and after which pause one request is retried. Plain functions: no await, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from asyncsync.errors import IntegrityError, NotFoundError, PreconditionError, StoreError, ThrottledError
from asyncsync.stores.guard.breaker import StillUnavailableError

MAX_RETRY_AFTER = 60.0
"""Longest Retry-After (s) that is obeyed; after this time the request is retried anyway."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and after which pause a request is retried.

    Full jitter: the pause is random between 0 and a bound, so that clients that failed together do not return together
    (Brooker, "Exponential Backoff And Jitter", AWS, 2015).
    """

    attempts: int = 6
    """Attempts in all."""
    base: float = 0.2
    """Bound of the first pause in seconds; it doubles with each attempt."""
    cap: float = 20.0
    """Largest bound in seconds. A longer Retry-After of the store still applies, up to ``MAX_RETRY_AFTER``."""
    patience: float = 120.0
    """Longest time in seconds that a request waits for an unavailable store, beside its own attempts."""

    def pause(self, attempt: int, error: StoreError, rng: Random) -> float:
        """Seconds to wait after the ``attempt``-th attempt (from 1) failed with ``error``."""
        jitter = rng.uniform(0, min(self.cap, self.base * 2.0 ** (attempt - 1)))
        asked = error.retry_after if isinstance(error, ThrottledError) else None
        return jitter if asked is None else min(max(asked, 0.0), MAX_RETRY_AFTER) + min(jitter, self.base)


def is_final(error: StoreError, delivered: int) -> bool:
    """Whether no further attempt can help. ``delivered``: bytes of a read that the caller's sink has taken."""
    if isinstance(error, IntegrityError) and delivered:
        return True  # the sink holds damaged bytes, and nobody knows which
    return not error.retryable or isinstance(error, StillUnavailableError)


def may_have_succeeded(error: StoreError, attempt: int, *, last: bool) -> bool:
    """Whether an attempt may have written although its response was lost: an earlier one if this one was refused, or
    any of them if this was the last and the store can be asked."""
    if isinstance(error, PreconditionError | NotFoundError):
        return attempt > 1
    return last and error.retryable and not isinstance(error, StillUnavailableError)
