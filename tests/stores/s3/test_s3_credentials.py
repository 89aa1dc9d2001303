"""A credential source may fail for a moment; missing credentials are a final error."""

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from s3_script import OK, Script

from asyncsync.errors import AccessDeniedError, UnavailableError
from asyncsync.stores.s3.store import S3Store

pytest.importorskip("aiobotocore")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Without credentials anywhere but in ``config``."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path


def given_by_a_program(home, says):
    """The program prints the content of the file ``says``; without the file it fails."""
    (home / "program").write_text(f"#!{sys.executable}\nprint(open({str(says)!r}).read())\n")
    (home / "program").chmod(0o755)
    (home / "config").write_text(f"[profile v]\ncredential_process = {home / 'program'}\n")


@asynccontextmanager
async def opened(**options):
    script = Script(lambda request: OK)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, S3Store("b", "", options={"endpoint_url": endpoint} | options) as store:
        yield store


def keys(seconds):
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps(
        {
            "Version": 1,
            "AccessKeyId": "K",
            "SecretAccessKey": "s",
            "SessionToken": "t",
            "Expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    )


@pytest.mark.parametrize("flaw", [None, "this is not JSON", '{"Version": 1}', "[]"])
@pytest.mark.parametrize("first", [True, False], ids=["at first", "when renewed"])
async def test_a_source_of_credentials_that_fails_is_transient(home, first, flaw):
    says = home / "says"
    given_by_a_program(home, says)
    async with opened(profile="v") as store:
        with pytest.raises(UnavailableError):
            await store.put("k", b"data")
        says.write_text(keys(5 if not first else 3600))
        await store.put("k", b"data")
        if not first:
            says.unlink() if flaw is None else says.write_text(flaw)
            with pytest.raises(UnavailableError, match="credentials"):
                await store.put("k", b"data")
            says.write_text(keys(3600))
            await store.put("k", b"data")


async def test_missing_credentials_are_final_and_the_error_lists_the_sources(home):
    with pytest.raises(AccessDeniedError, match=r"Looked at.*AWS_ACCESS_KEY_ID.*credentials") as caught:
        async with opened() as store:
            await store.put("k", b"data")
    assert not caught.value.retryable
    assert str(home) in str(caught.value)
