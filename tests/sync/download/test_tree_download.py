"""Downloading a tree: complete, checked and inside the target, or not at all."""

import asyncio
import errno
import os
import stat

import pytest
from msgspec import structs
from stored import MTIME, entry_of, files_of, put_tree

from asyncsync.disk.landing import Landing
from asyncsync.errors import (
    CheckpointIncompleteError,
    IntegrityError,
    SyncError,
    SyncFailedError,
    UnavailableError,
)
from asyncsync.planning.manifest import Manifest
from asyncsync.sync.download.tree_download import download_tree
from asyncsync.testing import Faults, FaultyStore, MemoryStore

MIB = 1 << 20
BIG = os.urandom(5 * MIB + 123)
FILES = {"a.bin": b"alpha", "deep/er/b.bin": b"beta" * 1000, "empty": b"", "big.bin": BIG}


async def get(store, manifest, target, prefix="t/", **options):
    return await download_tree(store, prefix, manifest, target, **{"concurrency": 4, "part_size": MIB, **options})


@pytest.mark.parametrize("part_size", [0, 2 * MIB, 300_000])
async def test_every_file_comes_back_as_it_was(tmp_path, part_size):
    store = MemoryStore()
    manifest = await put_tree(store, "t/", FILES, part_size=part_size)
    report = await get(store, manifest, tmp_path / "out")
    assert files_of(tmp_path / "out") == FILES
    assert (report.files_fetched, report.files_skipped) == (4, 0)
    assert report.bytes_total == report.bytes_fetched == sum(map(len, FILES.values()))


async def test_mode_and_time_come_back(tmp_path):
    store = MemoryStore()
    await get(store, await put_tree(store, "t/", FILES), tmp_path)
    for name in ("a.bin", "big.bin"):
        info = (tmp_path / name).stat()
        assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o640, MTIME)


async def test_set_user_id_bits_are_never_restored(tmp_path):
    store = MemoryStore()
    await store.put("x", b"x")
    await get(store, Manifest({"x": entry_of("x", b"x", mode=0o6755)}), tmp_path, prefix="")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o755


async def test_files_that_are_there_and_right_are_not_fetched(tmp_path):
    store = MemoryStore()
    manifest = await put_tree(store, "t/", FILES)
    await get(store, manifest, tmp_path)
    (tmp_path / "a.bin").write_bytes(b"ALPHA")
    os.utime(tmp_path / "big.bin", (1, 1))
    store.log.clear()
    report = await get(store, manifest, tmp_path)
    assert [request.key for request in store.log] == ["t/a.bin"]
    assert (report.files_fetched, report.files_skipped, report.bytes_fetched) == (1, 3, 5)
    assert files_of(tmp_path) == FILES
    assert (tmp_path / "big.bin").stat().st_mtime_ns == MTIME


