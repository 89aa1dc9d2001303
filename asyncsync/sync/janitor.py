"""The janitor: clean-ups that are due in the store, apart from the timeouts of syncs.

The journal holds each clean-up until it is done: uploads to abort, checkpoints to delete, temporary files to remove.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from asyncsync.aio.tasks import for_each_limited, results_of
from asyncsync.disk.journal import Owed
from asyncsync.errors import AsyncsyncError, ConcurrentWriterError, StoreError
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.planning.manifest import MANIFEST
from asyncsync.runtime import lease_time
from asyncsync.stores.base import Lane, Store, Upload, delete_batches
from asyncsync.stores.guard.fenced import Fence
from asyncsync.stores.read import find, list_all
from asyncsync.sync.records.model import TrialRecord
from asyncsync.sync.session import ABANDON, DELETE, SWEEP, Session
from asyncsync.sync.upload.open_uploads import ABORT

log = logging.getLogger("asyncsync")

CLEAN_UPS_AT_ONCE = 8
"""Clean-ups that are done at the same time, and groups of deletions."""
DELETED_TOGETHER = 16
"""Checkpoints that are deleted by the same requests: at most two for all of them, and one listing each."""
JANITOR_OWNER = "janitor"
"""Owner of its requests, see :meth:`Session.view`."""


class Janitor:
    """One task of the engine. A clean-up that fails stays in the journal, for the next kick or the next start."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._work = asyncio.Event()
        self._busy = asyncio.Lock()

    def kick(self) -> None:
        """A clean-up has become due."""
        self._work.set()

    async def run(self) -> None:
        """Ends only by cancel."""
        while True:
            await self._work.wait()
            await self.clean_up()

    async def clean_up(self) -> None:
        """Do every clean-up that is due now."""
        async with self._busy:
            self._work.clear()
            try:
                await clean_up(self._session)
            except AsyncsyncError as error:
                log.warning("cleaning up %s failed, it remains due: %s", self._session.uri, error)


async def clean_up(session: Session) -> int:
    """Do every clean-up that is due in the session's store; returns how many are done. One that fails remains due."""
    done = 0

    async def pay(due: Sequence[Sequence[Owed]]) -> None:
        nonlocal done
        done += await _pay(session, due)

    due = _grouped(_due(session, await session.journal.owed(session.uri)))
    together = _together(due)
    await for_each_limited(together, pay, min(CLEAN_UPS_AT_ONCE, len(together)))
    return done


def _together(due: Sequence[Sequence[Owed]]) -> list[Sequence[Sequence[Owed]]]:
    """Deletions of checkpoints by DELETED_TOGETHER, everything else alone."""
    deletions = [equal for equal in due if equal[0].kind == DELETE]
    starts = range(0, len(deletions), DELETED_TOGETHER)
    return [
        *([equal] for equal in due if equal[0].kind != DELETE),
        *(deletions[start : start + DELETED_TOGETHER] for start in starts),
    ]


async def _pay(session: Session, due: Sequence[Sequence[Owed]]) -> int:
    """Do one clean-up, or several deletions of checkpoints together. Returns how many are done."""
    kind = due[0][0].kind
    try:
        if kind == DELETE:
            deleted = await _delete(session, [json.loads(equal[0].payload) for equal in due])
        else:
            await _clean_up(session, due[0][0])
            deleted = []
    except (StoreError, ConcurrentWriterError) as error:
        if len(due) > 1 and not getattr(error, "retryable", False):  # one of them may be at fault
            return sum([await _pay(session, [equal]) for equal in due])
        session.on_warning(f"cleaning up {session.uri} ({kind}) failed, it remains due: {error}")
        return 0
    # recorded once more meanwhile, by a trial that has just been resumed
    recorded = _due(session, await session.journal.owed(session.uri)) if deleted else []
    work = {_same_work(equal[0]) for equal in due}
    paid = {owed.id for equal in due for owed in equal} | {owed.id for owed in recorded if _same_work(owed) in work}
    for number in paid:
        session.journal.paid(number)
    for trial, name in deleted:
        session.on_deleted(trial, name)  # the name may be used again from now on
    return len(paid)


def _grouped(due: Sequence[Owed]) -> list[list[Owed]]:
    """The deletions of one checkpoint are done once: a second one could still be deleting when the name is used
    again."""
    groups: dict[object, list[Owed]] = {}
    for owed in due:
        groups.setdefault(_same_work(owed), []).append(owed)
    return list(groups.values())


def _same_work(owed: Owed) -> object:
    """Equal for the deletions of one checkpoint, also if several processes recorded them."""
    if owed.kind != DELETE:
        return owed.id
    payload = json.loads(owed.payload)
    return payload.get("trial"), payload.get("name"), payload.get("nonce")


def _due(session: Session, recorded: Sequence[Owed]) -> list[Owed]:
    """The clean-ups that no live process does itself. Uploads below a prefix stay while a live process sends there: it
    resumes what it can use."""
    due: list[Owed] = []
    sent_now: set[str] = set()
    for owed in recorded:
        if not session.uploads.is_in_hand(owed):
            due.append(owed)
        elif owed.kind == ABANDON:
            sent_now.add(json.loads(owed.payload)["prefix"])
    return [owed for owed in due if owed.kind != ABANDON or json.loads(owed.payload)["prefix"] not in sent_now]


