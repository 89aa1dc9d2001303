"""Writes the log line of each event."""

from __future__ import annotations

import logging

from asyncsync.events import (
    CheckpointDurable,
    CheckpointFailed,
    CheckpointRetired,
    Event,
    Progress,
    SyncFailed,
    SyncTimedOut,
    SyncWarning,
)

log = logging.getLogger("asyncsync")


def log_event(event: Event) -> None:
    """Log an event: durable and retired checkpoints at INFO, failures at WARNING, everything else at DEBUG.

    Progress is not logged, and neither are warnings: the code that emits one logs it."""
    if isinstance(event, CheckpointFailed):
        log.warning("%s/%s failed: %s", event.trial, event.checkpoint, event.error)
    elif isinstance(event, SyncFailed | SyncTimedOut):
        log.warning("%s: the sync failed: %s", event.tree or "the experiment", event.error)
    elif isinstance(event, CheckpointDurable):
        text = "%s/%s is durable: %d of %d bytes sent, %.1f s"
        log.info(text, event.trial, event.checkpoint, event.bytes_sent, event.bytes_total, event.seconds)
    elif isinstance(event, CheckpointRetired):
        log.info("%s/%s is retired", event.trial, event.checkpoint)
    elif not isinstance(event, Progress | SyncWarning):
        log.debug("%s", event)
