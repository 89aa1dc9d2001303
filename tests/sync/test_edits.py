"""Whatever is done to the files, after each sync the store has them byte for byte."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import servers

from asyncsync import SyncConfig, Syncer, TransferConfig
from asyncsync.planning import appended
from asyncsync.testing import MemoryStore, reset_memory, run_virtual

MIB = 1 << 20
PART = 5 * MIB
CONFIG = TransferConfig(multipart_threshold=8 * MIB, part_size=PART)
NAMES = ("a.bin", "sub/b.bin", "train.log", "small.txt", "sub/events.out.tfevents.1")


class Editor:
    """Edits as programs and people make them; ``log`` lists them for a failing test."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random, self.log = root, random.Random(seed), []
        for name in NAMES:
            self._path(name).parent.mkdir(parents=True, exist_ok=True)
            self._path(name).write_bytes(
                self._noise(0) if "small" in name else self.random.randbytes(9 * MIB) + self._noise(8 * MIB)
            )

    def edit(self) -> None:
        for _ in range(self.random.randint(1, 3)):
            edit = self.random.choice(self.edits)
            path = self._path(self.random.choice(NAMES))
            if not path.exists():
                path.write_bytes(self._noise(self.random.randint(0, 14 * MIB)))
            self.log.append(f"{edit.__name__} {path.name}")
            edit(self, path)

    def _path(self, name: str) -> Path:
        return self.root / name

    def _noise(self, most: int) -> bytes:
        return self.random.randbytes(self.random.randint(0, max(most, 5000)))

    def _at(self, path: Path) -> int:
        return self.random.randint(0, path.stat().st_size)

    def insert(self, path: Path) -> None:
        data, at = path.read_bytes(), self._at(path)
        path.write_bytes(data[:at] + self._noise(MIB) + data[at:])

    def remove(self, path: Path) -> None:
        data, at = path.read_bytes(), self._at(path)
        path.write_bytes(data[:at] + data[at + self.random.randint(1, MIB) :])

    def truncate(self, path: Path) -> None:
        os.truncate(path, self._at(path))

    def append(self, path: Path) -> None:
        with path.open("ab") as file:
            file.write(self._noise(3 * MIB))

    def sparse(self, path: Path) -> None:
        with path.open("r+b") as file:
            for _ in range(self.random.randint(1, 4)):
                file.seek(self._at(path))
                file.write(b"!")

    def hole(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(self.random.randint(0, size))
            file.truncate(size + self.random.randint(0, 6 * MIB))

    def swap_parts(self, path: Path) -> None:
        data = path.read_bytes()
        step = 5 * MIB
        parts = [data[at : at + step] for at in range(0, len(data), step)]
        self.random.shuffle(parts)
        path.write_bytes(b"".join(parts))

    def swap_files(self, path: Path) -> None:
        other = self._path(self.random.choice(NAMES))
        if other.exists() and other != path:
            os.rename(path, path.with_suffix(".swap"))
            os.rename(other, path)
            os.rename(path.with_suffix(".swap"), other)

    def copy_over(self, path: Path) -> None:
        self._path(self.random.choice(NAMES)).write_bytes(path.read_bytes())

    def rename(self, path: Path) -> None:
        os.rename(path, self._path(f"moved{self.random.randint(0, 2)}"))

    def same_size_and_time(self, path: Path) -> None:
        """Replaced by another file that looks the same to all but its inode."""
        info = path.stat()
        new = path.with_suffix(".new")
        new.write_bytes(self.random.randbytes(info.st_size))
        os.utime(new, ns=(info.st_atime_ns, info.st_mtime_ns))
        os.rename(new, path)

    def same_size_in_place(self, path: Path) -> None:
        """Written again at once, as large as before: maybe within the clock's tick of the sync before."""
        with path.open("r+b") as file:
            file.write(self.random.randbytes(path.stat().st_size))

    def time_set_back(self, path: Path) -> None:
        self.sparse(path)
        os.utime(path, ns=(10**18, 10**18 + self.random.randint(0, 3)))

    def replace_by_rename(self, path: Path) -> None:
        """As editors and training programs save."""
        new = path.with_suffix(".new")
        new.write_bytes(self._noise(14 * MIB))
        os.rename(new, path)

    def empty(self, path: Path) -> None:
        os.truncate(path, 0)

    def zeros(self, path: Path) -> None:
        """A sparse file, larger than the threshold for parts: all of its parts are equal."""
        os.truncate(path, 0)
        os.truncate(path, self.random.randint(8 * MIB, 22 * MIB))

    def swap_blocks(self, path: Path) -> None:
        data = bytearray(path.read_bytes())
        size = self.random.randint(0, len(data) // 4)
        one, other = self._at(path) // 4, len(data) // 2 + self._at(path) // 4
        data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]
        with path.open("r+b") as file:
            file.write(data[: path.stat().st_size])

    def cross_the_threshold(self, path: Path) -> None:
        size = path.stat().st_size
        if size > 8 * MIB:
            os.truncate(path, 8 * MIB - self.random.randint(0, 1))
        else:
            with path.open("ab") as file:
                file.write(self.random.randbytes(8 * MIB + 1 - size))

    def touch(self, path: Path) -> None:
        path.touch()

    edits: tuple[Callable, ...] = (
        insert,
        remove,
        truncate,
        append,
        append,
        sparse,
        hole,
        swap_parts,
        swap_files,
        copy_over,
        rename,
        same_size_and_time,
        same_size_in_place,
        time_set_back,
        replace_by_rename,
        empty,
        zeros,
        swap_blocks,
        cross_the_threshold,
        touch,
    )


def most_sent(old: dict[str, bytes], new: dict[str, bytes]) -> int:
    """Bytes that a sync may send: small files that changed and were not renamed, and of large ones the parts that their
    own name does not hold, each run of them widened by two parts at most."""
    total, whole = 0, {data for path, data in old.items() if path not in new}
    for path, data in new.items():
        before = old.get(path, b"")
        if data == before or (len(data) <= CONFIG.multipart_threshold and data in whole):
            continue
        if len(before) <= CONFIG.multipart_threshold or len(data) <= CONFIG.multipart_threshold:
            total += len(data)
            continue
        known = {before[at : at + PART] for at in range(0, len(before), PART)}
        fresh = [data[at : at + PART] not in known for at in range(0, len(data), PART)]
        runs = sum(one and not (at and fresh[at - 1]) for at, one in enumerate(fresh))
        total += min(len(data), (sum(fresh) + 2 * runs) * PART)
    return total


def local(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def play(
    editor: Editor, uri: str, rounds: int, stored: Callable[[], dict[str, bytes]], options=None, *, ranges: bool = True
) -> None:
    """Edit, sync, compare; sometimes in a process that asyncsync takes for a new one. ``ranges``: whether the store
    copies ranges, so that the sent bytes are bounded.
    """
    copied, last = 0, {}
    for start in range(0, rounds, 4):
        async with Syncer(
            editor.root, uri, SyncConfig(delete=True), transfer=CONFIG, storage_options=options
        ) as syncer:
            for _ in range(start, min(start + 4, rounds)):
                editor.edit()
                before = local(editor.root)
                report = await syncer.sync_up()
                there = {key: data for key, data in stored().items() if not key.startswith(".asyncsync")}
                assert there.keys() == before.keys(), editor.log
                assert [key for key in before if there[key] != before[key]] == [], editor.log
                assert report.bytes_sent + report.bytes_copied <= report.bytes_total, editor.log
                assert not ranges or report.bytes_sent <= most_sent(last, before), editor.log
                last = before
                copied += report.bytes_copied
    assert copied > 0


@pytest.mark.parametrize("seed", range(4))
def test_after_any_edits_the_store_holds_the_files(tmp_path: Path, seed: int) -> None:
    reset_memory()
    editor = Editor(tmp_path / "tree", seed)
    run_virtual(play(editor, "memory://b/p", 8, lambda: MemoryStore("b", "p").contents))
    assert not MemoryStore("b").bucket.uploads


def test_a_directory_as_store_too(tmp_path: Path) -> None:
    editor = Editor(tmp_path / "tree", 11)
    run_virtual(play(editor, str(tmp_path / "store"), 8, lambda: local(tmp_path / "store")))


@pytest.mark.server
async def test_another_client_reads_the_same_from_a_real_store(seaweedfs: servers.S3Server, tmp_path: Path) -> None:
    bucket = seaweedfs.create_bucket("edits")
    editor = Editor(tmp_path / "tree", 5)
    with seaweedfs.client() as client:

        def stored() -> dict[str, bytes]:
            listed = client.list_objects_v2(Bucket=bucket, Prefix="p/").get("Contents", ())
            keys = [item["Key"] for item in listed]
            return {key[2:]: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

        await play(editor, f"s3://{bucket}/p", 6, stored, seaweedfs.storage_options)


def test_a_log_whose_middle_is_trusted_is_right_after_honest_appends(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(appended, "TRUSTED_FROM", 6 * MIB)
    editor = Editor(tmp_path / "tree", 3)
    editor.edits = (Editor.append, Editor.touch, Editor.truncate, Editor.swap_files)
    reset_memory()
    run_virtual(play(editor, "memory://b/p", 8, lambda: MemoryStore("b", "p").contents))


async def test_edits_are_right_where_only_whole_objects_can_be_copied(gcs_strict, tmp_path: Path) -> None:
    """Cloud Storage: an append is composed of the old object and the new bytes."""
    bucket = gcs_strict.buckets["conformance"]

    def stored() -> dict[str, bytes]:
        return {name[2:]: found.data for name, found in bucket.objects.items() if name.startswith("p/")}

    editor = Editor(tmp_path / "tree", 9)
    editor.edits = (Editor.append, Editor.append, Editor.rename, *Editor.edits)
    await play(editor, "gs://conformance/p", 6, stored, gcs_strict.storage_options, ranges=False)
