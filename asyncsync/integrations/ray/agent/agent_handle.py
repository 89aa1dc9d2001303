"""How a process asks for work on a storage: a worker process of Ray asks the agent of its node, any other does it
itself.

If the agent is lost, or cannot serve a call, the worker does it itself, too; nothing is lost. The agent has ended then,
so the two never work on the same thing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from asyncsync import ConcurrentWriterError
from asyncsync.integrations.ray.agent import operations
from asyncsync.integrations.ray.agent.address import Address
from asyncsync.integrations.ray.agent.calls import Call, NotServedError, Place
from asyncsync.integrations.ray.agent.process_storage import storage_of
from asyncsync.runtime import Presence

log = logging.getLogger("asyncsync")
T = TypeVar("T")

NAMESPACE = "asyncsync"
START_SECONDS = 60.0
"""Most seconds for which the start of an agent is awaited."""
PAUSE_SECONDS = 60.0
"""Seconds for which a worker does everything itself after an agent could not be started."""
SILENCE = 20.0
"""Seconds after which an agent is asked whether it still works, and for which its response is awaited."""
CALLS_AT_ONCE = 1000
IDENTITY = (
    "AWS_ACCESS_KEY_ID",
    "AWS_CONFIG_FILE",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AZURE_CLIENT_ID",
    "AZURE_STORAGE_ACCOUNT",
    "AZURE_TENANT_ID",
    "CLOUDSDK_CONFIG",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "HOME",
    "XDG_STATE_HOME",
)
"""Processes that differ in these variables have agents of their own: they may use other credentials. None is secret:
the name of an agent, which their digest is part of, is shown by Ray's dashboard."""


def call(
    address: Address,
    work: Callable[..., Coroutine[Any, Any, T]],
    *arguments: Any,
    local: str | None = None,
    target: str = "",
    writer: tuple[str, str, int] = ("", "", 0),
    outlives: bool = False,
) -> T:
    """Do ``work(storage, *arguments)``; blocks. ``local``: what it reads or writes on this machine. For the others see
    :class:`Call`."""
    agent, place = _agents.of(address), None if local is None else Place.of(local)
    if agent is not None and (local is None or place is not None):
        try:
            result: T = agent.run(Call(work, arguments, _own_name(), place, target, writer, outlives))
        except NotServedError as error:
            log.warning("this process does it itself: %s", error)
        else:
            return result
    return storage_of(address).call(lambda storage: work(storage, *arguments))


def push_checkpoint(
    address: Address,
    local: str,
    key: str,
    writer: tuple[str, str, int],
    *,
    alone: bool,
    snapshot: str = "",
    outlives: bool = False,
) -> None:
    """Upload what this process has of a checkpoint; blocks. See :func:`operations.push_checkpoint`."""
    arguments = (local, key, writer, alone, snapshot, _own_name())
    options: dict[str, Any] = {"local": local, "target": key, "writer": writer, "outlives": outlives}
    call(address, operations.push_checkpoint, *arguments, **options)


@dataclass(slots=True)
class NodeAgent:
    """An agent as its clients see it. ``name``: of its process."""

    handle: Any
    name: str

    def run(self, request: Call) -> Any:
        """NotServedError if the agent cannot do it, or was lost meanwhile: then it has ended."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError

        reference = self.handle.run.remote(request)
        try:
            self._await(reference)
            return ray.get(reference)
        except RayActorError as error:
            self.end()
            raise NotServedError(f"the agent of this node was lost: {error}") from error
        except TaskCancelledError as error:
            raise ConcurrentWriterError(f"{request.target} is written by a later attempt: end this one") from error
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except BaseException:
            ray.cancel(reference)
            raise

    def _await(self, reference: Any) -> None:
        """Returns when the call has ended. An agent that says nothing at all is ended."""
        import ray

        while not ray.wait([reference], timeout=SILENCE)[0]:
            if not ray.wait([self.handle.hello.remote()], timeout=SILENCE)[0]:
                self.end()

    def end(self) -> None:
        """Make sure that it has ended."""
        import ray

        _agents.forget(self)
        pid = Presence.pid_of(self.name)
        if pid is None:
            ray.kill(self.handle)
            return
        if Presence.has_ended(self.name):
            return
        descriptor = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [])
        finally:
            os.close(descriptor)


class KnownAgents:
    """The agents that this process uses."""

    def __init__(self) -> None:
        self._agents: dict[Address, NodeAgent] = {}
        self._not_before: dict[Address, float] = {}
        """When the start of an agent is tried again, by the monotonic clock."""
        self._guard = threading.Lock()

    def of(self, address: Address) -> NodeAgent | None:
        """The agent of this node, which is started if there is none; None where this process does the work itself."""
        if not _is_worker() or not address.is_public:
            return None
        with self._guard:
            if address not in self._agents and time.monotonic() >= self._not_before.get(address, 0.0):
                self._start(address)
            return self._agents.get(address)

    def forget(self, agent: NodeAgent) -> None:
        """It is lost."""
        with self._guard:
            self._agents = {address: other for address, other in self._agents.items() if other is not agent}

    def _start(self, address: Address) -> None:
        from ray.exceptions import RayError

        try:
            self._agents[address] = start(address)
        except (RayError, TimeoutError, NotServedError) as error:
            self._not_before[address] = time.monotonic() + PAUSE_SECONDS
            log.warning("this process uploads by itself, because no agent could be started on this node: %s", error)


def start(address: Address) -> NodeAgent:
    """The agent of this node. RayError or TimeoutError if there is none, and NotServedError while Ray drains the node:
    it places no actor there any more."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from asyncsync.integrations.ray.agent.actor import Agent, is_draining

    node = ray.get_runtime_context().get_node_id()
    name = agent_name(address, node)
    try:
        handle = ray.get_actor(name, NAMESPACE)
    except ValueError:
        if is_draining(node):
            raise NotServedError("the node is being drained") from None
        options = {
            "name": name,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": 0,
            "max_concurrency": CALLS_AT_ONCE,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }
        handle = ray.remote(Agent).options(**options).remote(address, node)
    return NodeAgent(handle, ray.get(handle.hello.remote(), timeout=START_SECONDS))


def agent_name(address: Address, node: str) -> str:
    """The name of the actor: the storage, who uses it, and the node."""
    identity = [os.environ.get(variable) for variable in IDENTITY]
    user = hashlib.blake2b(repr((identity, os.getuid(), sys.executable)).encode(), digest_size=8).hexdigest()
    return f"{names_of(address)}{user} {node}"


def names_of(address: Address) -> str:
    """How the names of all agents of a storage begin."""
    return f"agent {hashlib.blake2b(repr(address).encode(), digest_size=8).hexdigest()} "


def _is_worker() -> bool:
    """Whether this process is an actor of Ray: of a trial, a rank, or a controller."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.worker.mode == ray.WORKER_MODE and context.get_actor_id() is not None


_names: dict[int, str] = {}
_agents = KnownAgents()


def _own_name() -> str:
    """Of this process."""
    pid = os.getpid()
    if pid not in _names:
        _names[pid] = Presence().name
    return _names[pid]


def _forget() -> None:
    """In a forked child: it is no actor."""
    global _agents  # noqa: PLW0603  the lock may be held by a thread of the parent
    _agents = KnownAgents()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
