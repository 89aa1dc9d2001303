"""asyncsync keeps the files of machine-learning experiments safe while training runs."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
        LocalDiskError,
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
    from asyncsync.remote.manage.browse import StoredObject, browse, read_object
    from asyncsync.remote.manage.copy_objects import copy
    from asyncsync.remote.manage.diagnose import Finding, diagnose
    from asyncsync.remote.manage.pull_preview import PullPlan, plan_pull
    from asyncsync.remote.manage.remove import RemoveReport, remove
    from asyncsync.remote.prune import prune
    from asyncsync.remote.pull import pull
    from asyncsync.remote.repair import repair
    from asyncsync.remote.verify import verify
    from asyncsync.remote.views.checkpoint_marks import pin, tag, unpin
    from asyncsync.remote.views.checkpoint_view import CheckpointView
    from asyncsync.remote.views.contents import ExperimentSummary, contents
    from asyncsync.remote.views.experiment import Experiment
    from asyncsync.remote.views.trial_view import TrialView
    from asyncsync.report import PruneReport, RepairReport, SyncReport, VerifyReport
    from asyncsync.status import EngineStatus, EngineTotals, FlushReport, OperationTotals, RunningEngine, TrialStatus
    from asyncsync.status_file import running_engines
    from asyncsync.storage.entries import StoredEntry
    from asyncsync.storage.shared import Writer
    from asyncsync.storage.storage import Storage
    from asyncsync.storage.summaries import CheckpointSummary, TrialSummary
    from asyncsync.sync.event_stream import EventStream
    from asyncsync.sync.syncer import Syncer, push

_MODULES = {
    "asyncsync.config": ("CheckpointConfig", "RunConfig", "SyncConfig", "TransferConfig", "UploadMode"),
    "asyncsync.engine.engine": ("SyncEngine",),
    "asyncsync.status_file": ("running_engines",),
    "asyncsync.engine.trial": ("Report", "Trial"),
    "asyncsync.engine.trials.checkpoint": ("Checkpoint", "CheckpointHandle"),
    "asyncsync.errors": (
        "AccessDeniedError",
        "AsyncsyncError",
        "CheckpointIncompleteError",
        "CheckpointReplacedError",
        "CheckpointRetiredError",
        "ConcurrentWriterError",
        "ConfigError",
        "DamagedError",
        "EngineClosedError",
        "ExperimentExistsError",
        "IntegrityError",
        "LocalDiskError",
        "NoSuchBucketError",
        "NotFoundError",
        "PreconditionError",
        "RangeNotSatisfiedError",
        "SourceChangedError",
        "StoreError",
        "SyncError",
        "SyncFailedError",
        "SyncTimeoutError",
        "ThrottledError",
        "UnavailableError",
        "UnsupportedError",
    ),
    "asyncsync.planning.document": ("__version__",),
    "asyncsync.remote.views.contents": ("ExperimentSummary", "contents"),
    "asyncsync.remote.views.experiment": ("Experiment",),
    "asyncsync.remote.manage.browse": ("StoredObject", "browse", "read_object"),
    "asyncsync.remote.manage.copy_objects": ("copy",),
    "asyncsync.remote.manage.diagnose": ("Finding", "diagnose"),
    "asyncsync.remote.views.checkpoint_marks": ("pin", "tag", "unpin"),
    "asyncsync.remote.manage.pull_preview": ("PullPlan", "plan_pull"),
    "asyncsync.remote.manage.remove": ("RemoveReport", "remove"),
    "asyncsync.remote.prune": ("prune",),
    "asyncsync.remote.pull": ("pull",),
    "asyncsync.remote.repair": ("repair",),
    "asyncsync.remote.verify": ("verify",),
    "asyncsync.remote.views.checkpoint_view": ("CheckpointView",),
    "asyncsync.remote.views.trial_view": ("TrialView",),
    "asyncsync.report": ("PruneReport", "RepairReport", "SyncReport", "VerifyReport"),
    "asyncsync.status": (
        "EngineStatus",
        "EngineTotals",
        "FlushReport",
        "OperationTotals",
        "RunningEngine",
        "TrialStatus",
    ),
    "asyncsync.sync.event_stream": ("EventStream",),
    "asyncsync.sync.syncer": ("Syncer", "push"),
    "asyncsync.storage.entries": ("StoredEntry",),
    "asyncsync.storage.shared": ("Writer",),
    "asyncsync.storage.storage": ("Storage",),
    "asyncsync.storage.summaries": ("CheckpointSummary", "TrialSummary"),
}
"""The public names of each module. A module is imported when one of its names is used first: the command shows its help
without an event loop, and a training process imports no operation on stored experiments."""
_IMPORTED_ON_FIRST_USE = {name: module for module, names in _MODULES.items() for name in names}
_PUBLIC_MODULES = ("blocking", "cli", "config", "errors", "events", "report", "status", "stores", "testing", "ui")

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
    "EngineTotals",
    "EventStream",
    "Experiment",
    "ExperimentExistsError",
    "ExperimentSummary",
    "Finding",
    "FlushReport",
    "IntegrityError",
    "LocalDiskError",
    "NoSuchBucketError",
    "NotFoundError",
    "OperationTotals",
    "PreconditionError",
    "PruneReport",
    "PullPlan",
    "RangeNotSatisfiedError",
    "RemoveReport",
    "RepairReport",
    "Report",
    "RunConfig",
    "RunningEngine",
    "SourceChangedError",
    "Storage",
    "StoreError",
    "StoredEntry",
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
    "TrialSummary",
    "TrialView",
    "UnavailableError",
    "UnsupportedError",
    "UploadMode",
    "VerifyReport",
    "Writer",
    "__version__",
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
    "running_engines",
    "tag",
    "unpin",
    "verify",
]


if not TYPE_CHECKING:  # type checkers would take every misspelled name for an object

    def __getattr__(name: str) -> object:
        """Import one of the names in ``_IMPORTED_ON_FIRST_USE``, or one of the public modules."""
        if name in _PUBLIC_MODULES:
            return importlib.import_module(f"asyncsync.{name}")
        if name not in _IMPORTED_ON_FIRST_USE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_IMPORTED_ON_FIRST_USE[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
