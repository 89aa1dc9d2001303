"""Private: the upload of one checkpoint: its files, then its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from asyncsync.aio.retry import RetryHooks, retry_transient
from asyncsync.engine.trials.job import CheckpointJob
from asyncsync.planning.manifest import MANIFEST
from asyncsync.report import SyncReport
from asyncsync.runtime import wall_time
from asyncsync.stores.base import Lane
from asyncsync.stores.guard.fenced import Fence
from asyncsync.sync.session import Session
from asyncsync.sync.tree import Tree, TreeOptions
from asyncsync.sync.tree_manifest import ID

T = TypeVar("T")

LAST_ATTEMPTS = 2
"""Attempts at the end of a run. Each includes all retries of its requests."""


async def upload_checkpoint(
    session: Session,
    prefix: str,
    job: CheckpointJob,
    hooks: RetryHooks,
    fence: Fence | None = None,
    *,
    record: str = MANIFEST,
    more: Mapping[str, Any] | None = None,
) -> SyncReport:
    """Upload the files, then the manifest; retry with backoff while the errors are transient.

    The caller limits the time. Raises permanent errors, and CollisionError if another checkpoint has the name.
    ``record``: key to use instead of the manifest's; ``more``: additional entries of its info.
    """
    job.check_files()
    assert job.source is not None
    info = {
        ID: job.token,
        "checkpoint": job.name,
        "number": job.number,
        "step": job.step,
        "metrics": job.metrics,
        "metadata": job.metadata,
        "time": wall_time(),
        **(more or {}),
    }
    options = TreeOptions(
        lane=Lane.CHECKPOINT,
        whole=True,
        fresh=True,
        info=info,
        record=record,
        fence=fence,
        accepted=job.source,
        begun=job.may_be_stored,
    )
    tree = job.tree = job.tree or Tree(session, job.source.root, f"{prefix}{job.name}/", options)
    tree.replace_info(info)  # a report that resumes it may have other metrics
    return await retry_transient(tree.sync_once, hooks)
