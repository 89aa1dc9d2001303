"""Whatever a server responds, the result is an error of ours or a stored object."""

import asyncio
import json
import math
from urllib.parse import unquote, urlsplit

import google_crc32c
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_gcs_results import ERROR, FOREIGN, GONE, completed, inner

from asyncsync.disk.files import FileRange, ResumeToken
from asyncsync.errors import AsyncsyncError
from asyncsync.stores.gcs.errors import failure
from asyncsync.stores.gcs.store import GcsStore
from asyncsync.stores.http.body import crc32c_to_text
from asyncsync.stores.http.response import Response

pytest.importorskip("gcloud.aio.auth")


# Any response of a server


class Saying:
    """A transport that responds to each request with the result of ``says``."""

    def __init__(self, says):
        self._says = says

    async def send(self, request, authorization):
        return self._says(request)

    async def fetch(self, request, authorization, expect, sink):
        answer = self._says(request)
        if answer.status < 300:
            expected = expect(answer)
            assert expected is None or expected >= 0
            if answer.content:
                await sink(memoryview(answer.content))
        return answer

    async def close(self):
        pass


numbers = st.one_of(st.integers(), st.just(10**400), st.floats(), st.booleans())
texts = st.one_of(
    st.text(max_size=20),
    st.text(alphabet=st.characters(categories=["Cs", "Nd", "No"]), max_size=3),
    st.from_regex(r"[0-9]{1,30}", fullmatch=True),
    st.sampled_from(["9" * 5000, "0", "²", "\r\n", "2026-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "AAAAAA=="]),
)
values = st.recursive(
    st.none() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
FIELDS = [
    "kind",
    "name",
    "bucket",
    "generation",
    "size",
    "crc32c",
    "updated",
    "timeCreated",
    "metadata",
    "done",
    "resource",
    "rewriteToken",
    "totalBytesRewritten",
    "items",
    "prefixes",
    "nextPageToken",
    "error",
]
HEADERS = [
    "range",
    "location",
    "content-range",
    "content-length",
    "retry-after",
    "x-goog-generation",
    "x-goog-hash",
    "x-goog-stored-content-length",
    "last-modified",
]
header_values = st.one_of(
    st.text(alphabet=st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=30),
    st.sampled_from(
        [
            "9" * 5000,
            "bytes=0-99999999999999999999",
            "bytes 0-3/4",
            "bytes 1-0/0",
            "Mon, 01 Jan 99999 00:00:00 GMT",
            "Mon, 01 Jan 0001 00:00:00 +2359",
            "http://[",
            "crc32c=²²",
            "crc32c=AAAAAA==",
            "1e999",
            "²",
            "-1",
            "nan",
        ]
    ),
)
statuses = st.sampled_from([200, 200, 200, 200, 201, 204, 206, 308, 400, 403, 404, 409, 412, 416, 429, 499, 503])
bodies = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(list(FOREIGN.values())),
    values.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([GONE + inner(204, call=1) + b"--b--", GONE + inner(503, ERROR, call=1) + b"--b--"]),
)


def genuine(request):
    """The service's response about an object of 4 bytes."""
    name = unquote(urlsplit(request.target).path.rpartition("/o/")[2].removesuffix("/compose").rpartition("/o/")[2])
    if request.target.startswith("/upload"):
        name = "p/new"
    resource = {
        "name": name,
        "bucket": "b",
        "generation": "7",
        "size": "4",
        "updated": "2026-01-01T00:00:00Z",
        "crc32c": crc32c_to_text(google_crc32c.value(b"data")),
        "metadata": {"asyncsync-key": "new"},
    }
    item = resource | {"name": "p/.asyncsync/parts/5/upload"}
    listing = {"kind": "storage#objects", "items": [resource | {"name": "p/x"}, item], "prefixes": ["p/y/"]}
    done = {"done": True, "resource": resource, "rewriteToken": "t", "totalBytesRewritten": "4"}
    return resource | listing | done


@st.composite
def answers(draw):
    status, body = draw(statuses), draw(st.none() | bodies)
    fields = draw(st.dictionaries(st.sampled_from(FIELDS), values | st.just(...), max_size=3))
    inside = draw(st.sampled_from([None, "resource", "items"]))
    headers = draw(st.dictionaries(st.sampled_from(HEADERS), header_values, max_size=3))
    return status, body, fields, inside, headers


def answer_to(request, said):
    status, body, fields, inside, headers = said
    document = genuine(request)
    place = document if inside is None else document["items"][0] if inside == "items" else document["resource"]
    for field, value in fields.items():
        place.pop(field, None)
        if value is not ...:
            place[field] = value
    body = json.dumps(document).encode() if body is None else body
    return Response(status, {"location": "/upload/session", **headers}, keep=True, content=body)


async def nothing(piece):
    pass


CALLS = {
    "put": lambda s, f: s.put("new", b"data"),
    "session": lambda s, f: s.put("new", FileRange(f, 0, 4, progress=ResumeToken(None, lambda _: None))),
    "copy": lambda s, f: s.copy("old", "new"),
    "delete": lambda s, f: s.delete(["old"]),
    "batch": lambda s, f: s.delete(["old", "more"]),
    "list": lambda s, f: s.list(),
    "multiparts": lambda s, f: s.list_multiparts(),
    "head": lambda s, f: s.head("old"),
    "read": lambda s, f: s.read("old", nothing),
    "read range": lambda s, f: s.read("old", nothing, start=1, length=2),
    "complete": lambda s, f: completed(s),
}


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    path = tmp_path_factory.mktemp("four") / "f"
    path.write_bytes(b"data")
    return str(path)


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.lists(answers(), min_size=1, max_size=3))
@example(said=[(200, b"[" * 60_000, {}, None, {})])
@example(said=[(503, b'{"error":' * 60_000, {}, None, {"retry-after": "9" * 400})])
@example(said=[(308, b"", {}, None, {"range": "bytes=0-" + "9" * 5000})])
@example(said=[(200, None, {}, None, {})])
def test_any_response_of_a_server_is_an_error_of_ours_or_a_result(four, name, said):
    """If the result is success, the object is stored with the size and the checksum that were sent."""
    turns = iter(range(10_000))

    def says(request):
        turn = next(turns)
        if turn > 200:
            raise AssertionError("it asks for ever")
        return answer_to(request, said[min(turn, len(said) - 1)])

    async def ask():
        store = GcsStore("b", "p", options={"endpoint_url": "http://127.0.0.1:1", "anonymous": True})

        async def plane():
            return Saying(says)

        store._new_transport = plane
        async with store:
            return await CALLS[name](store, four)

    try:
        found = asyncio.run(ask())
    except AsyncsyncError as error:
        str(error).encode()
        return
    objects = getattr(found, "objects", [found] if hasattr(found, "crc32c") else [])
    for info in objects:
        assert (type(info.size), type(info.version)) == (int, str)
        assert info.key.encode()
        assert info.crc32c is None or 0 <= info.crc32c < 1 << 32
        assert info.modified is None or math.isfinite(info.modified)
    if name in ("put", "session", "complete"):
        assert (found.size, found.crc32c, int(found.version) > 0) == (4, google_crc32c.value(b"data"), True)


@given(status=st.integers(300, 599), headers=st.dictionaries(st.sampled_from(HEADERS), header_values), body=bodies)
def test_every_error_is_printable_and_has_a_finite_retry_delay(status, headers, body):
    error = failure("get", "gs://b/x", status, headers, body)
    assert str(error).encode()
    assert len(str(error)) < 1000
    wait = getattr(error, "retry_after", None)
    assert wait is None or (math.isfinite(wait) and wait >= 0)
