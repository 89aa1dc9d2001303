"""Options of the S3 store, and the requests through aiobotocore for buckets that our own requests do not support."""

import google_crc32c
import pytest
from s3_script import KEYS, OK, scripted

from asyncsync.disk.files import FileRange
from asyncsync.errors import ConfigError, PreconditionError, SourceChangedError, StoreError
from asyncsync.stores.base import MISSING
from asyncsync.stores.s3 import bucket as s3_bucket
from asyncsync.stores.s3.requests import supports_bucket
from asyncsync.stores.s3.sdk.aiobotocore_requests import AiobotocoreRequests
from asyncsync.stores.s3.store import S3Store

MIB = 1 << 20


# Settings


def test_an_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown storage option 'endpoint'.*endpoint_url"):
        S3Store("bucket", "", options={"endpoint": "http://x"})


@pytest.mark.parametrize(
    "options",
    [
        {"checksum": "md5"},
        {"sse": "DES"},
        {"addressing_style": "odd"},
        {"endpoint_url": "127.0.0.1:9000"},
        {"anonymous": "yes"},
        {"verify": 3},
        {"region": ""},
        {"access_key": "only"},
    ],
)
def test_an_unusable_option_is_refused(options):
    with pytest.raises(ConfigError):
        S3Store("bucket", "", options=options)


def test_options_show_no_secret():
    with pytest.raises(ConfigError) as caught:
        S3Store("bucket", "", options={"access_key": 5, "secret_key": "very-secret"})
    store = S3Store("bucket", "", options=KEYS)
    assert "very-secret" not in repr(store._options) + str(caught.value)


async def test_an_unknown_profile_is_a_setting_that_cannot_be_used():
    with pytest.raises(ConfigError, match="profile='nobody'"):
        await S3Store("bucket", "", options={"profile": "nobody"}).__aenter__()


async def test_a_closed_store_raises():
    store = S3Store("bucket", "", options=KEYS)
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.put("k", b"")


async def test_nothing_is_opened_before_the_first_use():
    async with scripted([OK]) as (other, _):
        store = S3Store("bucket", "q", options=KEYS | {"endpoint_url": other._options.endpoint_url})
        assert store._bucket.client is None
        await store.put("k", b"data")
        await store.close()


# Buckets that signed requests do not support


@pytest.mark.parametrize(
    ("bucket", "supported"),
    [
        ("plain-bucket", True),
        ("arn:aws:s3:us-east-1:123456789012:accesspoint/mine", False),
        ("mine--use1-az4--x-s3", False),
    ],
)
def test_which_buckets_signed_requests_support(bucket, supported):
    assert supports_bucket(bucket) is supported


@pytest.mark.server
async def test_requests_through_aiobotocore_do_the_same(monkeypatch, seaweedfs, tmp_path):
    monkeypatch.setattr(s3_bucket, "supports_bucket", lambda bucket: False)
    bucket = seaweedfs.create_bucket("fallback")
    path = tmp_path / "f"
    path.write_bytes(bytes(6 * MIB) + b"end")
    async with S3Store(bucket, "p", options=seaweedfs.storage_options) as store:
        assert isinstance(store._bucket.opened, AiobotocoreRequests)
        first = await store.put("k", b"data", if_version=MISSING)
        with pytest.raises(PreconditionError):
            await store.put("k", b"other", if_version=MISSING)
        assert await store.get("k") == (b"data", await store.head("k"))
        assert first.version == (await store.head("k")).version
        upload = await store.create_multipart("big")
        parts = [await store.put_part(upload, 1, 0, FileRange(str(path), 0, 6 * MIB))]
        parts.append(await store.put_part(upload, 2, 6 * MIB, FileRange(str(path), 6 * MIB, 3)))
        await store.complete_multipart(upload, parts, crc32c=google_crc32c.value(path.read_bytes()))
        pieces = []

        async def keep(piece):
            pieces.append(bytes(piece))

        await store.read("big", keep, start=6 * MIB - 1)
        assert b"".join(pieces) == b"\0end"
        with pytest.raises(SourceChangedError):
            await store.put("k", FileRange(str(path), 0, 7 * MIB), crc32c=0)
        again = await store.copy("k", "l m", if_source_version=first.version, size=4)
        assert (again.size, await store.get("l m")) == (4, (b"data", await store.head("l m")))
        await store.delete(["k", "never there", "big"])
        await store.delete(["l m"])
        assert (await store.list()).objects == ()


@pytest.mark.server
async def test_the_store_gives_the_checksum_of_a_whole_multipart_object(seaweedfs, tmp_path):
    data = bytes(5 * MIB) + b"end"
    async with S3Store(seaweedfs.create_bucket("whole"), "p", options=seaweedfs.storage_options) as store:
        upload = await store.create_multipart("big")
        parts = [
            await store.put_part(upload, 1, 0, data[: 5 * MIB], crc32c=google_crc32c.value(data[: 5 * MIB])),
            await store.put_part(upload, 2, 5 * MIB, b"end", crc32c=google_crc32c.value(b"end")),
        ]
        await store.complete_multipart(upload, parts, crc32c=google_crc32c.value(data))
        assert (await store.head("big")).crc32c == google_crc32c.value(data)
