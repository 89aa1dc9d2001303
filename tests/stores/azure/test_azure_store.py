"""What the conformance suite does not ask: authorization, faults, checksums, blocks of other programs, directories."""

import asyncio
import os
import types

import google_crc32c
import pytest

from asyncsync.disk.files import FileRange
from asyncsync.errors import (
    AccessDeniedError,
    ConfigError,
    IntegrityError,
    NoSuchBucketError,
    NotFoundError,
    PreconditionError,
    StoreError,
    ThrottledError,
    UnavailableError,
    UnsupportedError,
)
from asyncsync.stores import open_store
from asyncsync.stores.azure import auth
from asyncsync.stores.azure import store as store_module
from asyncsync.stores.base import MISSING, Part
from asyncsync.stores.guard.checksum_probe import probe_checks

azure_fake = pytest.importorskip("azure_fake")
Fault = azure_fake.Fault
MIB = 1 << 20
SAS = "sv=2021-12-02&ss=b&srt=sco&sp=rwdlac&se=2030-01-01T00%3A00%3A00Z&sig=TOPSECRET%3D"


def options(fake, **more):
    return {"account": azure_fake.ACCOUNT, "endpoint_url": f"{fake.endpoint}/{azure_fake.ACCOUNT}"} | more


# Authorization


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


# Checksums


async def test_the_probe_reaches_the_service(azure_strict, store):
    assert await probe_checks(store, "probe", b"data") == "crc32c"
    assert [seen.status for seen in azure_strict.seen] == [400]


async def test_a_service_that_checks_nothing_is_found_out(azure_strict, store, monkeypatch):
    from azure_fake import server

    monkeypatch.setattr(server, "check_body", lambda headers, body: None)
    monkeypatch.setattr(server, "crc64_text", lambda data: azure_strict.seen[-1].headers["x-ms-content-crc64"])
    assert await probe_checks(store, "probe", b"data") == "none"
    assert store.traits.crc32c is False


async def test_another_crc64_in_the_response_is_an_integrity_error(azure_strict, store, monkeypatch):
    from azure_fake import server

    upload = await store.create_multipart("b")
    monkeypatch.setattr(server, "crc64_text", lambda data: "AAAAAAAAAAA=")
    with pytest.raises(IntegrityError) as caught:
        await store.put("a", b"data")
    assert caught.value.retryable
    with pytest.raises(IntegrityError):
        await store.put_part(upload, 1, 0, b"data")


async def test_damage_at_rest_is_found_by_whoever_reads_everything(container, store):
    await store.put("a", b"12345")
    container.blobs["p/a"].data = b"12845"
    with pytest.raises(IntegrityError):
        await store.get("a")


async def test_a_file_that_changed_since_it_was_hashed_is_not_sent(azure_strict, store, tmp_path):
    (tmp_path / "f").write_bytes(os.urandom(3 * MIB))
    with pytest.raises(IntegrityError, match="nothing was sent"):
        await store.put("a", FileRange(str(tmp_path / "f"), 0, 3 * MIB), crc32c=5)
    assert azure_strict.seen == []


async def test_a_file_that_changes_while_it_is_sent_is_refused(azure_strict, store, tmp_path, monkeypatch):
    """Its CRC64 is that of other bytes than those that the kernel sends."""
    path = tmp_path / "f"
    path.write_bytes(bytes(3 * MIB))
    real = store_module.checksums_of

    async def then_change(*args):
        found = await real(*args)
        path.write_bytes(bytes(3 * MIB - 1) + b"x")
        return found

    monkeypatch.setattr(store_module, "checksums_of", then_change)
    with pytest.raises(IntegrityError, match="Crc64Mismatch"):
        await store.put("a", FileRange(str(path), 0, 3 * MIB))
    with pytest.raises(NotFoundError):
        await store.head("a")


async def test_the_crc32c_of_the_whole_is_kept(container, store):
    crc = int(google_crc32c.value(b"12345678"))
    upload = await store.create_multipart("a")
    parts = [await store.put_part(upload, 1, 0, b"12345"), await store.put_part(upload, 2, 5, b"678")]
    info = await store.complete_multipart(upload, parts, crc32c=crc)
    assert info.crc32c == (await store.head("a")).crc32c == crc
    assert (await store.copy("a", "b")).crc32c == (await store.head("b")).crc32c == crc
    assert [found.crc32c for found in (await store.list()).objects] == [crc, crc]


