"""After a process has ended anywhere, the next one sends only the bytes that the store lacks."""

import asyncio
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from asyncsync import TransferConfig, push
from asyncsync.disk.journal import Journal, Owed, journal_path
from asyncsync.errors import AccessDeniedError
from asyncsync.testing import Faults, MemoryStore, run_virtual

MIB = 1 << 20
LARGE = TransferConfig(multipart_threshold=8 * MIB, part_size=5 * MIB)
PARTS = 6


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "tree/big"
    path.parent.mkdir()
    path.write_bytes(os.urandom((PARTS - 1) * 5 * MIB + 7))
    return path


def ends_at(faults: Faults, big: Path, at: int, operation: str, *, after: bool = False, key: str = "") -> None:
    """A push whose process ends at a request: only the store and the journal remain."""
    ends(big, lambda stop: faults.hook(at, stop, operation=operation, after=after, key=key or None))
    faults.clear()
    faults.requests.clear()


def ends_with_all_parts(faults: Faults, big: Path) -> None:
    """The same before the upload is completed. The request that comes last need not be the last to be done: the last
    part has 7 bytes."""

    def plan(stop: Callable[[], object]) -> None:
        faults.hook(1, lambda: kept() == PARTS and stop(), operation="put_part", after=True, times=None)

    ends(big, plan)
    assert kept() == PARTS
    faults.clear()
    faults.requests.clear()


def ends(big: Path, plan: Callable[[Callable[[], object]], object]) -> None:
    async def main() -> None:
        task = asyncio.create_task(push(big.parent, "memory://b/p", transfer=LARGE))
        plan(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main())


def finish(faults: Faults, big: Path) -> int:
    """The next process; how many parts it sent."""
    run_virtual(push(big.parent, "memory://b/p", transfer=LARGE))
    assert MemoryStore("b", "p").contents["big"] == big.read_bytes()
    assert MemoryStore("b").bucket.uploads == {}
    return faults.count("put_part")


def kept() -> int:
    return sum(len(upload.parts) for upload in MemoryStore("b").bucket.uploads.values())


@pytest.mark.parametrize("at", range(1, PARTS + 1))
def test_only_missing_parts_are_sent(faults: Faults, big: Path, at: int) -> None:
    ends_at(faults, big, at, "put_part", after=True)
    there = kept()
    assert there > 0
    assert finish(faults, big) == PARTS - there


def test_a_part_that_the_journal_does_not_know_is_known_by_its_checksum(faults: Faults, big: Path) -> None:
    ends_at(faults, big, 4, "put_part", after=True)
    there = kept()
    forget("DELETE FROM parts")
    assert finish(faults, big) == PARTS - there


def forget(statement: str) -> None:
    async def main() -> None:
        async with Journal.open(journal_path()) as journal:
            journal._record(statement)

    run_virtual(main())


def listed_without_checksums(monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str] = str) -> None:
    """As some servers list parts."""
    listed = MemoryStore.list_parts

    async def bare(self, upload):
        return [replace(part, crc32c=None, etag=change(part.etag)) for part in await listed(self, upload)]

    monkeypatch.setattr(MemoryStore, "list_parts", bare)


