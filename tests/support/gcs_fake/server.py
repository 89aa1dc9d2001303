"""The fake as an HTTP server in a thread of its own, with a log of requests and faults on demand."""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from aiohttp import web

from gcs_fake import batch, reading, uploading
from gcs_fake.model import Bucket
from gcs_fake.replies import ApiError, Reply, as_json

UNIVERSAL = {"alt", "fields", "prettyPrint", "userProject", "quotaUser", "key"}
IF = {"ifGenerationMatch", "ifGenerationNotMatch", "ifMetagenerationMatch", "ifMetagenerationNotMatch"}
IF_SOURCE = {name.replace("if", "ifSource", 1) for name in IF}
INSERT = {"uploadType", "name", "predefinedAcl", "kmsKeyName", "contentEncoding", "projection", "upload_id"} | IF
GET = {"generation", "projection"} | IF
LIST = {
    "prefix",
    "delimiter",
    "pageToken",
    "maxResults",
    "projection",
    "versions",
    "startOffset",
    "endOffset",
    "includeTrailingDelimiter",
}
COMPOSE = {"destinationPredefinedAcl", "kmsKeyName", "ifGenerationMatch", "ifMetagenerationMatch"}
REWRITE = (
    {
        "destinationPredefinedAcl",
        "destinationKmsKeyName",
        "maxBytesRewrittenPerCall",
        "rewriteToken",
        "sourceGeneration",
        "projection",
    }
    | IF
    | IF_SOURCE
)


@dataclass
class Fault:
    """A fault of the next ``times`` requests whose ``METHOD target`` matches ``pattern``.

    ``status``: respond with it, at once with an error document, or with ``body`` after the request; do nothing.
    ``lose``: serve the request and lose its response. ``short``: send so many bytes of the response's body only.
    ``change``: a function of the response's body. ``cut``: close the connection after so many bytes of the request's
    body (0: before any) and serve nothing.
    """

    pattern: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    lose: bool = False
    short: int | None = None
    cut: int | None = None
    body: bytes | None = None
    change: Callable[[bytes], bytes] | None = None


@dataclass
class Seen:
    """One request; ``size`` counts the received bytes of its body."""

    method: str
    target: str
    headers: dict[str, str]
    size: int = 0
    status: int = 0


