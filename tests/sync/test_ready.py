"""Directories that are synced as one unit, once their marker exists."""

import shutil
from pathlib import Path

import pytest

from asyncsync import ConfigError, SyncConfig, Syncer
from asyncsync.config import READY_PRESETS
from asyncsync.disk.scan import scan
from asyncsync.errors import SyncFailedError
from asyncsync.planning.manifest import Manifest
from asyncsync.planning.patterns import Rules
from asyncsync.testing import Faults, MemoryStore, run_virtual

pytestmark = pytest.mark.virtual_time
READY = SyncConfig(ready={"checkpoint-*": "state.json"})
MIRROR = SyncConfig(ready={"checkpoint-*": "state.json"}, delete=True)
UNIT = {"checkpoint-1/model", "checkpoint-1/optimizer", "checkpoint-1/state.json"}


def named() -> set[str]:
    data = MemoryStore("b", "p").contents.get(".asyncsync/manifest.json")
    return set(Manifest.from_bytes(data).files) if data is not None else set()


def objects() -> set[str]:
    return {key for key in MemoryStore("b", "p").contents if not key.startswith(".asyncsync")}


def unit(root: Path, number: int = 1, *, marker: bool = True, size: int = 10) -> Path:
    directory = root / f"checkpoint-{number}"
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("model", "optimizer"):
        (directory / name).write_bytes(name.encode() * size)
    if marker:
        (directory / "state.json").write_bytes(b"{}")
    return directory


async def test_a_directory_is_left_alone_until_its_marker_exists(faults: Faults, tmp_path: Path) -> None:
    directory = unit(tmp_path / "tree", marker=False)
    (tmp_path / "tree/log").write_bytes(b"x")
    async with Syncer(tmp_path / "tree", "memory://b/p", READY) as syncer:
        report = await syncer.sync_up()
        assert (named(), objects(), report.not_ready) == ({"log"}, {"log"}, ("checkpoint-1",))
        (directory / "state.json").write_bytes(b"{}")
        report = await syncer.sync_up()
        assert (named(), report.not_ready) == ({"log", *UNIT}, ())


async def test_the_marker_is_sent_after_all_other_files(faults: Faults, tmp_path: Path) -> None:
    for number in range(3):
        unit(tmp_path / "tree", number)
    async with Syncer(tmp_path / "tree", "memory://b/p", READY) as syncer:
        await syncer.sync_up()
    puts = [request.key for request in faults.requests if request.operation == "put" and "checkpoint" in request.key]
    assert all(key.endswith("state.json") for key in puts[-3:])
    assert len(puts) == 9


@pytest.mark.parametrize("key", ["model", "optimizer", "state.json"])
async def test_no_manifest_names_half_a_unit(faults: Faults, tmp_path: Path, key: str) -> None:
    unit(tmp_path / "tree", 1)
    unit(tmp_path / "tree", 2)
    faults.fail(key=f"checkpoint-1/{key}", operation="put", times=None, error=PermissionError("no"))
    async with Syncer(tmp_path / "tree", "memory://b/p", READY) as syncer:
        with pytest.raises((SyncFailedError, PermissionError)):
            await syncer.sync_up()
    assert not {path for path in named() if path.startswith("checkpoint-1/")}
    assert "checkpoint-1/state.json" not in objects() or key == "state.json"


@pytest.mark.parametrize("call", range(1, 9))
@pytest.mark.parametrize("kind", ["fails", "is cancelled"])
async def test_whatever_request_breaks_a_unit_is_complete_or_unnamed(
    faults: Faults, tmp_path: Path, call: int, kind: str
) -> None:
    unit(tmp_path / "tree", 1)
    unit(tmp_path / "tree", 2)
    if kind == "fails":
        faults.fail(call, error=PermissionError("no"), times=2)
    else:
        faults.hang(call)
    config = SyncConfig(ready=READY.ready, sync_timeout=5)
    try:
        async with Syncer(tmp_path / "tree", "memory://b/p", config) as syncer:
            await syncer.sync_up()
    except Exception as error:
        assert isinstance(error, SyncFailedError | PermissionError | TimeoutError), error
    for number in (1, 2):
        found = {path for path in named() if path.startswith(f"checkpoint-{number}/")}
        assert found in (set(), {path.replace("-1", f"-{number}") for path in UNIT})
    faults.clear()
    async with Syncer(tmp_path / "tree", "memory://b/p", READY) as syncer:
        await syncer.sync_up()
    assert len(named()) == 6


async def test_a_unit_that_vanishes_while_it_is_sent_is_not_named(faults: Faults, tmp_path: Path) -> None:
    directory = unit(tmp_path / "tree", size=300_000)
    faults.hook(1, lambda: (directory / "optimizer").unlink(missing_ok=True), operation="put", key="model")
    async with Syncer(tmp_path / "tree", "memory://b/p", MIRROR) as syncer:
        await syncer.sync_up()
        assert named() in (set(), UNIT)
        shutil.rmtree(directory)
        (tmp_path / "tree/log").write_bytes(b"x")
        await syncer.sync_up()
    assert (named(), objects()) == ({"log"}, {"log"})


