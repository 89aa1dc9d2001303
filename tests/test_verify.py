"""Verify tells damage from strays; prune removes only what is certainly garbage."""

import time

import pytest
from stored import put_experiment, put_tree, put_trial

from asyncsync.errors import NotFoundError
from asyncsync.pruning import prune
from asyncsync.records import TrialRecord
from asyncsync.testing import MemoryStore, inject_faults
from asyncsync.verifying import verify

URI = "memory://lab/exp"
MIB = 1 << 20
FILES = {"model.bin": b"m" * (3 * MIB), "empty": b""}


@pytest.fixture
async def store():
    store = MemoryStore("lab", "exp")
    store.bucket.clock = lambda: 1000.0  # long ago
    await put_experiment(store, a="running")
    await put_trial(store, "a", {"checkpoint_000000": (FILES, {}), "checkpoint_000001": (FILES, {})})
    store.requests.clear()
    return store


@pytest.mark.parametrize("deep", [False, True])
async def test_a_whole_experiment_is_ok(store, deep):
    report = await verify(URI, deep=deep)
    assert (report.ok, report.trees, report.files, report.bytes) == (True, 4, 6, 6 * MIB + 17)
    assert (report.stray, report.deep) == ([], deep)


async def test_a_shallow_look_at_data_is_one_listing(store):
    await verify(URI)
    assert [request for request in store.requests if not request.key.endswith(".json")] == [("list", "exp/")]


async def test_a_missing_file_is_missing(store):
    await store.delete(["a/checkpoint_000001/model.bin"])
    report = await verify(URI)
    assert (report.ok, report.missing, report.damaged) == (False, ["a/checkpoint_000001/model.bin"], {})


async def test_another_size_or_checksum_is_damage_without_reading(store):
    await store.put("a/checkpoint_000000/model.bin", b"short")
    await store.put("a/checkpoint_000001/model.bin", b"x" * (3 * MIB))
    report = await verify(URI)
    assert "5 bytes, the manifest says 3145728" in report.damaged["a/checkpoint_000000/model.bin"]
    assert "CRC32C" in report.damaged["a/checkpoint_000001/model.bin"]


async def test_bytes_that_rot_are_only_seen_by_reading_them(store):
    store.damage("a/checkpoint_000001/model.bin", b"m" * (3 * MIB - 1) + b"n")
    assert (await verify(URI)).ok
    assert list((await verify(URI, deep=True)).damaged) == ["a/checkpoint_000001/model.bin"]


async def test_damage_in_a_part_is_told_with_its_place(store):
    await put_tree(store, "p/", {"big": b"b" * (3 * MIB)}, part_size=MIB)
    store.damage("p/big", b"b" * 2 * MIB + b"c" * MIB)
    report = await verify(f"{URI}/p", deep=True)
    assert report.damaged == {"big": "bytes 2097152 to 3145728 do not have the checksum that the manifest says"}


async def test_a_named_checkpoint_without_manifest_is_missing_it(store):
    await store.delete(["a/checkpoint_000001/.asyncsync/manifest.json"])
    report = await verify(URI)
    assert report.missing == ["a/checkpoint_000001/.asyncsync/manifest.json"]


