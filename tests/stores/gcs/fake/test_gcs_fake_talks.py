"""Conversations with the strict fake that take more than one request."""

import json

import aiohttp
import pytest
from gcs_fake.documented import OBJECTS, UP, ask, filled

GRAIN = 256 << 10


@pytest.fixture
def fake():
    with filled() as running:
        yield running


async def start(http, fake, target="?uploadType=resumable&name=r"):
    status, headers, _ = await ask(http, fake, "POST", UP + target)
    assert status == 200
    return headers["Location"].removeprefix(fake.endpoint)


async def chunk(http, fake, session, data, text):
    status, headers, content = await ask(http, fake, "PUT", session, data, {"Content-Range": text})
    return status, headers.get("Range"), content


async def test_a_session_is_asked_how_far_it_is(fake, http):
    session = await start(http, fake)
    assert (await chunk(http, fake, session, b"", "bytes */*"))[:2] == (308, None)
    assert (await chunk(http, fake, session, bytes(GRAIN), f"bytes 0-{GRAIN - 1}/*"))[:2] == (
        308,
        f"bytes=0-{GRAIN - 1}",
    )
    assert (await chunk(http, fake, session, b"", "bytes */*"))[:2] == (308, f"bytes=0-{GRAIN - 1}")
    assert "r" not in fake.buckets["b"].objects
    status, _, content = await chunk(http, fake, session, b"end", f"bytes {GRAIN}-{GRAIN + 2}/{GRAIN + 3}")
    assert (status, json.loads(content)["size"]) == (200, str(GRAIN + 3))
    assert (await chunk(http, fake, session, b"", "bytes */*"))[0] == 200


async def test_a_chunk_is_a_multiple_of_256_kib_unless_it_is_the_last(fake, http):
    session = await start(http, fake)
    assert (await chunk(http, fake, session, b"abc", "bytes 0-2/*"))[0] == 400


async def test_a_chunk_cut_in_the_middle_keeps_multiples_of_256_kib(fake, http):
    session = await start(http, fake)

    async def broken():
        yield bytes(GRAIN + 1000)
        raise ConnectionError("cut")

    headers = {"Content-Range": f"bytes 0-{2 * GRAIN - 1}/*", "Content-Length": str(2 * GRAIN)}
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await http.put(fake.endpoint + session, data=broken(), headers=headers)
    while (await chunk(http, fake, session, b"", "bytes */*"))[1] is None:
        pass
    assert (await chunk(http, fake, session, b"", "bytes */*"))[:2] == (308, f"bytes=0-{GRAIN - 1}")


async def test_an_overlap_is_not_stored_twice_and_a_gap_is_refused(fake, http):
    session = await start(http, fake)
    await chunk(http, fake, session, b"a" * GRAIN, f"bytes 0-{GRAIN - 1}/*")
    assert (await chunk(http, fake, session, b"x", f"bytes {GRAIN + 5}-{GRAIN + 5}/{GRAIN + 6}"))[0] == 503
    await chunk(http, fake, session, b"b" * GRAIN + b"c", f"bytes 0-{GRAIN}/{GRAIN + 1}")
    assert fake.buckets["b"].objects["r"].data == b"a" * GRAIN + b"c"


async def test_a_condition_is_checked_again_at_the_end(fake, http):
    session = await start(http, fake, "?uploadType=resumable&name=r&ifGenerationMatch=0")
    fake.buckets["b"].put("r", b"faster", {}, {})
    assert (await chunk(http, fake, session, b"late", "bytes 0-3/4"))[0] == 412
    assert fake.buckets["b"].objects["r"].data == b"faster"


async def test_a_cancelled_session_is_missing(fake, http):
    session = await start(http, fake)
    assert (await ask(http, fake, "DELETE", session))[0] == 499
    assert (await chunk(http, fake, session, b"", "bytes */*"))[0] == 404


async def test_a_rewrite_resumes_by_its_token(fake, http):
    fake.rewrites.step = 4
    target, token, calls = OBJECTS + "/a/rewriteTo/b/b/o/copy", "", 0
    while True:
        status, _, content = await ask(http, fake, "POST", target + (f"?rewriteToken={token}" if token else ""))
        answer = json.loads(content)
        calls += 1
        if answer["done"]:
            break
        assert (status, "copy" in fake.buckets["b"].objects) == (200, False)
        token = answer["rewriteToken"]
    assert calls == 3
    assert fake.buckets["b"].objects["copy"].data == b"0123456789"


def batch_body(*lines):
    parts = (
        f"--q\r\nContent-Type: application/http\r\nContent-ID: <{n}>\r\n\r\n{line}\r\n\r\n"
        for n, line in enumerate(lines)
    )
    return "".join(parts).encode() + b"--q--\r\n"


MIXED = {"Content-Type": "multipart/mixed; boundary=q"}


async def test_a_batch_responds_to_its_calls_in_any_order(fake, http):
    body = batch_body(
        f"DELETE {OBJECTS}/dir%2Fone HTTP/1.1",
        f"DELETE {OBJECTS}/none HTTP/1.1",
        f"DELETE {OBJECTS}/a?ifGenerationMatch=1 HTTP/1.1",
    )
    status, _, content = await ask(http, fake, "POST", "/batch/storage/v1", body, MIXED)
    lines = [line for line in content.decode().split("\r\n") if line.startswith("HTTP/1.1")]
    assert (status, [line.split()[1] for line in lines]) == (200, ["412", "404", "204"])
    assert b"Content-ID: <response-2>" in content
    assert "dir/one" not in fake.buckets["b"].objects
    assert "a" in fake.buckets["b"].objects


async def test_a_batch_has_at_most_100_calls(fake, http):
    body = batch_body(*[f"DELETE {OBJECTS}/none HTTP/1.1"] * 101)
    assert (await ask(http, fake, "POST", "/batch/storage/v1", body, MIXED))[0] == 400


async def test_a_request_without_a_token_is_refused(fake, http):
    fake.tokens = {"right"}
    assert (await ask(http, fake, "GET", OBJECTS + "/a"))[0] == 401
    assert (await ask(http, fake, "GET", OBJECTS + "/a", headers={"Authorization": "Bearer wrong"}))[0] == 401
    assert (await ask(http, fake, "GET", OBJECTS + "/a", headers={"Authorization": "Bearer right"}))[0] == 200


async def test_pages_join_to_the_whole_listing(fake, http):
    names, token = [], ""
    while True:
        _, _, content = await ask(http, fake, "GET", f"{OBJECTS}?maxResults=2&pageToken={token}")
        page = json.loads(content)
        names += [item["name"] for item in page.get("items", ())]
        token = page.get("nextPageToken", "")
        if not token:
            break
    assert names == sorted(fake.buckets["b"].objects)
