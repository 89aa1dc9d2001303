"""A damaged journal costs time only. Rows that do not match their digest are dropped, and a file that is not a journal
is set aside. Damage never stops the work and never reaches a manifest.
"""

from __future__ import annotations

import os
import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from asyncsync import pull, push, verify
from asyncsync.disk import database
from asyncsync.disk.journal import Journal, OpenPart, OpenUpload, TreeState, journal_path

URI = "s3://bucket/run"
UPLOAD = OpenUpload(URI, "k", "id", "multipart", "/data/\udcff", 30, 1_700_000_000_000_000_000, 2**64 - 1, 16)
ROWS = 14
STEP = 1009
"""Bytes between two that are damaged: prime, so that every column of every row has its turn."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "journal.sqlite3"


async def fill(path: Path) -> None:
    async with Journal.open(path) as journal:
        for number in range(8):
            journal.save_tree(f"t{number}", b"manifest %d" % number * 50, f"v{number}")
        journal.save_segment("t0", "s", b"segment")
        journal.upload_opened(UPLOAD)
        journal.part_recorded(URI, UPLOAD, OpenPart(1, 0, 16, "e1", 7))
        journal.file_sent(URI, "s", '{"path":"s"}')
        journal.owe(URI, "delete", '{"prefix":"p/"}')
        journal.checkpoint_accepted(URI, "t", "c", '{"number":1}')


async def look(path: Path) -> int:
    """How many of the rows of ``fill`` are there; each is there as it was, or not at all, and the journal works."""
    async with Journal.open(path) as journal:
        trees = [await journal.load_tree(f"t{number}") for number in range(8)]
        for number, tree in enumerate(trees):
            assert tree in (TreeState(), TreeState(b"manifest %d" % number * 50, f"v{number}"))
        uploads = await journal.open_uploads(URI)
        assert [replace(UPLOAD, parts=upload.parts) for upload in uploads] == uploads
        assert all(part.etag == "e1" and part.crc32c == 7 for upload in uploads for part in upload.parts)
        sent = await journal.files_sent(URI)
        assert sent in ({}, {"s": '{"path":"s"}'})
        owed = [(item.kind, item.payload) for item in await journal.owed(URI)]
        assert owed in ([], [("delete", '{"prefix":"p/"}')])
        pending = [(item.name, item.payload) for item in await journal.pending_checkpoints(URI)]
        assert pending in ([], [("c", '{"number":1}')])
        segment = await journal.load_segment("t0", "s")
        assert segment in (None, b"segment")
        journal.save_tree("new", b"new", "v")
        assert await journal.load_tree("new") == TreeState(b"new", "v")
        assert journal.durable
        parts = sum(len(upload.parts) for upload in uploads)
    async with Journal.open(path) as journal:
        assert await journal.load_tree("new") == TreeState(b"new", "v")
    found = sum(tree.manifest is not None for tree in trees) + (segment is not None) + parts
    return found + sum(map(len, (uploads, sent, owed, pending)))


def aside(path: Path) -> list[str]:
    return [name for name in os.listdir(path.parent) if ".broken-" in name]


@pytest.mark.parametrize("start", (0, STEP // 2))
async def test_no_byte_of_the_file_can_be_damaged_unnoticed(path, start):
    await fill(path)
    data = path.read_bytes()
    for at in range(start, len(data), STEP):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        await look(path)


async def test_the_head_of_the_file_may_hold_anything(path):
    await fill(path)
    data = path.read_bytes()
    for at in range(16, 100):  # before that is the magic text
        for value in (0, 255):
            path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            await look(path)


async def test_the_file_may_end_anywhere(path):
    await fill(path)
    data = path.read_bytes()
    for size in [*range(0, 200, 20), *range(200, len(data), 4 * STEP)]:
        path.write_bytes(data[:size])
        await look(path)


async def test_a_file_with_overwritten_blocks_still_opens(path):
    await fill(path)
    data, dice = path.read_bytes(), random.Random(1)
    for _ in range(60):
        at, size = dice.randrange(len(data)), dice.randrange(1, 6000)
        path.write_bytes((data[:at] + dice.randbytes(size) + data[at + size :])[: len(data)])
        await look(path)


async def test_an_undamaged_file_loses_nothing(path, caplog):
    await fill(path)
    assert await look(path) == ROWS
    assert aside(path) == []
    assert caplog.text == ""


CELLS = [(table, column) for table, columns in database.TABLES.items() for column in (*columns, "digest")]


@pytest.mark.parametrize(("table", "column"), CELLS, ids=[f"{table}.{column}" for table, column in CELLS])
async def test_a_cell_that_holds_something_else_costs_its_row(path, table, column):
    await fill(path)
    data = path.read_bytes()
    for value in (b"\xff", "2", 17, -2.5, 2**62, "[" * 5000, '{"prefix":"other/"}'):
        path.write_bytes(data)
        if edit(path, f"UPDATE OR IGNORE {table} SET {column} = ?", value):
            assert await look(path) < ROWS
    assert aside(path) == []


def edit(path: Path, statement: str, *parameters: object) -> bool:
    """Change the file behind its owner's back; False if SQLite does not let us."""
    other = sqlite3.connect(path)
    try:
        other.execute(statement, parameters)
        other.commit()
    except sqlite3.IntegrityError:
        return False
    finally:
        other.close()
    return True


