"""A store around another one: every call passes one method, so that a layer is that method.

This one counts objects that are missing, for any store::

    class CountMissing(WrappedStore):
        missing = 0

        async def around(self, operation: Operation, call: Call[T]) -> T:
            try:
                return await call()
            except NotFoundError:
                self.missing += 1
                raise

Layers over it: :class:`asyncsync.stores.guard.guarded.GuardedView` (retries and limits), with
:class:`asyncsync.stores.guard.fenced.FencedView` (leases), :class:`asyncsync.stores.guard.metered.MeteredStore` and
:class:`asyncsync.testing.FaultyStore`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from asyncsync.disk.files import FileRange, Lease, LeasedBytes, LeasedKey, LeasedKeys
from asyncsync.stores.base import Body, Checks, ObjectInfo, Page, Part, Sink, Store, Traits, Upload, body_size

__all__ = ["Call", "Operation", "WrappedStore", "under_lease"]

T = TypeVar("T")

Call = Callable[[], Awaitable[T]]
"""Makes the call once; it can be called again for another attempt."""


class Operation(NamedTuple):
    """One call of a store, as a layer sees it."""

    name: str
    """The method of :class:`~asyncsync.stores.base.Store`; ``read`` for ``get`` too, which reads all of an object."""
    key: str
    """The key, the prefix of a listing, or the keys of a delete joined by newlines."""
    size: int = 0
    """Bytes of the body that the call sends."""
    writes: bool = False
    """The call changes objects or adds to an upload. An abort does not count: it only deletes our own upload."""
    body: bool = False
    """The call moves the bytes of an object, so that the store can watch its progress."""

    def __str__(self) -> str:
        first, *more = self.key.split("\n")
        return f"{self.name} {first!r}" + (f" and {len(more)} more" if more else "")


class WrappedStore(Store):
    """The store ``inner``, with every call passed through :meth:`around`. Override that.

    Plain calls (traits, checks) and ``close`` go to ``inner`` directly.

    ``around`` is called on the class: an attribute of that name on an instance does not replace the layer.
    """

    lease: Lease | None = None
    """A layer that has one sends every write under it: the lease travels with the body, keys or upload."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.uri = inner.uri

    async def around(self, operation: Operation, call: Call[T]) -> T:
        """Make one call. The result has to be that of ``call``."""
        return await call()

    @property
    def traits(self) -> Traits:  # type: ignore[override]  # the store inside may lower its own later
        return self.inner.traits

    @property
    def share(self) -> int:
        return self.inner.share

    def lower_checks(self, checks: Checks) -> None:
        self.inner.lower_checks(checks)

    def check_copy_condition(self, key: str, if_version: str | None) -> None:
        self.inner.check_copy_condition(key, if_version)

    async def sweep(self) -> int:
        return await self.inner.sweep()

    async def close(self) -> None:
        """Close the store inside."""
        await self.inner.close()

    async def put(
        self, key: str, body: Body, *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        body = under_lease(self.lease, body)
        operation = Operation("put", key, body_size(body), writes=True, body=True)
        return await type(self).around(
            self, operation, partial(self.inner.put, key, body, crc32c=crc32c, if_version=if_version)
        )

    async def put_damaged(self, key: str, data: bytes) -> ObjectInfo:
        operation = Operation("put", key, len(data), writes=True, body=True)
        return await type(self).around(self, operation, partial(self.inner.put_damaged, key, data))

    async def read(
        self, key: str, sink: Sink, *, start: int = 0, length: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        call = partial(self.inner.read, key, sink, start=start, length=length, if_version=if_version)
        return await type(self).around(self, Operation("read", key, body=True), call)

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        return await type(self).around(self, Operation("read", key, body=True), partial(self.inner.get, key))

    async def head(self, key: str) -> ObjectInfo:
        return await type(self).around(self, Operation("head", key), partial(self.inner.head, key))

    async def list(self, prefix: str = "", *, delimiter: str = "", token: str | None = None) -> Page:
        call = partial(self.inner.list, prefix, delimiter=delimiter, token=token)
        return await type(self).around(self, Operation("list", prefix), call)

    async def delete(self, keys: Sequence[str]) -> None:
        call = partial(self.inner.delete, under_lease(self.lease, keys))
        await type(self).around(self, Operation("delete", "\n".join(keys), writes=True), call)

    async def copy(
        self,
        source: str,
        key: str,
        *,
        if_source_version: str | None = None,
        size: int | None = None,
        if_version: str | None = None,
    ) -> ObjectInfo:
        only = {} if if_version is None else {"if_version": if_version}  # stores without conditions need not take it
        leased = under_lease(self.lease, key)
        call = partial(self.inner.copy, source, leased, if_source_version=if_source_version, size=size, **only)
        return await type(self).around(self, Operation("copy", key, writes=True), call)

    async def create_multipart(self, key: str) -> Upload:
        call = partial(self.inner.create_multipart, key)
        return await type(self).around(self, Operation("create_multipart", key, writes=True), call)

    async def put_part(
        self, upload: Upload, number: int, offset: int, body: Body, *, crc32c: int | None = None
    ) -> Part:
        body = under_lease(self.lease, body)
        operation = Operation("put_part", upload.key, body_size(body), writes=True, body=True)
        return await type(self).around(
            self, operation, partial(self.inner.put_part, upload, number, offset, body, crc32c=crc32c)
        )

    async def copy_part(
        self,
        upload: Upload,
        number: int,
        offset: int,
        source: str,
        start: int,
        length: int,
        *,
        if_source_version: str | None = None,
        body: Body | None = None,
    ) -> Part:
        place = (upload, number, offset, source, start, length)
        more: dict[str, Any] = (
            {} if body is None else {"body": body}
        )  # only stores with the trait ``checked_copies`` take it
        call = partial(self.inner.copy_part, *place, if_source_version=if_source_version, **more)
        return await type(self).around(self, Operation("copy_part", upload.key, writes=True), call)

    async def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], *, crc32c: int | None = None, if_version: str | None = None
    ) -> ObjectInfo:
        leased = under_lease(self.lease, upload)
        call = partial(self.inner.complete_multipart, leased, parts, crc32c=crc32c, if_version=if_version)
        return await type(self).around(self, Operation("complete_multipart", upload.key, writes=True), call)

    async def abort_multipart(self, upload: Upload) -> None:
        await type(self).around(
            self, Operation("abort_multipart", upload.key), partial(self.inner.abort_multipart, upload)
        )

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        return await type(self).around(
            self, Operation("list_parts", upload.key), partial(self.inner.list_parts, upload)
        )

    async def list_multiparts(self, prefix: str = "") -> Sequence[Upload]:
        return await type(self).around(
            self, Operation("list_multiparts", prefix), partial(self.inner.list_multiparts, prefix)
        )


S = TypeVar("S")


def under_lease(lease: Lease | None, sent: S) -> S:
    """A body, key, sequence of keys or upload that carries ``lease``; itself if there is none."""
    if lease is None:
        return sent
    leased: LeasedBytes | LeasedKey | LeasedKeys
    if isinstance(sent, bytes):
        leased = LeasedBytes(sent)
    elif isinstance(sent, FileRange | Upload):
        return cast(S, replace(sent, lease=lease))
    elif isinstance(sent, str):
        leased = LeasedKey(sent)
    else:
        leased = LeasedKeys(cast(Sequence[str], sent))
    leased.lease = lease
    return cast(S, leased)
