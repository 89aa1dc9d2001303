"""Which keys can be objects of the local store, and the names that it reserves for itself. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from asyncsync.disk.own_names import TEMPORARY, is_text
from asyncsync.errors import StoreError

CONTROL_DIR = ".asyncsync"
"""Directory of lock files and open uploads, in any directory of the store. It also holds ordinary objects."""
LOCK_NAME = ".lock"
UPLOADS_NAME = "uploads"
MAX_NAME_BYTES = 255
"""Longest file name that common file systems accept."""


class InvalidKeyError(StoreError, ValueError):
    """The key cannot be the name of an object. A retry cannot succeed."""


def check_key(uri: str, key: str) -> None:
    """InvalidKeyError unless the key can be an object of the store ``uri``."""
    segments = check_prefix(uri, key)
    if not all(segments):
        raise InvalidKeyError(f"{uri}: invalid key {key!r}: it is empty or has an empty path segment")
    if "." in segments or key.endswith(TEMPORARY):
        raise InvalidKeyError(f"{uri}: invalid key {key!r}: it has a segment '.' or ends in {TEMPORARY!r}")
    for outer, inner in pairwise(segments):
        if outer == CONTROL_DIR and inner in (LOCK_NAME, UPLOADS_NAME):
            raise InvalidKeyError(f"{uri}: invalid key {key!r}: {outer}/{inner} is reserved for the store itself")


def check_prefix(uri: str, key: str) -> Sequence[str]:
    """The path segments of a key or prefix. InvalidKeyError if it could be outside the store."""
    segments = key.split("/")
    if key.startswith("/") or ".." in segments or "\0" in key:
        raise InvalidKeyError(f"{uri}: invalid key {key!r}: it is absolute, or has a segment '..' or a NUL character")
    try:
        longest = max(len(segment.encode()) for segment in segments)
    except UnicodeEncodeError as error:
        raise InvalidKeyError(f"{uri}: invalid key {key!r}: it is not UTF-8") from error
    if longest > MAX_NAME_BYTES:
        raise InvalidKeyError(
            f"{uri}: invalid key {key[:80]!r}...: a path segment has {longest} bytes, at most {MAX_NAME_BYTES} are "
            "allowed"
        )
    return segments


def is_reserved(directory: str, name: str) -> bool:
    """Whether a name in ``directory`` (a key that ends in ``/``, or empty) is not an object: a lock file, the uploads,
    a temporary file, or a name that is not UTF-8. ``name`` ends in ``/`` for a directory."""
    control = directory == f"{CONTROL_DIR}/" or directory.endswith(f"/{CONTROL_DIR}/")
    if control and name in (LOCK_NAME, f"{UPLOADS_NAME}/"):
        return True
    return name.endswith(TEMPORARY) or not is_text(name)
