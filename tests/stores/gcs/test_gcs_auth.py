"""Tokens, credentials and addresses of Google Cloud Storage."""

import json
import os

import pytest

from asyncsync.disk.files import FileRange
from asyncsync.errors import AccessDeniedError, ConfigError, UnavailableError
from asyncsync.stores import open_store
from asyncsync.stores.gcs.options import GcsOptions

pytest.importorskip("gcloud.aio.auth")
from gcs_fake import Fault, GcsFake

MIB = 1 << 20


# tokens


@pytest.fixture
def credentials(gcs_strict, tmp_path):
    path = tmp_path / "credentials.json"
    secrets = {"client_id": "id", "client_secret": "secret", "refresh_token": "refresh"}
    path.write_text(json.dumps({"type": "authorized_user", "token_uri": f"{gcs_strict.endpoint}/token", **secrets}))
    return {"endpoint_url": gcs_strict.endpoint, "credentials": str(path)}


async def test_a_token_is_asked_for_once(gcs_strict, credentials):
    gcs_strict.tokens = {"fresh"}
    async with open_store("gs://conformance/p", options=credentials) as opened:
        for key in "abc":
            await opened.put(key, b"1")
    assert len(gcs_strict.requests("/token")) == 1


async def test_a_refused_token_is_renewed_once(gcs_strict, credentials):
    gcs_strict.tokens = {"fresh"}
    async with open_store("gs://conformance/p", options=credentials) as opened:
        await opened.put("a", b"1")
        gcs_strict.tokens, gcs_strict.fresh_token = {"second"}, "second"
        await opened.put("a", bytes(MIB))
        assert [seen.status for seen in gcs_strict.requests("/upload/")] == [200, 401, 200]
        gcs_strict.tokens = {"none of these"}
        with pytest.raises(AccessDeniedError, match="401"):
            await opened.head("a")
    assert [seen.status for seen in gcs_strict.requests("GET /storage")] == [401, 401]


async def test_a_given_token_is_sent_as_it_is(gcs_strict):
    gcs_strict.tokens = {"given"}
    options = {"endpoint_url": gcs_strict.endpoint, "token": "given"}
    async with open_store("gs://conformance/p", options=options) as opened:
        await opened.put("a", b"1")


async def test_credentials_that_are_refused_say_so(gcs_strict, credentials):
    gcs_strict.faults.append(Fault("/token", 9, 400))
    async with open_store("gs://conformance/p", options=credentials) as opened:
        with pytest.raises(AccessDeniedError, match="give no access token") as caught:
            await opened.put("a", b"1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (200, b""),
        (200, b"<html>log in</html>"),
        (200, b"[]"),
        (200, b'"x"'),
        (200, b'{"expires_in": 5}'),
        (200, b'{"access_token": "x"}'),
        (200, b'{"access_token": "x", "expires_in": "' + b"9" * 400 + b'"}'),
        (200, b'{"access_token": "a\\r\\nHost: b", "expires_in": 5}'),
        (200, b'{"access_token": "", "expires_in": 5}'),
        (200, b"[" * 60_000),
        (500, b""),
        (503, b"{}"),
        (429, b""),
    ],
)
async def test_a_token_server_that_fails_for_a_moment_is_retried(gcs_strict, credentials, status, said):
    gcs_strict.faults.append(Fault("/token", 9, status, {"Content-Type": "application/json"}, body=said))
    async with open_store("gs://conformance/p", options=credentials) as opened:
        with pytest.raises(UnavailableError, match="no access token"):
            await opened.put("a", b"1")
        gcs_strict.faults.clear()
        await opened.put("a", b"1")


async def test_a_credentials_file_that_is_missing_is_named(gcs_strict):
    options = {"endpoint_url": gcs_strict.endpoint, "credentials": "/nowhere.json"}
    async with open_store("gs://conformance/p", options=options) as opened:
        with pytest.raises(ConfigError, match=r"/nowhere\.json"):
            await opened.put("a", b"1")


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("text", ["", "{", "[]", '{"type": "unknown"}', "{}"])
async def test_an_empty_credentials_file_does_not_fall_back_to_the_machine(
    gcs_strict, tmp_path, monkeypatch, text, given
):
    path = tmp_path / "broken.json"
    path.write_text(text)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    options = {"endpoint_url": gcs_strict.endpoint.replace("http://", "https://")}
    options |= {"credentials": str(path)} if given else {}
    async with open_store("gs://conformance/p", options=options) as opened:
        with pytest.raises(ConfigError, match=r"broken\.json"):
            await opened.put("a", b"1")


