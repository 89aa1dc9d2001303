"""The agents of all nodes, as a driver sees them: their status and their events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from asyncsync import RunningEngine
from asyncsync.events import Event
from asyncsync.integrations.ray.agent.agent_handle import NAMESPACE, names_of

STATUS_SECONDS = 10.0
"""Seconds for which the status of an agent is awaited; one that does not respond is left out."""
LOOK_SECONDS = 2.0
"""Seconds after which a listener looks for new agents."""


def agents(where: Mapping[str, Any]) -> list[RunningEngine]:
    """The agents that run on the nodes of this cluster, each as an engine whose role names its node.

    For ``EngineCollector(lambda: agents(where))``, which gives their metrics to Prometheus. ``where``: the result of
    :func:`asyncsync.integrations.ray.storage`.
    """
    requested = [handle.status.remote() for handle in _handles(where).values()]
    found = []
    for reference in requested:
        try:
            found.append(ray.get(reference, timeout=STATUS_SECONDS))
        except (RayError, GetTimeoutError):
            continue  # it has ended since, or its node is lost
    return sorted(found, key=lambda engine: engine.role)


def events(where: Mapping[str, Any]) -> Iterator[Event]:
    """The events of all nodes, as they happen; ``tree`` and ``trial`` of an event are relative to the storage path.

    Blocks between events and never ends; leave it whenever you like. Of an agent that is there already, it begins with
    the last events that it has kept. Use it in a thread of its own.
    """
    listener = _Listener(where)
    while True:
        yield from listener.hear()


class _Listener:
    """Asks every agent for its next events."""

    def __init__(self, where: Mapping[str, Any]) -> None:
        self._where = where
        self._next: dict[str, int] = {}
        """Agent -> number of its next event."""
        self._asked: dict[Any, tuple[str, Any]] = {}
        """Question -> name and handle of the agent."""

    def hear(self) -> list[Event]:
        """The events of the agents that respond within LOOK_SECONDS."""
        waiting = {name for name, _ in self._asked.values()}
        for name, handle in _handles(self._where).items():
            if name not in waiting:
                self._ask(name, handle)
        if not self._asked:
            time.sleep(LOOK_SECONDS)
            return []
        ready, _ = ray.wait(list(self._asked), timeout=LOOK_SECONDS)
        return [event for reference in ready for event in self._take(reference)]

    def _ask(self, name: str, handle: Any) -> None:
        self._asked[handle.events.remote(self._next.get(name, 0))] = name, handle

    def _take(self, reference: Any) -> list[Event]:
        name, handle = self._asked.pop(reference)
        found: list[Event]
        try:
            found, self._next[name] = ray.get(reference)
        except RayError:  # it has ended; a later one of that name begins anew
            self._next.pop(name, None)
            return []
        self._ask(name, handle)
        return found


def _handles(where: Mapping[str, Any]) -> dict[str, Any]:
    """The agents of a storage, by name."""
    beginning, found = names_of(where["storage_filesystem"].address), {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(beginning):
            with suppress(ValueError):  # it has ended since
                found[actor["name"]] = ray.get_actor(actor["name"], NAMESPACE)
    return found
