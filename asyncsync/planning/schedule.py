"""When to sync: rate limit, single flight, coalescing, backoff. Pure: time is an argument.

A tree costs one heap entry and one small object, never a task. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

BACKOFF_FIRST = 1.0
"""Seconds before the first retry of a failed sync; doubled each time."""
BACKOFF_MOST = 60.0
"""Most seconds before a retry."""


@dataclass(slots=True)
class _Entry:
    period: float
    periodic: bool
    last_start: float = float("-inf")
    due: float | None = None
    running: bool = False
    forced: bool = False
    """Whether a sync is wanted that does not wait for its period."""
    wanted: bool = False
    """Whether one more sync is wanted after the running one."""
    failures: int = 0
    ticket: int = 0
    """Heap entries with another ticket are outdated."""


@dataclass(slots=True)
class Schedule(Generic[K]):
    """Due work of many trees in one heap.

    The rules: at least ``period`` seconds between two starts of a tree, start to start. A forced sync does not wait,
    but its start counts. One sync of a tree at a time; all requests during a sync are served by one more sync after it.
    A failed sync is retried after 1, 2, 4 ... 60 seconds, or at its period if that is sooner.
    """

    _entries: dict[K, _Entry] = field(default_factory=dict)
    _heap: list[tuple[float, int, K]] = field(default_factory=list)
    _tickets: int = 0
    _failed: dict[K, None] = field(default_factory=dict)
    """Trees whose last sync failed."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def add(self, key: K, now: float, *, period: float, periodic: bool = True) -> None:
        """Add a tree; a periodic one is due at once."""
        entry = self._entries[key] = _Entry(period, periodic)
        if periodic:
            self._set(key, entry, now)

    def remove(self, key: K) -> None:
        """Remove a tree; a running sync of it continues."""
        self._entries.pop(key, None)
        self._failed.pop(key, None)

    def request(self, key: K, now: float, *, force: bool = False) -> None:
        """Request a sync: at once if ``force``, otherwise as soon as the period allows."""
        entry = self._entries[key]
        entry.forced |= force
        if entry.running:
            entry.wanted = True
            return
        when = now if force else max(now, entry.last_start + entry.period)
        if entry.due is None or when < entry.due:
            self._set(key, entry, when)

    def pop_due(self, now: float) -> tuple[K, bool] | None:
        """The next tree to start now, and whether its sync is forced. It counts as running until :meth:`finished`."""
        while self._heap and self._heap[0][0] <= now:
            _, ticket, key = heapq.heappop(self._heap)
            entry = self._entries.get(key)
            if entry is None or entry.ticket != ticket or entry.running:
                continue
            forced, entry.forced, entry.wanted = entry.forced, False, False
            entry.running, entry.last_start, entry.due = True, now, None
            return key, forced
        return None

    def finished(self, key: K, now: float, *, ok: bool) -> None:
        """A sync has ended: plan the next one."""
        entry = self._entries.get(key)
        if entry is None:
            return
        entry.running = False
        self._count(key, entry, ok=ok)
        times = []
        if entry.wanted:
            times.append(now if entry.forced else max(now, entry.last_start + entry.period))
        if entry.periodic:
            times.append(entry.last_start + entry.period)
        if not ok and (entry.periodic or entry.wanted):
            times = [now if entry.forced else min([now + self.backoff(key), *(t for t in times if t > now)])]
        entry.wanted = False
        if times:
            self._set(key, entry, max(now, min(times)))

    def _count(self, key: K, entry: _Entry, *, ok: bool) -> None:
        entry.failures = 0 if ok else entry.failures + 1
        if not ok:
            self._failed[key] = None
        elif self._failed:
            self._failed.pop(key, None)

    def backoff(self, key: K) -> float:
        """Seconds until a failed tree is retried."""
        failures = self._entries[key].failures if key in self._entries else 1
        return min(BACKOFF_FIRST * 2.0 ** min(max(failures - 1, 0), 10), BACKOFF_MOST)

    def hasten(self, key: K, when: float) -> None:
        """Start a tree at ``when``, unless it is due earlier."""
        entry = self._entries[key]
        if entry.due is not None and when < entry.due:
            self._set(key, entry, when)

    @property
    def failed(self) -> int:
        """Number of trees whose last sync failed."""
        return len(self._failed)

    def forgive(self, most: int) -> list[K]:
        """Reset the counts of failures of up to ``most`` trees, running ones too, because the store is reachable again.
        Returns those of them that back off."""
        keys = list(islice(self._failed, most))
        for key in keys:
            self._entries[key].failures = 0
            del self._failed[key]
        return [key for key in keys if self._entries[key].due is not None]

    def next_time(self) -> float | None:
        """When the next tree is due."""
        while self._heap:
            when, ticket, key = self._heap[0]
            entry = self._entries.get(key)
            if entry is not None and entry.ticket == ticket and not entry.running:
                return when
            heapq.heappop(self._heap)
        return None

    def is_running(self, key: K) -> bool:
        """Whether a sync of this tree is running."""
        entry = self._entries.get(key)
        return entry is not None and entry.running

    def _set(self, key: K, entry: _Entry, when: float) -> None:
        self._tickets += 1
        entry.ticket, entry.due = self._tickets, when
        heapq.heappush(self._heap, (when, entry.ticket, key))
