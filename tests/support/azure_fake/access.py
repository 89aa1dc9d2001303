"""Authorization, checked from the documentation's text and not with the code under test."""

from __future__ import annotations

import base64
import calendar
import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qsl, unquote, urlsplit

from azure_fake.model import ApiError

SIGNED = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)
MAX_SKEW = 900.0


def hmac_text(key: str, text: str) -> str:
    return base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()


def string_to_sign(account: str, method: str, target: str, headers: Mapping[str, str]) -> str:
    """The text of "Authorize with Shared Key"."""
    values = [headers.get(name, "") for name in SIGNED]
    if values[2] == "0":
        values[2] = ""
    own = sorted((item for item in headers.items() if item[0].startswith("x-ms-")), key=_by_word)
    split = urlsplit(target)
    resource = f"/{account}{split.path}"
    parameters: dict[str, list[str]] = {}
    for name, value in parse_qsl(split.query, keep_blank_values=True):
        parameters.setdefault(name.lower(), []).append(value)
    lines = [f"{name}:{value}" for name, value in own]
    resource += "".join(f"\n{name}:{','.join(sorted(parameters[name]))}" for name in sorted(parameters))
    return "\n".join([method, *values, *lines, resource])


def _by_word(item: tuple[str, str]) -> list[int]:
    """The service sorts by words, unlike its documentation: without dashes, underscores before digits."""
    return ["_0123456789abcdefghijklmnopqrstuvwxyz".index(char) for char in item[0] if char != "-"]


def check_shared_key(account: str, key: str, method: str, target: str, headers: Mapping[str, str], now: float) -> None:
    text = string_to_sign(account, method, target, headers)
    wanted = f"SharedKey {account}:{hmac_text(key, text)}"
    when = headers.get("x-ms-date") or headers.get("date") or ""
    if not when or abs(parsedate_to_datetime(when).timestamp() - now) > MAX_SKEW:
        raise ApiError(403, "AuthenticationFailed", f"Request date header too old: {when!r}")
    if headers.get("authorization") != wanted:
        got = headers.get("authorization", "").rpartition(":")[2]
        raise ApiError(
            403,
            "AuthenticationFailed",
            f"The MAC signature found in the HTTP request '{got}' is not the same as any computed signature. Server "
            f"used following string to sign: '{text}'.",
        )


def check_read_sas(account: str, key: str, container: str, query: Mapping[str, str], now: float) -> None:
    """A service SAS of a container with the permission to read ("Create a service SAS", version 2020-12-06)."""
    if query.get("sr") != "c" or "r" not in query.get("sp", "") or query.get("sv") != "2020-12-06":
        raise ApiError(403, "AuthorizationPermissionMismatch")
    fields = ("sp", "st", "se")
    values = [query.get(name, "") for name in fields]
    values += [f"/blob/{account}/{container}", query.get("si", ""), query.get("sip", ""), query.get("spr", "")]
    values += [query["sv"], query["sr"], "", query.get("ses", ""), "", "", "", "", ""]
    if query.get("sig") != hmac_text(key, "\n".join(values)):
        raise ApiError(403, "AuthenticationFailed", f"Signature did not match. sig={query.get('sig')}")
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", query.get("se", "")):
        raise ApiError(403, "AuthenticationFailed", "se is mandatory")
    if calendar.timegm(time.strptime(query["se"], "%Y-%m-%dT%H:%M:%SZ")) < now:
        raise ApiError(403, "AuthenticationFailed", "Signature not valid in the specified time frame")


def query_of(target: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(target).query, keep_blank_values=True))


def path_of(target: str) -> str:
    return unquote(urlsplit(target).path)
