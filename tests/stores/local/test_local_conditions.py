"""Conditional and atomic writes of the local store: locks, races, leases."""

import asyncio
import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest
from test_local_store import files, tree

from asyncsync.aio import threads
from asyncsync.disk.files import FileRange
from asyncsync.errors import (
    AccessDeniedError,
    LeaseExpiredError,
    NotFoundError,
    PreconditionError,
    StoreError,
    UnavailableError,
)
from asyncsync.stores.base import MISSING
from asyncsync.stores.local import files as local_files
from asyncsync.stores.local import multipart
from asyncsync.stores.local import publish as local_publish
from asyncsync.stores.local.store import LocalStore
from asyncsync.testing.conformance.leases import CountedLease, leased

MIB = 1 << 20


# conditions


async def test_stores_with_other_roots_exclude_each_other(root):
    outer, inner = LocalStore(root), LocalStore(root / "trial")
    old = await inner.put(".asyncsync/trial.json", b"0")
    puts = [
        store.put(key, f"{number}".encode() * number, if_version=old.version)
        for number in range(1, 7)
        for store, key in ((outer, "trial/.asyncsync/trial.json"), (inner, ".asyncsync/trial.json"))
    ]
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert sum(not isinstance(result, PreconditionError) for result in results) == 1


COUNT_UP = """
import asyncio, sys
from pathlib import Path
from asyncsync.errors import PreconditionError
from asyncsync.stores.local.store import LocalStore

async def main():
    store, done = LocalStore(Path(sys.argv[1])), 0
    while done < 20:
        data, info = await store.get("d/counter")
        try:
            await store.put("d/counter", str(int(data) + 1).encode(), if_version=info.version)
        except PreconditionError:
            continue
        done += 1

asyncio.run(main())
"""


def test_processes_that_replace_on_a_condition_lose_no_update(root):
    asyncio.run(LocalStore(root).put("d/counter", b"0"))
    command = [sys.executable, "-c", COUNT_UP, str(root)]
    with subprocess.Popen(command) as one, subprocess.Popen(command) as other:
        assert (one.wait(), other.wait()) == (0, 0)
    assert (root / "d" / "counter").read_bytes() == b"40"


