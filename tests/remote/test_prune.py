"""Prune removes only certain garbage, and only if it is old by the clock of the store."""

import math
import os
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from stored import entry_of, put_experiment, put_tree, put_trial

from asyncsync import CheckpointConfig, RunConfig, SyncEngine
from asyncsync.errors import AccessDeniedError, ConfigError, SyncError
from asyncsync.planning.manifest import Manifest
from asyncsync.remote.prune import DAY, prune
from asyncsync.remote.verify import verify
from asyncsync.sync.records.model import TrialRecord
from asyncsync.testing import MemoryStore, inject_faults

URI = "memory://lab/exp"
MIB = 1 << 20
FILES = {"model.bin": b"m" * (3 * MIB), "empty": b""}
LONG_AGO = 1000.0
"""The clock of this machine does not count."""


@pytest.fixture
async def store():
    """Its clock stands still at LONG_AGO; :func:`days_later` sets it forward."""
    store = MemoryStore("lab", "exp")
    store.bucket.clock = lambda: LONG_AGO
    await put_experiment(store, a="running")
    await put_trial(store, "a", {"checkpoint_000000": (FILES, {}), "checkpoint_000001": (FILES, {})})
    store.log.clear()
    return store


def days_later(store, days=2.0):
    now = store.bucket.clock() + days * DAY
    store.bucket.clock = lambda: now


