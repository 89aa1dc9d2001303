"""HTTPS to Cloud Storage: certificates are checked; proxies of the environment are used, or refused by name."""

import asyncio
import json
import os
import ssl
import subprocess
from base64 import b64encode
from contextlib import asynccontextmanager
from pathlib import Path

import google_crc32c
import pytest

from asyncsync.disk.files import FileRange
from asyncsync.errors import (
    ConfigError,
    NotFoundError,
    PreconditionError,
    StoreError,
    UnavailableError,
)
from asyncsync.stores import open_store
from asyncsync.stores.base import MISSING
from asyncsync.stores.gcs.store import GcsStore
from asyncsync.stores.options import ConnectionLimits

pytest.importorskip("gcloud.aio.auth")
from gcs_fake import GcsFake

MIB = 1 << 20


@pytest.fixture
def fake(certificate):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate[1:])
    with GcsFake("b", tls=context) as running:
        yield running


@pytest.fixture
def options(fake, certificate):
    return {"endpoint_url": fake.endpoint, "anonymous": True, "verify": certificate[0]}


async def exercise(store, tmp_path):
    """Each kind of request once, with bodies of each size."""
    data = os.urandom(9 * MIB)
    (tmp_path / "f").write_bytes(data)
    for key, size in (("small", 10), ("whole", 3 * MIB), ("session", 9 * MIB)):
        body = FileRange(str(tmp_path / "f"), 0, size)
        info = await store.put(key, body, crc32c=google_crc32c.value(data[:size]), if_version=MISSING)
        assert await store.get(key) == (data[:size], await store.head(key))
        with pytest.raises(PreconditionError):
            await store.put(key, body, if_version=MISSING)
    upload = await store.create_multipart("parts")
    parts = [await store.put_part(upload, number, -1, b"%d" % number) for number in (1, 2)]
    await store.complete_multipart(upload, parts)
    await store.copy("parts", "copy", if_source_version=(await store.head("parts")).version)
    assert (await store.get("copy"))[0] == b"12"
    assert [item.key for item in (await store.list()).objects] == ["copy", "parts", "session", "small", "whole"]
    await store.delete(["copy", "parts", "session", "small", "whole", "never was"])
    with pytest.raises(NotFoundError):
        await store.get("copy")
    return info


async def test_everything_works_over_tls(options, tmp_path):
    async with open_store("gs://b/p", options=options) as store:
        await exercise(store, tmp_path)


async def test_an_authority_that_is_not_trusted_is_refused(options, fake):
    async with open_store("gs://b/p", options=options | {"verify": True}) as store:
        with pytest.raises(StoreError, match="certificate verify failed") as caught:
            await store.put("x", b"1")
    assert not caught.value.retryable
    assert fake.seen == []


async def test_a_certificate_of_another_host_is_refused(options, fake):
    elsewhere = fake.endpoint.replace("127.0.0.1", "localhost")
    async with open_store("gs://b/p", options=options | {"endpoint_url": elsewhere}) as store:
        with pytest.raises(StoreError, match="certificate"):
            await store.put("x", b"1")
    assert fake.seen == []


async def test_verify_false_accepts_any_certificate(options, fake):
    async with open_store("gs://b/p", options=options | {"verify": False}) as store:
        await store.put("x", b"1")
    assert [seen.status for seen in fake.seen] == [200]


# Proxies