@pytest.mark.parametrize("spelled", ["http://{}", "{}", "http://{}/"])
async def test_the_emulator_of_the_environment_is_used_without_a_token(gcs_strict, monkeypatch, spelled):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", spelled.format(gcs_strict.endpoint.removeprefix("http://")))
    async with open_store("gs://conformance/p") as opened:
        await opened.put("a", b"1")
    assert "Authorization" not in gcs_strict.seen[0].headers


@pytest.mark.parametrize(
    ("emulator", "options", "needs"),
    [
        ("https://localhost:4443", {}, False),
        ("https://localhost:4443", {"token": "given"}, True),
        ("http://localhost:4443", {"credentials": "/file"}, True),
        ("https://storage.googleapis.com", {}, True),
        ("localhost:4443", {"endpoint_url": "https://private.example"}, True),
        (None, {}, True),
        (None, {"anonymous": True}, False),
        (None, {"endpoint_url": "http://localhost:1"}, False),
    ],
)
def test_an_emulator_needs_no_token_unless_credentials_are_given(monkeypatch, emulator, options, needs):
    if emulator:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    assert GcsOptions.parse(options).needs_token() is needs


@pytest.mark.parametrize(
    "address", ["grpc://localhost:1", "localhost:http", "localhost:99999", "http://", "http://:1/x"]
)
def test_an_invalid_address_is_reported(monkeypatch, address):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    with pytest.raises(ConfigError, match=r"STORAGE_EMULATOR_HOST=.* is not an address"):
        open_store("gs://conformance/p")


@pytest.mark.parametrize("hidden", [False, True])
async def test_a_server_below_a_path_is_reached(tmp_path, hidden):
    """Itself it may or may not know of the path: one that a proxy strips is in no address of its own."""
    (tmp_path / "f").write_bytes(os.urandom(9 * MIB))
    with GcsFake("b", base="/storage/gcs", hidden=hidden) as fake:
        async with open_store("gs://b/p", options=fake.storage_options) as opened:
            await opened.put("x", FileRange(str(tmp_path / "f"), 0, 9 * MIB))
            await opened.put("y", b"1")
            await opened.copy("x", "y")
            assert [info.key for info in (await opened.list()).objects] == ["x", "y"]
            assert (await opened.get("y"))[0] == (tmp_path / "f").read_bytes()
            await opened.delete(["x", "y"])
        assert {seen.status for seen in fake.seen} == {200, 308}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "x"}, "unknown storage option 'region'"),
        ({"endpoint_url": "host:1"}, "must start with"),
        ({"endpoint_url": "http://host:port"}, "is not an address"),
        ({"anonymous": "yes"}, "True or False"),
        ({"token": ""}, "must be non-empty text"),
        ({"token": "x", "anonymous": True}, "exclude each other"),
        ({"verify": 3}, "CA bundle"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        open_store("gs://b/p", options=options)


def test_a_token_is_not_shown():
    assert "hush" not in repr(GcsOptions.parse({"token": "hush"}))


async def test_options_reach_the_requests(gcs_strict, objects):
    options = {**gcs_strict.storage_options, "user_project": "payer", "storage_class": "NEARLINE"}
    async with open_store("gs://conformance/p", options=options) as opened:
        upload = await opened.create_multipart("x")
        part = await opened.put_part(upload, 1, 0, b"data")
        await opened.complete_multipart(upload, [part])
        await opened.copy("x", "y")
        await opened.get("x")
        await opened.list()
        await opened.delete(["y"])
    assert all("userProject=payer" in seen.target for seen in gcs_strict.seen)
    assert objects["p/x"].storage_class == "NEARLINE"
