"""Finds out whether a store checks the CRC32C of the bytes that it receives. Runs once, when an engine starts."""

from __future__ import annotations

import hashlib

from asyncsync.errors import StoreError
from asyncsync.stores.base import Checks, Store


async def probe_checks(store: Store, key: str, data: bytes) -> Checks:
    """Write ``data`` under ``key`` with a wrong checksum, in one request; ``store`` is one without retries.

    A store that refuses it does check, and nothing of the probe remains. For a store that accepts it the checks are
    lowered: its ETag is compared with the MD5 of the sent bytes if it is one, else nothing is checked. After any other
    failure the checks stay as they are.
    """
    if store.traits.local or not store.traits.crc32c:
        return store.traits.checks
    try:
        info = await store.put_damaged(key, data)
    except StoreError:  # IntegrityError if the store checks
        return store.traits.checks
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    store.lower_checks("etag" if info.version == md5 else "none")
    return store.traits.checks
