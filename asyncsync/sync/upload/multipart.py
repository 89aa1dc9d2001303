"""Multipart uploads of local files: found again or opened, and known to the journal from the start."""

from __future__ import annotations

from dataclasses import replace

from asyncsync.disk.files import FileRange
from asyncsync.disk.journal import UploadKind
from asyncsync.errors import NotFoundError
from asyncsync.planning.snapshot import FileStat
from asyncsync.stores.base import Part, Store, Upload
from asyncsync.sync.upload.open_uploads import OpenUploads


async def find_upload(
    store: Store, uploads: OpenUploads, key: str, part_size: int, kind: UploadKind = "multipart"
) -> tuple[Upload | None, dict[int, Part]]:
    """The upload of ``key`` that an earlier pass opened, and its acknowledged parts by number.

    An upload that the store no longer knows is returned too, without parts: it may have been completed.
    """
    upload = uploads.find(key, part_size, kind)
    if upload is not None:
        try:
            return upload, uploads.parts(upload, await store.list_parts(upload))
        except NotFoundError:
            uploads.closed(upload)
    return upload, {}


async def open_upload(
    store: Store,
    uploads: OpenUploads,
    key: str,
    path: str,
    file: FileStat,
    part_size: int,
    kind: UploadKind = "multipart",
) -> Upload:
    """Open an upload of the local file ``path``, whose state is ``file``."""
    intention = await uploads.intend(key)
    retries = getattr(store, "retries", 0)
    try:
        upload = await store.create_multipart(key)
    except BaseException:  # also a cancel: plain bookkeeping, then raised
        uploads.unsure(intention)
        raise
    uploads.opened(upload, path, file, part_size, kind)
    if getattr(store, "retries", 0) == retries:
        uploads.intention_done(intention)
    else:  # an attempt whose response was lost may have created a second upload
        uploads.unsure(intention)
    return upload


def resumable_body(store: Store, uploads: OpenUploads, upload: Upload, part: Part, body: FileRange) -> FileRange:
    """The body of a part that is about to be sent. If the store supports it, the part resumes where an earlier attempt
    stopped, also one of another process."""
    return replace(body, progress=uploads.resume_token(upload, part)) if store.traits.resumable_puts else body
