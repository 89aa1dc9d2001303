"""Blocks: used again, resumed, mixed by nobody, and those of other programs."""

import os

import google_crc32c
import pytest

from asyncsync.errors import (
    AccessDeniedError,
    NotFoundError,
    PreconditionError,
    UnsupportedError,
)
from asyncsync.stores import open_store
from asyncsync.stores.azure import store as store_module
from asyncsync.stores.base import MISSING, Part

azure_fake = pytest.importorskip("azure_fake")
Fault = azure_fake.Fault
MIB = 1 << 20
SAS = "sv=2021-12-02&ss=b&srt=sco&sp=rwdlac&se=2030-01-01T00%3A00%3A00Z&sig=TOPSECRET%3D"


async def upload_blocks(store, key, *pieces):
    upload = await store.create_multipart(key)
    parts, at = [], 0
    for number, piece in enumerate(pieces, 1):
        parts.append(await store.put_part(upload, number, at, piece))
        at += len(piece)
    return await store.complete_multipart(upload, parts)


async def test_whole_blocks_of_the_replaced_blob_are_not_even_copied(azure_strict, store):
    old = await upload_blocks(store, "a", b"aaaa", b"bbbb", b"cccc")
    before = len(azure_strict.seen)
    upload = await store.create_multipart("a")
    parts = [
        await store.copy_part(upload, 1, 0, "a", 0, 4, if_source_version=old.version),
        await store.put_part(upload, 2, 4, b"BBBB"),
        await store.copy_part(upload, 3, 8, "a", 8, 4, if_source_version=old.version),
    ]
    info = await store.complete_multipart(upload, parts, crc32c=google_crc32c.value(b"aaaaBBBBcccc"))
    assert (await store.get("a"))[0] == b"aaaaBBBBcccc"
    assert info.crc32c == google_crc32c.value(b"aaaaBBBBcccc")
    sent = [seen.size for seen in azure_strict.seen[before:] if "comp=block&" in seen.target]
    assert sent == [4]
    assert not any("x-ms-copy-source" in seen.headers for seen in azure_strict.seen)


async def test_a_range_that_is_no_whole_block_is_copied(azure_strict, store):
    old = await upload_blocks(store, "a", b"aaaa", b"bbbb")
    upload = await store.create_multipart("a")
    part = await store.copy_part(upload, 1, 0, "a", 2, 4, if_source_version=old.version, body=b"aabb")
    await store.complete_multipart(upload, [part])
    assert (await store.get("a"))[0] == b"aabb"
    assert sum("x-ms-copy-source" in seen.headers for seen in azure_strict.seen) == 1


async def test_blocks_used_again_belong_to_one_version(store):
    old = await upload_blocks(store, "a", b"aaaa", b"bbbb")
    upload = await store.create_multipart("a")
    part = await store.copy_part(upload, 1, 0, "a", 0, 4, if_source_version=old.version)
    await upload_blocks(store, "a", b"other")
    with pytest.raises(PreconditionError):
        await store.complete_multipart(upload, [part])
    with pytest.raises(PreconditionError):
        await store.complete_multipart(upload, [part], if_version=MISSING)
    assert (await store.get("a"))[0] == b"other"


async def test_blocks_of_two_uploads_are_not_mixed(store):
    """Two processes send the same name at the same time: one of them wins, completely."""
    uploads = [await store.create_multipart("a") for _ in range(2)]
    parts = [
        [await store.put_part(up, n, 4 * n - 4, bytes([65 + i]) * 4) for n in (1, 2)] for i, up in enumerate(uploads)
    ]
    await store.complete_multipart(uploads[1], parts[1])
    with pytest.raises(NotFoundError):
        await store.complete_multipart(uploads[0], parts[0])
    assert (await store.get("a"))[0] == b"BBBBBBBB"


async def test_a_part_of_another_upload_is_refused(azure_strict, store):
    one, other = await store.create_multipart("a"), await store.create_multipart("a")
    part = await store.put_part(one, 1, 0, b"aaaa")
    for wrong in (part, Part(1, 0, 4, "</Uncommitted>", 1), Part(1, 0, 4, "YQ==", 1), Part(1, 0, 4, "", 1)):
        with pytest.raises(NotFoundError):
            await store.complete_multipart(other, [wrong])
    with pytest.raises(NotFoundError):
        await store.head("a")


