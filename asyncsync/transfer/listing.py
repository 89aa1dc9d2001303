"""Listings of more than one page."""

from __future__ import annotations

from asyncsync.stores.base import ObjectInfo, Store


async def versions_below(store: Store, prefix: str) -> dict[str, str]:
    """The version of every object below a prefix, by path relative to it."""
    found: dict[str, str] = {}
    token: str | None = None
    while True:
        page = await store.list(prefix, token=token)
        found.update((item.key[len(prefix) :], item.version) for item in page.objects)
        token = page.token
        if token is None:
            return found


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
