"""Forks, interpreter exit, other threads and loops: an engine belongs to the process, thread and loop that entered."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from asyncsync import ConfigError, EngineClosedError, Experiment, RunConfig, SyncEngine, SyncFailedError, UploadMode

BEGIN = """
import asyncio, multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from asyncsync import *
from asyncsync import AsyncsyncError

HERE = Path(sys.argv[1])
def run(name="exp", **options):
    return RunConfig(name=name, storage_path=HERE / "store", **options)
def files(name="checkpoint", size=10):
    (HERE / name).mkdir()
    (HERE / name / "w").write_bytes(os.urandom(size))
    return HERE / name
def expect(error, func, *args):
    try:
        func(*args)
    except error as raised:
        return str(raised)
    raise SystemExit(f"{func} raised nothing")
def in_child(func):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        func()
    except BaseException as error:
        print("child:", repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
"""


def execute(tmp_path: Path, code: str, seconds: float = 40.0) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"
    program.write_text(BEGIN + textwrap.dedent(code))
    environment = {**os.environ, "ASYNCSYNC_STATE_DIR": str(tmp_path / "state")}
    return subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=environment,
        check=False,
    )


def checkpoints(tmp_path: Path) -> list[str]:
    return [item.uri.rpartition("/")[2] for item in asyncio.run(Experiment.open(tmp_path / "store/exp")).checkpoints]


# fork


USES = (
    "late.checkpoint.durable()",  # first, while the upload is certainly under way
    "engine.trial('u')",
    "engine.status()",
    "engine.sync()",
    "engine.flush()",
    "trial.report({'a': 1})",
    "trial.sync()",
    "trial.finish()",
    "engine.events()",
)


def test_every_use_of_an_inherited_blocking_engine_names_its_owner(tmp_path: Path) -> None:
    """One program tries them all, each in a child of its own: the upload under way takes a while."""
    done = execute(
        tmp_path,
        f"""
        limit = TransferConfig(bandwidth_limit=2e6)
        with SyncEngine.blocking(run(transfer=limit), local_dir=HERE / "local") as engine:
            trial = engine.trial("t")
            late = trial.report({{}}, files(size=3_000_000), upload=UploadMode.ASYNC)
            for use in ({", ".join(f"lambda: {use}" for use in USES)}):
                code = in_child(lambda: print(expect(EngineClosedError, use), flush=True))
                assert code == 0, code
            trial.report({{"a": 2}})
        """,
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert ["forked from" in line for line in told] == [True] * len(USES), told
    assert checkpoints(tmp_path) == ["checkpoint_000000"]


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise ZeroDivisionError", "pass", "engine.close()", "os._exit(0)"])
def test_a_child_that_leaves_a_blocking_engine_ends_the_parent_continues(tmp_path: Path, end: str) -> None:
    done = execute(
        tmp_path,
        f"""
        signal.alarm(30)
        with SyncEngine.blocking(run(), local_dir=HERE / "local", handle_signals=True) as engine:
            engine.trial("t").report({{"a": 1}})
            pid = os.fork()
            if pid == 0:
                signal.alarm(10)
                {end}
            else:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                engine.trial("t").report({{"a": 2}}, files())
        if pid:
            print("code", code)
        """,
    )
    expected = {"sys.exit(3)": 3, "raise ZeroDivisionError": 1}.get(end, 0)
    assert f"code {expected}\n" in done.stdout, done.stderr
    assert done.returncode == 0
    assert '"a": 2' in (tmp_path / "store/exp/t/result.json").read_text()
    assert checkpoints(tmp_path) == ["checkpoint_000000"]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_child_pushes_and_runs_engines_of_its_own(tmp_path: Path, blocking: bool) -> None:
    work = """
        def work():
            signal.alarm(20)
            os.environ["ASYNCSYNC_STATE_DIR"] = str(HERE / "child-state")
            asyncio.run(push(files("tree"), HERE / "pushed"))
            with SyncEngine.blocking(run("mine"), local_dir=HERE / "child") as mine:
                mine.trial("t").report({"a": 1}, HERE / "tree")
    """
    sync = """
        with SyncEngine.blocking(run(), local_dir=HERE / "local") as engine:
            engine.trial("t").report({"a": 1}, files())
            assert in_child(work) == 0
            engine.trial("t").report({"a": 2})
    """
    coroutine = """
        async def main():
            async with SyncEngine(run(), local_dir=HERE / "local") as engine:
                await engine.trial("t").report({"a": 1}, files())
                child = multiprocessing.get_context("fork").Process(target=work)
                child.start()
                await asyncio.to_thread(child.join)
                assert child.exitcode == 0
                await engine.trial("t").report({"a": 2})
        asyncio.run(main())
    """
    done = execute(tmp_path, textwrap.dedent(work) + textwrap.dedent(sync if blocking else coroutine))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pushed/w").exists()
    assert (tmp_path / "store/mine/t/checkpoint_000000/w").exists()
    assert '"a": 2' in (tmp_path / "store/exp/t/result.json").read_text()


def test_a_fork_in_a_coroutine_neither_hangs_nor_leaves_the_engine(tmp_path: Path) -> None:
    """The engine is the parent's: the child does not leave it."""
    done = execute(
        tmp_path,
        """
        signal.alarm(30)
        async def main():
            engine = SyncEngine(run(), local_dir=HERE / "local")
            async with engine:
                trial = engine.trial("t")
                await trial.report({"a": 1})
                pid = os.fork()
                if pid == 0:
                    signal.alarm(10)
                    print(expect(EngineClosedError, engine.trial, "u"), flush=True)
                    try:
                        await trial.report({"a": 3})
                    except EngineClosedError:
                        await engine.__aexit__(None, None, None)
                        os._exit(0)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                assert code == 0, code
                await trial.report({"a": 2}, files())
        asyncio.run(main())
        """,
    )
    assert done.returncode == 0, done.stderr
    assert checkpoints(tmp_path) == ["checkpoint_000000"]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_signal_ends_a_child_as_if_there_were_no_engine(tmp_path: Path, blocking: bool) -> None:
    child = """
        def child():
            ready, begun = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.write(begun, b".")  # signals that come while Python is still forking are dropped by it
                for _ in range(20):
                    time.sleep(1)
                os._exit(0)
            os.read(ready, 1)
            os.kill(pid, signal.SIGTERM)
            print("ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        signal.alarm(30)
    """
    sync = """
        with SyncEngine.blocking(run(), local_dir=HERE / "local", handle_signals=True) as engine:
            child()
            engine.trial("t").report({"a": 2})
    """
    coroutine = """
        async def main():
            async with SyncEngine(run(), local_dir=HERE / "local", handle_signals=True) as engine:
                child()
                await asyncio.sleep(0.1)
                await engine.trial("t").report({"a": 2})
        asyncio.run(main())
    """
    done = execute(tmp_path, textwrap.dedent(child) + textwrap.dedent(sync if blocking else coroutine))
    assert (done.returncode, done.stdout) == (0, "ended with -15\n"), done.stderr
    assert '"a": 2' in (tmp_path / "store/exp/t/result.json").read_text()


def test_closing_from_another_thread_restores_the_programs_handler(tmp_path: Path) -> None:
    done = execute(
        tmp_path,
        """
        signal.alarm(30)
        engine = SyncEngine.blocking(run(), local_dir=HERE / "local", handle_signals=True)
        engine.start()
        thread = threading.Thread(target=engine.close)
        thread.start()
        thread.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
        """,
    )
    assert done.returncode == -signal.SIGTERM, done.stderr


# never closed


@pytest.mark.parametrize("end", ["pass", "raise ZeroDivisionError", "sys.exit(3)", "os.kill(os.getpid(), 2)"])
def test_an_engine_that_is_never_left_is_closed_when_the_interpreter_ends(tmp_path: Path, end: str) -> None:
    done = execute(
        tmp_path,
        f"""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        engine = SyncEngine.blocking(run(), local_dir=HERE / "local")
        engine.start()
        engine.trial("t").report({{"a": 1}}, files(), upload=UploadMode.ASYNC)
        {end}
        """,
    )
    assert "was never closed" in done.stderr
    assert checkpoints(tmp_path) == ["checkpoint_000000"]


def test_checkpoints_that_miss_the_grace_are_named_at_exit(tmp_path: Path) -> None:
    done = execute(
        tmp_path,
        """
        limit = TransferConfig(bandwidth_limit=1e5)
        engine = SyncEngine.blocking(run(transfer=limit), local_dir=HERE / "local", exit_grace=0.5)
        engine.start()
        engine.trial("t").report({}, files(size=3_000_000), upload=UploadMode.ASYNC)
        """,
        seconds=20,
    )
    assert "not durable" in done.stderr
    assert "t/checkpoint_000000" in done.stderr


ENTERED = """
async def main():
    engine = SyncEngine(run(transfer=limit), local_dir=HERE / "local", exit_grace=EXIT_GRACE)
    await engine.__aenter__()
    await engine.trial("t").report({"a": 1}, files(size=SIZE), upload=UploadMode.ASYNC)
"""


def never_left(tmp_path: Path, end: str, *, limit: float | None = None, size: int = 100, grace: float = 30.0) -> str:
    """What a process says whose program is ``end`` and that never leaves its engine."""
    settings = f"limit = TransferConfig(bandwidth_limit={limit!r})\nSIZE, EXIT_GRACE = {size}, {grace}\n"
    return execute(tmp_path, settings + ENTERED + end, seconds=30).stderr


LOOP = "loop = asyncio.new_event_loop(); loop.run_until_complete(main())"


@pytest.mark.parametrize("end", ["pass", "raise ZeroDivisionError", "sys.exit(3)"])
def test_an_async_engine_that_is_never_left_is_left_at_exit(tmp_path: Path, end: str) -> None:
    assert "was never left; leaving it now" in never_left(tmp_path, f"{LOOP}\n{end}")
    assert checkpoints(tmp_path) == ["checkpoint_000000"]


def test_an_async_engine_left_at_exit_names_what_is_not_durable(tmp_path: Path) -> None:
    said = never_left(tmp_path, LOOP, limit=1e5, size=3_000_000, grace=0.5)
    assert "not durable in" in said
    assert "t/checkpoint_000000" in said


def test_an_engine_whose_loop_is_closed_names_what_is_not_durable(tmp_path: Path) -> None:
    said = never_left(tmp_path, "asyncio.run(main())", limit=1e5, size=3_000_000)
    assert "was never left, and its event loop is closed" in said
    assert "t/checkpoint_000000" in said
    assert "the experiment's own files" in said
    assert "resume=True" in said


DAEMON = """
import threading
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
asyncio.run_coroutine_threadsafe(main(), loop).result()
"""


def test_an_engine_on_the_loop_of_a_daemon_is_left_at_exit(tmp_path: Path) -> None:
    assert "was never left; leaving it now" in never_left(tmp_path, DAEMON)
    assert checkpoints(tmp_path) == ["checkpoint_000000"]


def test_an_engine_on_the_loop_of_a_stuck_daemon_is_named(tmp_path: Path) -> None:
    stuck = "import time; from asyncsync.engine import never_left; never_left._MARGIN = 0.1"
    end = f"{DAEMON}\n{stuck}\nloop.call_soon_threadsafe(time.sleep, 1000)"
    said = never_left(tmp_path, end, limit=1e5, size=3_000_000, grace=0.5)
    assert "t/checkpoint_000000" in said


# callbacks


def test_start_and_close_are_the_block(tmp_path: Path) -> None:
    engine = SyncEngine.blocking(RunConfig(name="exp", storage_path=tmp_path / "store"), local_dir=tmp_path / "local")
    engine.close()
    engine.start()
    with pytest.raises(EngineClosedError, match="entered once"):
        engine.start()
    engine.trial("t").report({"a": 1})
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError, match="not running"):
        engine.trial("t")
    with pytest.raises(EngineClosedError, match="entered once"):
        engine.__enter__()
    assert '"a": 1' in (tmp_path / "store/exp/t/result.json").read_text()