async def test_files_that_the_manifest_does_not_name_are_left_alone(tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    store = MemoryStore()
    await get(store, await put_tree(store, "t/", FILES), tmp_path)
    assert (tmp_path / "mine").read_bytes() == b"mine"


async def test_a_copied_tree_with_other_versions_comes_back(tmp_path):
    store = MemoryStore()
    manifest = await put_tree(store, "t/", FILES)
    moved = Manifest({path: entry_of(path, data, version="other") for path, data in FILES.items()})
    assert manifest.files.keys() == moved.files.keys()
    await get(store, moved, tmp_path)
    assert files_of(tmp_path) == FILES


@pytest.mark.parametrize("path", ["../out", "/etc/x", "a/../../x", "a//b", "./a", "a\0b", "", ".asyncsync/journal"])
async def test_paths_outside_the_target_are_refused_before_any_write(tmp_path, path):
    store = MemoryStore()
    manifest = await put_tree(store, "t/", {"good": b"good"})
    manifest.files[path] = entry_of(path, b"evil")
    with pytest.raises(SyncError, match="refused"):
        await get(store, manifest, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


async def test_a_path_that_is_file_and_directory_is_refused(tmp_path):
    manifest = Manifest({path: entry_of(path, b"x") for path in ("a", "a/b")})
    with pytest.raises(SyncError, match="'a' is a file and a directory"):
        await get(MemoryStore(), manifest, tmp_path)


async def test_a_link_that_leads_outside_is_refused_before_anything_is_written(tmp_path):
    target, outside = tmp_path / "out", tmp_path / "elsewhere"
    target.mkdir()
    outside.mkdir()
    (target / "deep").symlink_to(outside)
    store = MemoryStore()
    manifest = await put_tree(store, "t/", FILES)
    with pytest.raises(SyncError, match="outside through a symbolic link"):
        await get(store, manifest, target)
    assert files_of(outside) == {}
    assert [path.name for path in target.iterdir()] == ["deep"]


async def test_a_link_in_place_of_a_file_is_replaced_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    target = tmp_path / "out"
    target.mkdir()
    (target / "a.bin").symlink_to(tmp_path / "precious")
    store = MemoryStore()
    await get(store, await put_tree(store, "t/", FILES), target)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (target / "a.bin").is_symlink()


@pytest.mark.parametrize("name", ["a.bin", "big.bin"])
@pytest.mark.parametrize("part_size", [0, MIB])
async def test_a_damaged_object_is_an_error_that_names_it_and_nothing_lands(tmp_path, name, part_size):
    store = MemoryStore("lab")
    manifest = await put_tree(store, "t/", FILES, part_size=part_size)
    data = bytearray(FILES[name])
    data[-1] ^= 1
    store.damage(f"t/{name}", bytes(data))
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(IntegrityError, match=f"{name}.*memory://lab/t/{name}.*damaged"):
        await get(store, manifest, tmp_path)
    assert (tmp_path / name).read_bytes() == b"old"
    assert not list(tmp_path.rglob("*asyncsync-tmp"))


@pytest.mark.parametrize("cut", [-1, 1])
async def test_an_object_of_another_size_is_damage(tmp_path, cut):
    store = MemoryStore()
    manifest = await put_tree(store, "t/", {"a": b"12345"})
    store.damage("t/a", b"1234" if cut < 0 else b"123456")
    with pytest.raises(IntegrityError):
        await get(store, manifest, tmp_path)


@pytest.mark.parametrize("name", ["a.bin", "big.bin"])
async def test_bytes_damaged_on_the_way_are_read_again(tmp_path, name):
    class Flipping(MemoryStore):
        flips = 1

        async def read(self, key, sink, **options):
            async def flip(piece):
                if key == f"t/{name}" and self.flips:
                    self.flips -= 1
                    piece = bytes([piece[0] ^ 1]) + piece[1:]
                await sink(piece)

            return await super().read(key, flip, **options)

    store = Flipping()
    manifest = await put_tree(store, "t/", FILES)
    report = await get(store, manifest, tmp_path)
    assert files_of(tmp_path) == FILES
    assert report.bytes_fetched == report.bytes_total
    assert store.flips == 0


async def test_missing_objects_are_all_named(tmp_path):
    store = MemoryStore()
    manifest = await put_tree(store, "t/", FILES)
    await store.delete(["t/a.bin", "t/empty"])
    with pytest.raises(CheckpointIncompleteError, match=r"2 file\(s\) that are missing: a.bin, empty"):
        await get(store, manifest, tmp_path, concurrency=1)


async def test_a_failing_store_is_reported_with_the_paths_and_causes(tmp_path):
    faults = Faults()
    memory = MemoryStore()
    manifest = await put_tree(memory, "t/", FILES)
    faults.fail(1, UnavailableError("gone"))
    with pytest.raises(SyncFailedError, match="gone") as caught:
        await get(FaultyStore(memory, faults), manifest, tmp_path)
    assert [type(error) for error in caught.value.failures.values()] == [UnavailableError]
    assert not list(tmp_path.rglob("*asyncsync-tmp"))


async def test_a_full_disk_leaves_the_target_file_and_no_temporary_file(tmp_path, monkeypatch):
    def full(self, offset, piece, crc):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Landing, "write", full)
    store = MemoryStore()
    manifest = await put_tree(store, "t/", FILES)
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(SyncFailedError, match="No space left"):
        await get(store, manifest, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert not list(tmp_path.rglob("*asyncsync-tmp"))


async def test_a_body_that_cannot_fit_is_refused_before_it_is_sent(tmp_path):
    manifest = Manifest({"huge": structs.replace(entry_of("huge", b""), size=1 << 60)})
    store = MemoryStore()
    with pytest.raises(SyncFailedError, match="bytes are needed"):
        await get(store, manifest, tmp_path)
    assert store.log == []


async def test_a_target_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "out").write_bytes(b"file")
    store = MemoryStore()
    manifest = await put_tree(store, "t/", FILES)
    with pytest.raises(SyncFailedError):
        await get(store, manifest, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"file"


def temporary(directory):
    return sorted(path.name for path in directory.rglob("*asyncsync-tmp"))


async def cancelled(memory, manifest, target, at, **options):
    faults = Faults()
    task = asyncio.create_task(get(FaultyStore(memory, faults), manifest, target, **options))
    faults.hook(at, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_download_cancelled_at_any_request_leaves_only_complete_files(tmp_path):
    """The next download leaves no temporary files."""
    memory = MemoryStore()
    manifest = await put_tree(memory, "t/", FILES, part_size=MIB)
    memory.log.clear()
    await get(memory, manifest, tmp_path / "whole")
    for number in range(1, len(memory.log) + 1):
        target = tmp_path / str(number)
        await cancelled(memory, manifest, target, number)
        found = {path: data for path, data in files_of(target).items() if not path.endswith("asyncsync-tmp")}
        assert found == {path: FILES[path] for path in found}
        await get(memory, manifest, target)
        assert files_of(target) == FILES


@pytest.mark.parametrize("at", range(1, 7))
async def test_the_next_download_fetches_only_missing_parts(tmp_path, at):
    memory = MemoryStore()
    manifest = await put_tree(memory, "t/", {"big.bin": BIG}, part_size=MIB)
    await cancelled(memory, manifest, tmp_path, at, concurrency=1)
    assert len(temporary(tmp_path)) == (at > 1)
    report = await get(memory, manifest, tmp_path)
    assert report.bytes_fetched == len(BIG) - (at - 1) * MIB
    assert files_of(tmp_path) == {"big.bin": BIG}


async def test_a_part_of_the_temporary_file_that_is_not_right_is_fetched_again(tmp_path):
    memory = MemoryStore()
    manifest = await put_tree(memory, "t/", {"big.bin": BIG}, part_size=MIB)
    await cancelled(memory, manifest, tmp_path, 4, concurrency=1)
    (name,) = temporary(tmp_path)
    with (tmp_path / name).open("r+b") as file:
        file.seek(MIB)
        file.write(b"flipped")
    report = await get(memory, manifest, tmp_path)
    assert report.bytes_fetched == len(BIG) - 2 * MIB
    assert files_of(tmp_path) == {"big.bin": BIG}


async def test_verified_parts_survive_an_outage_of_the_store(tmp_path):
    memory, faults = MemoryStore(), Faults()
    manifest = await put_tree(memory, "t/", {"big.bin": BIG}, part_size=MIB)
    faults.fail(4, UnavailableError("away"))
    with pytest.raises(SyncFailedError):
        await get(FaultyStore(memory, faults), manifest, tmp_path, concurrency=1)
    assert (await get(memory, manifest, tmp_path)).bytes_fetched == len(BIG) - 3 * MIB


async def test_leftovers_of_a_killed_download_are_removed(tmp_path):
    (tmp_path / "deep/er").mkdir(parents=True)
    for name in (".0123.asyncsync-tmp", "deep/er/.b.bin.89ab.asyncsync-tmp", ".big.bin.ffff.asyncsync-tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".mine").write_bytes(b"mine")
    (tmp_path / ".snap.asyncsync-tmp").mkdir()
    store = MemoryStore()
    await get(store, await put_tree(store, "t/", FILES), tmp_path)
    assert files_of(tmp_path) == {**FILES, ".mine": b"mine"}
    assert (tmp_path / ".snap.asyncsync-tmp").is_dir()


async def test_two_downloads_into_one_target_do_not_interfere(tmp_path):
    memory, faults = MemoryStore(), Faults()
    manifest = await put_tree(memory, "t/", FILES, part_size=MIB)
    hang = faults.hang(5)
    first = asyncio.create_task(get(FaultyStore(memory, faults), manifest, tmp_path, concurrency=1))
    await hang.reached.wait()
    await get(memory, manifest, tmp_path)
    hang.release.set()
    await first
    assert files_of(tmp_path) == FILES


async def test_small_files_never_need_more_than_the_workers_at_once(tmp_path):
    class Counting(MemoryStore):
        now = most = 0

        async def read(self, key, sink, **options):
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                return await super().read(key, sink, **options)
            finally:
                self.now -= 1

    store = Counting()
    manifest = await put_tree(store, "t/", {f"f{number}": b"x" for number in range(300)})
    await get(store, manifest, tmp_path, concurrency=7)
    assert store.most == 7


async def test_names_of_full_length_come_back(tmp_path):
    store = MemoryStore()
    files = {"n" * 255: b"long", "ü" * 127: b"wide"}
    await get(store, await put_tree(store, "", files), tmp_path, prefix="")
    assert files_of(tmp_path) == files


async def test_progress_ends_with_everything(tmp_path):
    store = MemoryStore()
    manifest = await put_tree(store, "t/", FILES)
    seen = []
    await get(store, manifest, tmp_path, on_progress=seen.append)
    last = seen[-1]
    assert (last.files_done, last.files_total) == (4, 4)
    assert last.bytes_done == last.bytes_total == sum(map(len, FILES.values()))
