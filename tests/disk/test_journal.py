"""The journal survives crashes, and no fault of its file stops the work."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from asyncsync.config import state_dir
from asyncsync.disk import database
from asyncsync.disk.journal import Journal, OpenPart, OpenUpload, PendingCheckpoint, TreeState, journal_path
from asyncsync.errors import EngineClosedError

URI = "s3://bucket/run"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "journal.sqlite3"


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYNCSYNC_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture(params=["memory", "file"])
async def journal(request, path):
    async with Journal.open(None if request.param == "memory" else path) as journal:
        yield journal


async def test_a_tree_is_remembered_with_its_version(journal):
    assert await journal.load_tree("a -> b") == TreeState(None, None)
    journal.save_tree("a -> b", b"one", "v1")
    journal.save_tree("a -> b", b"two", "v2")
    assert await journal.load_tree("a -> b") == TreeState(b"two", "v2")


async def test_a_forgotten_tree_is_unknown(journal):
    journal.save_tree("t", b"x", "v")
    journal.forget_tree("t")
    assert await journal.load_tree("t") == TreeState(None, None)


async def test_open_uploads_come_back_with_their_parts_in_order(journal):
    file = ("/data/\udcff", 30, 1_700_000_000_000_000_000, 2**64 - 1, 16)
    opened = OpenUpload(URI, "k", "id", "assembled", *file)
    parts = (OpenPart(1, 0, 16, "e1", 2**32 - 1), OpenPart(2, 16, 14, "", None, "token"))
    journal.upload_opened(opened)
    for part in reversed(parts):
        journal.part_recorded(URI, opened, part)
    journal.upload_opened(replace(opened, uri="s3://other"))
    assert await journal.open_uploads(URI) == [replace(opened, parts=parts)]


async def test_a_closed_upload_is_removed_with_its_parts(journal):
    upload = OpenUpload(URI, "k", "id", "multipart", "/x", 1, 1, 1, 1)
    journal.upload_opened(upload)
    journal.part_recorded(URI, upload, OpenPart(1, 0, 1, "e", 7))
    journal.upload_closed(URI, upload)
    journal.upload_opened(upload)
    assert [upload.parts for upload in await journal.open_uploads(URI)] == [()]


async def test_cleanup_is_owed_until_it_is_paid(journal):
    first = journal.owe(URI, "abort", "one")
    second = journal.owe(URI, "delete", "two")
    journal.owe("s3://other", "delete", "three")
    journal.paid(first)
    assert [(owed.id, owed.kind, owed.payload) for owed in await journal.owed(URI)] == [(second, "delete", "two")]


async def test_an_accepted_checkpoint_is_pending_until_it_is_closed(journal):
    journal.checkpoint_accepted(URI, "t", "c0", "{}")
    journal.checkpoint_accepted(URI, "t", "c1", '{"a":1}')
    journal.checkpoint_closed(URI, "t", "c0")
    (pending,) = await journal.pending_checkpoints(URI)
    assert pending == PendingCheckpoint("t", "c1", '{"a":1}', pending.accepted)


async def test_recorded_rows_are_there_after_reopening(path):
    async with Journal.open(path) as journal:
        for number in range(100):
            journal.save_tree(f"t{number}", b"x" * number, "v")
    async with Journal.open(path) as journal:
        assert (await journal.load_tree("t99")).manifest == b"x" * 99
        assert journal.durable


CRASH = """
import asyncio, os, signal, sys
from pathlib import Path
from asyncsync.disk.journal import Journal
async def main():
    async with Journal.open(Path(sys.argv[1])) as journal:
        journal.owe("u", "abort", "flushed")
        await journal.flush()
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_flushed_rows_survive_kill_9(path):
    result = subprocess.run([sys.executable, "-c", CRASH, str(path)], check=False)
    assert result.returncode == -signal.SIGKILL
    async with Journal.open(path) as journal:
        assert [owed.payload for owed in await journal.owed("u")] == ["flushed"]


async def test_recording_returns_at_once_and_is_written_behind(path):
    async with Journal.open(path) as journal:
        journal.owe(URI, "abort", "x")
        other = sqlite3.connect(path)
        while other.execute("SELECT count(*) FROM owed").fetchone() == (0,):
            await asyncio.sleep(0.001)
        other.close()


async def test_leaving_joins_the_thread(path):
    async with Journal.open(path):
        assert any(thread.name.startswith("asyncsync-journal") for thread in threading.enumerate())
    assert not any(thread.name.startswith("asyncsync-journal") for thread in threading.enumerate())


async def test_a_journal_in_memory_has_no_thread():
    before = threading.active_count()
    async with Journal.open(None) as journal:
        journal.owe(URI, "abort", "x")
        assert threading.active_count() == before
        assert not journal.durable


async def test_a_cancel_while_leaving_loses_nothing(path):
    left = Journal.open(path)

    async def record():
        async with left as journal:
            journal.owe(URI, "abort", "x")
            asyncio.current_task().cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(record())
    left._executor.shutdown(wait=True)  # its thread writes
    async with Journal.open(path) as journal:
        assert len(await journal.owed(URI)) == 1


