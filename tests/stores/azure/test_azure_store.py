"""What the conformance suite does not ask: checksums, faults, deletes, directories."""

import os

import google_crc32c
import pytest

from asyncsync.disk.files import FileRange
from asyncsync.errors import (
    IntegrityError,
    NotFoundError,
    StoreError,
    ThrottledError,
    UnavailableError,
)
from asyncsync.stores import open_store
from asyncsync.stores.azure import store as store_module
from asyncsync.stores.guard.checksum_probe import probe_checks

azure_fake = pytest.importorskip("azure_fake")
Fault = azure_fake.Fault
MIB = 1 << 20
SAS = "sv=2021-12-02&ss=b&srt=sco&sp=rwdlac&se=2030-01-01T00%3A00%3A00Z&sig=TOPSECRET%3D"


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
    with pytest.raises(StoreError, match="the pages repeat"):
        while token is not None:
            token = (await store.list(token=token)).token


@pytest.mark.parametrize("marker", [b"m%d", b"again"])
async def test_pages_with_blobs_that_lead_back_end_the_listing(azure_strict, store, marker):
    """The caller asks for each page anew; the position that it passes on remembers the earlier ones."""
    await store.put("k", b"data")
    markers = (marker % number if b"%" in marker else marker for number in range(40))
    azure_strict.faults = [
        Fault(
            "comp=list",
            40,
            change=lambda body: body.replace(
                b"<NextMarker></NextMarker>", b"<NextMarker>%s</NextMarker>" % next(markers)
            ),
        )
    ]
    page = await store.list()
    with pytest.raises(StoreError, match="the pages repeat"):
        while page.token is not None:
            page = await store.list(token=page.token)
    assert len(azure_strict.requests("comp=list")) < 16


# Faults


@pytest.mark.parametrize(("status", "kind"), [(500, UnavailableError), (503, ThrottledError), (400, StoreError)])
async def test_a_refused_request_is_mapped(azure_strict, store, status, kind):
    azure_strict.faults = [Fault(".", status=status, headers={"code": ""})]
    with pytest.raises(kind):
        await store.put("a", b"")


async def test_a_page_of_another_server_is_no_blob(azure_strict, store):
    """Other web servers send an ETag too, but no version of the service."""
    await store.put("a", b"1")
    azure_strict.faults = [Fault(".", status=200, headers={"ETag": '"5f-60"'}, body=b"<html>please log in</html>")]
    with pytest.raises(UnavailableError, match="no x-ms-version"):
        await store.get("a")


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
        upload = await store.create_multipart("b")
        await store.complete_multipart(upload, [await store.put_part(upload, 1, 0, b"1")])
        await store.copy("a", "c")
    tiers = {name: blob.headers.get("x-ms-access-tier") for name, blob in container.blobs.items()}
    assert tiers == {"p/a": "Cool", "p/.asyncsync/manifest.json": None, "p/b": "Cool", "p/c": "Cool"}


async def test_a_store_shows_no_secret(azure_strict, store):
    assert azure_fake.KEY not in repr(store)
    assert store.uri == "az://conformance/p"


async def test_a_large_file_is_read_twice_only(azure_strict, tmp_path, monkeypatch):
    """Once for all its checksums, and once by the kernel, which sends it."""
    from asyncsync import TransferConfig, push
    from asyncsync.stores.azure import checksums

    monkeypatch.setattr(checksums, "_of_file", lambda body: pytest.fail("read for a checksum alone"))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/parts").write_bytes(os.urandom(11 * MIB))
    (tmp_path / "tree/one").write_bytes(os.urandom(7 * MIB))
    transfer = TransferConfig(multipart_threshold=8 * MIB, part_size=5 * MIB)
    report = await push(
        tmp_path / "tree", "az://conformance/p", storage_options=azure_strict.storage_options, transfer=transfer
    )
    assert report.bytes_sent == 18 * MIB
    async with open_store("az://conformance/p", options=azure_strict.storage_options) as store:
        assert (await store.get("parts"))[0] == (tmp_path / "tree/parts").read_bytes()
