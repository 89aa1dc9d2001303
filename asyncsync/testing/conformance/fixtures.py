"""Fixtures and helpers that the parts of the suite share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import google_crc32c
import pytest

from asyncsync.disk.files import FileRange
from asyncsync.errors import PreconditionError
from asyncsync.stores.base import ObjectInfo, Part, Store, Upload

T = TypeVar("T")

MIB = 1 << 20
PART = 5 * MIB
"""Size of the parts that are uploaded: the smallest that S3 takes."""
CONCURRENT_PUTS = 16
"""Requests at once while a test fills a prefix."""

RULES = frozenset(
    {
        "an object and a directory of one name",
        "completes on a condition",
        "copies on a condition",
        "copies to create only",
        "forgets an aborted upload",
        "reports a missing part",
        "lists in byte order",
        "one of many racers creates",
        "one of many racers replaces",
        "refuses a wrong checksum",
        "refuses a wrong checksum of a file",
        "refuses a wrong checksum of the complete object",
        "serves thousands of requests",
        "takes no part of an aborted upload",
        "writes on a condition",
    }
)
"""Rules that a store may break if its ``differences`` say so. All other rules hold for every store."""

Rule = Callable[[str], None]
"""Names the rule that is tested next, and skips the test if the store is known to break it."""


class ConformanceBase:
    """Fixtures of every part of the suite."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    def differences(self) -> Mapping[str, str]:
        """Rules of :data:`RULES` that the store breaks, each with the reason. Override it where there are any."""
        return {}

    @pytest.fixture
    def rule(self, differences: Mapping[str, str]) -> Rule:
        assert set(differences) <= RULES, f"unknown rules: {sorted(set(differences) - RULES)}"

        def check(name: str) -> None:
            assert name in RULES, name
            if name in differences:
                pytest.skip(f"the store breaks the rule {name!r}: {differences[name]}")

        return check


def crc(data: bytes) -> int:
    """CRC32C of ``data``."""
    return int(google_crc32c.value(data))


async def list_all_pages(
    store: Store, prefix: str = "", delimiter: str = ""
) -> tuple[list[ObjectInfo], list[str], int]:
    """Objects, prefixes, and the number of pages that they took."""
    objects: list[ObjectInfo] = []
    prefixes: list[str] = []
    token, pages = None, 0
    while True:
        page = await store.list(prefix, delimiter=delimiter, token=token)
        objects += page.objects
        prefixes += page.prefixes
        pages += 1
        if page.token is None:
            return objects, prefixes, pages
        token = page.token


async def put_empty(store: Store, keys: Iterable[str]) -> None:
    """An empty object under each key."""
    waiting = iter(keys)

    async def worker() -> None:
        for key in waiting:
            await store.put(key, b"")

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENT_PUTS):
            group.create_task(worker())


def winners(results: Sequence[T | BaseException]) -> list[T]:
    """The results of the racers that won; all others must have failed with PreconditionError."""
    losers = [result for result in results if isinstance(result, BaseException)]
    assert all(isinstance(loser, PreconditionError) for loser in losers), losers
    return [result for result in results if not isinstance(result, BaseException)]


async def upload_three_parts(store: Store, key: str, tmp_path: Path) -> tuple[bytes, Upload, list[Part]]:
    """An upload of three parts of the file ``source`` that is not complete yet, with the bytes of the file."""
    data = os.urandom(2 * PART + 100)
    (tmp_path / "source").write_bytes(data)
    upload = await store.create_multipart(key)
    parts: list[Part] = []
    for number, start in enumerate(range(0, len(data), PART), 1):
        size = min(PART, len(data) - start)
        body = FileRange(str(tmp_path / "source"), start, size)
        parts.append(await store.put_part(upload, number, start, body, crc32c=crc(data[start : start + size])))
    return data, upload, parts