async def test_a_row_with_invalid_text_is_dropped_alone(path, caplog):
    await fill(path)
    edit(path, "UPDATE trees SET version = CAST(x'ff80' AS TEXT) WHERE tree = ?", b"t0")
    assert await look(path) == ROWS - 1
    assert "1 row(s) of trees were altered after they were written, and are dropped" in caplog.text
    caplog.clear()
    assert await look(path) == ROWS - 1
    assert caplog.text == ""


@pytest.mark.parametrize(
    "damage",
    [f"DROP TABLE {table}" for table in database.TABLES]
    + [f"ALTER TABLE {table} DROP COLUMN digest" for table in database.TABLES]
    + [
        "ALTER TABLE owed RENAME COLUMN payload TO load",
        "CREATE TRIGGER t AFTER INSERT ON trees BEGIN DELETE FROM trees; END",
        "PRAGMA user_version=1",
        "PRAGMA user_version=0",
        "PRAGMA application_id=7",
    ],
)
async def test_a_file_with_other_tables_is_set_aside(path, damage, caplog):
    await fill(path)
    edit(path, damage)
    assert await look(path) == 0
    assert len([name for name in aside(path) if not name.endswith(("-wal", "-shm"))]) == 1
    assert "starting a new one" in caplog.text


async def test_a_table_that_vanishes_costs_only_its_rows(path, caplog):
    async with Journal.open(path) as journal:
        journal.save_tree("t", b"x", "v")
        await journal.flush()
        for table in database.TABLES:
            edit(path, f"DROP TABLE {table}")
        assert await journal.load_tree("t") == TreeState()
        journal.save_tree("t", b"y", "w")
        assert await journal.load_tree("t") == TreeState(b"y", "w")
        assert journal.durable
    assert "starting a new one" in caplog.text


def make(path: Path, version: int, *rows: tuple[str, tuple]) -> None:
    """A journal of an earlier format. ``rows``: a table and the values of its columns; a digest comes with format 3."""
    path.parent.mkdir(exist_ok=True)
    made = sqlite3.connect(path, isolation_level=None)
    made.create_function("row_digest", -1, database.row_digest, deterministic=True)
    made.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    for migration in database.MIGRATIONS[:version]:
        made.executescript(migration)
    for table, values in rows:
        values = (*values, database.row_digest(table, *values)) if version > 2 else values
        made.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
    made.execute(f"PRAGMA application_id={database.APPLICATION}")
    made.execute(f"PRAGMA user_version={version}")
    made.close()


FILE = ("/data/\udcff".encode("utf-8", "surrogateescape"), 30, 1_700_000_000_000_000_000, str(2**64 - 1))
OLD_ROWS = (
    *(("trees", (f"t{number}".encode(), b"manifest %d" % number * 50, f"v{number}", 1.0)) for number in range(8)),
    ("uploads", (URI, "k", "id", *FILE, 16, 5.0)),
    ("parts", (URI, "k", "id", 1, 0, 16, "e1", 7)),
    ("sent", (URI, b"s", '{"path":"s"}', 2.5)),
    ("owed", (1, URI, "delete", '{"prefix":"p/"}', 3.0)),
    ("checkpoints", (URI, "t", "c", '{"number":1}', 4.0)),
)


