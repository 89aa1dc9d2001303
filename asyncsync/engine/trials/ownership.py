"""Which directories may be reported as a checkpoint. Blocking: for worker threads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from asyncsync.disk.results import OWN_FILES
from asyncsync.errors import ConfigError

INSTEAD = "report a directory of its own for each checkpoint, below it or elsewhere"


@dataclass(frozen=True, slots=True)
class InUse:
    """What a checkpoint that is not durable yet consists of. ``owned``: it is deleted once it is."""

    path: str
    name: str
    owned: bool


def refuse_directory(path: str, *, owned: bool, trials: Iterable[str], in_use: Iterable[InUse]) -> None:
    """ConfigError if the checkpoint would hold a trial's own files, or delete what is not its own.

    ``path`` is absolute; ``trials``: the directories that the engine writes to; ``owned``: asyncsync may delete it once
    it is durable.
    """
    real = os.path.realpath(path)
    for trial in map(os.path.realpath, trials):
        if _holds(real, trial) or (real in {f"{trial}/{name}" for name in OWN_FILES}):
            raise ConfigError(
                f"report(checkpoint={path!r}) is refused: it holds files that asyncsync itself writes, those of "
                f"{trial}; {INSTEAD}"
            )
    if owned and (os.path.ismount(real) or _holds(real, os.path.realpath(os.path.expanduser("~")))):
        raise ConfigError(
            f"Checkpoint.take({path!r}) is refused: it is a mount point or holds a home directory, and would be "
            f"emptied; {INSTEAD}"
        )
    for other in in_use:
        theirs = os.path.realpath(other.path)
        if (owned or other.owned) and (_holds(real, theirs) or _holds(theirs, real)):
            raise ConfigError(
                f"report(checkpoint={path!r}) is refused: {other.name} is not durable yet, consists of {other.path}, "
                f"and one of the two is deleted when it is; {INSTEAD}, or wait for that one first"
            )


def _holds(directory: str, path: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
