"""The arguments that a program passes to Ray: :func:`storage`, and the options for restoring."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asyncsync import ConfigError
from asyncsync.integrations.ray.agent.address import PUBLIC_OPTIONS
from asyncsync.integrations.ray.agent.process_storage import close, storage_of
from asyncsync.integrations.ray.filesystem import AsyncsyncFileSystem, rebuild

_checked: list[bool] = []
"""Holds one entry once this process has checked its version of Ray."""


def storage(uri: str | os.PathLike[str], *, storage_options: Mapping[str, object] | None = None) -> dict[str, Any]:
    """The storage of a run: ``{"storage_path": ..., "storage_filesystem": ...}``, for ``ray.train.RunConfig`` and
    ``ray.tune.RunConfig``.

    Checks once a process that this version of Ray uploads directories through asyncsync, on a temporary directory.

    Args:
        uri: ``s3://bucket/prefix``, ``gs://...``, an absolute path, ``file:///...``.
        storage_options: options that cannot be secret, such as ``endpoint_url``, ``region`` or ``profile``.

    Raises:
        ConfigError: the URI or an option is unknown; an option is a secret: Ray stores the file system in the bucket,
            readable by everybody with access to the results; or this Ray does not go through asyncsync.
    """
    check_no_secrets(storage_options or {})
    filesystem = rebuild(os.fspath(uri), json.dumps(dict(storage_options or {}), sort_keys=True))
    check_ray()
    storage_of(filesystem.address).call(_nothing)
    return {"storage_path": filesystem.address.root, "storage_filesystem": filesystem}


async def _nothing(_: object) -> None:
    """Opens the storage, which checks the address and its options."""


def uri(where: Mapping[str, Any], name: str = "") -> str:
    """The path of the experiment ``name`` in the storage ``where``, as ``Tuner.restore``, ``Tuner.can_restore`` and
    ``Result.from_path`` take it."""
    return f"{where['storage_path']}/{name}".rstrip("/")


def address(where: Mapping[str, Any], name: str = "") -> str:
    """The URI of the experiment ``name``, as asyncsync takes it: ``Experiment.open(address(where, "sweep"))``."""
    filesystem: AsyncsyncFileSystem = where["storage_filesystem"]
    return f"{filesystem.address.uri.rstrip('/')}/{name}".rstrip("/")


def restore_options(where: Mapping[str, Any]) -> dict[str, Any]:
    """Further arguments of ``Tuner.restore`` and ``Tuner.can_restore``: ``{"storage_filesystem": ...}``."""
    return {"storage_filesystem": where["storage_filesystem"]}


def check_no_secrets(options: Mapping[str, object]) -> None:
    """ConfigError for an option that may be secret: every one that is not in PUBLIC_OPTIONS."""
    for name in options:
        if name not in PUBLIC_OPTIONS:
            raise ConfigError(
                f"storage option {name!r} may be a secret, and Ray stores the file system with the results: leave it "
                "out, and give every node its credentials by environment variables, a profile or a role"
            )
    endpoint = str(options.get("endpoint_url") or "")
    if "@" in endpoint:
        raise ConfigError("storage option endpoint_url has a user or password: give credentials by the environment")


def check_ray() -> None:
    """ConfigError unless this version of Ray uploads checkpoints through asyncsync. Once a process."""
    if _checked:
        return
    with tempfile.TemporaryDirectory(prefix="asyncsync-check-") as room:
        source = Path(room) / "checkpoint"
        source.mkdir()
        (source / "file").write_bytes(b"asyncsync\n")
        where = rebuild(f"{room}/storage")
        for version, upload in _uploads().items():
            try:
                upload(where, str(source))
            except (ImportError, TypeError, AttributeError) as error:
                raise ConfigError(_goes_past(version)) from error
            if not list(Path(room).glob(f"storage/{version}/**/.asyncsync/manifest.json")):
                raise ConfigError(_goes_past(version))
        close(where.address)
    _checked.append(True)


def _uploads() -> dict[str, Callable[[AsyncsyncFileSystem, str], None]]:
    """How this version of Ray uploads a checkpoint. Older ones have no second version of Train."""
    if importlib.util.find_spec("ray.train.v2") is None:
        return {"Tune": _upload_tune}
    return {"Tune": _upload_tune, "Train": _upload_train}


def _upload_tune(filesystem: AsyncsyncFileSystem, source: str) -> None:
    from ray.train import Checkpoint
    from ray.train._internal.storage import StorageContext

    context = StorageContext(
        filesystem.address.root,
        "Tune",
        storage_filesystem=filesystem,
        trial_dir_name="trial",
        current_checkpoint_index=0,
    )
    context.persist_current_checkpoint(Checkpoint.from_directory(source))


def _upload_train(filesystem: AsyncsyncFileSystem, source: str) -> None:
    from ray.train import Checkpoint
    from ray.train.v2._internal.execution.storage import StorageContext

    context = StorageContext(filesystem.address.root, "Train", storage_filesystem=filesystem)
    context.persist_current_checkpoint(Checkpoint.from_directory(source), "free_name")


def _goes_past(version: str) -> str:
    import ray

    return (
        f"Ray {ray.__version__} does not upload checkpoints of Ray {version} through asyncsync, so a checkpoint could "
        "be incomplete: use a version of Ray that asyncsync supports, or Ray's own storage with "
        "checkpoint_upload_fn=asyncsync.integrations.ray.upload"
    )
