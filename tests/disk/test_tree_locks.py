"""Locks of trees: held by one process of a machine at a time, whatever becomes of it."""

import errno
import fcntl
import os
import struct
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from asyncsync.config import state_dir
from asyncsync.disk.locks import FLOCK_LAYOUT, TreeLocks, _LockFiles
from asyncsync.errors import ConcurrentWriterError


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYNCSYNC_STATE_DIR", str(tmp_path / "state"))


HOLD = """
import sys
from asyncsync.disk.locks import TreeLocks
TreeLocks().take("t")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def tree_lock(tree):
    """Be the only process of this machine that works on ``tree``."""
    locks = TreeLocks()
    locks.take(tree)
    try:
        yield
    finally:
        locks.close()


def test_a_lock_dies_with_its_holder():
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConcurrentWriterError, match=f"process {holder.pid}"), tree_lock("t"):
            pass
        holder.kill()
        holder.wait()
    with tree_lock("t"):
        pass


@pytest.mark.parametrize("answer", ["a process without an ID here", "an error"])
def test_a_holder_that_cannot_be_named_holds_its_lock(monkeypatch, answer):
    """Such as one in another container, whose process IDs are its own."""

    def holder(descriptor, command, request):
        if answer == "an error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        response = list(struct.unpack(FLOCK_LAYOUT[0], ask(descriptor, command, request)))
        response[FLOCK_LAYOUT[2]] = 0
        return struct.pack(FLOCK_LAYOUT[0], *response)

    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        ask = fcntl.fcntl
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "fcntl", holder)
            for _ in range(2):
                with pytest.raises(ConcurrentWriterError, match="by another process;"), tree_lock("t"):
                    pass
        assert not _free_elsewhere("t")
        process.kill()


def test_a_process_holds_a_lock_until_its_last_user_frees_it():
    one, two = TreeLocks(), TreeLocks()
    one.take("t")
    two.take("t")
    with pytest.raises(ConcurrentWriterError, match=f"process {os.getpid()}"):
        TreeLocks().take("t", alone=True)
    one.close()
    assert not _free_elsewhere("t")
    two.close()
    assert _free_elsewhere("t")


def test_thousands_of_locks_cost_two_descriptors_and_one_kernel_lock():
    """The kernel walks through all locks of a file for each new one."""
    locks = TreeLocks()
    descriptors, held = len(os.listdir("/proc/self/fd")), _kernel_locks()
    for number in range(3000):
        locks.take(f"t{number}")
    assert len(os.listdir("/proc/self/fd")) == descriptors + 2
    assert _kernel_locks() == held + 1
    locks.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert not list((state_dir() / "claims").iterdir())


def _kernel_locks() -> int:
    return sum(line.split()[4] == str(os.getpid()) for line in Path("/proc/locks").read_text().splitlines())


SCRAMBLE = """
import random, sys
from asyncsync.disk.locks import TreeLocks
from asyncsync.errors import ConcurrentWriterError
trees, mine = list(range(300)), []
random.shuffle(trees)
sys.stdin.readline()
locks = TreeLocks()
for tree in trees:
    try:
        locks.take(f"tree {tree}")
        mine.append(tree)
    except ConcurrentWriterError as error:
        assert "process " in str(error), error
print(*mine, flush=True)
sys.stdin.read()
"""


def test_each_tree_is_held_by_exactly_one_of_several_processes():
    with ExitStack() as stack:
        command, pipe = [sys.executable, "-c", SCRAMBLE], subprocess.PIPE
        all_of_them = [stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe)) for _ in range(4)]
        for process in all_of_them:
            process.stdin.write(b"go\n")
            process.stdin.flush()
        taken = [int(tree) for process in all_of_them for tree in process.stdout.readline().split()]
        for process in all_of_them:
            process.kill()
    assert sorted(taken) == list(range(300))
    with tree_lock("tree 7"):
        assert len(list((state_dir() / "claims").iterdir())) == 1  # nothing of the killed ones is left


def test_a_released_lock_is_free_while_others_are_held_in_a_short_file():
    with tree_lock("t"):
        for number in range(10_000):
            with tree_lock(f"t{number}"):
                pass
        (claims,) = (state_dir() / "claims").iterdir()
        assert claims.stat().st_size < 50_000
        assert _free_elsewhere("t9999")
        assert not _free_elsewhere("t")


ROTATE = """
import sys
from asyncsync.disk.locks import SPARE_ENTRIES, TreeLocks
TreeLocks().take("t")
print("held", flush=True)
sys.stdin.readline()
for number in range(SPARE_ENTRIES):
    locks = TreeLocks()
    locks.take(f"other {number}")
    locks.close()
print("replaced", flush=True)
sys.stdin.read()
"""


def test_a_lock_is_seen_although_its_file_is_replaced_at_that_moment(monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ROTATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        look = _LockFiles._look

        def replaced_first(files, place):
            monkeypatch.setattr(_LockFiles, "_look", look)
            holder.stdin.write(b"now\n")
            holder.stdin.flush()
            assert holder.stdout.readline() == b"replaced\n"
            return look(files, place)

        monkeypatch.setattr(_LockFiles, "_look", replaced_first)
        with pytest.raises(ConcurrentWriterError, match=f"process {holder.pid}"), tree_lock("t"):
            pass


def test_another_process_sees_what_is_taken_and_released_later():
    with subprocess.Popen([sys.executable, "-c", FOLLOW], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:

        def is_free() -> bytes:
            other.stdin.write(b"t\n")
            other.stdin.flush()
            return other.stdout.readline()

        assert is_free() == b"True\n"
        with tree_lock("another"):
            assert is_free() == b"True\n"
            with tree_lock("t"):
                assert is_free() == b"False\n"
            assert is_free() == b"True\n"
            with tree_lock("t"):
                assert is_free() == b"False\n"
        assert is_free() == b"True\n"
        other.kill()


FOLLOW = """
import sys
from asyncsync.disk.locks import TreeLocks
from asyncsync.errors import ConcurrentWriterError
TreeLocks().take("mine")
for line in sys.stdin:
    locks = TreeLocks()
    try:
        locks.take(line.strip())
        free = True
    except ConcurrentWriterError:
        free = False
    locks.close()
    print(free, flush=True)
"""


def _free_elsewhere(tree) -> bool:
    """Whether a child process can take the lock."""
    child = os.fork()
    if child == 0:
        try:
            TreeLocks().take(tree)
        except ConcurrentWriterError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_neither_has_the_lock_nor_takes_it_away():
    with tree_lock("t"):
        assert not _free_elsewhere("t")
        assert not _free_elsewhere("t")
    assert _free_elsewhere("t")


def test_without_a_writable_directory_it_warns_and_continues(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ASYNCSYNC_STATE_DIR", str(tmp_path / "file"))
    with tree_lock("t"):
        assert "would not be noticed" in caplog.text


def test_a_claim_that_cannot_be_removed_is_released_all_the_same(monkeypatch, caplog):
    def refuse(path):
        raise OSError(errno.EIO, "Input/output error", path)

    with monkeypatch.context() as patch, tree_lock("t"):
        patch.setattr(os, "unlink", refuse)
    assert "another one will" in caplog.text
    assert _free_elsewhere("t")
    with tree_lock("t"):
        pass
    assert os.listdir(state_dir() / "claims") == []