def refusing(code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.fixture(params=["links", "renames", "neither"])
def names(request, monkeypatch):
    """The system calls that name a file without replacing another."""
    if request.param != "links":
        monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    if request.param == "neither":
        monkeypatch.setattr(local_publish, "rename_exclusive", refusing(errno.EINVAL))
    return request.param


async def complete(store, key, data, **condition):
    upload = await store.create_multipart(key)
    part = await store.put_part(upload, 1, 0, data)
    try:
        return await store.complete_multipart(upload, [part], **condition)
    finally:
        await store.abort_multipart(upload)


async def copy(store, key, data, **condition):
    await store.put("source", data)
    try:
        return await store.copy("source", key, **condition)
    finally:
        await store.delete(["source"])


async def put(store, key, data, **condition):
    return await store.put(key, data, **condition)


@pytest.mark.parametrize("write", [put, copy, complete])
async def test_every_write_can_create_only(store, root, names, write):
    await write(store, "x", b"first", if_version=MISSING)
    with pytest.raises(PreconditionError):
        await write(store, "x", b"second", if_version=MISSING)
    assert (root / "x").read_bytes() == b"first"
    assert files(root) == ["x"] if names != "neither" else [".asyncsync/.lock", "x"]


@pytest.mark.parametrize("write", [put, copy, complete])
async def test_an_object_made_at_the_last_moment_is_not_overwritten(store, root, names, write, monkeypatch):
    """It makes it unconditionally: no lock of ours keeps it away."""
    if names == "neither":
        pytest.skip("then we exclude only each other")
    place, name = (os, "link") if names == "links" else (local_publish, "rename_exclusive")
    give = getattr(place, name)

    def late(old, new, **more):
        (root / "x").write_bytes(b"theirs")
        give(old, new, **more)

    monkeypatch.setattr(place, name, late)
    with pytest.raises(PreconditionError):
        await write(store, "x", b"ours", if_version=MISSING)
    assert (root / "x").read_bytes() == b"theirs"
    assert files(root) == ["x"]


def test_a_rename_that_does_not_replace(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    try:
        with pytest.raises(FileExistsError):
            local_publish.rename_exclusive(str(tmp_path / "a"), str(tmp_path / "b"))
        local_publish.rename_exclusive(str(tmp_path / "a"), str(tmp_path / "c"))
    except OSError as error:
        pytest.skip(f"not here: {error}")
    assert (tmp_path / "b").read_bytes() == b"b"
    assert (tmp_path / "c").read_bytes() == b"a"


async def test_an_upload_killed_after_naming_its_object_is_complete(store, root, monkeypatch):
    """Its data are the object's: another part would change that."""
    upload = await store.create_multipart("x")
    part = await store.put_part(upload, 1, 0, b"data")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refusing(errno.EIO))
        with pytest.raises(UnavailableError):
            await store.complete_multipart(upload, [part], if_version=MISSING)
    for call in (store.put_part(upload, 1, 0, b"late"), store.complete_multipart(upload, [part])):
        with pytest.raises(NotFoundError):
            await call
    assert (root / "x").read_bytes() == b"data"
    await store.abort_multipart(upload)
    assert files(root) == ["x"]


@pytest.mark.parametrize("last", [1, 2, 3])
@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_a_put_whose_lease_expires_midway_leaves_only_the_old_object(store, root, tmp_path, kind, last):
    old = await store.put("x", b"old")
    for condition in (None, old.version):
        with pytest.raises(LeaseExpiredError):
            await store.put("x", leased(kind, b"new", CountedLease(last), tmp_path), if_version=condition)
    with pytest.raises(LeaseExpiredError):
        await store.put("new", leased(kind, b"new", CountedLease(last), tmp_path), if_version=MISSING)
    assert (root / "x").read_bytes() == b"old"
    assert set(files(root)) <= {"x", ".asyncsync/.lock"}


async def test_a_write_that_waited_past_its_lease_replaces_nothing(store, root, monkeypatch):
    """The lease has expired when the version has been looked at."""
    old, lease = await store.put("x", b"old"), CountedLease()
    current = local_publish._current

    def looked_at(target):
        lease.last = lease.checks + 1
        return current(target)

    monkeypatch.setattr(local_publish, "_current", looked_at)
    with pytest.raises(LeaseExpiredError):
        await store.put("x", leased("memory", b"new", lease, None), if_version=old.version)
    assert (root / "x").read_bytes() == b"old"


async def test_create_only_works_without_hard_links(store, root, names):
    results = await asyncio.gather(
        *(store.put("x", str(number).encode(), if_version=MISSING) for number in range(8)), return_exceptions=True
    )
    assert sum(not isinstance(result, PreconditionError) for result in results) == 1


async def test_the_lock_file_goes_with_the_last_object(store, root):
    old = await store.put("trial/.asyncsync/trial.json", b"0")
    await store.put("trial/.asyncsync/trial.json", b"1", if_version=old.version)
    await store.delete(["trial/.asyncsync/trial.json"])
    assert tree(root) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
async def test_a_file_system_without_locks_keeps_conditions_and_is_told_once(store, root, monkeypatch, caplog, code):
    def refuse(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(local_publish.fcntl, "flock", refuse)
    monkeypatch.setattr(local_publish, "_warned_devices", set())
    old = await store.put("t/.asyncsync/trial.json", b"0")
    new = await store.put("t/.asyncsync/trial.json", b"1", if_version=old.version)
    with pytest.raises(PreconditionError):
        await store.put("t/.asyncsync/trial.json", b"2", if_version=old.version)
    await store.put("t/.asyncsync/trial.json", b"3", if_version=new.version)
    await store.delete(["t/.asyncsync/trial.json"])
    assert tree(root) == []
    assert caplog.text.count("has no locks") == 1


async def test_a_lock_of_a_stopped_process_is_waited_for_as_long_as_the_caller(store, root):
    old = await store.put("x", b"old")
    (root / ".asyncsync").mkdir()
    with (root / ".asyncsync/.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        put = asyncio.create_task(store.put("x", b"new", if_version=old.version))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(put, 0.1)
        with pytest.raises(LeaseExpiredError):
            await store.put("x", leased("memory", b"new", CountedLease(9), None), if_version=old.version)
    assert (root / "x").read_bytes() == b"old"
    assert (await store.put("x", b"new", if_version=old.version)).size == 3


# atomic


async def test_a_reader_sees_one_version_while_another_is_put(store):
    old = await store.put("x", b"o" * 3 * MIB)
    pieces = []

    async def sink(piece):
        if not pieces:
            await store.put("x", b"n" * 3 * MIB)
        pieces.append(piece)

    info = await store.read("x", sink)
    assert set(b"".join(pieces)) == {ord("o")}
    assert info.version == old.version


@pytest.mark.parametrize("name", ["pwrite", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, StoreError), (errno.EACCES, AccessDeniedError), (errno.EIO, UnavailableError)],
)
async def test_a_put_that_fails_leaves_the_old_object_and_nothing_else(store, root, monkeypatch, name, code, error):
    await store.put("x", b"old")

    def refuse(*args):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, refuse)
        with pytest.raises(error, match=os.strerror(code)) as caught:
            await store.put("x", b"new")
    assert caught.value.retryable is (error is UnavailableError)
    assert files(root) == ["x"]
    assert (await store.get("x"))[0] == b"old"


async def test_a_directory_that_may_not_be_written_is_access_denied(store, monkeypatch):
    def refuse(path, *args):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PermissionError):
        await store.put("x", b"")


