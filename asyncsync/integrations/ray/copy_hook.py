"""Directory copies of Ray, made by asyncsync: the hook on ``pyarrow.fs.copy_files``.

All of Ray's directory traffic goes through that function. A copy between other file systems is left to pyarrow.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.fs

from asyncsync.integrations.ray import attempts, registration
from asyncsync.integrations.ray.agent import agent_handle, operations
from asyncsync.integrations.ray.agent.registered import SNAPSHOT
from asyncsync.integrations.ray.handler import StorageHandler

_SPECIAL = re.compile(r"([\\*?\[\]!# ])")


def install() -> None:
    """Put the hook in place, once a process."""
    original = pyarrow.fs.copy_files
    if hasattr(original, "asyncsync_original"):
        return

    @functools.wraps(original)
    def copy_files(
        source: Any, destination: Any, source_filesystem: Any = None, destination_filesystem: Any = None, **options: Any
    ) -> None:
        source_handler, target_handler = handler_of(source_filesystem), handler_of(destination_filesystem)
        if source_handler is not None and target_handler is not None:
            _copy_inside(source_handler, source, target_handler, destination)
        elif target_handler is not None and _is_local(source_filesystem):
            _upload(str(source), source_filesystem, target_handler, destination)
        elif source_handler is not None and _is_local(destination_filesystem):
            download(source_handler, source, destination)
        else:
            original(source, destination, source_filesystem, destination_filesystem, **options)

    copy_files.asyncsync_original = original  # type: ignore[attr-defined]
    pyarrow.fs.copy_files = copy_files


def handler_of(filesystem: object) -> StorageHandler | None:
    """The handler of a file system of asyncsync, else None."""
    handler = getattr(filesystem, "handler", None) if isinstance(filesystem, pyarrow.fs.PyFileSystem) else None
    return handler if isinstance(handler, StorageHandler) else None


def _is_local(filesystem: Any) -> bool:
    return (
        filesystem is None or isinstance(filesystem, pyarrow.fs.LocalFileSystem) or _excluding(filesystem) is not None
    )


def _excluding(filesystem: object) -> Any:
    """The fsspec file system with which Ray leaves out files of a local directory; None for anything else."""
    handler = getattr(filesystem, "handler", None)
    inner = getattr(handler, "fs", None) if isinstance(handler, pyarrow.fs.FSSpecHandler) else None
    protocol = getattr(inner, "protocol", ())
    return inner if "file" in ([protocol] if isinstance(protocol, str) else protocol) else None


def _upload(local: str, filesystem: object, handler: StorageHandler, destination: str) -> None:
    key, local = handler.key(destination), os.path.abspath(local)
    experiment = handler.begins_checkpoint(key)
    if experiment is not None:
        push_checkpoint(handler, local, key, experiment)
    elif not os.path.exists(local):
        raise FileNotFoundError(f"the upload to {destination!r} has no source: {local!r} is missing")
    elif os.path.isfile(local):
        handler.call(operations.write_file, local, key, local=local)
    else:
        inner = _excluding(filesystem)
        exclude = () if inner is None else exclude_all_but(local, inner.find(local))
        handler.call(operations.push, local, key, exclude, local=local)
        registration.directory_pushed(handler.address, local, key)


def push_checkpoint(handler: StorageHandler, local: str, key: str, experiment: str) -> None:
    """Upload the checkpoint of this process. A worker of Ray Train uploads its part; any other process is its only
    writer and commits it."""
    if not os.path.exists(local):
        raise FileNotFoundError(f"the checkpoint {local!r} is missing: keep its directory until report returns")
    token = attempts.train_token()
    writer = attempts.lone_writer() if token is None else token
    snapshot = f"{experiment}/{SNAPSHOT}" if token is not None else ""
    outlives = attempts.is_asynchronous()
    agent_handle.push_checkpoint(
        handler.address, local, key, writer, alone=token is None, snapshot=snapshot, outlives=outlives
    )


def download(handler: StorageHandler, source: str, local: Any) -> None:
    """Download a directory or a file; FileNotFoundError if there is none."""
    key, known, local = handler.key(source), handler.sequence.kinds, os.path.abspath(local)
    handler.sequence.reset()
    is_file = known[1] if known is not None and known[0] == key else None
    if is_file is False:
        os.makedirs(local, exist_ok=True)
    place = local if os.path.exists(local) else os.path.dirname(local)
    handler.call(operations.pull, key, local, is_file, local=place if os.path.isdir(place) else None)


def _copy_inside(source: StorageHandler, path: str, target: StorageHandler, destination: str) -> None:
    """A copy from storage to storage: through this machine, but files that the store has are copied inside of it."""
    with tempfile.TemporaryDirectory(prefix="asyncsync-copy-") as room:
        local = f"{room}/{Path(path).name}"
        key, sequence = target.key(destination), target.sequence
        experiment = sequence.experiment if sequence.created == key else None
        download(source, path, local)
        sequence.experiment, sequence.created = experiment, key if experiment is not None else None
        _upload(local, None, target, destination)


def exclude_all_but(local: str, kept: Iterable[str]) -> tuple[str, ...]:
    """gitignore patterns that leave out the files of ``local`` that are not ``kept`` (absolute paths)."""
    wanted = {str(Path(path)) for path in kept}
    found = (path for path in Path(local).rglob("*") if path.is_file() and str(path) not in wanted)
    return tuple(f"/{_escaped(str(path.relative_to(local)))}" for path in found)


def _escaped(path: str) -> str:
    return _SPECIAL.sub(r"\\\1", path)
