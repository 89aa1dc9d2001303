"""The user's ``on_durable``: called for each durable checkpoint, one call at a time."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from asyncsync.events import CallbackFailed, CheckpointDurable, Event

log = logging.getLogger("asyncsync")


class DurableCallback:
    """Calls ``callback`` in one task, in the order in which checkpoints became durable.

    An event of 200 bytes waits for each durable checkpoint that it was not called for yet.
    """

    def __init__(self, callback: Callable[[Any], object], emit: Callable[[Event], None]) -> None:
        self._callback, self._emit = callback, emit
        self._events: asyncio.Queue[CheckpointDurable] = asyncio.Queue()

    def submit(self, event: CheckpointDurable) -> None:
        """Call it soon. Synchronous."""
        self._events.put_nowait(event)

    async def run(self) -> None:
        """Call it for each event; ends only by a cancel."""
        while True:
            event = await self._events.get()
            try:
                await self._call(event)
            except asyncio.CancelledError as error:
                if _is_cancelled():
                    raise
                self._failed(event, error)  # the user's code raised it, such as by awaiting a task that was cancelled
            except Exception as error:  # noqa: BLE001  the user's code: its failure is an event
                self._failed(event, error)
            finally:
                self._events.task_done()

    async def wait_idle(self) -> None:
        """Wait until it was called for every durable checkpoint."""
        await self._events.join()

    async def _call(self, event: CheckpointDurable) -> None:
        if inspect.iscoroutinefunction(self._callback):
            await self._callback(event)
            return
        result = await asyncio.to_thread(self._callback, event)
        if inspect.isawaitable(result):
            await result

    def _failed(self, event: CheckpointDurable, error: BaseException) -> None:
        text = f"on_durable failed for {event.uri}: {type(error).__name__}: {error}"
        log.error("%s", text, exc_info=error)
        self._emit(CallbackFailed(tree=event.tree, trial=event.trial, checkpoint=event.checkpoint, error=text))


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
