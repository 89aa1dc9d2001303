"""Writes whose outcome is unknown, and the precondition that makes their retry safe.

Cloud Storage calls inserts, rewrites and deletions idempotent only if they name the generation that they replace
(documentation, "Retry strategy"). Asking for the generation before every write would double the requests. So it is
fetched only for a retry: after the response to a write of the same object was lost, or the write failed with a
transient error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from asyncsync.aio.tasks import for_each_limited
from asyncsync.errors import StoreError
from asyncsync.stores.gcs.multipart_layout import CONCURRENT_REQUESTS
from asyncsync.stores.gcs.requests import GcsRequests

MAX_UNSURE_WRITES = 4096
"""Objects that are remembered; a session has far fewer requests in flight."""


class UnsureWrites:
    """The objects of one bucket whose last write has an unknown outcome."""

    def __init__(self, requests: GcsRequests) -> None:
        self._requests = requests
        self._unsure: dict[str, None] = {}

    async def live_generations(self, names: Sequence[str]) -> dict[str, str]:
        """The live generation ("0": none) of those ``names`` whose last write has an unknown outcome."""
        again = [name for name in names if name in self._unsure]
        found: dict[str, str] = {}

        async def look(name: str) -> None:
            found[name] = await self._requests.generation(name)

        if again:
            await for_each_limited(again, look, min(CONCURRENT_REQUESTS, len(again)))
        return found

    @contextmanager
    def tracking(self, names: Sequence[str]) -> Iterator[None]:
        """Around a write of ``names``: records whether its outcome is known."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) or (isinstance(error, StoreError) and error.retryable):
                self._remember(names)
            raise
        for name in names:
            self._unsure.pop(name, None)

    def _remember(self, names: Sequence[str]) -> None:
        self._unsure.update(dict.fromkeys(names))
        while len(self._unsure) > MAX_UNSURE_WRITES:
            del self._unsure[next(iter(self._unsure))]
