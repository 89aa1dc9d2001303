"""Shared Key signatures and service SAS of Azure Storage. No I/O, no clock.

The key of an account never leaves the process: a request carries an HMAC over its method, headers and address (Azure
documentation, "Authorize with Shared Key"), a copy source a SAS that is signed the same way ("Create a service SAS").
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from email.utils import formatdate
from urllib.parse import quote, unquote

MAX_HEADER_SETS = 64
"""Sets of header names whose order is cached."""
SAS_VERSION = "2020-12-06"
"""Version of the text that a SAS signs; it includes the encryption scope."""


class SharedKeySigner:
    """Signs with the key of one account. Its ``repr`` shows no secret."""

    __slots__ = ("_mac", "_orders", "account")

    def __init__(self, account: str, key: bytes) -> None:
        self.account = account
        self._mac = hmac.new(key, digestmod="sha256")
        self._orders: dict[tuple[str, ...], list[str]] = {}

    def __repr__(self) -> str:
        return f"SharedKeySigner(account={self.account!r})"

    def authorization(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> str:
        """The value of the ``Authorization`` header.

        ``path`` and ``query`` are percent-encoded, as in the request. ``headers`` have names in lower case, and include
        ``x-ms-date`` and, with a body, ``content-length``. A range is signed as ``x-ms-range``.
        """
        get = headers.get
        length = get("content-length", "").removeprefix("0")  # an empty body is signed as none
        names = self._ordered(tuple(headers))
        lines = "".join([f"{name}:{headers[name]}\n" for name in names])
        resource = f"/{self.account}{path}{canonical_query(query)}" if query else f"/{self.account}{path}"
        text = (
            f"{method}\n\n\n{length}\n{get('content-md5', '')}\n{get('content-type', '')}\n\n\n"
            f"{get('if-match', '')}\n{get('if-none-match', '')}\n\n\n{lines}{resource}"
        )
        return f"SharedKey {self.account}:{self._signature(text)}"

    def read_sas(self, container: str, expiry: str, *, https: bool) -> str:
        """A SAS that allows to read the blobs of ``container`` until ``expiry`` (``2030-01-31T12:00:00Z``)."""
        protocol = "https" if https else "https,http"
        resource = f"/blob/{self.account}/{container}"
        values = ("r", "", expiry, resource, "", "", protocol, SAS_VERSION, "c", "", "", "", "", "", "", "")
        signature = quote(self._signature("\n".join(values)), safe="")
        return f"sv={SAS_VERSION}&sr=c&sp=r&se={quote(expiry, safe='')}&spr={quote(protocol, safe='')}&sig={signature}"

    def _signature(self, text: str) -> str:
        mac = self._mac.copy()  # half the cost of a new object
        mac.update(text.encode())
        return base64.b64encode(mac.digest()).decode()

    def _ordered(self, header_set: tuple[str, ...]) -> list[str]:
        """The sorted names of headers that are signed by name. A store sends few different sets, again and again."""
        known = self._orders.get(header_set)
        if known is None:
            known = sorted((name for name in header_set if name.startswith("x-ms-")), key=_sort_key)
            if len(self._orders) < MAX_HEADER_SETS:
                self._orders[header_set] = known
        return known


def _sort_key(name: str) -> str:
    """The service does not sort by bytes, unlike its documentation, but by words: a dash counts nothing, and an
    underscore comes before digits (azure-storage-blob sorts so, too)."""
    return name.replace("-", "").replace("_", "!")


def canonical_query(query: str) -> str:
    """The decoded parameters of an encoded query, sorted, each on a line of its own."""
    pairs = sorted((unquote(name).lower(), unquote(value)) for name, _, value in _parameters(query))
    return "".join([f"\n{name}:{value}" for name, value in pairs])


def _parameters(query: str) -> list[tuple[str, str, str]]:
    return [item.partition("=") for item in query.split("&")]


def date_of(unix_seconds: float) -> str:
    """A time in the format of ``x-ms-date`` (RFC 1123)."""
    return formatdate(unix_seconds, usegmt=True)
