"""The fake as an HTTP server: which request means what, and what a query may contain."""

from __future__ import annotations

import re
import ssl
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from aiohttp import web
from http_fake import HttpFake, Seen, counted

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


class GcsFake(HttpFake):
    """Use as ``with GcsFake("bucket") as fake``; then ``fake.endpoint``. ``tls``: use HTTPS. ``base``: a path, like
    ``/gcs``, below which everything is; ``hidden``: the addresses in responses lack it.

    ``tokens``: those that are accepted; None: no token is needed. ``POST /token`` hands out ``fresh_token``.
    """

    name = "gcs-fake"

    def __init__(
        self,
        *buckets: str,
        tokens: set[str] | None = None,
        tls: ssl.SSLContext | None = None,
        base: str = "",
        hidden: bool = False,
    ) -> None:
        super().__init__(tls=tls, base=base)
        self._hidden = hidden
        self.buckets = {name: Bucket(name) for name in buckets}
        self.sessions = uploading.Sessions()
        self.rewrites = reading.Rewrites()
        self.tokens = tokens
        self.fresh_token = "fresh"

    @property
    def storage_options(self) -> dict[str, Any]:
        return {"endpoint_url": self.endpoint, "anonymous": True}

    def planned_error(self, status: int, headers: dict[str, str]) -> Reply:
        return ApiError(status, "as planned", headers).reply()

    async def reply(self, request: web.Request, seen: Seen) -> Reply:
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
                return await self.sessions.chunk(upload_id, request.headers, counted(request, seen))
            body = b"".join([piece async for piece in counted(request, seen)])
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


def _names(request: web.Request) -> set[str]:
    return {name.title() for name in request.headers}


def _query(target: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(target).query, keep_blank_values=True, strict_parsing=False))


def _only(query: dict[str, str], allowed: set[str]) -> None:
    """A misspelt condition must not be ignored."""
    if unknown := set(query) - allowed - UNIVERSAL:
        raise ApiError(400, f"Unknown parameter {', '.join(sorted(unknown))}")
