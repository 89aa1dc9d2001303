"""A success counts only with the result that Cloud Storage documents for its request. Any other response is a store
error that names the request, and the request is retried.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import google_crc32c
import pytest

from asyncsync.disk.files import FileRange, ResumeToken
from asyncsync.errors import IntegrityError, NoSuchBucketError, NotFoundError, StoreError, UnavailableError
from asyncsync.stores import open_store
from asyncsync.stores.base import MISSING
from asyncsync.stores.gcs import compose as gcs_rewrite

pytest.importorskip("gcloud.aio.auth")
from gcs_fake import Fault

MIB = 1 << 20
CHUNK = 8 * MIB
BIG = 9 * MIB

ERROR = b'{"error": {"code": 503, "message": "later", "errors": [{"reason": "backendError"}]}}'
FOREIGN = {
    "nothing": b"",
    "blanks": b" \r\n ",
    "a page": b"<!doctype html><html><body>log in</body></html>",
    "an error inside a success": ERROR,
    "an empty object": b"{}",
    "a list": b"[]",
    "text": b'"done"',
    "a number": b"1",
    "no JSON number": b'{"size": NaN}',
    "deep": b"[" * 60_000,
    "deep inside": b'{"name":' * 60_000,
    "no UTF-8": b"\xff\xfe\xfa",
    "half": b'{"kind": "storage#object", "name": "p/',
}


@dataclass
class Operation:
    """The call, its request, and the required contents of the bucket."""

    pattern: str
    name: str
    """As errors call it."""
    call: Callable


async def completed(store, **condition):
    upload = await store.create_multipart("new")
    part = await store.put_part(upload, 1, 0, b"data")
    return await store.complete_multipart(upload, [part], crc32c=google_crc32c.value(b"data"), **condition)


OPERATIONS = {
    "put": Operation("POST /upload", "insert gs://conformance/p/new", lambda s, f: s.put("new", b"data")),
    "put of a file": Operation(
        "POST /upload", "insert gs://conformance/p/new", lambda s, f: s.put("new", FileRange(f, 0, 2 * MIB))
    ),
    "last chunk": Operation(
        f"PUT .*#{CHUNK}-", "insert gs://conformance/p/new", lambda s, f: s.put("new", FileRange(f, 0, BIG))
    ),
    "compose": Operation("/compose", "compose gs://conformance/p/new", lambda s, f: completed(s)),
    "compose to create": Operation(
        "/compose", "compose gs://conformance/p/new", lambda s, f: completed(s, if_version=MISSING)
    ),
    "rewrite": Operation("rewriteTo", "rewrite gs://conformance/p/old", lambda s, f: s.copy("old", "new")),
    "rewrite to create": Operation(
        "rewriteTo", "rewrite gs://conformance/p/old", lambda s, f: s.copy("old", "new", if_version=MISSING, size=4)
    ),
    "delete": Operation("DELETE", "delete gs://conformance/p/old", lambda s, f: s.delete(["old"])),
    "batch delete": Operation("POST /batch", "batch delete gs://conformance/", lambda s, f: s.delete(["old", "more"])),
    "list": Operation("GET .*[?&]prefix=", "list gs://conformance/p/", lambda s, f: s.list()),
    "head": Operation("GET .*/o/p%2Fold", "get gs://conformance/p/old", lambda s, f: s.head("old")),
}
MAKING = [name for name in OPERATIONS if name.startswith(("put", "last", "compose", "rewrite"))]
EMPTY = {"delete": ("nothing", "blanks")}
"""The documented result."""


@pytest.fixture
async def bucket(gcs_strict, store, tmp_path):
    """With two objects, and a file to send. Patterns of faults may name the first byte of a chunk."""
    await store.put("old", b"data")
    await store.put("more", b"data")
    gcs_strict.seen.clear()
    (tmp_path / "f").write_bytes(bytes(BIG))
    fault = gcs_strict._fault

    def find(seen):
        span = seen.headers.get("Content-Range", "").removeprefix("bytes ")
        return fault(replace(seen, target=f"{seen.target}#{span}"))

    gcs_strict._fault = find
    return gcs_strict


@pytest.mark.parametrize("said", FOREIGN)
@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_success_with_another_result_is_a_failed_request(bucket, store, objects, tmp_path, name, said):
    """Nothing was done: nobody may believe that it was."""
    if said in EMPTY.get(name, ()):
        return
    operation = OPERATIONS[name]
    bucket.faults.append(Fault(operation.pattern, 1, 200, body=FOREIGN[said]))
    with pytest.raises(UnavailableError) as caught:
        await operation.call(store, str(tmp_path / "f"))
    assert str(caught.value).startswith(f"{operation.name}: not a response of Cloud Storage: ")
    assert caught.value.retryable
    assert "p/new" not in objects
    assert {"p/old", "p/more"} <= set(objects)


@pytest.mark.parametrize("said", ["nothing", "a page", "an error inside a success"])
@pytest.mark.parametrize("name", MAKING)
@pytest.mark.parametrize("served", [False, True])
async def test_a_foreign_response_is_retried_whether_or_not_it_was_done(
    bucket, guarded, objects, tmp_path, name, said, served
):
    operation = OPERATIONS[name]
    if served and name == "rewrite to create":
        return  # that it was done shows as a conflict
    fault = Fault(operation.pattern, 1, None if served else 200, body=None if served else FOREIGN[said])
    fault.change = (lambda body: FOREIGN[said]) if served else None
    bucket.faults.append(fault)
    info = await operation.call(guarded, str(tmp_path / "f"))
    found = objects["p/new"]
    assert (info.version, info.size) == (str(found.generation), len(found.data))
    assert found.data in (b"data", bytes(2 * MIB), bytes(BIG))
    assert guarded.retries >= 1


def changed(**fields):
    """Change an object resource wherever it is in the response; None removes a field."""

    def change(body):
        document = json.loads(body)
        resource = document.get("resource") or (document.get("items") or [document])[0]
        for field, value in fields.items():
            if value is None:
                del resource[field]
            else:
                resource[field] = value
        return json.dumps(document).encode()

    return change


WRONG = [
    *({"generation": value} for value in (None, "", "0", 0, "-1", "x", True, 1.5, [], {}, "9" * 20, "9" * 5000, "²")),
    *({"size": value} for value in (None, "", "-4", -4, 4.0, True, [4], str(1 << 63), "9" * 5000, "3")),
    *({"name": value} for value in (None, "", "other", 5, ["p/new"], "p/new ", "\ud800")),
    *({"crc32c": value} for value in ("", "AAAA", "not base64", 7, [], {}, "ÄÖÜ=")),
]
OF_ALL = [*WRONG, *({"bucket": value} for value in (None, "other", 5))]


def id_of(fields):
    return ",".join(f"{name}={str(value)[:12]!r}" for name, value in fields.items())


@pytest.mark.parametrize("fields", OF_ALL, ids=id_of)
@pytest.mark.parametrize("name", ["put", "last chunk", "compose", "rewrite to create", "head"])
async def test_every_field_of_a_result_must_be_as_documented(bucket, store, tmp_path, name, fields):
    if name == "head" and fields == {"size": "3"}:
        return  # the caller does not know it
    bucket.faults.append(Fault(OPERATIONS[name].pattern, 1, change=changed(**fields)))
    with pytest.raises(UnavailableError, match=rf"not a response of Cloud Storage: (it|'{next(iter(fields))}') "):
        await OPERATIONS[name].call(store, str(tmp_path / "f"))


@pytest.mark.parametrize("fields", WRONG, ids=id_of)
async def test_every_field_of_a_listed_object_must_be_as_documented(bucket, store, fields):
    if fields in ({"size": "3"}, {"name": "p/new "}):
        return  # so they may be
    bucket.faults.append(Fault("prefix=", 1, change=changed(**fields)))
    with pytest.raises(UnavailableError, match=r"list gs://conformance.*not a response of Cloud Storage"):
        await store.list()


@pytest.mark.parametrize("name", ["put", "put of a file", "last chunk"])
@pytest.mark.parametrize(
    ("crc32c", "error", "said"),
    [(None, UnavailableError, "it has no 'crc32c'"), ("AAAAAQ==", IntegrityError, "the store has AAAAAQ==")],
)
async def test_a_store_returns_the_checksum_that_it_was_sent(bucket, store, tmp_path, name, crc32c, error, said):
    bucket.faults.append(Fault(OPERATIONS[name].pattern, 1, change=changed(crc32c=crc32c)))
    with pytest.raises(error, match=said) as caught:
        await OPERATIONS[name].call(store, str(tmp_path / "f"))
    assert caught.value.retryable


async def test_numbers_may_be_numbers(bucket, store):
    """gcp-storage-emulator writes the size of a composed object as a number."""
    bucket.faults.append(Fault("/compose", 1, change=changed(size=4)))
    assert (await completed(store)).size == 4


# rewrite


@pytest.mark.parametrize(
    "said",
    [
        b'{"done": "true"}',
        b'{"done": 1}',
        b'{"done": null}',
        b'{"done": true}',
        b'{"done": true, "resource": []}',
        b'{"done": false}',
        b'{"done": false, "rewriteToken": ""}',
        b'{"done": false, "rewriteToken": 5}',
        b'{"done": false, "rewriteToken": "a", "totalBytesRewritten": "many"}',
        b'{"done": false, "rewriteToken": "\\ud800", "totalBytesRewritten": "1"}',
    ],
)
async def test_a_step_of_a_copy_is_done_or_names_the_next(bucket, store, objects, said):
    bucket.faults.append(Fault("rewriteTo", 1, 200, body=said))
    with pytest.raises(UnavailableError, match="rewrite gs://conformance/p/old: not a response"):
        await store.copy("old", "new")
    assert "p/new" not in objects


async def test_a_copy_that_never_gets_on_ends(bucket, store):
    said = b'{"done": false, "rewriteToken": "again", "totalBytesRewritten": "1"}'
    bucket.faults.append(Fault("rewriteTo", 999, 200, body=said))
    with pytest.raises(UnavailableError, match="moved nothing"):
        await store.copy("old", "new")
    assert len(bucket.requests("rewriteTo")) == gcs_rewrite.MAX_IDLE_STEPS + 1


# list


@pytest.mark.parametrize(
    "more",
    [
        {"items": {}},
        {"items": [5]},
        {"items": "x"},
        {"items": None},
        {"prefixes": {}},
        {"prefixes": [5]},
        {"prefixes": [""]},
        {"prefixes": ["elsewhere/"]},
        {"prefixes": ["p/\ud800"]},
        {"nextPageToken": 5},
        {"nextPageToken": ["a"]},
        {"nextPageToken": "\udfff"},
        {"items": [{"name": "elsewhere/x"}]},
        {"kind": None},
        {"kind": "storage#object"},
        {"kind": []},
    ],
)
async def test_a_page_has_the_requested_items(bucket, store, more):
    said = json.dumps({"kind": "storage#objects", **more}).encode()
    bucket.faults.append(Fault("prefix=", 1, 200, body=said))
    with pytest.raises(UnavailableError, match="list gs://conformance/p/: not a response"):
        await store.list()


@pytest.mark.parametrize("circle", ["a", "ab", "abc"])
async def test_pages_that_lead_back_are_refused(bucket, store, circle):
    for ask in (store.list, store.list_multiparts):
        bucket.faults[:] = [
            Fault("prefix=", 1, 200, body=json.dumps({"kind": "storage#objects", "nextPageToken": token}).encode())
            for token in circle * 9
        ]
        with pytest.raises(StoreError, match="the pages repeat: the token"):
            await ask()
    assert len(bucket.requests("prefix=")) < 2 * (4 * len(circle) + 4)


@pytest.mark.parametrize("repeats", ["token", "name"])
async def test_pages_with_objects_that_lead_back_end_the_listing(bucket, store, repeats):
    """The caller asks for each page anew; the position that it passes on remembers the earlier ones."""
    for number in range(40):
        changing, same = str(number), str(number % 3)
        name, token = (changing, same) if repeats == "token" else (same, changing)
        item = {"name": f"p/{name}", "size": "1", "generation": "1", "crc32c": "AAAAAA=="}
        said = {"kind": "storage#objects", "items": [item], "nextPageToken": token}
        bucket.faults.append(Fault("prefix=", 1, 200, body=json.dumps(said).encode()))
    page = await store.list()
    with pytest.raises(StoreError, match="the pages repeat"):
        while page.token is not None:
            page = await store.list(token=page.token)
    assert len(bucket.requests("prefix=")) < 16


# batches


def inner(status, body=b"", call=None):
    whose = b"" if call is None else b"Content-ID: <response-%d>\r\n" % call
    return b"--b\r\nContent-Type: application/http\r\n%s\r\nHTTP/1.1 %d Said\r\nA: b\r\n\r\n%s\r\n" % (
        whose,
        status,
        body,
    )


GONE = inner(204, call=0)


@pytest.mark.parametrize(
    "said",
    [
        GONE + b"--b--",
        GONE + GONE + b"--b--",
        GONE + inner(204, call=1) + GONE + b"--b--",
        GONE + inner(204, call=2) + b"--b--",
        GONE + inner(204, call=1),
        GONE + inner(204, call=1)[:30] + b"--b--",
        GONE + b"--b\r\nContent-ID: <response-1>\r\n\r\nno status\r\n--b--",
        GONE + inner(200, ERROR, call=1) + b"--b--",
        GONE + inner(200, b"<html>", call=1) + b"--b--",
        GONE.replace(b"-0>", b"-" + b"0" * 5000 + b">") + b"--b--",
        b"--",
        b"----",
        b"--b\r\n--b--",
        b"HTTP/1.1 204 A\r\n\r\nHTTP/1.1 204 A\r\n\r\n",
    ],
)
async def test_a_batch_must_respond_to_every_call_once_as_documented(bucket, store, objects, said):
    bucket.faults.append(Fault("POST /batch", 1, 200, body=said))
    with pytest.raises(UnavailableError, match=r"delete gs://conformance/.*not a response of Cloud Storage"):
        await store.delete(["old", "more"])


async def test_a_missing_bucket_is_reported_from_inside_a_batch_too(bucket, store):
    missing = b'{"error": {"code": 404, "message": "The specified bucket does not exist."}}'
    bucket.faults.append(Fault("POST /batch", 1, 200, body=GONE + inner(404, missing, call=1) + b"--b--"))
    with pytest.raises(NotFoundError, match="there is no bucket 'conformance'"):
        await store.delete(["old", "more"])


async def test_the_name_of_an_object_does_not_change_the_kind_of_an_error(bucket, store):
    await store.delete(["there is no bucket"])
    with pytest.raises(NotFoundError) as caught:
        await store.head("there is no bucket")
    assert not isinstance(caught.value, NoSuchBucketError)


# sessions


@pytest.mark.parametrize(
    "where", ["", "http://[", "?upload_id=5", "http://x/ y", "http://x/a b", "/ü", "/" + "x" * 10_000, "http://x"]
)
async def test_a_session_has_an_address_that_can_be_asked(bucket, store, objects, tmp_path, where):
    bucket.faults.append(Fault("POST /upload", 1, 200, {"Location": where}, body=b""))
    with pytest.raises(UnavailableError, match="names no upload session"):
        await store.put("new", FileRange(str(tmp_path / "f"), 0, BIG))


RANGES = [
    None,
    "",
    "bytes=0-0",
    "bytes=0-",
    "bytes=5-9",
    "bytes=0--5",
    "bytes 0-262143/*",
    f"bytes=0-{BIG}",
    "bytes=0-²",
    f"bytes=0-{BIG - 1}",
    f"bytes=0-{CHUNK}",
    f"bytes=0-{'9' * 19}",
    f"bytes=0-{'9' * 5000}",
    "items=0-5",
]


@pytest.mark.parametrize("said", RANGES)
@pytest.mark.parametrize("number", [0, 1])
async def test_a_session_never_has_more_than_was_sent(bucket, guarded, objects, tmp_path, number, said):
    """An impossible or unreadable count is queried again; no byte of the object is left out."""
    data = b"".join(bytes([number]) * MIB for number in range(9))
    (tmp_path / "f").write_bytes(data)
    headers = {} if said is None else {"Range": said}
    bucket.faults.append(Fault(f"PUT .*#{number * CHUNK}-", 1, 308, headers, body=b""))
    info = await guarded.put("new", FileRange(str(tmp_path / "f"), 0, BIG), crc32c=google_crc32c.value(data))
    assert objects["p/new"].data == data
    assert info.size == BIG


@pytest.mark.parametrize("said", [f"bytes=0-{BIG - 1}", f"bytes=0-{BIG + MIB}", f"bytes=0-{CHUNK + MIB - 1}"])
async def test_a_session_status_beyond_the_sent_bytes_is_not_believed(bucket, guarded, objects, tmp_path, said):
    bucket.faults.append(Fault(f"PUT .*#0-{CHUNK - 1}/", 1, 503))
    bucket.faults.append(Fault(r"PUT .*#\*/", 1, 308, {"Range": said}, body=b""))
    await guarded.put("new", FileRange(str(tmp_path / "f"), 0, BIG), crc32c=google_crc32c.value(bytes(BIG)))
    assert objects["p/new"].data == bytes(BIG)


@pytest.mark.parametrize("number", [0, 1])
async def test_a_success_after_a_part_of_the_body_is_none(bucket, guarded, objects, tmp_path, number):
    """A chunk that is not the last one completes nothing, whatever the response to it."""
    resource = {"name": "p/new", "bucket": "conformance", "generation": "7", "size": str(CHUNK), "crc32c": "AAAAAA=="}
    said = json.dumps(resource).encode()
    bucket.faults.append(Fault(f"PUT .*#{number * CHUNK}-", 1, 200, body=said))
    info = await guarded.put("new", FileRange(str(tmp_path / "f"), 0, BIG), crc32c=google_crc32c.value(bytes(BIG)))
    assert (objects["p/new"].data, info.version) == (bytes(BIG), str(objects["p/new"].generation))


async def session_of(gcs_strict, tmp_path, key, **condition):
    """The token of a session that another process opened and did not use."""

    def keep(token):
        kept.append(token)
        raise KeyboardInterrupt

    kept, body = [], FileRange(str(tmp_path / "f"), 0, BIG, progress=ResumeToken(None, keep))
    async with open_store("gs://conformance/p", options=gcs_strict.storage_options) as first:
        with pytest.raises(KeyboardInterrupt):
            await first.put(key, body, **condition)
    return kept[0]


@pytest.mark.parametrize(("key", "condition"), [("new", {}), ("another", {"if_version": MISSING})])
async def test_only_the_same_request_resumes_in_a_session_of_the_journal(
    bucket, store, objects, tmp_path, key, condition
):
    """Its name and its condition are those that it was opened with."""
    token = await session_of(bucket, tmp_path, key, **condition)
    objects["p/new"] = objects["p/old"]
    body, kept = FileRange(str(tmp_path / "f"), 0, BIG), []
    with pytest.raises(StoreError, match="HTTP 412"):
        await store.put("new", replace(body, progress=ResumeToken(token, kept.append)), if_version=MISSING)
    assert (objects["p/new"].data, "p/another" in objects) == (b"data", False)
    token = await session_of(bucket, tmp_path, "same", if_version=MISSING)
    await store.put("same", replace(body, progress=ResumeToken(token, pytest.fail)), if_version=MISSING)
    assert objects["p/same"].data == bytes(BIG)


@pytest.mark.parametrize(
    "token", ["", "#", "x", "/a b#", "/a\r\nHost: x#", "http://elsewhere/#", "/upload?upload_id=5"]
)
@pytest.mark.parametrize("marked", [False, True])
async def test_a_token_that_is_damaged_begins_anew(bucket, store, objects, tmp_path, token, marked):
    if marked:
        token += (await session_of(bucket, tmp_path, "new")).rpartition("#")[2]
    kept, body = [], FileRange(str(tmp_path / "f"), 0, BIG)
    await store.put("new", replace(body, progress=ResumeToken(token, kept.append)))
    assert objects["p/new"].data == bytes(BIG)
    assert len(kept) == 1
