"""A strict S3 server for the options of the S3 store, as the API reference describes them: it checks the signature of
every request, and refuses a header that its operation does not have.

Use it as the ``answer`` of :func:`s3_script.scripted`. It keeps the versions of each object, and locks.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import google_crc32c
from s3_script import Request, reply

from asyncsync.stores.s3.signer import Signer

CUSTOMER = "x-amz-server-side-encryption-customer-"
SOURCE = "x-amz-copy-source-server-side-encryption-customer-"
KEY = {f"{CUSTOMER}{end}" for end in ("algorithm", "key", "key-md5")}
SOURCE_KEY = {f"{SOURCE}{end}" for end in ("algorithm", "key", "key-md5")}
EVERY = {"x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "x-amz-expected-bucket-owner"}
EVERY |= {"x-amz-request-payer", "x-amz-user-agent"}
CHECKSUM = {"x-amz-checksum-crc32c", "x-amz-sdk-checksum-algorithm", "content-md5"}
CONDITIONS = {"if-match", "if-none-match"}
NEW = {
    "x-amz-acl",
    "x-amz-storage-class",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-bucket-key-enabled",
    "x-amz-server-side-encryption-context",
    "x-amz-tagging",
    "x-amz-object-lock-mode",
    "x-amz-object-lock-retain-until-date",
    "x-amz-object-lock-legal-hold",
    "cache-control",
    "content-type",
} | KEY
COPY = {"x-amz-copy-source", "x-amz-copy-source-if-match", "x-amz-source-expected-bucket-owner"} | SOURCE_KEY
ALLOWED = {
    "PutObject": NEW | CHECKSUM | CONDITIONS,
    "CreateMultipartUpload": NEW | {"x-amz-checksum-algorithm", "x-amz-checksum-type"},
    "UploadPart": CHECKSUM | KEY,
    "UploadPartCopy": COPY | KEY | {"x-amz-copy-source-range"},
    "CompleteMultipartUpload": KEY
    | CONDITIONS
    | {"x-amz-checksum-crc32c", "x-amz-checksum-type", "x-amz-mp-object-size", "content-type"},
    "CopyObject": NEW
    | COPY
    | CONDITIONS
    | {"x-amz-checksum-algorithm", "x-amz-metadata-directive", "x-amz-tagging-directive"},
    "GetObject": KEY | CONDITIONS | {"x-amz-checksum-mode", "range"},
    "HeadObject": KEY | CONDITIONS | {"x-amz-checksum-mode", "range"},
    "ListParts": KEY,
    "ListObjectsV2": set(),
    "DeleteObject": CONDITIONS,
    "DeleteObjects": CHECKSUM | {"content-type"},
    "AbortMultipartUpload": set(),
}
"""Headers of each operation, besides those of every request (Amazon S3 API Reference)."""
UNCHECKED = {"host", "accept", "accept-encoding", "user-agent", "content-length", "authorization", "expect"}
UNCHECKED |= {"amz-sdk-invocation-id", "amz-sdk-request"}
WITH_METADATA = {"PutObject", "CreateMultipartUpload", "CopyObject"}
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=AKID/\d{8}/(?P<region>[^/]+)/s3/aws4_request, "
    r"SignedHeaders=(?P<names>[^,]+), Signature=(?P<signature>[0-9a-f]{64})"
)


class Refused(Exception):
    def __init__(self, status, code, message):
        super().__init__(message)
        self.document = reply(
            status, f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>".encode()
        )


def invalid(message):
    return Refused("400 Bad Request", "InvalidRequest", message)


@dataclass
class Stored:
    data: bytes
    headers: dict[str, str]
    key_md5: str | None
    etag: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def locked(self):
        return "x-amz-object-lock-mode" in self.headers or "x-amz-object-lock-legal-hold" in self.headers

    def crc(self):
        return base64.b64encode(google_crc32c.value(self.data).to_bytes(4, "big")).decode()


@dataclass
class StrictS3:
    """``lock_by_default``: the bucket locks every new object. ``owner``: the account of the bucket."""

    owner: str = "123456789012"
    lock_by_default: bool = False
    versions: dict[str, list[Stored | None]] = field(default_factory=dict)
    """Newest last; None: a delete marker."""
    uploads: dict[str, tuple[str, dict[str, str], dict[int, bytes]]] = field(default_factory=dict)
    operations: list[tuple[str, Request]] = field(default_factory=list)

    def __call__(self, request: Request) -> bytes:
        try:
            return self._answer(request)
        except Refused as refused:
            if request.method != "HEAD":
                return refused.document
            return refused.document.split(b"\r\n\r\n")[0] + b"\r\n\r\n"

    def current(self, key: str) -> Stored | None:
        return (self.versions.get(key) or [None])[-1]

    def sent(self, operation: str) -> list[Request]:
        return [request for name, request in self.operations if name == operation]

    def _answer(self, request):
        url = urlsplit(request.target)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        key = unquote(url.path).removeprefix("/bucket").removeprefix("/")
        operation = _operation(request, key, query)
        self.operations.append((operation, request))
        self._check_signature(request, url)
        self._check_headers(operation, request.headers)
        return getattr(self, f"_{operation}")(request, key, query)

    def _check_signature(self, request, url):
        headers = request.headers
        found = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
        assert found, "the request is not signed"
        names = found["names"].split(";")
        for name in headers:
            if (name.startswith("x-amz-") or name in ("content-md5", "content-type", "host")) and name not in names:
                raise Refused("403 Forbidden", "AccessDenied", f"{name} is not signed")
        signer = Signer("AKID", "very-secret", None, found["region"])
        signed = {name: headers[name] for name in names}
        payload = headers["x-amz-content-sha256"]
        again = signer.authorization(request.method, url.path, url.query, signed, payload, headers["x-amz-date"])
        if again != headers["authorization"]:
            raise Refused("403 Forbidden", "SignatureDoesNotMatch", "the signature is another one")
        if re.fullmatch("[0-9a-f]{64}", payload) and hashlib.sha256(request.body).hexdigest() != payload:
            raise Refused("400 Bad Request", "XAmzContentSHA256Mismatch", "another body")

    def _check_headers(self, operation, headers):
        allowed = ALLOWED[operation] | EVERY | UNCHECKED
        for name in headers:
            if name.startswith("x-amz-meta-") and operation in WITH_METADATA:
                continue
            if name not in allowed:
                raise Refused("501 Not Implemented", "NotImplemented", f"{operation} has no header {name}")
        for owner in ("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner"):
            if headers.get(owner, self.owner) != self.owner:
                raise Refused("403 Forbidden", "AccessDenied", "Access Denied")
        for prefix in (CUSTOMER, SOURCE):
            _check_key(headers, prefix)

    # Bodies

    def _check_body(self, request):
        md5, crc = request.headers.get("content-md5"), request.headers.get("x-amz-checksum-crc32c")
        if md5 and base64.b64encode(hashlib.md5(request.body).digest()).decode() != md5:
            raise Refused("400 Bad Request", "BadDigest", "another MD5")
        if crc and base64.b64encode(google_crc32c.value(request.body).to_bytes(4, "big")).decode() != crc:
            raise Refused("400 Bad Request", "BadDigest", "another CRC32C")
        return bool(md5 or crc)

    def _check_lock(self, headers, *, checked, kind):
        given = {"x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date"} & set(headers)
        if len(given) == 1:
            raise invalid("x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied")
        if (given or self.lock_by_default) and not checked:
            raise invalid(
                f"Content-MD5 OR x-amz-checksum- HTTP header is required for Put {kind} requests with Object Lock "
                "parameters"
            )

    def _PutObject(self, request, key, query):
        self._check_lock(request.headers, checked=self._check_body(request), kind="Object")
        self._check_condition(request.headers, key)
        return self._put(key, Stored(request.body, _kept(request.headers), _md5_of(request.headers, CUSTOMER)))

    def _put(self, key, stored):
        self.versions.setdefault(key, []).append(stored)
        return reply(ETag=f'"{stored.etag}"', **{"x-amz-checksum-crc32c": stored.crc()})

    def _check_condition(self, headers, key):
        current = self.current(key)
        if headers.get("if-none-match") and current is not None:
            raise Refused("412 Precondition Failed", "PreconditionFailed", "it exists")
        if "if-match" in headers and (current is None or headers["if-match"] != f'"{current.etag}"'):
            raise Refused("412 Precondition Failed", "PreconditionFailed", "another ETag")

    def _find(self, key, headers, prefix=CUSTOMER, match="if-match"):
        stored = self.current(key)
        if stored is None:
            raise Refused("404 Not Found", "NoSuchKey", "there is none")
        given = _md5_of(headers, prefix)
        if stored.key_md5 and not given:
            raise invalid(
                "The object was stored using a form of Server Side Encryption. The correct parameters must be provided "
                "to retrieve the object."
            )
        if given and not stored.key_md5:
            raise invalid("The encryption parameters are not applicable to this object.")
        if given != stored.key_md5:
            raise Refused("403 Forbidden", "AccessDenied", f"the key {headers[f'{prefix}key']} does not fit")
        if match in headers and headers[match] != f'"{stored.etag}"':
            raise Refused("412 Precondition Failed", "PreconditionFailed", "another ETag")
        return stored

    def _GetObject(self, request, key, query):
        stored = self._find(key, request.headers)
        found = {"ETag": f'"{stored.etag}"', "x-amz-checksum-crc32c": stored.crc()}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if span is None:
            return reply(body=stored.data, **found)
        start, end = int(span[1]), min(int(span[2] or len(stored.data)), len(stored.data) - 1)
        if start >= len(stored.data):
            raise Refused("416 Requested Range Not Satisfiable", "InvalidRange", "behind the end")
        body, place = stored.data[start : end + 1], f"bytes {start}-{end}/{len(stored.data)}"
        return reply("206 Partial Content", body, **{"Content-Range": place}, **found)

    def _HeadObject(self, request, key, query):
        return self._GetObject(request, key, query).split(b"\r\n\r\n")[0] + b"\r\n\r\n"

    def _DeleteObject(self, request, key, query):
        if "versionId" in query:
            raise Refused("403 Forbidden", "AccessDenied", "Access Denied because object protected by object lock.")
        self.versions.setdefault(key, []).append(None)
        return reply("204 No Content", **{"x-amz-delete-marker": "true"})

    def _DeleteObjects(self, request, key, query):
        for one in ET.fromstring(request.body).iter():
            if one.tag.rpartition("}")[2] == "Key":
                self.versions.setdefault(one.text or "", []).append(None)
        return reply(body=b"<DeleteResult/>")

    def _ListObjectsV2(self, request, key, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        found, folded = "", {}
        for name in sorted(self.versions):
            stored, cut = self.current(name), name.find(delimiter, len(prefix)) if delimiter else -1
            if stored is None or not name.startswith(prefix):
                continue
            if cut >= 0:
                folded[name[: cut + len(delimiter)]] = None
                continue
            found += (
                f"<Contents><Key>{escape(name)}</Key><Size>{len(stored.data)}</Size><ETag>{stored.etag}</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        found += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folded)
        return reply(body=f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode())

    # Copies

    def _source(self, request):
        bucket, _, key = unquote(request.headers["x-amz-copy-source"]).lstrip("/").partition("/")
        assert bucket == "bucket"
        return self._find(key, request.headers, SOURCE, "x-amz-copy-source-if-match")

    def _CopyObject(self, request, key, query):
        source, headers = self._source(request), request.headers
        self._check_lock(headers, checked=True, kind="Object")
        self._check_condition(headers, key)
        described = {name for name in headers if name.startswith("x-amz-meta-") or name in ("content-type",)}
        if described and headers.get("x-amz-metadata-directive") != "REPLACE":
            raise invalid(f"{described} without x-amz-metadata-directive: REPLACE")
        if "x-amz-tagging" in headers and headers.get("x-amz-tagging-directive") != "REPLACE":
            raise invalid("x-amz-tagging without x-amz-tagging-directive: REPLACE")
        made = Stored(source.data, _kept(headers), _md5_of(headers, CUSTOMER))
        self._put(key, made)
        return reply(body=f'<CopyObjectResult><ETag>"{made.etag}"</ETag></CopyObjectResult>'.encode())

    # Multipart

    def _CreateMultipartUpload(self, request, key, query):
        self._check_lock(request.headers, checked=True, kind="Object")
        upload_id = secrets.token_hex(8)
        self.uploads[upload_id] = (key, dict(request.headers), {})
        document = f"<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>"
        return reply(body=document.encode())

    def _upload(self, request, query):
        if query["uploadId"] not in self.uploads:
            raise Refused("404 Not Found", "NoSuchUpload", "there is none")
        key, headers, parts = self.uploads[query["uploadId"]]
        if _md5_of(headers, CUSTOMER) != _md5_of(request.headers, CUSTOMER):
            raise invalid(
                "The multipart upload initiate requested encryption. Subsequent part requests must include the "
                "appropriate encryption parameters."
            )
        return key, headers, parts

    def _UploadPart(self, request, key, query):
        _, headers, parts = self._upload(request, query)
        checked = self._check_body(request)
        locked = any(name.startswith("x-amz-object-lock") for name in headers) or self.lock_by_default
        if locked and not checked:
            self._check_lock(headers, checked=False, kind="Part")
        parts[int(query["partNumber"])] = request.body
        return reply(ETag=f'"{_etag(request.body)}"')

    def _UploadPartCopy(self, request, key, query):
        _, _, parts = self._upload(request, query)
        source = self._source(request)
        start, end = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["x-amz-copy-source-range"]).groups()
        data = source.data[int(start) : int(end) + 1]
        parts[int(query["partNumber"])] = data
        return reply(body=f'<CopyPartResult><ETag>"{_etag(data)}"</ETag></CopyPartResult>'.encode())

    def _ListParts(self, request, key, query):
        _, _, parts = self._upload(request, query)
        items = "".join(
            f'<Part><PartNumber>{number}</PartNumber><Size>{len(data)}</Size><ETag>"{_etag(data)}"</ETag></Part>'
            for number, data in sorted(parts.items())
        )
        document = f"<ListPartsResult><IsTruncated>false</IsTruncated>{items}</ListPartsResult>"
        return reply(body=document.encode())

    def _CompleteMultipartUpload(self, request, key, query):
        key, headers, parts = self._upload(request, query)
        self._check_condition(request.headers, key)
        data = b"".join(parts[number] for number in sorted(parts))
        made = Stored(data, _kept(headers), _md5_of(headers, CUSTOMER), f"{secrets.token_hex(16)}-{len(parts)}")
        self._put(key, made)
        del self.uploads[query["uploadId"]]
        root = "CompleteMultipartUploadResult"
        return reply(body=f'<{root}><ETag>"{made.etag}"</ETag></{root}>'.encode())

    def _AbortMultipartUpload(self, request, key, query):
        self.uploads.pop(query["uploadId"], None)
        return reply("204 No Content")


def _operation(request, key, query):
    copying = "x-amz-copy-source" in request.headers
    if "uploadId" in query:
        names = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "GET": "ListParts"}
        names |= {"DELETE": "AbortMultipartUpload"}
        return "UploadPartCopy" if copying else names[request.method]
    if request.method == "POST":
        return "DeleteObjects" if "delete" in query else "CreateMultipartUpload"
    if request.method == "GET" and not key:
        return "ListObjectsV2"
    names = {"PUT": "CopyObject" if copying else "PutObject", "GET": "GetObject", "HEAD": "HeadObject"}
    return (names | {"DELETE": "DeleteObject"})[request.method]


def _check_key(headers, prefix):
    given = {
        name: headers[f"{prefix}{name}"] for name in ("algorithm", "key", "key-md5") if f"{prefix}{name}" in headers
    }
    if not given:
        return
    key = base64.b64decode(given.get("key", ""), validate=True)
    if given.get("algorithm") != "AES256" or len(key) != 32:
        raise Refused("400 Bad Request", "InvalidArgument", "The encryption key must be 256 bits for AES256")
    if base64.b64encode(hashlib.md5(key).digest()).decode() != given.get("key-md5"):
        raise Refused("400 Bad Request", "InvalidArgument", "The calculated MD5 hash of the key did not match")


def _md5_of(headers, prefix):
    return headers.get(f"{prefix}key-md5")


def _kept(headers):
    """Headers that describe the new object."""
    return {n: v for n, v in headers.items() if n in NEW - KEY or n.startswith("x-amz-meta-")}


def _etag(data):
    return hashlib.sha256(data).hexdigest()[:32]  # no MD5: the parts are encrypted
