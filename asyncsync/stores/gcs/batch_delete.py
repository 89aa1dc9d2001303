"""Deleting objects of a Cloud Storage bucket: a hundred a request or, where the server has no batches, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from asyncsync.aio.tasks import for_each
from asyncsync.errors import NoSuchBucketError, NotFoundError, UnsupportedError
from asyncsync.stores.gcs.errors import failure
from asyncsync.stores.gcs.multipart_layout import AT_ONCE
from asyncsync.stores.gcs.requests import BATCH_TYPE, CALLS, Wire, batch, batch_answers
from asyncsync.stores.gcs.responses import refuse
from asyncsync.stores.gcs.unsure_writes import Repeats


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
            said = await self._wire.ask("delete", "DELETE", each.name, self._target(each))
        except NoSuchBucketError:
            raise
        except NotFoundError:
            return
        self._check_empty(each, said)

    def _check_empty(self, each: Doomed, said: bytes) -> None:
        """Whoever deletes has nothing to say (documentation, "Objects: delete"); some servers call that ``null``."""
        if said.strip() not in (b"", b"null"):
            refuse(f"delete {self._wire.where(each.name)}", f"it is not empty: {said[:60]!r}")

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
        answers = batch_answers(said)
        if answers is None:
            refuse(f"batch delete {wire.where('')}", f"it is no whole batch: {said[:60]!r}")
        if sorted(number for number, _, _ in answers) != list(range(len(objects))):
            refuse(f"batch delete {wire.where('')}", f"it has {len(answers)} answers to {len(objects)} calls")
        for number, status, text in answers:
            self._judge(objects[number], status, text)

    def _judge(self, each: Doomed, status: int, said: bytes) -> None:
        if 200 <= status < 300:
            self._check_empty(each, said)
            return
        error = failure("delete", self._wire.where(each.name), status, {}, said)
        if isinstance(error, NoSuchBucketError) or not isinstance(error, NotFoundError):
            raise error