def test_close_within_a_grace_names_everything_not_durable(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "w").write_bytes(os.urandom(3_000_000))
    from asyncsync import TransferConfig

    run = RunConfig(name="exp", storage_path=tmp_path / "store", transfer=TransferConfig(bandwidth_limit=1e5))
    engine = SyncEngine.blocking(run, local_dir=tmp_path / "local")
    engine.start()
    engine.trial("t").report({"a": 1}, directory, upload=UploadMode.ASYNC)
    with pytest.raises(SyncFailedError) as caught:
        engine.close(grace=0.3)
    assert "t/checkpoint_000000" in caught.value.failures
    with pytest.raises(ConfigError, match="grace"):
        engine.close(grace=-1)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_leaves_a_blocking_block_and_the_handler_is_back(
    tmp_path: Path, number: signal.Signals, error: type[BaseException]
) -> None:
    run = RunConfig(name="exp", storage_path=tmp_path / "store")
    before = signal.getsignal(number)
    with (
        pytest.raises(error),
        SyncEngine.blocking(run, local_dir=tmp_path / "local", handle_signals={number}) as engine,
    ):
        engine.trial("t").report({"a": 1})
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        threading.Event().wait(30)
    assert signal.getsignal(number) is before
    assert '"a": 1' in (tmp_path / "store/exp/t/result.json").read_text()


