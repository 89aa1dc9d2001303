"""``pin``, ``unpin`` and ``tag``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsync import RunConfig, SyncEngine
from asyncsync.testing import reset_memory
from cli.conftest import Invoke

URL = "memory://b/exp/t/checkpoint_00000"


@pytest.fixture(autouse=True)
def experiment(tmp_path: Path) -> None:
    reset_memory()
    checkpoint = tmp_path / "c"
    checkpoint.mkdir()
    (checkpoint / "w").write_bytes(b"w")

    async def fill() -> None:
        async with SyncEngine(RunConfig(name="exp", storage_path="memory://b"), local_dir=tmp_path / "l") as engine:
            for loss in (2, 1):
                await engine.trial("t").report({"loss": loss}, checkpoint)

    asyncio.run(fill())


def test_marks_are_set_shown_found_and_removed(invoke: Invoke, answer: Callable[..., dict[str, Any]]) -> None:
    assert invoke("pin", f"{URL}0").stdout == f"{URL}0 is kept; marks: pinned\n"
    assert answer("tag", f"{URL}1", "production", "shown")["tags"] == ["production", "shown"]
    assert "\tpinned\n" in invoke("ls", "memory://b/exp/t").stdout
    found = answer("ls", "memory://b/exp", "--checkpoints", "--where", "tags~production")["trials"][0]["checkpoints"]
    assert [(item["name"][-1], item["tags"]) for item in found] == [("1", ["production", "shown"])]
    found = answer("ls", "memory://b/exp", "--checkpoints", "--where", "pinned=true")["trials"][0]["checkpoints"]
    assert [item["name"][-1] for item in found] == ["0"]
    assert answer("unpin", f"{URL}0")["pinned"] is False
    assert answer("tag", f"{URL}1", "shown", "--remove")["tags"] == ["production"]


def test_what_is_no_checkpoint_is_exit_code_1_and_names_those_that_exist(invoke: Invoke) -> None:
    result = invoke("pin", f"{URL}7")
    assert (result.exit_code, "checkpoint_000000, checkpoint_000001" in result.stderr) == (1, True)
    assert invoke("tag", f"{URL}1").exit_code == 2
