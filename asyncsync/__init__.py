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
from asyncsync.status import EngineStatus, EngineTotals, FlushReport, OperationTotals, RunningEngine, TrialStatus
from asyncsync.sync.event_stream import EventStream
from asyncsync.sync.syncer import Syncer, push

if TYPE_CHECKING:
    from asyncsync.engine.status_file import running_engines
    from asyncsync.remote.contents import ExperimentSummary, contents
    from asyncsync.remote.experiment import CheckpointView, Experiment, TrialView
    from asyncsync.remote.manage.browse import StoredObject, browse, read_object
    from asyncsync.remote.manage.copy_objects import copy
    from asyncsync.remote.manage.diagnose import Finding, diagnose
    from asyncsync.remote.manage.remove import RemoveReport, remove
    from asyncsync.remote.prune import prune
    from asyncsync.remote.pull import pull
    from asyncsync.remote.repair import repair
    from asyncsync.remote.verify import verify

_IMPORTED_ON_FIRST_USE = {
    "Finding": "asyncsync.remote.manage.diagnose",
    "RemoveReport": "asyncsync.remote.manage.remove",
    "StoredObject": "asyncsync.remote.manage.browse",
    "browse": "asyncsync.remote.manage.browse",
    "copy": "asyncsync.remote.manage.copy_objects",
    "diagnose": "asyncsync.remote.manage.diagnose",
    "read_object": "asyncsync.remote.manage.browse",
    "remove": "asyncsync.remote.manage.remove",
    "CheckpointView": "asyncsync.remote.experiment",
    "Experiment": "asyncsync.remote.experiment",
    "ExperimentSummary": "asyncsync.remote.contents",
    "TrialView": "asyncsync.remote.experiment",
    "contents": "asyncsync.remote.contents",
    "prune": "asyncsync.remote.prune",
    "pull": "asyncsync.remote.pull",
    "repair": "asyncsync.remote.repair",
    "running_engines": "asyncsync.engine.status_file",
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
    "CheckpointView",
    "ConcurrentWriterError",
    "ConfigError",
    "DamagedError",
    "EngineClosedError",
    "EngineStatus",
    "EngineTotals",
    "EventStream",
    "Experiment",
    "ExperimentExistsError",
    "ExperimentSummary",
    "Finding",
    "FlushReport",
    "IntegrityError",
    "NoSuchBucketError",
    "NotFoundError",
    "OperationTotals",
    "PreconditionError",
    "PruneReport",
    "RangeNotSatisfiedError",
    "RemoveReport",
    "RepairReport",
    "Report",
    "RunConfig",
    "RunningEngine",
    "SourceChangedError",
    "StoreError",
    "StoredObject",
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
    "TrialView",
    "UnavailableError",
    "UnsupportedError",
    "UploadMode",
    "VerifyReport",
    "__version__",
    "browse",
    "contents",
    "copy",
    "diagnose",
    "prune",
    "pull",
    "push",
    "read_object",
    "remove",
    "repair",
    "running_engines",
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
