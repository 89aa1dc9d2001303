"""Verify distinguishes damaged, missing and stray objects."""

import itertools
import shutil

import pytest
from stored import put_experiment, put_tree, put_trial

from asyncsync import pull
from asyncsync.errors import CheckpointIncompleteError, NotFoundError
from asyncsync.planning.document import EXPERIMENT_RECORD
from asyncsync.remote.verify import verify
from asyncsync.stores import open_store
from asyncsync.sync.records.model import ExperimentRecord, TrialRecord
from asyncsync.testing import MemoryStore, inject_faults

URI = "memory://lab/exp"
MIB = 1 << 20
FILES = {"model.bin": b"m" * (3 * MIB), "empty": b""}


@pytest.fixture
async def store():
    store = MemoryStore("lab", "exp")
    await put_experiment(store, a="running")
    await put_trial(store, "a", {"checkpoint_000000": (FILES, {}), "checkpoint_000001": (FILES, {})})
    store.log.clear()
    return store


@pytest.mark.parametrize("deep", [False, True])
async def test_a_whole_experiment_is_ok(store, deep):
    report = await verify(URI, deep=deep)
    assert (report.ok, report.trees, report.files, report.bytes) == (True, 4, 6, 6 * MIB + 17)
    assert (report.stray, report.deep) == ([], deep)


async def test_a_shallow_look_at_data_is_one_listing(store):
    await verify(URI)
    assert [request for request in store.log if not request.key.endswith(".json")] == [("list", "exp/")]


async def test_a_missing_file_is_missing(store):
    await store.delete(["a/checkpoint_000001/model.bin"])
    report = await verify(URI)
    assert (report.ok, report.missing, report.damaged) == (False, ["a/checkpoint_000001/model.bin"], {})


async def test_another_size_or_checksum_is_reported_as_replaced(store):
    """It is found without reading the object."""
    await store.put("a/checkpoint_000000/model.bin", b"short")
    await store.put("a/checkpoint_000001/model.bin", b"x" * (3 * MIB))
    for deep in (False, True):
        store.log.clear()
        report = await verify(URI, deep=deep)
        assert report.replaced == sorted(report.damaged)
        assert "the object has 5 bytes, the manifest 3145728" in report.damaged["a/checkpoint_000000/model.bin"]
        assert "CRC32C" in report.damaged["a/checkpoint_000001/model.bin"]
        assert not [key for verb, key in store.log if verb == "read" and key.endswith("model.bin")]


async def test_another_size_or_checksum_of_the_same_version_is_not_replaced(store):
    for number, change in ((0, {"data": b"short"}), (1, {"crc32c": 7})):
        for name, value in change.items():
            setattr(store.bucket.objects[f"exp/a/checkpoint_00000{number}/model.bin"], name, value)
    report = await verify(URI)
    assert "the object has 5 bytes, the manifest 3145728" in report.damaged["a/checkpoint_000000/model.bin"]
    assert "CRC32C 00000007" in report.damaged["a/checkpoint_000001/model.bin"]
    assert report.replaced == []


async def test_a_copy_with_other_versions_and_the_same_checksums_is_right(store):
    for obj in store.bucket.objects.values():
        obj.version = f"moved {obj.version}"
    report = await verify(URI)
    assert (report.ok, report.replaced) == (True, [])


@pytest.mark.parametrize("same_bytes", [True, False])
async def test_of_another_version_without_a_checksum_the_bytes_decide(store, same_bytes):
    """As after a copy by another tool; only such objects are read."""
    key = "a/checkpoint_000001/model.bin"
    await store.put(key, FILES["model.bin"] if same_bytes else b"M" + FILES["model.bin"][1:])
    store.bucket.objects[f"exp/{key}"].version, store.bucket.objects[f"exp/{key}"].crc32c = "copied", None
    store.log.clear()
    report = await verify(URI)
    assert (report.ok, report.replaced) == ((True, []) if same_bytes else (False, [key]))
    read = {name for verb, name in store.log if verb == "read" and not name.endswith(".json")}
    assert read == {f"exp/{key}"}


@pytest.mark.parametrize("deep", [False, True])
async def test_in_a_directory_too_a_file_that_was_written_anew_is_replaced(tmp_path, deep):
    """The local store knows no checksum; a copy of its directory is correct although all versions differ."""
    async with open_store(tmp_path / "store") as store:
        await put_tree(store, "", {"same-size": b"1" * 1000, "touched": b"2" * 1000, "kept": b"3"})
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    assert (await verify(tmp_path / "copy", deep=deep)).ok
    (tmp_path / "store" / "same-size").write_bytes(b"x" * 1000)
    (tmp_path / "store" / "touched").write_bytes(b"2" * 1000)
    report = await verify(tmp_path / "store", deep=deep)
    assert (report.ok, report.replaced, list(report.damaged)) == (False, ["same-size"], ["same-size"])


