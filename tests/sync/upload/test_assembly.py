"""Only changed bytes are sent; the store copies the others itself."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from asyncsync import SyncConfig, Syncer, TransferConfig, push
from asyncsync.disk.digests import digest, stat_file
from asyncsync.disk.journal import Journal
from asyncsync.errors import NotFoundError
from asyncsync.planning import appended
from asyncsync.planning.manifest import FileEntry, Manifest
from asyncsync.stores.base import ObjectInfo, Part
from asyncsync.sync.upload.copy_sources import TreeCopySources
from asyncsync.sync.upload.large_file import LargeFile
from asyncsync.sync.upload.open_uploads import OpenUploads
from asyncsync.testing import Faults, MemoryStore, run_virtual

MIB, GIB = 1 << 20, 1 << 30
CONFIG = TransferConfig(multipart_threshold=8 * MIB, part_size=5 * MIB)
MANIFEST = ".asyncsync/manifest.json"


def send(root: Path, uri: str = "memory://b/p", **options):
    return run_virtual(push(root, uri, transfer=CONFIG, **options))


def stored(prefix: str = "p") -> dict[str, bytes]:
    return {key: data for key, data in MemoryStore("b", prefix).contents.items() if not key.startswith(".asyncsync")}


def local(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def asked(faults: Faults, operation: str) -> int:
    return sum(request.operation == operation for request in faults.requests)


def test_a_changed_byte_sends_its_part_alone(faults, tree) -> None:
    (tree / "f").write_bytes(noise(32 * MIB))
    send(tree)
    patch(tree / "f", 12 * MIB, b"!")
    faults.requests.clear()
    report = send(tree)
    assert stored() == local(tree)
    assert (report.bytes_sent, report.bytes_copied) == (5 * MIB, 27 * MIB)
    assert (asked(faults, "put_part"), asked(faults, "copy_part")) == (1, 2)


def test_only_appended_bytes_are_sent(faults, tree) -> None:
    """Also where the file did not end with a part: its old end is found in the middle of one."""
    (tree / "f").write_bytes(noise(32 * MIB + 7))
    send(tree)
    with (tree / "f").open("ab") as file:
        file.write(noise(MIB, 1))
    report = send(tree)
    assert stored() == local(tree)
    assert (report.bytes_sent, report.bytes_copied) == (MIB, 32 * MIB + 7)


def test_a_touched_file_costs_no_request(faults, tree) -> None:
    (tree / "f").write_bytes(noise(32 * MIB))
    send(tree)
    os.utime(tree / "f", ns=(5, 5))
    faults.requests.clear()
    report = send(tree)
    assert (report.files_sent, report.bytes_sent, report.bytes_copied) == (0, 0, 0)
    assert [request.operation for request in faults.requests] == ["head"]


def test_a_file_with_other_bytes_everywhere_is_sent_once(faults, tree) -> None:
    (tree / "f").write_bytes(noise(32 * MIB))
    send(tree)
    (tree / "f").write_bytes(noise(32 * MIB, 1))
    report = send(tree)
    assert stored() == local(tree)
    assert (report.bytes_sent, report.bytes_copied) == (32 * MIB, 0)


@pytest.mark.parametrize("edit", ["append", "patch", "touch", "rename", "rewrite", "grow past the threshold"])
def test_the_plan_equals_the_sync(faults, tree, edit) -> None:
    """Bytes and requests."""
    small = 7 * MIB if edit == "grow past the threshold" else 32 * MIB
    (tree / "f").write_bytes(noise(small))
    (tree / "stays").write_bytes(noise(5000))

    def change() -> None:
        if edit == "touch":
            os.utime(tree / "f", ns=(5, 5))
        elif edit == "patch":
            patch(tree / "f", 12 * MIB, b"!")
        elif edit == "rename":
            os.rename(tree / "f", tree / "g")
        elif edit == "rewrite":
            (tree / "f").write_bytes(noise(32 * MIB, 1))
        else:
            with (tree / "f").open("ab") as file:
                file.write(noise(3 * MIB, 1))

    async def planned():
        async with Syncer(tree, "memory://b/p", SyncConfig(delete=True), transfer=CONFIG) as syncer:
            return await syncer.plan()

    for step in (lambda: None, change):
        step()
        plan = run_virtual(planned())
        report = send(tree, sync_config=SyncConfig(delete=True))
        names = ("bytes_total", "bytes_sent", "bytes_copied", "requests")
        assert [getattr(plan, name) for name in names] == [getattr(report, name) for name in names]
        assert len(plan.delete) == report.files_deleted


def test_parts_that_changed_places_are_found(faults, tree) -> None:
    data = noise(30 * MIB)
    (tree / "f").write_bytes(data)
    send(tree)
    (tree / "f").write_bytes(data[15 * MIB :] + data[: 15 * MIB])
    report = send(tree)
    assert stored() == local(tree)
    assert (report.bytes_sent, report.bytes_copied) == (0, 30 * MIB)


@pytest.mark.parametrize("operation", ["copy_part", "copy"])
@pytest.mark.parametrize("how", ["gone", "replaced"])
def test_a_source_that_is_lost_costs_its_bytes_and_nothing_else(faults, tree, operation, how) -> None:
    (tree / "f").write_bytes(noise(32 * MIB))
    send(tree)
    store = MemoryStore("b", "p")
    if how == "gone":
        del store.bucket.objects["p/f"]
    else:
        store._store("f", b"x" * (40 * MIB), "other")
    if operation == "copy_part":
        patch(tree / "f", 0, b"!")
    else:
        os.rename(tree / "f", tree / "g")
    report = send(tree, sync_config=SyncConfig(delete=True))
    assert stored() == local(tree)
    assert (report.bytes_sent, report.bytes_copied) == (32 * MIB, 0)


def test_a_copy_source_lost_during_assembly_is_sent_instead(faults, tree) -> None:
    """Stores that compose check the sources only then."""
    (tree / "f").write_bytes(noise(32 * MIB))
    send(tree)
    patch(tree / "f", 0, b"!")
    faults.fail(1, NotFoundError("a source is gone"), operation="complete_multipart")
    report = send(tree)
    assert stored() == local(tree)
    assert report.bytes_sent >= 32 * MIB


def test_copies_that_give_other_bytes_are_noticed_and_the_file_is_sent(faults, tree) -> None:
    (tree / "f").write_bytes(noise(32 * MIB))
    send(tree)
    MemoryStore("b", "p").damage("f", noise(32 * MIB, 9))
    patch(tree / "f", 0, b"!")
    send(tree)
    assert stored() == local(tree)


def test_renamed_files_are_copied_by_the_store(faults, tree) -> None:
    (tree / "old").mkdir()
    for number in range(200):
        (tree / f"old/{number}").write_bytes(noise(1000 + number, number))
    (tree / "old/large").write_bytes(noise(20 * MIB))
    (tree / "old/medium").write_bytes(noise(3 * MIB))
    send(tree)
    os.rename(tree / "old", tree / "new")
    report = send(tree, sync_config=SyncConfig(delete=True))
    assert stored() == local(tree)
    assert (report.files_sent, report.bytes_sent, report.files_copied) == (0, 0, 202)
    assert report.bytes_copied == report.bytes_total


def test_many_old_names_are_deleted_in_several_requests_side_by_side(faults, tree) -> None:
    (tree / "old").mkdir()
    for number in range(2100):
        (tree / f"old/{number}").touch()
    send(tree)
    os.rename(tree / "old", tree / "new")
    under_way = []
    delete = MemoryStore.delete

    async def slow(store, keys) -> None:
        under_way.append(len(keys))
        await asyncio.sleep(1)
        most.append(len(under_way))
        await delete(store, keys)
        under_way.pop()

    most: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MemoryStore, "delete", slow)
        report = send(tree, sync_config=SyncConfig(delete=True))
    assert (report.files_deleted, max(most)) == (2100, 3)
    assert stored() == local(tree)


def test_files_that_swap_their_names_keep_their_bytes(faults, tree) -> None:
    """The source of one is replaced by the other: neither is copied."""
    for name, seed in (("a", 1), ("b", 2)):
        (tree / name).write_bytes(noise(10_000, seed))
        (tree / f"{name}.large").write_bytes(noise(12 * MIB, seed))
    send(tree)
    for suffix in ("", ".large"):
        os.rename(tree / f"a{suffix}", tree / "x")
        os.rename(tree / f"b{suffix}", tree / f"a{suffix}")
        os.rename(tree / "x", tree / f"b{suffix}")
    send(tree)
    assert stored() == local(tree)


def test_an_interrupted_assembly_resumes_where_it_stopped(faults, tree) -> None:
    (tree / "f").write_bytes(noise(60 * MIB))
    send(tree)
    for at in range(5, 60, 10):
        patch(tree / "f", at * MIB, b"!")
    faults.fail(1, operation="complete_multipart", times=None)
    with pytest.raises(Exception, match="f"):
        send(tree)
    faults.planned.clear()
    faults.requests.clear()
    report = send(tree)
    assert stored() == local(tree)
    assert (asked(faults, "put_part"), asked(faults, "copy_part"), report.bytes_sent) == (0, 0, 0)
    assert not MemoryStore("b").bucket.uploads


@pytest.mark.parametrize("operation", ["create_multipart", "copy_part", "put_part", "complete_multipart"])
def test_the_next_sync_repairs_the_file_after_any_failure(faults, tree, operation) -> None:
    (tree / "f").write_bytes(noise(32 * MIB))
    send(tree)
    patch(tree / "f", 12 * MIB, b"!")
    faults.fail(1, operation=operation, times=None, error=ValueError("a bug"))
    with pytest.raises(BaseException):
        send(tree)
    faults.planned.clear()
    send(tree)
    assert stored() == local(tree)
    assert not MemoryStore("b").bucket.uploads


def entry(path: str):
    return Manifest.from_bytes(MemoryStore("b", "p").contents[MANIFEST]).files[path]


def counted(monkeypatch) -> list[int]:
    """The sizes of all reads from now on."""
    read: list[int] = []
    pread = os.pread

    def counting(descriptor: int, size: int, offset: int) -> bytes:
        data = pread(descriptor, size, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counting)
    return read


class Kept(MemoryStore):
    """Records its would-be contents and holds nothing: for files that are larger than memory."""

    async def put_part(self, upload, number, offset, body, *, crc32c=None):
        size = sum(len(piece) for piece in body.pieces())
        return Part(number, offset, size, f"sent {size}", crc32c)

    async def copy_part(self, upload, number, offset, source, start, length, *, if_source_version=None):
        return Part(number, offset, length, f"copied {start}+{length}", None)

    async def complete_multipart(self, upload, parts, *, crc32c=None, if_version=None):
        self.parts = parts
        return ObjectInfo(upload.key, sum(part.size for part in parts), "new", crc32c)


SAMPLED = appended.SAMPLE_COUNT * appended.SAMPLE_BYTES
"""Bytes: 16 KiB, read before and after."""


@pytest.mark.parametrize("tail", [0, 3, 9 * MIB])
def test_a_log_of_10_gib_that_grew_by_1_mib_is_read_at_its_end(tmp_path, monkeypatch, tail) -> None:
    """It reads the new bytes and the last partial part of ``tail`` bytes, and the new bytes once more to send them."""
    old, part = 10 * GIB + tail, 16 * MIB
    path = tmp_path / "train.log"
    path.touch()
    os.truncate(path, old + MIB)
    stat = stat_file(str(tmp_path), "train.log")
    full = digest(bytes(part))
    parts = [full] * (10 * GIB // part) + ([digest(bytes(tail))] if tail else [])
    known = FileEntry(
        "train.log",
        old,
        0,
        0o644,
        0,
        part,
        tuple(d.xxh3 for d in parts),
        tuple(d.crc32c for d in parts),
        "old",
        stat.inode,
        digest(bytes(SAMPLED)).xxh3,
    )
    sent, read = [], counted(monkeypatch)

    async def main() -> None:
        store, sources = Kept("b", "p"), TreeCopySources("", {"train.log": known})
        async with Journal.open(None) as journal:
            large = LargeFile(
                store,
                "",
                str(tmp_path),
                TransferConfig(),
                OpenUploads(store.uri, journal),
                lambda *counts: sent.append(counts),
                sources,
            )
            await large.send(stat, known)
        assert sum(p.size for p in store.parts) == old + MIB

    run_virtual(main())
    assert [sum(column) for column in zip(*sent, strict=True)] == [MIB, 0, old]
    assert sum(read) == tail + MIB + MIB + 2 * SAMPLED


def test_the_middle_of_a_log_that_grew_is_not_read_again(faults, tree, monkeypatch) -> None:
    monkeypatch.setattr(appended, "TRUSTED_FROM", 20 * MIB)
    (tree / "train.log").write_bytes(noise(42 * MIB))
    send(tree)
    with (tree / "train.log").open("ab") as file:
        file.write(noise(MIB, 1))
    read = counted(monkeypatch)
    report = send(tree)
    assert stored() == local(tree)
    assert report.bytes_sent == MIB
    assert (
        sum(read) == (2 + 1 + 1) * MIB + 2 * SAMPLED
    )  # the last part and the new bytes; the new bytes again to send them
    assert entry("train.log").size == 43 * MIB


def insert(path: Path, at: int, data: bytes) -> None:
    before = path.read_bytes()
    with path.open("r+b") as file:  # the same inode
        file.write(before[:at] + data + before[at:])


def remove(path: Path, at: int, size: int) -> None:
    before = path.read_bytes()
    with path.open("r+b") as file:
        file.write(before[:at] + before[at + size :])
        file.truncate()


def swap(path: Path, one: int, other: int, size: int) -> None:
    before = path.read_bytes()
    patch(path, one, before[other : other + size])
    patch(path, other, before[one : one + size])


def replace_by_another_inode(path: Path) -> None:
    data = path.read_bytes()
    path.rename(path.parent.parent / "away")
    path.write_bytes(noise(20 * MIB, 5) + data[20 * MIB :])


EDITS = {
    "the first byte": lambda path: patch(path, 0, b"!"),
    "the last byte": lambda path: patch(path, 42 * MIB - 1, b"!"),
    "a byte of the last part": lambda path: patch(path, 40 * MIB + 12345, b"!"),
    "an insert at the start": lambda path: insert(path, 0, b"!"),
    "an insert in the middle": lambda path: insert(path, 20 * MIB + 17, b"!"),
    "a removal in the middle": lambda path: remove(path, 20 * MIB + 17, 3),
    "a swap": lambda path: swap(path, 5 * MIB, 25 * MIB, 2 * MIB),
    "a hole": lambda path: patch(path, 17 * MIB, bytes(2 * MIB)),
    "other bytes everywhere": lambda path: patch(path, 0, noise(42 * MIB, 7)),
    "emptied and written again": lambda path: os.truncate(path, 0) or patch(path, 0, noise(42 * MIB, 7)),
    "cut and written again": lambda path: os.truncate(path, 30 * MIB) or patch(path, 30 * MIB, noise(12 * MIB, 7)),
    "another file": replace_by_another_inode,
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_log_that_was_edited_and_grew_is_not_taken_for_an_append(faults, tree, monkeypatch, edit) -> None:
    monkeypatch.setattr(appended, "TRUSTED_FROM", 20 * MIB)
    path = tree / "train.log"
    path.write_bytes(noise(42 * MIB))
    send(tree)
    EDITS[edit](path)
    with path.open("ab") as file:
        file.write(noise(MIB, 1))
    send(tree)
    assert stored() == local(tree)


def test_a_changed_byte_inside_a_grown_file_is_found(faults, tree, monkeypatch) -> None:
    monkeypatch.setattr(appended, "TRUSTED_FROM", 20 * MIB)
    (tree / "data.bin").write_bytes(noise(42 * MIB))
    send(tree)
    patch(tree / "data.bin", 20 * MIB, b"!")
    with (tree / "data.bin").open("ab") as file:
        file.write(noise(MIB, 1))
    send(tree)
    assert stored() == local(tree)


def test_a_log_that_is_edited_without_growing_is_read_whole(faults, tree, monkeypatch) -> None:
    """Also by the sync after one that trusted it."""
    monkeypatch.setattr(appended, "TRUSTED_FROM", 20 * MIB)
    path = tree / "train.log"
    path.write_bytes(noise(42 * MIB))
    send(tree)
    with path.open("ab") as file:
        file.write(noise(MIB, 1))
    send(tree)
    patch(path, 20 * MIB, b"!")
    send(tree)
    assert stored() == local(tree)


def test_a_dry_run_trusts_the_same_files_as_the_sync(faults, tree, monkeypatch) -> None:
    monkeypatch.setattr(appended, "TRUSTED_FROM", 20 * MIB)
    path = tree / "train.log"
    path.write_bytes(noise(42 * MIB))
    send(tree)
    with path.open("ab") as file:
        file.write(noise(MIB, 1))
    read = counted(monkeypatch)

    async def planned():
        async with Syncer(tree, "memory://b/p", transfer=CONFIG) as syncer:
            return await syncer.plan()

    assert run_virtual(planned()).bytes_sent == MIB
    assert sum(read) == 3 * MIB + SAMPLED


def test_checksum_reads_even_a_log_whole(faults, tree, monkeypatch) -> None:
    monkeypatch.setattr(appended, "TRUSTED_FROM", 20 * MIB)
    (tree / "train.log").write_bytes(noise(42 * MIB))
    send(tree)
    patch(tree / "train.log", 20 * MIB, b"!")
    with (tree / "train.log").open("ab") as file:
        file.write(b"more")
    send(tree, checksum=True)
    assert stored() == local(tree)


def test_equal_size_time_and_name_do_not_hide_another_file(faults, tree) -> None:
    (tree / "f").write_bytes(b"old")
    os.utime(tree / "f", ns=(10**18, 10**18))
    send(tree)
    (tree / "g").write_bytes(b"new")
    os.utime(tree / "g", ns=(10**18, 10**18))
    os.rename(tree / "g", tree / "f")
    send(tree)
    assert stored() == {"f": b"new"}


def test_a_request_that_costs_more_than_it_saves_is_not_made(faults, tree) -> None:
    dear = TransferConfig(multipart_threshold=8 * MIB, part_size=5 * MIB, request_cost_bytes=100 * MIB)
    (tree / "f").write_bytes(noise(32 * MIB))
    run_virtual(push(tree, "memory://b/p", transfer=dear))
    patch(tree / "f", 0, b"!")
    report = run_virtual(push(tree, "memory://b/p", transfer=dear))
    assert (report.bytes_sent, report.bytes_copied) == (32 * MIB, 0)


def test_a_directory_as_store_copies_ranges_too(tree, tmp_path) -> None:
    async def main() -> None:
        async with Syncer(tree, str(tmp_path / "store"), transfer=CONFIG) as syncer:
            (tree / "f").write_bytes(noise(32 * MIB))
            await syncer.sync_up()
            patch(tree / "f", 12 * MIB, b"!")
            os.rename(tree / "f", tree / "g")
            report = await syncer.sync_up()
            assert (report.bytes_sent, report.bytes_copied) == (5 * MIB, 27 * MIB)

    run_virtual(main())
    assert (tmp_path / "store/g").read_bytes() == (tree / "g").read_bytes()
