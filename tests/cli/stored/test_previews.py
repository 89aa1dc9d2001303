"""``pull --dry-run`` and ``push --skip-bad-names``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsync.testing import reset_memory
from cli.conftest import Invoke

Answer = Callable[..., dict[str, Any]]
URL = "memory://b/results"


@pytest.fixture(autouse=True)
def pushed(answer: Answer, tree: Path) -> None:
    reset_memory()
    answer("push", tree, URL)


def state(root: Path) -> dict[str, tuple[bytes, int, int]]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) for path in files}


def test_a_dry_pull_names_exactly_what_a_pull_would_change(answer: Answer, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert answer("pull", URL, copy, "--dry-run")["fetch"].keys() == {"a.txt", "sub/b.bin", "skip.tmp"}
    assert not copy.exists()
    answer("pull", URL, copy)
    (copy / "a.txt").write_text("other")
    (copy / "more").write_text("x")
    os.utime(copy / "skip.tmp", ns=(1, 1))
    before = state(copy)
    plan = answer("pull", URL, copy, "--dry-run", "--exact")
    assert (plan["fetch"], plan["remove"], plan["files_skipped"]) == ({"a.txt": 5}, ["more"], 2)
    assert state(copy) == before
    report = answer("pull", URL, copy, "--exact")
    assert (report["files_sent"], report["files_deleted"]) == (1, 1)


def test_a_dry_pull_of_a_part_and_with_patterns(answer: Answer, invoke: Invoke, tmp_path: Path) -> None:
    assert answer("pull", f"{URL}/sub", tmp_path / "c", "--dry-run")["fetch"].keys() == {"b.bin"}
    assert answer("pull", URL, tmp_path / "c", "-n", "--include", "*.txt")["fetch"].keys() == {"a.txt"}
    assert invoke("pull", URL, tmp_path / "c", "-n", "--include", "*.nothing").exit_code == 2
    assert invoke("pull", "memory://b/nothing", tmp_path / "c", "-n").exit_code == 1
    assert "1 file (5 B) would be fetched" in invoke("pull", f"{URL}/a.txt", tmp_path / "c", "-n").stdout


def test_a_name_that_cannot_be_stored_is_an_error_unless_accepted(answer: Answer, invoke: Invoke, tree: Path) -> None:
    (tree / os.fsdecode(b"bad-\xff")).write_text("x")
    result = invoke("push", tree, URL)
    assert result.exit_code == 1
    assert "1 file of" in result.stderr
    assert "--skip-bad-names" in result.stderr
    assert not answer("push", tree, URL, code=1)["ok"]
    assert answer("push", tree, URL, "--skip-bad-names")["files_left_out"] == 1
