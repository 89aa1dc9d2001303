"""What can go wrong, as a user meets it.

Every error is an :class:`AsyncsyncError`; where Python has a builtin for the same condition the class is that
builtin too, so ``except TimeoutError`` and ``except FileNotFoundError`` work as expected.
"""

from __future__ import annotations

from collections.abc import Mapping


class AsyncsyncError(Exception):
    """Base of every error that asyncsync raises on purpose."""


class ConfigError(AsyncsyncError, ValueError):
    """A setting is not usable: the message names the field, the value and what is allowed."""


class SyncError(AsyncsyncError):
    """A sync, or the experiment it belongs to, could not do what was asked."""


class SyncTimeoutError(SyncError, TimeoutError):
    """A sync ran for ``sync_timeout`` seconds and was ended; the message says what is done and what is missing."""


class SyncFailedError(SyncError):
    """Some files could not be synced.

    ``failures`` maps each path (or tree) that is not durable to the exception that is the cause.
    """

    def __init__(self, message: str, failures: Mapping[str, BaseException] | None = None) -> None:
        super().__init__(message)
        self.failures: dict[str, BaseException] = dict(failures or {})


class ExperimentExistsError(SyncError):
    """The experiment is already in the store; pass ``resume=True`` to continue it or choose another name."""


class SourceChangedError(SyncError):
    """A file kept changing while it was read; no manifest names it."""


class ConcurrentWriterError(SyncError):
    """Somebody else writes to the same record or prefix; nothing of theirs was overwritten."""


class EngineClosedError(SyncError):
    """The engine or syncer is not running (not entered yet, or already left)."""


class CheckpointIncompleteError(AsyncsyncError):
    """A checkpoint has no commit record, or lacks some of what the record names."""


class CheckpointRetiredError(CheckpointIncompleteError):
    """A checkpoint was retired after its record was read; ``newest`` is the URI of its trial's newest one, or None."""

    def __init__(self, message: str, newest: str | None = None) -> None:
        super().__init__(message)
        self.newest = newest


class StoreError(AsyncsyncError):
    """A store refused or failed a request. ``retryable`` says whether the same request may succeed later."""

    retryable = False
    code = ""
    """The store's own word for it, such as ``NoSuchBucket``; empty where it said none."""


class NotFoundError(StoreError, FileNotFoundError):
    """No such object, bucket or upload."""


class NoSuchBucketError(NotFoundError):
    """The bucket itself does not exist."""


class RangeNotSatisfiedError(StoreError):
    """A requested range begins at or after the end of the object (HTTP 416)."""


class UnsupportedError(StoreError):
    """The store does not implement this kind of request, or one of its headers (HTTP 405, 501)."""


class AccessDeniedError(StoreError, PermissionError):
    """The credentials do not allow this; the message names the request that was refused."""


class PreconditionError(StoreError):
    """A conditional write found another version than it expected (HTTP 412 or 409)."""


class IntegrityError(StoreError):
    """Bytes do not match their checksum: damaged in transit (``retryable``) or at rest."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class DamagedError(IntegrityError, SyncError):
    """A record, a manifest or a rank's part in the store cannot be read: it is damaged, contradicts itself, names paths
    that would leave a target, or was written by a newer asyncsync. The message begins with ``uri``, the object's
    address; trying again is of no use."""

    def __init__(self, message: str, *, uri: str = "") -> None:
        super().__init__(message)
        self.uri = uri


class UnavailableError(StoreError, ConnectionError):
    """The store does not answer, broke the connection, or answered 5xx."""

    retryable = True


class LeaseExpiredError(UnavailableError):
    """A write was not begun, or not ended, because the right to it was not confirmed in time. It is asked for again."""


class ThrottledError(StoreError):
    """The store asks for fewer requests (429, 503 SlowDown). ``retry_after`` is in seconds, if it said so."""

    retryable = True

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
