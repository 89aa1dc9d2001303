"""asyncsync for Ray Train with a storage of Ray's own: only checkpoints go through asyncsync.

Everything else, and reading, is Ray's. A checkpoint is registered before it is committed, a moment later.
"""

from __future__ import annotations

import json
import logging
from pathlib import PurePosixPath
from typing import Any

import pyarrow.fs
import ray.train

from asyncsync import AsyncsyncError, ConfigError
from asyncsync.integrations.ray import attempts, registration
from asyncsync.integrations.ray.agent import agent_handle
from asyncsync.integrations.ray.agent.address import Address
from asyncsync.integrations.ray.attempts import SEEN, Token

log = logging.getLogger("asyncsync")


class UploadedCheckpoint(ray.train.Checkpoint):  # type: ignore[misc]
    """A checkpoint that, when it is unpickled, notes which worker has uploaded it."""

    token: Token

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.path, self.filesystem, self.token)


def _arrived(path: str, filesystem: pyarrow.fs.FileSystem, token: Token) -> ray.train.Checkpoint:
    SEEN.add(token)
    return ray.train.Checkpoint(path, filesystem)


def upload(checkpoint: ray.train.Checkpoint, checkpoint_dir_name: str) -> ray.train.Checkpoint:
    """Upload the files of this rank, for ``ray.train.report(..., checkpoint_upload_fn=upload)``. Use it together with
    ``RunConfig(callbacks=[Commit()])``.

    ConfigError outside of a worker of Ray Train, and for a storage or a checkpoint of another kind; otherwise as
    :meth:`asyncsync.Storage.push_checkpoint`.
    """
    token = attempts.train_token()
    if token is None:
        raise ConfigError("asyncsync.integrations.ray.upload is for ray.train.report in a worker of Ray Train")
    if not isinstance(checkpoint.filesystem, pyarrow.fs.LocalFileSystem):
        raise ConfigError(f"only a local checkpoint can be uploaded, not {checkpoint.path} on {checkpoint.filesystem}")
    storage = ray.train.get_context().get_storage()
    path = str(PurePosixPath(storage.experiment_fs_path, checkpoint_dir_name))
    address = address_of(storage.storage_filesystem, storage.experiment_fs_path)
    agent_handle.push_checkpoint(
        address, checkpoint.path, checkpoint_dir_name, token, alone=False, outlives=attempts.is_asynchronous()
    )
    uploaded = UploadedCheckpoint(path, storage.storage_filesystem)
    uploaded.token = token
    return uploaded


class Commit(ray.train.UserCallback):  # type: ignore[misc]
    """Commits the checkpoints that :func:`upload` has uploaded; for ``ray.train.RunConfig(callbacks=[Commit()])``."""

    def after_report(self, run_context: Any, metrics: Any, checkpoint: ray.train.Checkpoint | None) -> None:
        """All ranks have reported. An error ends the run: its checkpoint would be incomplete."""
        del run_context, metrics
        if checkpoint is None:
            return
        experiment, _, name = checkpoint.path.rstrip("/").rpartition("/")
        address = address_of(checkpoint.filesystem, experiment)
        try:
            registration.commit(address, name)
        except AsyncsyncError:
            log.exception("%s was registered by Ray and could not be committed", checkpoint.path)
            raise


def address_of(filesystem: pyarrow.fs.FileSystem, path: str) -> Address:
    """The address of a path on one of pyarrow's own file systems, with the file system's options. ConfigError for other
    kinds. It stays in this process: the options may be secret."""
    kind = type(filesystem).__name__
    if kind == "LocalFileSystem":
        return Address(path)
    if kind == "GcsFileSystem":
        return Address(f"gs://{path}")
    if kind != "S3FileSystem":
        raise ConfigError(f"asyncsync cannot upload to {filesystem}: use an S3, GCS or local storage path")
    given = filesystem.__reduce__()[1][0]
    endpoint = given.get("endpoint_override")
    options = {
        "region": filesystem.region,
        "access_key": given.get("access_key"),
        "secret_key": given.get("secret_key"),
    }
    options["session_token"] = given.get("session_token")
    if endpoint:
        options["endpoint_url"] = endpoint if "://" in endpoint else f"{given.get('scheme') or 'https'}://{endpoint}"
    return Address(f"s3://{path}", json.dumps({name: value for name, value in options.items() if value}))