async def test_prune_lists_and_removes_old_checkpoints_that_were_never_completed(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    days_later(store)
    before = store.contents
    report = await prune(URI)
    assert (report.dry_run, report.checkpoints, report.objects, report.bytes) == (
        True,
        ["a/checkpoint_000002/"],
        2,
        3 * MIB,
    )
    assert store.contents == before
    assert (await prune(URI, dry_run=False)).checkpoints == ["a/checkpoint_000002/"]
    assert store.contents == {key: data for key, data in before.items() if "checkpoint_000002" not in key}
    assert (await prune(URI)).checkpoints == []


async def test_prune_leaves_young_objects(store):
    days_later(store)
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    await store.create_multipart("a/checkpoint_000002/big")
    for age in (DAY, timedelta(hours=1)):
        report = await prune(URI, older_than=age)
        assert (report.checkpoints, report.uploads) == ([], [])
    report = await prune(URI, older_than=0)
    assert (report.checkpoints, report.uploads) == (["a/checkpoint_000002/"], ["a/checkpoint_000002/big"])


async def test_prune_leaves_objects_named_by_a_manifest_or_a_record(store):
    await put_tree(store, "pushed/", {"checkpoint_000000/x": b"x"})
    await store.delete(["a/checkpoint_000001/.asyncsync/manifest.json"])
    await put_tree(store, "a/checkpoint_000005/", FILES)  # complete, but not registered yet
    days_later(store)
    assert (await prune(URI)).checkpoints == []


async def test_prune_removes_undeleted_retired_checkpoints_manifest_first(store):
    await put_trial(store, "b", {f"checkpoint_00000{number}": (FILES, {}) for number in range(3)})
    record = TrialRecord.from_bytes(store.contents["b/.asyncsync/trial.json"])
    record.checkpoints = record.checkpoints[2:]
    await store.put("b/.asyncsync/trial.json", record.to_bytes())
    days_later(store)
    store.log.clear()
    report = await prune(URI, dry_run=False)
    assert report.checkpoints == ["b/checkpoint_000000/", "b/checkpoint_000001/"]
    deletes = [key for verb, key in store.log if verb == "delete" and not key.endswith("clock")]
    assert deletes[0].endswith("manifest.json")
    assert (await verify(URI, deep=True)).ok


@pytest.mark.parametrize(("number", "left"), [(0, False), (7, True)])
async def test_prune_leaves_uncommitted_checkpoints_of_a_running_trial(store, number, left):
    """At any age: a checkpoint that takes two days to upload is not garbage while its trial is running."""
    await put_tree(store, f"b/checkpoint_00000{number}/", FILES, manifest=False)
    await store.create_multipart(f"b/checkpoint_00000{number}/big")
    days_later(store)
    await put_trial(store, "b", {f"checkpoint_00000{at}": (FILES, {}) for at in (3, 4)})
    record = TrialRecord.from_bytes(store.contents["b/.asyncsync/trial.json"])
    for item, at in zip(record.checkpoints, (3, 4), strict=True):
        item.number = at
    await store.put("b/.asyncsync/trial.json", record.to_bytes())
    report = await prune(URI)
    assert (report.checkpoints, report.uploads) == (
        ([], []) if left else ([f"b/checkpoint_00000{number}/"], [f"b/checkpoint_00000{number}/big"])
    )


async def test_prune_leaves_a_directory_into_which_something_is_being_uploaded(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    days_later(store)
    await store.create_multipart("a/checkpoint_000002/big")
    assert (await prune(URI)).checkpoints == []


LAST_LOOKS = {
    "manifest": ("list", "a/checkpoint_000002/"),
    "file": ("list", "a/checkpoint_000002/"),
    "upload": ("list_multiparts", "a/checkpoint_000002/"),
    "record": ("head", "a/.asyncsync/trial.json"),
    "manifest above": ("head", "a/.asyncsync/manifest.json"),
}


@pytest.mark.parametrize("what", LAST_LOOKS)
async def test_prune_leaves_uploads_that_are_resumed_meanwhile(store, what):
    """At the n-th request, for every n until the last look, which is among the few right before the deletion."""
    prefix, record = "a/checkpoint_000002/", store.contents["a/.asyncsync/trial.json"]
    manifest = store.contents["a/checkpoint_000001/.asyncsync/manifest.json"]
    above = store.contents["a/.asyncsync/manifest.json"]
    naming = Manifest({path: entry_of(path, b"") for path in ("checkpoint_000002/empty", "other")}).to_bytes()
    faults = inject_faults("lab")

    async def leave_behind():
        store._store("a/.asyncsync/manifest.json", above, "before")
        store.bucket.uploads.clear()
        await put_tree(store, prefix, FILES, manifest=False)
        await store.create_multipart(prefix + "old")
        days_later(store)
        faults.requests.clear()

    def happens():
        if what == "manifest":
            store._store(prefix + ".asyncsync/manifest.json", manifest, "new")
        elif what == "file":
            store._store(prefix + "more", b"x", "new")
        elif what == "record":
            store._store("a/.asyncsync/trial.json", record, "again")
        elif what == "manifest above":  # of a tree with a directory of this name, synced for longer than a day
            store._store("a/.asyncsync/manifest.json", naming, "again")
        else:
            upload = replace(next(iter(store.bucket.uploads.values())), started=store.bucket.clock())
            store.bucket.uploads["young"] = upload

    await leave_behind()
    await prune(URI, dry_run=False)
    assert not [key for key in store.contents if key.startswith(prefix)]
    deletion = next(n for n, (verb, key) in enumerate(faults.requests) if verb == "delete" and prefix in key)
    assert LAST_LOOKS[what] in faults.requests[deletion - 6 : deletion]
    last = max(n for n in range(deletion) if faults.requests[n] == LAST_LOOKS[what])
    for at in range(1, last + 2):
        await leave_behind()
        faults.hook(at, happens)
        report = await prune(URI, dry_run=False)
        assert report.checkpoints == []
        assert {prefix + "model.bin", prefix + "empty"} <= store.contents.keys(), at
        faults.clear()
        await store.delete([key for key in store.contents if key.startswith(prefix)])
        days_later(store)


# the clock


@pytest.mark.parametrize("hours", [-10_000, -48, 48, 10_000])
async def test_the_clock_of_this_machine_is_not_asked(store, monkeypatch, hours):
    """Wrong by years or days, in either direction."""
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    days_later(store)
    await put_tree(store, "a/checkpoint_000003/", FILES, manifest=False)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
    report = await prune(URI, dry_run=False)
    assert report.checkpoints == ["a/checkpoint_000002/"]
    assert "a/checkpoint_000003/model.bin" in store.contents
    assert not [key for key in store.contents if "clock" in key]


@pytest.mark.parametrize("days", [-30, 30])
async def test_the_time_of_a_local_store_is_that_of_the_file_system(tmp_path, monkeypatch, days):
    """The clock of the process that prunes is wrong by a month."""
    root = tmp_path / "store"
    run = RunConfig(name="e", storage_path=str(root), checkpoint_config=CheckpointConfig(num_to_keep=2))
    async with SyncEngine(run, local_dir=tmp_path / "local") as engine:
        source = tmp_path / "source"
        source.mkdir()
        (source / "w").write_bytes(b"w")
        await engine.trial("t").report({}, source)
    for number, age in ((7, 0), (8, 3 * DAY)):
        half = root / f"e/t/checkpoint_00000{number}"
        half.mkdir()
        (half / "w").write_bytes(b"half")
        os.utime(half / "w", (half.stat().st_mtime - age,) * 2)
    os.utime(root / "e/t/.asyncsync/trial.json", (time.time() - 3 * DAY,) * 2)
    before = {path for path in root.rglob("*") if "checkpoint_000008" not in str(path)}
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + days * DAY)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + days * DAY) * 1e9))
    assert (await prune(root / "e", dry_run=False)).checkpoints == ["t/checkpoint_000008/"]
    assert {path for path in root.rglob("*") if "checkpoint_000008" not in str(path)} == before


