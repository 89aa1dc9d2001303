"""Endpoints that are resolved without aiobotocore are those that aiobotocore would resolve."""

import asyncio
import sys

import pytest

from asyncsync.errors import ConfigError
from asyncsync.stores.options import ConnectionLimits
from asyncsync.stores.s3.options import S3Options
from asyncsync.stores.s3.sdk.aiobotocore_client import AiobotocoreClient
from asyncsync.stores.s3.static_endpoint import static_endpoint
from asyncsync.stores.s3.store import S3Store

KEYS = {"access_key": "key", "secret_key": "secret"}
ENDPOINT = {"endpoint_url": "http://127.0.0.1:9000"}
LIMITS = ConnectionLimits(max_connections=4)


async def asked(bucket, options):
    client = AiobotocoreClient(bucket, options, LIMITS)
    try:
        await client.open()
        return await client.locate(), await client.credentials()
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("bucket", "options", "environ"),
    [
        ("bucket", KEYS | ENDPOINT, {}),
        ("b", KEYS | ENDPOINT, {}),
        ("a.bucket", KEYS | ENDPOINT, {}),
        ("Old_Bucket", KEYS | ENDPOINT, {}),
        ("bucket", KEYS | {"endpoint_url": "http://127.0.0.1:9000/"}, {}),
        ("bucket", KEYS | {"endpoint_url": "http://127.0.0.1"}, {}),
        ("bucket", KEYS | {"endpoint_url": "http://store.example:9000"}, {}),
        ("bucket", KEYS | {"endpoint_url": "http://localhost:9000"}, {}),
        ("my-bucket-1", KEYS | ENDPOINT | {"addressing_style": "path", "region": "eu-west-1"}, {}),
        ("bucket", KEYS | ENDPOINT | {"session_token": "token"}, {}),
        ("bucket", ENDPOINT | {"anonymous": True}, {}),
        ("bucket", ENDPOINT, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}),
        ("bucket", ENDPOINT, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c"}),
        ("bucket", KEYS, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9001", "AWS_DEFAULT_REGION": "eu-north-1"}),
        ("bucket", KEYS | ENDPOINT, {"AWS_REGION": "eu-north-1"}),
        ("bucket", KEYS | ENDPOINT, {"AWS_REGION": "eu-north-1", "AWS_DEFAULT_REGION": "us-west-2"}),
        ("bucket", ENDPOINT, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SECURITY_TOKEN": "c"}),
        ("bucket", KEYS, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:2"}),
    ],
)
async def test_a_plain_endpoint_is_addressed_as_aiobotocore_would(monkeypatch, bucket, options, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    parsed = S3Options.parse(options)
    known = static_endpoint(bucket, parsed)
    assert known is not None
    assert (known.endpoint, known.keys) == await asked(bucket, parsed)


@pytest.mark.parametrize(
    ("bucket", "options", "environ"),
    [
        ("bucket", KEYS, {}),  # AWS itself
        ("bucket", ENDPOINT, {}),  # the credential chain
        ("bucket", KEYS | ENDPOINT | {"addressing_style": "virtual"}, {}),
        ("bucket", KEYS | ENDPOINT | {"profile": "p"}, {}),
        ("bucket", KEYS | ENDPOINT, {"AWS_PROFILE": "p"}),
        ("bucket", KEYS | ENDPOINT, {"HTTP_PROXY": "http://127.0.0.1:3128"}),
        ("bucket", KEYS | ENDPOINT, {"AWS_USE_FIPS_ENDPOINT": "true"}),
        ("bucket", KEYS | {"endpoint_url": "https://store.example"}, {}),  # the bundle that botocore brings
        ("bucket", KEYS | {"endpoint_url": "http://store.example/base"}, {}),
    ],
)
def test_anything_else_is_asked_of_aiobotocore(monkeypatch, bucket, options, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert static_endpoint(bucket, S3Options.parse(options)) is None


def test_a_configuration_file_is_left_to_aiobotocore(monkeypatch, tmp_path):
    config = tmp_path / "config"
    config.write_text("[default]\ns3 =\n    addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    assert static_endpoint("bucket", S3Options.parse(KEYS | ENDPOINT)) is None


async def test_a_push_to_a_plain_endpoint_imports_no_aiobotocore(seaweedfs, tmp_path):
    """Half a second of CPU, more than sending a small checkpoint."""
    bucket = seaweedfs.create_bucket("direct")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "small").write_bytes(b"data")
    (tmp_path / "tree" / "large").write_bytes(bytes(12 << 20))
    script = f"""
import asyncio, sys, asyncsync
from asyncsync import TransferConfig
options = {seaweedfs.storage_options!r}
transfer = TransferConfig(multipart_threshold=5 << 20, part_size=5 << 20)
report = asyncio.run(
    asyncsync.push({str(tmp_path / "tree")!r}, "s3://{bucket}/t", storage_options=options, transfer=transfer)
)
assert report.files_sent == 2, report
print(*[name for name in ("aiobotocore", "botocore", "aiohttp") if name in sys.modules])
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert (process.returncode, out.decode().split()) == (0, [])


@pytest.mark.parametrize("content", [None, "", "no certificate"], ids=["missing", "empty", "of something else"])
@pytest.mark.parametrize("named", ["AWS_CA_BUNDLE", "verify"])
@pytest.mark.parametrize("keys", [KEYS, KEYS | {"addressing_style": "virtual"}], ids=["direct", "by aiobotocore"])
async def test_a_ca_bundle_that_cannot_be_used_is_a_config_error_that_names_it(
    tmp_path, monkeypatch, content, named, keys
):
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    options = keys | {"endpoint_url": "https://127.0.0.1:1"}
    if named == "verify":
        options["verify"] = str(bundle)
    else:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    with pytest.raises(ConfigError, match=named) as caught:
        async with S3Store("bucket", "", options=options):
            pass
    assert str(bundle) in str(caught.value)
