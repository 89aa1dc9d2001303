"""Parsing of HTTP/1.1 responses: heads, and the lines between chunks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from asyncsync.stores.http.errors import BrokenError

MAX_NUMBER_DIGITS = 18
"""Longest number accepted in a header."""
_VERSIONS = frozenset({"HTTP/1.1", "HTTP/1.0"})
_STATUSES = {str(status): status for status in range(100, 1000) if status != 101}
"""All statuses but 101, which switches to another protocol."""
_CONTROL = re.compile(r"[\0-\x08\n-\x1f\x7f]")
"""Characters that no header contains (RFC 9110, "Field Values"). A line break could add a header to a later request,
which sends an ETag back."""
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{1,15}")


@dataclass(slots=True)
class Response:
    """Status and headers (names in lower case) of a response, and its body where it was collected."""

    status: int
    headers: dict[str, str]
    keep: bool
    """The connection can be reused."""
    content: bytes = b""


def parse_head(head: bytes) -> Response:
    """Parse the status line and headers; repeated headers are joined with a comma. BrokenError if it is not HTTP/1."""
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    status = _STATUSES.get(rest[:3])
    if version not in _VERSIONS or status is None:
        raise BrokenError(f"not an HTTP response: {lines[0][:60]!r}")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        # folded, or something that parsers read differently
        if not colon or not name or " " in name or "\t" in name or _CONTROL.search(line):
            raise BrokenError(f"not an HTTP header: {line[:60]!r}")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    wish = headers.get("connection", "").lower()
    keep = wish == "keep-alive" if version == "HTTP/1.0" else wish != "close"
    return Response(status, headers, keep)


def length_of(response: Response) -> int | None:
    """Length of the body in bytes; None if the head does not give it."""
    if response.status in (204, 304):
        return 0
    text, coding = response.headers.get("content-length"), response.headers.get("transfer-encoding")
    if coding is not None:
        if coding.lower() != "chunked":
            raise BrokenError(f"unsupported Transfer-Encoding: {coding[:60]!r}")
        if text is not None:
            raise BrokenError("a Content-Length and a Transfer-Encoding: one of them is wrong")
        return None
    if text is None:
        return None
    if not is_number(text):
        raise BrokenError(f"not a Content-Length: {text[:60]!r}")
    return int(text)


def chunk_size(line: bytes) -> int:
    """Size in the line before a chunk. Chunk extensions, after a semicolon, are ignored."""
    text = line.partition(b";")[0].strip()
    if not _HEXADECIMAL.fullmatch(text):
        raise BrokenError(f"not a chunk size: {text[:60]!r}")
    return int(text, 16)


def is_number(text: str) -> bool:
    """Whether a header's value is a number of at most 18 ASCII digits and nothing else."""
    return text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_DIGITS
