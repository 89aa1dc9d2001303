"""Options of the S3 store, and the requests through aiobotocore for buckets that our own requests do not support."""

import ssl
import subprocess
from pathlib import Path

import google_crc32c
import pytest
from s3_script import KEYS, OK, scripted

from asyncsync.disk.files import FileRange
from asyncsync.errors import ConfigError, PreconditionError, SourceChangedError, StoreError, UnavailableError
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


# The way to the store


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({"accelerate": True}, "https://bucket.s3-accelerate.amazonaws.com/"),
        ({"dual_stack": True}, "https://bucket.s3.dualstack.us-east-1.amazonaws.com/"),
        ({"fips": True}, "https://bucket.s3-fips.us-east-1.amazonaws.com/"),
        ({"accelerate": True, "dual_stack": True}, "https://bucket.s3-accelerate.dualstack.amazonaws.com/"),
        ({"fips": True, "dual_stack": True}, "https://bucket.s3-fips.dualstack.us-east-1.amazonaws.com/"),
    ],
)
async def test_endpoints_of_aws_are_chosen_by_options(options, address):
    async with S3Store("bucket", "p", options=KEYS | options) as store:
        assert (await store._bucket.client.locate()).base == address
        assert store._bucket.opened.transport.endpoint.base == address


def mutual_tls(certificate):
    """A server that wants a certificate of its clients."""
    authority, chain, key = certificate
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
    server.load_cert_chain(chain, key)
    server.verify_mode = ssl.CERT_REQUIRED
    return server


@pytest.mark.parametrize("supported", [True, False], ids=["own", "sdk"])
@pytest.mark.parametrize("joined", [True, False], ids=["one file", "two files"])
async def test_the_certificate_of_the_client_is_shown(certificate, tmp_path, monkeypatch, supported, joined):
    monkeypatch.setattr(s3_bucket, "supports_bucket", lambda bucket: supported)
    authority, chain, key = certificate
    (tmp_path / "both.pem").write_text(Path(chain).read_text() + Path(key).read_text())
    options = {"client_certificate": str(tmp_path / "both.pem")}
    if not joined:
        options = {"client_certificate": str(chain), "client_key": str(key)}
    async with scripted([OK], tls=mutual_tls(certificate), verify=str(authority), **options) as (store, script):
        await store.put("k", b"data")
    assert len(script.requests) == 1


async def test_a_server_that_wants_a_certificate_refuses_without(certificate):
    async with scripted([OK], tls=mutual_tls(certificate), verify=str(certificate[0])) as (store, _):
        with pytest.raises(StoreError):
            await store.put("k", b"data")


@pytest.mark.parametrize("content", [None, "", "no certificate", "only the certificate", "encrypted"])
@pytest.mark.parametrize("endpoint", [{"endpoint_url": "https://127.0.0.1:1", "verify": False}, {}])
async def test_a_certificate_that_cannot_be_used_is_named(certificate, tmp_path, content, endpoint):
    file = tmp_path / "client.pem"
    if content is not None:
        file.write_text({"only the certificate": Path(certificate[1]).read_text()}.get(content, content))
    if content == "encrypted":
        command = ["openssl", "pkey", "-in", str(certificate[2]), "-aes256", "-passout", "pass:x"]
        key = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        file.write_text(Path(certificate[1]).read_text() + key)
    with pytest.raises(ConfigError, match=r"storage option client_certificate='.*client.pem'.*must name a PEM file"):
        await S3Store("bucket", "", options=KEYS | endpoint | {"client_certificate": str(file)}).__aenter__()


async def test_the_proxy_of_the_options_carries_every_request():
    """The proxy is the server itself: it sees the whole address."""
    async with scripted(lambda request: OK) as (proxy, script):
        options = KEYS | {"endpoint_url": "http://store.invalid", "proxy": proxy._options.endpoint_url}
        async with S3Store("bucket", "p", options=options) as store:
            await store.put("k", b"data")
    assert [request.target for request in script.requests] == ["http://store.invalid/bucket/p/k"]


async def test_a_proxy_that_is_away_is_transient_and_hides_its_password():
    options = KEYS | {"endpoint_url": "http://store.invalid", "proxy": "http://user:hush@127.0.0.1:1"}
    async with S3Store("bucket", "p", options=options) as store:
        with pytest.raises(UnavailableError) as caught:
            await store.put("k", b"data")
    assert "hush" not in f"{caught.value} {caught.value.__cause__!r} {store._options!r}"
