"""Responses of the service: JSON, plain text or nothing, and errors in Google's form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from http_fake import Reply

REASONS = {
    400: "invalid",
    401: "authError",
    403: "forbidden",
    404: "notFound",
    409: "conflict",
    410: "gone",
    411: "required",
    412: "conditionNotMet",
    416: "requestedRangeNotSatisfiable",
    429: "rateLimitExceeded",
    503: "backendError",
}


class ApiError(Exception):
    """Becomes an error response."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})

    def reply(self, *, media: bool = False) -> Reply:
        """Errors of ``alt=media`` are plain text, all others a JSON document."""
        if self.status == 304:
            return Reply(304)
        if media:
            return Reply(
                self.status, self.message.encode(), {"Content-Type": "text/html; charset=UTF-8", **self.headers}
            )
        reason = REASONS.get(self.status, "unknown")
        said = {"message": self.message, "domain": "global", "reason": reason}
        document = {"error": {"code": self.status, "message": self.message, "errors": [said]}}
        answer = as_json(document, status=self.status)
        answer.headers.update(self.headers)
        return answer


def as_json(document: object, *, status: int = 200, fields: str | None = None) -> Reply:
    """A JSON response, reduced to ``fields`` if given."""
    if fields:
        document = select(document, parse_fields(fields))
    body = json.dumps(document).encode()
    return Reply(status, body, {"Content-Type": "application/json; charset=UTF-8"})


Fields = dict[str, "Fields"]


def parse_fields(text: str) -> Fields:
    """``a,b(c,d),e/f`` as nested names; ``{}`` under a name means all of it. 400 for anything else."""
    tokens = re.findall(r"[A-Za-z0-9*]+|[(),/]", text)
    if "".join(tokens) != text:
        raise ApiError(400, f"Invalid field selection {text}")
    found, rest = _group(tokens)
    if rest:
        raise ApiError(400, f"Invalid field selection {text}")
    return found


def _group(tokens: list[str]) -> tuple[Fields, list[str]]:
    found: Fields = {}
    while tokens and tokens[0] != ")":
        at = found
        name, tokens = tokens[0], tokens[1:]
        at = at.setdefault(name, {})
        while tokens[:1] == ["/"]:
            at, tokens = at.setdefault(tokens[1], {}), tokens[2:]
        if tokens[:1] == ["("]:
            inner, tokens = _group(tokens[1:])
            at.update(inner)
            tokens = tokens[1:]
        if tokens[:1] == [","]:
            tokens = tokens[1:]
    return found, tokens


def select(document: object, fields: Fields) -> object:
    """A document reduced to ``fields``. A missing field is omitted, as by the service."""
    if not fields or "*" in fields:
        return document
    if isinstance(document, list):
        return [select(item, fields) for item in document]
    assert isinstance(document, dict)
    return {name: select(document[name], inner) for name, inner in fields.items() if name in document}
