"""Puts trees, trials and experiments into a store as a finished sync leaves them, and checks its contents."""

import os
from collections.abc import Mapping
from pathlib import Path

import google_crc32c
import xxhash

from asyncsync.planning.document import EXPERIMENT_RECORD, TRIAL_RECORD
from asyncsync.planning.manifest import MANIFEST, FileEntry, Manifest
from asyncsync.sync.records.model import CheckpointRecord, ExperimentRecord, TrialRecord

MTIME = 1_700_000_000_123_456_789


def entry_of(path, data, *, part_size=0, version="", mode=0o640):
    step = part_size or max(1, len(data))
    parts = [data[start : start + step] for start in range(0, len(data), step)] or [b""]
    return FileEntry(
        path,
        len(data),
        MTIME,
        mode,
        google_crc32c.value(data),
        part_size,
        tuple(xxhash.xxh3_128_hexdigest(part) for part in parts),
        tuple(google_crc32c.value(part) for part in parts),
        version,
    )


async def put_tree(store, prefix, files, *, part_size=0, manifest=True):
    """Objects below ``prefix`` (ends in ``/`` or empty) and their manifest."""
    entries = {}
    for path, data in files.items():
        info = await store.put(prefix + path, data)
        cut = part_size if len(data) > part_size else 0
        entries[path] = entry_of(path, data, part_size=cut, version=info.version)
    result = Manifest(entries)
    if manifest:
        await store.put(prefix + MANIFEST, result.to_bytes())
    return result


async def put_trial(store, name, checkpoints, *, status="finished", prefix="", started=0.0, **more):
    """A trial with its tree, its record and its checkpoints: name -> (files, metrics)."""
    records = []
    for number, (checkpoint, (files, metrics)) in enumerate(checkpoints.items()):
        await put_tree(store, f"{prefix}{name}/{checkpoint}/", files)
        size = sum(map(len, files.values()))
        records.append(
            CheckpointRecord(checkpoint, number, metrics, {"epoch": number}, len(files), size, started + number)
        )
    await put_tree(store, f"{prefix}{name}/", {"result.json": b'{"loss": 1}\n'})
    record = TrialRecord(name, "exp", status, checkpoints=records, started=started, **more)
    await store.put(f"{prefix}{name}/{TRIAL_RECORD}", record.to_bytes())


async def put_experiment(store, name="exp", prefix="", **trials):
    await store.put(f"{prefix}{EXPERIMENT_RECORD}", ExperimentRecord(name, trials).to_bytes())
    await put_tree(store, prefix, {"searcher.pkl": b"state"})


def files_of(directory: Path) -> dict[str, bytes]:
    """The content of each file below a directory, by relative path."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def check_complete(contents: Mapping[str, bytes]) -> None:
    """Every object that a manifest names is there with its bytes, and every checkpoint in a record has its manifest."""
    for key, data in contents.items():
        if key.endswith(MANIFEST):
            prefix = key.removesuffix(MANIFEST)
            for path, entry in Manifest.from_bytes(data).files.items():
                assert google_crc32c.value(contents[prefix + path]) == entry.crc32c, f"{prefix}{path}"
        if key.endswith(TRIAL_RECORD):
            trial = key.removesuffix(TRIAL_RECORD)
            for item in TrialRecord.from_bytes(data).checkpoints:
                assert f"{trial}{item.name}/{MANIFEST}" in contents, f"{trial}{item.name} is named without manifest"


def sample_tree(root: Path) -> Path:
    """A tree with a file of several parts, an odd name, an empty file and 40 small ones, all older than any scan."""
    files = {"big": os.urandom(23 << 20), "dir/ünï %?#": b"odd", "empty": b""}
    files |= {f"small/{number}": os.urandom(16 << 10) for number in range(40)}
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        os.utime(root / name, (1.7e9, 1.7e9))
    return root


def same_files(left: Path, right: Path) -> bool:
    """Whether two directories have the same files with the same bytes."""

    def content(root: Path) -> dict[Path, bytes]:
        return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    return content(left) == content(right)