async def test_a_cancelled_put_has_stopped_when_it_raises(store, root, tmp_path, monkeypatch):
    """The worker stands in the middle of the file; the cancel waits for it, and nothing of it stays."""
    (tmp_path / "f").write_bytes(bytes(4 * MIB))
    inside, go_on, copied = threading.Event(), threading.Event(), []
    monkeypatch.setattr(local_files, "COPY_STEP", MIB)
    real = os.copy_file_range

    def slow(*args):
        copied.append(args)
        inside.set()
        go_on.wait()
        return real(*args)

    monkeypatch.setattr(os, "copy_file_range", slow)
    task = asyncio.create_task(store.put("x", FileRange(str(tmp_path / "f"), 0, 4 * MIB - 1)))
    while not inside.is_set():
        await asyncio.sleep(0)
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()  # impatience changes nothing
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(copied) == 1
    assert files(root) == []


async def test_an_upload_that_a_stuck_thread_may_still_write_is_not_resumed(store, monkeypatch):
    monkeypatch.setattr(threads, "STUCK_SECONDS", 0.05)
    reached, alive = asyncio.Event(), threading.Event()
    loop, sync_to_disk = asyncio.get_running_loop(), os.fsync
    upload = await store.create_multipart("x")

    def fsync(descriptor):
        loop.call_soon_threadsafe(reached.set)
        alive.wait(60)
        sync_to_disk(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    put = asyncio.create_task(store.put_part(upload, 1, 0, b"old"))
    try:
        await reached.wait()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        with pytest.raises(NotFoundError, match="stuck"):
            await store.list_parts(upload)
    finally:
        alive.set()
    threads.stop_threads()
    while multipart._being_written:
        await asyncio.sleep(0)
    assert await store.list_parts(upload) == []


async def test_a_small_put_is_one_thread_hop(store, monkeypatch):
    loop = asyncio.get_running_loop()
    hops = []
    real = loop.run_in_executor
    monkeypatch.setattr(loop, "run_in_executor", lambda *args: hops.append(args) or real(*args))
    await store.put("x", b"data")
    assert len(hops) == 1
