"""Download targets without modes or times, and targets that change meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from stored import files_of

from asyncsync import SyncFailedError, TransferConfig, pull, push
from asyncsync.disk.descent import Beneath
from asyncsync.disk.landing import Landing
from asyncsync.planning.manifest import FileEntry
from asyncsync.stores import register_scheme
from asyncsync.testing import FaultyStore, MemoryStore, reset_memory, run_virtual

URI = "memory://b/tree"
PARTS = TransferConfig(part_size=5 << 20, multipart_threshold=5 << 20)


@pytest.fixture(autouse=True)
def _empty() -> None:
    reset_memory()


@pytest.mark.parametrize("call", ["fchmod", "utime"])
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_target_without_modes_or_times_gets_the_files_and_one_warning(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    for name in ("a", "b", "d/c"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes(name.encode() * 400_000)
    run_virtual(push(tree, URI))
    sent = files_of(tree)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    report = run_virtual(pull(URI, tmp_path / "target"))
    assert files_of(tmp_path / "target") == sent
    assert len(report.warnings) == 1
    assert run_virtual(pull(URI, tmp_path / "target")).files_sent == 0


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("size", [2_000, 2_000_000])
def test_a_directory_that_is_swapped_for_a_link_meanwhile_leads_nowhere(
    tree: Path, tmp_path: Path, size: int, *, inside: bool
) -> None:
    (tree / "d").mkdir()
    for number in range(20):
        (tree / f"d/{number}").write_bytes(os.urandom(size))
    run_virtual(push(tree, URI))
    victim, target = tmp_path / "victim", tmp_path / "target"
    victim.mkdir()
    reads = 0

    class Swapping(FaultyStore):
        async def read(self, key: str, *args: object, **options: object) -> object:
            nonlocal reads
            reads += key.startswith("d/")
            if reads == 3 and not (target / "d").is_symlink():
                (target / "d").rename(target / "old" if inside else tmp_path / "old")
                (target / "d").symlink_to(victim)
            return await super().read(key, *args, **options)  # type: ignore[arg-type]

    register_scheme("swapping", lambda *_: Swapping(MemoryStore("b", "tree")))
    with pytest.raises(SyncFailedError):
        run_virtual(pull("swapping://x", target, transfer=TransferConfig(max_concurrency=4)))
    assert list(victim.iterdir()) == []


@pytest.mark.parametrize("step", ["create", "write", "finish", "drop"])
def test_no_step_of_a_landing_follows_a_link_that_leads_outside(tmp_path: Path, step: str) -> None:
    target, victim = tmp_path / "target", tmp_path / "victim"
    (target / "d").mkdir(parents=True)
    victim.mkdir()
    (victim / "f").write_bytes(b"theirs")
    landing = Landing(Beneath(str(target)), FileEntry("d/f", 3, 0, 0o644, 0, 0, ("",), (0,), ""))
    steps = {"create": landing.create, "write": lambda: landing.write(0, b"abc", 0), "finish": landing.finish}
    for name, act in steps.items():
        if name == step:
            break
        if name != "finish" or step != "drop":
            act()
    (target / "d").rename(tmp_path / "old")
    (target / "d").symlink_to(victim)
    if step == "drop":
        landing.drop()
    else:
        with pytest.raises(OSError, match="leads outside"):
            steps[step]()
        landing.drop()
    assert files_of(victim) == {"f": b"theirs"}


def test_another_directory_in_the_place_of_the_target_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "d").mkdir(parents=True)
    below = Beneath(str(target))
    with below.opened("d"):
        target.rename(tmp_path / "moved")
    (target / "d").mkdir(parents=True)
    with pytest.raises(OSError, match="taken its place"), below.opened("d"):
        pass


def test_a_link_to_a_directory_of_the_target_counts_as_that_directory(tree: Path, tmp_path: Path) -> None:
    (tree / "d").mkdir()
    (tree / "d/f").write_bytes(b"1")
    run_virtual(push(tree, URI))
    target = tmp_path / "target"
    (target / "real").mkdir(parents=True)
    (target / "d").symlink_to("real")
    run_virtual(pull(URI, target))
    assert (target / "real/f").read_bytes() == b"1"
    assert (target / "d").is_symlink()


def test_a_target_without_locks_gets_the_files_and_keeps_nothing_temporary(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "large").write_bytes(os.urandom(3_000_000))
    run_virtual(push(tree, URI))
    monkeypatch.setattr("asyncsync.disk.landing.fcntl.flock", _without_locks)
    run_virtual(pull(URI, tmp_path / "target"))
    assert files_of(tmp_path / "target") == files_of(tree)


def _without_locks(*_: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


async def test_a_file_that_could_not_be_made_is_made_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves neither a temporary file nor an open one."""
    tree, store, copy = tmp_path / "tree", tmp_path / "store", tmp_path / "copy"
    for root in (tree, copy):
        root.mkdir()
        (root / "f").write_bytes(os.urandom(11 << 20))
    await push(tree, store, transfer=PARTS)

    def refuse(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(SyncFailedError, match=r"f: .*Input/output error"):
            await pull(store, copy, transfer=PARTS)
    await pull(store, copy, transfer=PARTS)
    assert files_of(copy) == files_of(tree)
    assert [path.name for path in copy.iterdir()] == ["f"]