class GcsFake:
    """Use as ``with GcsFake("bucket") as fake``; then ``fake.endpoint``. ``tls``: use HTTPS. ``base``: a path, like
    ``/gcs``, below which everything is; ``hidden``: the addresses in responses lack it.

    ``tokens``: those that are accepted; None: no token is needed. ``POST /token`` hands out ``fresh_token``.
    """

    def __init__(
        self,
        *buckets: str,
        tokens: set[str] | None = None,
        tls: ssl.SSLContext | None = None,
        base: str = "",
        hidden: bool = False,
    ) -> None:
        self._tls, self._base, self._hidden = tls, base, hidden
        self.buckets = {name: Bucket(name) for name in buckets}
        self.sessions = uploading.Sessions()
        self.rewrites = reading.Rewrites()
        self.tokens = tokens
        self.fresh_token = "fresh"
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.endpoint = ""
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._serve, name="gcs-fake")
        self._ready = threading.Event()

    def __enter__(self) -> GcsFake:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        assert self._runner is not None
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self._server = f"http{'s' if self._tls else ''}://127.0.0.1:{self._runner.addresses[0][1]}"
        self.endpoint = self._server + self._base

    @property
    def storage_options(self) -> dict[str, Any]:
        return {"endpoint_url": self.endpoint, "anonymous": True}

    def requests(self, pattern: str = "") -> list[Seen]:
        """Those whose ``METHOD target`` contains a match of ``pattern``."""
        return [seen for seen in self.seen if re.search(pattern, f"{seen.method} {seen.target}")]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.method, request.raw_path, dict(request.headers))
        self.seen.append(seen)
        fault = self._fault(seen)
        if fault is not None and fault.cut is not None:
            while seen.size < fault.cut and (piece := await request.content.readany()):
                seen.size += len(piece)
            return self._hang_up(request)
        if fault is not None and fault.status is not None:
            seen.status = fault.status
            if fault.body is not None:
                await request.read()
                return _response(Reply(fault.status, fault.body, fault.headers))
            return _response(ApiError(fault.status, "as planned", fault.headers).reply())
        reply = await self._reply(request, seen)
        seen.status = reply.status
        if fault is not None and fault.short is not None:
            reply = replace(reply, body=reply.body[: fault.short])
        if fault is not None and fault.change is not None:
            reply = replace(reply, body=fault.change(reply.body))
        return self._hang_up(request) if fault is not None and fault.lose else _response(reply)

    def _fault(self, seen: Seen) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.pattern, f"{seen.method} {seen.target}"):
                fault.times -= 1
                return fault
        return None

    @staticmethod
    def _hang_up(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        raise asyncio.CancelledError  # no response may be sent any more

    async def _reply(self, request: web.Request, seen: Seen) -> Reply:
        media = "alt=media" in request.query_string
        try:
            if not request.raw_path.startswith(f"{self._base}/"):
                raise ApiError(404, "Not Found")
            path = request.raw_path.partition("?")[0].removeprefix(self._base)
            path = path.removeprefix("/download")  # the target of mediaLink
            query = _query(request.raw_path)
            if path == "/token":
                await request.read()
                return as_json({"access_token": self.fresh_token, "expires_in": 3600, "token_type": "Bearer"})
            self._authorize(request)
            if request.method in ("POST", "PUT") and not {"Content-Length", "Transfer-Encoding"} & _names(request):
                raise ApiError(411, "POST requests require a Content-length header.")
            upload_id = query.get("upload_id")
            if path.startswith("/upload/") and upload_id and request.method in ("PUT", "DELETE"):
                if request.method == "DELETE":
                    return self.sessions.cancel(upload_id)
                return await self.sessions.chunk(upload_id, request.headers, _counted(request, seen))
            body = b"".join([piece async for piece in _counted(request, seen)])
            if path == "/batch/storage/v1" and request.method == "POST":
                return batch.run(request.headers.get("Content-Type", ""), body, self._inner)
            if path.startswith("/upload/storage/v1/b/"):
                return self._insert(request, path, query, body)
            return self._call(request.method, path, query, request.headers, body)
        except ApiError as error:
            return error.reply(media=media)

    def _authorize(self, request: web.Request) -> None:
        if self.tokens is None:
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.tokens:
            raise ApiError(
                401, "Invalid Credentials", {"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/"'}
            )

    def _insert(self, request: web.Request, path: str, query: dict[str, str], body: bytes) -> Reply:
        match = re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path)
        if match is None or request.method != "POST":
            raise ApiError(404, "Not Found")
        _only(query, INSERT)
        bucket = self._bucket(match[1])
        if query.get("uploadType") == "resumable":
            told = self._server if self._hidden else self.endpoint
            return self.sessions.start(bucket, query, request.headers, body, told)
        return uploading.single(bucket, query, request.headers, body)

    def _inner(self, method: str, target: str, headers: dict[str, str]) -> Reply:
        path = target.partition("?")[0]
        query = _query(target)
        if query.get("alt") == "media":
            raise ApiError(400, "Batches may not upload or download")
        return self._call(method, path, query, headers, b"")

    def _call(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> Reply:
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            return as_json({"kind": "storage#bucket", "name": self._bucket(match[1]).name, "storageClass": "STANDARD"})
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            _only(query, LIST)
            return reading.listing(self._bucket(match[1]), query)
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)", path):
            return self._object(method, self._bucket(match[1]), unquote(match[2]), query, headers)
        if method == "POST" and (match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)/compose", path)):
            _only(query, COMPOSE)
            return reading.compose(self._bucket(match[1]), unquote(match[2]), query, headers, body)
        rewrite = r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)"
        if method == "POST" and (match := re.fullmatch(rewrite, path)):
            _only(query, REWRITE)
            source, target = self._bucket(match[1]), self._bucket(match[3])
            return self.rewrites.run(source, unquote(match[2]), target, unquote(match[4]), query, headers, body)
        raise ApiError(404, "Not Found")

    @staticmethod
    def _object(method: str, bucket: Bucket, name: str, query: dict[str, str], headers: Any) -> Reply:
        _only(query, GET)
        if method == "GET":
            return reading.get(bucket, name, query, headers)
        if method == "DELETE":
            return reading.delete(bucket, name, query)
        raise ApiError(404, "Not Found")

    def _bucket(self, name: str) -> Bucket:
        if name not in self.buckets:
            raise ApiError(404, "The specified bucket does not exist.")
        return self.buckets[name]


async def _counted(request: web.Request, seen: Seen) -> AsyncIterator[bytes]:
    async for piece in request.content.iter_any():
        seen.size += len(piece)
        yield piece


def _names(request: web.Request) -> set[str]:
    return {name.title() for name in request.headers}


def _query(target: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(target).query, keep_blank_values=True, strict_parsing=False))


def _only(query: dict[str, str], allowed: set[str]) -> None:
    """A misspelt condition must not be ignored."""
    if unknown := set(query) - allowed - UNIVERSAL:
        raise ApiError(400, f"Unknown parameter {', '.join(sorted(unknown))}")


def _response(reply: Reply) -> web.Response:
    answer = web.Response(status=reply.status, body=reply.body, headers=reply.headers)
    if reply.chunked:
        answer.enable_chunked_encoding()
    return answer
