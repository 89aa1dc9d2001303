"""Whatever system call of a write fails, and however often: the local store leaves no temporary file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncsync.stores.base import MISSING
from asyncsync.stores.local.store import LocalStore

CALLS = ("open", "fstat", "pwrite", "write", "fsync", "replace", "link", "unlink", "utime", "stat", "mkdir")


@contextmanager
def failing(call: str, at: int) -> Iterator[Callable[[], int]]:
    """The ``at``-th use of ``os.call`` fails; gives how often it was used."""
    count = 0
    with pytest.MonkeyPatch.context() as patch:
        really = getattr(os, call)

        def fail(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise OSError(5, "Input/output error")
            return really(*args, **options)

        patch.setattr(os, call, fail)
        yield lambda: count


def left(root: Path) -> list[str]:
    """Temporary files below a directory."""
    return [str(path) for path in root.rglob("*") if path.name.endswith("-tmp")]


@pytest.mark.parametrize("condition", [None, MISSING], ids=["any", "create only"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_put_that_fails_anywhere_leaves_no_temporary_file(
    tmp_path: Path, call: str, condition: str | None
) -> None:
    for at in range(1, 50):
        root = tmp_path / str(at)
        root.mkdir()
        async with LocalStore(root) as store:
            with failing(call, at) as used:
                try:
                    await store.put("d/key", b"data", if_version=condition)
                except Exception:  # which error it is, is not the question here
                    pass
        assert left(root) == [], f"{call} failed at use {at}"
        if used() < at:
            return
    pytest.fail("there is no end")