@pytest.mark.parametrize("path", ["checkpoint-1/optimizer", "alone"])
async def test_a_file_that_vanishes_once_it_is_sent_leaves_no_object(faults: Faults, tmp_path: Path, path: str) -> None:
    unit(tmp_path / "tree", size=300_000)
    (tmp_path / "tree/alone").write_bytes(b"x" * 2_000_000)
    faults.hook(1, (tmp_path / "tree" / path).unlink, operation="put", key=path, after=True)
    async with Syncer(tmp_path / "tree", "memory://b/p", MIRROR) as syncer:
        await syncer.sync_up()
        assert objects() == named() == {"alone", *UNIT} - ({path} if path == "alone" else UNIT)


async def test_a_unit_that_is_being_deleted_stays_whole_until_it_is_gone(faults: Faults, tmp_path: Path) -> None:
    directory = unit(tmp_path / "tree")
    unit(tmp_path / "tree", 2)
    async with Syncer(tmp_path / "tree", "memory://b/p", MIRROR) as syncer:
        await syncer.sync_up()
        (directory / "model").unlink()
        await syncer.sync_up()
        assert named() >= UNIT
        assert objects() >= UNIT
        (directory / "state.json").unlink()
        await syncer.sync_up()
        assert named() >= UNIT
        shutil.rmtree(directory)
        await syncer.sync_up()
    assert named() == objects() == {path.replace("-1", "-2") for path in UNIT}


async def test_a_unit_that_is_written_anew_loses_its_old_files(faults: Faults, tmp_path: Path) -> None:
    directory = unit(tmp_path / "tree")
    async with Syncer(tmp_path / "tree", "memory://b/p", MIRROR) as syncer:
        await syncer.sync_up()
        (directory / "model").unlink()
        (directory / "state.json").write_bytes(b'{"new": 1}')
        await syncer.sync_up()
    assert named() == objects() == UNIT - {"checkpoint-1/model"}


def test_directories_inside_a_unit_belong_to_it(tmp_path: Path) -> None:
    """Also where a pattern matches them: a unit is sent with all its directories or not at all."""
    (tmp_path / "step/shards/deep").mkdir(parents=True)
    for path in ("step/.metadata", "step/shards/a", "step/shards/deep/b"):
        (tmp_path / path).write_bytes(b"x")
    found = scan(str(tmp_path), Rules(ready=(("*/", (".metadata",)),)))
    assert {file.path for file in found.files} == {"step/.metadata", "step/shards/a", "step/shards/deep/b"}
    assert found.units == {"step": ("step/.metadata",)}


def test_a_marker_may_have_to_be_absent(tmp_path: Path) -> None:
    directory = unit(tmp_path)
    (directory / "trainer_state.json").write_bytes(b"{}")
    rules = Rules(ready=SyncConfig(ready="transformers").ready_rules)
    assert len(scan(str(tmp_path), rules).files) == 4
    (directory / "checkpoint-is-incomplete.txt").write_bytes(b"")
    assert scan(str(tmp_path), rules).unready == {"checkpoint-1": None}


@pytest.mark.parametrize("preset", sorted(READY_PRESETS))
def test_presets_are_rules(preset: str) -> None:
    assert SyncConfig(ready=preset).ready_rules == SyncConfig(ready=READY_PRESETS[preset]).ready_rules


@pytest.mark.parametrize(
    "wrong", ["pytorch", {"": "x"}, {"a": ""}, {"a": "!x"}, {"a": []}, 3, {"a": [1]}, {"a": 5}, {"!": "x"}]
)
def test_other_rules_are_refused(wrong) -> None:
    with pytest.raises(ConfigError, match=r"SyncConfig\.ready"):
        SyncConfig(ready=wrong)


@pytest.mark.parametrize("marker", ["./x", "../x", "/x", "a//b", "x/", "!./x"])
def test_a_marker_is_spelled_as_a_scan_finds_it(marker: str) -> None:
    """Otherwise it would be sent before the files that it says are complete."""
    with pytest.raises(ConfigError, match=r"SyncConfig\.ready"):
        SyncConfig(ready={"checkpoint-*": ["state.json", marker]})


def test_a_sync_without_rules_asks_and_sends_as_before(faults: Faults, tmp_path: Path) -> None:
    unit(tmp_path / "tree")

    async def main() -> None:
        async with Syncer(tmp_path / "tree", "memory://b/p") as syncer:
            report = await syncer.sync_up()
            assert (report.files_sent, report.not_ready) == (3, ())

    run_virtual(main())
