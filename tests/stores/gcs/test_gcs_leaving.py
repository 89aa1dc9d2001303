"""A request is complete only when its last byte has left. Until then no response counts as success, and a process that
loses the lease of a body has not sent a request that the service could execute. With our own client, and with the one
for proxies.
"""

import asyncio
import json
import os
import re
import socket

import google_crc32c
import pytest

from asyncsync.disk.files import FileRange, LeasedBytes, ResumeToken
from asyncsync.errors import LeaseExpiredError, SourceChangedError, UnavailableError
from asyncsync.stores.base import MISSING
from asyncsync.stores.gcs.store import GcsStore
from asyncsync.stores.gcs.transport import DirectTransport
from asyncsync.stores.http.body import crc32c_to_text
from asyncsync.stores.options import ConnectionLimits

pytest.importorskip("gcloud.aio.auth")
from asyncsync.stores.gcs.proxy_transport import ProxyTransport

MIB = 1 << 20
SIZE = 12 * MIB
"""More than the kernel keeps of a connection that nobody reads."""
LIMITS = ConnectionLimits(10.0, 5.0, 4)


class Server:
    """Accepts requests to insert ``b/p/x``, on a socket with small buffers. ``early``: responds after the head, and
    then reads on (``True``) or closes (``None``); otherwise responds after the complete request. ``requests``:
    received and announced bytes of each body. ``before_reading`` is awaited before the body is read.
    """

    def __init__(self, data, *, early=False, before_reading=None, status=200):
        self.status = status
        self.early, self.requests, self._before_reading = early, [], before_reading
        said = {"name": "p/x", "bucket": "b", "generation": "7", "size": str(len(data))}
        self._said = json.dumps({**said, "crc32c": crc32c_to_text(google_crc32c.value(data))}).encode()
        self._tasks = []

    async def __aenter__(self):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sock.bind(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        self._server = await asyncio.start_server(self._begin, sock=sock)
        return self

    async def __aexit__(self, *exc):
        self._server.close()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()

    async def _begin(self, reader, writer):
        self._tasks.append(asyncio.current_task())
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)\r\ncontent-length: (\d+)", head)[1])
        seen = [0, length]
        self.requests.append(seen)
        starts = b"uploadType=resumable" in head and b"POST" in head
        if self.early is not False and not starts:
            self._answer(writer, self._said)
            await writer.drain()
            if self.early is None:
                return False
        if self._before_reading is not None and not starts:
            await self._before_reading()
        while seen[0] < length:
            piece = await reader.read(min(1 << 16, length - seen[0]))
            if not piece:
                return False
            seen[0] += len(piece)
        if self.early is False or starts:
            self._answer(writer, b"" if starts else self._said)
        return True

    def _answer(self, writer, body):
        where = b"location: /upload/session\r\n" if not body else b"range: bytes=0-%d\r\n" % (MIB - 1)
        status = self.status if body else 200
        writer.write(b"HTTP/1.1 %d OK\r\n%scontent-length: %d\r\n\r\n%s" % (status, where, len(body), body))

    @property
    def whole(self):
        """Bodies with something in them that came to their end."""
        return [seen for seen in self.requests if seen[0] == seen[1] > 1000]


@pytest.fixture(params=["own", "sdk"])
def opened(request):
    """Opens a store on a server, which the client for proxies takes for its proxy."""

    def make(server):
        store = GcsStore("b", "p", options={"endpoint_url": "http://127.0.0.1:1", "anonymous": True})
        address = f"http://127.0.0.1:{server.port}"

        async def plane():
            if request.param == "own":
                return DirectTransport(address, None, LIMITS)
            return ProxyTransport("http://storage.test", None, address, LIMITS)

        store._new_transport = plane
        return store

    return make


