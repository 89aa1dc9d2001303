"""Feeds damaged documents to every parser of what a network, a store or a disk may hand us.

``python tests/fuzz/fuzzing.py --seconds 3600 --jobs 2`` runs until the time is over and prints how many inputs each
parser took; ``tests/fuzz/test_fuzz.py`` runs a few thousand of each from a fixed seed, and every flip of a single
bit of every document. A parser may return, or raise one of our errors. Whatever else it raises is a finding: the seed
and the input are printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from asyncsync.errors import AsyncsyncError
from asyncsync.planning.document import DocumentError
from asyncsync.planning.manifest import FileEntry, Manifest, ManifestSegment
from asyncsync.planning.segments import encode_head
from asyncsync.planning.segments import parse_head as parse_manifest_head
from asyncsync.stores.azure.batch_delete import batch_results
from asyncsync.stores.azure.block_ids import BlockName, block_name_of
from asyncsync.stores.azure.errors import failure as azure_failure
from asyncsync.stores.azure.options import location_of, parse_connection_string
from asyncsync.stores.azure.xml import block_list_of, page_of
from asyncsync.stores.gcs.errors import failure
from asyncsync.stores.gcs.requests import batch_responses
from asyncsync.stores.gcs.responses import (
    info_from_headers,
    listing_of,
    persisted_bytes,
    range_bytes,
    rewrite_of,
    written_of,
)
from asyncsync.stores.http.dates import retry_after, unix_of
from asyncsync.stores.http.errors import BrokenError
from asyncsync.stores.http.response import chunk_size, length_of, parse_head
from asyncsync.stores.listing_position import ListingPosition
from asyncsync.stores.s3.endpoint import regional, shown
from asyncsync.stores.s3.errors import parse_failure
from asyncsync.stores.s3.responses import GetObjectBody, check_result
from asyncsync.stores.s3.xml import failed_deletes
from asyncsync.sync.records.model import ExperimentRecord, FailureRecord, OutcomeRecord, RankRecord, TrialRecord

Parser = Callable[[bytes], object]
OURS = (AsyncsyncError, DocumentError, BrokenError)
BATCH = 200
"""Inputs between two looks at the clock."""
TOKENS = (
    b"0",
    b"-1",
    b"1e999",
    b"NaN",
    b"Infinity",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b"18446744073709551616",
    b"9" * 400,
    b"<![CDATA[",
    b"]]>",
    b"&amp;",
    b"&#x0;",
    b"&#xD800;",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
    b"&b;",
    b"<?xml version='1.0' encoding='utf-16'?>",
    b"xmlns='x'",
    b"\r\n",
    b"\r\n ",
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"../",
    b"bytes */*",
    b"bytes 0-0/*",
    b"31 Feb 10000",
    b"+9999",
    b"--",
    b":",
    b",",
    b"\xe2\x80\xa8",
)


@dataclass(frozen=True)
class Target:
    """A parser, and documents that it understands."""

    name: str
    parse: Parser
    corpus: tuple[bytes, ...]


def _head(data: bytes) -> object:
    response = parse_head(data)
    headers = response.headers
    return length_of(response), retry_after(headers), info_from_headers("k", 1, headers), persisted_bytes(headers)


def _range(data: bytes) -> object:
    headers = parse_head(data).headers
    return range_bytes("k", headers, 0, 100)


def _s3_range(data: bytes) -> object:
    async def sink(piece: bytes | memoryview) -> None:
        del piece

    response = parse_head(data)
    return GetObjectBody("k", 0, 100, sink).expect(response.status, response.headers)


def _s3_result(operation: str) -> Parser:
    def parse(data: bytes) -> object:
        root = check_result(operation, "s3://b/k", 200, {}, data)
        return failed_deletes(root) if root is not None and operation == "DeleteObjects" else root

    return parse


def _s3_failure(data: bytes) -> object:
    refused = parse_failure("PutObject", "s3://b/k", 400, {"x-amz-bucket-region": data[:20].decode("latin-1")}, data)
    return refused.error(), refused.bucket, refused.location


def _location(data: bytes) -> object:
    text = data.decode("latin-1")
    return regional("https://b.s3.amazonaws.com", text), shown(text)


def _text(parse: Callable[[str], object]) -> Parser:
    return lambda data: parse(data.decode("utf-8", "surrogateescape"))


def _xml(root: str, inner: str) -> tuple[bytes, ...]:
    """A result with the namespace as default, and the same with a prefix."""
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    plain = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{namespace}">{inner}</{root}>'
    prefixed = f'<a:{root} xmlns:a="{namespace}">{inner}</a:{root}>'
    return plain.encode(), prefixed.encode()


ERROR = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>m &amp; &#x22;</Message><Region>r</Region></Error>",
    b"<Error><Code>PermanentRedirect</Code><Endpoint>b.s3-eu-west-1.amazonaws.com</Endpoint><Bucket>b</Bucket></Error>",
)
HEADS = (
    b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\nETag: "e"\r\nLast-Modified: Sat, 01 Jan 2000 00:00:00 GMT\r\nDate: x',
    (
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-99/1000\r\ncontent-length: 100\r\n"
        b"x-goog-generation: 12\r\nx-goog-hash: crc32c=AAAAAA==,md5=x"
    ),
    b"HTTP/1.1 308 Resume Incomplete\r\nRange: bytes=0-262143\r\nContent-Length: 0",
    (
        b"HTTP/1.0 503 Slow Down\r\nRetry-After: Sat, 01 Jan 2000 00:01:00 GMT\r\n"
        b"Date: Sat, 01 Jan 2000 00:00:00 GMT\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive"
    ),
)
RESOURCE = {
    "kind": "storage#object",
    "name": "p/k",
    "bucket": "b",
    "generation": "17",
    "metageneration": "1",
    "size": "4",
    "crc32c": "AAAAAA==",
    "timeCreated": "2026-01-01T00:00:00.000Z",
    "updated": "2026-01-01T00:00:00Z",
}


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _manifest() -> tuple[bytes, bytes]:
    """Two files, one of them in two parts; as asyncsync writes it, and in another layout."""
    parts = ("0" * 32, "1" * 32)
    files = {
        "a/b.bin": FileEntry("a/b.bin", 20, 5, 0o755, 0xCB567BA7, 10, parts, (1, 2), "v", inode=7),
        "c": FileEntry("c", 3, 5, 0o644, 1, 0, parts[:1], (1,), "w"),
    }
    data = Manifest(files, {"step": 1, "metrics": {"loss": 0.5}}).to_bytes()
    return data, json.dumps(json.loads(data), indent=1).encode()


def _segmented() -> tuple[bytes, bytes]:
    """Of two segments; as asyncsync writes it, and in another layout."""
    first = ManifestSegment("0" * 24, "a/b.bin", 4096, 1 << 20, "0" * 32)
    second = ManifestSegment("1" * 24, "c", 1, 250, "1" * 32)
    data = encode_head(Manifest({}, {"scanned_ns": 5}, segments=(first, second)))
    return data, json.dumps(json.loads(data), indent=1).encode()


def _targets() -> Iterator[Target]:
    yield from _http_targets()
    yield from _s3_targets()
    yield from _gcs_targets()
    yield from _azure_targets()
    yield from _document_targets()


def _http_targets() -> Iterator[Target]:
    yield Target("HTTP head", _head, HEADS)
    yield Target("HTTP chunk", chunk_size, (b"1f4;name=value", b"0", b"ffffffffffff"))
    yield Target("HTTP date", _text(unix_of), (b"Sat, 01 Jan 2000 00:00:00 GMT", b"Saturday, 01-Jan-00 00:00:00 GMT"))


def _s3_targets() -> Iterator[Target]:
    etag = "<ETag>&quot;abc&quot;</ETag>"
    completed = _xml("CompleteMultipartUploadResult", etag)
    deleted = "<Deleted><Key>a</Key></Deleted><Error><Key>b</Key><Code>AccessDenied</Code><Message>m</Message></Error>"
    yield Target("S3 range", _s3_range, HEADS)
    yield Target(
        "S3 redirect", _location, (b"https://b.s3.eu-west-1.amazonaws.com/k?x=y", b"http://[::1]:80/", b"//h/p")
    )
    yield Target("S3 error", _s3_failure, ERROR)
    yield Target("S3 complete", _s3_result("CompleteMultipartUpload"), completed + ERROR)
    yield Target("S3 copy", _s3_result("CopyObject"), _xml("CopyObjectResult", etag))
    yield Target("S3 deletes", _s3_result("DeleteObjects"), _xml("DeleteResult", deleted))
    yield Target("S3 listing position", _text(ListingPosition.parse), (b"", b"abc", b'{"a": 1}'))


def _gcs_targets() -> Iterator[Target]:
    refusal = {"error": {"code": 403, "message": "m", "errors": [{"reason": "rateLimitExceeded"}]}}
    done = {"kind": "storage#rewriteResponse", "done": True, "resource": RESOURCE, "totalBytesRewritten": "4"}
    step = {"done": False, "rewriteToken": "t", "totalBytesRewritten": "1"}
    listing = {"kind": "storage#objects", "items": [RESOURCE], "prefixes": ["p/d/"], "nextPageToken": "t"}
    part = "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"
    batch = f"--x\r\nContent-Type: application/http\r\nContent-ID: <response-0>\r\n\r\n{part}\r\n--x--"
    yield Target("GCS range", _range, HEADS)
    yield Target("GCS error", lambda data: failure("put", "gs://b/k", 403, {}, data), (_json(refusal),))
    yield Target("GCS insert", lambda data: written_of("gs://b/k", data, "p/k", "b", 4, 0), (_json(RESOURCE),))
    rewritten = (_json(done), _json(step))
    yield Target("GCS rewrite", lambda data: rewrite_of("gs://b/k", data, "p/k", "b"), rewritten)
    yield Target("GCS listing", lambda data: listing_of("gs://b", data, "p/"), (_json(listing),))
    yield Target("GCS batch", batch_responses, (batch.encode(),))


def _azure_targets() -> Iterator[Target]:
    blob = "<Properties><Etag>0x8D</Etag><Content-Length>5</Content-Length></Properties>"
    metadata = "<Metadata><crc32c>AAAAAA==</crc32c><hdi_isfolder>true</hdi_isfolder></Metadata>"
    blobs = f'<Blob><Name Encoded="true">p/%01</Name>{blob}{metadata}</Blob><BlobPrefix><Name>p/d/</Name></BlobPrefix>'
    page = f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>m</NextMarker></EnumerationResults>"
    block = f"<Block><Name>{BlockName('00' * 8, 1, 0, 7).encoded()}</Name><Size>5</Size></Block>"
    blocks = f"<BlockList><CommittedBlocks>{block}</CommittedBlocks><UncommittedBlocks/></BlockList>"
    part = "HTTP/1.1 404 Not Found\r\nx-ms-error-code: BlobNotFound\r\n\r\n"
    batch = f"--x\r\nContent-Type: application/http\r\nContent-ID: 0\r\n\r\n{part}\r\n--x--".encode()
    addresses = (b"abfss://box@acct.dfs.core.windows.net/p", b"https://acct.blob.core.windows.net/box/p?sv=1&sig=x")
    connection = (b"AccountName=acct;AccountKey=a2V5;EndpointSuffix=core.windows.net", b"UseDevelopmentStorage=true")
    yield Target("Azure error", lambda data: azure_failure("put", "az://b/k", 403, {}, data), ERROR)
    yield Target("Azure listing", lambda data: page_of("az://b", data, "p/"), (page.encode(),))
    yield Target("Azure blocks", lambda data: block_list_of("az://b/k", data, "v", 5), (blocks.encode(),))
    yield Target("Azure batch", lambda data: batch_results(data, "multipart/mixed; boundary=x"), (batch,))
    yield Target("Azure block name", _text(block_name_of), (BlockName("00" * 8, 1, 0, None).encoded().encode(),))
    yield Target("Azure address", _text(location_of), addresses)
    yield Target("Azure connection string", _text(lambda text: parse_connection_string(text, "it")), connection)


def _document_targets() -> Iterator[Target]:
    yield Target("manifest", Manifest.from_bytes, _manifest())
    yield Target("head of a manifest in segments", parse_manifest_head, _segmented())
    trial = TrialRecord("t", "e", params={"a": 1}, metrics={"loss": 0.1}, started=1.0, updated=2.0)
    experiment = ExperimentRecord("e", config={"sync": {}}, started=1.0, updated=2.0)
    ranks = (RankRecord("t", 1, 2), FailureRecord(1, 1, "r"), OutcomeRecord(1, 1, 1, committed=True))
    for record in (trial, experiment, *ranks):
        yield Target(f"{record.KIND} record", type(record).from_bytes, (record.to_bytes("w/1"),))


TARGETS = tuple(_targets())


def damaged(data: bytes, dice: random.Random) -> bytes:
    """One input: a document with up to eight mutations."""
    found = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        at, length = dice.randrange(len(found) + 1), dice.choice((1, 1, 2, 5, 30))
        kind = dice.randrange(6)
        if kind == 0 and found:
            found[at % len(found)] ^= 1 << dice.randrange(8)
        elif kind == 1:
            found[at:at] = dice.choice(TOKENS)
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at : at + length] = dice.randbytes(length)
        elif kind == 4:
            found[at:at] = found[at : at + length] * dice.choice((1, 2, 50))
        else:
            found[at : at + length] = dice.choice(TOKENS)
    return bytes(found)


def flips(data: bytes) -> Iterator[bytes]:
    """``data`` with each of its bits flipped, one at a time."""
    for at in range(8 * len(data)):
        found = bytearray(data)
        found[at // 8] ^= 1 << at % 8
        yield bytes(found)


def foreign_error(target: Target, data: bytes) -> str | None:
    """What the parser raises that is not an error of ours, with its traceback."""
    try:
        target.parse(data)
    except OURS:
        return None
    except Exception:
        return f"{target.name}: {data!r}\n{traceback.format_exc()}"
    return None


def findings(target: Target, seed: int, count: int) -> Iterator[str]:
    """Foreign errors in so many inputs from this seed."""
    dice = random.Random(f"{target.name}/{seed}")
    for _ in range(count):
        found = foreign_error(target, damaged(dice.choice(target.corpus), dice))
        if found is not None:
            yield f"seed {seed}: {found}"


def _run(job: tuple[int, float, int]) -> tuple[dict[str, int], list[str]]:
    first, seconds, step = job
    counts, found, end, seed = (
        dict.fromkeys((target.name for target in TARGETS), 0),
        [],
        time.monotonic() + seconds,
        first,
    )
    while time.monotonic() < end and not found:
        for target in TARGETS:
            found += list(findings(target, seed, BATCH))
            counts[target.name] += BATCH
        seed += step
    return counts, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    jobs = [(options.first + number, options.seconds, options.jobs) for number in range(options.jobs)]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        results = pool.map(_run, jobs)
    for target in TARGETS:
        print(f"| {target.name} | {sum(counts[target.name] for counts, _ in results):,} |")
    print(f"| all | {sum(sum(counts.values()) for counts, _ in results):,} |")
    found = [text for _, texts in results for text in texts]
    print("\n".join(found) or "no error but ours")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
