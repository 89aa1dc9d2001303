"""Two processes of one machine on one directory: the second learns who the first is; a dead process blocks nobody."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import ConcurrentWriterError, Syncer, push
from asyncsync.sync.tree import pair
from asyncsync.testing import run_virtual

HOLD = """
import sys
from asyncsync.disk.locks import TreeLocks
locks = TreeLocks()
for tree in sys.argv[1:]:
    locks.take(tree)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(*trees: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", HOLD, *trees]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_syncer_is_refused_while_another_process_has_its_tree(bench: Bench, tmp_path: Path) -> None:
    tree = bench.checkpoint("tree")
    with held(pair(str(tree), "memory://b/p", "")) as other:
        with pytest.raises(ConcurrentWriterError, match=f"process {other.pid}"):
            run_virtual(push(tree, "memory://b/p"))
        run_virtual(push(tree, "memory://b/elsewhere"))
        assert bench.store.bucket.objects.keys() == {"elsewhere/weights", "elsewhere/.asyncsync/manifest.json"}
        other.kill()
        other.wait()
        run_virtual(push(tree, "memory://b/p"))


def test_an_engine_is_refused_while_another_process_holds_its_lock(bench: Bench) -> None:
    """The lock is that of the experiment or of the trial."""
    local = bench.tmp_path / "local/exp"

    async def main() -> None:
        with held(pair(str(local), "memory://b/exp", "")) as other:
            with pytest.raises(ConcurrentWriterError, match=f"process {other.pid}"):
                async with bench.engine():
                    pass
        assert not bench.keys("experiment.json")
        async with bench.engine(resume=True) as engine:
            with held(pair(f"{local}/t", "memory://b/exp", "t/")) as other:
                with pytest.raises(ConcurrentWriterError, match=f"process {other.pid}"):
                    engine.trial("t")
            await engine.trial("t").report({"loss": 1.0})

    run_virtual(main())
    assert bench.keys("t/result.json")


def test_one_process_may_have_a_tree_twice(bench: Bench) -> None:
    tree = bench.checkpoint("tree")

    async def main() -> None:
        async with Syncer(tree, "memory://b/p") as one, Syncer(tree, "memory://b/p"):
            await one.sync_up()

    run_virtual(main())
