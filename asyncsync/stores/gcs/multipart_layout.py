"""Multipart uploads on Cloud Storage: parts are objects of their own, composed when all are there.

An upload lives below ``.asyncsync/parts/{upload id}/``: ``upload`` names its key, ``00001`` and so on are its parts,
``1-00000-...`` and so on are intermediate results, because one request composes at most 32 objects. Each part is
checked by its CRC32C when it arrives, and stays until the upload is completed or aborted, so an upload goes on after
any break. No listing of the store shows them.

Composing takes whole objects only. So a part can be a copy of a whole object (an append: the old object, then its
tail), but not of a range of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from asyncsync.planning.crc32c import crc32c_combine
from asyncsync.stores.base import Part

HOME = ".asyncsync/parts/"
MARKER = "upload"
WIDTH = 32
"""Most objects that one request composes (Cloud Storage documentation, "Composite objects")."""
AT_ONCE = 4
"""Batches of a deletion, or steps of a compose, at once."""
KEY = "asyncsync-key"
"""Custom metadata of every object of an upload: the key that it becomes, percent-encoded."""


@dataclass(frozen=True, slots=True)
class Source:
    """One object to compose: its full name and generation."""

    name: str
    generation: str

    def document(self) -> dict[str, object]:
        """As a compose names it. A server that does not look for the generation may look at the condition."""
        condition = {"ifGenerationMatch": self.generation}
        return {"name": self.name, "generation": self.generation, "objectPreconditions": condition}


def home_of(upload_id: str) -> str:
    return f"{HOME}{upload_id}/"


def part_key(upload_id: str, number: int) -> str:
    return f"{HOME}{upload_id}/{number:05}"


def marker_key(upload_id: str) -> str:
    return f"{HOME}{upload_id}/{MARKER}"


def step_name(home: str, index: int, attempt: str) -> str:
    """Of an intermediate result. An attempt to complete that is repeated makes its own."""
    return f"{home}{index:05}-{attempt}"


def number_of(key: str) -> int | None:
    """The number of a part; None for markers and intermediate results."""
    name = key.rpartition("/")[2]
    return int(name) if name.isascii() and name.isdigit() else None


def upload_of(key: str) -> str:
    """The upload id in the key of one of its objects."""
    return key[len(HOME) :].partition("/")[0]


def is_hidden(key: str) -> bool:
    """Whether a key is a part of somebody's upload, of this store or of one that lies deeper."""
    return key.startswith(HOME) or f"/{HOME}" in key


def copied(source: Source) -> str:
    """The ETag of a part that is another object: ``generation=name``."""
    return f"{source.generation}={source.name}"


def source_of(part: Part, own: str) -> Source:
    """What to compose for a part; ``own`` is the full name it has if it was sent."""
    generation, mark, name = part.etag.partition("=")
    return Source(name if mark else own, generation)


def combined(parts: Iterable[Part]) -> int | None:
    """CRC32C of the whole; None if that of a part is not known."""
    whole = 0
    for part in parts:
        if part.crc32c is None:
            return None
        whole = crc32c_combine(whole, part.crc32c, part.size)
    return whole


def groups(sources: Sequence[Source]) -> list[Sequence[Source]]:
    """What to compose first so that at most 32 remain; one level of the tree."""
    return [sources[start : start + WIDTH] for start in range(0, len(sources), WIDTH)]


def owner_in(item: Mapping[str, object]) -> str:
    """The key that an object of an upload becomes, as :func:`belongs_to` told it; empty if it does not tell."""
    metadata = item.get("metadata")
    found = metadata.get(KEY) if isinstance(metadata, dict) else None
    return unquote(found) if isinstance(found, str) and found.isascii() else ""


def belongs_to(key: str) -> bytes:
    """Every object of an upload tells whose it is, so that whatever is left behind can be found."""
    return f', "metadata": {{"{KEY}": "{quote(key, safe="")}"}}'.encode()
