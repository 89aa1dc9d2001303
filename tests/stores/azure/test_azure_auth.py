"""What authorizes requests: keys, signatures, tokens and their renewal; none of them is shown."""

import asyncio
import http.server
import json
import threading
import time
import types

import pytest

from asyncsync.errors import (
    AccessDeniedError,
    ConfigError,
    NoSuchBucketError,
    UnavailableError,
)
from asyncsync.stores import open_store
from asyncsync.stores.azure import auth

azure_fake = pytest.importorskip("azure_fake")
Fault = azure_fake.Fault
MIB = 1 << 20
SAS = "sv=2021-12-02&ss=b&srt=sco&sp=rwdlac&se=2030-01-01T00%3A00%3A00Z&sig=TOPSECRET%3D"


def options(fake, **more):
    return {"account": azure_fake.ACCOUNT, "endpoint_url": f"{fake.endpoint}/{azure_fake.ACCOUNT}"} | more


async def test_a_sas_authorizes_every_kind_of_request(azure_strict):
    azure_strict.sas = SAS
    async with open_store("az://conformance/p", options=options(azure_strict, sas_token=SAS)) as store:
        await everything(store)


async def test_a_token_authorizes_every_kind_of_request(azure_strict):
    azure_strict.tokens = {"right"}
    async with open_store("az://conformance/p", options=options(azure_strict, token="right")) as store:
        await everything(store)


async def everything(store):
    info = await store.put("a", b"12345")
    assert (await store.get("a"))[0] == b"12345"
    await store.copy("a", "b")
    upload = await store.create_multipart("c")
    part = await store.copy_part(upload, 1, 0, "a", 1, 3, if_source_version=info.version)
    await store.complete_multipart(upload, [part])
    assert (await store.get("c"))[0] == b"234"
    assert [found.key for found in (await store.list()).objects] == ["a", "b", "c"]
    await store.delete(["a", "b", "c"])
    assert (await store.list()).objects == ()


async def test_a_public_container_is_read_without_credentials(azure_strict, store):
    await store.put("a", b"12345")
    azure_strict.public = True
    async with open_store("az://conformance/p", options=options(azure_strict, anonymous=True)) as reader:
        assert (await reader.get("a"))[0] == b"12345"
        with pytest.raises(AccessDeniedError):
            await reader.put("b", b"")


async def test_a_wrong_key_is_refused_without_a_signature_in_the_error(azure_strict):
    async with open_store("az://conformance/p", options=options(azure_strict, account_key="d3Jvbmc=")) as store:
        with pytest.raises(AccessDeniedError) as caught:
            await store.put("a", b"12345")
    signature = azure_strict.seen[-1].headers["Authorization"].rpartition(":")[2]
    assert signature not in str(caught.value)
    assert "AuthenticationFailed" in str(caught.value)


async def test_a_sas_is_in_no_error(azure_strict):
    azure_strict.sas = SAS.replace("TOP", "ANOTHER")
    async with open_store("az://conformance/p", options=options(azure_strict, sas_token=SAS)) as store:
        for call in (
            store.put("a", b""),
            store.head("a"),
            store.list(),
            store.copy("a", "b"),
            store.delete(["a", "b"]),
        ):
            with pytest.raises(AccessDeniedError) as caught:
                await call
            assert (
                "TOPSECRET"
                not in f"{caught.value} {caught.value.__notes__ if hasattr(caught.value, '__notes__') else ''}"
            )


async def test_a_missing_container_is_named(azure_strict):
    async with open_store("az://missing/p", options=azure_strict.storage_options) as store:
        with pytest.raises(NoSuchBucketError):
            await store.put("a", b"")
        with pytest.raises(NoSuchBucketError):
            await store.delete(["a", "b"])


async def test_a_wrong_clock_is_corrected_once(azure_strict, store):
    azure_strict.skew = 3600.0
    await store.put("a", b"12345")
    assert [seen.status for seen in azure_strict.seen] == [403, 201]
    await store.put("b", b"12345")
    assert len(azure_strict.seen) == 3


