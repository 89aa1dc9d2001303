"""Bodies of Blob Batch: many requests in one, in multipart/mixed (RFC 2046). No I/O."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence

MAX_BATCH = 256
"""Requests in a batch (Azure documentation, "Blob Batch")."""
_BOUNDARY = re.compile(r'boundary="?([^\s";]{1,200})"?', re.IGNORECASE)
_STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})(?!\d)", re.MULTILINE)
_ID = re.compile(rb"^Content-ID:\s*(\d{1,4})\s*$", re.MULTILINE | re.IGNORECASE)
_CODE = re.compile(rb"^x-ms-error-code:\s*(\w{1,80})\s*$", re.MULTILINE | re.IGNORECASE)


def batch_body(method: str, parts: Sequence[tuple[str, Mapping[str, str]]]) -> tuple[bytes, str]:
    """The body with a request for each target and its headers, and its content type."""
    boundary = f"batch_{secrets.token_hex(16)}"
    lines: list[str] = []
    for number, (target, headers) in enumerate(parts):
        lines += [f"--{boundary}", "Content-Type: application/http", "Content-Transfer-Encoding: binary"]
        lines += [f"Content-ID: {number}", "", f"{method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += ["", ""]
    lines += [f"--{boundary}--", ""]
    return "\r\n".join(lines).encode(), f"multipart/mixed; boundary={boundary}"


def batch_results(content: bytes, content_type: str) -> dict[int, tuple[int, str]] | None:
    """Status and error code by the number of the request; None if the body is malformed or incomplete. Responses come
    in any order and name their request by its Content-ID; without it the order is that of the requests."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        return None
    mark = f"--{found[1]}".encode()
    if not content.rstrip().endswith(mark + b"--"):
        return None
    results: dict[int, tuple[int, str]] = {}
    for place, part in enumerate(content.strip().split(mark)[1:-1]):
        status = _STATUS.search(part)
        if status is None:
            return None
        number, code = _ID.search(part, 0, status.start()), _CODE.search(part)
        results[int(number[1]) if number else place] = (int(status[1]), code[1].decode() if code else "")
    return results
