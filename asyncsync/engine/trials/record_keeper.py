"""Private: the record of one trial, which only this process writes, and the names of checkpoints that it gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from asyncsync.aio.lazy import LazyLock, Notification
from asyncsync.aio.tasks import results_of
from asyncsync.aio.threads import in_thread
from asyncsync.disk.results import write_pointer
from asyncsync.engine.trials.context import EngineContext
from asyncsync.engine.trials.resume import TAKEOVER_ATTEMPTS, adopt_checkpoints, belongs_to_run, merge_late_record
from asyncsync.errors import ConcurrentWriterError
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.planning.retention import by_age, is_marked
from asyncsync.stores.base import MISSING, Lane, Store
from asyncsync.stores.guard.fenced import LEASE_OUTLIVED
from asyncsync.sync.records.manifests import get_record
from asyncsync.sync.records.marks import adopt_marks
from asyncsync.sync.records.model import CheckpointRecord, TrialRecord
from asyncsync.sync.records.writer import RecordFile

Question = Callable[[Store], Awaitable[float]]
"""Returns when the store was asked, on the lease's clock; raises ConcurrentWriterError."""
NO_NAMES = frozenset[str]()
"""Shared by all trials: an empty set per field would be a twentieth of the memory of an idle trial."""


@dataclass(frozen=True, slots=True)
class RecordedNames:
    """Names of checkpoints in one version of the record."""

    names: frozenset[str]
    """Listed as checkpoints."""
    retiring: frozenset[str]
    """Given up by this version, and still in memory until it is stored."""
    given_up: tuple[str, ...]
    """All that this version gives up."""


NOTHING_RECORDED = RecordedNames(NO_NAMES, NO_NAMES, ())


