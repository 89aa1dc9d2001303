"""Features of the local store only: names, links, listings, copies, uploads."""

import errno
import os
import threading
from pathlib import Path

import pytest

from asyncsync.disk.files import FileRange
from asyncsync.errors import (
    ConfigError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    SourceChangedError,
    StoreError,
    UnavailableError,
)
from asyncsync.stores.base import MISSING
from asyncsync.stores.local import files as local_files
from asyncsync.stores.local import listing as local_listing
from asyncsync.stores.local import sweep as local_sweep
from asyncsync.stores.local.keys import InvalidKeyError
from asyncsync.stores.local.store import LocalStore

MIB = 1 << 20


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


async def keys(store, prefix=""):
    return [info.key for info in (await store.list(prefix)).objects]


# plain files


async def test_objects_are_plain_files(store, root):
    await store.put("a/b", b"data")
    assert (root / "a" / "b").read_bytes() == b"data"
    assert files(root) == ["a/b"]


async def test_files_of_others_are_objects(store, root):
    root.mkdir()
    (root / "x").write_bytes(b"data")
    assert (await store.get("x"))[0] == b"data"
    assert await keys(store) == ["x"]


async def test_permissions_follow_the_umask(store, root):
    old = os.umask(0o027)
    try:
        await store.put("x", b"")
    finally:
        os.umask(old)
    assert (root / "x").stat().st_mode & 0o777 == 0o640


async def test_a_version_is_inode_mtime_and_size(store, root):
    info = await store.put("x", b"12345")
    found = (root / "x").stat()
    assert info.version == f"{found.st_ino:x}-{found.st_mtime_ns:x}-5"


async def test_versions_of_quick_writes_differ(store):
    versions = {(await store.put("x", b"same size")).version for _ in range(50)}
    assert len(versions) == 50


async def test_empty_directories_are_removed_up_to_the_root(store, root):
    await store.put("a/b/c/x", b"")
    await store.put("a/y", b"")
    await store.delete(["a/b/c/x"])
    assert tree(root) == ["a", "a/y"]
    await store.delete(["a/y"])
    assert root.exists()
    assert tree(root) == []


async def test_a_root_that_does_not_exist_is_an_empty_store(store, root):
    assert await keys(store) == []
    with pytest.raises(NotFoundError):
        await store.head("x")
    assert not root.exists()


def test_a_relative_root_is_refused():
    with pytest.raises(ConfigError, match="relative"):
        LocalStore(Path("here"))


# names


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", "/etc/passwd", "a\0b", "", "a//b", "a/", "./a", "a/./b", "..", "x.asyncsync-tmp"]
)
async def test_names_outside_the_root_are_refused(store, root, key):
    with pytest.raises(InvalidKeyError):
        await store.put(key, b"")
    with pytest.raises(ValueError):
        await store.get(key)
    assert not root.exists()


@pytest.mark.parametrize("key", [".asyncsync/.lock", ".asyncsync/uploads/x", "trial/.asyncsync/uploads/x"])
async def test_the_stores_own_names_are_reserved(store, key):
    with pytest.raises(InvalidKeyError, match="reserved"):
        await store.put(key, b"")


async def test_a_name_that_is_not_utf8_is_refused(store):
    with pytest.raises(InvalidKeyError, match="UTF-8"):
        await store.put("a\udc80", b"")


async def test_a_long_segment_is_refused_in_words(store):
    await store.put("ü" * 127, b"")
    with pytest.raises(StoreError, match="256 bytes"):
        await store.put("ü" * 128, b"")


async def test_a_path_that_is_too_long_is_an_error_of_the_store(store):
    with pytest.raises(StoreError, match="too long"):
        await store.put("/".join(["x" * 200] * 25), b"")


async def test_an_object_below_an_object_is_an_error_of_the_store(store):
    await store.put("a", b"")
    with pytest.raises(StoreError, match="an object is in the place of a directory of the key"):
        await store.put("a/b", b"")
    with pytest.raises(NotFoundError):
        await store.head("a/b")