async def test_parts_with_another_crc32c_are_not_committed(azure_strict, store):
    upload = await store.create_multipart("a")
    part = await store.put_part(upload, 1, 0, b"12345")
    before = len(azure_strict.seen)
    with pytest.raises(IntegrityError):
        await store.complete_multipart(upload, [part], crc32c=7)
    assert len(azure_strict.seen) == before


async def test_a_copied_range_must_have_the_bytes_at_hand(store):
    info = await store.put("a", b"12345")
    upload = await store.create_multipart("b")
    with pytest.raises(IntegrityError):
        await store.copy_part(upload, 1, 0, "a", 0, 3, if_source_version=info.version, body=b"124")
    part = await store.copy_part(upload, 1, 0, "a", 0, 3, if_source_version=info.version, body=b"123")
    assert part.crc32c == google_crc32c.value(b"123")


async def test_the_crc32c_of_bytes_that_nobody_read_is_not_claimed(store):
    await store.put("a", b"12345")
    upload = await store.create_multipart("b")
    part = await store.copy_part(upload, 1, 0, "a", 0, 3)
    assert part.crc32c is None
    info = await store.complete_multipart(upload, [part], crc32c=google_crc32c.value(b"123"))
    assert info.crc32c is (await store.head("b")).crc32c is None


# Blocks


async def upload_blocks(store, key, *pieces):
    upload = await store.create_multipart(key)
    parts, at = [], 0
    for number, piece in enumerate(pieces, 1):
        parts.append(await store.put_part(upload, number, at, piece))
        at += len(piece)
    return await store.complete_multipart(upload, parts)


async def test_whole_blocks_of_the_replaced_blob_are_not_even_copied(azure_strict, store):
    old = await upload_blocks(store, "a", b"aaaa", b"bbbb", b"cccc")
    before = len(azure_strict.seen)
    upload = await store.create_multipart("a")
    parts = [
        await store.copy_part(upload, 1, 0, "a", 0, 4, if_source_version=old.version),
        await store.put_part(upload, 2, 4, b"BBBB"),
        await store.copy_part(upload, 3, 8, "a", 8, 4, if_source_version=old.version),
    ]
    info = await store.complete_multipart(upload, parts, crc32c=google_crc32c.value(b"aaaaBBBBcccc"))
    assert (await store.get("a"))[0] == b"aaaaBBBBcccc"
    assert info.crc32c == google_crc32c.value(b"aaaaBBBBcccc")
    sent = [seen.size for seen in azure_strict.seen[before:] if "comp=block&" in seen.target]
    assert sent == [4]
    assert not any("x-ms-copy-source" in seen.headers for seen in azure_strict.seen)


async def test_a_range_that_is_no_whole_block_is_copied(azure_strict, store):
    old = await upload_blocks(store, "a", b"aaaa", b"bbbb")
    upload = await store.create_multipart("a")
    part = await store.copy_part(upload, 1, 0, "a", 2, 4, if_source_version=old.version, body=b"aabb")
    await store.complete_multipart(upload, [part])
    assert (await store.get("a"))[0] == b"aabb"
    assert sum("x-ms-copy-source" in seen.headers for seen in azure_strict.seen) == 1


async def test_blocks_used_again_belong_to_one_version(store):
    old = await upload_blocks(store, "a", b"aaaa", b"bbbb")
    upload = await store.create_multipart("a")
    part = await store.copy_part(upload, 1, 0, "a", 0, 4, if_source_version=old.version)
    await upload_blocks(store, "a", b"other")
    with pytest.raises(PreconditionError):
        await store.complete_multipart(upload, [part])
    with pytest.raises(PreconditionError):
        await store.complete_multipart(upload, [part], if_version=MISSING)
    assert (await store.get("a"))[0] == b"other"


async def test_blocks_of_two_uploads_are_not_mixed(store):
    """Two processes send the same name at the same time: one of them wins, completely."""
    uploads = [await store.create_multipart("a") for _ in range(2)]
    parts = [
        [await store.put_part(up, n, 4 * n - 4, bytes([65 + i]) * 4) for n in (1, 2)] for i, up in enumerate(uploads)
    ]
    await store.complete_multipart(uploads[1], parts[1])
    with pytest.raises(NotFoundError):
        await store.complete_multipart(uploads[0], parts[0])
    assert (await store.get("a"))[0] == b"BBBBBBBB"


async def test_a_part_of_another_upload_is_refused(azure_strict, store):
    one, other = await store.create_multipart("a"), await store.create_multipart("a")
    part = await store.put_part(one, 1, 0, b"aaaa")
    for wrong in (part, Part(1, 0, 4, "</Uncommitted>", 1), Part(1, 0, 4, "YQ==", 1), Part(1, 0, 4, "", 1)):
        with pytest.raises(NotFoundError):
            await store.complete_multipart(other, [wrong])
    with pytest.raises(NotFoundError):
        await store.head("a")


