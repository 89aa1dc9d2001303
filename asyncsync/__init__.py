"""asyncsync keeps the files of machine-learning experiments safe while training runs."""

from asyncsync.checkpoints import Checkpoint
from asyncsync.config import CheckpointConfig, RunConfig, SyncConfig, TransferConfig, UploadMode
from asyncsync.engine import SyncEngine
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
    NotFoundError,
    SourceChangedError,
    StoreError,
    SyncError,
    SyncFailedError,
    SyncTimeoutError,
    ThrottledError,
    UnavailableError,
)
from asyncsync.experiment import Experiment
from asyncsync.planning.document import __version__
from asyncsync.reading import pull
from asyncsync.repairing import repair
from asyncsync.report import RepairReport, SyncReport, VerifyReport
from asyncsync.status import EngineStatus, FlushReport, TrialStatus
from asyncsync.syncer import Syncer, push
from asyncsync.trial import Report, Trial
from asyncsync.verifying import verify

__all__ = [
    "AccessDeniedError",
    "AsyncsyncError",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointIncompleteError",
    "CheckpointRetiredError",
    "ConcurrentWriterError",
    "ConfigError",
    "DamagedError",
    "EngineClosedError",
    "EngineStatus",
    "Experiment",
    "ExperimentExistsError",
    "FlushReport",
    "IntegrityError",
    "NotFoundError",
    "RepairReport",
    "Report",
    "RunConfig",
    "SourceChangedError",
    "StoreError",
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
    "UnavailableError",
    "UploadMode",
    "VerifyReport",
    "__version__",
    "pull",
    "push",
    "repair",
    "verify",
]
