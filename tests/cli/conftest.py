"""The command, run in this process or as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from asyncsync.cli.app import cli

Invoke = Callable[..., Result]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """asyncsync's state and the user's home are this test's own."""
    monkeypatch.setenv("ASYNCSYNC_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.fixture
def invoke() -> Invoke:
    """Run the command in this process: ``invoke("push", directory, url)``."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def answer(invoke: Invoke) -> Callable[..., dict[str, Any]]:
    """Run a command with ``--json``: stdout must be one document, which is returned."""

    def run(*arguments: object, code: int = 0) -> dict[str, Any]:
        result = invoke(*arguments, "--json")
        assert result.exit_code == code, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    return run


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three files."""
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("alpha")
    (root / "sub" / "b.bin").write_bytes(os.urandom(100_000))
    (root / "skip.tmp").write_text("x")
    return root


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command as a process."""
    command = [sys.executable, "-m", "asyncsync", *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def imported(*arguments: str, **variables: str) -> set[str]:
    """The modules that the command has imported at its end."""
    program = f"""
import sys
from asyncsync.cli.app import cli
try:
    cli({list(arguments)!r})
except SystemExit as error:
    assert not error.code
sys.stderr.write(" ".join(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())
