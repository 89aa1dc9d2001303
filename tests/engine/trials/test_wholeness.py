"""A checkpoint is stored exactly as it was accepted, or not at all.

The sweeps change the directory at the n-th request to the store, for every n.
"""

import os
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import pytest
from onebench import Bench

from asyncsync import (
    AsyncsyncError,
    Checkpoint,
    CheckpointConfig,
    SourceChangedError,
    TransferConfig,
    UploadMode,
)
from asyncsync.errors import CheckpointIncompleteError
from asyncsync.events import CheckpointFailed
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.testing import run_virtual

MIB = 1 << 20
SPLIT = TransferConfig(multipart_threshold=5 * MIB, part_size=5 * MIB, max_attempts=1)
KEEP_ONE = CheckpointConfig(num_to_keep=1)
REFUSED = (SourceChangedError, CheckpointIncompleteError)


def stored(bench: Bench, name: str, trial: str = "t") -> dict[str, bytes]:
    """The files in a checkpoint's manifest, each checked against it; empty if there is no manifest."""
    contents, prefix = bench.store.contents, f"{trial}/{name}/"
    if prefix + MANIFEST not in contents:
        return {}
    entries = Manifest.from_bytes(contents[prefix + MANIFEST]).files
    found = {path: contents[prefix + path] for path in entries}
    for path, entry in entries.items():
        assert (len(found[path]), google_crc32c.value(found[path])) == (entry.size, entry.crc32c), path
    return found


def files_of(directory: Path) -> dict[str, bytes]:
    """Through links, as a checkpoint is sent."""
    found = {}
    for parent, _, names in os.walk(directory, followlinks=True):
        for name in names:
            path = Path(parent, name)
            found[str(path.relative_to(directory))] = path.read_bytes()
    return found


# Changes of a directory during its upload. Each returns the path that the error must name.


def remove(root: Path) -> str:
    (root / "sub/b").unlink()
    return "sub/b"


def remove_everything(root: Path) -> str:
    for path in [root / "a", root / "sub/b", root / "sub"]:
        path.rmdir() if path.is_dir() else path.unlink()
    return "sub/b"


def overwrite(root: Path) -> str:
    size = (root / "sub/b").stat().st_size
    with open(root / "sub/b", "r+b") as file:
        file.write(b"!" * size)
    return "sub/b"


def replace(root: Path) -> str:
    data = (root / "sub/b").read_bytes()
    (root / "../new").write_bytes(data[::-1])
    os.replace(root / "../new", root / "sub/b")
    return "sub/b"


def truncate(root: Path) -> str:
    os.truncate(root / "sub/b", 10)
    return "sub/b"


def append(root: Path) -> str:
    with open(root / "sub/b", "ab") as file:
        file.write(b"more")
    return "sub/b"


def add(root: Path) -> str:
    (root / "added").write_bytes(b"late")
    return "added"


def directory_to_link(root: Path) -> str:
    """To a directory that looks the same and holds other bytes."""
    other = root / "../other"
    other.mkdir()
    data, times = (root / "sub/b").read_bytes(), (root / "sub/b").stat()
    (other / "b").write_bytes(data[::-1])
    os.utime(other / "b", ns=(times.st_atime_ns, times.st_mtime_ns))
    (root / "sub").rename(root / "../was")
    (root / "sub").symlink_to(other)
    return "sub/b"


def retarget(root: Path) -> str:
    other = root / "../elsewhere"
    other.write_bytes(b"another file")
    (root / "link").unlink()
    (root / "link").symlink_to(other)
    return "link"


def break_link(root: Path) -> str:
    (root / "link").unlink()
    (root / "link").symlink_to(root / "../nothing")
    return "link"


def file_to_pipe(root: Path) -> str:
    (root / "sub/b").unlink()
    os.mkfifo(root / "sub/b")
    return "sub/b"


def file_to_directory(root: Path) -> str:
    (root / "sub/b").unlink()
    (root / "sub/b").mkdir()
    (root / "sub/b/c").write_bytes(b"deep")
    return "sub/b"