async def test_a_resume_knows_its_parts_from_the_block_list_alone(azure_strict, store):
    upload = await store.create_multipart("a")
    await store.put_part(upload, 2, 4, b"bbbb")
    await store.put_part(upload, 1, 0, b"aaaa")
    async with open_store("az://conformance/p", options=azure_strict.storage_options) as later:
        (found,) = await later.list_multiparts()
        parts = await later.list_parts(found)
        assert [(part.number, part.offset, part.size) for part in parts] == [(1, 0, 4), (2, 4, 4)]
        assert [part.crc32c for part in parts] == [google_crc32c.value(b"aaaa"), google_crc32c.value(b"bbbb")]
        await later.complete_multipart(found, parts)
    assert (await store.get("a"))[0] == b"aaaabbbb"


async def test_a_commit_whose_response_was_lost_is_found(azure_strict, guarded):
    upload = await guarded.create_multipart("a")
    part = await guarded.put_part(upload, 1, 0, b"aaaa", crc32c=google_crc32c.value(b"aaaa"))
    azure_strict.faults = [Fault("comp=blocklist", lose=True)]
    info = await guarded.complete_multipart(upload, [part], crc32c=google_crc32c.value(b"aaaa"))
    assert info.version == (await guarded.head("a")).version
    assert await guarded.list_multiparts() == []


@pytest.mark.parametrize("condition", [None, MISSING])
async def test_a_put_whose_response_was_lost_is_found(azure_strict, guarded, condition):
    azure_strict.faults = [Fault("PUT", lose=True)]
    info = await guarded.put("a", b"aaaa", crc32c=google_crc32c.value(b"aaaa"), if_version=condition)
    assert info.version == (await guarded.head("a")).version


@pytest.mark.parametrize("committed", [None, "blocks"])
async def test_unfinished_blocks_of_another_program_are_dropped(container, store, committed):
    if committed:
        await upload_blocks(store, "a", b"old", b"blob")
        container.blobs["p/a"].headers |= {"x-ms-meta-mine": "kept"}
    container.uncommitted["p/a"] = {"YQ==": b"foreign"}
    upload = await store.create_multipart("a")
    part = await store.put_part(upload, 1, 0, b"new")
    if committed:
        assert (await store.get("a"))[0] == b"oldblob"
        assert container.blobs["p/a"].headers["x-ms-meta-mine"] == "kept"
    else:
        with pytest.raises(NotFoundError):
            await store.head("a")
    await store.complete_multipart(upload, [part])
    assert (await store.get("a"))[0] == b"new"


async def test_a_blob_without_blocks_is_never_emptied(container, store):
    """Committing its list again would commit nothing."""
    await store.put("a", b"old")
    container.uncommitted["p/a"] = {"YQ==": b"foreign"}
    upload = await store.create_multipart("a")
    with pytest.raises(UnsupportedError, match="in one request"):
        await store.put_part(upload, 1, 0, b"new")
    assert (await store.get("a"))[0] == b"old"
    await store.put("a", b"new")
    assert (await store.get("a"))[0] == b"new"


async def test_a_leased_blob_is_not_ours_to_write(container, store):
    await store.put("a", b"old")
    container.leased.add("p/a")
    upload = await store.create_multipart("a")
    for call in (
        store.put("a", b"new"),
        store.put_part(upload, 1, 0, b"new"),
        store.delete(["a"]),
        store.copy("a", "a"),
    ):
        with pytest.raises(AccessDeniedError, match="lease"):
            await call


async def test_a_blob_of_more_than_256_mib_is_copied_in_blocks(container, store, monkeypatch):
    container.max_copy = 10
    monkeypatch.setattr(store_module, "MAX_COPY", 10)
    monkeypatch.setattr(store_module, "COPY_RANGE", 8)
    info = await store.put("a", os.urandom(30))
    made = await store.copy("a", "b", if_version=MISSING)
    assert container.blobs["p/b"].data == container.blobs["p/a"].data
    assert (made.size, made.crc32c, made.version) == (30, info.crc32c, (await store.head("b")).version)
    with pytest.raises(PreconditionError):
        await store.copy("a", "b", if_version=MISSING)
