"""Listings of more than one page."""

from __future__ import annotations

from asyncsync.errors import NotFoundError
from asyncsync.planning.manifest import META_DIR
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
    """Names of the directories directly below ``prefix``, without ``/`` and without ``.asyncsync``."""
    found: set[str] = set()
    token: str | None = None
    while True:
        page = await store.list(prefix, delimiter="/", token=token)
        found.update(item[len(prefix) :].rstrip("/") for item in page.prefixes)
        token = page.token
        if token is None:
            return sorted(found - {"", META_DIR})


async def find(store: Store, key: str) -> bytes | None:
    """A small object, or None."""
    try:
        return (await store.get(key))[0]
    except NotFoundError:
        return None


async def exists(store: Store, key: str) -> bool:
    """Whether there is such an object."""
    try:
        await store.head(key)
    except NotFoundError:
        return False
    return True


def uri_of(store: Store, key: str) -> str:
    """Where an object is, for messages."""
    return f"{store.uri.rstrip('/')}/{key}"