HAPPENINGS = [
    remove,
    remove_everything,
    overwrite,
    replace,
    truncate,
    append,
    add,
    directory_to_link,
    retarget,
    break_link,
    file_to_pipe,
    file_to_directory,
]


def make(root: Path, size: int) -> Path:
    """Two files, one of them of ``size`` bytes, and a link that leaves the directory."""
    (root / "c/sub").mkdir(parents=True)
    (root / "target").write_bytes(b"linked")
    (root / "c/a").write_bytes(b"a" * 100)
    (root / "c/sub/b").write_bytes(bytes(range(256)) * (size // 256))
    (root / "c/link").symlink_to(root / "target")
    for path in (root / "c/a", root / "c/sub/b", root / "target"):
        os.utime(path, ns=(10**18, 10**18))  # long ago: only changes from now on count
    return root / "c"


def act(bench: Bench, at: int, size: int, mode: UploadMode, happen: Callable[[Path], str]) -> bool:
    """One run in which it happens at request ``at`` of the second checkpoint; whether there was such a request."""
    run_name = f"{happen.__name__}{at}"
    root = make(bench.tmp_path / run_name, size)
    before, path, left, count = files_of(root), "", dict[str, bytes](), 0

    async def main() -> None:
        def strike() -> None:
            nonlocal path, left, count
            count += any(job.name not in trial._state.keeper.stored_names for job in trial._state.jobs)
            if count == at and not path:
                path = happen(root)
                left = {} if happen in (file_to_pipe, break_link) else files_of(root)

        async with bench.engine(keep=KEEP_ONE, local_dir=bench.tmp_path / f"{run_name}/local", resume=True) as engine:
            stream = engine.events()
            trial = engine.trial("t")
            good = await trial.report({"x": 1}, bench.checkpoint())
            assert good.checkpoint is not None
            bench.faults.clear()
            bench.faults.hook(1, strike, times=None)
            handle, error = None, None
            try:
                handle = (await trial.report({"x": 2}, Checkpoint.take(root), upload=mode)).checkpoint
                if handle is not None:
                    await handle.durable()
            except AsyncsyncError as caught:
                error = caught
            bench.faults.clear()
            name = f"checkpoint_{int(good.checkpoint.name[-6:]) + 1:06d}"
            if error is None:
                assert stored(bench, name) == before
            else:
                assert isinstance(error, REFUSED), repr(error)
                assert path in str(error)
                assert f"t/{name}/{MANIFEST}" not in bench.keys()
                assert stored(bench, good.checkpoint.name)
                assert trial._state.record.checkpoints[-1].name == good.checkpoint.name
                if left:
                    assert files_of(root) == left
                again = await trial.report({"x": 3}, bench.checkpoint("again"))
                assert again.checkpoint is not None
                assert stored(bench, again.checkpoint.name)
        if error is not None:
            assert not [key for key in bench.keys() if key.startswith(f"t/{name}/")]
        events = [event async for event in stream]
        failed = [event.checkpoint for event in events if isinstance(event, CheckpointFailed)]
        assert failed == ([name] if error is not None else [])

    run_virtual(main())
    return bool(path)


@pytest.mark.parametrize("mode", [UploadMode.SYNC, UploadMode.ASYNC])
@pytest.mark.parametrize("happen", HAPPENINGS)
def test_a_small_directory_is_stored_as_it_was_or_not_at_all(
    bench: Bench, happen: Callable[[Path], str], mode: UploadMode
) -> None:
    """This holds for every change of the directory meanwhile."""
    at = 1
    while act(bench, at, 1024, mode, happen):
        at += 1
    assert at > 4


@pytest.mark.parametrize("happen", [remove, overwrite, replace, truncate, append, directory_to_link, file_to_pipe])
def test_a_large_file_is_stored_as_it_was_or_not_at_all(bench: Bench, happen: Callable[[Path], str]) -> None:
    """This holds for every change of the file meanwhile."""
    bench.transfer = SPLIT
    at = 1
    while act(bench, at, 11 * MIB, UploadMode.SYNC, happen):
        at += 1
    assert at > 6
