"""The janitor: does the cleanup that is owed to the store, apart from everybody's time-outs."""

from __future__ import annotations

import asyncio
import logging

from asyncsync.errors import AsyncsyncError
from asyncsync.sync.session import Session

log = logging.getLogger("asyncsync")


class Janitor:
    """One task of the engine. What it cannot finish stays in the journal for the next start."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._work = asyncio.Event()
        self._busy = asyncio.Lock()

    def kick(self) -> None:
        """Something is owed."""
        self._work.set()

    async def run(self) -> None:
        """Ends only by cancel."""
        while True:
            await self._work.wait()
            await self.clean_up()

    async def clean_up(self) -> None:
        """Do what is owed now."""
        async with self._busy:
            self._work.clear()
            try:
                await self._session.clean_up()
            except AsyncsyncError as error:
                log.warning("cleaning up %s failed, it stays owed: %s", self._session.uri, error)
