"""Deleting objects of a Cloud Storage bucket: a hundred a request or, where the server has no batches, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from asyncsync.errors import NotFoundError, StoreError
from asyncsync.stores.gcs_bodies import BATCH_TYPE, CALLS, batch, batch_statuses
from asyncsync.stores.gcs_errors import UnsupportedError, failure
from asyncsync.stores.gcs_parts import AT_ONCE
from asyncsync.stores.gcs_repeats import Repeats
from asyncsync.stores.gcs_wire import Wire
from asyncsync.stores.together import for_each


@dataclass(frozen=True, slots=True)
class Doomed:
    """One object to delete. With a ``generation`` it is gone for good where the bucket keeps old versions."""

    name: str
    generation: str | None = None
    met: str | None = None
    """The live generation has to be this one."""


class Deletions:
    """The deletions of one store. What is gone already is no error."""

    def __init__(self, wire: Wire, repeats: Repeats) -> None:
        self._wire, self._repeats = wire, repeats
        self._batches = True

    async def delete(self, objects: Sequence[Doomed]) -> None:
        """A few requests at a time."""
        objects = await self._guarded(objects)
        if not objects:
            return
        with self._repeats.writing([each.name for each in objects if each.generation is None]):
            if self._batches and len(objects) > 1:
                chosen = [objects[start : start + CALLS] for start in range(0, len(objects), CALLS)]
                await for_each(chosen, self._batch, min(AT_ONCE, len(chosen)))
            else:
                await self._singly(objects)

    async def _guarded(self, objects: Sequence[Doomed]) -> Sequence[Doomed]:
        """Who deletes again names what is there now; what is not there needs no more."""
        met = await self._repeats.standing([each.name for each in objects if each.generation is None])
        if not met:
            return objects
        return [replace(each, met=met.get(each.name)) for each in objects if met.get(each.name) != "0"]

    def _target(self, each: Doomed) -> str:
        params = self._wire.params(generation=each.generation, ifGenerationMatch=each.met)
        return self._wire.target(self._wire.object_path(each.name), params)

    async def _singly(self, objects: Sequence[Doomed]) -> None:
        await for_each(objects, self._one, min(AT_ONCE, len(objects)))

    async def _one(self, each: Doomed) -> None:
        try:
            await self._wire.ask("delete", "DELETE", each.name, self._target(each))
        except NotFoundError as error:
            if "there is no bucket" in str(error):
                raise

    async def _batch(self, objects: Sequence[Doomed]) -> None:
        wire = self._wire
        address = wire.target("/batch/storage/v1", wire.params())
        body = batch([self._target(each) for each in objects])
        try:
            said = await wire.post("batch delete", "", address, body, BATCH_TYPE)
        except (NotFoundError, UnsupportedError):
            self._batches = False
            await self._singly(objects)
            return
        answers = batch_statuses(said)
        if set(answers) != set(range(len(objects))):
            raise StoreError(f"batch delete {wire.where('')}: {len(answers)} answers to {len(objects)} calls")
        for number, (status, text) in answers.items():
            if status >= 300 and status != 404:
                document = text.partition(b"{")
                body = document[1] + document[2].rpartition(b"}")[0] + b"}"
                raise failure("delete", wire.where(objects[number].name), status, {}, body)
