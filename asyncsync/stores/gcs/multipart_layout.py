"""Where the parts of a multipart upload are kept on Cloud Storage: each part is an object, and complete composes them.

An upload lives below ``.asyncsync/parts/{upload id}/``: ``upload`` records its key, ``00001`` and so on are its parts,
``1-00000-...`` and so on are intermediate results, because one request composes at most 32 objects. Each part's CRC32C
is checked when it arrives. Parts stay until the upload is completed or aborted, so an upload can be resumed after any
break. Listings of the store hide them.

Only whole objects can be composed. So a part can be a copy of a whole object (an append: the old object, then its
tail), but not of a range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from asyncsync.stores.base import Part

PARTS_PREFIX = ".asyncsync/parts/"
MARKER_NAME = "upload"
MAX_COMPOSE_SOURCES = 32
"""Objects that one request composes (Cloud Storage documentation, "Composite objects")."""
CONCURRENT_REQUESTS = 4
"""Concurrent batches of a deletion, or steps of a compose."""
OWNER_METADATA = "asyncsync-key"
"""Custom metadata of every object of an upload: the key that the upload writes, percent-encoded."""


@dataclass(frozen=True, slots=True)
class ComposeSource:
    """One object to compose: its full name and generation."""

    name: str
    generation: str

    def document(self) -> dict[str, object]:
        """Its JSON in a compose request. A server that ignores the generation may check the precondition."""
        condition = {"ifGenerationMatch": self.generation}
        return {"name": self.name, "generation": self.generation, "objectPreconditions": condition}


def upload_prefix(upload_id: str) -> str:
    return f"{PARTS_PREFIX}{upload_id}/"


def part_key(upload_id: str, number: int) -> str:
    return f"{PARTS_PREFIX}{upload_id}/{number:05}"


def marker_key(upload_id: str) -> str:
    return f"{PARTS_PREFIX}{upload_id}/{MARKER_NAME}"


def step_name(home: str, index: int, attempt: str) -> str:
    """The name of an intermediate result. Each attempt to complete makes its own."""
    return f"{home}{index:05}-{attempt}"


def part_number_of(key: str) -> int | None:
    """The number of a part; None for markers and intermediate results."""
    name = key.rpartition("/")[2]
    return int(name) if name.isascii() and name.isdigit() else None


def upload_id_of(key: str) -> str:
    """The upload id in the key of one of its objects."""
    return key[len(PARTS_PREFIX) :].partition("/")[0]


def is_hidden(key: str) -> bool:
    """Whether a key belongs to an upload of this store, or of a store with a longer prefix."""
    return key.startswith(PARTS_PREFIX) or f"/{PARTS_PREFIX}" in key


def copied_part_etag(source: ComposeSource) -> str:
    """The ETag of a part that is another object: ``generation=name``."""
    return f"{source.generation}={source.name}"


def source_of(part: Part, own_name: str) -> ComposeSource:
    """The object to compose for a part; ``own_name`` is its full name if it was sent rather than copied."""
    generation, mark, name = part.etag.partition("=")
    return ComposeSource(name if mark else own_name, generation)


def groups(sources: Sequence[ComposeSource]) -> list[Sequence[ComposeSource]]:
    """The sources of each compose on one level of the tree."""
    starts = range(0, len(sources), MAX_COMPOSE_SOURCES)
    return [sources[start : start + MAX_COMPOSE_SOURCES] for start in starts]


def owner_metadata(key: str) -> bytes:
    """Metadata of every object of an upload: the upload's key, so that objects left behind can be found."""
    return f', "metadata": {{"{OWNER_METADATA}": "{quote(key, safe="")}"}}'.encode()


def owner_of(item: Mapping[str, object]) -> str:
    """The upload's key in an object's metadata (see :func:`owner_metadata`); empty if there is none."""
    metadata = item.get("metadata")
    found = metadata.get(OWNER_METADATA) if isinstance(metadata, dict) else None
    return unquote(found) if isinstance(found, str) and found.isascii() else ""
