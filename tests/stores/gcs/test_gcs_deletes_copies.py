"""Deletes, copies and lists of Google Cloud Storage: batches, rewrites and their conditions."""

import pytest
from yarl import URL

from asyncsync.errors import AccessDeniedError, PreconditionError, StoreError
from asyncsync.stores.base import MISSING
from asyncsync.stores.gcs.requests import batch_responses

pytest.importorskip("gcloud.aio.auth")
from gcs_fake import Fault
from gcs_fake.replies import ApiError

# deleting, copying, listing


async def test_hundreds_are_deleted_in_batches(gcs_strict, store, objects):
    for number in range(250):
        gcs_strict.buckets["conformance"].put(f"p/{number} ä/b", b"", {}, {})
    await store.delete([*(f"{number} ä/b" for number in range(250)), "never was"])
    assert objects == {}
    assert len(gcs_strict.requests("POST /batch")) == len(gcs_strict.seen) == 3


def test_responses_of_a_batch_belong_to_their_calls_in_any_order():
    answer = "--b\r\nContent-ID: <response-{}>\r\n\r\nHTTP/1.1 {} Said\r\nA: b\r\n\r\n{}\r\n".format
    said = (answer(1, 404, "{}") + answer(0, 204, "") + answer(2, 503, "later") + "--b--\r\n").encode()
    assert batch_responses(said) == [(1, 404, b"{}"), (0, 204, b""), (2, 503, b"later")]


def test_responses_of_a_batch_without_names_come_in_order():
    said = b"--b\r\n\r\nHTTP/1.1 204 Said\r\n\r\n--b\r\n\r\nHTTP/1.1 404 Said\r\n\r\n--b--"
    assert batch_responses(said) == [(0, 204, b""), (1, 404, b"")]


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_without_batches_objects_are_deleted_singly(gcs_strict, store, objects, status):
    gcs_strict.faults.append(Fault("POST /batch", 9, status))
    for number in range(12):
        gcs_strict.buckets["conformance"].put(f"p/{number}", b"", {}, {})
    for keys in (range(5), range(5, 13)):
        await store.delete([f"{number}" for number in keys])
    assert objects == {}
    assert len(gcs_strict.requests("POST /batch")) == 1


async def test_a_failure_inside_a_batch_is_reported(gcs_strict, store, monkeypatch):
    await store.put("a", b"1")
    await store.put("b", b"1")
    inner = gcs_strict._inner

    def refuse(method, target, headers):
        if target.endswith("b"):
            raise ApiError(403, "no storage.objects.delete access")
        return inner(method, target, headers)

    monkeypatch.setattr(gcs_strict, "_inner", refuse)
    with pytest.raises(AccessDeniedError, match=r"gs://conformance/p/b: no storage\.objects\.delete"):
        await store.delete(["a", "b"])


async def test_a_copy_continues_until_the_service_has_finished(gcs_strict, store, objects):
    await store.put("x", b"0123456789")
    gcs_strict.rewrites.step = 4
    info = await store.copy("x", "y")
    assert (objects["p/y"].data, info.size) == (b"0123456789", 10)
    assert len(gcs_strict.requests("rewriteTo")) == 3


@pytest.mark.parametrize("size", [0, 10])
async def test_a_create_only_copy_sends_its_condition_in_every_step(gcs_strict, store, objects, size):
    """It sends no other request first."""
    await store.put("x", bytes(size))
    gcs_strict.rewrites.step = 4
    gcs_strict.seen.clear()
    info = await store.copy("x", "y", if_version=MISSING)
    assert str(objects["p/y"].generation) == info.version
    assert {URL(seen.target, encoded=True).query["ifGenerationMatch"] for seen in gcs_strict.seen} == {"0"}
    assert len(gcs_strict.seen) == len(gcs_strict.requests("rewriteTo")) == max(1, -(-size // 4))


@pytest.mark.parametrize("written", [0, 1, 2])
async def test_a_copy_that_only_creates_replaces_nothing(gcs_strict, store, objects, monkeypatch, written):
    """Whether it was there before, or came between two steps."""
    await store.put("x", b"0123456789")
    gcs_strict.rewrites.step, run, steps = 4, gcs_strict.rewrites.run, iter(range(9))

    def step(source, *given):
        if next(steps) == written:
            source.put("p/y", b"theirs", {}, {})
        return run(source, *given)

    monkeypatch.setattr(gcs_strict.rewrites, "run", step)
    with pytest.raises(PreconditionError):
        await store.copy("x", "y", if_version=MISSING)
    assert objects["p/y"].data == b"theirs"


async def test_a_copy_onto_a_named_version_is_refused(gcs_strict, store):
    info = await store.put("x", b"1")
    gcs_strict.seen.clear()
    with pytest.raises(StoreError, match="can only create"):
        await store.copy("x", "x", if_version=info.version)
    assert gcs_strict.seen == []
