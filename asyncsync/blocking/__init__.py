"""The blocking facade: the names of ``asyncsync`` with the same signatures and without ``await``. Begin with
``blocking_engine.py``.

An engine and a syncer run on an event loop in their own thread; calls block until the work is done, and may come from
any thread. The other functions run an event loop for the time of the call, also inside a program that runs one, such as
a notebook.
"""

from asyncsync.blocking.blocking_calls import (
    browse,
    copy,
    diagnose,
    pin,
    plan_pull,
    prune,
    pull,
    push,
    read_object,
    remove,
    repair,
    tag,
    unpin,
    verify,
)
from asyncsync.blocking.blocking_engine import BlockingEngine
from asyncsync.blocking.blocking_experiment import (
    BlockingExperiment,
    StoredCheckpoint,
    StoredFile,
    StoredTrial,
    contents,
)
from asyncsync.blocking.blocking_syncer import BlockingSyncer
from asyncsync.blocking.blocking_trial import BlockingCheckpoint, BlockingReport, BlockingTrial

SyncEngine = BlockingEngine
Experiment = BlockingExperiment
Syncer = BlockingSyncer

__all__ = [
    "BlockingCheckpoint",
    "BlockingEngine",
    "BlockingExperiment",
    "BlockingReport",
    "BlockingSyncer",
    "BlockingTrial",
    "Experiment",
    "StoredCheckpoint",
    "StoredFile",
    "StoredTrial",
    "SyncEngine",
    "Syncer",
    "browse",
    "contents",
    "copy",
    "diagnose",
    "pin",
    "plan_pull",
    "prune",
    "pull",
    "push",
    "read_object",
    "remove",
    "repair",
    "tag",
    "unpin",
    "verify",
]
