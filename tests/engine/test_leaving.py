"""Leaving by a signal: a real process, a real store in a directory."""

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from asyncsync import RunConfig, SyncEngine

PROGRAM = """
import asyncio, signal, sys
from asyncsync import RunConfig, SyncConfig, SyncEngine

async def main():
    run = RunConfig(name="exp", storage_path=sys.argv[1], sync_config=SyncConfig(sync_period=3600, sync_artifacts=True))
    async with SyncEngine(run, local_dir=sys.argv[2], handle_signals=True) as engine:
        trial = engine.trial("t")
        await trial.sync()
        await trial.report({"step": 1})
        (trial.dir / "last.log").write_text("words")
        print("ready", flush=True)
        await asyncio.Event().wait()

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_syncs_once_more_and_ends_the_process(tmp_path: Path, number: signal.Signals) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(program), str(tmp_path / "store"), str(tmp_path / "local")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert (tmp_path / "store/exp/t/last.log").read_text() == "words"
    assert '"step": 1' in (tmp_path / "store/exp/t/result.json").read_text()


def test_no_thread_outlives_the_engine(tmp_path: Path) -> None:
    async def main() -> set[str]:
        run = RunConfig(name="exp", storage_path=tmp_path / "store")
        async with SyncEngine(run, local_dir=tmp_path / "local") as engine:
            await engine.trial("t").report({"loss": 1.0})
            return {thread.name.partition("_")[0] for thread in threading.enumerate()}

    assert {"asyncsync-disk", "asyncsync-journal"} <= asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name.startswith("asyncsync"):
            thread.join(5)  # already ending: this only waits for its last instruction
            assert not thread.is_alive()