def test_a_signal_while_a_blocking_engine_is_left_begins_the_grace(tmp_path: Path) -> None:
    """Repeated signals are ignored."""
    done = execute(
        tmp_path,
        """
        limit = TransferConfig(bandwidth_limit=1e5)
        began = time.monotonic()
        try:
            with SyncEngine.blocking(
                run(transfer=limit), local_dir=HERE / "local", handle_signals=True, exit_grace=1.0
            ) as engine:
                engine.trial("t").report({}, files(size=5_000_000), upload=UploadMode.ASYNC)
                for delay in (0.3, 0.4, 0.6):
                    threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM)).start()
        except SystemExit as error:
            assert time.monotonic() - began < 15
            print(error.code, error.__notes__, flush=True)
        """,
    )
    assert done.stdout.startswith("143 "), done.stderr
    assert "asyncsync: not durable:" in done.stdout
    assert "t/checkpoint_000000" in done.stdout


def test_a_blocking_engine_off_the_main_thread_refuses_signals(tmp_path: Path) -> None:
    """It starts nothing then."""
    seen: list[str] = []

    def enter() -> None:
        run = RunConfig(name="exp", storage_path=tmp_path / "store")
        try:
            SyncEngine.blocking(run, local_dir=tmp_path / "local", handle_signals=True).start()
        except ConfigError as error:
            seen.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert "main thread" in seen[0]
    assert not (tmp_path / "store").exists()


# elsewhere


def test_another_loop_and_another_thread_are_refused(tmp_path: Path) -> None:
    async def elsewhere(engine: SyncEngine, trial: object) -> None:
        for call in (engine.sync, engine.flush, lambda: trial.report({"a": 1}), trial.sync):  # type: ignore[attr-defined]
            with pytest.raises(ConfigError, match="another event loop or thread"):
                await call()  # type: ignore[operator]

    def in_thread(engine: SyncEngine, trial: object) -> None:
        with pytest.raises(ConfigError, match="another event loop or thread"):
            engine.trial("other")
        asyncio.run(elsewhere(engine, trial))

    async def main() -> None:
        async with SyncEngine(RunConfig(name="e", storage_path=tmp_path / "s"), local_dir=tmp_path / "l") as engine:
            await asyncio.to_thread(in_thread, engine, engine.trial("t"))

    asyncio.run(main())
