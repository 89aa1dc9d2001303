"""Where asyncsync keeps what it must remember between runs, and who may work on a tree."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asyncsync.errors import ConcurrentWriterError

log = logging.getLogger("asyncsync")


def state_dir() -> Path:
    """``$ASYNCSYNC_STATE_DIR``, else ``$XDG_STATE_HOME/asyncsync``, else ``~/.local/state/asyncsync``."""
    own = os.environ.get("ASYNCSYNC_STATE_DIR")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path("~/.local/state").expanduser()) / "asyncsync"


@contextmanager
def tree_lock(tree: str) -> Iterator[None]:
    """Be the only one on this machine that works on ``tree``. Blocking, but for microseconds only.

    The lock dies with its holder, also by SIGKILL. ConcurrentWriterError if somebody else has it. Where no lock
    file can be written, or the file system has no locks, it warns and goes on: the store's conditional writes
    still notice a second writer.
    """
    digest = hashlib.sha256(tree.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    path = state_dir() / "locks" / digest
    try:
        descriptor = _lock(path, tree)
    except OSError as error:
        log.warning("cannot lock %s (%s): a second process on it would go unnoticed", path, error)
        yield
        return
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        path.unlink(missing_ok=True)  # while we hold it, see _lock
        os.close(descriptor)


def _lock(path: Path, tree: str) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _take(descriptor, tree)
            if _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder before us unlinked this file on leaving: lock the one that is there now


def _take(descriptor: int, tree: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        holder = os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"
        text = f"{tree} is being synced already, by process {holder}; stop that one or use another directory"
        raise ConcurrentWriterError(text) from error


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


_held: set[int] = set()


def _forget_in_child() -> None:
    """A forked child shares our locks through its descriptors, and would keep them after our death."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
