"""Multipart uploads of blobs: blocks, their commit, and blocks that are committed again instead of being sent.

Put Block List may name blocks of the committed blob beside new ones. So the unchanged parts of a file that replaces
itself cost nothing, not even a copy, if they are whole blocks; the commit then requires the version they belong to.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from asyncsync.disk.files import check_lease
from asyncsync.errors import IntegrityError, NotFoundError, PreconditionError, StoreError, UnsupportedError
from asyncsync.planning.crc32c import crc32c_if_known
from asyncsync.runtime import token as random_token
from asyncsync.stores.azure import block_ids
from asyncsync.stores.azure.block_ids import Block, BlockList, BlockName, block_name_of
from asyncsync.stores.azure.checksums import checksums_of, crc64_of
from asyncsync.stores.azure.errors import ForeignBlocksError, MissingBlockError
from asyncsync.stores.azure.options import AzureOptions
from asyncsync.stores.azure.requests import AzureRequests, CopyRange, precondition
from asyncsync.stores.azure.xml import CRC_METADATA
from asyncsync.stores.base import MISSING, Body, ObjectInfo, Part, Upload, body_size
from asyncsync.stores.http.body import crc32c_to_text

log = logging.getLogger("asyncsync")

REMEMBERED_UPLOADS = 256
"""Uploads of which this process knows that they are open, and block lists that it keeps for them."""
_KEPT_HEADERS = {
    "cache-control": "x-ms-blob-cache-control",
    "content-disposition": "x-ms-blob-content-disposition",
    "content-encoding": "x-ms-blob-content-encoding",
    "content-language": "x-ms-blob-content-language",
    "content-md5": "x-ms-blob-content-md5",
    "content-type": "x-ms-blob-content-type",
}
"""Properties of a blob that a commit would otherwise reset, and the headers that keep them."""


@dataclass(frozen=True, slots=True)
class CopiedRange:
    """A range of another object, to be copied as a part. ``body``: the same bytes on this machine, if it has them."""

    source: str
    start: int
    length: int
    if_version: str | None
    body: Body | None


class BlockUploads:
    """The uploads of one store. ``full`` makes a blob's name of a key."""

    def __init__(self, requests: AzureRequests, options: AzureOptions, full: Callable[[str], str]) -> None:
        self._requests, self._options, self._full = requests, options, full
        self._open: OrderedDict[str, BlockList | None] = OrderedDict()
        """By upload ID: known to be open; the block list of the blob to be replaced, once it was needed."""

    # Markers

    async def create(self, key: str) -> Upload:
        """Open an upload: write its marker."""
        upload_id = random_token()
        name = self._full(block_ids.marker_key(upload_id))
        headers = self._options.blob_headers(data=False) | block_ids.key_metadata(key) | precondition(MISSING)
        await self._requests.put_blob(name, b"", crc64_of(b""), headers)
        self._remember(upload_id)
        return Upload(key, upload_id)

    async def check_open(self, upload: Upload) -> None:
        """NotFoundError if the upload was completed or aborted."""
        if not block_ids.is_upload_id(upload.upload_id):
            raise self._missing(upload)
        try:
            await self._requests.head(self._full(block_ids.marker_key(upload.upload_id)), {})
        except NotFoundError as error:
            self._open.pop(upload.upload_id, None)
            raise self._missing(upload) from error
        self._remember(upload.upload_id)

    def _missing(self, upload: Upload) -> NotFoundError:
        where = self._requests.where(self._full(upload.key))
        return NotFoundError(f"{where}: there is no upload {upload.upload_id[:40]!r}: it was completed or aborted")

    def _remember(self, upload_id: str) -> None:
        self._open[upload_id] = self._open.get(upload_id)
        self._open.move_to_end(upload_id)
        while len(self._open) > REMEMBERED_UPLOADS:
            self._open.popitem(last=False)

    async def _check_known(self, upload: Upload) -> None:
        if upload.upload_id not in self._open:
            await self.check_open(upload)

    async def abort(self, upload: Upload) -> None:
        """Delete the marker. The service drops the blocks itself."""
        self._open.pop(upload.upload_id, None)
        if block_ids.is_upload_id(upload.upload_id):
            await self._delete_marker(upload)

    async def _delete_marker(self, upload: Upload) -> None:
        try:
            await self._requests.delete(self._full(block_ids.marker_key(upload.upload_id)), {}, None)
        except NotFoundError:
            return

    # Parts

    async def put_part(self, upload: Upload, number: int, offset: int, body: Body, crc32c: int | None) -> Part:
        await self._check_known(upload)
        key = self._full(upload.key)
        crc64, crc32c = await checksums_of(f"Put Block {self._requests.where(key)}", body, crc32c)
        name = BlockName(upload.upload_id, number, offset, crc32c).encoded()

        async def send() -> None:
            await self._requests.put_block(key, name, body, crc64, self._options.block_headers())

        await self._despite_foreign_blocks(key, send)
        return Part(number, offset, body_size(body), name, crc32c)

    async def copy_part(self, upload: Upload, number: int, offset: int, copied: CopiedRange) -> Part:
        await self._check_known(upload)
        if copied.source == upload.key and copied.if_version:
            reused = await self._reuse(upload, number, offset, copied)
            if reused is not None:
                return reused
        key, source, crc64, crc32c = self._full(upload.key), self._full(copied.source), "", None
        if copied.body is not None:
            crc64, crc32c = await checksums_of(f"Put Block From URL {self._requests.where(key)}", copied.body, None)
        name = BlockName(upload.upload_id, number, offset, crc32c).encoded()
        block = CopyRange(source, copied.start, copied.length, copied.if_version, crc64)

        async def send() -> None:
            await self._requests.copy_block(key, name, block, self._options.block_headers())

        await self._despite_foreign_blocks(key, send)
        return Part(number, offset, copied.length, name, crc32c)

    async def _reuse(self, upload: Upload, number: int, offset: int, copied: CopiedRange) -> Part | None:
        """The part as committed blocks of the blob that it replaces; None if they do not have exactly its bytes."""
        known = self._open.get(upload.upload_id)
        if known is None or known.version != copied.if_version:
            known = await self._requests.get_block_list(self._full(upload.key))
            self._open[upload.upload_id] = known
        if known.version != copied.if_version or not known.complete:
            return None
        blocks = known.between(copied.start, copied.length)
        if blocks is None:
            return None
        crc32c = crc32c_if_known((_crc32c_of(block), block.size) for block in blocks)
        if crc32c is None:
            return None
        return Part(number, offset, copied.length, block_ids.reused_etag(known.version, blocks), crc32c)

    async def list_parts(self, upload: Upload) -> Sequence[Part]:
        await self.check_open(upload)
        blocks = await self._requests.get_block_list(self._full(upload.key))
        return block_ids.parts_of(upload, blocks.uncommitted)

    # Commit

    async def complete(
        self, upload: Upload, parts: Sequence[Part], crc32c: int | None, if_version: str | None
    ) -> ObjectInfo:
        key = self._full(upload.key)
        combined = crc32c_if_known((part.crc32c, part.size) for part in parts)
        if None not in (crc32c, combined) and crc32c != combined:
            raise IntegrityError(f"{self._requests.where(key)}: the parts have CRC32C {combined:08x}, not {crc32c:08x}")
        blocks, version = self._blocks_of(upload, parts)
        if version and if_version not in (None, version):
            raise PreconditionError(f"{self._requests.where(key)}: its parts belong to version {version}")
        await self.check_open(upload)
        headers = {**self.blob_headers(upload.key), **precondition(version or if_version)}
        if combined is not None:
            headers[f"x-ms-meta-{CRC_METADATA}"] = crc32c_to_text(combined)
        check_lease(upload.lease)
        made = await self._requests.put_block_list(key, blocks, headers, upload.lease)
        await self._close(upload)
        return ObjectInfo(upload.key, sum(part.size for part in parts), made, combined)

    def _blocks_of(self, upload: Upload, parts: Sequence[Part]) -> tuple[list[tuple[bool, str]], str]:
        """The blocks of ``parts``, each with whether it is committed already, and the version to which those belong."""
        blocks: list[tuple[bool, str]] = []
        versions: set[str] = set()
        for part in parts:
            reused = block_ids.reused_blocks(part.etag)
            if reused is not None:
                versions.add(reused[0])
                blocks += [(True, name) for name in reused[1]]
            else:
                blocks.append((False, part.etag))
        names = [block_name_of(name) for _, name in blocks]
        foreign = [name for (old, _), name in zip(blocks, names, strict=True) if not old and _is_foreign(name, upload)]
        if foreign or None in names:
            raise MissingBlockError(f"{self._requests.where(self._full(upload.key))}: a part is not one of this upload")
        if len(versions) > 1:
            raise PreconditionError(f"{self._requests.where(self._full(upload.key))}: another program has replaced it")
        return blocks, next(iter(versions), "")

    async def _close(self, upload: Upload) -> None:
        """After a commit. A transient error is raised: a retry finds the blob and deletes the marker."""
        self._open.pop(upload.upload_id, None)
        try:
            await self._delete_marker(upload)
        except StoreError as error:
            if error.retryable:
                raise
            log.warning("%s: its marker remains until it is pruned: %s", self._requests.where(upload.key), error)

    def blob_headers(self, key: str) -> dict[str, str]:
        """Headers of a request that writes this object."""
        own = ".asyncsync/" in key and (key.startswith(".asyncsync/") or "/.asyncsync/" in key)
        return {"x-ms-blob-content-type": "application/octet-stream", **self._options.blob_headers(data=not own)}

    # Blocks of other programs

    async def _despite_foreign_blocks(self, key: str, send: Callable[[], Awaitable[None]]) -> None:
        """Send a block, also if another program left uncommitted blocks whose names have another length.

        UnsupportedError if they can only be dropped by writing the blob in one request.
        """
        try:
            return await send()
        except ForeignBlocksError as error:
            await self._drop_foreign_blocks(key, error)
        return await send()

    async def _drop_foreign_blocks(self, key: str, error: ForeignBlocksError) -> None:
        """A commit drops all uncommitted blocks: commit the blob as it is."""
        found = await self._requests.get_block_list(key)
        where = self._requests.where(key)
        if found.size is None:  # only uncommitted blocks: commit nothing, and delete that
            version = await self._requests.put_block_list(key, [], precondition(MISSING), None)
            await self._requests.delete(key, precondition(version), None)
        elif found.complete and found.committed:
            headers = await self._kept_headers(key, found.version)
            await self._requests.put_block_list(key, [(True, block.name) for block in found.committed], headers, None)
        else:
            raise UnsupportedError(
                f"{where}: {error}; it was not written in blocks, so it can only be replaced in one request"
            ) from error
        log.warning("%s: unfinished blocks of another program were dropped", where)

    async def _kept_headers(self, key: str, version: str) -> dict[str, str]:
        condition = precondition(version)
        found = await self._requests.head(key, condition)
        kept = {name: value for name, value in found.items() if name.startswith("x-ms-meta-")}
        kept |= {header: found[name] for name, header in _KEPT_HEADERS.items() if found.get(name)}
        return kept | condition


def _crc32c_of(block: Block) -> int | None:
    name = block_name_of(block.name)
    return None if name is None else name.crc32c


def _is_foreign(name: BlockName | None, upload: Upload) -> bool:
    return name is None or name.upload_id != upload.upload_id