async def test_one_young_object_protects_its_directory_and_the_uploads_there(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    await store.create_multipart("a/checkpoint_000002/big")
    days_later(store)
    await store.put("a/checkpoint_000002/young", b"y")
    report = await prune(URI, dry_run=False)
    assert (report.checkpoints, report.uploads) == ([], [])


async def test_an_old_upload_of_an_artifact_stays_while_its_trial_runs(store):
    record = store.contents["a/.asyncsync/trial.json"]
    await store.create_multipart("a/artifact")
    days_later(store)
    await store.put("a/.asyncsync/trial.json", record)
    assert (await prune(URI, dry_run=False)).uploads == []
    days_later(store)
    assert (await prune(URI, dry_run=False)).uploads == ["a/artifact"]


async def test_objects_without_a_time_are_kept(store, monkeypatch):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    days_later(store)
    store.bucket.objects["exp/a/checkpoint_000002/empty"].modified = None
    assert (await prune(URI, dry_run=False, older_than=0)).checkpoints == []


async def test_a_store_that_does_not_tell_the_time_is_refused(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    before = store.contents
    store.bucket.clock = lambda: None
    with pytest.raises(SyncError, match="does not report when an object was written"):
        await prune(URI, dry_run=False)
    assert store.contents == before


async def test_prune_says_that_a_refused_object_was_for_the_store_s_clock(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    inject_faults("lab").fail(1, AccessDeniedError("read only"), operation="put", times=None)
    with pytest.raises(AccessDeniedError) as caught:
        await prune(URI)
    assert any("store's clock" in note for note in caught.value.__notes__)


async def test_where_there_is_nothing_whose_age_matters_nothing_is_written(store):
    await store.delete([key for key in store.contents if "checkpoint_" in key])
    store.log.clear()
    assert (await prune(URI)).checkpoints == []
    assert {request.operation for request in store.log} == {"list", "list_multiparts"}


@pytest.mark.parametrize("at", range(1, 4))
async def test_two_that_ask_for_the_time_at_once_both_get_it(store, at):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    days_later(store)
    clock = "exp/.asyncsync/clock"
    inject_faults("lab").hook(at, lambda: store.bucket.objects.pop(clock, None), key=".asyncsync/clock", operation=None)
    assert (await prune(URI)).checkpoints == ["a/checkpoint_000002/"]


@pytest.mark.parametrize("age", [-1, -1e-9, math.nan, math.inf, -math.inf, 1e12, True, "1d", None, timedelta(days=-1)])
async def test_an_invalid_age_is_refused_before_any_request(store, age):
    with pytest.raises(ConfigError, match="older_than"):
        await prune(URI, dry_run=False, older_than=age)
    assert store.log == []


# Garbage


async def test_prune_leaves_complete_checkpoints_of_a_trial_without_a_record(store):
    """The record is lost, and nothing else says what was retired."""
    await store.delete(["a/.asyncsync/trial.json"])
    days_later(store)
    assert (await prune(URI)).checkpoints == []


async def test_prune_of_a_trial_alone_finds_what_it_left(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    days_later(store)
    assert (await prune(f"{URI}/a")).checkpoints == ["checkpoint_000002/"]


async def test_prune_finds_uploads_where_nothing_else_has_an_age(store):
    await store.delete(list(store.contents))
    await store.create_multipart("tree/big")
    days_later(store)
    assert (await prune(URI)).uploads == ["tree/big"]


async def test_a_young_upload_protects_only_its_own_directory(store):
    await store.create_multipart("a/checkpoint_000002/big")
    days_later(store)
    await store.create_multipart("a/checkpoint_000003/big")
    assert (await prune(URI)).uploads == ["a/checkpoint_000002/big"]


async def test_prune_leaves_directories_that_only_look_like_checkpoints(store):
    other = MemoryStore("lab", "other")
    await other.put("run/checkpoint_000001/x", b"x")
    days_later(store)
    assert (await prune("memory://lab/other", dry_run=False)).checkpoints == []
    assert other.contents == {"run/checkpoint_000001/x": b"x"}


@pytest.mark.parametrize("damage", [b"{", b"", b"[" * 100_000, b'{"format":2,"kind":"trial"}'])
async def test_prune_skips_a_trial_with_an_unreadable_record(store, damage):
    """It prunes the other trials."""
    await put_trial(store, "b", {})
    for trial in ("a", "b"):
        await put_tree(store, f"{trial}/checkpoint_000002/", FILES, manifest=False)
        await store.create_multipart(f"{trial}/checkpoint_000003/big")
    await store.put("a/.asyncsync/trial.json", damage)
    days_later(store)
    report = await prune(URI, dry_run=False)
    assert report.checkpoints == ["b/checkpoint_000002/"]
    assert report.uploads == ["b/checkpoint_000003/big"]
    assert list(report.unreadable) == ["a/.asyncsync/trial.json"]
    assert report.unreadable["a/.asyncsync/trial.json"].startswith(f"{URI}/a/.asyncsync/trial.json is ")
    assert "a/checkpoint_000002/empty" in store.contents


async def test_prune_leaves_objects_below_an_unreadable_manifest(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    await store.put("a/.asyncsync/manifest.json", b"{")
    days_later(store)
    report = await prune(URI, dry_run=False)
    assert report.checkpoints == []
    assert list(report.unreadable) == ["a/.asyncsync/manifest.json"]


async def test_prune_aborts_old_uploads_until_no_part_is_left(store):
    upload = await store.create_multipart("a/big")
    await store.put_part(upload, 1, 0, b"x")
    days_later(store)
    report = await prune(URI, dry_run=False)
    assert report.uploads == ["a/big"]
    assert await store.list_multiparts() == []
    assert [request.operation for request in store.log if "a/big" in request.key][-2:] == [
        "abort_multipart",
        "list_parts",
    ]
