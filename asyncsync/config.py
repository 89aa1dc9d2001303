"""Settings: frozen dataclasses, validated when built. Durations are seconds (number or ``timedelta``), sizes bytes.

``SyncConfig`` keeps the names, the order and the defaults of ``ray.train.SyncConfig``.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Literal

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
    """How ``Trial.report`` handles a checkpoint."""

    SYNC = "sync"
    """``report`` returns when the checkpoint is durable."""
    ASYNC = "async"
    """``report`` returns once the checkpoint is accepted; it becomes durable in the background."""
    NO_UPLOAD = "no_upload"
    """Nothing is sent; the checkpoint stays in its local directory."""

    @classmethod
    def of(cls, value: UploadMode | str) -> UploadMode:
        """The mode, or the one with this value or name in any case, such as ``"async"``; ConfigError for others."""
        if isinstance(value, cls):
            return value
        modes = {mode.value: mode for mode in cls}
        if not isinstance(value, str) or value.lower() not in modes:
            raise ConfigError(
                f"invalid upload={value!r}: must be one of {', '.join(map(repr, modes))}, or an UploadMode"
            )
        return modes[value.lower()]


def _invalid(owner: object, name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"invalid {type(owner).__name__}.{name}={value!r}: must be {allowed}")


def _seconds(owner: object, name: str, *, positive: bool, none: bool = False) -> None:
    """Check a duration and store it as float seconds."""
    value = getattr(owner, name)
    if value is None and none:
        return
    allowed = f"{'more than' if positive else 'at least'} 0 seconds (number or timedelta){', or None' if none else ''}"
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _invalid(owner, name, value, allowed)
    if value < 0 or (positive and value == 0):
        raise _invalid(owner, name, value, allowed)
    object.__setattr__(owner, name, float(value))


def _integer(owner: object, name: str, least: int, *, none: bool = False) -> None:
    value = getattr(owner, name)
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _invalid(owner, name, value, f"an integer >= {least}{' or None' if none else ''}")


def _flag(owner: object, name: str) -> None:
    if not isinstance(getattr(owner, name), bool):
        raise _invalid(owner, name, getattr(owner, name), "True or False")


READY_PRESETS: dict[str, dict[str, tuple[str, ...]]] = {
    "transformers": {"checkpoint-*": ("trainer_state.json", "!checkpoint-is-incomplete.txt")},
    "lightning": {"*.ckpt": ("meta.pt",)},
    "torch": dict.fromkeys(("step-*", "step_*", "epoch-*", "epoch_*", "checkpoint-*", "*_dcp"), (".metadata",)),
    "accelerate": {"checkpoint_*": ("random_states_0.pkl",)},
}
"""Directories of each framework, and the file that it writes last."""


def _ready(owner: object, value: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The rules of ``SyncConfig.ready``; ConfigError for anything else."""
    presets = ", ".join(f'"{name}"' for name in READY_PRESETS)
    allowed = f'a mapping such as {{"checkpoint-*": "trainer_state.json"}}, one of {presets}, or None'
    if value is None:
        return ()
    rules = READY_PRESETS.get(value) if isinstance(value, str) else value
    if not isinstance(rules, Mapping):
        raise _invalid(owner, "ready", value, allowed)
    found = {name: (item,) if isinstance(item, str) else item for name, item in rules.items()}
    for pattern, markers in found.items():
        if not isinstance(pattern, str) or not pattern.strip() or not _are_markers(markers):
            raise _invalid(owner, "ready", value, allowed)
    if not isinstance(value, str):
        _check_patterns(owner, "ready", list(found))
    return tuple((pattern, tuple(markers)) for pattern, markers in found.items())


def _are_markers(markers: object) -> bool:
    """Whether these are paths in a directory, as a scan spells them, and at least one of them must exist."""
    if not isinstance(markers, Sequence) or not all(isinstance(name, str) for name in markers):
        return False
    names = [name.removeprefix("!") for name in markers]
    clean = all(part not in ("", ".", "..") for name in names for part in name.split("/"))
    return clean and any(not name.startswith("!") for name in markers)


