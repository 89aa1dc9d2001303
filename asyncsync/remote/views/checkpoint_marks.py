"""``pin``, ``unpin`` and ``tag``: mark a stored checkpoint, also one of a trial that runs at this moment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from asyncsync.config import TransferConfig, check_name, split_sas
from asyncsync.errors import ConcurrentWriterError, ConfigError, NotFoundError, PreconditionError, UnsupportedError
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.remote.access import DEFAULT_TRANSFER, StoreAccess, open_for_reading
from asyncsync.remote.views.checkpoint_view import CheckpointView
from asyncsync.remote.views.trial_view import view_of
from asyncsync.runtime import Presence
from asyncsync.stores.base import Store
from asyncsync.sync.records.manifests import parse
from asyncsync.sync.records.marks import Change, Marks, has_writer, with_marks
from asyncsync.sync.records.model import TrialRecord

MARK_ATTEMPTS = 20
"""Attempts to replace a record that its writer replaces as well; a trial writes it once a report at most."""


async def pin(
    uri: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
) -> CheckpointView:
    """Pin the checkpoint at ``uri``: retention leaves it alone until it is unpinned. Returns it as it is now.

    Its trial may run, on any machine: an engine takes the pin over with its next write of the record, and retires
    nothing that was pinned before. Two requests.

    Raises:
        NotFoundError: no trial lists such a checkpoint; it may have been retired.
        UnsupportedError: the trial runs and its store has no conditional writes, so that its engine might overwrite the
            pin; or another framework keeps its record. Use ``trial.pin`` in the engine.
        ConcurrentWriterError: the record kept changing. Call it again.
    """
    return await _mark(uri, lambda _: lambda marks: replace(marks, pinned=True), storage_options, transfer)


async def unpin(
    uri: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
) -> CheckpointView:
    """Leave the checkpoint at ``uri`` to retention again; it is retired with the next checkpoint of its trial at the
    earliest. Errors as of :func:`asyncsync.pin`."""
    return await _mark(uri, lambda _: lambda marks: replace(marks, pinned=False), storage_options, transfer)


async def tag(
    uri: str | os.PathLike[str],
    *names: str,
    remove: bool = False,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
) -> CheckpointView:
    """Give the checkpoint at ``uri`` these names, or with ``remove`` take them away. Returns it as it is now.

    A name belongs to one checkpoint of a trial: an earlier owner loses it in the same write. Retention leaves a tagged
    checkpoint alone. Errors as of :func:`asyncsync.pin`; ConfigError for an invalid name.
    """
    given = tuple(dict.fromkeys(check_name("the tag", name) for name in names))
    if not given:
        raise ConfigError(f"invalid tag({os.fspath(uri)!r}): give one or more names")

    def change(ours: bool) -> Change:
        def changed(marks: Marks) -> Marks:
            others = tuple(item for item in marks.tags if item not in given)
            return replace(marks, tags=(*others, *given) if ours and not remove else others)

        return changed

    return await _mark(uri, change, storage_options, transfer, others=not remove)


async def _mark(
    uri: str | os.PathLike[str],
    change: Callable[[bool], Change],
    storage_options: Mapping[str, object] | None,
    transfer: TransferConfig,
    *,
    others: bool = False,
) -> CheckpointView:
    """Change the marks of a checkpoint, and with ``others`` those of its trial's other checkpoints. ``change`` returns
    the change for the checkpoint (True) or for another one (False)."""
    address, options = split_sas(os.fspath(uri), storage_options)
    where, _, name = address.rstrip("/").rpartition("/")
    async with open_for_reading(where, transfer, options) as store:
        for _ in range(MARK_ATTEMPTS):
            data, version, record = await _read(store, name)
            _check_markable(store, data, record)
            affected = [item.name for item in record.checkpoints if others or item.name == name]
            changed = with_marks(data, {item: change(item == name) for item in affected})
            try:
                await store.put(TRIAL_RECORD, changed, if_version=version)
            except PreconditionError:
                continue  # its writer, or another mark, was faster
            view = view_of(record.name, where, TrialRecord.from_bytes(changed), StoreAccess(options, transfer))
            return next(item for item in view.checkpoints if item.name == name)
    raise ConcurrentWriterError(f"{where}/{name} was not changed: the record of its trial kept changing. Try it again")


async def _read(store: Store, name: str) -> tuple[bytes, str, TrialRecord]:
    """The record of the trial, which must list the checkpoint."""
    where = store.uri.rstrip("/")
    try:
        data, info = await store.get(TRIAL_RECORD)
    except NotFoundError as error:
        text = (
            f"{where}/{name} is not a checkpoint: the prefix above it holds no trial. Give the address of one; "
            f"asyncsync ls {where}/{name} lists those of a trial"
        )
        raise NotFoundError(text) from error
    record = parse(store, TRIAL_RECORD, data, TrialRecord.from_bytes)
    if name not in {item.name for item in record.checkpoints}:
        retired = " any more; it was retired" if name in record.given_up else ""
        known = ", ".join(item.name for item in record.checkpoints[-10:]) or "none"
        raise NotFoundError(f"the trial {where} has no checkpoint {name!r}{retired}. It has: {known}")
    return data, info.version, record


def _check_markable(store: Store, data: bytes, record: TrialRecord) -> None:
    where = store.uri.rstrip("/")
    if not has_writer(data):
        raise UnsupportedError(
            f"{where} is kept by another framework, which writes its record anew and decides what it keeps. Copy the "
            "checkpoint with asyncsync promote"
        )
    runs = record.status == "running" and not Presence.has_ended(record.runner)
    if runs and not store.traits.conditional_writes:
        raise UnsupportedError(
            f"{store.uri} has no conditional writes, so the engine that runs {where} might overwrite the mark. Use "
            "trial.pin in its program, or wait until it has ended"
        )
