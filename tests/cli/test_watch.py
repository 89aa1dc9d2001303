"""``watch`` beside a training in another container: markers, health, and its end."""

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import servers

from asyncsync.cli.running.health import Health
from asyncsync.cli.running.watch import _poll
from asyncsync.report import SyncReport

from .conftest import Invoke, start

SECONDS = 60.0


@pytest.fixture
def free_port() -> int:
    return servers._free_ports(1)[0]


def wait_for(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_sidecar_waits_syncs_whole_directories_and_ends_with_a_file(tmp_path: Path, free_port: int) -> None:
    root, store, done = tmp_path / "later", tmp_path / "store", tmp_path / "done"
    log = tmp_path / "log"
    options = ["--period", "0.2", "--ready", "transformers", "--wait-for-directory", "--until-file", done]
    options += ["--health-port", free_port, "--health-host", "127.0.0.1", "--max-lag", "60"]
    process = start("watch", root, store, *options, "--on-durable", f'echo "$ASYNCSYNC_URL" >> {log}')
    wait_for(lambda: _reachable(free_port))
    assert get(free_port, "/healthz")[0] == 200
    (root / "checkpoint-1").mkdir(parents=True)
    (root / "checkpoint-1/model").write_bytes(b"m")
    (root / "other").write_bytes(b"o")
    wait_for((store / "other").exists)
    assert not (store / "checkpoint-1").exists()
    (root / "checkpoint-1/trainer_state.json").write_text("{}")
    wait_for((store / "checkpoint-1/trainer_state.json").exists)
    wait_for(lambda: "asyncsync_files_sent_total 3" in get(free_port, "/metrics")[1])
    (root / "last").write_bytes(b"l")
    done.touch()
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert (store / "last").exists()
    assert set(log.read_text().split()) == {str(store)}


def _reachable(port: int) -> bool:
    try:
        get(port, "/healthz")
    except OSError:
        return False
    return True


def test_health_fails_when_nothing_is_stored(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_bytes(b"a")
    (tmp_path / "file").write_bytes(b"no directory")
    options = ["--period", "0.1", "--health-port", free_port, "--health-host", "127.0.0.1", "--max-lag", "0.5"]
    process = start("watch", tmp_path / "tree", tmp_path / "file/store", *options, "--grace", "1")
    wait_for(lambda: _reachable(free_port) and get(free_port, "/healthz")[0] == 503)
    assert "is more than --max-lag 0.5 s" in get(free_port, "/healthz")[1]
    assert "asyncsync_sync_failures_total" in get(free_port, "/metrics")[1]
    assert get(free_port, "/other")[0] == 404
    process.terminate()
    process.communicate(timeout=SECONDS)
    assert process.returncode == 130


def test_a_failed_command_is_reported_and_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_bytes(b"a")
    done = tmp_path / "done"
    done.touch()
    process = start(
        "watch", tmp_path / "tree", tmp_path / "store", "--until-file", done, "--on-durable", "exit 3", "--json"
    )
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert "ended with code 3" in output + errors
    assert (tmp_path / "store/a").exists()


def test_the_end_of_a_watch_ends_every_process_of_its_command(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_bytes(b"a")
    done, runs = tmp_path / "done", tmp_path / "runs"
    command = f"sleep 600 & echo run >> {runs}; sleep 600; true"
    options = ["--until-file", done, "--on-durable", command, "--grace", "0.5"]
    process = start("watch", tmp_path / "tree", tmp_path / "store", *options)
    wait_for(runs.exists)
    done.touch()
    process.communicate(timeout=SECONDS)  # reads until no process has the output open any more
    assert process.returncode == 130
    assert runs.read_text() == "run\nrun\n"


def test_bad_options_are_refused(invoke: Invoke, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()

    def answer_code(*arguments: object) -> str:
        result = invoke("watch", *arguments)
        assert result.exit_code == 2
        return result.output.replace("\n", " ")

    assert "--ready 'pytorch': must be transformers, lightning" in answer_code(
        tree, tmp_path / "s", "--ready", "pytorch"
    )
    assert "--wait-for-directory waits for it" in answer_code(tmp_path / "no", tmp_path / "s")
    for option in ("--max-lag", "--grace"):
        for seconds in ("0", "nan", "inf"):
            assert option in answer_code(tree, tmp_path / "s", option, seconds)


def test_the_lag_counts_from_the_start_of_the_last_good_sync() -> None:
    health = Health(5.0, waiting=True)
    assert (health.lag, health.healthy) == (0.0, True)
    health.begin()
    health.succeeded(time.monotonic() - 10, SyncReport(files_sent=2, bytes_sent=7))
    assert health.lag >= 10
    assert not health.healthy
    assert health.response("/healthz")[0].startswith("503")
    assert "asyncsync_bytes_sent_total 7\n" in health.metrics()


@pytest.mark.virtual_time
async def test_a_file_that_cannot_be_looked_for_does_not_end_the_watch(tmp_path: Path) -> None:
    stop = asyncio.Event()
    poll = asyncio.create_task(_poll(tmp_path / ("x" * 300), stop))
    await asyncio.wait([poll], timeout=10)
    assert not (poll.done() or stop.is_set())
    poll.cancel()
    await asyncio.wait([poll])
