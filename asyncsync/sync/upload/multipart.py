"""Opening a multipart upload, or going on with one, so that the journal knows of it from the start."""

from __future__ import annotations

from dataclasses import replace

from asyncsync.disk.files import FileRange
from asyncsync.errors import NotFoundError
from asyncsync.planning.snapshot import FileStat
from asyncsync.stores.base import Part, Store, Upload
from asyncsync.sync.upload.open_uploads import OpenUploads


async def find_upload(
    store: Store, uploads: OpenUploads, key: str, part_size: int
) -> tuple[Upload | None, dict[int, Part]]:
    """The upload of ``key`` that an earlier pass began, and its parts. An upload that is not open any more is given
    back too: the store does not know it, so perhaps it was completed."""
    upload = uploads.find(key, part_size)
    if upload is not None:
        try:
            return upload, uploads.parts(upload, await store.list_parts(upload))
        except NotFoundError:
            uploads.closed(upload)
    return upload, {}


async def open_upload(
    store: Store, uploads: OpenUploads, key: str, path: str, file: FileStat, part_size: int
) -> Upload:
    """A new upload of the local file ``path``, as it is at ``file``."""
    intention = await uploads.intend(key)
    retries = getattr(store, "retries", 0)
    try:
        upload = await store.create_multipart(key)
    except BaseException:  # a cancel too: plain bookkeeping, then on its way
        uploads.unsure(intention)
        raise
    uploads.opened(upload, path, file, part_size)
    if getattr(store, "retries", 0) == retries:
        uploads.settled(intention)
    else:  # an attempt whose answer was lost may have begun another one
        uploads.unsure(intention)
    return upload


def going_on(store: Store, uploads: OpenUploads, upload: Upload, part: Part, body: FileRange) -> FileRange:
    """The body of a part that is about to be sent. Where the store can, it goes on where an earlier attempt broke off,
    that of another process too."""
    return replace(body, progress=uploads.progress(upload, part)) if store.traits.resumable_puts else body
