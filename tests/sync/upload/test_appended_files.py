"""Files that only grow, such as TensorBoard events: from 5 MiB on, only their end is sent."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from asyncsync import Syncer, TransferConfig, push
from asyncsync.report import SyncReport
from asyncsync.testing import Faults, MemoryStore, run_virtual

MIB = 1 << 20
EVENTS = "tb/events.out.tfevents.1700000000.host.1.0"


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "tree" / EVENTS
    path.parent.mkdir(parents=True)
    path.write_bytes(noise(20 * MIB + 3))
    return path


def send(root: Path, **transfer) -> SyncReport:
    return run_virtual(push(root, "memory://b/p", transfer=TransferConfig(**transfer)))


def append(path: Path, size: int, seed: int) -> None:
    with path.open("ab") as file:
        file.write(noise(size, seed))


def stored() -> bytes:
    return MemoryStore("b", "p").contents[EVENTS]


def test_a_file_that_grows_again_and_again_sends_its_new_bytes(faults: Faults, events: Path, tmp_path: Path) -> None:
    send(tmp_path / "tree")
    assert faults.count("put_part") == 0  # the first time it is one request, as before
    for seed in range(1, 6):
        append(events, 10 * 1024, seed)
        report = send(tmp_path / "tree")
        assert stored() == events.read_bytes()
        assert report.bytes_sent == 10 * 1024
    append(events, 20 * MIB, 7)  # past the threshold for one request
    assert send(tmp_path / "tree").bytes_sent == 20 * MIB
    assert stored() == events.read_bytes()
    append(events, 10 * 1024, 8)
    assert send(tmp_path / "tree").bytes_sent == 10 * 1024


def test_the_plan_says_so(faults: Faults, events: Path, tmp_path: Path) -> None:
    send(tmp_path / "tree")
    append(events, 1000, 1)

    async def main() -> None:
        async with Syncer(tmp_path / "tree", "memory://b/p") as syncer:
            before = faults.calls
            plan = await syncer.plan()
            report = await syncer.sync_up()
            assert (report.bytes_sent, report.bytes_copied) == (1000, 20 * MIB + 3)
            assert (plan.bytes_sent, plan.bytes_copied) == (1000, 20 * MIB + 3)
            assert plan.requests == faults.calls - before

    run_virtual(main())


@pytest.mark.parametrize("size", [5 * MIB - 1, 100])
def test_smaller_files_are_sent_in_one_request(faults: Faults, events: Path, tmp_path: Path, size: int) -> None:
    events.write_bytes(noise(size))
    send(tmp_path / "tree")
    append(events, 10, 1)
    faults.requests.clear()
    assert send(tmp_path / "tree").bytes_sent == size + 10
    assert faults.count("put") == 2  # the file and the manifest


@pytest.mark.parametrize("edit", ["rewritten", "edited and grown", "truncated", "touched", "a new inode"])
def test_a_file_that_did_not_only_grow_is_sent_right(faults: Faults, events: Path, tmp_path: Path, edit: str) -> None:
    send(tmp_path / "tree")
    append(events, 100, 1)
    send(tmp_path / "tree")
    if edit == "rewritten":
        events.write_bytes(noise(21 * MIB, 9))
    elif edit == "edited and grown":
        with events.open("r+b") as file:
            file.write(b"!")
        append(events, 100, 2)
    elif edit == "truncated":
        os.truncate(events, 6 * MIB)
    elif edit == "touched":
        os.utime(events, ns=(5, 5))
    else:
        data = events.read_bytes()
        events.unlink()
        (events.parent / "other").write_bytes(b"takes the inode")
        events.write_bytes(data + b"more")
    report = send(tmp_path / "tree")
    assert stored() == events.read_bytes()
    assert edit != "touched" or report.bytes_sent == 0


def test_an_object_that_was_replaced_is_not_copied(faults: Faults, events: Path, tmp_path: Path) -> None:
    send(tmp_path / "tree")
    asyncio.run(MemoryStore("b", "p").put(EVENTS, noise(20 * MIB + 3, 5)))
    append(events, 100, 1)
    send(tmp_path / "tree")
    assert stored() == events.read_bytes()


@pytest.mark.parametrize("operation", ["create_upload", "copy_part", "put_part", "complete", "put"])
@pytest.mark.parametrize("after", [False, True])
def test_a_broken_off_append_is_made_up_for(
    faults: Faults, events: Path, tmp_path: Path, operation: str, after: bool
) -> None:
    send(tmp_path / "tree")
    append(events, 1000, 1)
    faults.fail(operation=operation, times=1, after=after)
    send(tmp_path / "tree")
    append(events, 1000, 2)
    assert send(tmp_path / "tree").bytes_sent == 1000
    assert stored() == events.read_bytes()


def test_names_that_do_not_say_so_are_sent_as_a_whole(faults: Faults, events: Path, tmp_path: Path) -> None:
    model = events.with_name("model.bin")
    events.rename(model)
    send(tmp_path / "tree")
    append(model, 10, 1)
    assert send(tmp_path / "tree").bytes_sent == 20 * MIB + 13