def test_without_listed_checksums_a_part_is_recognised_by_its_md5(
    faults: Faults, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_at(faults, big, 4, "put_part", after=True)
    there = kept()
    forget("DELETE FROM parts")
    listed_without_checksums(monkeypatch)
    assert finish(faults, big) == PARTS - there


def test_a_part_that_nothing_vouches_for_is_sent_again(
    faults: Faults, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends_at(faults, big, 4, "put_part", after=True)
    forget("DELETE FROM parts")
    listed_without_checksums(monkeypatch, lambda etag: "encrypted")
    assert finish(faults, big) == PARTS


def test_if_the_source_changed_only_changed_parts_are_sent(faults: Faults, big: Path) -> None:
    ends_with_all_parts(faults, big)
    with big.open("r+b") as file:
        file.seek(5 * MIB + 1)
        file.write(b"changed")
    assert finish(faults, big) == 1


def test_if_the_source_became_shorter_the_rest_is_compared(faults: Faults, big: Path) -> None:
    ends_with_all_parts(faults, big)
    os.truncate(big, 11 * MIB)
    assert finish(faults, big) == 1


def test_a_source_that_changes_midway_resends_only_the_changed_part(faults: Faults, big: Path) -> None:
    def change() -> None:
        with big.open("r+b") as file:
            file.write(b"changed")

    faults.hook(PARTS, change, operation="put_part", after=True)
    run_virtual(push(big.parent, "memory://b/p", transfer=LARGE))
    assert MemoryStore("b", "p").contents["big"] == big.read_bytes()
    assert MemoryStore("b").bucket.uploads == {}


def test_a_completed_upload_whose_response_was_lost_is_not_sent_again(faults: Faults, big: Path) -> None:
    ends_at(faults, big, 1, "complete_multipart", after=True)
    assert finish(faults, big) == 0


def test_a_complete_file_outside_the_manifest_is_not_sent_again(faults: Faults, big: Path) -> None:
    ends_at(faults, big, 1, "put", key="manifest.json")
    assert finish(faults, big) == 0


def test_unless_it_changed_since(faults: Faults, big: Path) -> None:
    ends_at(faults, big, 1, "put", key="manifest.json")
    big.write_bytes(os.urandom(big.stat().st_size))
    assert finish(faults, big) == PARTS - 1  # the last 7 bytes travel with those before them


def test_a_complete_object_that_was_replaced_is_sent_again(faults: Faults, big: Path) -> None:
    ends_at(faults, big, 1, "put", key="manifest.json")
    run_virtual(MemoryStore("b", "p").put("big", os.urandom(big.stat().st_size)))
    assert finish(faults, big) == PARTS


def test_a_kept_upload_is_forgotten_once_a_manifest_names_the_file(faults: Faults, big: Path) -> None:
    async def main() -> dict[str, str]:
        await push(big.parent, "memory://b/p", transfer=LARGE)
        async with Journal.open(journal_path()) as journal:
            return await journal.files_sent("memory://b/p")

    assert run_virtual(main()) == {}


def test_an_upload_that_can_never_finish_is_aborted(faults: Faults, big: Path) -> None:
    ends_at(faults, big, 3, "put_part", after=True)
    faults.fail(error=AccessDeniedError("no"), operation="complete_multipart")
    with pytest.raises(Exception, match="no"):
        run_virtual(push(big.parent, "memory://b/p", transfer=LARGE))
    faults.clear()
    finish(faults, big)


def test_an_upload_whose_response_never_came_is_found_and_aborted(faults: Faults, big: Path) -> None:
    """As after SIGKILL between the request and its response: nothing runs afterwards, not even the bookkeeping."""
    ends_at(faults, big, 1, "create_multipart", after=True)
    (lost,) = MemoryStore("b").bucket.uploads
    assert finish(faults, big) == PARTS
    assert lost not in MemoryStore("b").bucket.uploads


def test_the_journal_knows_of_an_upload_before_it_is_asked_for(faults: Faults, big: Path) -> None:
    known: list[int] = []

    def look() -> None:
        with sqlite3.connect(journal_path()) as opened:
            known.extend(opened.execute("SELECT count(*) FROM owed").fetchone())
        opened.close()

    faults.hook(1, look, operation="create_multipart")
    run_virtual(push(big.parent, "memory://b/p", transfer=LARGE))
    assert known == [1]


def test_the_next_process_sweeps_up_remains_of_a_killed_one(tmp_path: Path) -> None:
    store, tree = tmp_path / "store", tmp_path / "tree"
    store.mkdir()
    tree.mkdir()
    (store / ".89abcdef01234567.asyncsync-tmp").write_bytes(b"half")
    killed = subprocess.Popen(["true"])
    killed.wait()

    async def main() -> list[Owed]:
        await push(tree, store)
        assert list(store.glob("*asyncsync-tmp")), "nobody was killed: nothing is looked for"
        async with Journal.open(journal_path()) as journal:
            journal.owe(str(store), "sweep", json.dumps({"pid": killed.pid}))
        await push(tree, store)
        async with Journal.open(journal_path()) as journal:
            return await journal.owed(str(store))

    assert run_virtual(main()) == []
    assert not list(store.glob("*asyncsync-tmp"))