@pytest.mark.parametrize("version", [2, 3])
async def test_all_rows_of_an_earlier_journal_are_migrated(path, version):
    make(path, version, *OLD_ROWS)
    assert await look(path) == ROWS - 1  # none had segments
    assert aside(path) == []


async def test_markers_of_format_3_become_columns(path):
    """Format 3 marked an assembled upload by a negative part size, a file sent in one request by its upload ID, and a
    part that was only begun by its ETag."""
    make(
        path,
        3,
        ("uploads", (URI, "assembled", "id", *FILE, -16, 1.0)),
        ("parts", (URI, "assembled", "id", 1, 0, 16, "e1", 7)),
        ("uploads", (URI, "single", "in one piece", *FILE, 0, 2.0)),
        ("parts", (URI, "single", "in one piece", 1, 0, 30, "begun session#1", 8)),
        ("uploads", (URI, "multipart", "id", *FILE, 16, 3.0)),
        ("parts", (URI, "multipart", "id", 1, 0, 16, "begun ", None)),
    )
    async with Journal.open(path) as journal:
        assert await journal.open_uploads(URI) == [
            replace(UPLOAD, key="assembled", kind="assembled", parts=(OpenPart(1, 0, 16, "e1", 7),)),
            replace(
                UPLOAD,
                key="single",
                upload_id="",
                kind="single",
                part_size=0,
                parts=(OpenPart(1, 0, 30, "", 8, "session#1"),),
            ),
            replace(UPLOAD, key="multipart", parts=(OpenPart(1, 0, 16, "", None, ""),)),
        ]
    assert aside(path) == []


async def test_a_migration_drops_damaged_rows(path):
    make(path, 3, *OLD_ROWS)
    edit(path, "UPDATE uploads SET part_size = 17")
    edit(path, "UPDATE parts SET etag = 'e2'")
    assert await look(path) == ROWS - 3
    assert aside(path) == []


async def test_a_journal_of_tomorrow_is_kept_as_it_is(path):
    await fill(path)
    edit(path, "PRAGMA user_version=99")
    data = path.read_bytes()
    assert await look(path) == 0
    (kept,) = aside(path)
    assert (path.parent / kept).read_bytes() == data


async def test_a_mistake_of_ours_is_raised_and_not_taken_for_damage(path):
    await fill(path)
    opened = database.Database(path)
    with pytest.raises(sqlite3.Error):
        opened.write([("INSERT INTO nowhere VALUES (1)", ())])
    opened.close()


FIELDS = (b'"path":"', b'"crc32c":"', b'"size":', b'"version":"')


async def test_damage_of_the_journal_never_reaches_a_manifest(tmp_path):
    source, store, target = tmp_path / "source", tmp_path / "store", tmp_path / "copy"
    source.mkdir()
    for name in "abc":
        (source / name).write_bytes(name.encode() * 3000)
        os.utime(source / name, (1_700_000_000, 1_700_000_000))  # not written just now: it is not read again
    await push(source, store)
    for turn in range(30):
        other = sqlite3.connect(journal_path())
        ((manifest,),) = other.execute("SELECT manifest FROM trees").fetchall()
        other.close()
        places = [manifest.index(field, manifest.index(b'"path":"c')) + len(field) for field in FIELDS]
        at = places[turn] if turn < len(places) else (turn - len(places)) * len(manifest) // 26
        damaged = manifest[:at] + bytes([manifest[at] ^ 4]) + manifest[at + 1 :]
        edit(journal_path(), "UPDATE trees SET manifest = ?", damaged)
        (source / "b").write_bytes(b"B" * (5000 + turn))
        await push(source, store)
        assert (await verify(store, deep=True)).ok, damaged[at - 20 : at + 20]
        await pull(store, target)
        for name in "abc":
            assert (target / name).read_bytes() == (source / name).read_bytes(), at


async def test_intact_rows_of_a_damaged_journal_save_their_uploads(tmp_path):
    source, store = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    (source / "a").write_bytes(b"a" * 3000)
    await push(source, store)
    edit(journal_path(), "UPDATE trees SET version = 'x'")
    report = await push(source, store)
    assert (report.files_sent, report.files_skipped) == (0, 1)
