"""The janitor: clean-ups that are due in the store, apart from the timeouts of syncs.

The journal holds each clean-up until it is done: uploads to abort, checkpoints to delete, temporary files to remove.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asyncsync.aio.tasks import for_each_limited
from asyncsync.disk.journal import Owed
from asyncsync.errors import AsyncsyncError, ConcurrentWriterError, StoreError
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.runtime import lease_time
from asyncsync.stores.base import Lane, Store, Upload
from asyncsync.stores.read import find
from asyncsync.sync.records.model import TrialRecord
from asyncsync.sync.session import ABANDON, DELETE, SWEEP, Session, delete_prefix
from asyncsync.sync.upload.open_uploads import ABORT

log = logging.getLogger("asyncsync")

CLEAN_UPS_AT_ONCE = 16
"""Behind 30 ms, one after the other is 14 deletions of checkpoints a second, 16 at once are 72."""
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

    async def pay(equal: Sequence[Owed]) -> None:
        nonlocal done
        try:
            deleted = await _clean_up(session, equal[0])
        except (StoreError, ConcurrentWriterError) as error:
            session.on_warning(f"cleaning up {session.uri} ({equal[0].kind}) failed, it remains due: {error}")
            return
        if deleted is not None:  # recorded once more meanwhile, by a trial that has just been resumed
            recorded = _due(session, await session.journal.owed(session.uri))
            equal = [*equal, *(other for other in recorded if _same_work(other) == _same_work(equal[0]))]
        for owed in {owed.id: owed for owed in equal}.values():
            session.journal.paid(owed.id)
            done += 1
        if deleted is not None:
            session.on_deleted(*deleted)  # the name may be used again from now on

    due = _grouped(_due(session, await session.journal.owed(session.uri)))
    await for_each_limited(due, pay, min(CLEAN_UPS_AT_ONCE, len(due)))
    return done


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


async def _clean_up(session: Session, owed: Owed) -> tuple[str, str] | None:
    """Do one clean-up. Returns trial and name of a checkpoint that it deleted."""
    payload = json.loads(owed.payload)
    if owed.kind == DELETE:
        return await _delete(session, payload)
    if owed.kind == ABORT:
        await _abort(session, payload)
    elif owed.kind == ABANDON:
        await _abandon(session, payload["prefix"])
    elif owed.kind == SWEEP and session.store.traits.local:
        await session.inner.sweep()
    return None


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


async def _delete(session: Session, payload: Mapping[str, str]) -> tuple[str, str] | None:
    """Delete a checkpoint, but only if its trial's record gives it up: the experiment may be another one by now, or
    another process may have registered the checkpoint again. Returns trial and name if it is deleted."""
    trial, name = payload.get("trial"), payload.get("name")
    if trial is None or name is None:
        return None  # written by a version that recorded no owner: prune finds it
    given_up = GivenUp(trial, name, payload["nonce"])
    store = session.view(Lane.ARTIFACT, JANITOR_OWNER, given_up.confirm)
    try:
        await delete_prefix(store, f"{trial}/{name}/")
    except NotGivenUpError as error:
        log.info("%s/%s/%s is not deleted: %s", session.uri, trial, name, error)
        return None
    return trial, name


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
    the name there may delete the checkpoint, also if another one runs the trial now."""

    trial: str
    name: str
    nonce: str

    async def confirm(self, store: Store, since: float) -> float:
        """The time of the request, if the trial's record still gives the checkpoint up; else NotGivenUpError."""
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