async def test_a_journal_that_is_not_open_refuses(path):
    journal = Journal.open(path)
    with pytest.raises(EngineClosedError):
        journal.owe(URI, "abort", "x")


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_corrupt_file_is_set_aside_with_a_warning(path, caplog, content):
    path.parent.mkdir()
    path.write_bytes(content)
    async with Journal.open(path) as journal:
        journal.save_tree("t", b"x", "v")
        assert (await journal.load_tree("t")).version == "v"
        assert journal.durable
    (aside,) = [name for name in os.listdir(path.parent) if ".broken-" in name]
    assert (path.parent / aside).read_bytes() == content
    assert "starting a new one" in caplog.text


async def test_a_file_that_breaks_while_in_use_is_rebuilt(path, caplog):
    async with Journal.open(path) as journal:
        for number in range(200):
            journal.save_tree(f"t{number}", bytes(1000), "v")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    async with Journal.open(path) as journal:
        journal.save_tree("t1", b"new", "v")
        assert (await journal.load_tree("t1")).manifest == b"new"
        assert journal.durable


async def test_a_database_of_another_program_is_set_aside(path):
    path.parent.mkdir()
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE recipes (id)")
    foreign.close()
    async with Journal.open(path) as journal:
        assert await journal.owed(URI) == []
    (aside,) = [name for name in os.listdir(path.parent) if ".broken-" in name]
    foreign = sqlite3.connect(path.parent / aside)
    assert foreign.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]
    foreign.close()


async def test_a_newer_format_is_set_aside(path):
    async with Journal.open(path):
        pass
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version=99")
    newer.close()
    async with Journal.open(path) as journal:
        assert await journal.owed(URI) == []
    assert any(".broken-" in name for name in os.listdir(path.parent))


async def test_an_older_format_is_migrated_and_keeps_its_rows(path, monkeypatch):
    async with Journal.open(path) as journal:
        journal.save_tree("t", b"x", "v")
    step = "CREATE TABLE added (id); INSERT INTO added VALUES (1)"
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, step))
    async with Journal.open(path) as journal:
        assert (await journal.load_tree("t")).version == "v"
    opened = sqlite3.connect(path)
    assert opened.execute("PRAGMA user_version").fetchone() == (len(database.MIGRATIONS),)
    assert opened.execute("SELECT id FROM added").fetchall() == [(1,)]
    opened.close()


async def test_without_a_writable_disk_it_continues_in_memory(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    async with Journal.open(tmp_path / "file" / "journal.sqlite3") as journal:
        journal.save_tree("t", b"x", "v")
        assert (await journal.load_tree("t")).version == "v"
        assert not journal.durable
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_with_a_full_disk_it_continues_in_memory_with_its_contents(path, caplog):
    async with Journal.open(path) as journal:
        journal.save_tree("old", b"x", "v1")
        await journal.flush()
        connection = journal._database._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}")
        for number in range(3):
            journal.save_tree(f"new{number}", bytes(100_000), "v2")
            await journal.flush()
        assert (await journal.load_tree("old")).version == "v1"
        assert (await journal.load_tree("new2")).version == "v2"
        assert not journal.durable
    assert len(caplog.records) == 1


async def test_a_locked_file_is_waited_for(path, monkeypatch):
    async with Journal.open(path) as journal:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        journal.owe(URI, "abort", "x")
        flushing = asyncio.create_task(journal.flush())
        await asyncio.sleep(0.02)
        assert not flushing.done()
        other.execute("COMMIT")
        other.close()
        await flushing
        assert journal.durable


async def test_a_file_locked_for_too_long_does_not_stop_the_work(path, monkeypatch, caplog):
    monkeypatch.setattr(database, "BUSY_TIMEOUT", 0.01)
    async with Journal.open(path) as journal:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        journal.owe(URI, "abort", "x")
        assert len(await journal.owed(URI)) == 1
        assert not journal.durable
        other.close()
    assert "another process keeps it locked" in caplog.text


def test_a_new_file_may_be_opened_by_several_at_once(tmp_path):
    """As the ranks of one machine do."""
    for turn in range(20):
        ready = threading.Barrier(6)

        def start(path: Path = tmp_path / str(turn), ready: threading.Barrier = ready) -> bool:
            ready.wait()
            opened = database.Database(path)
            opened.close()
            return opened.durable

        with ThreadPoolExecutor(6) as threads:
            assert all(future.result() for future in [threads.submit(start) for _ in range(6)])


async def test_two_processes_may_share_the_file(path):
    async with Journal.open(path) as one, Journal.open(path) as two:
        for number in range(20):
            (one if number % 2 else two).owe(URI, "abort", str(number))
        await one.flush()
        await two.flush()
        assert len(await one.owed(URI)) == 20


def test_the_state_directory_is_found_in_order(monkeypatch):
    assert journal_path().name == "journal.sqlite3"
    monkeypatch.delenv("ASYNCSYNC_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert str(state_dir()) == "/xdg/asyncsync"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert str(state_dir()) == os.path.expanduser("~/.local/state/asyncsync")
