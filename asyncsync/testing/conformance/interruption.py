"""Conformance of calls that are interrupted: by an expired lease, or by a cancel."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from asyncsync.disk.files import FileRange
from asyncsync.errors import LeaseExpiredError
from asyncsync.stores.base import MISSING, Body, Store
from asyncsync.testing.conformance.fixtures import MIB, PART, ConformanceBase, crc, list_all_pages, upload_three_parts
from asyncsync.testing.conformance.leases import BodyKind, CountedLease, leased


class LeaseConformance(ConformanceBase):
    """Writes under a lease."""

    @pytest.mark.parametrize("kind_of_body", ["memory", "file"])
    @pytest.mark.parametrize("size", [10, 40_000, 3 * MIB])
    async def test_without_its_lease_nothing_is_written(
        self, store: Store, tmp_path: Path, kind_of_body: BodyKind, size: int
    ) -> None:
        data = os.urandom(size)
        expired = leased(kind_of_body, data, CountedLease(1), tmp_path)
        before = await store.put("x", b"before")
        for key, condition in (("x", None), ("x", before.version), ("new", None), ("new", MISSING)):
            with pytest.raises(LeaseExpiredError):
                await store.put(key, expired, crc32c=crc(data), if_version=condition)
        if store.traits.multipart:
            await self._check_parts(store, expired, data)
        found, info = await store.get("x")  # its time may be less exact than that of a head
        assert (found, info.version) == (b"before", before.version)
        assert (await store.head("x")).version == before.version
        assert [info.key for info in (await list_all_pages(store))[0]] == ["x"]

    async def _check_parts(self, store: Store, expired: Body, data: bytes) -> None:
        upload = await store.create_multipart("y")
        kept = await store.put_part(upload, 1, 0, b"kept")
        for number in (1, 2):
            with pytest.raises(LeaseExpiredError):
                await store.put_part(upload, number, 0, expired, crc32c=crc(data))
        assert [(part.number, part.etag) for part in await store.list_parts(upload)] == [(1, kept.etag)]
        await store.abort_multipart(upload)

    @pytest.mark.parametrize("kind_of_body", ["memory", "file"])
    @pytest.mark.parametrize("size", [0, 10, 40_000, 3 * MIB])
    async def test_under_its_lease_a_body_arrives_completely(
        self, store: Store, tmp_path: Path, kind_of_body: BodyKind, size: int
    ) -> None:
        data, lease = os.urandom(size), CountedLease()
        body = leased(kind_of_body, data, lease, tmp_path)
        await store.put("x", body, crc32c=crc(data))
        assert (await store.get("x"))[0] == data
        checks = lease.checks
        assert checks >= 1
        if store.traits.multipart:
            upload = await store.create_multipart("y")
            part = await store.put_part(upload, 1, 0, body, crc32c=crc(data))
            assert lease.checks > checks
            await store.complete_multipart(upload, [part])
            assert (await store.get("y"))[0] == data


class CancelConformance(ConformanceBase):
    """Calls that are cancelled at any point, and closing."""

    @pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 20])
    async def test_a_cancelled_put_writes_everything_or_nothing(self, store: Store, tmp_path: Path, steps: int) -> None:
        old, new = b"old", os.urandom(4 * MIB)
        (tmp_path / "f").write_bytes(new)
        await store.put("x", old)
        task = asyncio.create_task(store.put("x", FileRange(str(tmp_path / "f"), 0, len(new)), crc32c=crc(new)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert (await store.get("x"))[0] in (old, new)
        assert [info.key for info in (await list_all_pages(store))[0]] == ["x"]

    @pytest.mark.parametrize("steps", [0, 1, 3, 8])
    async def test_a_cancelled_read_leaves_the_store_usable(self, store: Store, steps: int) -> None:
        data = os.urandom(4 * MIB)
        await store.put("x", data)
        task = asyncio.create_task(store.get("x"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert (await store.get("x"))[0] == data

    @pytest.mark.parametrize("steps", [0, 1, 3, 8])
    async def test_an_upload_continues_after_a_cancelled_part(self, store: Store, tmp_path: Path, steps: int) -> None:
        if not store.traits.multipart:
            pytest.skip("has no multipart uploads")
        data, upload, parts = await upload_three_parts(store, "x", tmp_path)
        body = FileRange(str(tmp_path / "source"), PART, PART)
        task = asyncio.create_task(store.put_part(upload, 2, PART, body, crc32c=crc(data[PART : 2 * PART])))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        parts[1] = await store.put_part(upload, 2, PART, body, crc32c=crc(data[PART : 2 * PART]))
        await store.complete_multipart(upload, parts)
        assert (await store.get("x"))[0] == data

    async def test_closing_twice_succeeds(self, store: Store) -> None:
        await store.put("x", b"1")
        await store.close()
        await store.close()