async def test_a_resume_knows_its_parts_from_the_block_list_alone(azure_strict, store):
    upload = await store.create_multipart("a")
    await store.put_part(upload, 2, 4, b"bbbb")
    await store.put_part(upload, 1, 0, b"aaaa")
    async with open_store("az://conformance/p", options=azure_strict.storage_options) as later:
        (found,) = await later.list_multiparts()
        parts = await later.list_parts(found)
        assert [(part.number, part.offset, part.size) for part in parts] == [(1, 0, 4), (2, 4, 4)]
        assert [part.crc32c for part in parts] == [google_crc32c.value(b"aaaa"), google_crc32c.value(b"bbbb")]
        await later.complete_multipart(found, parts)
    assert (await store.get("a"))[0] == b"aaaabbbb"


async def test_a_commit_whose_response_was_lost_is_found(azure_strict, guarded):
    upload = await guarded.create_multipart("a")
    part = await guarded.put_part(upload, 1, 0, b"aaaa", crc32c=google_crc32c.value(b"aaaa"))
    azure_strict.faults = [Fault("comp=blocklist", lose=True)]
    info = await guarded.complete_multipart(upload, [part], crc32c=google_crc32c.value(b"aaaa"))
    assert info.version == (await guarded.head("a")).version
    assert await guarded.list_multiparts() == []


@pytest.mark.parametrize("condition", [None, MISSING])
async def test_a_put_whose_response_was_lost_is_found(azure_strict, guarded, condition):
    azure_strict.faults = [Fault("PUT", lose=True)]
    info = await guarded.put("a", b"aaaa", crc32c=google_crc32c.value(b"aaaa"), if_version=condition)
    assert info.version == (await guarded.head("a")).version


@pytest.mark.parametrize("committed", [None, "blocks"])
async def test_unfinished_blocks_of_another_program_are_dropped(container, store, committed):
    if committed:
        await upload_blocks(store, "a", b"old", b"blob")
        container.blobs["p/a"].headers |= {"x-ms-meta-mine": "kept"}
    container.uncommitted["p/a"] = {"YQ==": b"foreign"}
    upload = await store.create_multipart("a")
    part = await store.put_part(upload, 1, 0, b"new")
    if committed:
        assert (await store.get("a"))[0] == b"oldblob"
        assert container.blobs["p/a"].headers["x-ms-meta-mine"] == "kept"
    else:
        with pytest.raises(NotFoundError):
            await store.head("a")
    await store.complete_multipart(upload, [part])
    assert (await store.get("a"))[0] == b"new"


async def test_a_blob_without_blocks_is_never_emptied(container, store):
    """Committing its list again would commit nothing."""
    await store.put("a", b"old")
    container.uncommitted["p/a"] = {"YQ==": b"foreign"}
    upload = await store.create_multipart("a")
    with pytest.raises(UnsupportedError, match="in one request"):
        await store.put_part(upload, 1, 0, b"new")
    assert (await store.get("a"))[0] == b"old"
    await store.put("a", b"new")
    assert (await store.get("a"))[0] == b"new"


async def test_a_leased_blob_is_not_ours_to_write(container, store):
    await store.put("a", b"old")
    container.leased.add("p/a")
    upload = await store.create_multipart("a")
    for call in (
        store.put("a", b"new"),
        store.put_part(upload, 1, 0, b"new"),
        store.delete(["a"]),
        store.copy("a", "a"),
    ):
        with pytest.raises(AccessDeniedError, match="lease"):
            await call


async def test_a_blob_of_more_than_256_mib_is_copied_in_blocks(container, store, monkeypatch):
    container.max_copy = 10
    monkeypatch.setattr(store_module, "MAX_COPY", 10)
    monkeypatch.setattr(store_module, "COPY_RANGE", 8)
    info = await store.put("a", os.urandom(30))
    made = await store.copy("a", "b", if_version=MISSING)
    assert container.blobs["p/b"].data == container.blobs["p/a"].data
    assert (made.size, made.crc32c, made.version) == (30, info.crc32c, (await store.head("b")).version)
    with pytest.raises(PreconditionError):
        await store.copy("a", "b", if_version=MISSING)


# Deletes and listings


async def test_a_thousand_deletes_are_four_batches(azure_strict, store, container):
    from azure_fake import Blob

    keys = [f"k/{number}" for number in range(1000)]
    container.blobs |= {f"p/{key}": Blob(b"") for key in keys[::2]}
    await store.delete(keys)
    assert container.blobs == {}
    assert len(azure_strict.requests("comp=batch")) == len(azure_strict.seen) == 4


