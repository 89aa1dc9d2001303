"""The command as a process: signals, pipes, the demo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import start

SECONDS = 60


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        stdout, stderr = process.communicate(timeout=SECONDS)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process.returncode, stdout, stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_push_names_missing_files_and_resumes_later(
    tree: Path, tmp_path: Path, answer: Callable[..., dict[str, Any]], number: signal.Signals
) -> None:
    with (tree / "big").open("wb") as file:
        file.truncate(64 << 20)
    process = start("push", tree, tmp_path / "store", "--bandwidth-limit", "16MiB", "--debug")
    while not (tmp_path / "store").exists() and process.poll() is None:
        os.sched_yield()
    process.send_signal(number)
    code, stdout, stderr = ended(process)
    assert (code, stdout) == (130, "")
    assert f"interrupted: {tmp_path / 'store'} is not complete: " in stderr
    assert answer("push", tree, tmp_path / "store")["ok"]
    assert answer("verify", tmp_path / "store", "--deep")["ok"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_sends_changes_and_syncs_once_more_when_stopped(
    tree: Path, tmp_path: Path, answer: Callable[..., dict[str, Any]], number: signal.Signals
) -> None:
    process = start("watch", tree, tmp_path / "store", "--period", "600", "--json")
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    (tree / "late").write_text("written after the first sync")
    process.send_signal(number)
    code, stdout, stderr = ended(process)
    assert code == 0, stderr
    assert (first["ok"], first["files_sent"]) == (True, 3)
    assert json.loads(stdout)["files_sent"] == 1
    assert answer("verify", tmp_path / "store", "--deep")["files"] == 4


def test_watch_survives_failures_and_reports_a_failed_last_sync(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    process = start("watch", tree, tmp_path / "file" / "store", "--json", "--grace", "5")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["ok"] is False
    process.send_signal(signal.SIGINT)
    code, _, stderr = ended(process)
    assert code == 130
    assert "the sync failed, retrying in" in stderr
    assert "error: the last sync failed: " in stderr


def test_a_reader_may_leave_early(tree: Path, tmp_path: Path, answer: Callable[..., Any]) -> None:
    answer("push", tree, tmp_path / "store")
    process = start("ls", tmp_path / "store")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert "Traceback" not in process.stderr.read()
    process.wait(SECONDS)


def test_the_demo_holds_its_checks(tmp_path: Path) -> None:
    code, stdout, stderr = ended(start("demo", "--dir", tmp_path / "store", "--trials", "8", "--pace", "0"))
    assert code == 0, stdout + stderr
    assert stdout.count("\n  ok     ") == 5
    assert "FAILED" not in stdout
    assert f"asyncsync ls {tmp_path}/store/demo_" in stdout


def test_the_document_of_the_demo(tmp_path: Path) -> None:
    code, stdout, _ = ended(start("demo", "--dir", tmp_path / "store", "--trials", "8", "--pace", "0", "--json"))
    document = json.loads(stdout)
    assert (code, document["ok"], document["trials"]) == (0, True, 8)
    assert document["checkpoints_durable"] == 7 * 5 + 2
    assert all(document["checks"].values())


def test_the_demo_takes_a_url_or_a_directory(tmp_path: Path) -> None:
    code, _, stderr = ended(start("demo", tmp_path, "--dir", tmp_path))
    assert code == 2
    assert "not both" in stderr