@pytest.fixture(scope="module")
def data():
    return bytes(range(256)) * (SIZE // 256)


@pytest.fixture
def path(tmp_path, data):
    (tmp_path / "f").write_bytes(data)
    return str(tmp_path / "f")


class Lease:
    """Lasts for so many looks; ``kept`` counts how often it was asked to be kept."""

    def __init__(self, looks=10**9):
        self.looks, self.checked, self.kept = looks, 0, 0

    def check(self):
        self.checked += 1
        if self.checked > self.looks:
            raise LeaseExpiredError("not confirmed in time")

    async def keep(self):
        self.kept += 1


def bodies(path, data, lease=None):
    """Bytes, a file in one request, a file in a session, and a body that is read at once."""
    large, small = LeasedBytes(data), LeasedBytes(data[:5000])
    large.lease = small.lease = lease
    whole = ResumeToken(None, lambda _: None)
    return {
        "bytes": (large, len(data)),
        "small bytes": (small, 5000),
        "file": (FileRange(path, 0, 8 * MIB, lease=lease), 8 * MIB),
        "small file": (FileRange(path, 0, 5000, lease=lease), 5000),
        "paced file": (FileRange(path, 0, 8 * MIB, pace=_pace, lease=lease), 8 * MIB),
        "session": (FileRange(path, 0, 8 * MIB, progress=whole, lease=lease), 8 * MIB),
    }


async def _pace(size):
    await asyncio.sleep(0)


@pytest.mark.parametrize("early", [True, None], ids=["reads on", "hangs up"])
async def test_a_session_that_acknowledges_too_early_is_not_believed(opened, path, data, early):
    """It acknowledges bytes that it cannot have received yet."""
    body, size = bodies(path, data)["session"]
    async with Server(data[:size], early=early, status=308) as server, opened(server) as store:
        with pytest.raises(UnavailableError, match="308"):
            await store.put("x", body, crc32c=google_crc32c.value(data[:size]))
        assert len([seen for seen in server.requests if seen[1] > 1000]) == 1


@pytest.mark.parametrize("early", [True, None], ids=["reads on", "hangs up"])
@pytest.mark.parametrize("kind", ["bytes", "file", "paced file", "session"])
async def test_a_success_before_the_last_byte_has_left_is_none(opened, path, data, kind, early):
    body, size = bodies(path, data)[kind]
    async with Server(data[:size], early=early) as server, opened(server) as store:
        with pytest.raises(UnavailableError, match="insert gs://b/p/x"):
            await store.put("x", body, crc32c=google_crc32c.value(data[:size]))
    assert server.whole == []


@pytest.mark.parametrize("kind", ["bytes", "small bytes", "file", "small file", "paced file", "session"])
async def test_under_a_lease_that_lasts_all_of_it_arrives(opened, path, data, kind):
    lease = Lease()
    body, size = bodies(path, data, lease)[kind]
    async with Server(data[:size]) as server, opened(server) as store:
        info = await store.put("x", body, crc32c=google_crc32c.value(data[:size]), if_version=MISSING)
    assert (info.size, len(server.whole)) == (size, 1)
    assert lease.checked >= (2 if size > MIB else 1)
    assert (lease.kept > 0) == (size > MIB)


@pytest.mark.parametrize("kind", ["bytes", "small bytes", "file", "small file", "paced file", "session"])
async def test_losing_the_lease_leaves_no_complete_request(opened, path, data, kind):
    """The lease is lost at each check, the last one included. Their number depends on the buffers of the system."""
    looks, lost = 0, 0
    while True:
        lease = Lease(looks)
        body, size = bodies(path, data, lease)[kind]
        async with Server(data[:size]) as server, opened(server) as store:
            try:
                await store.put("x", body, crc32c=google_crc32c.value(data[:size]))
            except LeaseExpiredError:
                lost += 1
                assert server.whole == []
                assert looks or not sum(seen[0] for seen in server.requests if seen[1] > 1000)
            else:
                assert lease.checked <= looks
                break
        looks += 1
    assert lost >= (3 if size > MIB else 1)


@pytest.mark.parametrize("kind", ["file", "session", "bytes"])
async def test_the_last_piece_is_not_sent_while_the_one_before_waits(opened, path, data, kind):
    """A process that is stopped while the system is full must ask again before it completes its request."""
    lease = Lease()
    body, size = bodies(path, data, lease)[kind]

    async def full():
        """Nothing moves any more: then the lease is lost, and all that was sent is read."""
        seen = -1
        while lease.checked > seen:
            seen = lease.checked
            await asyncio.sleep(0.1)
        lease.looks = 0

    async with Server(data[:size], before_reading=full) as server, opened(server) as store:
        with pytest.raises(LeaseExpiredError):
            await store.put("x", body, crc32c=google_crc32c.value(data[:size]))
    assert server.whole == []


@pytest.mark.parametrize("left", [None, 0, 3 * MIB])
@pytest.mark.parametrize("kind", ["file", "session"])
async def test_a_missing_or_shorter_file_is_not_an_error_of_the_store(opened, path, data, kind, left):
    body, size = bodies(path, data)[kind]
    if left is None:
        os.remove(path)
    else:
        os.truncate(path, left)
    async with Server(data[:size]) as server, opened(server) as store:
        with pytest.raises(FileNotFoundError if left is None else SourceChangedError):
            await store.put("x", body, crc32c=google_crc32c.value(data[:size]))
    assert server.whole == []