async def test_a_checkpoint_that_was_never_completed_is_a_stray_and_no_damage(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    report = await verify(URI)
    assert (report.ok, report.stray) == (True, ["a/checkpoint_000002/"])


async def test_objects_that_no_manifest_names_are_strays(store):
    await store.put("a/left_over", b"x")
    report = await verify(URI)
    assert (report.ok, report.stray) == (True, ["a/left_over"])


@pytest.mark.parametrize("key", ["a/.asyncsync/trial.json", ".asyncsync/experiment.json", "a/.asyncsync/manifest.json"])
async def test_records_and_manifests_that_cannot_be_read_are_damage(store, key):
    await store.put(key, b"{")
    assert key in (await verify(URI)).damaged


@pytest.mark.virtual_time
@pytest.mark.parametrize("key", ["a/.asyncsync/trial.json", ".asyncsync/experiment.json", "a/.asyncsync/manifest.json"])
async def test_a_digit_that_rotted_in_a_record_or_manifest_is_damage(store, key):
    """It would still parse; the checksum of the store tells."""
    store.damage(key, store.contents[key].replace(b"1", b"2", 1))
    assert key in (await verify(URI)).damaged


async def test_a_prefix_without_manifest_is_not_ok(store):
    await store.put("loose/file", b"x")
    assert (await verify(f"{URI}/loose")).missing == [".asyncsync/manifest.json"]


async def test_nothing_at_all_is_an_error(store):
    with pytest.raises(NotFoundError, match="nothing at memory://lab/none"):
        await verify("memory://lab/none")


async def test_prune_lists_and_removes_old_checkpoints_that_were_never_completed(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    before = store.contents
    report = await prune(URI)
    assert (report.dry_run, report.checkpoints, report.objects, report.bytes) == (
        True, ["a/checkpoint_000002/"], 2, 3 * MIB,
    )  # fmt: skip
    assert store.contents == before
    assert (await prune(URI, dry_run=False)).checkpoints == ["a/checkpoint_000002/"]
    assert store.contents == {key: data for key, data in before.items() if "checkpoint_000002" not in key}
    assert (await prune(URI)).checkpoints == []


async def test_prune_leaves_what_is_young(store):
    store.bucket.clock = time.time
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    await store.create_multipart("a/checkpoint_000002/big")
    report = await prune(URI)
    assert (report.checkpoints, report.uploads) == ([], [])
    report = await prune(URI, older_than=-1)
    assert (report.checkpoints, report.uploads) == (["a/checkpoint_000002/"], ["a/checkpoint_000002/big"])


async def test_prune_leaves_what_a_manifest_or_a_record_names(store):
    await put_tree(store, "pushed/", {"checkpoint_000000/x": b"x"})
    await store.delete(["a/checkpoint_000001/.asyncsync/manifest.json"])
    await put_tree(store, "a/checkpoint_000005/", FILES)  # complete, but not registered yet
    assert (await prune(URI)).checkpoints == []


async def test_prune_removes_what_was_retired_and_not_deleted_manifest_first(store):
    await put_trial(store, "b", {f"checkpoint_00000{number}": (FILES, {}) for number in range(3)})
    record = TrialRecord.from_bytes(store.contents["b/.asyncsync/trial.json"])
    record.checkpoints = record.checkpoints[2:]
    await store.put("b/.asyncsync/trial.json", record.to_bytes())
    store.requests.clear()
    report = await prune(URI, dry_run=False)
    assert report.checkpoints == ["b/checkpoint_000000/", "b/checkpoint_000001/"]
    deletes = [request.key for request in store.requests if request.operation == "delete"]
    assert deletes[0].endswith("manifest.json")
    assert (await verify(URI, deep=True)).ok


@pytest.mark.parametrize(("number", "left"), [(0, False), (7, True)])
async def test_prune_leaves_what_a_running_trial_may_be_about_to_commit(store, number, left):
    """However old: a checkpoint that takes two days to upload is nobody's garbage while its trial goes on."""
    await put_trial(store, "b", {"checkpoint_000003": (FILES, {})}, updated=time.time() - 60)
    await put_tree(store, f"b/checkpoint_00000{number}/", FILES, manifest=False)
    await store.create_multipart(f"b/checkpoint_00000{number}/big")
    report = await prune(URI)
    assert (report.checkpoints, report.uploads) == (
        ([], []) if left else ([f"b/checkpoint_00000{number}/"], [f"b/checkpoint_00000{number}/big"])
    )


async def test_prune_leaves_a_directory_into_which_something_is_being_uploaded(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    store.bucket.clock = time.time
    await store.create_multipart("a/checkpoint_000002/big")
    assert (await prune(URI)).checkpoints == []


async def test_prune_leaves_what_was_completed_while_it_looked(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    manifest = store.contents["a/checkpoint_000001/.asyncsync/manifest.json"]
    faults = inject_faults("lab")
    key = "a/checkpoint_000002/.asyncsync/manifest.json"
    faults.hook(1, lambda: store._store(key, manifest, "new") and None, operation="read", key=key)
    await prune(URI, dry_run=False)
    assert "a/checkpoint_000002/model.bin" in store.contents


async def test_prune_leaves_directories_of_that_name_that_are_no_checkpoints_of_ours(store):
    other = MemoryStore("lab", "other")
    await other.put("run/checkpoint_000001/x", b"x")
    assert (await prune("memory://lab/other", dry_run=False)).checkpoints == []
    assert other.contents == {"run/checkpoint_000001/x": b"x"}


@pytest.mark.parametrize("damage", [b"{", b"", b"[" * 100_000, b'{"format":2,"kind":"trial"}'])
async def test_prune_leaves_a_trial_alone_whose_record_cannot_be_read_and_goes_on_with_the_others(store, damage):
    await put_trial(store, "b", {})
    for trial in ("a", "b"):
        await put_tree(store, f"{trial}/checkpoint_000002/", FILES, manifest=False)
        await store.create_multipart(f"{trial}/checkpoint_000003/big")
    await store.put("a/.asyncsync/trial.json", damage)
    report = await prune(URI, dry_run=False)
    assert report.checkpoints == ["b/checkpoint_000002/"]
    assert report.uploads == ["b/checkpoint_000003/big"]
    assert list(report.unreadable) == ["a/.asyncsync/trial.json"]
    assert report.unreadable["a/.asyncsync/trial.json"].startswith(f"{URI}/a/.asyncsync/trial.json is ")
    assert "a/checkpoint_000002/empty" in store.contents


async def test_prune_leaves_what_an_unreadable_manifest_may_name(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    await store.put("a/.asyncsync/manifest.json", b"{")
    report = await prune(URI, dry_run=False)
    assert report.checkpoints == []
    assert list(report.unreadable) == ["a/.asyncsync/manifest.json"]


async def test_prune_aborts_old_uploads_until_no_part_is_left(store):
    upload = await store.create_multipart("a/big")
    await store.put_part(upload, 1, 0, b"x")
    report = await prune(URI, dry_run=False)
    assert report.uploads == ["a/big"]
    assert await store.list_multiparts() == []
    assert [request.operation for request in store.requests if "a/big" in request.key][-2:] == [
        "abort_multipart", "list_parts",
    ]  # fmt: skip
