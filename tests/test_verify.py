"""Verify tells damage from strays."""

import pytest
from stored import put_experiment, put_tree, put_trial

from asyncsync.errors import NotFoundError
from asyncsync.testing import MemoryStore
from asyncsync.verifying import verify

URI = "memory://lab/exp"
MIB = 1 << 20
FILES = {"model.bin": b"m" * (3 * MIB), "empty": b""}


@pytest.fixture
async def store():
    store = MemoryStore("lab", "exp")
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
