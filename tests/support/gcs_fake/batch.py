"""``POST /batch/storage/v1``: up to 100 calls in one multipart/mixed request."""

from __future__ import annotations

import re
from collections.abc import Callable

from gcs_fake.replies import ApiError, Reply

MOST_CALLS = 100
Call = Callable[[str, str, dict[str, str]], Reply]
"""Takes method, target and headers of an inner request."""


def run(content_type: str, body: bytes, call: Call) -> Reply:
    parts = _parts(content_type, body)
    if not 1 <= len(parts) <= MOST_CALLS:
        raise ApiError(400, f"The batch request contains {len(parts)} calls; 1 to 100 are allowed")
    boundary = "batch_of_the_answer"
    answers = [_answer(part, call) for part in parts][::-1]  # the service may respond in any order
    text = "".join(f"--{boundary}\r\n{answer}\r\n" for answer in answers) + f"--{boundary}--\r\n"
    return Reply(200, text.encode(), {"Content-Type": f"multipart/mixed; boundary={boundary}"})


def _parts(content_type: str, body: bytes) -> list[str]:
    match = re.fullmatch(r'multipart/mixed;\s*boundary="?([^";]+)"?', content_type)
    if match is None:
        raise ApiError(400, "Content-Type must be multipart/mixed with a boundary")
    text = "\r\n" + body.decode()
    mark = f"\r\n--{match[1]}"
    first, *parts, end = text.split(mark)
    if first.strip() or end.strip() != "--":
        raise ApiError(400, "Malformed multipart body.")
    return [part.removeprefix("\r\n") for part in parts]


def _answer(part: str, call: Call) -> str:
    outer, _, inner = part.partition("\r\n\r\n")
    outer_headers = _headers(outer)
    if outer_headers.get("content-type") != "application/http":
        raise ApiError(400, "Each part must be application/http")
    line, _, rest = inner.partition("\r\n")
    match = re.fullmatch(r"([A-Z]+) (/\S+)(?: HTTP/1\.1)?", line)
    if match is None:
        raise ApiError(400, f"Malformed request line {line!r}: method and path are needed")
    if not match[2].startswith("/storage/v1/"):
        raise ApiError(400, "Inner requests must go to the Cloud Storage JSON API")
    try:
        reply = call(match[1], match[2], _headers(rest.partition("\r\n\r\n")[0]))
    except ApiError as error:
        reply = error.reply()
    content_id = outer_headers.get("content-id")
    head = "Content-Type: application/http\r\n"
    if content_id:
        head += f"Content-ID: <response-{content_id.strip('<>')}>\r\n"
    names = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    line = f"HTTP/1.1 {reply.status} Said"
    return f"{head}\r\n{line}\r\n{names}Content-Length: {len(reply.body)}\r\n\r\n{reply.body.decode()}"


def _headers(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.split("\r\n") if ":" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