def _patterns(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise _invalid(owner, name, value, 'a sequence of gitignore patterns, such as ("*.tmp", "cache/")')
    object.__setattr__(owner, name, tuple(value))


def _check_patterns(owner: object, name: str, patterns: Sequence[str]) -> None:
    """ConfigError for a pattern that gitignore does not allow. The library is imported for the first pattern."""
    if not patterns:
        return
    from pathspec import GitIgnoreSpec

    for pattern in patterns:
        try:
            GitIgnoreSpec.from_lines([pattern])
        except ValueError as error:
            raise _invalid(owner, name, pattern, f"a gitignore pattern ({error})") from error


@dataclass(frozen=True)
class SyncConfig:
    """Which files to sync, and when. Positional order and defaults are those of ``ray.train.SyncConfig``."""

    sync_period: Seconds = 300.0
    """Minimum time between two syncs of one tree, start to start, seconds. The first sync starts at once. 0: no limit.
    Default 300: a crash loses at most five minutes of artifacts."""
    sync_timeout: Seconds | None = 1800.0
    """Maximum duration of one sync, seconds; then the sync is cancelled and raises ``SyncTimeoutError``. None: no
    limit."""
    sync_artifacts: bool = False
    """Sync the files in a trial's directory. The files that asyncsync writes there are always synced."""
    sync_artifacts_on_checkpoint: bool = True
    """Force an artifact sync with every reported checkpoint. Without ``sync_artifacts`` this has no effect."""
    upload_dir: object = DEPRECATED
    """Deprecated and ignored: set ``RunConfig(storage_path=...)``."""
    syncer: object = DEPRECATED
    """Deprecated and ignored: the URL in ``storage_path`` chooses the store."""
    sync_on_checkpoint: object = DEPRECATED
    """Deprecated and ignored: checkpoints are always synced."""
    _: KW_ONLY
    include: Sequence[str] = ()
    """gitignore patterns. If any are given, only files that match one of them are synced."""
    exclude: Sequence[str] = ()
    """gitignore patterns of files that are never synced; takes precedence over ``include``."""
    symlinks: Literal["inside", "follow", "skip"] = "inside"
    """``inside``: follow links that stay inside the tree; ``follow``: follow all links (loops are detected); ``skip``:
    follow none."""
    delete: bool = False
    """Delete a file in the store when it was deleted locally. Default False: freeing local disk space loses nothing."""
    max_delete: int | None = None
    """Maximum number of files that one sync may delete (with ``delete``). If more are missing locally, the sync fails
    and sends and deletes nothing. Default None: any number but not all files, because an empty directory is more often
    a disk that is not mounted."""
    heartbeat: Seconds | None = 60.0
    """Longest time between two writes of the experiment's record while the engine runs, seconds: two small requests
    per period, and none if the record is written anyway. Readers count a running experiment as lost after three periods
    without one. None: no heartbeat; then a killed engine shows only on its own machine."""
    ready: Mapping[str, str | Sequence[str]] | str | None = field(default=None, hash=False)
    """Directories that are complete only once a marker exists: gitignore pattern -> path of the marker in the
    directory, or several; one that begins with ``!`` must not exist. Until then such a directory is left alone. Then
    it is synced as one unit: the marker after all other files, and the manifest names all of it or nothing. Or the
    name of a preset: ``transformers``, ``lightning``, ``torch``, ``accelerate``. Default None: every file is synced as
    it is found."""

    def __post_init__(self) -> None:
        _seconds(self, "heartbeat", positive=True, none=True)
        _seconds(self, "sync_period", positive=False)
        _seconds(self, "sync_timeout", positive=True, none=True)
        for name in ("sync_artifacts", "sync_artifacts_on_checkpoint", "delete"):
            _flag(self, name)
        if self.max_delete is not None and (type(self.max_delete) is not int or self.max_delete < 0):
            raise _invalid(self, "max_delete", self.max_delete, "None or an integer >= 0")
        _patterns(self, "include")
        _patterns(self, "exclude")
        _check_patterns(self, "include", self.include)
        _check_patterns(self, "exclude", self.exclude)
        _ready(self, self.ready)
        if self.symlinks not in ("inside", "follow", "skip"):
            raise _invalid(self, "symlinks", self.symlinks, '"inside", "follow" or "skip"')
        for name, instead in _REPLACEMENTS.items():
            if getattr(self, name) != DEPRECATED:
                message = f"SyncConfig({name}=...) is deprecated and ignored: {instead}"
                warnings.warn(message, DeprecationWarning, stacklevel=3)

    @property
    def ready_rules(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """``ready`` as pairs of pattern and markers."""
        return _ready(self, self.ready)

    @property
    def period(self) -> float:
        """``sync_period`` in seconds."""
        return float(self.sync_period)  # type: ignore[arg-type]

    @property
    def timeout(self) -> float | None:
        """``sync_timeout`` in seconds."""
        return None if self.sync_timeout is None else float(self.sync_timeout)  # type: ignore[arg-type]

    @property
    def heartbeat_seconds(self) -> float | None:
        """``heartbeat`` in seconds."""
        return None if self.heartbeat is None else float(self.heartbeat)  # type: ignore[arg-type]


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints of a trial are kept, and how many may be pending."""

    num_to_keep: int | None = None
    """Number of checkpoints to keep; None: all. The latest one is always kept, so with a score there may be one
    more."""
    checkpoint_score_attribute: str | None = None
    """Metric that ranks checkpoints, nested as ``"eval/loss"``. None: the most recent checkpoints rank best. NaN,
    missing and non-numeric scores rank worst in both orders."""
    checkpoint_score_order: Literal["max", "min"] = "max"
    """``max``: a larger score is better; ``min``: a smaller one."""
    _: KW_ONLY
    max_pending_checkpoints: int = 2
    """Maximum number of ASYNC checkpoints of one trial that are not durable; then the next ``report`` waits. Default 2:
    one is sent and one is ready, so a trial uses local disk space for three checkpoints."""
    commit_timeout: Seconds = 1800.0
    """How long a rank that has sent its own part waits for the parts of the other ranks, seconds; then it raises
    CheckpointIncompleteError. Only with several ranks. Default 1800, like ``sync_timeout``, which bounds their
    uploads."""
    when_full: Literal["wait", "replace"] = "wait"
    """Behaviour of an ASYNC ``report`` when ``max_pending_checkpoints`` are pending. ``wait``: it waits. ``replace``:
    its checkpoint takes the place of the oldest ASYNC one whose upload has not begun; if all have begun, it waits. The
    replaced checkpoint is never stored, and its directory is deleted if asyncsync owns it. Only with one rank."""
    keep_every: int | None = None
    """Keep every checkpoint whose step is a multiple of this (its number, if it was reported without a step), beside
    those of ``num_to_keep``, which do not include them. None: no such rule."""
    keep_pinned: bool = True
    """Keep pinned checkpoints beside those of ``num_to_keep``, which do not include them. See ``Trial.pin``."""
    latest_file: str | None = None
    """Name of a file in the trial's directory, such as ``"latest"``, that holds the name of the newest durable
    checkpoint, for loaders that look for one. It is written after the record, and synced at once. Keep two checkpoints
    or more if others read it: the one that it names may be retired before it is replaced. None: no such file."""
    on_durable: Callable[[Any], object] | None = field(default=None, compare=False)
    """Called after a checkpoint is durable, one call at a time and in order, with the event
    :class:`asyncsync.events.CheckpointDurable`. A coroutine function runs on the engine's loop, any other callable in a
    thread. It delays no checkpoint; its failure is an event, ``CallbackFailed``. Leaving the engine waits for it. Every
    rank calls its own."""

    def __post_init__(self) -> None:
        _integer(self, "num_to_keep", 1, none=True)
        _integer(self, "max_pending_checkpoints", 1)
        _integer(self, "keep_every", 1, none=True)
        _flag(self, "keep_pinned")
        _seconds(self, "commit_timeout", positive=True)
        attribute = self.checkpoint_score_attribute
        if attribute is not None and (not isinstance(attribute, str) or not attribute):
            raise _invalid(self, "checkpoint_score_attribute", attribute, "the name of a metric, or None")
        if self.checkpoint_score_order not in ("max", "min"):
            raise _invalid(self, "checkpoint_score_order", self.checkpoint_score_order, '"max" or "min"')
        if self.when_full not in ("wait", "replace"):
            raise _invalid(self, "when_full", self.when_full, '"wait" or "replace"')
        if self.latest_file is not None:
            check_name("CheckpointConfig.latest_file", self.latest_file)
        if self.on_durable is not None and not callable(self.on_durable):
            raise _invalid(self, "on_durable", self.on_durable, "a function or None")

    @property
    def commit_seconds(self) -> float:
        """``commit_timeout`` in seconds."""
        return float(self.commit_timeout)  # type: ignore[arg-type]


MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Limits and sizes of transfers. Each engine has one budget, shared by all its trials."""

    max_concurrency: int = 256
    """Maximum number of requests in flight. The engine finds the useful number below it: it starts with 64, of which 4
    may carry bodies of more than 1 MiB. Fewer, and fewer threads, where the process may open few files (``ulimit -n``):
    a request holds up to 3 descriptors."""
    part_size: int | None = None
    """Size of the parts of a large file, bytes. None: 16 MiB (Google Cloud Storage: 8 MiB), more where a file would
    have more parts than its store allows (S3: 10,000)."""
    multipart_threshold: int = 32 * MIB
    """Files larger than this (bytes) are sent in parts, several in parallel."""
    bandwidth_limit: float | None = None
    """Maximum bytes per second, both directions together; None: no limit."""
    memory_limit: int | None = None
    """Maximum memory for requests in flight, bytes: limits their number to ``memory_limit / 2 MiB``. An upload holds
    ``requests x 2 MiB``, ``1 MiB`` for each hashing thread (2 to 8), and ``4 MiB`` of small files read ahead for each
    tree that is being sent."""
    stall_timeout: Seconds = 30.0
    """A request that moves no byte in either direction for this long (seconds) is cancelled and retried."""
    connect_timeout: Seconds = 10.0
    """Maximum time to open a connection, seconds."""
    max_attempts: int = 6
    """Maximum number of attempts per request, the first one included, with full-jitter backoff between them."""
    threads: int = 16
    """Maximum number of worker threads for disk work, in addition to the hashing threads. All engines of a process
    share them: the first one that is open decides the number."""
    request_cost_bytes: int = 64 * 1024
    """Cost of one request, expressed in bytes sent: a part of a file is copied inside the store only if that saves
    more. Default 64 KiB: about the bytes that a connection of 10 MB/s carries during one request."""
    append_only: Sequence[str] = ("events.out.tfevents.*", "*.log", "*.jsonl", "result.json", "progress.csv")
    """Shell patterns of names of files that only ever grow. If such a file of at least 5 MiB has grown and is still the
    same inode, only its end is sent, and the store copies the rest. From 256 MiB on only its end is read, too, and 64
    samples of 256 bytes decide whether the rest is unchanged: a short edit in the middle goes unnoticed if the file has
    also grown, so files that are edited in place must not match. ``()`` reads all bytes of every changed file, like
    ``checksum=True``, and sends files of up to ``multipart_threshold`` as a whole."""

    def __post_init__(self) -> None:
        _integer(self, "max_concurrency", 1)
        _integer(self, "part_size", 5 * MIB, none=True)
        _integer(self, "multipart_threshold", 1)
        _integer(self, "memory_limit", 2 * MIB, none=True)
        _integer(self, "max_attempts", 1)
        _integer(self, "threads", 1)
        _integer(self, "request_cost_bytes", 0)
        _patterns(self, "append_only")
        _seconds(self, "stall_timeout", positive=True)
        _seconds(self, "connect_timeout", positive=True)
        limit = self.bandwidth_limit
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0):
            raise _invalid(self, "bandwidth_limit", limit, "more than 0 bytes per second, or None")


_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]+")