class Identity(types.ModuleType):
    """Stands for azure-identity: each token is another one."""

    def __init__(self, error=None):
        super().__init__("azure.identity")
        self.made, self.given, self.error, self.closed = 0, [], error, 0
        for name in ("DefaultAzureCredential", "WorkloadIdentityCredential", "ManagedIdentityCredential"):
            setattr(self, name, lambda name=name, **given: self.given.append((name, given)) or self)

    def get_token(self, scope):
        assert scope == "https://storage.azure.com/.default"
        if self.error:
            raise self.error
        self.made += 1
        return types.SimpleNamespace(token=f"token-{self.made}", expires_on=4e9)

    def close(self):
        self.closed += 1


@pytest.fixture
def tls(certificate):
    import ssl

    authority, cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return authority, context


def with_identity(monkeypatch, identity):
    real = auth.importlib.import_module
    monkeypatch.setattr(
        auth.importlib, "import_module", lambda name: identity if name == "azure.identity" else real(name)
    )


async def test_a_refused_token_is_renewed_once(azure_strict, tls, monkeypatch):
    identity = Identity()
    with_identity(monkeypatch, identity)
    with azure_fake.AzureFake("box", tls=tls[1]) as fake:
        fake.tokens = {"token-2"}
        given = options(fake, credential="managed", client_id="me", verify=tls[0])
        async with open_store("az://box/p", options=given) as store:
            await asyncio.gather(*(store.put(f"{number}", b"") for number in range(8)))
            assert identity.made == 2
            assert identity.given == [("ManagedIdentityCredential", {"client_id": "me"})]
            fake.tokens = set()
            with pytest.raises(AccessDeniedError) as caught:
                await store.put("a", b"")
            assert identity.made == 3
            assert "token-3" not in str(caught.value)
    assert identity.closed == 1


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("ClientAuthenticationError", 401, AccessDeniedError),
        ("CredentialUnavailableError", None, AccessDeniedError),
        ("ServiceRequestError", None, UnavailableError),
        ("HttpResponseError", 503, UnavailableError),
    ],
)
async def test_a_failing_identity_is_told_apart(tls, monkeypatch, name, status, kind):
    error = type(name, (Exception,), {"status_code": status})("no identity\nBearer TOPSECRET")
    with_identity(monkeypatch, Identity(error))
    with azure_fake.AzureFake("box", tls=tls[1]) as fake:
        async with open_store("az://box/p", options=options(fake, verify=tls[0])) as store:
            with pytest.raises(kind) as caught:
                await store.put("a", b"")
            assert type(caught.value) is kind
            assert "TOPSECRET" not in str(caught.value)


async def test_without_azure_identity_the_error_names_the_extra(tls, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(auth.importlib, "import_module", missing)
    with azure_fake.AzureFake("box", tls=tls[1]) as fake:
        async with open_store("az://box/p", options=options(fake, verify=tls[0])) as store:
            with pytest.raises(ConfigError, match=r"asyncsync\[azure\]"):
                await store.head("a")


async def test_azure_identity_itself_gets_tokens_from_the_machine(tls, monkeypatch):
    """The real library, with a metadata service of App Service on this machine."""
    pytest.importorskip("azure.identity")
    asked = []

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["X-IDENTITY-HEADER"]))
            body = json.dumps(
                {"access_token": "real", "expires_on": str(int(time.time()) + 3600), "token_type": "Bearer"}
            )
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args):
            """Nothing to see."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{server.server_port}/token")
    monkeypatch.setenv("IDENTITY_HEADER", "header")
    monkeypatch.setenv("AZURE_CLIENT_ID", "me")
    try:
        with azure_fake.AzureFake("box", tls=tls[1]) as fake:
            fake.tokens = {"real"}
            async with open_store("az://box/p", options=options(fake, credential="managed", verify=tls[0])) as store:
                await store.put("a", b"12345")
                assert (await store.get("a"))[0] == b"12345"
    finally:
        await asyncio.to_thread(server.shutdown)
        thread.join()
        server.server_close()
    ((path, header),) = asked
    assert header == "header"
    assert "resource=https" in path
    assert "client_id=me" in path
