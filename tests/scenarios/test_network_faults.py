"""Whatever the network does between us and a real store, a transfer succeeds or raises the right error.

The tests use plain HTTP: TLS would detect damaged bytes first.
"""

from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest

from asyncsync import AsyncsyncError, SyncFailedError, TransferConfig, pull, push, verify
from asyncsync.errors import AccessDeniedError, IntegrityError, UnavailableError
from asyncsync.planning.manifest import MANIFEST
from asyncsync.remote.access import open_for_reading
from asyncsync.stores.guard.retry_policy import RetryPolicy
from asyncsync.testing import BreakRequest, BreakResponse, CannedResponse, FaultProxy, Flip, Stall

pytestmark = pytest.mark.server

MIB = 1 << 20
SIZES = {"small": 20_000, "middle": 2 * MIB, "large": 6 * MIB}
SPLIT = {"multipart_threshold": 5 * MIB, "part_size": 5 * MIB}
PATIENCE = {"stall_timeout": 1.0}
"""Only for faults that stall: on a busy machine a healthy response may take as long."""
DATA = {name: Random(name).randbytes(size) for name, size in SIZES.items()}


class Link:
    """A bucket behind a proxy, a tree that is sent to it, and a place where it comes back."""

    def __init__(self, proxy, server, bucket, root, **transfer):
        self.proxy, self.root = proxy, root
        self.uri = f"s3://{bucket}/{root.name}"
        self.direct = {"storage_options": server.storage_options}
        self.through = {
            "storage_options": server.storage_options | {"endpoint_url": proxy.url},
            "transfer": TransferConfig(**(SPLIT | transfer)),
        }

    async def push(self):
        return await push(self.root / "tree", self.uri, **self.through)

    async def pull(self):
        return await pull(self.uri, self.root / "back", **self.through)

    async def store_get(self, key, *, through=False):
        way = self.through if through else self.direct
        async with open_for_reading(self.uri, TransferConfig(), way["storage_options"]) as store:
            return await store.get(key)

    async def check(self):
        """By a way without faults: the store has every byte."""
        report = await verify(self.uri, deep=True, **self.direct)
        assert report.ok
        assert report.files == len(DATA)
        assert report.stray == []

    def back(self):
        return {path.name: path.read_bytes() for path in (self.root / "back").iterdir()}

    def sent_again(self):
        """Bytes of bodies beyond those of the files, manifests included."""
        return sum(seen.sent for seen in self.proxy.log if seen.line.startswith("PUT")) - sum(SIZES.values())


def patience(fault):
    return PATIENCE if isinstance(fault, Stall) and fault.seconds is None else {}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    """The pauses between attempts have tests of their own, in virtual time."""
    monkeypatch.setattr("asyncsync.sync.session.RetryPolicy", partial(RetryPolicy, base=0.02))


@pytest.fixture
def link(seaweedfs, tmp_path: Path):
    (tmp_path / "tree").mkdir()
    for name, data in DATA.items():
        (tmp_path / "tree" / name).write_bytes(data)
    bucket = seaweedfs.create_bucket("faults")

    @asynccontextmanager
    async def make(*, seed=0, **transfer):
        async with FaultProxy("127.0.0.1", seaweedfs.port, seed=seed) as proxy:
            yield Link(proxy, seaweedfs, bucket, tmp_path, **transfer)

    return make


UPLOADS = {
    "reset before the body": BreakRequest(0),
    "reset in the body": BreakRequest(10_000),
    "end in the body": BreakRequest(10_000, reset=False),
    "answer lost": BreakResponse(),
    "answer lost, orderly": BreakResponse(reset=False),
    "stalled before the answer": Stall("response"),
    "stalled in the body": Stall("request", 10_000),
    "slow answer": Stall("response", seconds=0.3),
    "500": CannedResponse(500, "InternalError"),
    "503": CannedResponse(503),
    "429": CannedResponse(429, "TooManyRequests", {"Retry-After": "0.1"}),
    "503 in the middle of the body": CannedResponse(503, early=True),
    "flipped byte": Flip("request", 7777, bit=5),
}


@pytest.mark.parametrize("fault", UPLOADS.values(), ids=UPLOADS.keys())
async def test_uploads_of_all_kinds_survive_and_arrive_complete(link, fault):
    """A small body, a streamed one, a part, and the manifest, whose retried conditional write does not conflict with
    itself.
    """
    async with link(**patience(fault)) as it:
        rules = [it.proxy.on(f"^PUT .*/{which}", fault) for which in ("small", "middle", "large[?]partNumber=1")]
        early = Flip("request", 77, bit=5) if isinstance(fault, Flip) else fault
        rules.append(it.proxy.on("^PUT .*manifest.json", early))
        report = await it.push()
        await it.check()
        assert [rule.struck for rule in rules] == [1, 1, 1, 1]
        assert report.bytes_sent == sum(SIZES.values())
        if not patience(fault):
            assert it.sent_again() < 5 * MIB + 2 * MIB + 30_000  # the faulty request once more, and the manifest


