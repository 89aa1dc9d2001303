"""The checkpoints that Ray registers, and asyncsync's records of them.

Ray Train registers checkpoints in one file of the run, which its controller writes: just before, everything that the
file names is committed. Ray Tune's driver stores the state of all trials in a directory that it syncs: just after, the
records of the trials follow.
"""

from __future__ import annotations

import json

from asyncsync.integrations.ray import sweeps
from asyncsync.integrations.ray.agent import agent_handle, operations
from asyncsync.integrations.ray.agent.address import Address
from asyncsync.integrations.ray.agent.process_storage import storage_of
from asyncsync.integrations.ray.agent.registered import SNAPSHOT, names_in
from asyncsync.integrations.ray.attempts import SEEN

_registered: set[str] = set()
"""Checkpoints that this process has registered."""


def write(address: Address, key: str, data: bytes) -> None:
    """Write one file. Before the file that registers checkpoints is written, they are committed."""
    experiment, _, name = key.rpartition("/")
    if name != SNAPSHOT:
        agent_handle.call(address, operations.write, key, data)
        return
    document = json.loads(data)
    names = dict.fromkeys(names_in(document))
    for checkpoint in names:
        commit(address, f"{experiment}/{checkpoint}")
    agent_handle.call(address, operations.write, key, data)
    _registered.update(f"{address.uri}/{experiment}/{checkpoint}" for checkpoint in names)
    agent_handle.call(address, operations.save_run, experiment, document)


def commit(address: Address, key: str) -> None:
    """Commit a checkpoint of several ranks, unless it is complete already."""
    latest = SEEN.latest()
    if f"{address.uri}/{key}" not in _registered and latest is not None:
        agent_handle.call(address, operations.commit, key, *latest)


def directory_pushed(address: Address, local: str, key: str) -> None:
    """A directory was synced; if it is that of Tune's driver, the records of its trials are written."""
    if sweeps.newest_state(local) is not None:
        storage_of(address).call(lambda storage: sweeps.update(storage, local, key))


def delete(address: Address, key: str) -> None:
    """Delete a directory. If it is a checkpoint, no record names it when its first byte is deleted."""
    _registered.discard(f"{address.uri}/{key}")
    if sweeps.is_driver(address.uri, key):
        storage_of(address).call(lambda storage: sweeps.retire(storage, key))
    agent_handle.call(address, operations.delete_directory, key)
