"""Conformance of put, get, read and head."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asyncsync.disk.files import FileRange
from asyncsync.errors import AsyncsyncError, IntegrityError, NotFoundError, PreconditionError, StoreError
from asyncsync.stores.base import Piece, Store
from asyncsync.testing.conformance.fixtures import MIB, ConformanceBase, Rule, crc, list_all_pages

ODD_KEYS = [
    "a b/c d",
    "ünï/cödé.bin",
    "plus+and&equals=?question#hash%25percent",
    "quotes'\"`",
    "~tilde/$dollar/!bang/(paren)/[bracket]/{brace}",
    "emoji-🎉",
    "UPPER/lower",
    ".hidden/.dot",
    "trailing.dot.",
    "comma,semi;colon:at@",
    "long/" + "x" * 200,
    "new\tline-free",
    "-dash/--flag",
    "deep/" + "/".join("abcdefghij") + "/leaf",
]


class ObjectConformance(ConformanceBase):
    """Objects: put, get, read, head, and keys that are hard to spell."""

    async def test_get_returns_what_put_wrote(self, store: Store) -> None:
        data = os.urandom(3 * MIB + 17)
        info = await store.put("dir/x", data, crc32c=crc(data))
        got, read = await store.get("dir/x")
        assert got == data
        assert (
            (info.key, info.size, info.version)
            == (read.key, read.size, read.version)
            == ("dir/x", len(data), info.version)
        )

    async def test_head_agrees_with_put(self, store: Store) -> None:
        info = await store.put("x", b"12345", crc32c=crc(b"12345"))
        head = await store.head("x")
        assert (head.key, head.size, head.version) == ("x", 5, info.version)

    async def test_head_gives_the_time_of_the_write(self, store: Store) -> None:
        await store.put("x", b"1")
        modified = (await store.head("x")).modified
        assert modified is not None
        assert modified > 1.6e9

    async def test_the_checksum_of_an_object_is_right_if_there_is_one(self, store: Store) -> None:
        await store.put("x", b"12345", crc32c=crc(b"12345"))
        assert (await store.head("x")).crc32c in (None, crc(b"12345"))

    async def test_an_empty_object_is_an_object(self, store: Store) -> None:
        await store.put("empty", b"", crc32c=0)
        assert (await store.get("empty"))[0] == b""
        assert (await store.head("empty")).size == 0

    async def test_an_empty_file_can_be_put(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "f").touch()
        await store.put("empty", FileRange(str(tmp_path / "f"), 0, 0), crc32c=0)
        assert (await store.get("empty"))[0] == b""

    @pytest.mark.parametrize(("offset", "size"), [(0, 2 * MIB + 5), (MIB - 1, MIB + 2), (7, 1)])
    async def test_a_range_of_a_file_is_put(self, store: Store, tmp_path: Path, offset: int, size: int) -> None:
        data = os.urandom(2 * MIB + 5)
        (tmp_path / "f").write_bytes(data)
        await store.put("x", FileRange(str(tmp_path / "f"), offset, size), crc32c=crc(data[offset : offset + size]))
        assert (await store.get("x"))[0] == data[offset : offset + size]

    async def test_a_put_replaces_what_was_there(self, store: Store) -> None:
        first = await store.put("x", b"old and long")
        second = await store.put("x", b"new")
        assert (await store.get("x"))[0] == b"new"
        assert first.version != second.version

    async def test_a_missing_key_raises_not_found(self, store: Store) -> None:
        with pytest.raises(NotFoundError):
            await store.head("missing/x")
        with pytest.raises(NotFoundError):
            await store.get("missing/x")

    async def test_a_missing_object_raises_file_not_found(self, store: Store) -> None:
        with pytest.raises(FileNotFoundError):
            await store.get("missing")

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [(0, 4, b"0123"), (3, 4, b"3456"), (7, None, b"789"), (7, 100, b"789"), (9, 1, b"9"), (2, 0, b""), (0, 0, b"")],
    )
    async def test_a_range_is_read(self, store: Store, start: int, length: int | None, expected: bytes) -> None:
        await store.put("x", b"0123456789")
        pieces = []

        async def sink(piece: Piece) -> None:
            pieces.append(bytes(piece))

        info = await store.read("x", sink, start=start, length=length)
        assert b"".join(pieces) == expected
        assert info.size == 10

    async def test_pieces_are_of_bounded_size(self, store: Store) -> None:
        await store.put("x", bytes(3 * MIB))
        sizes = []

        async def sink(piece: Piece) -> None:
            sizes.append(len(piece))

        await store.read("x", sink)
        assert sum(sizes) == 3 * MIB
        assert max(sizes) <= MIB

    async def test_a_failing_sink_ends_the_read(self, store: Store) -> None:
        await store.put("x", bytes(3 * MIB))

        async def sink(_: Piece) -> None:
            raise ValueError("full")

        with pytest.raises(ValueError, match="full"):
            await store.read("x", sink)
        assert (await store.head("x")).size == 3 * MIB

    async def test_a_read_checks_the_version_that_it_names(self, store: Store) -> None:
        old = await store.put("x", b"old")
        new = await store.put("x", b"newer")

        async def sink(piece: Piece) -> None:
            assert piece == b"newer"

        await store.read("x", sink, if_version=new.version)
        with pytest.raises(PreconditionError):
            await store.read("x", sink, if_version=old.version)

    async def test_a_wrong_checksum_is_refused(self, store: Store, rule: Rule) -> None:
        rule("refuses a wrong checksum")
        with pytest.raises(IntegrityError):
            await store.put("x", b"data", crc32c=crc(b"other"))
        with pytest.raises(NotFoundError):
            await store.head("x")

    async def test_a_wrong_checksum_of_a_file_is_refused(self, store: Store, rule: Rule, tmp_path: Path) -> None:
        rule("refuses a wrong checksum of a file")
        (tmp_path / "f").write_bytes(b"data" * 1000)
        with pytest.raises(IntegrityError):
            await store.put("x", FileRange(str(tmp_path / "f"), 0, 4000), crc32c=1)

    async def test_a_missing_local_file_raises_plain_file_not_found(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            await store.put("x", FileRange(str(tmp_path / "missing"), 0, 5), crc32c=1)
        assert not isinstance(caught.value, StoreError)

    async def test_a_local_file_that_became_shorter_is_refused(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"12345")
        with pytest.raises((AsyncsyncError, OSError)):
            await store.put("x", FileRange(str(tmp_path / "f"), 0, 50), crc32c=1)
        with pytest.raises(NotFoundError):
            await store.head("x")

    @pytest.mark.parametrize("key", ODD_KEYS, ids=ascii)
    async def test_keys_that_are_hard_to_spell_survive(self, store: Store, key: str) -> None:
        await store.put(key, key.encode(), crc32c=crc(key.encode()))
        assert (await store.get(key))[0] == key.encode()
        objects, _, _ = await list_all_pages(store)
        assert [info.key for info in objects] == [key]
        await store.copy(key, "copy of " + key)
        await store.delete([key])
        assert [info.key for info in (await list_all_pages(store))[0]] == ["copy of " + key]

    async def test_keys_may_share_a_beginning_with_a_directory(self, store: Store) -> None:
        for key in ("a/b", "a-b", "a.b"):
            await store.put(key, key.encode())
        assert sorted(info.key for info in (await list_all_pages(store))[0]) == ["a-b", "a.b", "a/b"]

    async def test_an_object_may_have_the_name_of_a_directory(self, store: Store, rule: Rule) -> None:
        rule("an object and a directory of one name")
        await store.put("a/b", b"1")
        await store.put("a", b"2")
        assert (await store.get("a"))[0] == b"2"
