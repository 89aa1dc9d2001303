"""Listings of more than one page, and bounded parallel work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from asyncsync.stores.base import ObjectInfo, Store

T = TypeVar("T")


async def list_all(store: Store, prefix: str) -> dict[str, ObjectInfo]:
    """Every object below ``prefix``, by key."""
    found: dict[str, ObjectInfo] = {}
    token: str | None = None
    while True:
        page = await store.list(prefix, token=token)
        found.update((item.key, item) for item in page.objects)
        token = page.token
        if token is None:
            return found


async def list_directories(store: Store, prefix: str) -> list[str]:
    """Names of the directories right below ``prefix``, without ``/``."""
    found: set[str] = set()
    token: str | None = None
    while True:
        page = await store.list(prefix, delimiter="/", token=token)
        found.update(item[len(prefix) :].rstrip("/") for item in page.prefixes)
        token = page.token
        if token is None:
            return sorted(found - {""})


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], workers: int) -> None:
    """``await work(item)`` for every item, ``workers`` at a time. The first error ends the rest and is raised as is."""
    rest = iter(items)

    async def worker() -> None:
        for item in rest:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(worker(), name=f"worker {number}")
    except BaseExceptionGroup as errors:
        raise first_of(errors) from None


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first leaf of a group."""
    error = errors.exceptions[0]
    return first_of(error) if isinstance(error, BaseExceptionGroup) else error
