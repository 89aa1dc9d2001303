"""Deleting objects of a Cloud Storage bucket: a hundred a request or, where the server has no batches, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

from asyncsync.errors import NotFoundError, StoreError
from asyncsync.stores.gcs_bodies import BATCH_TYPE, CALLS, batch, batch_statuses
from asyncsync.stores.gcs_errors import UnsupportedError, failure
from asyncsync.stores.gcs_parts import AT_ONCE
from asyncsync.stores.gcs_wire import Wire
from asyncsync.stores.together import for_each


class Deletions:
    """The deletions of one store. What is gone already is no error."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._batches = True

    def target(self, name: str, generation: str | None = None) -> str:
        """What :meth:`delete` takes. With a ``generation`` it is gone for good where the bucket keeps old versions."""
        return self._wire.target(self._wire.object_path(name), self._wire.params(generation=generation))

    async def delete(self, targets: Sequence[str]) -> None:
        """A few requests at a time."""
        if self._batches and len(targets) > 1:
            chosen = [targets[start : start + CALLS] for start in range(0, len(targets), CALLS)]
            await for_each(chosen, self._batch, min(AT_ONCE, len(chosen)))
        else:
            await self._singly(targets)

    async def _singly(self, targets: Sequence[str]) -> None:
        await for_each(targets, self._one, min(AT_ONCE, len(targets)))

    async def _one(self, target: str) -> None:
        try:
            await self._wire.ask("delete", "DELETE", _name_of(target), target)
        except NotFoundError as error:
            if "there is no bucket" in str(error):
                raise

    async def _batch(self, targets: Sequence[str]) -> None:
        wire = self._wire
        address = wire.target("/batch/storage/v1", wire.params())
        try:
            said = await wire.post("batch delete", "", address, batch(targets), BATCH_TYPE)
        except (NotFoundError, UnsupportedError):
            self._batches = False
            await self._singly(targets)
            return
        answers = batch_statuses(said)
        if set(answers) != set(range(len(targets))):
            raise StoreError(f"batch delete {wire.where('')}: {len(answers)} answers to {len(targets)} calls")
        for number, (status, text) in answers.items():
            target = targets[number]
            if status >= 300 and status != 404:
                document = text.partition(b"{")
                body = document[1] + document[2].rpartition(b"}")[0] + b"}"
                raise failure("delete", wire.where(_name_of(target)), status, {}, body)


def _name_of(target: str) -> str:
    return unquote(target.partition("/o/")[2].partition("?")[0])