async def test_an_account_without_batches_deletes_one_by_one(azure_strict, store, container):
    azure_strict.batches = False
    await store.put("a", b"")
    await store.delete(["a", "b", "c"])
    await store.delete(["a", "b"])
    assert container.blobs == {}
    assert len(azure_strict.requests("comp=batch")) == 1


async def test_directories_of_a_hierarchical_account_are_no_objects(container, store):
    container.hierarchical = True
    await store.put("d/e/x", b"1")
    assert [info.key for info in (await store.list()).objects] == ["d/e/x"]
    assert (await store.list("d/", delimiter="/")).prefixes == ("d/e/",)
    with pytest.raises(NotFoundError):
        await store.head("d/e")
    await store.delete(["d/e/x", "d/e/y"])
    assert (await store.list()).objects == ()


async def test_a_page_of_markers_only_is_skipped(azure_strict, store):
    azure_strict.page = 1
    uploads = [await store.create_multipart(f"{number}") for number in range(3)]
    await store.put("z", b"")
    page = await store.list()
    assert [info.key for info in page.objects] == ["z"]
    assert {upload.upload_id for upload in uploads} == {upload.upload_id for upload in await store.list_multiparts()}


async def test_an_endless_listing_is_noticed(azure_strict, store):
    for number in range(3):
        await store.put(f"{number}", b"")
    azure_strict.page = 1
    azure_strict.faults = [
        Fault("comp=list", 5, change=lambda body: body.replace(b"<NextMarker>p/1", b"<NextMarker>p/0"))
    ]
    token = (await store.list()).token
    with pytest.raises(UnavailableError, match="NextMarker"):
        while token is not None:
            token = (await store.list(token=token)).token


# Faults


@pytest.mark.parametrize(("status", "kind"), [(500, UnavailableError), (503, ThrottledError), (400, StoreError)])
async def test_a_refused_request_is_mapped(azure_strict, store, status, kind):
    azure_strict.faults = [Fault(".", status=status, headers={"code": ""})]
    with pytest.raises(kind):
        await store.put("a", b"")


@pytest.mark.parametrize("body", [b"", b"<html>please log in</html>", b"<BlockList/>"])
async def test_a_success_that_is_not_documented_proves_nothing(azure_strict, store, body):
    await store.put("a", b"1")
    upload = await store.create_multipart("b")
    part = await store.put_part(upload, 1, 0, b"1")

    async def refused(call):
        azure_strict.faults = [Fault(".", status=200, body=body)]
        with pytest.raises(StoreError):
            await call
        azure_strict.faults = []

    await refused(store.put("x", b"1"))
    await refused(store.head("a"))
    await refused(store.get("a"))
    await refused(store.list())
    await refused(store.delete(["a"]))
    await refused(store.delete(["a", "b"]))
    await refused(store.copy("a", "x"))
    await refused(store.create_multipart("x"))
    await refused(store.put_part(upload, 1, 0, b"1"))
    await refused(store.copy_part(upload, 1, 0, "a", 0, 1))
    await refused(store.list_parts(upload))
    await refused(store.complete_multipart(upload, [part]))
    await refused(store.list_multiparts())


async def test_a_cut_body_is_transient(azure_strict, store):
    await store.put("a", bytes(100_000))
    azure_strict.faults = [Fault("GET", short=50)]
    with pytest.raises(StoreError):
        await store.get("a")


async def test_a_batch_without_all_results_proves_nothing(azure_strict, store):
    azure_strict.faults = [Fault("comp=batch", change=lambda body: body.replace(b"Content-ID: 1", b"Content-ID: 0"))]
    with pytest.raises(UnavailableError):
        await store.delete(["a", "b"])


async def test_metadata_and_parts_are_in_the_hot_tier(azure_strict, container):
    async with open_store(
        "az://conformance/p", options=azure_strict.storage_options | {"access_tier": "Cool"}
    ) as store:
        await store.put("a", b"")
        await store.put(".asyncsync/manifest.json", b"")
        await upload_blocks(store, "b", b"1")
        await store.copy("a", "c")
    tiers = {name: blob.headers.get("x-ms-access-tier") for name, blob in container.blobs.items()}
    assert tiers == {"p/a": "Cool", "p/.asyncsync/manifest.json": None, "p/b": "Cool", "p/c": "Cool"}


async def test_a_store_shows_no_secret(azure_strict, store):
    assert azure_fake.KEY not in repr(store)
    assert store.uri == "az://conformance/p"
