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
_STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})(?!\d)", re.MULTILINE)
_WHOSE = re.compile(rb"^Content-ID:\s*<?response-<?(\d{1,9})>?", re.MULTILINE | re.IGNORECASE)


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


def batch_answers(said: bytes) -> list[tuple[int, int, bytes]] | None:
    """Of each answer in a batch: to which call, its status, its body. None: this is no batch, or not all of one.

    Answers come in any order, and name their call by its Content-ID; where they do not, theirs is taken for that of the
    calls."""
    mark, *_ = said.lstrip().partition(b"\r\n")
    if not mark.startswith(b"--") or not said.rstrip().endswith(mark + b"--"):
        return None
    answers: list[tuple[int, int, bytes]] = []
    for place, part in enumerate(said.strip().split(mark)[1:-1]):
        status = _STATUS.search(part)
        if status is None:
            return None
        whose = _WHOSE.search(part, 0, status.start())
        body = part[status.end() :].partition(b"\r\n\r\n")[2]
        answers.append((int(whose[1]) if whose else place, int(status[1]), body.strip()))
    return answers
