"""What is sent to Cloud Storage: an object's metadata and its media in one multipart/related body, and batches."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

_BOUNDARY = secrets.token_hex(16)
"""One for all: 128 random bits are in nobody's data."""
_BEFORE = f"--{_BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n".encode()
_BETWEEN = (
    f"\r\n--{_BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n\r\n".encode()
)
AFTER = f"\r\n--{_BOUNDARY}--\r\n".encode()

CALLS = 100
"""Most calls in a batch (Cloud Storage documentation, "Batch requests")."""
RELATED_TYPE = f"multipart/related; boundary={_BOUNDARY}"
BATCH_TYPE = f"multipart/mixed; boundary={_BOUNDARY}"
_STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})", re.MULTILINE)
_WHOSE = re.compile(rb"^Content-ID:\s*<?response-<?(\d+)>?", re.MULTILINE | re.IGNORECASE)


def before_media(document: bytes) -> bytes:
    """What goes before the media of a multipart upload (RFC 2387); ``AFTER`` follows them."""
    return b"".join((_BEFORE, document, _BETWEEN))


def batch(paths: Sequence[str]) -> bytes:
    """A batch that deletes what is at ``paths`` (encoded, with query)."""
    parts = (
        f"--{_BOUNDARY}\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n"
        f"Content-ID: <{number}>\r\n\r\nDELETE {path} HTTP/1.1\r\n\r\n\r\n"
        for number, path in enumerate(paths)
    )
    return ("".join(parts) + f"--{_BOUNDARY}--\r\n").encode()


def batch_statuses(answer: bytes) -> dict[int, tuple[int, bytes]]:
    """Call -> its status, with what the answer says from there on. Answers come in any order, and name their call by
    its Content-ID; where they do not, theirs is taken for that of the calls."""
    found = list(_STATUS.finditer(answer))
    begins = [0] + [match.end() for match in found]
    ends = [match.start() for match in found[1:]] + [len(answer)]
    statuses: dict[int, tuple[int, bytes]] = {}
    for place, (match, begin, end) in enumerate(zip(found, begins[:-1], ends, strict=True)):
        whose = _WHOSE.findall(answer, begin, match.start())
        statuses[int(whose[-1]) if whose else place] = int(match[1]), answer[match.end() : end]
    return statuses
