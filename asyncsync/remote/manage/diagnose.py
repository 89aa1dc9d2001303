"""``diagnose``: checks what a run needs of a store, and describes each result in plain words."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import google_crc32c

from asyncsync.config import TransferConfig
from asyncsync.errors import AccessDeniedError, AsyncsyncError, IntegrityError, PreconditionError
from asyncsync.planning.manifest import META_DIR
from asyncsync.remote.access import DEFAULT_TRANSFER, open_for_reading
from asyncsync.remote.store_clock import store_time
from asyncsync.runtime import token
from asyncsync.stores.base import MISSING, Store
from asyncsync.units import size_text

SPEED_BYTES = 8 << 20
MAX_CLOCK_ERROR = 300.0
"""Seconds; signed requests are refused from 15 minutes on."""
CHECK_TIMEOUT = 60.0
"""Seconds that one check may take, retries included."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    """``reach``, ``write``, ``read``, ``list``, ``clock``, ``checksums``, ``conditional writes``, ``multipart``,
    ``delete`` or ``speed``."""
    ok: bool
    text: str
    """The result in words, and what to do about it."""


async def diagnose(
    uri: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
) -> list[Finding]:
    """Check reach, permissions, clock, checksums, conditional writes, multipart uploads and speed of the store at
    ``uri``, with small objects below ``.asyncsync/doctor-...`` that are removed again. About 16 MiB travel.

    A failed check is a finding, not an exception; after a failed write the rest is left out.

    Raises:
        ConfigError: the URI or an option is unknown.
    """
    async with open_for_reading(uri, transfer, storage_options) as store:
        return await _findings(store, f"{META_DIR}/doctor-{token(4)}")


async def _findings(store: Store, key: str) -> list[Finding]:
    begun = time.monotonic()
    first = await _check("write", lambda: _write(store, key))
    if not first.ok:
        return [first]
    reach = f"{store.uri} responds within {(time.monotonic() - begun) * 1000:.0f} ms"
    checks: list[tuple[str, Callable[[], Awaitable[str]]]] = [
        ("read", lambda: _read_back(store, key)),
        ("list", lambda: _list(store, key)),
        ("clock", lambda: _clock(store)),
        ("checksums", lambda: _checksums(store, key)),
        ("conditional writes", lambda: _conditional(store, key)),
        ("multipart", lambda: _multipart(store, key)),
        ("speed", lambda: _speed(store, key)),
        ("delete", lambda: _delete(store, key)),
    ]
    return [Finding("reach", ok=True, text=reach), first, *[await _check(name, check) for name, check in checks]]


async def _check(name: str, check: Callable[[], Awaitable[str]]) -> Finding:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            return Finding(name, ok=True, text=await check())
    except TimeoutError:
        return Finding(name, ok=False, text=f"no result within {CHECK_TIMEOUT:.0f} s: check network and endpoint")
    except AccessDeniedError as error:
        return Finding(
            name, ok=False, text=f"refused: check the key and its secret, and the permission to {name}; {error}"
        )
    except (AsyncsyncError, _ProblemError) as error:
        return Finding(name, ok=False, text="; ".join([str(error), *getattr(error, "__notes__", ())]))


class _ProblemError(Exception):
    """The store responds, but not as needed; the text describes the consequence."""


async def _write(store: Store, key: str) -> str:
    await store.put(key, b"one")
    return f"objects can be written below {store.uri}"


async def _read_back(store: Store, key: str) -> str:
    data, _ = await store.get(key)
    if data != b"one":
        raise _ProblemError(f"a read returned {data!r} instead of the bytes that were written just before")
    return "a written object is read back at once"


async def _list(store: Store, key: str) -> str:
    page = await store.list(key)
    if [item.key for item in page.objects] != [key]:
        raise _ProblemError(
            "a listing does not show an object that was written: prune and verify need a current listing"
        )
    return "a listing shows it at once"


async def _clock(store: Store) -> str:
    difference = await store_time(store) - time.time()
    text = f"this machine's clock differs from the store's by {abs(difference):.0f} s"
    if abs(difference) > MAX_CLOCK_ERROR:
        raise _ProblemError(f"{text}: set it (ntpd, chrony), because signed requests are refused from 15 minutes on")
    return text


async def _checksums(store: Store, key: str) -> str:
    if store.traits.checks != "crc32c":
        return "the store does not check CRC32C: " + (
            "the MD5 in its responses is compared" if store.traits.checks == "etag" else "files are checked when read"
        )
    try:
        await store.put(key, b"damaged on the way", crc32c=google_crc32c.value(b"something else"))
    except IntegrityError:
        return "the store refuses a body that was damaged on the way (CRC32C)"
    raise _ProblemError("the store accepts a body with a wrong CRC32C: use -o checksum=etag or none, and verify --deep")


async def _conditional(store: Store, key: str) -> str:
    if not store.traits.conditional_writes:
        raise _ProblemError("switched off: make sure that only one process writes to each experiment")
    try:
        await store.put(key, b"two", if_version=MISSING)
    except PreconditionError:
        return "two processes cannot overwrite each other's records"
    raise _ProblemError(
        "the store ignores conditions, so it cannot stop two processes that write the same experiment: make sure that "
        "only one does, and pass -o conditional_writes=false"
    )


async def _multipart(store: Store, key: str) -> str:
    if not store.traits.multipart:
        return "no multipart uploads: large files go in one request"
    upload = await store.create_multipart(f"{key}-parts")
    try:
        body = b"p" * max(1, store.traits.min_part_size)
        part = await store.put_part(upload, 1, 0, body, crc32c=google_crc32c.value(body))
        if [item.number for item in await store.list_parts(upload)] != [part.number]:
            raise _ProblemError("the store does not list a finished part: an interrupted upload sends its parts again")
    finally:
        await store.abort_multipart(upload)
    return "large files are sent in parts, and an interrupted upload resumes"


async def _speed(store: Store, key: str) -> str:
    body = os.urandom(SPEED_BYTES)
    begun = time.monotonic()
    await store.put(f"{key}-speed", body, crc32c=google_crc32c.value(body))
    written = time.monotonic()
    await store.get(f"{key}-speed")
    read = time.monotonic()
    up, down = (size_text(SPEED_BYTES / max(seconds, 1e-6)) for seconds in (written - begun, read - written))
    return f"one connection: {up}/s to the store, {down}/s from it; transfers use many"


async def _delete(store: Store, key: str) -> str:
    page = await store.list(key)
    await store.delete([item.key for item in page.objects])
    if (await store.list(key)).objects:
        raise _ProblemError("deleted objects are still listed: retention and prune may not free space")
    return "objects can be deleted; nothing of this check is left"
