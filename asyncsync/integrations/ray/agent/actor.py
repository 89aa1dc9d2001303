"""The agent as a detached actor of Ray, pinned to its node. Its work is on the event loop of the storage; Ray's loop
only waits for it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from asyncsync.events import Event
from asyncsync.integrations.ray.agent.address import Address
from asyncsync.integrations.ray.agent.calls import Call
from asyncsync.integrations.ray.agent.node_work import NodeWork, live_visibly
from asyncsync.integrations.ray.agent.process_storage import storage_of
from asyncsync.runtime import Presence
from asyncsync.status import AGENT, EngineStatus, RunningEngine
from asyncsync.status_file import Owner

if TYPE_CHECKING:
    from asyncsync import Storage  # a worker that starts the agent does not need it

log = logging.getLogger("asyncsync")

IDLE_SECONDS = 60.0
"""An agent ends when for so long no process has lived that had asked it for something."""
EVENTS_PATIENCE = 20.0
"""Most seconds that a listener waits for an event before it asks again."""


class Agent:
    """The code of the actor. ``node``: ID of its node."""

    def __init__(self, address: Address, node: str) -> None:
        self._storage, self._presence, self._started = storage_of(address), Presence(), time.time()
        self._owner = Owner(self._presence.name, address.uri, "", f"{AGENT}{node[:8]}", 0)

        async def begin(storage: Storage) -> NodeWork:
            return NodeWork(storage, partial(is_draining, node))

        self._work = self._storage.call(begin)
        myself = ray.get_runtime_context().current_actor
        life = self._storage.submit(lambda _: live_visibly(self._work, self._owner, IDLE_SECONDS))
        life.add_done_callback(partial(_end, myself))

    async def hello(self) -> str:
        """The name of its process. Returns only while its work can continue, too."""
        await self._on_bridge(_nothing())
        return self._presence.name

    async def run(self, call: Call) -> Any:
        """See :meth:`NodeWork.run`."""
        return await self._on_bridge(self._work.run(call))

    async def events(self, number: int) -> tuple[list[Event], int]:
        """See :meth:`NodeEvents.after`."""
        found: tuple[list[Event], int] = await self._on_bridge(self._work.events.after(number, EVENTS_PATIENCE))
        return found

    async def status(self) -> RunningEngine:
        """As an engine of asyncsync: its role names the node."""
        return RunningEngine(
            uri=self._owner.uri,
            local_dir=self._owner.local_dir,
            role=self._owner.role,
            rank=self._owner.rank,
            pid=os.getpid(),
            started=self._started,
            written=time.time(),
            alive=True,
            status=await self._on_bridge(_status(self._work)),
            trials=0,
        )

    async def _on_bridge(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wrap_future(self._storage.submit(lambda _: work))


async def _nothing() -> None:
    """Shows that the loop turns."""


async def _status(work: NodeWork) -> EngineStatus:
    return work.status()


def _end(actor: Any, life: Future[None]) -> None:
    """It was idle, or has failed: workers then do their work themselves."""
    if error := life.exception():
        log.error("the agent of this node ends: %r", error)
    ray.kill(actor)


def is_draining(node: str) -> bool:
    """Whether Ray is about to take this node away. A Ray that does not say is taken to keep it."""
    try:
        return node in ray._private.state.state.get_draining_nodes()  # noqa: SLF001  Ray has no public call
    except Exception as error:  # noqa: BLE001  its head is out of reach, or has another call: the agent works on
        log.debug("it is not known whether the node is being drained: %r", error)
        return False