@pytest.mark.parametrize(
    "fault", [BreakRequest(), BreakResponse(), CannedResponse(500, "InternalError"), CannedResponse(503)]
)
async def test_opening_and_completing_an_upload_survive(link, fault):
    async with link() as it:
        rules = [it.proxy.on(line, fault) for line in ("POST .*/large[?]uploads", "POST .*/large[?]uploadId")]
        await it.push()
        await it.check()
        assert [rule.struck for rule in rules] == [1, 1]


DOWNLOADS = {
    "cut in the body": BreakResponse(15_000),
    "ended in the body": BreakResponse(15_000, reset=False),
    "no answer": BreakResponse(),
    "stalled in the body": Stall("response", 15_000),
    "stalled before the answer": Stall("response"),
    "503": CannedResponse(503),
    "500": CannedResponse(500, "InternalError"),
    "flipped byte": Flip("response", 7777, bit=5),
}


@pytest.mark.parametrize("fault", DOWNLOADS.values(), ids=DOWNLOADS.keys())
async def test_downloads_of_all_kinds_survive_and_come_back_bit_for_bit(link, fault):
    async with link(**patience(fault)) as it:
        await it.push()
        rules = [it.proxy.on(f"^GET .*/{which}", fault) for which in DATA]
        await it.pull()
        assert it.back() == DATA
        assert [rule.struck for rule in rules] == [1, 1, 1]


async def test_a_flipped_byte_anywhere_in_a_manifest_is_noticed_and_read_again(link):
    async with link() as it:
        await it.push()
        size = len((await it.store_get(MANIFEST))[0])
        for at in range(5, size, size // 8):
            rule = it.proxy.on("^GET .*manifest.json", Flip("response", at))
            assert (await it.store_get(MANIFEST, through=True))[0] == (await it.store_get(MANIFEST))[0]
            assert rule.struck == 1


async def test_damage_that_does_not_end_is_an_error_and_never_a_file(link):
    async with link(max_attempts=2) as it:
        await it.push()
        it.proxy.on("^GET .*/middle", Flip("response", 7777), times=None)
        with pytest.raises(IntegrityError, match="middle"):
            await it.pull()
        assert "middle" not in it.back()


async def test_a_file_damaged_in_every_upload_is_in_no_manifest(link):
    async with link(max_attempts=2) as it:
        it.proxy.on("^PUT .*/middle", Flip("request", 7777), times=None)
        with pytest.raises(SyncFailedError) as caught:
            await it.push()
        assert isinstance(caught.value.failures["middle"], IntegrityError)
        report = await verify(it.uri, deep=True, **it.direct)
        assert (report.ok, report.files) == (True, 2)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (BreakRequest(10_000), UnavailableError),
        (Stall("response"), UnavailableError),
        (CannedResponse(403, "AccessDenied"), AccessDeniedError),
        (CannedResponse(403, "AccessDenied", early=True), AccessDeniedError),
    ],
)
async def test_an_endless_fault_is_reported_for_its_file(link, fault, error):
    async with link(max_attempts=2, stall_timeout=1.5 if isinstance(fault, Stall) else 30.0) as it:
        it.proxy.on("^PUT .*/middle", fault, times=None)
        with pytest.raises(SyncFailedError) as caught:
            await it.push()
        assert isinstance(caught.value.failures["middle"], error)
        it.proxy.clear()
        await it.push()
        await it.check()


@pytest.mark.parametrize("seed", range(3))
async def test_one_request_in_twenty_refused_or_broken_costs_nothing_but_time(link, seed):
    async with link(seed=seed) as it:
        tree = it.root / "tree/many"
        tree.mkdir()
        for number in range(150):
            (tree / f"{number:03}").write_bytes(Random(number).randbytes(3000))
        refused = it.proxy.on(".", CannedResponse(503), times=None, share=0.05)
        broken = it.proxy.on("^(PUT|GET)", BreakResponse(), times=None, share=0.02)
        await it.push()
        await it.pull()
        assert refused.struck + broken.struck > 5
        back = it.root / "back/many"
        assert all((back / f"{number:03}").read_bytes() == Random(number).randbytes(3000) for number in range(150))


async def test_a_store_lost_midway_is_an_error_and_the_next_push_resumes(link):
    async with link(max_attempts=1) as it:
        it.proxy.on("^PUT .*/large", Stall("response", seconds=0.2), times=None)
        it.proxy.on("^PUT .*/middle", BreakRequest(1), times=None)
        with pytest.raises(AsyncsyncError):
            await it.push()
        it.proxy.clear()
        before = len(it.proxy.log)
        await it.push()
        await it.check()
        assert not any("/small" in seen.line for seen in it.proxy.log[before:])
