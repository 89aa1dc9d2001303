"""A write that is retried after a lost response names the generation that it expects."""

import asyncio

import pytest

from asyncsync.errors import StoreError, UnavailableError
from asyncsync.stores.gcs import unsure_writes as gcs_repeats

pytest.importorskip("gcloud.aio.auth")
from gcs_fake import Fault

FAULTS = [{"lose": True}, {"cut": 0}, {"status": 503}, {"status": 429}, {"short": 3}]


@pytest.fixture
def asked(gcs_strict, monkeypatch):
    """The targets of all requests in order, those inside of batches too."""
    targets, inner = [], gcs_strict._inner

    def record(method, target, headers):
        targets.append(target)
        return inner(method, target, headers)

    monkeypatch.setattr(gcs_strict, "_inner", record)
    fault = gcs_strict._fault
    monkeypatch.setattr(gcs_strict, "_fault", lambda seen: targets.append(seen.target) or fault(seen))
    return targets


def generation(objects, name):
    return str(objects[name].generation)


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_an_insert_is_repeated_over_the_current_generation(gcs_strict, guarded, objects, asked, fault, old):
    if old is not None:
        await guarded.put("x", old)
    asked.clear()
    gcs_strict.faults.append(Fault("POST", **fault))
    info = await guarded.put("x", b"new")
    first, _, second = asked
    assert "ifGenerationMatch" not in first
    assert "ifGenerationMatch=" in second
    assert objects["p/x"].data == b"new"
    assert info.version == generation(objects, "p/x")
    await guarded.put("x", b"newer")
    assert "ifGenerationMatch" not in asked[3]


async def test_a_write_between_lookup_and_retry_is_looked_up_again(gcs_strict, guarded, objects):
    bucket, real = gcs_strict.buckets["conformance"], gcs_strict._fault
    theirs = iter(range(1))

    def write(seen):
        if "ifGenerationMatch" in seen.target and next(theirs, None) is not None:
            bucket.put("p/x", b"theirs", {}, {})
        return real(seen)

    gcs_strict._fault = write
    gcs_strict.faults.append(Fault("POST", lose=True))
    info = await guarded.put("x", b"new")
    assert [seen.status for seen in gcs_strict.requests("POST")] == [200, 412, 200]
    assert (objects["p/x"].data, info.version) == (b"new", generation(objects, "p/x"))


async def test_a_cancelled_write_is_unsure_too(gcs_strict, store, objects, asked, monkeypatch):
    arrived, gone, real = asyncio.Event(), asyncio.Event(), gcs_strict.reply
    loop = asyncio.get_running_loop()

    async def late(request, seen):
        reply = await real(request, seen)
        loop.call_soon_threadsafe(arrived.set)
        await gone.wait()
        return reply

    monkeypatch.setattr(gcs_strict, "reply", late)
    task = asyncio.ensure_future(store.put("x", b"new"))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gcs_strict._loop.call_soon_threadsafe(gone.set)
    monkeypatch.setattr(gcs_strict, "reply", real)
    await store.put("x", b"new")
    assert f"ifGenerationMatch={int(generation(objects, 'p/x')) - 1}" in asked[-1]


async def test_a_permanently_refused_feature_is_not_requested_again(gcs_strict, store, asked):
    gcs_strict.faults.append(Fault("POST", status=403))
    with pytest.raises(StoreError):
        await store.put("x", b"1")
    await store.put("x", b"1")
    assert all("ifGenerationMatch" not in target for target in asked)


@pytest.mark.parametrize("keys", [["a"], ["a", "b", "c"]])
@pytest.mark.parametrize("fault", [{"cut": 0}, {"status": 503}], ids=str)
async def test_a_deletion_is_repeated_for_the_current_generation(gcs_strict, guarded, objects, asked, fault, keys):
    for key in keys:
        await guarded.put(key, b"1")
    asked.clear()
    gcs_strict.faults.append(Fault("^DELETE|POST /batch", **fault))
    named = [f"/p%2F{key}?ifGenerationMatch={generation(objects, f'p/{key}')}" for key in keys]
    await guarded.delete(keys)
    assert objects == {}
    assert all(target.endswith(name) for target, name in zip(asked[-len(keys) :], named, strict=True))


@pytest.mark.parametrize("keys", [["a"], ["a", "b", "c"]])
async def test_a_deleted_checkpoint_is_not_deleted_again(gcs_strict, guarded, objects, asked, keys):
    for key in keys:
        await guarded.put(key, b"1")
    asked.clear()
    gcs_strict.faults.append(Fault("^DELETE|POST /batch", lose=True))
    await guarded.delete(keys)
    assert objects == {}
    assert all("fields=generation" in target for target in asked[-len(keys) :])


async def test_a_deletion_of_a_named_generation_is_repeated_unchanged(gcs_strict, guarded, objects, asked):
    upload = await guarded.create_multipart("x")
    gcs_strict.faults.append(Fault("^DELETE|POST /batch", lose=True))
    await guarded.abort_multipart(upload)
    assert objects == {}
    assert all("fields=generation&" not in target for target in asked)


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_a_copy_replaces_the_generation_that_was_live_at_its_start(
    gcs_strict, guarded, objects, asked, fault, old
):
    await guarded.put("x", b"data")
    if old is not None:
        await guarded.put("y", old)
    gcs_strict.faults.append(Fault("rewriteTo", **fault))
    info = await guarded.copy("x", "y")
    copies = [target for target in asked if "rewriteTo" in target]
    assert len(copies) == 2
    assert all("&ifGenerationMatch=" in target or "?ifGenerationMatch=" in target for target in copies)
    assert (objects["p/y"].data, info.version) == (b"data", generation(objects, "p/y"))


async def test_only_so_many_objects_are_remembered(gcs_strict, store, asked, monkeypatch):
    monkeypatch.setattr(gcs_repeats, "MAX_UNSURE_WRITES", 2)
    gcs_strict.faults.append(Fault("POST", 3, status=503))
    for key in "abc":
        with pytest.raises(UnavailableError):
            await store.put(key, b"1")
    asked.clear()
    for key in "abc":
        await store.put(key, b"1")
    assert sum("ifGenerationMatch" in target for target in asked) == 2
