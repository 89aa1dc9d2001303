"""Settings: frozen, checked when they are made. Seconds are floats or ``timedelta``, sizes bytes.

``SyncConfig`` keeps the names, the order and the defaults of ``ray.train.SyncConfig``.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Literal

from asyncsync.errors import ConfigError
from asyncsync.runtime import state_directory

Seconds = float | timedelta
DEPRECATED = "DEPRECATED"
DEFAULT_STORAGE_PATH = "~/asyncsync_results"

_REPLACEMENTS = {
    "upload_dir": "set RunConfig(storage_path=...) instead",
    "syncer": "asyncsync chooses the store by the URL in RunConfig(storage_path=...)",
    "sync_on_checkpoint": "checkpoints are always synced; for artifacts use sync_artifacts_on_checkpoint",
}


class UploadMode(Enum):
    """How ``Trial.report`` treats the checkpoint that it is given."""

    SYNC = "sync"
    """``report`` returns when the checkpoint is durable."""
    ASYNC = "async"
    """``report`` returns once the checkpoint is accepted; it becomes durable in the background."""
    NO_UPLOAD = "no_upload"
    """Nothing is sent: the checkpoint stays where it is."""


def _refuse(owner: object, name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{type(owner).__name__}({name}={value!r}) is not usable: {name} must be {allowed}")


def _seconds(owner: object, name: str, *, positive: bool, none: bool = False) -> None:
    """Check a duration and store it as float seconds."""
    value = getattr(owner, name)
    if value is None and none:
        return
    allowed = f"{'more than' if positive else 'at least'} 0 seconds (number or timedelta){', or None' if none else ''}"
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _refuse(owner, name, value, allowed)
    if value < 0 or (positive and value == 0):
        raise _refuse(owner, name, value, allowed)
    object.__setattr__(owner, name, float(value))


def _whole(owner: object, name: str, least: int, *, none: bool = False) -> None:
    value = getattr(owner, name)
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _refuse(owner, name, value, f"a whole number >= {least}{' or None' if none else ''}")


def _flag(owner: object, name: str) -> None:
    if not isinstance(getattr(owner, name), bool):
        raise _refuse(owner, name, getattr(owner, name), "True or False")


def _patterns(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise _refuse(owner, name, value, 'a sequence of gitignore patterns, such as ("*.tmp", "cache/")')
    object.__setattr__(owner, name, tuple(value))


@dataclass(frozen=True)
class SyncConfig:
    """When and what to sync. Positional order and defaults are those of ``ray.train.SyncConfig``."""

    sync_period: Seconds = 300.0
    """Least seconds between two syncs of one tree, start to start; the first is at once; 0 = no limit.
    Default 300: a crash costs at most five minutes of artifacts."""
    sync_timeout: Seconds | None = 1800.0
    """Most seconds that one sync may run; then it is ended and ``SyncTimeoutError`` is raised. None = no limit."""
    sync_artifacts: bool = False
    """Whether files in a trial's directory, other than those that asyncsync writes there, are synced."""
    sync_artifacts_on_checkpoint: bool = True
    """Force an artifact sync with every reported checkpoint; only has an effect with ``sync_artifacts``."""
    upload_dir: object = DEPRECATED
    """Deprecated and ignored: set ``RunConfig(storage_path=...)``."""
    syncer: object = DEPRECATED
    """Deprecated and ignored: the URL in ``storage_path`` chooses the store."""
    sync_on_checkpoint: object = DEPRECATED
    """Deprecated and ignored: checkpoints are always synced."""
    _: KW_ONLY
    include: Sequence[str] = ()
    """gitignore patterns; if there are any, only files that match one are synced."""
    exclude: Sequence[str] = ()
    """gitignore patterns of files that are never synced; wins over ``include``."""
    symlinks: Literal["inside", "follow", "skip"] = "inside"
    """``inside``: follow links that stay inside the tree; ``follow``: all (loops are found); ``skip``: none."""
    delete: bool = False
    """Whether a file that vanished locally is deleted in the store too. Default False: freeing local disk loses
    nothing."""
    max_delete: int | None = None
    """Most files that one sync may delete with ``delete``; if more have vanished, it fails and nothing is sent or
    deleted. Default None: any number, but not all there are, because a directory that became empty is more often a disk
    that is not mounted."""

    def __post_init__(self) -> None:
        _seconds(self, "sync_period", positive=False)
        _seconds(self, "sync_timeout", positive=True, none=True)
        for name in ("sync_artifacts", "sync_artifacts_on_checkpoint", "delete"):
            _flag(self, name)
        if self.max_delete is not None and (type(self.max_delete) is not int or self.max_delete < 0):
            raise _refuse(self, "max_delete", self.max_delete, "None or a whole number from 0 on")
        _patterns(self, "include")
        _patterns(self, "exclude")
        if self.symlinks not in ("inside", "follow", "skip"):
            raise _refuse(self, "symlinks", self.symlinks, '"inside", "follow" or "skip"')
        for name, instead in _REPLACEMENTS.items():
            if getattr(self, name) != DEPRECATED:
                message = f"SyncConfig({name}=...) is deprecated and ignored: {instead}"
                warnings.warn(message, DeprecationWarning, stacklevel=3)

    @property
    def period(self) -> float:
        """``sync_period`` in seconds."""
        return float(self.sync_period)  # type: ignore[arg-type]

    @property
    def timeout(self) -> float | None:
        """``sync_timeout`` in seconds."""
        return None if self.sync_timeout is None else float(self.sync_timeout)  # type: ignore[arg-type]


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints of a trial are kept."""

    num_to_keep: int | None = None
    """Keep this many; None = all. The latest is always kept, so with a score there may be one more."""
    checkpoint_score_attribute: str | None = None
    """Metric that ranks checkpoints, nested as ``"eval/loss"``; None: the most recent rank best. NaN, missing and
    non-numeric scores rank worst, whatever the order."""
    checkpoint_score_order: Literal["max", "min"] = "max"
    """Whether a larger or a smaller score is better."""
    _: KW_ONLY
    max_pending_checkpoints: int = 2
    """How many ASYNC checkpoints of one trial may wait to become durable; the next ``report`` waits. Default 2: one
    that is sent and one that is ready, so that local disk use stays at three checkpoints a trial."""
    commit_timeout: Seconds = 1800.0
    """Seconds that a rank waits for the parts of the other ranks, once its own is sent; then it raises
    CheckpointIncompleteError. Only with several ranks. Default 1800, as ``sync_timeout``: what bounds their uploads."""

    def __post_init__(self) -> None:
        _whole(self, "num_to_keep", 1, none=True)
        _whole(self, "max_pending_checkpoints", 1)
        _seconds(self, "commit_timeout", positive=True)
        attribute = self.checkpoint_score_attribute
        if attribute is not None and (not isinstance(attribute, str) or not attribute):
            raise _refuse(self, "checkpoint_score_attribute", attribute, "a metric's name or None")
        if self.checkpoint_score_order not in ("max", "min"):
            raise _refuse(self, "checkpoint_score_order", self.checkpoint_score_order, '"max" or "min"')

    @property
    def commit_seconds(self) -> float:
        """``commit_timeout`` in seconds."""
        return float(self.commit_timeout)  # type: ignore[arg-type]


MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How bytes travel. One budget per engine, shared by all trials."""

    max_concurrency: int = 256
    """Most requests at once; the engine finds the useful number below it by itself. It begins with 64, of which 4 may
    carry bodies of more than 1 MiB."""
    part_size: int | None = None
    """Bytes per part of a large file; None: 16 MiB (Google Cloud Storage: 8 MiB), scaled up so that a file has under
    10,000 parts."""
    multipart_threshold: int = 32 * MIB
    """Files larger than this (bytes) are sent in parts, several at once."""
    bandwidth_limit: float | None = None
    """Most bytes per second, both directions together; None = no limit."""
    memory_limit: int | None = None
    """Most bytes held for requests under way: bounds those to ``memory_limit / 2 MiB``. In all, an upload holds
    ``requests x 2 MiB``, ``1 MiB`` for each thread that hashes (2 to 8) and ``4 MiB`` of small files that were read
    ahead for each tree that is being sent."""
    stall_timeout: Seconds = 30.0
    """A request that moves no byte in either direction for this long is ended and tried again."""
    connect_timeout: Seconds = 10.0
    """Most seconds to open a connection."""
    max_attempts: int = 6
    """Attempts in all per request, with full-jitter backoff between them."""
    threads: int = 16
    """Most worker threads for disk work, beside those that hash. The process has them once: what was opened first
    decides, until nothing is open any more."""
    request_cost_bytes: int = 64 * 1024
    """What a request costs, as bytes sent: a part of a file is copied inside the store only if that saves more.
    Default 64 KiB: about what a connection of 10 MB/s carries while one request is answered."""
    append_only: Sequence[str] = ("events.out.tfevents.*", "*.log", "*.jsonl", "result.json", "progress.csv")
    """Names (shell patterns) of files that are only ever appended to. If such a file of 256 MiB and more has grown and
    is the same file still, only its end is read and what is before is judged by 64 samples of 256 bytes: a short edit
    in the middle goes unnoticed if the file grew as well. Files that are edited in place must not match; ``()`` reads
    every file that changed whole, as ``checksum=True`` does."""

    def __post_init__(self) -> None:
        _whole(self, "max_concurrency", 1)
        _whole(self, "part_size", 5 * MIB, none=True)
        _whole(self, "multipart_threshold", 1)
        _whole(self, "memory_limit", 2 * MIB, none=True)
        _whole(self, "max_attempts", 1)
        _whole(self, "threads", 1)
        _whole(self, "request_cost_bytes", 0)
        _patterns(self, "append_only")
        _seconds(self, "stall_timeout", positive=True)
        _seconds(self, "connect_timeout", positive=True)
        limit = self.bandwidth_limit
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0):
            raise _refuse(self, "bandwidth_limit", limit, "more than 0 bytes per second, or None")


