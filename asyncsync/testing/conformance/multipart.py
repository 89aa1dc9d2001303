"""Conformance of multipart uploads."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from asyncsync.errors import IntegrityError, NotFoundError, PreconditionError, StoreError, UnsupportedError
from asyncsync.stores.base import MISSING, Store, Upload
from asyncsync.testing.conformance.fixtures import PART, ConformanceBase, Rule, crc, list_all_pages, upload_three_parts


class MultipartConformance(ConformanceBase):
    """Uploads in parts: complete, abort, list, and parts copied from other objects."""

    @pytest.fixture(autouse=True)
    def _multipart_is_supported(self, request: pytest.FixtureRequest, store: Store) -> None:
        """Skips these tests for a store without multipart uploads, but for the one that is about them."""
        name = getattr(request.node, "originalname", "")
        here = name in vars(MultipartConformance) and name != "test_uploads_are_refused_where_unsupported"
        if here and not store.traits.multipart:
            pytest.skip("has no multipart uploads")

    async def test_uploads_are_refused_where_unsupported(self, store: Store) -> None:
        if store.traits.multipart:
            pytest.skip("has multipart uploads")
        with pytest.raises(UnsupportedError):
            await store.create_multipart("x")
        assert await store.list_multiparts() == []
        await store.abort_multipart(Upload("x", "none"))
        assert (await list_all_pages(store))[0] == []

    async def test_parts_become_an_object(self, store: Store, tmp_path: Path) -> None:
        data, upload, parts = await upload_three_parts(store, "d/x", tmp_path)
        info = await store.complete_multipart(upload, parts)
        assert (await store.get("d/x"))[0] == data
        assert info.size == len(data)
        assert info.version == (await store.head("d/x")).version
        assert await store.list_multiparts() == []

    async def test_an_incomplete_upload_is_invisible(self, store: Store, tmp_path: Path) -> None:
        _, upload, _ = await upload_three_parts(store, "d/x", tmp_path)
        with pytest.raises(NotFoundError):
            await store.head("d/x")
        assert (await list_all_pages(store))[0] == []
        await store.abort_multipart(upload)

    async def test_parts_may_come_in_any_order_and_from_memory(self, store: Store) -> None:
        upload = await store.create_multipart("x")
        last = await store.put_part(upload, 2, PART, b"tail", crc32c=crc(b"tail"))
        first = await store.put_part(upload, 1, 0, bytes(PART), crc32c=crc(bytes(PART)))
        await store.complete_multipart(upload, [first, last])
        assert (await store.get("x"))[0] == bytes(PART) + b"tail"

    async def test_a_part_sent_again_replaces_the_first(self, store: Store) -> None:
        upload = await store.create_multipart("x")
        await store.put_part(upload, 1, 0, b"long and wrong")
        part = await store.put_part(upload, 1, 0, b"right")
        await store.complete_multipart(upload, [part])
        assert (await store.get("x"))[0] == b"right"

    async def test_finished_parts_are_listed(self, store: Store, tmp_path: Path) -> None:
        _, upload, parts = await upload_three_parts(store, "d/x", tmp_path)
        listed = await store.list_parts(upload)
        assert [(part.number, part.size, part.etag) for part in listed] == [(p.number, p.size, p.etag) for p in parts]
        assert all(one.crc32c in (None, other.crc32c) for one, other in zip(listed, parts, strict=True))
        assert all(one.offset in (-1, other.offset) for one, other in zip(listed, parts, strict=True))
        await store.abort_multipart(upload)

    async def test_listed_parts_complete_an_upload(self, store: Store, tmp_path: Path) -> None:
        data, upload, _ = await upload_three_parts(store, "d/x", tmp_path)
        await store.complete_multipart(upload, await store.list_parts(upload))
        assert (await store.get("d/x"))[0] == data

    async def test_open_uploads_are_listed_below_a_prefix(self, store: Store) -> None:
        one = await store.create_multipart("a/x")
        other = await store.create_multipart("b/y")
        assert [(up.key, up.upload_id) for up in await store.list_multiparts("a/")] == [("a/x", one.upload_id)]
        assert {up.key for up in await store.list_multiparts()} == {"a/x", "b/y"}
        await store.abort_multipart(one)
        await store.abort_multipart(other)
        assert await store.list_multiparts() == []

    async def test_an_aborted_upload_is_missing(self, store: Store, rule: Rule) -> None:
        upload = await store.create_multipart("x")
        part = await store.put_part(upload, 1, 0, b"data")
        await store.abort_multipart(upload)
        with pytest.raises(NotFoundError):
            await store.list_parts(upload)
        assert (await list_all_pages(store))[0] == []
        rule("forgets an aborted upload")
        rule("reports a missing part")
        with pytest.raises(NotFoundError):
            await store.complete_multipart(upload, [part])

    async def test_an_aborted_upload_takes_no_more_parts(self, store: Store, rule: Rule) -> None:
        rule("takes no part of an aborted upload")
        upload = await store.create_multipart("x")
        await store.abort_multipart(upload)
        with pytest.raises(NotFoundError):
            await store.put_part(upload, 2, 4, b"more")

    async def test_aborting_twice_succeeds(self, store: Store) -> None:
        upload = await store.create_multipart("x")
        await store.abort_multipart(upload)
        await store.abort_multipart(upload)

    async def test_completing_twice_never_damages_the_object(self, store: Store, rule: Rule) -> None:
        rule("reports a missing part")
        upload = await store.create_multipart("x")
        part = await store.put_part(upload, 1, 0, b"data")
        await store.complete_multipart(upload, [part])
        with contextlib.suppress(NotFoundError):
            await store.complete_multipart(upload, [part])
        assert (await store.get("x"))[0] == b"data"

    async def test_a_part_with_a_wrong_checksum_is_refused(self, store: Store, rule: Rule) -> None:
        rule("refuses a wrong checksum")
        upload = await store.create_multipart("x")
        with pytest.raises(IntegrityError):
            await store.put_part(upload, 1, 0, b"data", crc32c=crc(b"other"))
        assert await store.list_parts(upload) == []
        await store.abort_multipart(upload)

    async def test_a_wrong_checksum_of_the_complete_object_is_refused(self, store: Store, rule: Rule) -> None:
        rule("refuses a wrong checksum of the complete object")
        upload = await store.create_multipart("x")
        part = await store.put_part(upload, 1, 0, b"data", crc32c=crc(b"data"))
        with pytest.raises(IntegrityError):
            await store.complete_multipart(upload, [part], crc32c=crc(b"other"))
        with pytest.raises(NotFoundError):
            await store.head("x")
        await store.abort_multipart(upload)

    async def test_complete_can_create_only(self, store: Store, rule: Rule) -> None:
        rule("completes on a condition")
        await store.put("x", b"first")
        upload = await store.create_multipart("x")
        part = await store.put_part(upload, 1, 0, b"data")
        with pytest.raises(PreconditionError):
            await store.complete_multipart(upload, [part], if_version=MISSING)
        assert (await store.get("x"))[0] == b"first"
        await store.abort_multipart(upload)

    async def test_a_part_can_be_a_range_of_another_object(self, store: Store) -> None:
        if not store.traits.range_copy:
            pytest.skip("copies whole objects only")
        data = os.urandom(PART + 300)
        info = await store.put("old", data)
        upload = await store.create_multipart("new")
        first = await store.copy_part(upload, 1, 0, "old", 100, PART, if_source_version=info.version)
        last = await store.put_part(upload, 2, PART, b"tail")
        await store.complete_multipart(upload, [first, last])
        assert (await store.get("new"))[0] == data[100 : 100 + PART] + b"tail"

    async def test_a_part_can_be_copied_from_the_object_it_will_replace(self, store: Store) -> None:
        data = os.urandom(PART)
        await store.put("x", data)
        upload = await store.create_multipart("x")
        first = await store.copy_part(upload, 1, 0, "x", 0, PART)
        last = await store.put_part(upload, 2, PART, b"appended")
        await store.complete_multipart(upload, [first, last])
        assert (await store.get("x"))[0] == data + b"appended"

    async def test_a_range_copy_is_refused_where_it_is_unsupported(self, store: Store) -> None:
        if store.traits.range_copy:
            pytest.skip("copies any range")
        await store.put("old", b"0123456789")
        upload = await store.create_multipart("new")
        for start, length in ((1, 9), (0, 9)):
            with pytest.raises(StoreError):
                await store.copy_part(upload, 1, 0, "old", start, length)
        await store.abort_multipart(upload)

    async def test_a_part_copied_from_a_missing_object_raises_not_found(self, store: Store) -> None:
        upload = await store.create_multipart("x")
        with pytest.raises(NotFoundError):
            await store.copy_part(upload, 1, 0, "missing", 0, 10)
        await store.abort_multipart(upload)

    async def test_a_copied_part_checks_the_version_of_its_source(self, store: Store, rule: Rule) -> None:
        rule("copies on a condition")
        old = await store.put("old", bytes(PART))
        await store.put("old", b"x" * PART)
        upload = await store.create_multipart("new")
        with pytest.raises(PreconditionError):
            await store.copy_part(upload, 1, 0, "old", 0, PART, if_source_version=old.version)
        await store.abort_multipart(upload)
