"""Options of the S3 store reach every request that needs them, signed, on both ways to the store."""

import base64
import logging
import random
from datetime import UTC, datetime, timedelta

import google_crc32c
import pytest
from s3_script import KEYS, scripted
from s3_strict import StrictS3

from asyncsync import (
    AsyncsyncError,
    CheckpointConfig,
    Experiment,
    RunConfig,
    SyncEngine,
    TransferConfig,
    pull,
    push,
    repair,
    verify,
)
from asyncsync.disk.files import FileRange
from asyncsync.errors import AccessDeniedError, ConfigError, StoreError
from asyncsync.stores.s3 import bucket as s3_bucket
from asyncsync.stores.s3.store import S3Store

MIB = 1 << 20
SECRET = bytes(range(32))
SSE_C = base64.b64encode(SECRET).decode()
LATER = "2099-01-31T00:00:00Z"
LOCK = {"object_lock_mode": "GOVERNANCE", "object_lock_retain_until": LATER}
DATA, MANIFEST, RECORD = "run/model.bin", "run/.asyncsync/manifest.json", ".asyncsync/experiment.json"


@pytest.fixture(params=["own", "sdk"])
def plane(request, monkeypatch):
    """Requests of our own, and those through aiobotocore."""
    if request.param == "sdk":
        monkeypatch.setattr(s3_bucket, "supports_bucket", lambda bucket: False)
    return request.param


async def every_operation(store, tmp_path, key=DATA):
    """Each operation of the store once."""
    path = tmp_path / "body"
    path.write_bytes(bytes(5 * MIB) + b"end")
    info = await store.put(key, b"data")
    assert (await store.get(key))[0] == b"data"
    assert (await store.head(key)).version == info.version
    await store.copy(key, f"{key}-copy", if_source_version=info.version, size=4)
    upload = await store.create_multipart(f"{key}-large")
    parts = [await store.put_part(upload, 1, 0, FileRange(str(path), 0, 5 * MIB))]
    parts.append(await store.copy_part(upload, 2, 5 * MIB, key, 1, 3, if_source_version=info.version))
    assert len(await store.list_parts(upload)) == 2
    crc = google_crc32c.value(bytes(5 * MIB) + b"ata")
    await store.complete_multipart(upload, parts, crc32c=crc)
    assert len((await store.list("")).objects) == 3
    pieces = []

    async def keep(piece):
        pieces.append(bytes(piece))

    await store.read(f"{key}-large", keep, start=5 * MIB - 1)
    assert b"".join(pieces) == b"\0ata"
    await store.delete([f"{key}-copy", f"{key}-large"])
    await store.delete([key])
    assert (await store.list("")).objects == ()


@pytest.mark.parametrize(
    "options",
    [
        {"sse_customer_key": SSE_C},
        {"sse_customer_key": SECRET, "expected_bucket_owner": "123456789012", "request_payer": "requester"},
        {"sse_customer_key": "k" * 32, "checksum": "none"},
        {"sse": "aws:kms:dsse", "sse_kms_key_id": "alias/x", "sse_context": {"a": "b c"}},
        {"sse": "aws:kms", "sse_bucket_key": True},
        LOCK,
        LOCK | {"checksum": "none"},
        {"object_lock_legal_hold": True, "checksum": "none"},
        {"metadata": {"Team": "a  b"}, "tags": "team=vision,run=7 8", "content_type": "a/b; charset=utf-8"},
        {"cache_control": "no-cache", "storage_class": "STANDARD_IA", "acl": "private"},
    ],
    ids="+".join,
)
async def test_every_operation_carries_the_options(options, plane, tmp_path):
    async with scripted(StrictS3(), **options) as (store, _):
        await every_operation(store, tmp_path)


async def test_a_bucket_of_another_owner_is_refused(plane, tmp_path):
    async with scripted(StrictS3(owner="999999999999"), expected_bucket_owner="123456789012") as (store, _):
        for call in (store.put(DATA, b""), store.head(DATA), store.list("")):
            with pytest.raises(AccessDeniedError):
                await call


# Which objects


async def headers_by_kind(options, tmp_path):
    server = StrictS3()
    async with scripted(server, **options) as (store, _):
        for key in (DATA, MANIFEST, RECORD):
            await store.put(key, b"{}")
    return [request.headers for request in server.sent("PutObject")]


async def test_class_and_description_are_for_data_only(plane, tmp_path):
    options = {"storage_class": "GLACIER", "metadata": {"a": "b"}, "tags": {"t": "1 &"}, "content_type": "x/y"}
    data, *others = await headers_by_kind(options | {"cache_control": "private"}, tmp_path)
    expected = {"x-amz-storage-class": "GLACIER", "x-amz-meta-a": "b", "x-amz-tagging": "t=1+%26"}
    expected |= {"content-type": "x/y", "cache-control": "private"}
    assert {name: data[name] for name in expected} == expected
    for headers in others:
        assert not set(expected) - {"content-type"} & set(headers)
        assert headers.get("content-type") != "x/y"