_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]+")


def check_name(owner: str, name: object) -> str:
    """Refuse names that could not be one directory below a prefix. ``owner`` says whose name it is."""
    allowed = 'one path segment of 1-200 bytes: no "/", "\\\\", control characters, "." or "..", ".asyncsync"'
    usable = isinstance(name, str) and _NAME.fullmatch(name) and name not in (".", "..", ".asyncsync")
    if not usable or len(str(name).encode("utf-8", "surrogatepass")) > 200:
        raise ConfigError(f"{owner} {name!r} is not usable: it must be {allowed}")
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{owner} {name!r} is not usable: it is not UTF-8") from error
    return str(name)


def check_apart(local_dir: Path, uri: str) -> None:
    """Refuse a local directory that is the store's own, or lies in it or around it."""
    if "://" in uri and not uri.startswith("file://"):
        return
    stored, local = Path(uri.removeprefix("file://")).resolve(), local_dir.resolve()
    if stored == local or stored in local.parents or local in stored.parents:
        raise ConfigError(
            f"local_dir and storage_path are the same place or lie in each other: {local} and {stored}; give another "
            "local_dir"
        )


@dataclass(frozen=True)
class RunConfig:
    """An experiment: its name, where it is stored, and how."""

    name: str | None = None
    """Directory name of the experiment below ``storage_path``; default ``run_<date>_<time>``."""
    storage_path: str | os.PathLike[str] | None = None
    """``s3://`` or ``gs://bucket/prefix``, an absolute path or ``file://`` URL; default ``~/asyncsync_results``."""
    sync_config: SyncConfig = field(default_factory=SyncConfig)
    checkpoint_config: CheckpointConfig = field(default_factory=CheckpointConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)
    """Options of the store (endpoint, region, profile, ...), see the stores page. Not shown in ``repr``: may hold
    secrets."""

    def __post_init__(self) -> None:
        name = self.name if self.name is not None else datetime.now().strftime("run_%Y-%m-%d_%H-%M-%S")  # noqa: DTZ005
        object.__setattr__(self, "name", check_name("RunConfig.name", name))
        object.__setattr__(self, "storage_path", _storage_path(self.storage_path))
        for spec, kind in zip(fields(self)[2:5], (SyncConfig, CheckpointConfig, TransferConfig), strict=True):
            if not isinstance(getattr(self, spec.name), kind):
                raise _refuse(self, spec.name, getattr(self, spec.name), f"a {kind.__name__}")
        if not isinstance(self.storage_options, Mapping):
            raise _refuse(self, "storage_options", type(self.storage_options), "a mapping")

    @property
    def uri(self) -> str:
        """Where the experiment is: ``{storage_path}/{name}``."""
        return f"{str(self.storage_path).rstrip('/')}/{self.name}"


