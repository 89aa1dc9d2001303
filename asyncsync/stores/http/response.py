"""What an HTTP/1.1 server says: heads, and the lines between chunks. And that it says nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass

DIGITS = 18
"""Most digits of a number in a response: what is longer is none that anybody means."""
_VERSIONS = frozenset({"HTTP/1.1", "HTTP/1.0"})
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{1,15}")


class BrokenError(Exception):
    """The exchange broke: no connection, a reset, a stall, an answer that is not HTTP. Says nothing of the request's
    fate: it may have been carried out."""


class NotReceivedError(BrokenError):
    """Not a byte of the request has arrived at the server's system."""


UNTRUSTED_ADVICE = "; if an authority of your own signed it, name its file by the storage option verify"
"""What to do about it."""


class UntrustedCertificateError(BrokenError):
    """The server's certificate is not one that is trusted for its name. Trying again is of no use."""


@dataclass(slots=True)
class Response:
    """Status and headers (names in lower case) of an answer, and its body where it was collected."""

    status: int
    headers: dict[str, str]
    keep: bool
    """The connection may serve again."""
    content: bytes = b""


def parse_head(head: bytes) -> Response:
    """Status line and headers; a header that comes twice is joined with a comma. BrokenError: this is not HTTP/1."""
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    status = rest[:3]
    if version not in _VERSIONS or len(status) != 3 or not is_number(status) or not "101" != status >= "100":
        raise BrokenError(f"this is no HTTP answer: {lines[0][:60]!r}")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or " " in name or "\t" in name:  # folded, or a name that others read differently
            raise BrokenError(f"this is no HTTP header: {line[:60]!r}")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    wish = headers.get("connection", "").lower()
    keep = wish == "keep-alive" if version == "HTTP/1.0" else wish != "close"
    return Response(int(status), headers, keep)


def length_of(answer: Response) -> int | None:
    """Bytes of the body as the head tells; None: its end will show."""
    if answer.status in (204, 304):
        return 0
    if "transfer-encoding" in answer.headers:
        return None
    text = answer.headers.get("content-length")
    if text is None:
        return None
    if not is_number(text):
        raise BrokenError(f"this is no Content-Length: {text[:60]!r}")
    return int(text)


def chunk_size(line: bytes) -> int:
    """Of the line before a chunk; what follows a semicolon are its extensions."""
    text = line.partition(b";")[0].strip()
    if not _HEXADECIMAL.fullmatch(text):
        raise BrokenError(f"this is no chunk: {text[:60]!r}")
    return int(text, 16)


def is_number(text: str) -> bool:
    """Whether a header's value is a number that a machine can count to, in ASCII digits and nothing else."""
    return text.isascii() and text.isdigit() and len(text) <= DIGITS