@asynccontextmanager
async def tunnels(password=None):
    """A proxy that connects through; gives its port and the list of hosts that it was asked for. ``password``: of the
    user ``user``, refused without."""
    wanted = password and f"Proxy-Authorization: Basic {b64encode(f'user:{password}'.encode()).decode()}".encode()
    asked: list[str] = []
    tasks: set[asyncio.Task] = set()

    async def pipe(reader, writer):
        try:
            while piece := await reader.read(MIB):
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        line = head.split()
        asked.append(f"{line[0].decode()} {line[1].decode()}")
        if wanted and wanted not in head:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        host, _, port = line[1].decode().rpartition(":")
        other_reader, other_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        async with asyncio.TaskGroup() as group:
            group.create_task(pipe(reader, other_writer))
            group.create_task(pipe(other_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy"])
async def test_the_proxy_of_the_environment_is_used(options, fake, monkeypatch, tmp_path, name):
    async with tunnels() as (port, asked):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        async with open_store("gs://b/p", options=options) as store:
            await exercise(store, tmp_path)
    assert set(asked) == {f"CONNECT {fake.endpoint.removeprefix('https://')}"}


async def test_a_host_in_no_proxy_is_reached_directly(options, fake, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    async with open_store("gs://b/p", options=options) as store:
        await store.put("x", b"1")


async def test_a_proxy_that_is_not_there_is_unavailable_and_not_bypassed(options, fake, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://user:secret@127.0.0.1:1")
    async with open_store("gs://b/p", options=options) as store:
        with pytest.raises(UnavailableError) as caught:
            await store.put("x", b"1")
    assert "secret" not in str(caught.value)
    assert fake.seen == []


@pytest.mark.parametrize("verify", [True, "other"])
async def test_an_untrusted_server_behind_a_proxy_is_final_at_once(options, fake, monkeypatch, tmp_path, verify):
    if verify == "other":  # an authority that did not sign it
        made = "openssl req -newkey rsa:2048 -nodes -x509 -days 1 -subj /CN=other -keyout ca.key -out ca.pem"
        subprocess.run(made.split(), check=True, capture_output=True, cwd=tmp_path)
        verify = str(tmp_path / "ca.pem")
    async with tunnels() as (port, asked):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        async with open_store("gs://b/p", options=options | {"verify": verify}) as store:
            with pytest.raises(StoreError, match="storage option verify") as caught:
                await store.put("x", b"1")
    assert not caught.value.retryable
    assert len(asked) == 1


async def test_a_body_that_drips_through_a_proxy_is_cut(monkeypatch):
    async def drip(reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
        except ConnectionError:
            pass
        finally:
            writer.close()
            ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    given = {"endpoint_url": "http://storage.invalid", "anonymous": True}
    async with server, GcsStore("b", "", options=given, limits=ConnectionLimits(stall_timeout=0.3)) as store:
        with pytest.raises(UnavailableError, match=r"no byte moved for .* s, or too few"):
            await store.get("x")
        await ended.wait()


async def test_a_proxy_of_another_kind_is_refused_by_name(options, fake, monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(ConfigError, match="socks5 proxy"):
        await open_store("gs://b/p", options=options).put("x", b"1")
    assert fake.seen == []


# Tokens: they come from another server than the data


@pytest.fixture
def giver(certificate):
    """A server that issues tokens."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate[1:])
    with GcsFake(tls=context) as running:
        yield running


@pytest.fixture
def account(fake, giver, options, certificate, tmp_path):
    """Options with a service account that ``giver`` knows."""
    fake.tokens = {giver.fresh_token}
    path = tmp_path / "account.json"
    key = Path(certificate[2]).read_text()
    path.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "p",
                "private_key_id": "1",
                "private_key": key,
                "client_email": "robot@example.com",
                "token_uri": f"{giver.endpoint}/token",
            }
        )
    )
    return {**options, "credentials": str(path), "anonymous": False}


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
async def test_a_token_is_asked_for_through_the_proxy(account, fake, giver, monkeypatch, name):
    async with tunnels(password="secret") as (port, asked):
        monkeypatch.setenv(name, f"http://user:secret@127.0.0.1:{port}")
        async with open_store("gs://b/p", options=account) as store:
            await store.put("x", b"1")
            await store.get("x")
    hosts = [server.endpoint.removeprefix("https://") for server in (giver, fake)]
    assert set(asked) == {f"CONNECT {host}" for host in hosts}
    assert [(seen.method, seen.target, seen.status) for seen in giver.seen] == [("POST", "/token", 200)]
    assert {seen.headers["Authorization"] for seen in fake.seen} == {f"Bearer {giver.fresh_token}"}


async def test_the_token_server_can_be_reached_without_the_proxy(account, giver, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with open_store("gs://b/p", options=account) as store:
        await store.put("x", b"1")
    assert len(giver.seen) == 1


@pytest.mark.parametrize(
    ("proxy", "error", "said"),
    [
        ("http://user:hush@127.0.0.1:{}", UnavailableError, "the proxy refused: HTTP 407"),
        ("http://user:hush@127.0.0.1:1", UnavailableError, "no access token"),
        ("socks5://127.0.0.1:1", ConfigError, "socks5 proxy"),
    ],
)
async def test_a_proxy_that_does_not_serve_is_reported(account, fake, giver, monkeypatch, proxy, error, said):
    monkeypatch.setenv("no_proxy", fake.endpoint.removeprefix("https://"))
    async with tunnels(password="secret") as (port, _):
        monkeypatch.setenv("all_proxy", proxy.format(port))
        async with open_store("gs://b/p", options=account) as store:
            with pytest.raises(error, match=said) as caught:
                await store.put("x", b"1")
    assert "hush" not in str(caught.value)
    assert (fake.seen, giver.seen) == ([], [])


async def test_the_token_servers_certificate_is_always_checked(account, giver):
    async with open_store("gs://b/p", options=account | {"verify": False}) as store:
        with pytest.raises(StoreError, match="certificate verify failed") as caught:
            await store.put("x", b"1")
    assert not caught.value.retryable
    assert giver.seen == []