def _storage_path(value: object) -> str:
    if value is None:
        value = DEFAULT_STORAGE_PATH
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigError(
            f"RunConfig(storage_path={value!r}) is not usable: give s3:// or gs://bucket/prefix, or an absolute path"
        )
    path = os.fspath(value)
    if isinstance(path, bytes):
        raise ConfigError(f"RunConfig(storage_path={value!r}) is not usable: it must be text")
    if "://" in path:
        return path.rstrip("/") if not path.endswith("://") else path
    expanded = Path(path).expanduser()
    if not expanded.is_absolute():
        raise ConfigError(
            f"RunConfig(storage_path={path!r}) is not usable: a relative path depends on where the program was "
            "started; give an absolute path, ~/..., file:///... or s3://bucket/prefix"
        )
    return str(expanded)


def state_dir() -> Path:
    """``$ASYNCSYNC_STATE_DIR``, else ``$XDG_STATE_HOME/asyncsync``, else ``~/.local/state/asyncsync``. ConfigError if
    that needs a home directory and the user has none."""
    own = state_directory() or os.environ.get("ASYNCSYNC_STATE_DIR")
    base = os.environ.get("XDG_STATE_HOME")
    try:
        if own:
            return Path(own).expanduser()
        return (Path(base) if base else Path("~/.local/state").expanduser()) / "asyncsync"
    except RuntimeError as error:  # no HOME, and the user is not in the system's list
        raise ConfigError(
            f"this user has no home directory to keep what asyncsync must remember ({error}): set "
            "ASYNCSYNC_STATE_DIR to a directory that stays"
        ) from None
