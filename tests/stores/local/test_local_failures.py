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

CALLS = ("open", "fstat", "pwrite", "write", "fsync", "replace", "rename", "link", "unlink", "utime", "stat", "mkdir")


@contextmanager
def failing(call: str, at: int, *, for_good: bool = False) -> Iterator[Callable[[], int]]:
    """The ``at``-th use of ``os.call`` fails, and with ``for_good`` each later one; gives how often it was used."""
    count = 0
    with pytest.MonkeyPatch.context() as patch:
        really = getattr(os, call)

        def fail(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == at or (for_good and count > at):
                raise OSError(5, "Input/output error")
            return really(*args, **options)

        patch.setattr(os, call, fail)
        yield lambda: count


def left(root: Path) -> list[str]:
    """Temporary files below a directory."""
    return [str(path) for path in root.rglob("*") if path.name.endswith("-tmp")]


WRITES = {
    "put": lambda store: store.put("d/key", b"data"),
    "create": lambda store: store.put("d/key", b"data", if_version=MISSING),
    "upload": lambda store: store.create_multipart("d/key"),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    ("call", "for_good"), [*((call, False) for call in CALLS), *((call, True) for call in CALLS if call != "unlink")]
)
async def test_a_write_that_fails_anywhere_leaves_no_temporary_file(
    tmp_path: Path, call: str, write: str, *, for_good: bool
) -> None:
    for at in range(1, 50):
        root = tmp_path / str(at)
        root.mkdir()
        async with LocalStore(root) as store:
            with failing(call, at, for_good=for_good) as used:
                try:
                    await WRITES[write](store)
                except Exception:  # which error it is, is not the question here
                    pass
        assert left(root) == [], f"{call} failed at use {at}"
        if used() < at:
            return
    pytest.fail("there is no end")