async def test_data_and_manifests_are_locked_and_records_are_not(plane, tmp_path):
    data, manifest, record = await headers_by_kind(LOCK, tmp_path)
    for headers in (data, manifest):
        assert headers["x-amz-object-lock-mode"] == "GOVERNANCE"
        assert headers["x-amz-object-lock-retain-until-date"] == LATER
    assert "x-amz-object-lock-mode" not in record


async def test_encryption_is_for_every_object(plane, tmp_path):
    context = {"sse": "aws:kms", "sse_kms_key_id": "id", "sse_context": {"a": "b"}, "sse_bucket_key": False}
    for headers in await headers_by_kind(context, tmp_path):
        assert headers["x-amz-server-side-encryption"] == "aws:kms"
        assert headers["x-amz-server-side-encryption-bucket-key-enabled"] == "false"
        assert base64.b64decode(headers["x-amz-server-side-encryption-context"]) == b'{"a":"b"}'


# Object Lock


@pytest.mark.parametrize("checksum", ["auto", "none"])
async def test_a_bucket_that_locks_by_default_gets_what_it_requires(checksum, plane, tmp_path):
    server = StrictS3(lock_by_default=True)
    async with scripted(server, checksum=checksum) as (store, _):
        await store.put(DATA, b"one")
        await store.put(DATA, b"two")
        upload = await store.create_multipart("large")
        await store.put_part(upload, 1, 0, b"part")
    refused = len(server.sent("PutObject")) - 2
    assert refused == (checksum == "none")
    assert all(("content-md5" in r.headers) == (checksum == "none") for r in server.sent("PutObject")[refused:])


async def test_deleting_a_locked_object_leaves_its_version(plane):
    server = StrictS3()
    async with scripted(server, **LOCK) as (store, _):
        await store.put("a", b"kept")
        await store.delete(["a"])
        assert (await store.list("")).objects == ()
    kept, marker = server.versions["p/a"]
    assert (kept.data, marker) == (b"kept", None)


# Keys of the customer


async def test_another_key_or_none_reads_nothing(plane):
    server = StrictS3()
    async with scripted(server, sse_customer_key=SSE_C) as (store, _):
        await store.put(DATA, b"data")
    async with scripted(server) as (store, _):
        for call in (store.get(DATA), store.head(DATA)):
            with pytest.raises(StoreError, match="check sse_customer_key") as caught:
                await call
            assert not caught.value.retryable
    async with scripted(server, sse_customer_key=bytes(32)) as (store, _):
        with pytest.raises(AccessDeniedError):
            await store.get(DATA)
        assert store.traits.crc32c


async def test_a_key_of_the_customer_is_never_shown(plane, caplog):
    server = StrictS3()
    with caplog.at_level(logging.DEBUG):
        async with scripted(server, sse_customer_key=SSE_C, session_token="tok/en+" * 3) as (store, _):
            upload = await store.create_multipart("large")
            await store.put_part(upload, 1, 0, b"part")
            await store.list_parts(upload)
            server.versions["p/other"] = list(server.versions.get("p/other", []))
            await store.put("other", b"x")
            server.versions["p/other"][-1].key_md5 = "another"
            with pytest.raises(AccessDeniedError) as caught:
                await store.get("other")
            shown = [repr(store._options), repr(store), str(caught.value), repr(caught.value.__cause__)]
    for text in (*shown, caplog.text):
        assert SSE_C not in text
        assert repr(SECRET)[2:20] not in text
        assert "tok/en+tok" not in text
    assert all(r.headers["x-amz-server-side-encryption-customer-key"] == SSE_C for r in server.sent("UploadPart"))


def test_a_key_is_not_sent_over_plain_http():
    with pytest.raises(ConfigError, match=r"sse_customer_key needs https.*http://store:9000"):
        S3Store("b", "", options=KEYS | {"endpoint_url": "http://store:9000", "sse_customer_key": SECRET})


