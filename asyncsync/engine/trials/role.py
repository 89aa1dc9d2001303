"""Private: which rank of how many an engine is."""

from __future__ import annotations

from dataclasses import dataclass

from asyncsync.errors import ConfigError
from asyncsync.planning.ranks import rank_name

MOST_RANKS = 99_999
"""Ranks have five digits in names."""


@dataclass(frozen=True, slots=True)
class Role:
    """Which part of the experiment a process is: the driver, or one that only runs trials; and which rank of them."""

    name: str = "driver"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.name not in ("driver", "worker"):
            raise ConfigError(f'invalid SyncEngine(role={self.name!r}): must be "driver" or "worker"')
        if not _whole(self.world_size) or not 1 <= self.world_size <= MOST_RANKS:
            raise ConfigError(f"invalid SyncEngine(world_size={self.world_size!r}): must be 1 to {MOST_RANKS}")
        if not _whole(self.rank) or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"invalid SyncEngine(rank={self.rank!r}, world_size={self.world_size}): rank must be 0 to "
                f"{self.world_size - 1}"
            )
        if self.rank and self.is_driver:
            raise ConfigError(
                f'invalid SyncEngine(rank={self.rank}, role="driver"): only rank 0 may be the driver, give '
                'role="worker"'
            )

    @property
    def is_driver(self) -> bool:
        """Whether it keeps the experiment's record and own files."""
        return self.name == "driver"

    @property
    def leads(self) -> bool:
        """Whether it keeps the records and directories of its trials: rank 0."""
        return self.rank == 0

    def directory(self, trial: str) -> str:
        """Where its artifacts of a trial are, below the experiment."""
        return trial if self.leads else f"{trial}/{rank_name(self.rank)}"

    def others(self) -> frozenset[str]:
        """Directories in a trial's that belong to other ranks."""
        return frozenset(rank_name(rank) for rank in range(1, self.world_size)) if self.leads else frozenset()


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