def check_name(owner: str, name: object) -> str:
    """Return ``name`` if it can be one directory below a prefix, else raise ConfigError. ``owner`` is the name's owner
    in the message."""
    allowed = 'one path segment of 1-200 bytes: no "/", "\\\\", control characters, "." or "..", ".asyncsync"'
    valid = isinstance(name, str) and _NAME.fullmatch(name) and name not in (".", "..", ".asyncsync")
    if not valid or len(str(name).encode("utf-8", "surrogatepass")) > 200:
        raise ConfigError(f"invalid {owner} {name!r}: must be {allowed}")
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"invalid {owner} {name!r}: must be valid UTF-8") from error
    return str(name)


def check_apart(local_dir: Path, uri: str) -> None:
    """ConfigError if the local directory and the store's directory are the same, or one contains the other."""
    if "://" in uri and not uri.startswith("file://"):
        return
    stored, local = Path(uri.removeprefix("file://")).resolve(), local_dir.resolve()
    if stored == local or stored in local.parents or local in stored.parents:
        raise ConfigError(
            f"the local directory {local} and the storage path {stored} are the same place, or one contains the other; "
            "use another local directory"
        )


@dataclass(frozen=True)
class RunConfig:
    """An experiment: its name, its storage path and its settings."""

    name: str | None = None
    """Name of the experiment's directory below ``storage_path``. Default: ``run_<date>_<time>``."""
    storage_path: str | os.PathLike[str] | None = None
    """``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix``, an absolute path or a ``file://`` URL.
    Default: ``~/asyncsync_results``. A shared access signature in an address of Azure moves to ``storage_options``."""
    sync_config: SyncConfig = field(default_factory=SyncConfig)
    checkpoint_config: CheckpointConfig = field(default_factory=CheckpointConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)
    """Options of the store (endpoint, region, profile, ...), see the stores page. They may hold secrets, so ``repr``
    does not show them."""

    def __post_init__(self) -> None:
        name = self.name if self.name is not None else datetime.now().strftime("run_%Y-%m-%d_%H-%M-%S")  # noqa: DTZ005
        object.__setattr__(self, "name", check_name("RunConfig.name", name))
        path, options = self.storage_path, self.storage_options
        if isinstance(path, str) and isinstance(options, Mapping):
            path, options = split_sas(path, options)
        object.__setattr__(self, "storage_path", _storage_path(path))
        object.__setattr__(self, "storage_options", options)
        for spec, kind in zip(fields(self)[2:5], (SyncConfig, CheckpointConfig, TransferConfig), strict=True):
            if not isinstance(getattr(self, spec.name), kind):
                raise _invalid(self, spec.name, getattr(self, spec.name), f"a {kind.__name__}")
        if not isinstance(self.storage_options, Mapping):
            raise _invalid(self, "storage_options", type(self.storage_options), "a mapping")

    @property
    def uri(self) -> str:
        """Address of the experiment: ``{storage_path}/{name}``."""
        return f"{str(self.storage_path).rstrip('/')}/{self.name}"


