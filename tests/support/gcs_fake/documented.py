"""The documentation of the JSON API as a table: one row a rule, with the page that states it."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import google_crc32c
from yarl import URL

from gcs_fake.server import GcsFake

DOCS = "https://cloud.google.com/storage/docs/"
INSERT = DOCS + "json_api/v1/objects/insert"
GET = DOCS + "json_api/v1/objects/get"
LIST = DOCS + "json_api/v1/objects/list"
DELETE = DOCS + "json_api/v1/objects/delete"
COMPOSE = DOCS + "json_api/v1/objects/compose"
COMPOSITE = DOCS + "composite-objects"
REWRITE = DOCS + "json_api/v1/objects/rewrite"
CONDITIONS = DOCS + "request-preconditions"
STATUS = DOCS + "json_api/v1/status-codes"
RESUMABLE = DOCS + "performing-resumable-uploads"
BATCH = DOCS + "batch"
NAMING = DOCS + "objects#naming"
HASHES = DOCS + "data-validation"
ENCODING = DOCS + "request-endpoints#encoding"
TRANSCODING = DOCS + "transcoding"
FIELDS = DOCS + "json_api#partial-response"

OBJECTS = "/storage/v1/b/b/o"
UP = "/upload/storage/v1/b/b/o"


def related(document, media, boundary="xyz"):
    head = f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(document)}\r\n"
    body = head.encode() + f"--{boundary}\r\nContent-Type: text/plain\r\n\r\n".encode() + media
    return body + f"\r\n--{boundary}--\r\n".encode()


def crc(data):
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


RELATED = {"Content-Type": "multipart/related; boundary=xyz"}


@dataclass
class Row:
    """One request and its documented response. ``{G}`` in target and body is the generation of ``a``, ``10 bytes``."""

    source: str
    rule: str
    method: str
    target: str
    status: int
    body: bytes = b""
    headers: dict = field(default_factory=dict)
    says: dict = field(default_factory=dict)
    """Fields of the JSON response."""
    sends: dict = field(default_factory=dict)
    """Headers of the response; None: must be absent."""
    content: bytes | None = None


def upload(rule, target, status, document, media=b"data", source=INSERT, **more):
    return Row(source, rule, "POST", UP + target, status, related(document, media), RELATED, **more)


def compose(rule, status, sources, target="/new/compose", source=COMPOSE, **more):
    body = json.dumps({"sourceObjects": sources, "destination": {"contentType": "text/plain"}}).encode()
    return Row(source, rule, "POST", OBJECTS + target, status, body, {"Content-Type": "application/json"}, **more)


ROWS = [
    upload(
        "a multipart upload stores the media",
        "?uploadType=multipart",
        200,
        {"name": "x/y"},
        says={"name": "x/y", "size": "4", "crc32c": crc(b"data"), "metageneration": "1"},
    ),
    upload("the name may be in the query", "?uploadType=multipart&name=q", 200, {}, says={"name": "q"}),
    upload("a name is required", "?uploadType=multipart", 400, {}),
    upload("an upload type is required", "", 400, {"name": "x"}),
    upload(
        "a wrong CRC32C is refused", "?uploadType=multipart", 400, {"name": "x", "crc32c": crc(b"other")}, source=HASHES
    ),
    upload(
        "a right CRC32C is taken", "?uploadType=multipart", 200, {"name": "x", "crc32c": crc(b"data")}, source=HASHES
    ),
    upload("a wrong MD5 is refused", "?uploadType=multipart", 400, {"name": "x", "md5Hash": "AAAA"}, source=HASHES),
    upload("0 creates", "?uploadType=multipart&ifGenerationMatch=0", 200, {"name": "x"}, source=CONDITIONS),
    upload("0 does not replace", "?uploadType=multipart&ifGenerationMatch=0", 412, {"name": "a"}, source=CONDITIONS),
    upload(
        "the generation replaces", "?uploadType=multipart&ifGenerationMatch={G}", 200, {"name": "a"}, source=CONDITIONS
    ),
    upload(
        "another generation does not",
        "?uploadType=multipart&ifGenerationMatch=1",
        412,
        {"name": "a"},
        source=CONDITIONS,
    ),
    upload(
        "no generation matches what is not there",
        "?uploadType=multipart&ifGenerationMatch={G}",
        412,
        {"name": "x"},
        source=CONDITIONS,
    ),
    upload(
        "NotMatch 0 does not create",
        "?uploadType=multipart&ifGenerationNotMatch=0",
        412,
        {"name": "x"},
        source=CONDITIONS,
    ),
    upload(
        "a metageneration is compared",
        "?uploadType=multipart&ifMetagenerationMatch=2",
        412,
        {"name": "a"},
        source=CONDITIONS,
    ),
    upload(
        "a parameter that is not known is refused",
        "?uploadType=multipart&ifGeneration=0",
        400,
        {"name": "x"},
        source=STATUS,
    ),
    upload(
        "an answer is reduced to fields",
        "?uploadType=multipart&fields=name,size",
        200,
        {"name": "x"},
        source=FIELDS,
        says={"name": "x", "size": "4", "kind": None},
    ),
    upload("a name has at most 1024 bytes", "?uploadType=multipart", 400, {"name": "x" * 1025}, source=NAMING),
    upload("a name of 1024 bytes is one", "?uploadType=multipart", 200, {"name": "x" * 1024}, source=NAMING),
    upload("a name has no line feed", "?uploadType=multipart", 400, {"name": "a\nb"}, source=NAMING),
    upload("a name is not a dot", "?uploadType=multipart", 400, {"name": ".."}, source=NAMING),
    Row(INSERT, "no bucket", "POST", "/upload/storage/v1/b/none/o?uploadType=media&name=x", 404, b"data"),
    Row(
        INSERT,
        "a media upload is named by the query",
        "POST",
        UP + "?uploadType=media&name=m",
        200,
        b"data",
        {"Content-Type": "text/plain"},
        says={"name": "m", "contentType": "text/plain"},
    ),
    Row(
        GET,
        "metadata",
        "GET",
        OBJECTS + "/a",
        200,
        says={"name": "a", "size": "10", "bucket": "b", "generation": "{G}"},
    ),
    Row(
        GET,
        "media",
        "GET",
        OBJECTS + "/a?alt=media",
        200,
        content=b"0123456789",
        sends={"x-goog-generation": "{G}", "x-goog-stored-content-length": "10"},
    ),
    Row(
        HASHES,
        "media come with their hashes",
        "GET",
        OBJECTS + "/a?alt=media",
        200,
        sends={"x-goog-hash": f"crc32c={crc(b'0123456789')},md5=eB5eJF1ptWaXm4bijSPyxw=="},
    ),
    Row(
        GET,
        "a range",
        "GET",
        OBJECTS + "/a?alt=media",
        206,
        headers={"Range": "bytes=2-4"},
        content=b"234",
        sends={"Content-Range": "bytes 2-4/10"},
    ),
    Row(GET, "an open range", "GET", OBJECTS + "/a?alt=media", 206, headers={"Range": "bytes=8-"}, content=b"89"),
    Row(STATUS, "a range behind the end", "GET", OBJECTS + "/a?alt=media", 416, headers={"Range": "bytes=10-"}),
    Row(
        STATUS,
        "no such object",
        "GET",
        OBJECTS + "/none",
        404,
        says={"error.code": 404, "error.errors.0.reason": "notFound"},
    ),
    Row(CONDITIONS, "a read of another generation", "GET", OBJECTS + "/a?alt=media&ifGenerationMatch=1", 412),
    Row(
        CONDITIONS,
        "a read of this generation",
        "GET",
        OBJECTS + "/a?alt=media&ifGenerationMatch={G}",
        200,
        content=b"0123456789",
    ),
    Row(CONDITIONS, "a read unless it is this generation", "GET", OBJECTS + "/a?ifGenerationNotMatch={G}", 304),
    Row(GET, "a generation that is gone", "GET", OBJECTS + "/a?generation=1", 404),
    Row(ENCODING, "a slash in a name is encoded", "GET", OBJECTS + "/dir%2Fone", 200, says={"name": "dir/one"}),
    Row(ENCODING, "a plain slash is another resource", "GET", OBJECTS + "/dir/one", 404),
    Row(
        TRANSCODING,
        "gzip is undone for who does not accept it",
        "GET",
        OBJECTS + "/zipped?alt=media",
        200,
        headers={"Accept-Encoding": "identity"},
        content=b"plain",
        sends={"Content-Encoding": None, "x-goog-stored-content-encoding": "gzip"},
    ),
    Row(
        TRANSCODING,
        "gzip stays for who accepts it",
        "GET",
        OBJECTS + "/zipped?alt=media",
        200,
        headers={"Accept-Encoding": "gzip"},
        sends={"Content-Encoding": "gzip"},
    ),
    Row(
        TRANSCODING,
        "no-transform forbids undoing it",
        "GET",
        OBJECTS + "/zipped-fixed?alt=media",
        200,
        headers={"Accept-Encoding": "identity"},
        sends={"Content-Encoding": "gzip"},
    ),
    Row(
        LIST,
        "names come in the order of their bytes",
        "GET",
        OBJECTS + "?fields=items(name)",
        200,
        says={"items": [{"name": n} for n in ("a", "cold", "dir/one", "dir/two", "z", "zipped", "zipped-fixed")]},
    ),
    Row(
        LIST,
        "a prefix",
        "GET",
        OBJECTS + "?prefix=di&fields=items/name",
        200,
        says={"items": [{"name": "dir/one"}, {"name": "dir/two"}]},
    ),
    Row(
        LIST,
        "a delimiter folds",
        "GET",
        OBJECTS + "?delimiter=/&maxResults=3&fields=prefixes,items(name)",
        200,
        says={"items": [{"name": "a"}, {"name": "cold"}], "prefixes": ["dir/"]},
    ),
    Row(
        LIST,
        "a page has a token for the next",
        "GET",
        OBJECTS + "?maxResults=1&fields=nextPageToken",
        200,
        says={"nextPageToken": base64.urlsafe_b64encode(b"a").decode()},
    ),
    Row(
        LIST,
        "an empty listing has no items",
        "GET",
        OBJECTS + "?prefix=nothing",
        200,
        says={"items": None, "prefixes": None, "nextPageToken": None},
    ),
    Row(LIST, "no bucket", "GET", "/storage/v1/b/none/o", 404),
    Row(DELETE, "an object", "DELETE", OBJECTS + "/a", 204, content=b""),
    Row(DELETE, "what is not there", "DELETE", OBJECTS + "/none", 404),
    Row(CONDITIONS, "another generation stays", "DELETE", OBJECTS + "/a?ifGenerationMatch=1", 412),
    Row(DELETE, "a generation that is not there", "DELETE", OBJECTS + "/a?generation=1", 404),
    compose(
        "objects one after the other",
        200,
        [{"name": "a"}, {"name": "z"}],
        says={"size": "20", "componentCount": 2, "md5Hash": None, "crc32c": crc(b"0123456789" * 2)},
    ),
    compose("at most 32", 400, [{"name": "a"}] * 33),
    compose("32", 200, [{"name": "a"}] * 32, says={"componentCount": 32}),
    compose("at least one", 400, []),
    Row(
        COMPOSE,
        "a document says that it is JSON",
        "POST",
        OBJECTS + "/n/compose",
        400,
        b'{"sourceObjects": [{"name": "a"}]}',
    ),
    compose("a source that is not there", 404, [{"name": "a"}, {"name": "none"}]),
    compose("a generation of a source", 200, [{"name": "a", "generation": "{G}"}]),
    compose("a generation of a source that is gone", 404, [{"name": "a", "generation": "1"}]),
    compose("a condition on a source", 412, [{"name": "a", "objectPreconditions": {"ifGenerationMatch": "1"}}]),
    compose("a condition on the target", 412, [{"name": "a"}], "/z/compose?ifGenerationMatch=0", CONDITIONS),
    compose(
        "onto itself: an append", 200, [{"name": "a"}, {"name": "z"}], "/a/compose?ifGenerationMatch={G}", COMPOSITE
    ),
    compose("one storage class only", 400, [{"name": "a"}, {"name": "cold"}], source=COMPOSITE),
    Row(
        REWRITE,
        "a copy in one step",
        "POST",
        OBJECTS + "/a/rewriteTo/b/b/o/copy%2Fof",
        200,
        says={"done": True, "resource.name": "copy/of", "totalBytesRewritten": "10", "rewriteToken": None},
    ),
    Row(REWRITE, "a condition on the source", "POST", OBJECTS + "/a/rewriteTo/b/b/o/c?ifSourceGenerationMatch=1", 412),
    Row(REWRITE, "a condition on the target", "POST", OBJECTS + "/a/rewriteTo/b/b/o/z?ifGenerationMatch=0", 412),
    Row(REWRITE, "a source that is not there", "POST", OBJECTS + "/none/rewriteTo/b/b/o/c", 404),
    Row(
        RESUMABLE,
        "a session has a URI",
        "POST",
        UP + "?uploadType=resumable&name=r",
        200,
        content=b"",
        sends={"Location": "..."},
    ),
    Row(CONDITIONS, "a session is refused early", "POST", UP + "?uploadType=resumable&name=a&ifGenerationMatch=0", 412),
    Row(
        STATUS,
        "a session that is not known",
        "PUT",
        UP + "?uploadType=resumable&upload_id=none",
        404,
        headers={"Content-Range": "bytes */*"},
    ),
    Row(
        BATCH,
        "a batch needs calls",
        "POST",
        "/batch/storage/v1",
        400,
        b"--q--\r\n",
        {"Content-Type": "multipart/mixed; boundary=q"},
    ),
]


@contextmanager
def filled() -> Iterator[GcsFake]:
    """The fake with the objects that the rows use."""
    with GcsFake("b") as running:
        bucket = running.buckets["b"]
        for name in ("a", "dir/one", "dir/two", "z"):
            bucket.put(name, b"0123456789", {}, {})
        bucket.put("cold", b"cold", {"storageClass": "COLDLINE"}, {})
        zipped = gzip.compress(b"plain")
        bucket.put("zipped", zipped, {"contentEncoding": "gzip", "cacheControl": "public"}, {})
        bucket.put("zipped-fixed", zipped, {"contentEncoding": "gzip", "cacheControl": "no-transform"}, {})
        yield running


async def ask(http, fake, method, target, body=b"", headers=None):
    async with http.request(
        method, URL(fake.endpoint + target, encoded=True), data=body or None, headers=headers
    ) as answer:
        return answer.status, answer.headers, await answer.read()
