"""A process that may open few files works with fewer requests and threads at a time, and nothing fails."""

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from unittest.mock import Mock

import pytest
from s3_script import OK, scripted

from asyncsync import Experiment, RunConfig, SyncEngine, TransferConfig, UploadMode, pull, push
from asyncsync.aio.descriptors import within_descriptors
from asyncsync.aio.retry import is_transient
from asyncsync.errors import SyncFailedError, ThrottledError
from asyncsync.stores.local.store import LocalStore

FILES = 400


@contextmanager
def descriptors(more: int) -> Iterator[None]:
    """This process may open so many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/dev/fd")}
    limit = list(islice((number for number in count() if number not in used), more))[-1] + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(FILES):
        (root / str(number)).write_bytes(b"%d" % number * 100)
    for number in range(3):
        (root / f"large{number}").write_bytes(os.urandom(11 << 20))
    return root


async def test_everything_works_with_a_few_dozen_descriptors(tmp_path: Path, tree: Path) -> None:
    transfer = TransferConfig(part_size=5 << 20, multipart_threshold=5 << 20)
    run = RunConfig(name="e", storage_path=tmp_path / "runs", transfer=transfer)
    with descriptors(44):
        await push(tree, tmp_path / "store", transfer=transfer)
        await pull(tmp_path / "store", tmp_path / "copy", transfer=transfer)
        async with SyncEngine(run, local_dir=tmp_path / "local") as engine:
            reports = [engine.trial(f"t{n}").report({}, tree, upload=UploadMode.ASYNC) for n in range(5)]
            await asyncio.gather(*reports)
        stored = await Experiment.open(tmp_path / "runs/e")
        await stored.restore(tmp_path / "restored", "t4")
    assert files(tmp_path / "copy") == files(tmp_path / "restored") == files(tree)
    assert len(stored.checkpoints) == 5


def test_a_high_limit_changes_nothing_and_a_low_one_leaves_some(monkeypatch: pytest.MonkeyPatch) -> None:
    used = len(os.listdir("/dev/fd"))
    for limit, expected in ((resource.RLIM_INFINITY, 256), (used + 1000, 256), (used + 76, 20), (used, 2)):
        monkeypatch.setattr(resource, "getrlimit", Mock(return_value=(limit, limit)))
        assert within_descriptors(256) in (expected, expected - 1)
        assert within_descriptors(1) == 1


async def test_a_missing_descriptor_is_no_outage_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.EMFILE, "Too many open files")
    async with LocalStore(tmp_path) as store, scripted([OK]) as (bucket, _):
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", Mock(side_effect=full))
            with pytest.raises(ThrottledError, match="ulimit -n"):
                await store.put("a", b"a")
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", Mock(side_effect=full))
            with pytest.raises(ThrottledError, match="ulimit -n"):
                await bucket.put("a", b"a")
        await store.put("a", b"a")
        await bucket.put("a", b"a")


def test_a_sync_that_found_no_descriptor_is_retried() -> None:
    full, broken = OSError(errno.ENFILE, "Too many open files in system"), OSError(errno.EIO, "Input/output error")
    assert is_transient(SyncFailedError("", {"a": full}))
    assert not is_transient(SyncFailedError("", {"a": full, "b": broken}))
