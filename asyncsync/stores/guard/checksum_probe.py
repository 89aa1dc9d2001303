"""What does a store do against bytes that are damaged on their way to it? Asked once, when an engine starts."""

from __future__ import annotations

import hashlib

import google_crc32c

from asyncsync.errors import StoreError
from asyncsync.stores.base import Checks, Store


async def probe_checks(store: Store, key: str, data: bytes) -> Checks:
    """Write ``data`` under ``key`` with a CRC32C that is wrong; ``store`` is one without retries.

    A store that refuses it checks: nothing of the probe remains. One that takes it gets its best from now on: an
    ETag that is the MD5 of what it received is compared with that of what was sent. One request. A store that fails in
    another way just now keeps the benefit of the doubt.
    """
    if store.traits.local or not store.traits.crc32c:
        return store.traits.checks
    try:
        info = await store.put(key, data, crc32c=google_crc32c.value(data) ^ 1)
    except StoreError:  # IntegrityError, as it should be
        return store.traits.checks
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    store.lower_checks("etag" if info.version == md5 else "none")
    return store.traits.checks
