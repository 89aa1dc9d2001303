"""asyncsync keeps the files of machine-learning experiments safe while training runs."""

import importlib
from typing import TYPE_CHECKING

from asyncsync.config import CheckpointConfig, RunConfig, SyncConfig, TransferConfig, UploadMode
from asyncsync.engine.engine import SyncEngine
from asyncsync.engine.trial import Report, Trial
from asyncsync.engine.trials.checkpoint import Checkpoint, CheckpointHandle
from asyncsync.errors import (
    AccessDeniedError,
    AsyncsyncError,
    CheckpointIncompleteError,
    CheckpointReplacedError,
    CheckpointRetiredError,
    ConcurrentWriterError,
    ConfigError,
    DamagedError,
    EngineClosedError,
    ExperimentExistsError,
    IntegrityError,
    NoSuchBucketError,
    NotFoundError,
    PreconditionError,
    RangeNotSatisfiedError,
    SourceChangedError,
    StoreError,
    SyncError,
    SyncFailedError,
    SyncTimeoutError,
    ThrottledError,
    UnavailableError,
    UnsupportedError,
)
from asyncsync.planning.document import __version__
from asyncsync.report import PruneReport, RepairReport, SyncReport, VerifyReport
from asyncsync.status import EngineStatus, FlushReport, TrialStatus
from asyncsync.sync.event_stream import EventStream
from asyncsync.sync.syncer import Syncer, push

if TYPE_CHECKING:
    from asyncsync.remote.contents import ExperimentSummary, contents
    from asyncsync.remote.experiment import CheckpointView, Experiment, TrialView
    from asyncsync.remote.prune import prune
    from asyncsync.remote.pull import pull
    from asyncsync.remote.repair import repair
    from asyncsync.remote.verify import verify
    from asyncsync.storage.entries import StoredEntry
    from asyncsync.storage.shared import Writer
    from asyncsync.storage.storage import Storage
    from asyncsync.storage.summaries import CheckpointSummary, TrialSummary

_IMPORTED_ON_FIRST_USE = {
    "CheckpointSummary": "asyncsync.storage.summaries",
    "CheckpointView": "asyncsync.remote.experiment",
    "Experiment": "asyncsync.remote.experiment",
    "ExperimentSummary": "asyncsync.remote.contents",
    "Storage": "asyncsync.storage.storage",
    "StoredEntry": "asyncsync.storage.entries",
    "TrialSummary": "asyncsync.storage.summaries",
    "TrialView": "asyncsync.remote.experiment",
    "Writer": "asyncsync.storage.shared",
    "contents": "asyncsync.remote.contents",
    "prune": "asyncsync.remote.prune",
    "pull": "asyncsync.remote.pull",
    "repair": "asyncsync.remote.repair",
    "verify": "asyncsync.remote.verify",
}
"""Operations on stored experiments. A training process seldom needs them, and importing them takes about 10 ms."""

__all__ = [
    "AccessDeniedError",
    "AsyncsyncError",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointHandle",
    "CheckpointIncompleteError",
    "CheckpointReplacedError",
    "CheckpointRetiredError",
    "CheckpointSummary",
    "CheckpointView",
    "ConcurrentWriterError",
    "ConfigError",
    "DamagedError",
    "EngineClosedError",
    "EngineStatus",
    "EventStream",
    "Experiment",
    "ExperimentExistsError",
    "ExperimentSummary",
    "FlushReport",
    "IntegrityError",
    "NoSuchBucketError",
    "NotFoundError",
    "PreconditionError",
    "PruneReport",
    "RangeNotSatisfiedError",
    "RepairReport",
    "Report",
    "RunConfig",
    "SourceChangedError",
    "Storage",
    "StoreError",
    "StoredEntry",
    "SyncConfig",
    "SyncEngine",
    "SyncError",
    "SyncFailedError",
    "SyncReport",
    "SyncTimeoutError",
    "Syncer",
    "ThrottledError",
    "TransferConfig",
    "Trial",
    "TrialStatus",
    "TrialSummary",
    "TrialView",
    "UnavailableError",
    "UnsupportedError",
    "UploadMode",
    "VerifyReport",
    "Writer",
    "__version__",
    "contents",
    "prune",
    "pull",
    "push",
    "repair",
    "verify",
]


if not TYPE_CHECKING:  # type checkers would take every misspelled name for an object

    def __getattr__(name: str) -> object:
        """Import one of the names in ``_IMPORTED_ON_FIRST_USE``."""
        if name not in _IMPORTED_ON_FIRST_USE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_IMPORTED_ON_FIRST_USE[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
