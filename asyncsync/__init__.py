"""asyncsync keeps the files of machine-learning experiments safe while training runs."""

from asyncsync.config import CheckpointConfig, RunConfig, SyncConfig, TransferConfig, UploadMode
from asyncsync.engine.engine import SyncEngine
from asyncsync.engine.trial import Report, Trial
from asyncsync.engine.trials.checkpoint import Checkpoint, CheckpointHandle
from asyncsync.errors import (
    AccessDeniedError,
    AsyncsyncError,
    CheckpointIncompleteError,
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
from asyncsync.remote.experiment import Experiment
from asyncsync.remote.prune import prune
from asyncsync.remote.pull import pull
from asyncsync.remote.repair import repair
from asyncsync.remote.verify import verify
from asyncsync.report import PruneReport, RepairReport, SyncReport, VerifyReport
from asyncsync.status import EngineStatus, FlushReport, TrialStatus
from asyncsync.storage.contents import StoredEntry
from asyncsync.storage.shared import Writer
from asyncsync.storage.storage import Storage
from asyncsync.storage.summaries import CheckpointSummary, TrialSummary
from asyncsync.sync.event_stream import EventStream
from asyncsync.sync.syncer import Syncer, push

__all__ = [
    "AccessDeniedError",
    "AsyncsyncError",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointHandle",
    "CheckpointIncompleteError",
    "CheckpointRetiredError",
    "CheckpointSummary",
    "ConcurrentWriterError",
    "ConfigError",
    "DamagedError",
    "EngineClosedError",
    "EngineStatus",
    "EventStream",
    "Experiment",
    "ExperimentExistsError",
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
    "UnavailableError",
    "UnsupportedError",
    "UploadMode",
    "VerifyReport",
    "Writer",
    "__version__",
    "prune",
    "pull",
    "push",
    "repair",
    "verify",
]
