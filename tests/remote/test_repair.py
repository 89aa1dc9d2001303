"""Repair sends files that the store lost and a local tree has, replaces only damaged ones, and reads them back."""

from pathlib import Path

import pytest
from stored import put_experiment, put_trial

from asyncsync import AccessDeniedError, TransferConfig, pull, push, repair, verify
from asyncsync.testing import MemoryStore, inject_faults

URI = "memory://lab/tree"
MIB = 1 << 20
SPLIT = TransferConfig(multipart_threshold=5 * MIB, part_size=5 * MIB)
DATA = {"small": b"s" * 1000, "sub/empty": b"", "sub/big": bytes(range(256)) * (12 * MIB // 256)}


@pytest.fixture
async def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    for name, data in DATA.items():
        (root / name).write_bytes(data)
    await push(root, URI, transfer=SPLIT)
    return root


def files(store: MemoryStore) -> dict[str, bytes]:
    return {key: data for key, data in store.contents.items() if ".asyncsync" not in key}


async def test_missing_files_are_sent_again(tree):
    store = MemoryStore("lab", "tree")
    await store.delete(["small", "sub/empty", "sub/big"])
    report = await repair(URI, tree)
    assert report.repaired == report.found.missing == ["small", "sub/big", "sub/empty"]
    assert (report.ok, report.failed) == (True, {})
    assert files(store) == DATA
    assert (await verify(URI, deep=True)).ok


async def test_damaged_files_are_replaced(tree):
    store = MemoryStore("lab", "tree")
    await store.put("small", b"short")
    store.damage("sub/big", bytes(12 * MIB))
    report = await repair(URI, tree, deep=True)
    assert report.repaired == sorted(report.found.damaged) == ["small", "sub/big"]
    assert (report.found.replaced, report.left.replaced) == (["small"], [])
    assert files(store) == DATA
    assert (await verify(URI, deep=True)).ok


async def test_nothing_is_sent_where_nothing_is_wrong(tree):
    faults = inject_faults("lab")
    report = await repair(URI, tree)
    assert (report.ok, report.repaired, faults.count("put")) == (True, [], 0)


@pytest.mark.parametrize("change", ["other bytes", "other size", "gone"])
async def test_a_local_file_that_differs_from_the_manifest_is_not_sent(tree, change):
    store = MemoryStore("lab", "tree")
    await store.delete(["sub/big"])
    path = tree / "sub/big"
    if change == "other bytes":
        with path.open("r+b") as file:
            file.seek(7 * MIB)
            file.write(b"!")
    elif change == "other size":
        path.write_bytes(DATA["sub/big"] + b"more")
    else:
        path.unlink()
    report = await repair(URI, tree)
    assert (report.ok, report.repaired, list(report.failed)) == (False, [], ["sub/big"])
    assert "sub/big" not in store.contents
    assert report.left.missing == ["sub/big"]


async def test_an_object_replaced_in_between_is_left_alone(tree):
    store = MemoryStore("lab", "tree")
    await store.put("small", b"damaged")
    faults = inject_faults("lab")
    faults.hook(1, lambda: store._store("small", b"newer", "newer") and None, operation="put", key="small")
    report = await repair(URI, tree)
    assert (report.repaired, list(report.failed)) == ([], ["small"])
    assert store.contents["small"] == b"newer"


async def test_an_upload_that_fails_is_aborted(tree):
    store = MemoryStore("lab", "tree")
    await store.delete(["sub/big"])
    inject_faults("lab").fail(2, AccessDeniedError("no"), operation="put_part")
    report = await repair(URI, tree)
    assert list(report.failed) == ["sub/big"]
    assert await store.list_multiparts() == []


async def test_a_file_that_reads_back_wrong_is_not_reported_as_repaired(tree):
    store = MemoryStore("lab", "tree")
    await store.delete(["small"])
    inject_faults("lab").hook(1, lambda: store.damage("small", b"x" * 1000), operation="read", key="small", times=None)
    report = await repair(URI, tree)
    assert (report.ok, report.repaired, list(report.left.damaged)) == (False, [], ["small"])


@pytest.mark.parametrize("where", ["", "/a", "/a/checkpoint_000001"])
async def test_a_whole_experiment_a_trial_and_a_checkpoint_are_repaired(tmp_path, where):
    store = MemoryStore("lab", "exp")
    await put_experiment(store, a="running")
    await put_trial(store, "a", {f"checkpoint_00000{n}": ({"model": b"m" * 1000 * (n + 1)}, {}) for n in range(2)})
    await pull("memory://lab/exp", tmp_path)
    before = store.contents
    await store.delete(["a/checkpoint_000001/model"])
    report = await repair(f"memory://lab/exp{where}", tmp_path / where.lstrip("/"))
    assert report.ok
    assert len(report.repaired) == 1
    assert store.contents == before


async def test_manifests_and_records_cannot_be_repaired_and_that_is_reported(tree):
    store = MemoryStore("lab", "tree")
    await store.put(".asyncsync/manifest.json", b"{")
    report = await repair(URI, tree)
    assert "no manifest names it" in report.failed[".asyncsync/manifest.json"]
    assert not report.ok


async def test_progress_of_a_deep_look_ends_with_every_byte(tree):
    seen = []
    await verify(URI, deep=True, on_progress=seen.append)
    total = sum(map(len, DATA.values()))
    assert (seen[-1].files_done, seen[-1].files_total, seen[-1].bytes_done, seen[-1].bytes_total) == (
        3,
        3,
        total,
        total,
    )
    assert [item.bytes_done for item in seen] == sorted(item.bytes_done for item in seen)
