"""The errors that asyncsync raises.

Every error is an :class:`AsyncsyncError`. Where Python has a builtin for the same condition, the class also derives
from that builtin, so ``except TimeoutError`` and ``except FileNotFoundError`` work as expected.
"""

from __future__ import annotations

from collections.abc import Mapping


class AsyncsyncError(Exception):
    """Base class of every error that asyncsync raises on purpose."""


class ConfigError(AsyncsyncError, ValueError):
    """A setting or an argument is invalid: the message names the field, the value and the allowed values."""


class SyncError(AsyncsyncError):
    """A sync, or the experiment that it belongs to, failed."""


class SyncTimeoutError(SyncError, TimeoutError):
    """A sync ran for ``sync_timeout`` seconds and was cancelled; the message says what is done and what is missing."""


class SyncFailedError(SyncError):
    """Some files could not be synced.

    ``failures`` maps each path (or tree) that is not durable to the exception that caused it.
    """

    def __init__(self, message: str, failures: Mapping[str, BaseException] | None = None) -> None:
        super().__init__(message)
        self.failures: dict[str, BaseException] = dict(failures or {})


class LocalDiskError(SyncError, OSError):
    """This machine's disk refused a file or directory of the experiment or of a checkpoint: it is full, read-only,
    broken, or belongs to another user. The message says what was not done and names the path; ``errno`` is the system's
    number."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.errno = number


class ExperimentExistsError(SyncError):
    """The experiment is already in the store; pass ``resume=True`` to resume it, or choose another name."""


class SourceChangedError(SyncError):
    """A file kept changing while it was read, or a file of a checkpoint changed before it was durable; no manifest
    names it."""


class ConcurrentWriterError(SyncError):
    """Another process writes to the same record or prefix; nothing that it wrote was overwritten."""


class EngineClosedError(SyncError):
    """The engine or syncer is not running: it was not entered yet, or it was left."""


class CheckpointReplacedError(SyncError):
    """A newer checkpoint took the place of a pending one whose upload had not begun; see
    ``CheckpointConfig.when_full``."""


class CheckpointIncompleteError(AsyncsyncError):
    """A checkpoint has no manifest, or lacks files that its manifest names."""


class CheckpointRetiredError(CheckpointIncompleteError):
    """A checkpoint was retired after its trial's record was read; ``newest`` is the URI of the trial's newest
    checkpoint, or None."""

    def __init__(self, message: str, newest: str | None = None) -> None:
        super().__init__(message)
        self.newest = newest


class StoreError(AsyncsyncError):
    """A store refused or failed a request. ``retryable``: whether the same request may succeed later."""

    retryable = False
    code = ""
    """The store's own error code, such as ``NoSuchBucket``; empty if it gave none."""


class NotFoundError(StoreError, FileNotFoundError):
    """The object, bucket or upload does not exist."""


class NoSuchBucketError(NotFoundError):
    """The bucket itself does not exist."""


class RangeNotSatisfiedError(StoreError):
    """A requested range begins at or after the end of the object (HTTP 416)."""


class UnsupportedError(StoreError):
    """The store does not implement this kind of request, or one of its headers (HTTP 405, 501)."""


class AccessDeniedError(StoreError, PermissionError):
    """The credentials do not allow the request; the message names it."""


class PreconditionError(StoreError):
    """A conditional write found a version other than the expected one (HTTP 412 or 409)."""


class IntegrityError(StoreError):
    """Bytes do not match their checksum: they were damaged in transit (``retryable``) or at rest."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class DamagedError(IntegrityError, SyncError):
    """A record, a manifest or a rank's part in the store cannot be read: it is damaged, inconsistent, names paths that
    would leave a target, or was written by a newer asyncsync. The message begins with ``uri``, the object's address. A
    retry cannot succeed."""

    def __init__(self, message: str, *, uri: str = "") -> None:
        super().__init__(message)
        self.uri = uri


class UnavailableError(StoreError, ConnectionError):
    """The store does not respond, closed the connection, or responded with 5xx."""

    retryable = True


class LeaseExpiredError(UnavailableError):
    """A write was not started, or not finished, because the right to write was not confirmed in time. It is retried."""


class ThrottledError(StoreError):
    """The store asks for fewer requests (429, 503 SlowDown). ``retry_after``: the delay that it asked for, seconds, or
    None."""

    retryable = True

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