async def test_nor_if_the_environment_names_the_endpoint(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    with pytest.raises(ConfigError, match="needs https"):
        await S3Store("b", "", options=KEYS | {"sse_customer_key": SECRET}).__aenter__()


# Trees and experiments


@pytest.mark.parametrize("options", [{"sse_customer_key": SSE_C}, LOCK, LOCK | {"checksum": "none"}], ids=str)
async def test_a_changed_file_is_copied_verified_and_repaired(options, tmp_path):
    server = StrictS3()
    tree, file = tmp_path / "tree", tmp_path / "tree" / "model"
    tree.mkdir()
    file.write_bytes(random.Random(1).randbytes(24 * MIB))
    transfer = TransferConfig(part_size=8 * MIB, multipart_threshold=8 * MIB)
    async with scripted(server, **options) as (store, _):
        given = {
            "storage_options": KEYS | {"endpoint_url": store._options.endpoint_url} | options,
            "transfer": transfer,
        }
        await push(tree, "s3://bucket/tree", **given)
        with file.open("r+b") as opened:
            opened.write(b"changed")
        again = await push(tree, "s3://bucket/tree", **given)
        assert (again.bytes_sent, again.bytes_copied) == (8 * MIB, 16 * MIB)
        assert server.sent("UploadPartCopy")
        assert (await verify("s3://bucket/tree", deep=True, **given)).ok
        server.versions["tree/model"].append(None)
        assert not (await verify("s3://bucket/tree", **given)).ok
        await repair("s3://bucket/tree", tree, **given)
        await pull("s3://bucket/tree", tmp_path / "copy", **given)
    assert (tmp_path / "copy" / "model").read_bytes() == file.read_bytes()


async def test_a_retired_checkpoint_that_is_locked_keeps_its_versions(tmp_path):
    server, keep = StrictS3(lock_by_default=True), CheckpointConfig(num_to_keep=1)
    async with scripted(server) as (store, _):
        options = KEYS | {"endpoint_url": store._options.endpoint_url} | LOCK
        run = RunConfig(name="e", storage_path="s3://bucket", storage_options=options, checkpoint_config=keep)
        async with SyncEngine(run, local_dir=tmp_path) as engine:
            for step in range(2):
                files = tmp_path / f"files{step}"
                files.mkdir()
                (files / "w").write_bytes(b"x")
                await engine.trial("t").report({"step": step}, files)
        experiment = await Experiment.open("s3://bucket/e", storage_options=options)
        assert [one.name for one in experiment.checkpoints] == ["checkpoint_000001"]
    kept, marker = server.versions["e/t/checkpoint_000000/w"]
    assert (kept.locked, marker) == (True, None)


# Values


PAST = datetime.now(UTC) - timedelta(seconds=1)


@pytest.mark.parametrize(
    ("options", "named", "accepts"),
    [
        ({"sse": "aws:kms:dss"}, "sse", "aws:kms:dsse"),
        ({"sse_customer_key": "short-secret"}, "sse_customer_key", "256 bits"),
        ({"sse_customer_key": b"x" * 31}, "sse_customer_key", "256 bits"),
        ({"sse_customer_key": 7}, "sse_customer_key", "256 bits"),
        ({"sse_customer_key": SECRET, "sse": "AES256"}, "sse_customer_key", "exclude"),
        ({"sse_kms_key_id": "id"}, "sse_kms_key_id", "aws:kms"),
        ({"sse": "AES256", "sse_kms_key_id": "id"}, "sse_kms_key_id", "aws:kms"),
        ({"sse": "aws:kms:dsse", "sse_bucket_key": True}, "sse_bucket_key", "sse='aws:kms'"),
        ({"sse": "aws:kms", "sse_bucket_key": "yes"}, "sse_bucket_key", "True or False"),
        ({"sse_context": {"a": "b"}}, "sse_context", "aws:kms"),
        ({"sse": "aws:kms", "sse_context": {"a": 1}}, "sse_context", "text"),
        ({"content_type": "a\r\nb"}, "content_type", "printable"),
        ({"cache_control": ""}, "cache_control", "non-empty"),
        ({"metadata": {"a b": "c"}}, "metadata", "names must be letters"),
        ({"metadata": {"a": "b\n"}}, "metadata", "printable ASCII"),
        ({"metadata": {"a": "ä"}}, "metadata", "printable ASCII"),
        ({"metadata": {"a": "b" * 2048}}, "metadata", "at most 2048"),
        ({"metadata": "a"}, "metadata", "mapping of text to text"),
        ({"metadata": {}}, "metadata", "mapping of text to text"),
        ({"tags": {str(n): "x" for n in range(11)}}, "tags", "at most 10"),
        ({"tags": {"aws:x": "y"}}, "tags", "aws:"),
        ({"tags": {"k" * 129: "y"}}, "tags", "128"),
        ({"object_lock_mode": "GOVERNANCE"}, "object_lock_retain_until", "both or none"),
        ({"object_lock_retain_until": LATER}, "object_lock_mode", "both or none"),
        (LOCK | {"object_lock_mode": "governance"}, "object_lock_mode", "GOVERNANCE, COMPLIANCE"),
        (LOCK | {"object_lock_retain_until": "2099-01-31"}, "object_lock_retain_until", "time zone"),
        (LOCK | {"object_lock_retain_until": PAST}, "object_lock_retain_until", "future"),
        (LOCK | {"object_lock_retain_until": "9999-12-31T23:59:59-14:00"}, "object_lock_retain_until", "10000"),
        (LOCK | {"object_lock_retain_until": 7}, "object_lock_retain_until", "time zone"),
        ({"expected_bucket_owner": "12345"}, "expected_bucket_owner", "12 digits"),
        ({"expected_bucket_owner": 123456789012}, "expected_bucket_owner", "12 digits"),
        ({"role_arn": "role"}, "role_arn", "ARN"),
        ({"external_id": "xy"}, "external_id", "role_arn"),
        ({"role_arn": "arn:x", "anonymous": True}, "role_arn", "exclude"),
        ({"proxy": "127.0.0.1:3128"}, "proxy", "http://host:port"),
        ({"proxy": "socks5://127.0.0.1:1"}, "proxy", "http://host:port"),
        ({"client_key": "key.pem"}, "client_key", "client_certificate"),
        ({"accelerate": True, "endpoint_url": "http://x"}, "accelerate", "endpoint_url"),
        ({"accelerate": True, "addressing_style": "path"}, "accelerate", "path"),
        ({"fips": "yes"}, "fips", "True or False"),
        ({"dual_stack": True, "endpoint_url": "http://x"}, "dual_stack", "endpoint_url"),
    ],
)
def test_a_value_that_is_not_accepted_is_named(options, named, accepts):
    with pytest.raises(ConfigError, match="storage option") as caught:
        S3Store("bucket", "", options=options)
    assert named in str(caught.value)
    assert accepts in str(caught.value)
    assert "short-secret" not in str(caught.value)


@pytest.mark.parametrize("day", [LATER, "2099-01-31T02:00:00+02:00", datetime(2099, 1, 31, tzinfo=UTC)])
def test_a_date_may_have_any_time_zone(day):
    options = S3Store("b", "", options=LOCK | {"object_lock_retain_until": day})._options
    assert options.object_lock_retain_until == LATER


# Real servers


@pytest.mark.server
async def test_seaweedfs_keeps_what_the_options_describe(seaweedfs):
    bucket = seaweedfs.create_bucket("described")
    options = {"metadata": {"team": "a b"}, "tags": {"run": "7"}, "content_type": "x/y", "cache_control": "no-cache"}
    async with S3Store(bucket, "p", options=seaweedfs.storage_options | options) as store:
        made = await store.put(DATA, b"data")
        await store.copy(DATA, "copy", if_source_version=made.version, size=4)
    with seaweedfs.client() as client:
        for key in (f"p/{DATA}", "p/copy"):
            found = client.head_object(Bucket=bucket, Key=key)
            assert (found["Metadata"], found["ContentType"], found["CacheControl"]) == (
                {"team": "a b"},
                "x/y",
                "no-cache",
            )
            assert client.get_object_tagging(Bucket=bucket, Key=key)["TagSet"] == [{"Key": "run", "Value": "7"}]


@pytest.mark.server
async def test_seaweedfs_reads_with_the_customers_key_only(seaweedfs, plane, tmp_path):
    bucket, tree, file = seaweedfs.create_bucket(f"keys-{plane}"), tmp_path / "tree", tmp_path / "tree" / "model"
    tree.mkdir()
    file.write_bytes(random.Random(1).randbytes(12 * MIB))
    transfer = TransferConfig(part_size=5 * MIB, multipart_threshold=5 * MIB)
    given = {"storage_options": seaweedfs.storage_options | {"sse_customer_key": SECRET}, "transfer": transfer}
    await push(tree, f"s3://{bucket}/tree", **given)
    with file.open("r+b") as opened:
        opened.write(b"changed")
    await push(tree, f"s3://{bucket}/tree", **given)  # it has no range copies of encrypted objects: bytes are sent
    assert (await verify(f"s3://{bucket}/tree", deep=True, **given)).ok
    await pull(f"s3://{bucket}/tree", tmp_path / "copy", **given)
    assert (tmp_path / "copy" / "model").read_bytes() == file.read_bytes()
    with pytest.raises(AsyncsyncError):
        await pull(f"s3://{bucket}/tree", tmp_path / "none", storage_options=seaweedfs.storage_options)


@pytest.mark.server
@pytest.mark.parametrize("checksum", ["auto", "none"])
async def test_seaweedfs_keeps_a_locked_version(seaweedfs, checksum):
    bucket = f"locked-{checksum}"
    with seaweedfs.client() as client:
        client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
        async with S3Store(bucket, "p", options=seaweedfs.storage_options | LOCK | {"checksum": checksum}) as store:
            await store.put(DATA, b"data")
            await store.delete([DATA])
            assert (await store.list("")).objects == ()
        (version,) = client.list_object_versions(Bucket=bucket, Prefix="p/run")["Versions"]
        with pytest.raises(Exception, match="AccessDenied"):
            client.delete_object(Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"])
