"""Repeating a write of which nobody knows whether it was done.

Cloud Storage calls inserts, rewrites and deletions idempotent only where they name the generation that they meet
(documentation, "Retry strategy"). To ask for it before every write would double the requests. So only who repeats asks:
whoever lost the answer to a write of the same object, or was refused in passing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from asyncsync.aio.tasks import for_each_limited
from asyncsync.errors import StoreError
from asyncsync.stores.gcs.multipart_layout import AT_ONCE
from asyncsync.stores.gcs.requests import Wire

MOST = 4096
"""Objects that are remembered; a session has fewer requests under way by far."""


class Repeats:
    """The objects of one bucket whose last write broke off."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._broken: dict[str, None] = {}

    async def standing(self, names: Sequence[str]) -> dict[str, str]:
        """Those of ``names`` that are written again, with their live generation ("0": there is none)."""
        again = [name for name in names if name in self._broken]
        found: dict[str, str] = {}

        async def look(name: str) -> None:
            found[name] = await self._wire.generation(name)

        if again:
            await for_each_limited(again, look, min(AT_ONCE, len(again)))
        return found

    @contextmanager
    def writing(self, names: Sequence[str]) -> Iterator[None]:
        """Around the request."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) or (isinstance(error, StoreError) and error.retryable):
                self._remember(names)
            raise
        for name in names:
            self._broken.pop(name, None)

    def _remember(self, names: Sequence[str]) -> None:
        self._broken.update(dict.fromkeys(names))
        while len(self._broken) > MOST:
            del self._broken[next(iter(self._broken))]
