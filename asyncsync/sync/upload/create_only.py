"""Two ways to write objects: artifacts replace existing objects, the files of a checkpoint are only created.

Two live processes may use the same number for a checkpoint. The second one finds an object of the first and takes
another number. An acknowledged checkpoint is never overwritten.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from asyncsync.errors import ConcurrentWriterError, PreconditionError, StoreError
from asyncsync.planning.copied_ranges import Origin
from asyncsync.stores.base import MISSING, Body, ObjectInfo, Part, Store, Upload
from asyncsync.stores.guard.breaker import StillUnavailableError
from asyncsync.stores.guard.lost_responses import completed_is_ours, written_is_ours


class LostSourceError(Exception):
    """The store does not hold the source of a copy, or cannot copy it; the bytes have to be sent."""


class CollisionError(ConcurrentWriterError):
    """Another checkpoint has an object of this name: this one needs another number. ``key``: key of that object."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class Replacing:
    """Writes that replace existing objects."""

    fixed = False
    """Whether the files to send are a fixed list in a fixed state."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, key: str, body: Body, crc32c: int) -> Awaitable[ObjectInfo]:
        """Write one object. StoreError."""
        return self._store.put(key, body, crc32c=crc32c)

    async def copy(self, origin: Origin, key: str, crc32c: int) -> str:
        """Copy a whole object inside the store; returns the version of the copy. LostSourceError if the copy is
        wrong."""
        return await self._copy(origin, key, crc32c, None)

    def copies_whole(self) -> bool:
        """Whether the store can copy a whole object under the condition that is needed."""
        return True

    async def complete(self, upload: Upload, parts: Sequence[Part], crc32c: int) -> ObjectInfo:
        """Complete an upload. ConcurrentWriterError if another process wrote the object since the store was last
        read."""
        try:
            return await self._store.complete_multipart(upload, parts, crc32c=crc32c)
        except PreconditionError as error:
            raise ConcurrentWriterError(
                f"{self._store.uri.rstrip('/')}/{upload.key}: another process wrote it at the same time, and its "
                f"object was kept; only one process may sync a prefix: stop the other one, then sync again ({error})"
            ) from error

    async def _copy(self, origin: Origin, key: str, crc32c: int, if_version: str | None) -> str:
        only = {} if if_version is None else {"if_version": if_version}
        try:
            info = await self._store.copy(origin.key, key, if_source_version=origin.version, size=origin.total, **only)
        except StillUnavailableError:
            raise
        except StoreError as error:
            raise LostSourceError(f"{origin.key} could not be copied to {key}: {error}") from error
        if info.size != origin.total or info.crc32c not in (None, crc32c):
            raise LostSourceError(
                f"{origin.key} was copied to {key}, but the copy does not have the bytes of its manifest"
            )
        return info.version


class Creating(Replacing):
    """Writes that only create. An existing object with the same bytes counts as ours: an attempt whose response was
    lost, or the process that began this checkpoint, wrote it. CollisionError for other bytes."""

    fixed = True

    async def put(self, key: str, body: Body, crc32c: int) -> ObjectInfo:
        try:
            return await self._store.put(key, body, crc32c=crc32c, if_version=MISSING)
        except PreconditionError as error:
            return self._ours(key, await written_is_ours(self._store, key, body, crc32c), error)

    async def copy(self, origin: Origin, key: str, crc32c: int) -> str:
        if not self.copies_whole():
            raise LostSourceError(f"{self._store.uri} cannot make a copy conditional, so {key} is sent instead")
        conditional = self._store.traits.conditional_writes
        try:
            return await self._copy(origin, key, crc32c, MISSING if conditional else None)
        except LostSourceError as error:
            if isinstance(error.__cause__, PreconditionError) and (version := await self._copied(origin, key, crc32c)):
                return version
            raise

    async def _copied(self, origin: Origin, key: str, crc32c: int) -> str | None:
        """The version of the existing object if it equals the source: an attempt whose response was lost made it."""
        try:
            info = await self._store.head(key)
        except StoreError:
            return None
        return info.version if (info.size, info.crc32c) == (origin.total, crc32c) else None

    def copies_whole(self) -> bool:
        traits = self._store.traits
        return traits.conditional_copy or not traits.conditional_writes

    async def complete(self, upload: Upload, parts: Sequence[Part], crc32c: int) -> ObjectInfo:
        try:
            return await self._store.complete_multipart(upload, parts, crc32c=crc32c, if_version=MISSING)
        except PreconditionError as error:
            return self._ours(upload.key, await completed_is_ours(self._store, upload, parts, crc32c), error)

    def _ours(self, key: str, info: ObjectInfo | None, error: PreconditionError) -> ObjectInfo:
        if info is None:
            raise CollisionError(
                f"{self._store.uri.rstrip('/')}/{key} exists already with other bytes: another process writes a "
                "checkpoint of this name; nothing of it was overwritten",
                key,
            ) from error
        return info
