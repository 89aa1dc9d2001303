"""What an operation did, as data. Sizes in bytes, times in seconds, paths relative to what was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SyncReport:
    """What a sync moved. For ``pull`` and ``sync_down``, "sent" is what was fetched from the store."""

    files_sent: int = 0
    """Files whose bytes travelled."""
    files_skipped: int = 0
    """Files that were there and right already."""
    bytes_total: int = 0
    """Of all files, whether they travelled or not."""
    bytes_sent: int = 0
    """Of what travelled; less than the size of the files where only changed parts were sent."""
    bytes_copied: int = 0
    """Copied inside the store, without passing through this machine."""
    requests: int = 0
    """Requests to the store, repeated ones included."""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    """What was left out, and why: one line each."""
    files_vanished: int = 0
    """Files that were gone when they were to be read; left out, not an error."""
    files_deleted: int = 0
    """Objects deleted because their file is gone, where ``SyncConfig(delete=True)``; of ``pull(exact=True)``, files and
    links that were removed here."""
    files_copied: int = 0
    """Files that the store copied from an equal one it had, such as those that were renamed."""
    files_left_out: int = 0
    """Files whose names no store could hold; ``warnings`` name them."""


@dataclass(frozen=True)
class VerifyReport:
    """Whether the store holds what the manifests below a prefix name."""

    trees: int = 0
    """Manifests that were checked."""
    files: int = 0
    """Files that they name."""
    bytes: int = 0
    """Size of those files."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Path -> what is wrong: another size or checksum, or a manifest or record that cannot be read."""
    missing: list[str] = field(default_factory=list)
    """Paths that a manifest or record names and the store has not."""
    stray: list[str] = field(default_factory=list)
    """Objects that no manifest names, and directories (ending in ``/``) of checkpoints that were never completed or
    are being uploaded. Harmless: no reader sees them, ``prune`` removes the latter."""
    deep: bool = False
    """Whether every byte was read; otherwise sizes, and checksums where the store tells them."""
    requests: int = 0
    """Requests to the store."""
    seconds: float = 0.0
    replaced: list[str] = field(default_factory=list)
    """Those of ``damaged`` that are another object (ETag, generation) than the manifest means: somebody has written it
    anew since, and nothing has rotted."""

    @property
    def ok(self) -> bool:
        """Nothing is damaged or missing."""
        return not self.damaged and not self.missing


@dataclass(frozen=True)
class RepairReport:
    """What ``verify --repair`` did."""

    found: VerifyReport
    """As it was before."""
    repaired: list[str] = field(default_factory=list)
    """Paths that were sent again and read back right."""
    failed: dict[str, str] = field(default_factory=dict)
    """Path -> why it could not be repaired."""
    left: VerifyReport = field(default_factory=VerifyReport)
    """As it is now."""

    @property
    def ok(self) -> bool:
        """Nothing is damaged or missing any more."""
        return self.left.ok


@dataclass(frozen=True)
class PruneReport:
    """What ``prune`` removed or, as a dry run, would remove."""

    dry_run: bool = True
    uploads: list[str] = field(default_factory=list)
    """Keys of multipart uploads that nobody completed."""
    checkpoints: list[str] = field(default_factory=list)
    """Directories of checkpoints that were never completed, or were retired."""
    objects: int = 0
    """Objects in those directories."""
    bytes: int = 0
    """Their size; parts of open uploads are not counted."""
    requests: int = 0
    """Requests to the store."""
    seconds: float = 0.0
    unreadable: dict[str, str] = field(default_factory=dict)
    """Record or manifest -> why it cannot be read: whatever it may name was left alone."""
