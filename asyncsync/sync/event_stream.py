"""Events for any number of listeners, none of which can stall the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from asyncsync.events import Event

BUFFERED_EVENTS = 1024
"""Events queued for one listener; further ones are dropped and counted."""


class EventStream(AsyncIterator[Event]):
    """The events of one listener, from the moment ``events()`` was called. Ends when the engine ends."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._ended = False
        self.dropped = 0
        """Events that this listener lost because it was too slow."""

    def __repr__(self) -> str:
        state = "ended" if self._ended else f"{self._queue.qsize()} events waiting"
        return f"<EventStream {state}, {self.dropped} dropped>"

    def offer(self, event: Event | None) -> None:
        """Called by the emitter. None marks the end and is always queued."""
        if event is not None and self._queue.qsize() >= BUFFERED_EVENTS:
            self.dropped += 1
            return
        self._queue.put_nowait(event)

    async def __anext__(self) -> Event:
        if self._ended:
            raise StopAsyncIteration
        event = await self._queue.get()
        if event is None:
            self._ended = True
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """Stop listening."""
        self._ended = True
        self._emitter.leave(self)


class Emitter:
    """Hands each event to every listener immediately, with plain calls only."""

    def __init__(self) -> None:
        self._listeners: set[EventStream] = set()
        self._closed = False

    def listen(self) -> EventStream:
        """A new listener; one that comes after the end sees only the end."""
        stream = EventStream(self)
        if self._closed:
            stream.offer(None)
        else:
            self._listeners.add(stream)
        return stream

    def leave(self, stream: EventStream) -> None:
        """Remove a listener."""
        self._listeners.discard(stream)

    def emit(self, event: Event) -> None:
        """Queue an event for every listener."""
        for listener in self._listeners:
            listener.offer(event)

    def close(self) -> None:
        """Send the end to every listener."""
        self._closed = True
        for listener in self._listeners:
            listener.offer(None)
        self._listeners.clear()
