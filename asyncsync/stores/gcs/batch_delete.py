"""Deletes objects of a Cloud Storage bucket: a hundred per request, or one by one if the server has no batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from asyncsync.aio.tasks import for_each_limited
from asyncsync.errors import NoSuchBucketError, NotFoundError, UnsupportedError
from asyncsync.stores.gcs.errors import failure
from asyncsync.stores.gcs.multipart_layout import CONCURRENT_REQUESTS
from asyncsync.stores.gcs.requests import BATCH_TYPE, GcsRequests, batch_body, batch_responses
from asyncsync.stores.gcs.responses import refuse_response
from asyncsync.stores.gcs.unsure_writes import UnsureWrites

MAX_BATCH = 100
"""Calls in a batch (Cloud Storage documentation, "Batch requests")."""


@dataclass(frozen=True, slots=True)
class ToDelete:
    """One object to delete. With a ``generation`` it is deleted for good, even if the bucket keeps old versions."""

    name: str
    generation: str | None = None
    if_generation: str | None = None
    """Delete only if this generation is live."""


class BatchDelete:
    """The deletions of one store. Deleting a missing object is not an error."""

    def __init__(self, requests: GcsRequests, unsure: UnsureWrites) -> None:
        self._requests, self._unsure = requests, unsure
        self._batches = True

    async def delete(self, objects: Sequence[ToDelete]) -> None:
        """Delete ``objects`` with a few concurrent requests."""
        objects = await self._with_preconditions(objects)
        if not objects:
            return
        with self._unsure.tracking([each.name for each in objects if each.generation is None]):
            if self._batches and len(objects) > 1:
                chosen = [objects[start : start + MAX_BATCH] for start in range(0, len(objects), MAX_BATCH)]
                await for_each_limited(chosen, self._delete_batch, min(CONCURRENT_REQUESTS, len(chosen)))
            else:
                await self._delete_one_by_one(objects)

    async def _with_preconditions(self, objects: Sequence[ToDelete]) -> Sequence[ToDelete]:
        """A retry names the live generation, and skips objects that are missing."""
        live = await self._unsure.live_generations([each.name for each in objects if each.generation is None])
        if not live:
            return objects
        return [replace(each, if_generation=live.get(each.name)) for each in objects if live.get(each.name) != "0"]

    def _target(self, each: ToDelete) -> str:
        params = self._requests.params(generation=each.generation, ifGenerationMatch=each.if_generation)
        return self._requests.target(self._requests.object_path(each.name), params)

    async def _delete_one_by_one(self, objects: Sequence[ToDelete]) -> None:
        await for_each_limited(objects, self._delete_one, min(CONCURRENT_REQUESTS, len(objects)))

    async def _delete_one(self, each: ToDelete) -> None:
        try:
            content = await self._requests.request("delete", "DELETE", each.name, self._target(each))
        except NoSuchBucketError:
            raise
        except NotFoundError:
            return
        self._check_empty(each, content)

    def _check_empty(self, each: ToDelete, content: bytes) -> None:
        """The documented response is empty ("Objects: delete"); some servers send ``null``."""
        if content.strip() not in (b"", b"null"):
            refuse_response(f"delete {self._requests.where(each.name)}", f"it is not empty: {content[:60]!r}")

    async def _delete_batch(self, objects: Sequence[ToDelete]) -> None:
        requests = self._requests
        target = requests.target("/batch/storage/v1", requests.params())
        body = batch_body([self._target(each) for each in objects])
        try:
            content = await requests.post("batch delete", "", target, body, BATCH_TYPE)
        except (NotFoundError, UnsupportedError):
            self._batches = False
            await self._delete_one_by_one(objects)
            return
        responses = batch_responses(content)
        where = f"batch delete {requests.where('')}"
        if responses is None:
            refuse_response(where, f"it is not a complete batch: {content[:60]!r}")
        if sorted(number for number, _, _ in responses) != list(range(len(objects))):
            refuse_response(where, f"it has {len(responses)} responses to {len(objects)} calls")
        for number, status, body in responses:
            self._check(objects[number], status, body)

    def _check(self, each: ToDelete, status: int, content: bytes) -> None:
        """Raise the error of one response; a missing object is not an error."""
        if 200 <= status < 300:
            self._check_empty(each, content)
            return
        error = failure("delete", self._requests.where(each.name), status, {}, content)
        if isinstance(error, NoSuchBucketError) or not isinstance(error, NotFoundError):
            raise error