class RecordKeeper:
    """Writes the record of one trial. A checkpoint's data is deleted only after the record that gives it up is stored.

    ``version``: of the stored record that this one replaces. ``file``: the file of a rank other than 0, which writes a
    record of its own instead.
    """

    __slots__ = (
        "_being_deleted",
        "_changed",
        "_context",
        "_saving",
        "_taken",
        "_written",
        "file",
        "freed_names",
        "inherited_names",
        "record",
        "replaced_runners",
        "retiring",
        "stored_names",
    )

    def __init__(
        self,
        context: EngineContext,
        record: TrialRecord,
        version: str = MISSING,
        *,
        file: RecordFile | None = None,
    ) -> None:
        self._context, self.record = context, record
        self.file = file or RecordFile(f"{record.name}/{TRIAL_RECORD}", self, version)
        self.replaced_runners = NO_NAMES
        """Runners that this process replaced. Their last write of the record may still land."""
        self.retiring = NO_NAMES
        """Checkpoints that the next stored record leaves out."""
        self.stored_names = NO_NAMES
        """Checkpoints that the stored record lists."""
        self.freed_names = NO_NAMES
        """Names whose data is deleted, but which the stored record still gives up. They cannot be reused until the
        record is saved."""
        self.inherited_names = frozenset(record.given_up) or NO_NAMES
        """Names that an earlier process gave up: it may still be deleting their data."""
        self._saving: Any = None
        """A lock while it is used."""
        self._changed: Any = None
        self._taken = False
        """Whether this process has saved it."""
        self._written = NOTHING_RECORDED
        """Names in the record that is being written."""
        self._being_deleted = NO_NAMES
        """Names in ``record.given_up`` whose deletion is scheduled."""

    @property
    def changed(self) -> Notification:
        """Sent when a checkpoint ends, or its data is deleted."""
        return Notification(self, "_changed")

    async def save(self) -> bool:
        """Write the record if it has changed, and return whether it was written. Then drop retired checkpoints from
        memory and schedule the deletion of those given up. Raises ConcurrentWriterError."""
        async with LazyLock(self, "_saving"):
            return await self._save()

    async def _save(self) -> bool:
        store = self._context.session.view(Lane.RECORD, self.record.name, self._context.confirm)
        saved = await self.file.save(store)
        if self._context.role.leads:
            written, self._written = self._written if saved else self.recorded_names(), NOTHING_RECORDED
            self._note_stored(written)
        self._taken = True
        return saved

    async def confirm(self, store: Store, since: float, more: Sequence[Question] = ()) -> float:
        """Check in parallel whether this process still runs the experiment and the trial, and ``more``. Returns when
        the store was asked; raises ConcurrentWriterError.

        After a lost response the request for the record is a write: it is sent after the experiment is confirmed.
        """
        if self.file.unsure:
            await self._context.confirm(store, since)
        questions: list[Callable[[], Awaitable[float]]] = [partial(question, store) for question in more]
        questions += [partial(self._context.confirm, store, since), partial(self.file.confirm, store, since)]
        return min(await results_of(questions, "fence"))

    def without_unstored(self, registered: Iterable[str]) -> list[CheckpointRecord]:
        """The checkpoints of the record, without those of ``registered`` that the stored record does not list."""
        unstored = frozenset(registered) - self.stored_names
        return [item for item in self.record.checkpoints if item.name not in unstored]

    async def write_latest(self, directory: str, durable: Sequence[CheckpointRecord]) -> None:
        """Make ``latest_file`` name the newest of the checkpoints; without one, remove it. A failure is a warning."""
        file = self._context.latest_file
        if file is None:
            return
        newest = max(durable, key=by_age, default=None)
        try:
            await in_thread(write_pointer, directory, file, None if newest is None else newest.name)
        except OSError as error:
            name = self.record.name
            self._context.warn(name, f"latest_file of trial {name!r} was not written: {error}")

    async def take(self) -> bool:
        """Save the record for the first time, unless another task just did. Returns whether it was written.

        Writes of a replaced process may land after this process read the record, for as long as its lease lasts. Their
        content is merged into ours, and ours is saved again. One task does all this: what another one has read
        meanwhile is older than what this one saves.
        """
        attempts_left = TAKEOVER_ATTEMPTS
        async with LazyLock(self, "_saving"):
            while not self._taken:
                try:
                    return await self._save()
                except ConcurrentWriterError:
                    attempts_left -= 1
                    if not attempts_left or not await self._merge_late_record():
                        raise
        return False

    async def _merge_late_record(self) -> bool:
        """Merge the stored record if a process that this one replaced wrote it. Returns whether that was so."""
        store = self._context.session.view(Lane.RECORD, self.record.name)
        found = await get_record(store, self.file.key, TrialRecord) if self._context.role.leads else None
        if found is None or found[0].runner not in self.replaced_runners:
            return False
        late, version = found
        ours = partial(belongs_to_run, experiment=self._context.record.nonce, trial=late.nonce)
        await adopt_checkpoints(store, late, ours, partial(self._context.warn, self.record.name))
        self.record = merge_late_record(self.record, late)
        self.inherited_names |= frozenset(late.given_up)
        self.file.replace(version)
        return True

    def adopt(self, stored: bytes) -> None:
        """Take over what another process marked in the record. A checkpoint that it pinned is not retired."""
        adopt_marks(self.record, stored)
        marked = {item.name for item in self.record.checkpoints if is_marked(item)}
        self.retiring = self.retiring - marked or NO_NAMES

    def is_ours(self, info: Mapping[str, Any]) -> bool:
        """Whether a manifest with this info was written in this trial, not in one of a deleted experiment."""
        was_stored = self.record.epoch > 1
        return belongs_to_run(info, self._context.record.nonce, self.record.nonce if was_stored else None)

    def recorded_names(self) -> RecordedNames:
        """The names in the record as it would be written now."""
        retiring = self.retiring
        names = frozenset([item.name for item in self.record.checkpoints]) - retiring or NO_NAMES
        return RecordedNames(names, retiring, (*self.record.given_up, *sorted(retiring)))

    def _note_stored(self, written: RecordedNames) -> None:
        """The record with these names is stored. Synchronous.

        If a checkpoint that it lists has failed since, the checkpoints that it retired stay: the next record lists them
        again.
        """
        record, self.stored_names = self.record, written.names
        self.freed_names = self.freed_names & frozenset(written.given_up) or NO_NAMES
        if written.retiring and written.names <= {item.name for item in record.checkpoints}:
            record.checkpoints = [item for item in record.checkpoints if item.name not in written.retiring]
            record.given_up += [name for name in sorted(written.retiring) if name not in record.given_up]
        to_delete = [name for name in written.given_up if name in record.given_up and name not in self._being_deleted]
        self._context.schedule_deletions(self.record.name, to_delete, record.nonce)
        self._being_deleted = self._being_deleted | frozenset(to_delete) or NO_NAMES

    def gives_up(self, name: str) -> bool:
        """Whether the stored record, written by this process, gives up a checkpoint of this name."""
        return name in self._being_deleted and name not in self.stored_names

    def note_deleted(self, name: str) -> None:
        """The store holds nothing of this checkpoint any more."""
        self._being_deleted = self._being_deleted - {name} or NO_NAMES
        if name in self.record.given_up:
            self.record.given_up.remove(name)
            self.freed_names |= {name}
            self.changed.notify()

    async def wait_deleted(self, name: str) -> None:
        """Wait until the data that the record gives up under this name is deleted."""
        while name in self.record.given_up:
            await self.changed.wait()

    async def wait_for_other_deletions(self, name: str) -> None:
        """Wait until no other process can delete under this name any more. The stored record must not give it up now.

        The process that ran the trial before, or another one on its machine, may have begun to delete it. It stops when
        the confirmation that the record gives the name up is too old.
        """
        if name in self.inherited_names:
            await asyncio.sleep(LEASE_OUTLIVED)
            self.inherited_names = self.inherited_names - {name} or NO_NAMES

    def encode(self, stamp: str) -> bytes:
        """The document to store: without the retiring checkpoints, which stay in memory until it is stored."""
        record = self.record
        if stamp:
            self._written = self.recorded_names()
        if self.retiring:
            kept = [item for item in record.checkpoints if item.name not in self.retiring]
            record = replace(record, checkpoints=kept, given_up=[*record.given_up, *sorted(self.retiring)])
        return record.encode(stamp)