async def _clean_up(session: Session, owed: Owed) -> None:
    payload = json.loads(owed.payload)
    if owed.kind == ABORT:
        await _abort(session, payload)
    elif owed.kind == ABANDON:
        await _abandon(session, payload["prefix"])
    elif owed.kind == SWEEP and session.store.traits.local:
        await session.inner.sweep()


async def _abandon(session: Session, prefix: str) -> None:
    """Abort the recorded uploads below ``prefix``, whose process has ended."""
    store = session.view(Lane.ARTIFACT, JANITOR_OWNER)
    for recorded in await session.journal.open_uploads(session.uri):
        if recorded.key.startswith(prefix):
            upload = Upload(recorded.key, recorded.upload_id)
            if recorded.upload_id:
                await store.abort_multipart(upload)
            session.uploads.closed(upload)
    session.uploads.abandon_below(prefix)


async def _delete(session: Session, payloads: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Delete checkpoints, but only those that their trials' records give up: the experiment may be another one by now,
    or another process may have registered a checkpoint again. Returns trial and name of those that are deleted."""
    due = [
        GivenUp(payload["trial"], payload["name"], payload["nonce"], session.fence_of_given_up)
        for payload in payloads
        if payload.get("trial") is not None and payload.get("name") is not None  # else prune finds it: an old version
    ]
    try:
        if due:
            await _delete_together(session, due)
    except NotGivenUpError as error:
        if len(due) > 1:
            return [found for payload in payloads for found in await _delete(session, [payload])]
        log.info("%s/%s/%s is not deleted: %s", session.uri, due[0].trial, due[0].name, error)
        return []
    return [(item.trial, item.name) for item in due]


async def _delete_together(session: Session, due: Sequence[GivenUp]) -> None:
    """Delete the manifests first, so that no reader trusts the rest, then everything else. Far away a request takes as
    long for all of them as for one."""

    async def confirm(store: Store, since: float) -> float:
        return min(await results_of([partial(item.confirm, store, since) for item in due], "given up"))

    store = session.view(Lane.ARTIFACT, JANITOR_OWNER, confirm)
    found = await results_of([partial(list_all, store, item.prefix) for item in due], "list")
    manifests = [item.prefix + MANIFEST for item in due]
    keys = [key for listing in found for key in listing if not key.endswith(MANIFEST) or key not in manifests]
    await store.delete(manifests)
    for batch in delete_batches(keys):
        await store.delete(batch)


async def _abort(session: Session, payload: Mapping[str, str]) -> None:
    """Abort one upload by its ID. Without an ID: abort all uploads of the key that nobody will complete, if this
    process is the writer of the key. Entries of an earlier experiment without an ID are dropped."""
    store = session.view(Lane.ARTIFACT, JANITOR_OWNER)
    key, upload_id = payload["key"], payload["upload_id"]
    if upload_id:
        await store.abort_multipart(Upload(key, upload_id))
        return
    if payload.get("nonce", "") != session.nonce:
        return
    fence = session.fence_of(key)
    if fence is not None:
        await fence(store, float("inf"))
    elif session.nonce:
        raise ConcurrentWriterError(f"{key}: this process is not the writer at present")
    for upload in await store.list_multiparts(key):
        if upload.key != key or session.uploads.is_open(key, upload.upload_id):
            continue
        if session.uploads.is_requested(key):
            raise ConcurrentWriterError(f"{key}: an upload is being created right now, and this may be it")
        await store.abort_multipart(upload)


class NotGivenUpError(Exception):
    """A checkpoint must not be deleted after all."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A checkpoint that the record of its trial gives up. A trial never uses a number twice, so any process that finds
    the name there may delete the checkpoint, also if another one runs the trial now.

    ``fence_of``: returns the fence of the trial, if this process has written the stored record, which gives it up.
    """

    trial: str
    name: str
    nonce: str
    fence_of: Callable[[str, str, str], Fence | None] = lambda _trial, _name, _nonce: None

    @property
    def prefix(self) -> str:
        """Where the checkpoint is."""
        return f"{self.trial}/{self.name}/"

    async def confirm(self, store: Store, since: float) -> float:
        """When the store was asked, if the trial's record still gives the checkpoint up; else NotGivenUpError. The
        version of the record suffices for a record that this process has written."""
        fence = self.fence_of(self.trial, self.name, self.nonce)
        if fence is not None:
            with suppress(ConcurrentWriterError):  # whoever writes the record now may give it up, too
                return await fence(store, since)
        return await self._read(store)

    async def _read(self, store: Store) -> float:
        asked = lease_time()
        data = await find(store, f"{self.trial}/{TRIAL_RECORD}")
        if data is None:
            raise NotGivenUpError("the trial has no record any more")
        try:
            record = TrialRecord.from_bytes(data)
        except ValueError as error:
            raise NotGivenUpError(f"the trial's record cannot be read: {error}") from error
        if record.nonce != self.nonce:
            raise NotGivenUpError("the trial is another one of the same name")
        if self.name not in record.given_up or self.name in {item.name for item in record.checkpoints}:
            raise NotGivenUpError("the trial's record does not give it up")
        return asked