async def test_a_directory_is_not_an_object(store):
    await store.put("a/b", b"")
    with pytest.raises(NotFoundError):
        await store.head("a")
    await store.delete(["a"])
    assert await keys(store) == ["a/b"]


@pytest.mark.parametrize("if_version", [None, MISSING])
async def test_an_object_cannot_replace_a_directory(store, if_version):
    await store.put("a/b", b"")
    with pytest.raises(StoreError, match="directory"):
        await store.put("a", b"", if_version=if_version)
    assert await keys(store) == ["a/b"]


# links


async def test_reads_do_not_follow_a_link_out_of_the_root(store, root, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "out").symlink_to(tmp_path)
    for key in ("link", "out/secret"):
        with pytest.raises(StoreError, match="leads out"):
            await store.get(key)
    assert await keys(store) == []


async def test_writes_do_not_follow_a_link_out_of_the_root(store, root, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_bytes(b"precious")
    root.mkdir()
    (root / "out").symlink_to(tmp_path / "outside")
    for attempt in (store.put("out/x", b""), store.put("out/new/y", b""), store.delete(["out/x"])):
        with pytest.raises(StoreError, match="leads out"):
            await attempt
    assert files(tmp_path / "outside") == ["x"]


async def test_a_put_replaces_a_link_and_not_its_target(store, root, tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    root.mkdir()
    (root / "x").symlink_to(tmp_path / "precious")
    await store.put("x", b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (root / "x").read_bytes() == b"new"


async def test_a_link_inside_the_root_is_followed(store, root):
    await store.put("x", b"data")
    (root / "link").symlink_to("x")
    assert (await store.get("link"))[0] == b"data"
    assert await keys(store) == ["link", "x"]


async def test_a_root_may_be_a_link_itself(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store = LocalStore(tmp_path / "link")
    await store.put("a/x", b"data")
    assert (await store.get("a/x"))[0] == b"data"


async def test_pipes_are_neither_listed_nor_opened(store, root):
    root.mkdir()
    os.mkfifo(root / "pipe")
    assert await keys(store) == []
    with pytest.raises(NotFoundError):
        await store.get("pipe")


# listing


async def test_temporary_files_uploads_and_locks_are_not_listed(store, root):
    await store.put(".asyncsync/manifest.json", b"1")
    old = await store.head(".asyncsync/manifest.json")
    await store.put(".asyncsync/manifest.json", b"22", if_version=old.version)
    await store.create_multipart("x")
    (root / ".crashed.asyncsync-tmp").write_bytes(b"half")
    assert (root / ".asyncsync" / ".lock").exists()
    assert await keys(store) == [".asyncsync/manifest.json"]


async def test_names_that_are_not_utf8_are_not_listed(store, root):
    root.mkdir()
    Path(os.fsdecode(os.fsencode(root) + b"/bad\xff")).write_bytes(b"")
    assert await keys(store) == []


async def test_empty_directories_are_not_listed_as_prefixes(store, root):
    (root / "empty" / "deeper").mkdir(parents=True)
    await store.put("full/x", b"")
    assert (await store.list("", delimiter="/")).prefixes == ("full/",)


@pytest.mark.parametrize("prefix", ["a//", "./a/", "a/./"])
async def test_a_prefix_spelled_another_way_matches_nothing(store, prefix):
    await store.put("a/b", b"")
    assert await keys(store, prefix) == []


async def test_a_prefix_that_leads_out_is_refused(store):
    with pytest.raises(InvalidKeyError):
        await store.list("../")


async def test_only_the_slash_is_a_delimiter(store):
    with pytest.raises(StoreError, match="delimiter"):
        await store.list("", delimiter="-")


# copying


async def test_a_whole_file_and_a_part_of_it_are_copied_by_the_kernel(store, root, tmp_path, monkeypatch):
    data = os.urandom(3 * MIB)
    (tmp_path / "f").write_bytes(data)

    def refuse(*args):
        raise AssertionError("the bytes were read")

    monkeypatch.setattr(local_files, "write_bytes", refuse)
    await store.put("whole", FileRange(str(tmp_path / "f"), 0, len(data)))
    await store.put("part", FileRange(str(tmp_path / "f"), 5, MIB))
    assert (root / "whole").read_bytes() == data
    assert (root / "part").read_bytes() == data[5 : 5 + MIB]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
async def test_bytes_are_read_and_written_where_the_kernel_cannot_copy(store, root, tmp_path, monkeypatch, code):
    data = os.urandom(2 * MIB + 3)
    (tmp_path / "f").write_bytes(data)

    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    await store.put("x", FileRange(str(tmp_path / "f"), 1, len(data) - 1))
    assert (root / "x").read_bytes() == data[1:]


async def test_a_system_without_copy_file_range_copies_too(store, root, tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"data")
    monkeypatch.delattr(os, "copy_file_range")
    await store.put("x", FileRange(str(tmp_path / "f"), 0, 4))
    assert (root / "x").read_bytes() == b"data"


async def test_a_source_that_changes_while_it_is_copied_is_refused(store, root, tmp_path, monkeypatch):
    source = tmp_path / "f"
    source.write_bytes(b"before")
    real = os.copy_file_range

    def meddle(*args):
        result = real(*args)
        os.utime(source, ns=(1, 1))
        return result

    monkeypatch.setattr(os, "copy_file_range", meddle)
    with pytest.raises(SourceChangedError):
        await store.put("x", FileRange(str(source), 0, 6))
    assert files(root) == []


async def test_a_wrong_checksum_of_bytes_leaves_nothing(store, root):
    with pytest.raises(IntegrityError):
        await store.put("x", b"data", crc32c=1)
    assert not root.exists()


# uploads


async def test_an_upload_survives_the_process(root, tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    before = LocalStore(root)
    upload = await before.create_multipart("d/x")
    await before.put_part(upload, 2, 4, FileRange(str(tmp_path / "f"), 4, 6), crc32c=7)
    after = LocalStore(root)
    (found,) = await after.list_multiparts()
    assert (found.key, found.upload_id) == ("d/x", upload.upload_id)
    (part,) = await after.list_parts(found)
    assert (part.number, part.offset, part.size, part.crc32c) == (2, 4, 6, 7)
    first = await after.put_part(found, 1, 0, b"0123")
    await after.complete_multipart(found, [first, part])
    assert (await after.get("d/x"))[0] == b"0123456789"


async def test_a_finished_or_aborted_upload_leaves_no_trace(store, root):
    upload = await store.create_multipart("x")
    part = await store.put_part(upload, 1, 0, b"data")
    await store.abort_multipart(await store.create_multipart("y"))
    await store.complete_multipart(upload, [part])
    assert tree(root) == ["x"]


async def test_parts_that_leave_a_hole_are_refused(store):
    upload = await store.create_multipart("x")
    parts = [await store.put_part(upload, 1, 0, b"data"), await store.put_part(upload, 2, 5, b"more")]
    with pytest.raises(StoreError, match="the one before ends at 4"):
        await store.complete_multipart(upload, parts)


async def test_a_replaced_part_that_was_longer_leaves_no_tail(store):
    upload = await store.create_multipart("x")
    await store.put_part(upload, 1, 0, b"a long part")
    part = await store.put_part(upload, 1, 0, b"short")
    info = await store.complete_multipart(upload, [part])
    assert info.size == 5
    assert (await store.get("x"))[0] == b"short"


async def test_a_part_whose_writing_broke_off_is_not_listed(store, monkeypatch):
    upload = await store.create_multipart("x")
    await store.put_part(upload, 1, 0, b"data")

    def refuse(*args):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(UnavailableError):
            await store.put_part(upload, 1, 0, b"other")
    assert await store.list_parts(upload) == []


@pytest.mark.parametrize("upload_id", ["", "..", "../../x", "0" * 31, "g" * 32])
async def test_an_upload_id_is_never_a_path(store, upload_id):
    upload = await store.create_multipart("x")
    other = type(upload)("x", upload_id)
    with pytest.raises(NotFoundError):
        await store.put_part(other, 1, 0, b"")


async def test_an_upload_that_loses_a_race_can_still_be_aborted(store, root):
    upload = await store.create_multipart("x")
    part = await store.put_part(upload, 1, 0, b"mine")
    await store.put("x", b"theirs")
    with pytest.raises(PreconditionError):
        await store.complete_multipart(upload, [part], if_version=MISSING)
    await store.abort_multipart(upload)
    assert files(root) == ["x"]
    assert (await store.get("x"))[0] == b"theirs"


async def test_a_sweep_removes_only_remains_of_killed_writers(store, root):
    await store.put("deep/object", b"whole")
    upload = await store.create_multipart("deep/large")
    await store.put_part(upload, 1, 0, b"part")
    (root / "deep/.0123456789abcdef.asyncsync-tmp").write_bytes(b"half")
    nameless = root / ".asyncsync/uploads" / ("0" * 32)
    nameless.mkdir()
    (nameless / "key.asyncsync-tmp").write_bytes(b"dee")
    (nameless / "data").write_bytes(b"")
    await store.sweep()
    await store.sweep()
    assert not list(root.rglob("*asyncsync-tmp"))
    assert not nameless.exists()
    assert (await store.get("deep/object"))[0] == b"whole"
    assert len(await store.list_parts(upload)) == 1


async def test_a_sweep_leaves_a_living_writer_alone(store, root, monkeypatch):
    seal, found = local_files.seal, []

    def swept(fd):
        found.append(local_sweep.sweep(str(root), threading.Event()))
        return seal(fd)

    monkeypatch.setattr(local_files, "seal", swept)
    await store.put("a", b"whole")
    assert found == [0]
    assert (await store.get("a"))[0] == b"whole"


def count_scans(monkeypatch) -> list[str]:
    scans, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (scans.append(str(path)), real(path))[1])
    return scans


async def test_a_listing_of_many_pages_reads_each_directory_once(tmp_path, monkeypatch):
    for number in range(2500):
        (tmp_path / f"{number:04d}").touch()
    async with LocalStore(tmp_path) as store:
        scans, found, token = count_scans(monkeypatch), [], None
        for _ in range(3):
            page = await store.list(token=token)
            found += [info.key for info in page.objects]
            token = page.token
    assert token is None
    assert found == [f"{number:04d}" for number in range(2500)]
    assert len(scans) == 1


async def test_a_page_that_is_asked_for_again_is_read_again(tmp_path):
    for number in range(1500):
        (tmp_path / f"{number:04d}").touch()
    async with LocalStore(tmp_path) as store:
        first = await store.list()
        once = await store.list(token=first.token)
        (tmp_path / "1200").unlink()
        again = await store.list(token=first.token)
    assert {info.key for info in once.objects} - {info.key for info in again.objects} == {"1200"}


async def test_an_old_page_continues_with_a_new_look(tmp_path, monkeypatch):
    for number in range(1500):
        (tmp_path / f"{number:04d}").touch()
    async with LocalStore(tmp_path) as store:
        first = await store.list()
        (tmp_path / "1200").unlink()
        monkeypatch.setattr(local_listing, "WALK_SECONDS", -1.0)
        rest = await store.list(token=first.token)
    assert "1200" not in {info.key for info in rest.objects}


async def test_listings_that_nobody_continues_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(local_listing, "PAGE_SIZE", 1)
    for number in range(20):
        (tmp_path / f"{number:02d}" / "x").mkdir(parents=True)
        (tmp_path / f"{number:02d}" / "x" / "a").touch()
        (tmp_path / f"{number:02d}" / "x" / "b").touch()
    async with LocalStore(tmp_path) as store:
        for number in range(20):
            assert (await store.list(f"{number:02d}/")).token is not None
        assert len(store._listings._open) == local_listing.MOST_OPEN_WALKS