@pytest.mark.parametrize("deep", [False, True])
async def test_retention_during_a_check_is_not_a_finding(store, deep):
    """At the n-th request, for every n: the record names 1 alone, then 0 is deleted, manifest first."""
    record = TrialRecord.from_bytes(store.contents["a/.asyncsync/trial.json"])
    record.checkpoints = record.checkpoints[1:]
    before = dict(store.bucket.objects)

    def retire():
        store._store("a/.asyncsync/trial.json", record.to_bytes(), "newer")
        for key in [key for key in store.bucket.objects if "checkpoint_000000" in key]:
            del store.bucket.objects[key]

    for at in itertools.count(1):
        assert at < 200
        store.bucket.objects = dict(before)
        fault = inject_faults("lab").hook(at, retire)
        report = await verify(URI, deep=deep)
        assert (report.ok, report.stray) == (True, []), at
        inject_faults("lab").clear()
        if fault.seen < at:
            return


@pytest.mark.parametrize("deep", [False, True])
async def test_a_tree_synced_during_verify_is_checked_by_its_new_manifest(store, deep):
    """At the n-th request, for every n: a file and its manifest are replaced."""
    other = MemoryStore("", "exp")
    await put_tree(other, "a/", {"result.json": b"longer than before\n", "more": b"x"})
    before = dict(store.bucket.objects)
    for at in itertools.count(1):
        assert at < 200
        store.bucket.objects = dict(before)
        fault = inject_faults("lab").hook(at, lambda: store.bucket.objects.update(other.bucket.objects))
        report = await verify(URI, deep=deep)
        assert report.ok, (at, report)
        inject_faults("lab").clear()
        if fault.seen < at:
            return


async def test_bytes_that_rot_are_only_seen_by_reading_them(store):
    store.damage("a/checkpoint_000001/model.bin", b"m" * (3 * MIB - 1) + b"n")
    assert (await verify(URI)).ok
    report = await verify(URI, deep=True)
    assert (list(report.damaged), report.replaced) == (["a/checkpoint_000001/model.bin"], [])


async def test_damage_in_a_part_is_reported_with_its_place(store):
    await put_tree(store, "p/", {"big": b"b" * (3 * MIB)}, part_size=MIB)
    store.damage("p/big", b"b" * 2 * MIB + b"c" * MIB)
    report = await verify(f"{URI}/p", deep=True)
    assert report.damaged == {"big": "bytes 2097152 to 3145728 do not match the checksum in the manifest"}


async def test_a_named_checkpoint_without_manifest_is_missing_it(store):
    await store.delete(["a/checkpoint_000001/.asyncsync/manifest.json"])
    report = await verify(URI)
    assert report.missing == ["a/checkpoint_000001/.asyncsync/manifest.json"]


async def test_an_incomplete_checkpoint_is_a_stray_and_not_damage(store):
    await put_tree(store, "a/checkpoint_000002/", FILES, manifest=False)
    report = await verify(URI)
    assert (report.ok, report.stray) == (True, ["a/checkpoint_000002/"])


async def test_objects_outside_all_manifests_are_strays(store):
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
    """The document would still parse; the checksum of the store shows the damage."""
    store.damage(key, store.contents[key].replace(b"1", b"2", 1))
    assert key in (await verify(URI)).damaged


async def test_a_prefix_without_manifest_is_not_ok(store):
    await store.put("loose/file", b"x")
    assert (await verify(f"{URI}/loose")).missing == [".asyncsync/manifest.json"]


async def test_verifying_an_empty_prefix_is_an_error(store):
    with pytest.raises(NotFoundError, match="nothing at memory://lab/none"):
        await verify("memory://lab/none")


async def put_driver(store, nonce="1", **trials):
    await store.put(EXPERIMENT_RECORD, ExperimentRecord("exp", {"a": "running", **trials}, nonce=nonce).to_bytes())


@pytest.mark.parametrize(
    ("driver", "missing"),
    [
        ({"b": "finished"}, True),
        ({"b": "failed"}, True),
        ({"b": "running"}, False),  # its record may not be written yet
        ({"b": "failed", "nonce": ""}, False),  # another framework writes the records in any order
    ],
)
async def test_a_trial_that_ended_has_a_record(store, tmp_path, driver, missing):
    await put_driver(store, **driver)
    assert (await verify(URI)).missing == ["b/.asyncsync/trial.json"] * missing
    copy = tmp_path / "copy"
    (copy / "b").mkdir(parents=True)
    (copy / "b/kept").touch()
    if missing:
        with pytest.raises(CheckpointIncompleteError, match="trial b is missing"):
            await pull(URI, copy, exact=True)
    else:
        await pull(URI, copy, exact=True)
    assert (copy / "b/kept").exists() == missing
    assert (copy / "a/checkpoint_000001/model.bin").exists()


async def test_a_trial_that_is_removed_during_a_check_is_not_missing(store, monkeypatch):
    await put_driver(store, b="finished")
    real = MemoryStore.head

    async def removed(self, key):
        if key.endswith("b/.asyncsync/trial.json"):
            await put_driver(store)
        return await real(self, key)

    monkeypatch.setattr(MemoryStore, "head", removed)
    assert (await verify(URI)).ok


async def test_a_checkpoint_whose_manifest_is_damaged_is_not_called_harmless(store):
    await store.put("a/checkpoint_000001/.asyncsync/manifest.json", b"{")
    report = await verify(URI)
    assert report.trees == 4
    assert "a/checkpoint_000001/" not in report.stray
