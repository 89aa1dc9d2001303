"""Reading less than everything: patterns, a directory or a file of a tree, ranges of a stored file."""

import os
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import (
    CheckpointConfig,
    CheckpointRetiredError,
    ConfigError,
    Experiment,
    IntegrityError,
    TransferConfig,
    pull,
    push,
)
from asyncsync.errors import CheckpointIncompleteError
from asyncsync.sync.download.open_file import CheckpointFile
from asyncsync.testing import Faults, MemoryStore

pytestmark = pytest.mark.virtual_time
MIB = 1 << 20
PARTS = TransferConfig(multipart_threshold=6 * MIB, part_size=5 * MIB)


def tree(root: Path) -> dict[str, bytes]:
    files = {"a.txt": b"a", "sub/b.bin": b"b" * 10, "sub/deep/c.txt": b"c", "subway/d.txt": b"d"}
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return files


def found(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
async def pushed(faults: Faults, tmp_path: Path) -> dict[str, bytes]:
    files = tree(tmp_path / "tree")
    await push(tmp_path / "tree", "memory://b/p")
    return files


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": "*.txt"}, {"a.txt", "sub/deep/c.txt", "subway/d.txt"}),
        ({"exclude": ["sub/"]}, {"a.txt", "subway/d.txt"}),
        ({"include": "sub/", "exclude": "*.bin"}, {"sub/deep/c.txt"}),
    ],
)
async def test_patterns_select_files(pushed: dict[str, bytes], tmp_path: Path, options, expected) -> None:
    await pull("memory://b/p", tmp_path / "out", **options)
    assert found(tmp_path / "out") == {path: pushed[path] for path in expected}


@pytest.mark.parametrize("path", ["sub", "sub/", "sub/deep"])
async def test_a_directory_of_a_tree(pushed: dict[str, bytes], tmp_path: Path, path: str) -> None:
    await pull(f"memory://b/p/{path}", tmp_path / "out")
    start = path.rstrip("/") + "/"
    assert found(tmp_path / "out") == {
        key.removeprefix(start): data for key, data in pushed.items() if key.startswith(start)
    }


