"""A credential source may fail for a moment; missing credentials are a final error."""

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

import pytest
from s3_script import KEYS, OK, Script, fault, reply, scripted

from asyncsync.errors import AccessDeniedError, StoreError, UnavailableError
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


# Roles

ROLE = {"role_arn": "arn:aws:iam::123456789012:role/writer", "external_id": "their-id"}


def assumed(seconds, token):
    until = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    keys = f"<AccessKeyId>K</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>{token}</SessionToken>"
    found = f"<AssumeRoleResult><Credentials>{keys}<Expiration>{until}</Expiration></Credentials></AssumeRoleResult>"
    return reply(body=f"<AssumeRoleResponse>{found}</AssumeRoleResponse>".encode(), Content_Type="text/xml")


class Account:
    """STS and S3 on one address. ``refuses``: sessions whose token S3 calls expired."""

    def __init__(self, *answers, refuses=()):
        self.answers, self.refuses, self.asked, self.tokens = list(answers), refuses, [], []

    def __call__(self, request):
        if request.target == "/":
            self.asked.append(dict(parse_qsl(request.body.decode())))
            return self.answers.pop(0)
        self.tokens.append(request.headers["x-amz-security-token"])
        return fault("400 Bad Request", "ExpiredToken") if self.tokens[-1] in self.refuses else OK

    @asynccontextmanager
    async def store(self, **options):
        async with scripted(self) as (other, _):
            endpoint = str(other._options.endpoint_url)
            given = KEYS | {"endpoint_url": endpoint, "sts_endpoint_url": endpoint} | ROLE | options
            async with S3Store("bucket", "p", options=given) as store:
                yield store


async def test_a_role_is_assumed_once_with_its_external_id():
    account = Account(assumed(3600, "T1"))
    async with account.store(role_session_name="run-7") as store:
        await store.put("k", b"data")
        await store.put("l", b"data")
    (asked,) = account.asked
    expected = {"RoleArn": ROLE["role_arn"], "ExternalId": "their-id", "RoleSessionName": "run-7"}
    assert asked == asked | expected
    assert account.tokens == ["T1", "T1"]


@pytest.mark.parametrize("lifetime", [60, 3600], ids=["due", "refused by the store"])
async def test_the_credentials_of_a_role_are_renewed(lifetime):
    account = Account(assumed(lifetime, "T1"), assumed(3600, "T2"), refuses=["T1"] if lifetime == 3600 else [])
    async with account.store() as store:
        await store.put("k", b"data")
        await store.put("l", b"data")
    assert account.tokens[-1] == "T2"
    assert len(account.asked) == 2


async def test_a_role_that_must_not_be_assumed_is_named():
    denied = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>not you</Message></Error></ErrorResponse>"
    with pytest.raises(AccessDeniedError, match=r"AssumeRole arn:aws:iam.*AccessDenied: not you") as caught:
        await Account(reply("403 Forbidden", denied)).store().__aenter__()
    assert "their-id" not in str(caught.value)


async def test_an_sts_that_is_away_is_transient():
    away = reply("503 Service Unavailable")
    async with Account(away, away, assumed(3600, "T1")).store() as store:
        with pytest.raises(StoreError) as caught:
            await store.put("k", b"data")
        assert caught.value.retryable
        await store.put("k", b"data")
