"""Small objects, and listings of more than one page, read through any store."""

from __future__ import annotations

from asyncsync.errors import NotFoundError
from asyncsync.planning.manifest import META_DIR
from asyncsync.stores.base import ObjectInfo, Store


async def versions_below(store: Store, prefix: str) -> dict[str, str]:
    """Versions of all objects below a prefix, by their path relative to it."""
    return {key[len(prefix) :]: item.version for key, item in (await list_all(store, prefix)).items()}


async def list_all(store: Store, prefix: str) -> dict[str, ObjectInfo]:
    """All objects below ``prefix``, by key."""
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
    """A small object; None if it is missing."""
    try:
        return (await store.get(key))[0]
    except NotFoundError:
        return None


async def exists(store: Store, key: str) -> bool:
    """Whether the object exists."""
    try:
        await store.head(key)
    except NotFoundError:
        return False
    return True


def uri_of(store: Store, key: str) -> str:
    """The address of an object, for messages."""
    return f"{store.uri.rstrip('/')}/{key}"
