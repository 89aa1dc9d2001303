"""The fake as an HTTP server: which request means what, and what it may contain."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from aiohttp import web
from http_fake import HttpFake, Reply, Seen, counted

from azure_fake import access
from azure_fake.model import (
    ApiError,
    Blob,
    Container,
    check_block_name,
    check_body,
    check_conditions,
    crc64_text,
    kept_headers,
)

ACCOUNT, KEY = "testaccount", "bm90LWEtc2VjcmV0LWJ1dC1hLWtleS1mb3ItdGVzdHM="
API_VERSION = "2021-12-02"
COMMON = {"x-ms-date", "x-ms-version", "x-ms-client-request-id"}
WRITES = {"x-ms-blob-content-type", "x-ms-access-tier", "x-ms-encryption-scope"}
SOURCE = {"x-ms-copy-source", "x-ms-copy-source-authorization", "x-ms-source-if-match", "x-ms-source-if-none-match"}
ALLOWED = {
    "put": WRITES | {"x-ms-blob-type", "x-ms-content-crc64"},
    "block": {"x-ms-content-crc64", "x-ms-encryption-scope"},
    "block from url": SOURCE | {"x-ms-source-range", "x-ms-source-content-crc64", "x-ms-encryption-scope"},
    "blocklist": WRITES | {"x-ms-content-crc64"},
    "copy": SOURCE | {"x-ms-requires-sync", "x-ms-access-tier", "x-ms-encryption-scope"},
    "delete": {"x-ms-delete-snapshots"},
    "read": {"x-ms-range"},
}
"""Headers of each operation beside COMMON and metadata; the service refuses others, or ignores them in silence."""
MAX_PAGE = 5000


class AzureFake(HttpFake):
    """Use as ``with AzureFake("container") as fake``; then ``fake.endpoint``. It has one account, whose name is in the
    path, as emulators have it.

    ``sas``: an account SAS that is accepted; ``tokens``: bearer tokens that are; ``public``: reads need nothing.
    ``skew``: seconds by which its clock is ahead.
    """

    name = "azure-fake"

    def __init__(self, *containers: str, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.containers = {name: Container(name) for name in containers}
        self.sas = ""
        self.tokens: set[str] = set()
        self.public = False
        self.skew = 0.0
        self.page = MAX_PAGE
        self.batches = True

    @property
    def storage_options(self) -> dict[str, Any]:
        return {"account": ACCOUNT, "account_key": KEY, "endpoint_url": f"{self.endpoint}/{ACCOUNT}"}

    def now(self) -> float:
        return time.time() + self.skew

    def planned_error(self, status: int, headers: dict[str, str]) -> Reply:
        return self._error(ApiError(status, headers.pop("code", "InternalError"), "as planned", headers))

    async def reply(self, request: web.Request, seen: Seen) -> Reply:
        body = b"".join([piece async for piece in counted(request, seen)])
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            reply = self._call(request.method, request.raw_path, headers, body)
        except ApiError as error:
            reply = self._error(error, bodiless=request.method == "HEAD")
        reply.headers |= {
            "x-ms-request-id": "1",
            "x-ms-version": API_VERSION,
            "Date": formatdate(self.now(), usegmt=True),
        }
        return reply

    @staticmethod
    def _error(error: ApiError, *, bodiless: bool = False) -> Reply:
        text = f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}\nRequestId:1</Message></Error>"
        body = b"" if bodiless or error.status == 304 else f'<?xml version="1.0"?>{text}'.encode()
        return Reply(
            error.status, body, {"x-ms-error-code": error.code, "Content-Type": "application/xml", **error.headers}
        )

    # Authorization

    def _authorize(self, method: str, target: str, headers: Mapping[str, str]) -> None:
        query = access.query_of(target)
        if "x-ms-version" not in headers and "sv" not in query and "comp" not in query and method != "DELETE":
            raise ApiError(400, "InvalidHeaderValue", "x-ms-version is missing")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme == "SharedKey":
            access.check_shared_key(ACCOUNT, KEY, method, target, headers, self.now())
        elif scheme == "Bearer":
            if token not in self.tokens:
                raise ApiError(401, "InvalidAuthenticationInfo", f"Token {token} is expired")
        elif "sig" in query:
            if not self.sas or not target.endswith(self.sas):
                raise ApiError(403, "AuthenticationFailed", f"Signature did not match: {target}")
        elif not (self.public and method in ("GET", "HEAD")):
            raise ApiError(401, "NoAuthenticationInformation", "Server failed to authenticate the request.")

    def _source(self, headers: Mapping[str, str]) -> Blob:
        """The source of a copy, which the service reads with an authorization of its own."""
        address = headers.get("x-ms-copy-source", "")
        if not address.startswith(f"{self.endpoint}/{ACCOUNT}/"):
            raise ApiError(400, "InvalidHeaderValue", "x-ms-copy-source is not an address of this service")
        target = address.removeprefix(self.endpoint)
        query = access.query_of(target)
        container, name = self._named(access.path_of(target))
        if query.get("sr"):
            access.check_read_sas(ACCOUNT, KEY, container.name, query, self.now())
        else:
            source = {"authorization": headers.get("x-ms-copy-source-authorization", ""), "x-ms-version": API_VERSION}
            try:
                self._authorize("GET", target, source)
            except ApiError as error:
                raise ApiError(403, "CannotVerifyCopySource", error.message) from error
        found = container.blobs.get(name)
        if found is None:
            raise ApiError(404, "CannotVerifyCopySource", "The specified blob does not exist.")
        check_conditions(found, headers, writes=True, source=True)
        return found

    # Routing

    def _named(self, path: str) -> tuple[Container, str]:
        match = re.fullmatch(rf"/{ACCOUNT}/([^/]+)(?:/(.*))?", path, re.DOTALL)
        if match is None:
            raise ApiError(400, "InvalidUri", "The requested URI does not represent any resource on the server.")
        if match[1] not in self.containers:
            raise ApiError(404, "ContainerNotFound", "The specified container does not exist.")
        return self.containers[match[1]], match[2] or ""

    def _call(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        self._authorize(method, target, headers)
        container, name = self._named(access.path_of(target))
        query = {key: value for key, value in access.query_of(target).items() if f"{key}=" not in self.sas}
        comp = query.get("comp", "")
        if not name:
            if (method, comp) == ("GET", "list"):
                return self._list(container, query)
            if (method, comp) == ("POST", "batch"):
                return self._batch(container, headers, body)
            raise ApiError(405, "UnsupportedHttpVerb")
        if method == "PUT":
            return self._put(container, name, query, headers, body)
        if method == "DELETE":
            _only(headers, "delete")
            container.delete(name, headers)
            return Reply(202)
        if method == "GET" and comp == "blocklist":
            return _block_list(container, name)
        return _read(container, name, method, headers)

    def _put(
        self, container: Container, name: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
    ) -> Reply:
        if "content-length" not in headers:
            raise ApiError(411, "MissingContentLengthHeader")
        comp, copied = query.get("comp", ""), "x-ms-copy-source" in headers
        check_body(headers, body)
        if comp == "block":
            return self._put_block(container, name, query["blockid"], headers, body, copied=copied)
        if comp == "blocklist":
            _only(headers, "blocklist")
            listed = [(_local(item), item.text or "") for item in ET.fromstring(body)]
            made = container.commit(name, listed, headers)
            return _written(made, headers)
        if copied:
            return self._copy(container, name, headers)
        _only(headers, "put")
        if headers.get("x-ms-blob-type") != "BlockBlob":
            raise ApiError(400, "MissingRequiredHeader", "x-ms-blob-type")
        return _written(container.write(name, Blob(body, kept_headers(headers)), headers), headers, body)

    def _put_block(
        self, container: Container, name: str, block: str, headers: Mapping[str, str], body: bytes, *, copied: bool
    ) -> Reply:
        check_block_name(block)
        _only(headers, "block from url" if copied else "block")
        if copied:
            body = _range(self._source(headers).data, headers.get("x-ms-source-range", ""))
            wanted = headers.get("x-ms-source-content-crc64")
            if wanted and wanted != crc64_text(body):
                raise ApiError(400, "Crc64Mismatch", "The CRC64 of the source did not match.")
        container.put_block(name, block, body)
        return Reply(201, headers={"x-ms-content-crc64": crc64_text(body)})

    def _copy(self, container: Container, name: str, headers: Mapping[str, str]) -> Reply:
        _only(headers, "copy")
        if headers.get("x-ms-requires-sync") != "true":
            raise ApiError(400, "InvalidHeaderValue", "only synchronous copies")
        source = self._source(headers)
        if len(source.data) > container.max_copy:
            raise ApiError(409, "CopySourceTooLarge", "The source is too large for a synchronous copy.")
        kept = kept_headers(headers)
        if not any(name.startswith("x-ms-meta-") for name in kept):
            kept |= {name: value for name, value in source.headers.items() if name.startswith("x-ms-meta-")}
        made = container.write(name, Blob(source.data, kept), headers)
        return Reply(202, headers={"ETag": made.etag, "x-ms-copy-status": "success", "x-ms-copy-id": "1"})

    # Whole containers

    def _list(self, container: Container, query: Mapping[str, str]) -> Reply:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(int(query.get("maxresults", MAX_PAGE)), self.page)
        entries: dict[str, str] = {}
        for name in sorted(container.blobs, key=str.encode):
            if name.startswith(prefix) and name > query.get("marker", ""):
                at = name.find(delimiter, len(prefix)) if delimiter else -1
                folded = name[: at + 1] if at >= 0 else ""
                if folded and folded <= query.get("marker", ""):
                    continue
                entry = f"<BlobPrefix>{_name(folded)}</BlobPrefix>" if folded else _entry(name, container.blobs[name])
                entries.setdefault(folded or name, entry)
        shown = list(entries)[:limit]
        marker = shown[-1] if len(entries) > limit else ""
        inside = "".join(entries[name] for name in shown)
        text = (
            f"<EnumerationResults><Blobs>{inside}</Blobs><NextMarker>{escape(marker)}</NextMarker></EnumerationResults>"
        )
        return Reply(
            200, f'\ufeff<?xml version="1.0" encoding="utf-8"?>{text}'.encode(), {"Content-Type": "application/xml"}
        )

    def _batch(self, container: Container, headers: Mapping[str, str], body: bytes) -> Reply:
        if container.hierarchical or not self.batches:
            raise ApiError(409, "FeatureNotSupportedForAccount", "Blob Batch is not supported for this account.")
        boundary = headers["content-type"].partition("boundary=")[2]
        parts = body.decode().split(f"--{boundary}")[1:-1]
        if len(parts) > 256:
            raise ApiError(400, "ExceedsMaxBatchRequestCount")
        made: list[str] = []
        for part in reversed(parts):  # in any order
            head, request = part.lstrip().split("\r\n\r\n", 1)
            number = re.search(r"Content-ID: (\d+)", head)[1]
            line, *lines = request.strip().split("\r\n")
            method, target, _ = line.split(" ")
            inner = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)}
            try:
                reply = self._call(method, target, inner, b"")
            except ApiError as error:
                reply = self._error(error)
            fields = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
            made.append(
                f"--batchresponse_1\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
                f"HTTP/1.1 {reply.status} Whatever\r\n{fields}\r\n{reply.body.decode()}"
            )
        text = "\r\n".join([*made, "--batchresponse_1--"])
        return Reply(202, text.encode(), {"Content-Type": "multipart/mixed; boundary=batchresponse_1"})


def _only(headers: Mapping[str, str], operation: str) -> None:
    """A misspelt condition or checksum must not be ignored."""
    given = {name for name in headers if name.startswith("x-ms-") and not name.startswith("x-ms-meta-")}
    if unknown := given - ALLOWED[operation] - COMMON:
        raise ApiError(400, "UnsupportedHeader", f"{operation}: {', '.join(sorted(unknown))}")


def _written(made: Blob, headers: Mapping[str, str], body: bytes | None = None) -> Reply:
    found = {"ETag": made.etag, "Last-Modified": formatdate(made.modified, usegmt=True)}
    if body is not None:
        found["x-ms-content-crc64"] = crc64_text(body)
    return Reply(201, headers=found)


def _read(container: Container, name: str, method: str, headers: Mapping[str, str]) -> Reply:
    _only(headers, "read")
    found = container.get(name)
    check_conditions(found, headers, writes=False)
    wanted = headers.get("range") or headers.get("x-ms-range")
    sent = dict(found.read_headers)
    if method == "HEAD":
        return Reply(200, b"", sent | {"Content-Length": str(len(found.data))})
    if wanted is None:
        return Reply(200, found.data, sent)
    data = _range(found.data, wanted)
    start = int(wanted.removeprefix("bytes=").partition("-")[0])
    sent["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{len(found.data)}"
    return Reply(206, data, sent)


def _range(data: bytes, text: str) -> bytes:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", text)
    if match is None:
        raise ApiError(400, "InvalidHeaderValue", "range")
    start, end = int(match[1]), int(match[2]) + 1 if match[2] else len(data)
    if start >= len(data):
        raise ApiError(416, "InvalidRange", "The range specified is invalid for the current size of the resource.")
    return data[start:end]


def _block_list(container: Container, name: str) -> Reply:
    found, waiting = container.blobs.get(name), container.uncommitted.get(name, {})
    if found is None and not waiting:
        raise ApiError(404, "BlobNotFound", "The specified blob does not exist.")
    committed = [] if found is None or name in container.through_dfs else found.blocks
    uncommitted = [(block, len(waiting[block])) for block in sorted(waiting)]
    lists = "".join(
        f"<{kind}>{''.join(f'<Block><Name>{n}</Name><Size>{size}</Size></Block>' for n, size in blocks)}</{kind}>"
        for kind, blocks in (("CommittedBlocks", committed), ("UncommittedBlocks", uncommitted))
    )
    headers = {"Content-Type": "application/xml"}
    if found is not None:  # "returned only if the blob has committed blocks"
        headers |= {"ETag": found.etag, "x-ms-blob-content-length": str(len(found.data))}
    return Reply(200, f'<?xml version="1.0" encoding="utf-8"?><BlockList>{lists}</BlockList>'.encode(), headers)


def _name(name: str) -> str:
    if name.isprintable() or not any(char < " " for char in name):
        return f"<Name>{escape(name)}</Name>"
    return f'<Name Encoded="true">{quote(name)}</Name>'


def _entry(name: str, blob: Blob) -> str:
    metadata = "".join(
        f"<{key.removeprefix('x-ms-meta-')}>{escape(value)}</{key.removeprefix('x-ms-meta-')}>"
        for key, value in blob.headers.items()
        if key.startswith("x-ms-meta-")
    )
    when = formatdate(blob.modified, usegmt=True)
    return (
        f"<Blob>{_name(name)}<Properties><Last-Modified>{when}</Last-Modified><Etag>{blob.etag.strip(chr(34))}</Etag>"
        f"<Content-Length>{len(blob.data)}</Content-Length></Properties><Metadata>{metadata}</Metadata></Blob>"
    )


def _local(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]