async def test_one_file_of_a_tree(pushed: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/other").write_bytes(b"stays")
    report = await pull("memory://b/p/sub/b.bin", tmp_path / "out")
    assert found(tmp_path / "out") == {"b.bin": pushed["sub/b.bin"], "other": b"stays"}
    assert report.files_sent == 1


async def test_an_exact_directory_holds_nothing_else(pushed: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/other").write_bytes(b"goes")
    await pull("memory://b/p/sub", tmp_path / "out", exact=True)
    assert set(found(tmp_path / "out")) == {"b.bin", "deep/c.txt"}


async def test_what_no_manifest_names_is_not_found(pushed: dict[str, bytes], tmp_path: Path) -> None:
    await MemoryStore("b", "p").put("sub/stray", b"not in the manifest")
    for path in ("sub/stray", "su", "sub/b.bin/x", "nothing"):
        with pytest.raises(CheckpointIncompleteError, match="nothing complete"):
            await pull(f"memory://b/p/{path}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"include": "*.zip"}, {"exclude": "*"}])
async def test_patterns_that_match_nothing_are_refused(pushed, tmp_path: Path, options) -> None:
    with pytest.raises(ConfigError, match="matches no file"):
        await pull("memory://b/p", tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="exact=True with include or exclude"):
        await pull("memory://b/p", tmp_path / "out", exact=True, **options)


async def test_a_damaged_file_of_a_directory_is_not_put_in_place(pushed, tmp_path: Path) -> None:
    await MemoryStore("b", "p").put("sub/b.bin", b"x" * 10)
    with pytest.raises(IntegrityError):
        await pull("memory://b/p/sub/b.bin", tmp_path / "out")
    assert found(tmp_path / "out") == {}
    await pull("memory://b/p/sub/deep", tmp_path / "out")


async def test_patterns_of_an_experiment_match_paths_below_it(bench: Bench, tmp_path: Path) -> None:
    async with bench.engine() as engine:
        for name in ("t1", "t2"):
            await engine.trial(name).report({}, bench.checkpoint(name, model=b"m", optimizer=b"o"))
    await pull("memory://b/exp", tmp_path / "out", include="t1/checkpoint_*/model")
    assert set(found(tmp_path / "out")) == {"t1/checkpoint_000000/model"}
    with pytest.raises(ConfigError, match="matches no file"):
        await pull("memory://b/exp", tmp_path / "none", include="t3/*")
    await pull("memory://b/exp/t2/checkpoint_000000/model", tmp_path / "one")
    assert found(tmp_path / "one") == {"model": b"m"}


# ranges


async def opened(bench: Bench, data: bytes):
    bench.transfer = PARTS
    async with bench.engine() as engine:
        await engine.trial("t").report({}, bench.checkpoint(model=data, empty=b"", lines=b"a\nbc\n\nd"))
    return (await Experiment.open("memory://b/exp", transfer=PARTS)).latest_checkpoint()


async def test_a_range_fetches_only_its_parts(bench: Bench) -> None:
    data = os.urandom(17 * MIB)
    checkpoint = await opened(bench, data)
    async with checkpoint.open("model") as file:
        bench.faults.requests.clear()
        await file.seek(12 * MIB)
        assert await file.read(10) == data[12 * MIB :][:10]
        assert await file.read(10) == data[12 * MIB + 10 :][:10]
        assert bench.faults.count("read") == 1
        assert await file.seek(-5, os.SEEK_END) == len(data) - 5
        assert await file.read() == data[-5:]
        assert await file.read(1) == b""
        await file.seek(4 * MIB)
        buffer = bytearray(3 * MIB)
        assert await file.readinto(buffer) == len(buffer)
        assert buffer == data[4 * MIB : 7 * MIB]
        await file.seek(0)
        assert await file.read() == data
        assert await file.tell() == file.size == len(data)
    with pytest.raises(ValueError, match="is closed"):
        await file.read()


class Copied(bytes):
    """Bytes that count what is copied out of them."""

    total = 0

    def __getitem__(self, index):
        found = super().__getitem__(index)
        Copied.total += len(found)
        return found


async def test_a_line_costs_its_own_bytes_not_those_of_its_part(bench: Bench, monkeypatch) -> None:
    fetch = CheckpointFile._part

    async def counted(file: CheckpointFile, index: int) -> bytes:
        return Copied(await fetch(file, index))

    monkeypatch.setattr(CheckpointFile, "_part", counted)
    data = b"".join(b"%08190d\n%d\n" % (number, number) for number in range(8 * MIB // 8192))
    checkpoint = await opened(bench, data)
    async with checkpoint.open("model") as file:
        bench.faults.requests.clear()
        lines = [line async for line in file]
    assert b"".join(lines) == data
    assert len(lines) == 2 * 8 * MIB // 8192
    assert bench.faults.count("read") == 2
    assert Copied.total == len(data)


async def test_lines_and_empty_files(bench: Bench) -> None:
    checkpoint = await opened(bench, b"x")
    async with checkpoint.open("lines") as file:
        assert [line async for line in file] == [b"a\n", b"bc\n", b"\n", b"d"]
    async with checkpoint.open("empty") as file:
        assert (await file.read(), await file.readline()) == (b"", b"")
    async with checkpoint.open("lines") as file:
        with pytest.raises(ValueError, match="whence"):
            await file.seek(0, 9)
    with pytest.raises(ConfigError, match="has no file 'nope'; it has 3: empty, lines, model"):
        async with checkpoint.open("nope"):
            pass


async def test_a_line_may_cross_parts(bench: Bench) -> None:
    data = b"x" * (6 * MIB) + b"\nend"
    checkpoint = await opened(bench, data)
    async with checkpoint.open("model") as file:
        assert [len(line) async for line in file] == [6 * MIB + 1, 3]


async def test_damage_in_one_part_is_found_by_who_reads_it(bench: Bench) -> None:
    data = os.urandom(17 * MIB)
    checkpoint = await opened(bench, data)
    await bench.store.put("t/checkpoint_000000/model", data[: 6 * MIB] + b"!" + data[6 * MIB + 1 :])
    async with checkpoint.open("model") as file:
        assert await file.read(4 * MIB) == data[: 4 * MIB]
        with pytest.raises(IntegrityError, match="model: the bytes from offset 5242880"):
            await file.read(4 * MIB)


async def test_a_checkpoint_retired_meanwhile_is_told(bench: Bench) -> None:
    bench.transfer = PARTS
    async with bench.engine(keep=CheckpointConfig(num_to_keep=1)) as engine:
        trial = engine.trial("t")
        await trial.report({}, bench.checkpoint("a", model=os.urandom(11 * MIB)))
        checkpoint = trial.latest()
        with pytest.raises(CheckpointRetiredError, match="its newest checkpoint is"):
            async with checkpoint.open("model") as file:
                await file.read(1)
                await trial.report({}, bench.checkpoint("b"))
                await engine.flush()
                await file.seek(-1, os.SEEK_END)
                await file.read(1)
        with pytest.raises(CheckpointRetiredError):
            async with checkpoint.open("model"):
                pass
