"""Which processes write a checkpoint together: their identity, and how the controller of a run learns it.

Ray places the workers of one attempt in one placement group, whose ID is never used again. It identifies the attempt;
the ID of its actor identifies a worker. Both travel inside of the file system that a worker's report carries, so the
controller knows exactly the processes whose reports it has received, in the order in which it received them. No clock
takes part.
"""

from __future__ import annotations

import os
import sys
import threading
import uuid
from dataclasses import dataclass, field

from asyncsync import ConfigError

Token = tuple[str, str, int]
"""Attempt, process and rank of a worker of Ray Train."""
MOST_ATTEMPTS = 8
"""Attempts that a controller remembers; only the last one can still report."""
_processes: dict[int, str] = {}
"""Process ID -> an identity that no other process has, ever. A forked child gets its own."""


def process_identity() -> str:
    """Identifies this process where no actor does."""
    return _processes.setdefault(os.getpid(), uuid.uuid4().hex)


def train_token() -> Token | None:
    """The identity of this process as a worker of Ray Train; None outside of one."""
    module = sys.modules.get("ray.train.v2.api.train_fn_utils")
    if module is None:
        return None
    try:
        rank = module.get_context().get_world_rank()
    except (RuntimeError, DeprecationWarning):  # no worker; a trial of Tune, where Ray raises a warning
        return None
    import ray

    context = ray.get_runtime_context()
    process = context.get_actor_id() or process_identity()
    return context.get_placement_group_id() or process, process, rank


def is_asynchronous() -> bool:
    """Whether this is an upload that Ray Train does in the background (``CheckpointUploadMode.ASYNC``)."""
    module = sys.modules.get("ray.train.v2._internal.execution.context")
    context = getattr(module, "_train_context", None)
    pool = getattr(context, "checkpoint_upload_threadpool", None)
    return threading.current_thread() in getattr(pool, "_threads", ())


def lone_writer() -> Token:
    """The identity of a process that writes a checkpoint alone, such as a trial of Ray Tune.

    ConfigError in a worker of the first Ray Train with several ranks: nobody would commit their checkpoint.
    """
    module = sys.modules.get("ray.train._internal.session")
    session = module.get_session() if module is not None else None
    if session is not None and (getattr(session, "world_size", None) or 1) > 1:
        raise ConfigError(
            f"{session.world_size} ranks of the first version of Ray Train write one checkpoint, which asyncsync "
            "cannot commit: set RAY_TRAIN_V2_ENABLED=1"
        )
    return process_identity(), process_identity(), 0


@dataclass(slots=True)
class SeenWriters:
    """The workers whose reports this process has received."""

    _attempts: dict[str, dict[int, str]] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def add(self, token: Token) -> None:
        """A report of this worker has arrived. A later worker of the same rank replaces it."""
        attempt, process, rank = token
        with self._guard:
            ranks = self._attempts.pop(attempt, {})
            ranks[rank] = process
            self._attempts[attempt] = ranks
            if len(self._attempts) > MOST_ATTEMPTS:
                del self._attempts[next(iter(self._attempts))]

    def latest(self) -> tuple[str, dict[int, str]] | None:
        """The attempt whose report arrived last, and its processes by rank; None if none has arrived."""
        with self._guard:
            if not self._attempts:
                return None
            attempt = next(reversed(self._attempts))
            return attempt, dict(self._attempts[attempt])


SEEN = SeenWriters()
"""Of this process."""
