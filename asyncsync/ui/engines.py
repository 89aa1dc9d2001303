"""The running engines of this machine that belong to an experiment."""

from __future__ import annotations

import os
from collections.abc import Iterable

from asyncsync import RunningEngine


def engines_of(uri: str, engines: Iterable[RunningEngine]) -> list[RunningEngine]:
    """Those whose experiment is at ``uri``. Two addresses of one directory are equal."""
    place = _place(uri)
    return [engine for engine in engines if _place(engine.uri) == place]


def _place(uri: str) -> str:
    path = uri.removeprefix("file://")
    return os.path.realpath(path) if path.startswith("/") else uri.rstrip("/")