_SIGNED_URI = re.compile(r"((?:az|abfss?|https)://[^?]*)\?([^?\s]*\bsig=[^?\s]+)", re.IGNORECASE)


def split_sas(uri: str, options: Mapping[str, object] | None) -> tuple[str, dict[str, object]]:
    """An address without its shared access signature (Azure), and the storage options with it: addresses are shown,
    recorded and extended, and options are not. Any other address is returned as it is."""
    found, given = _SIGNED_URI.fullmatch(uri), dict(options or {})
    if found is None:
        return uri, given
    return found[1], given | {"sas_token": found[2]}


def _storage_path(value: object) -> str:
    if value is None:
        value = DEFAULT_STORAGE_PATH
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigError(
            f"invalid RunConfig.storage_path={value!r}: must be s3:// or gs://bucket/prefix, az://container/prefix, "
            "or an absolute path"
        )
    path = os.fspath(value)
    if isinstance(path, bytes):
        raise ConfigError(f"invalid RunConfig.storage_path={value!r}: must be str, not bytes")
    if "://" in path:
        return path.rstrip("/") if not path.endswith("://") else path
    expanded = Path(path).expanduser()
    if not expanded.is_absolute():
        raise ConfigError(
            f"invalid RunConfig.storage_path={path!r}: must not be relative, because a relative path depends on the "
            "working directory; use an absolute path, ~/..., file:///... or s3://bucket/prefix"
        )
    return str(expanded)


def state_dir() -> Path:
    """The state directory: ``$ASYNCSYNC_STATE_DIR``, else ``$XDG_STATE_HOME/asyncsync``, else
    ``~/.local/state/asyncsync``. ConfigError if that needs a home directory and the user has none."""
    own = state_directory() or os.environ.get("ASYNCSYNC_STATE_DIR")
    base = os.environ.get("XDG_STATE_HOME")
    try:
        if own:
            return Path(own).expanduser()
        return (Path(base) if base else Path("~/.local/state").expanduser()) / "asyncsync"
    except RuntimeError as error:  # no HOME, and the user is not in the system's list
        raise ConfigError(
            f"no place for asyncsync's state: this user has no home directory ({error}); set ASYNCSYNC_STATE_DIR to a "
            "directory that persists"
        ) from None
