"""The results of operations, as data. Sizes are bytes, durations seconds, paths relative to the given URI."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SyncReport:
    """The result of a sync. For ``pull`` and ``sync_down``, "sent" means fetched from the store."""

    files_sent: int = 0
    """Files whose bytes were transferred, all or some of them."""
    files_skipped: int = 0
    """Files that were already up to date."""
    bytes_total: int = 0
    """Size of all files, transferred or not."""
    bytes_sent: int = 0
    """Bytes transferred; less than the size of the files where only changed parts were sent."""
    bytes_copied: int = 0
    """Bytes that the store copied itself, without passing through this machine."""
    requests: int = 0
    """Requests to the store, retries included."""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    """One line for each thing that was left out, with the reason."""
    files_vanished: int = 0
    """Files that vanished between the scan and the upload; they are left out, which is not an error."""
    files_deleted: int = 0
    """Objects deleted in the store because their local file was deleted (``SyncConfig(delete=True)``); for
    ``pull(exact=True)``, files and links removed from the local directory."""
    files_copied: int = 0
    """Files that the store copied from an equal file, such as renamed files."""
    files_left_out: int = 0
    """Files left out because no store can hold their names; ``warnings`` lists them."""
    not_ready: tuple[str, ...] = ()
    """Directories that were left alone because their marker is missing, or that changed while they were sent; see
    ``SyncConfig.ready``."""


@dataclass(frozen=True)
class VerifyReport:
    """The result of comparing a store with the manifests below a prefix."""

    trees: int = 0
    """Number of manifests checked."""
    files: int = 0
    """Number of files that the manifests name."""
    bytes: int = 0
    """Size of these files, bytes."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Path -> problem: a different size or checksum, or an unreadable manifest or record."""
    missing: list[str] = field(default_factory=list)
    """Paths that a manifest or record names and the store does not have."""
    stray: list[str] = field(default_factory=list)
    """Objects that no manifest names, and directories (ending in ``/``) of checkpoints that were never completed or
    that are being uploaded. They are harmless: no reader sees them, and ``prune`` removes old checkpoint
    directories."""
    deep: bool = False
    """True: every byte was read. False: sizes, versions, and checksums where the store keeps them."""
    requests: int = 0
    """Requests to the store."""
    seconds: float = 0.0
    replaced: list[str] = field(default_factory=list)
    """The damaged paths whose object has another version (ETag, generation) than the manifest names: they were written
    again after the manifest, and are not corrupted at rest."""

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not self.damaged and not self.missing


@dataclass(frozen=True)
class RepairReport:
    """The result of ``repair`` (``verify --repair``)."""

    found: VerifyReport
    """The state before the repair."""
    repaired: list[str] = field(default_factory=list)
    """Paths that were sent again and read back correctly."""
    failed: dict[str, str] = field(default_factory=dict)
    """Path -> why it was not repaired."""
    left: VerifyReport = field(default_factory=VerifyReport)
    """The state after the repair."""

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged or missing after the repair."""
        return self.left.ok


@dataclass(frozen=True)
class PruneReport:
    """The data that ``prune`` removed or, in a dry run, would remove."""

    dry_run: bool = True
    uploads: list[str] = field(default_factory=list)
    """Keys of abandoned multipart uploads."""
    checkpoints: list[str] = field(default_factory=list)
    """Directories of checkpoints that were never completed or were retired."""
    segments: list[str] = field(default_factory=list)
    """Keys of segments of manifests that no manifest names any more."""
    objects: int = 0
    """Number of these segments and of the objects in these directories."""
    bytes: int = 0
    """Size of these objects, bytes; parts of open uploads are not counted."""
    requests: int = 0
    """Requests to the store."""
    seconds: float = 0.0
    unreadable: dict[str, str] = field(default_factory=dict)
    """Record or manifest -> why it cannot be read. Everything that it may name stays."""
