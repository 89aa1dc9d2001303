"""The file system that carries everything that Ray stores, to pass as ``storage_filesystem``."""

from __future__ import annotations

from typing import Any

import pyarrow.fs

from asyncsync.integrations.ray import attempts, copy_hook
from asyncsync.integrations.ray.agent.address import Address
from asyncsync.integrations.ray.attempts import Token
from asyncsync.integrations.ray.handler import StorageHandler


class AsyncsyncFileSystem(pyarrow.fs.PyFileSystem):  # type: ignore[misc]
    """One storage path as a file system of pyarrow. Made by :func:`asyncsync.integrations.ray.storage`.

    It pickles to its address. Wherever it is unpickled, directory copies go through asyncsync from then on. A file
    system that a worker of Ray Train pickles also identifies the worker: see
    :mod:`asyncsync.integrations.ray.attempts`.
    """

    def __init__(self, handler: StorageHandler) -> None:
        super().__init__(handler)
        copy_hook.install()

    @property
    def address(self) -> Address:
        """Where it stores."""
        address: Address = self.handler.address
        return address

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (self.address.uri, self.address.options, attempts.train_token())


def rebuild(uri: str, options: str = "{}", token: Token | None = None) -> AsyncsyncFileSystem:
    """The file system of a pickle. ``token``: the worker of Ray Train that pickled it."""
    if token is not None:
        attempts.SEEN.add(token)
    return AsyncsyncFileSystem(StorageHandler(Address(uri, options)))
