"""A body under a lease: no server ever gets a complete request whose lease expired on the way."""

import asyncio
import errno
import os
import ssl
from contextlib import asynccontextmanager, suppress

import pytest
from http_wire import MIB, Wire, answer
from s3_script import OK, scripted

from asyncsync.errors import LeaseExpiredError, StoreError, UnavailableError
from asyncsync.stores.http.client import HELD_BACK_BYTES, SINGLE_WRITE_LEASED
from asyncsync.stores.s3 import bucket as s3_bucket
from asyncsync.testing.conformance.leases import CountedLease, leased

HEAD = b"PUT /k HTTP/1.1\r\n\r\n"
SIZES = [1, 16 << 10, SINGLE_WRITE_LEASED, SINGLE_WRITE_LEASED + 1, 65_537, MIB, 5 * MIB + 17]
KINDS = pytest.mark.parametrize("kind", ["file", "memory"])


class Got:
    """The bytes of one connection, and how it ended."""

    def __init__(self):
        self.data, self.end = bytearray(), ""


@asynccontextmanager
async def recording(wire, size, *, slow=False):
    """A client, and the bytes that its server received on each connection; it responds to a complete request.
    ``slow``: it reads little at a time, so that all buffers on the way are full.
    """
    seen = []

    async def accept(reader, writer):
        seen.append(got := Got())
        try:
            while piece := await reader.read(20_000 if slow else MIB):
                got.data.extend(piece)
                for _ in range(20 if slow else 0):
                    await asyncio.sleep(0)
                if len(got.data) == len(HEAD) + size:
                    writer.write(answer(Content_Length=0, Connection="close"))
            got.end = "closed"
        except (ConnectionError, ssl.SSLError):
            got.end = "cut"
        writer.close()

    async with wire.listening(accept, limit=1000 if slow else 2**16) as http:
        yield http, seen


async def until_it_is_through(http, seen, kind, data, directory, **more):
    """Send it with a lease that expires at the n-th look, for every n, until it gets through; how many looks."""
    last, through = 0, False
    while not through:
        last += 1
        lease, before = CountedLease(last), len(seen)
        try:
            await http.send(HEAD, leased(kind, data, lease, directory), **more)
            through = True
        except LeaseExpiredError:
            assert http.busy == 0
            assert lease.checks == last  # after expiry no further check follows
        while len(seen) > before and not seen[-1].end:
            await asyncio.sleep(0)
        if not through and last == 1:
            assert not any(got.data for got in seen)
    return last


@KINDS
@pytest.mark.parametrize("size", SIZES)
async def test_a_request_whose_lease_expires_at_any_look_never_becomes_complete(wire, tmp_path, kind, size):
    data = os.urandom(size)
    async with recording(wire, size) as (http, seen):
        looks = await until_it_is_through(http, seen, kind, data, tmp_path)
    *cut, last = seen
    assert bytes(last.data) == HEAD + data
    assert all(len(got.data) <= len(HEAD) + size - min(HELD_BACK_BYTES, size) for got in cut)
    assert looks == 2 if kind == "memory" and size <= SINGLE_WRITE_LEASED else looks > 2


@KINDS
async def test_nor_where_the_server_reads_slowly(wire, tmp_path, kind):
    size = 6 * MIB
    data = os.urandom(size)
    async with recording(wire, size, slow=True) as (http, seen):
        for last in (2, 3, 5, 8, 13, 21, 34):
            with suppress(LeaseExpiredError):
                await http.send(HEAD, leased(kind, data, CountedLease(last), tmp_path))
                assert bytes(seen[-1].data) == HEAD + data
                break
            while seen and not seen[-1].end:
                await asyncio.sleep(0)
            assert all(len(got.data) <= len(HEAD) + size - HELD_BACK_BYTES for got in seen)
            assert all(got.end == "cut" for got in seen)


@KINDS
async def test_the_suffix_is_not_sent_without_the_lease(wire, tmp_path, kind):
    data, suffix = os.urandom(MIB), b"\r\n--boundary--"
    async with recording(wire, len(data) + len(suffix)) as (http, seen):
        await until_it_is_through(http, seen, kind, data, tmp_path, suffix=suffix)
    *cut, last = seen
    assert bytes(last.data) == HEAD + data + suffix
    assert all(len(got.data) < len(last.data) for got in cut)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
async def test_nor_where_the_kernel_cannot_send_a_file(monkeypatch, tmp_path, number):
    def refuse(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "sendfile", refuse)
    data = os.urandom(3 * MIB)
    async with recording(Wire(None), len(data)) as (http, seen):
        assert await until_it_is_through(http, seen, "file", data, tmp_path) > 3
    assert bytes(seen[-1].data) == HEAD + data


@KINDS
async def test_a_long_body_has_its_lease_confirmed_on_its_way(wire, tmp_path, kind):
    data, lease = os.urandom(9 * MIB), CountedLease()
    async with recording(wire, len(data)) as (http, seen):
        await http.send(HEAD, leased(kind, data, lease, tmp_path))
    assert lease.kept >= 3
    assert bytes(seen[-1].data) == HEAD + data


async def test_a_lease_that_is_not_confirmed_again_ends_the_request(wire, tmp_path):
    class Refused(CountedLease):
        async def keep(self):
            raise StoreError("somebody else writes")

    data = os.urandom(3 * MIB)
    async with recording(wire, len(data)) as (http, seen):
        with pytest.raises(StoreError, match="somebody else"):
            await http.send(HEAD, leased("file", data, Refused(), tmp_path))
        assert http.busy == 0
        while seen and not seen[-1].end:
            await asyncio.sleep(0)
    assert all(len(got.data) < len(HEAD) + len(data) for got in seen)


@KINDS
def test_a_lease_is_kept_to_on_uvloop_too(tmp_path, kind, on_uvloop):
    size = 2 * MIB

    async def main():
        async with recording(Wire(None), size) as (http, seen):
            await until_it_is_through(http, seen, kind, bytes(size), tmp_path)
        return [len(got.data) for got in seen]

    *cut, last = on_uvloop(main())
    assert last == len(HEAD) + size
    assert all(got <= len(HEAD) + size - HELD_BACK_BYTES for got in cut)


# Stores


@KINDS
@pytest.mark.parametrize("size", [10, 40_000, 3 * MIB])
@pytest.mark.parametrize("via", ["signed", "aiobotocore"])
async def test_an_object_whose_lease_expired_is_not_in_s3(monkeypatch, tmp_path, via, size, kind):
    if via == "aiobotocore":
        pytest.importorskip("aiobotocore")
        monkeypatch.setattr(s3_bucket, "supports_bucket", lambda bucket: False)
    data = os.urandom(size)
    async with scripted(lambda request: OK) as (store, script):
        last, through = 0, False
        while not through:
            last += 1
            with suppress(UnavailableError):
                await store.put("k", leased(kind, data, CountedLease(last), tmp_path))
                through = True
            whole = [request for request in script.requests if len(request.body) == size]
            assert len(whole) == through
        assert whole[0].body == data
        assert last > 1
