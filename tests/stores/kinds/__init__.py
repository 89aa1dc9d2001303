"""The stores that pass the conformance suite. Each module here defines a family of them; no other place names them.

A module has ``KINDS``, which opens a store of each kind for one test, and ``DIFFERENCES``, which names where a server
differs from the service that it stands for. A further store is one more module, and one fixture for its server.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Callable

import pytest

from asyncsync.stores.base import Store

Open = Callable[[pytest.FixtureRequest], Store]

numbers = itertools.count()
"""Each test has a prefix of its own on a server that all share."""

KINDS: dict[str, Open] = {}
SERVERS: set[str] = set()
"""Kinds that need a server of their own process."""
DIFFERENCES: dict[tuple[str, str], str] = {}

for found in pkgutil.iter_modules(__path__):
    module = importlib.import_module(f"{__name__}.{found.name}")
    KINDS.update(module.KINDS)
    SERVERS.update(getattr(module, "SERVERS", ()))
    DIFFERENCES.update(module.DIFFERENCES)


def parameters() -> list[object]:
    """For a fixture: every kind, those with a server marked."""
    return [pytest.param(name, marks=pytest.mark.server) if name in SERVERS else name for name in KINDS]
