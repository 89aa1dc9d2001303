"""Access to the page's server: only with the token in its address, from this machine, under its own name.

1. The Host header is that of this server: a page of another site that lets its name point here is refused.
2. The address begins with the token. It is compared in constant time; a wrong one is a missing page.
3. A POST also carries this server's own Origin: a form or script of another site is refused.

Every response forbids scripts and styles of anyone else, framing, caching, and sending the address to other sites.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from asyncsync.ui.html_page import PAGE_POLICY

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = (
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class AccessGate:
    """Passes what is allowed on to ``inner``, without the token in its path."""

    def __init__(self, inner: Application, token: str, port: int) -> None:
        self._inner, self._token = inner, token.encode()
        self._hosts = {f"{host}:{port}".encode() for host in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by the server, once for each request."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        path = scope["path"].split("/", 2)[2]
        inner = {**scope, "path": f"/{path}", "raw_path": None, "root_path": ""}
        await self._inner(inner, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"")
        if host not in self._hosts:
            return 421, "this server has another name"
        given = scope["path"].split("/", 2)
        if len(given) < 3 or not secrets.compare_digest(given[1].encode(), self._token):
            return 404, "nothing is here: the address of the page contains a token"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "only GET and POST"
        if scope["method"] == "POST" and headers.get(b"origin") != b"http://" + host:
            return 403, "a change must come from the page itself"
        return None


async def _refuse(send: Send, status: int, text: str) -> None:
    body = text.encode() + b"\n"
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*head, *HEADERS]})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *HEADERS]}
        await send(message)

    return sent
