"""Records of newer formats and damaged ones, in every reader."""

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored import put_experiment, put_tree, put_trial

from asyncsync import CheckpointConfig, Experiment, RunConfig, SyncEngine, __version__, pull, verify
from asyncsync.errors import ConfigError, DamagedError
from asyncsync.events import SyncWarning
from asyncsync.planning.document import DocumentError
from asyncsync.sync.records.model import (
    CheckpointRecord,
    ExperimentRecord,
    FailureRecord,
    RankRecord,
    Record,
    TrialRecord,
)
from asyncsync.testing import MemoryStore, reset_memory

KINDS = (TrialRecord, ExperimentRecord, RankRecord, FailureRecord)
RECORDS = (
    TrialRecord("t", "exp", error="boom", params={"lr": 1}, checkpoints=[CheckpointRecord("checkpoint_000000", 0)]),
    ExperimentRecord("exp", {"t": "running"}, {"sync": {}}),
    RankRecord("t", 3, 8),
    FailureRecord(3, 1, "disk full"),
)
URI = "memory://lab/exp"
pytestmark = pytest.mark.virtual_time  # a successor waits until the lease of a process of unknown fate has ended


def raw_of(record: Record) -> dict[str, object]:
    return json.loads(record.to_bytes())


def parse(kind: type[Record], raw: object) -> Record:
    return kind.from_bytes(json.dumps(raw).encode())


both = pytest.mark.parametrize(
    ("kind", "record"), list(zip(KINDS, RECORDS, strict=True)), ids=[kind.KIND for kind in KINDS]
)


@both
def test_a_written_document_is_read_back(kind, record):
    assert kind.from_bytes(record.to_bytes()) == record
    assert raw_of(record)["by"] == f"asyncsync {__version__}"


@both
def test_an_older_record_without_its_writer_is_read(kind, record):
    raw = raw_of(record)
    del raw["by"]
    assert parse(kind, raw) == record


@both
def test_unknown_fields_are_written_back_and_known_ones_win(kind, record):
    again = parse(kind, {**raw_of(record), "owner": {"id": [1]}, "extra": 1, "by": "asyncsync 7.0"})
    assert raw_of(again) == {**raw_of(record), "owner": {"id": [1]}, "extra": 1}


def test_unknown_fields_of_a_checkpoint_stay_with_it():
    raw = raw_of(RECORDS[0])
    raw["checkpoints"][0]["labels"] = True
    record = parse(TrialRecord, raw)
    record.checkpoints.append(CheckpointRecord("checkpoint_000001", 1))
    first, second = raw_of(record)["checkpoints"]
    assert first["labels"] is True
    assert "labels" not in second


@both
def test_a_newer_format_is_refused_with_both_versions(kind, record):
    wanted = (
        f"is of format 2, written by a newer asyncsync (asyncsync 2.0.0); this one (asyncsync {__version__}, format 1)"
    )
    with pytest.raises(DocumentError, match=re.escape(wanted)):
        parse(kind, {"format": 2, "by": "asyncsync 2.0.0", "what": "nobody knows"})


@both
def test_a_record_that_lacks_a_field_is_refused_by_name_or_has_the_default(kind, record):
    defaults = {
        item.name
        for item in dataclasses.fields(kind)
        if item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
    }
    for name in raw_of(record).keys() - {"by"}:
        raw = raw_of(record)
        del raw[name]
        if name in defaults:
            parse(kind, raw)
        else:
            with pytest.raises(DocumentError, match=f"not a .* record: '{name}' is missing"):
                parse(kind, raw)


WRONG = (None, True, -1, 1.5, "", "x", "a/b", "..", [], {}, [1], {"a": 1}, {"../x": "running"}, 10**30, 1e400, "\ud800")


@both
@pytest.mark.parametrize("value", WRONG, ids=ascii)
def test_a_field_of_another_type_is_refused_or_could_have_been_written(kind, record, value):
    for name in raw_of(record).keys() - {"by"}:
        raw = {**raw_of(record), name: value}
        try:
            again = parse(kind, raw)
        except DocumentError:
            continue
        assert raw_of(again) == {**raw, "by": f"asyncsync {__version__}"}
        assert type(value) is type(raw_of(record)[name]) or (name in {"error", "started", "updated"})


@pytest.mark.parametrize(
    "checkpoints",
    [
        None,
        {},
        [1],
        [None],
        [[]],
        [{"name": "checkpoint_000000"}],
        [{"number": 1}],
        [{"name": 1, "number": 1}],
        [{"name": "a", "number": True}],
        [{"name": "a", "number": 1, "time": float("nan")}],
        [{"name": "a", "number": 1, "metrics": []}],
        [{"name": "../a", "number": 1}],
        [{"name": "a\0", "number": 1}],
        [{"name": ".asyncsync", "number": 1}],
        [{"name": "a", "number": 1}, {"name": "a", "number": 2}],
    ],
    ids=ascii,
)
def test_checkpoints_that_cannot_be_are_refused(checkpoints):
    with pytest.raises(DocumentError, match="not a trial record"):
        parse(TrialRecord, {**raw_of(RECORDS[0]), "checkpoints": checkpoints})


@both
@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\0" * 300,
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"x"',
        b"1",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format":1,"later":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"format":' + b"9" * 10_000 + b"}",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_an_invalid_record_is_refused_in_words(kind, record, damage):
    with pytest.raises(DocumentError, match=f"not a {kind.KIND} record"):
        kind.from_bytes(damage)


@given(st.sampled_from(RECORDS), st.data())
def test_damage_of_any_byte_raises_a_document_error_only(record, data):
    raw = bytearray(record.to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    try:
        again = type(record).from_bytes(damaged)
    except DocumentError:
        return
    assert type(record).from_bytes(again.to_bytes()) == again


# -- as the readers meet them


def changed(**fields):
    return lambda data: json.dumps({**json.loads(data), **fields}).encode()


DAMAGE = {
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: b"\0" * len(data),
    "deep": lambda data: b"[" * 100_000,
    "format 2": changed(format=2),
    "another type": changed(name=1, files={}),
    "another kind": lambda data: b'{"format":1,"kind":"cake"}',
}
ways = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())


@pytest.fixture
async def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYNCSYNC_STATE_DIR", str(tmp_path / "state"))
    reset_memory()
    store = MemoryStore("lab", "exp")
    for trial in ("a", "b"):
        await put_trial(store, trial, {"checkpoint_000000": ({"model": b"m" * 100}, {"loss": 1.0})}, next_checkpoint=1)
    await put_experiment(store, a="running", b="running")
    return store


async def spoil(store, key, damage):
    await store.put(key, damage(store.contents[key]))


def engine_of(tmp_path, **options):
    run = RunConfig(name="exp", storage_path="memory://lab", checkpoint_config=CheckpointConfig())
    return SyncEngine(run, local_dir=tmp_path / "local", resume=True, **options)


def checkpoint(tmp_path, name="new"):
    directory = tmp_path / name
    directory.mkdir()
    (directory / "model").write_bytes(b"n" * 100)
    return directory


@ways
async def test_a_damaged_record_of_a_trial_costs_that_trial_only(store, tmp_path, damage):
    key = "a/.asyncsync/trial.json"
    await spoil(store, key, damage)
    before = {name: data for name, data in store.contents.items() if name.startswith("a/")}
    address = re.escape(f"{URI}/{key}")
    engine = engine_of(tmp_path)
    events = engine.events()
    async with engine:
        for _ in range(2):
            with pytest.raises(DamagedError, match=f"^{address} is ") as caught:
                engine.trial("a")
        assert caught.value.uri == f"{URI}/{key}"
        report = await engine.trial("b").report({"loss": 0.5}, checkpoint=checkpoint(tmp_path))
        assert report.checkpoint.name == "checkpoint_000001"
    warnings = [event async for event in events if isinstance(event, SyncWarning)]
    assert [(event.tree, f"{URI}/{key}" in event.message) for event in warnings] == [("a", True)]
    assert {name: data for name, data in store.contents.items() if name.startswith("a/")} == before

    experiment = await Experiment.open(URI)
    assert {trial.name: trial.status for trial in experiment.trials} == {"a": "unreadable", "b": "running"}
    assert re.match(f"{address} is ", experiment.trial("a").error)
    assert (await experiment.restore(tmp_path / "back")).checkpoint.name == "checkpoint_000001"
    with pytest.raises(DamagedError, match=f"^{address} is "):
        await pull(URI, tmp_path / "copy")
    assert (tmp_path / "copy/b/checkpoint_000001/model").exists()
    assert re.match(f"{address} is ", (await verify(URI)).damaged[key])


@ways
async def test_resume_names_a_damaged_experiment_record_and_leaves_it_alone(store, tmp_path, damage):
    key = ".asyncsync/experiment.json"
    await spoil(store, key, damage)
    before = store.contents[key]
    with pytest.raises(DamagedError, match=re.escape(f"{URI}/{key} is ")):
        async with engine_of(tmp_path):
            pytest.fail("it started")
    assert store.contents[key] == before
    assert [trial.name for trial in (await Experiment.open(URI)).trials] == ["a", "b"]
    assert list((await verify(URI)).damaged) == [key]
    await pull(URI, tmp_path / "copy")


async def test_an_experiment_with_only_a_damaged_record_raises_that_error(tmp_path):
    reset_memory()
    await MemoryStore("lab", "exp").put(".asyncsync/experiment.json", b"{")
    with pytest.raises(DamagedError, match=r"exp/.asyncsync/experiment.json is damaged"):
        await Experiment.open(URI)


@ways
async def test_a_checkpoint_with_a_damaged_manifest_is_not_adopted(store, tmp_path, damage):
    """It keeps its number."""
    await put_tree(store, "a/checkpoint_000001/", {"model": b"x"})
    key = "a/checkpoint_000001/.asyncsync/manifest.json"
    await spoil(store, key, damage)
    before = store.contents[key]
    engine = engine_of(tmp_path)
    events = engine.events()
    async with engine:
        report = await engine.trial("a").report({}, checkpoint=checkpoint(tmp_path))
        assert report.checkpoint.name == "checkpoint_000002"
    warnings = [event.message async for event in events if isinstance(event, SyncWarning)]
    assert len(warnings) == 1
    assert f"{URI}/{key} is " in warnings[0]
    names = [item.name for item in (await Experiment.open(URI)).trial("a").checkpoints]
    assert names == ["checkpoint_000000", "checkpoint_000002"]
    assert store.contents[key] == before


@ways
async def test_a_damaged_manifest_of_a_trials_files_is_the_error_of_that_trial(store, tmp_path, damage):
    key = "a/.asyncsync/manifest.json"
    await spoil(store, key, damage)
    with pytest.raises(DamagedError, match=re.escape(f"{URI}/{key} is ")):
        async with engine_of(tmp_path) as engine:
            with pytest.raises(DamagedError, match=re.escape(f"{URI}/{key} is ")):
                await engine.trial("a").report({})
            await engine.trial("b").report({}, checkpoint=checkpoint(tmp_path))
    assert len((await Experiment.open(URI)).trial("b").checkpoints) == 2


@ways
async def test_restore_falls_back_past_a_checkpoint_whose_manifest_is_damaged(store, tmp_path, damage):
    await put_trial(
        store, "a", {name: ({"model": name.encode()}, {}) for name in ("checkpoint_000000", "checkpoint_000001")}
    )
    key = "a/checkpoint_000001/.asyncsync/manifest.json"
    await spoil(store, key, damage)
    report = await (await Experiment.open(URI)).restore(tmp_path / "back", "a")
    assert report.checkpoint.name == "checkpoint_000000"
    assert f"{URI}/{key} is " in report.passed_over[0][1]


async def test_a_trial_copied_under_another_name_continues_under_that_name(store, tmp_path):
    for key, data in list(store.contents.items()):
        if key.startswith("a/"):
            await store.put(f"c/{key[2:]}", data)
    before = {key: data for key, data in store.contents.items() if key.startswith("a/")}
    async with engine_of(tmp_path) as engine:
        report = await engine.trial("c").report({}, checkpoint=checkpoint(tmp_path))
        assert report.checkpoint.uri == f"{URI}/c/checkpoint_000001"
    assert {key: data for key, data in store.contents.items() if key.startswith("a/")} == before
    assert TrialRecord.from_bytes(store.contents["c/.asyncsync/trial.json"]).name == "c"


async def test_fields_of_a_later_asyncsync_survive_this_one(store, tmp_path):
    async with engine_of(tmp_path) as engine:  # so that b has files of its own in a manifest
        await engine.trial("b").report({"loss": 1.0})
    for key in ("b/.asyncsync/trial.json", ".asyncsync/experiment.json", "b/.asyncsync/manifest.json"):
        await spoil(store, key, changed(owner="tomorrow"))
    async with engine_of(tmp_path) as engine:
        await engine.trial("b").report({"loss": 0.5}, checkpoint=checkpoint(tmp_path))
    for key in ("b/.asyncsync/trial.json", ".asyncsync/experiment.json", "b/.asyncsync/manifest.json"):
        assert json.loads(store.contents[key])["owner"] == "tomorrow", key


@pytest.mark.parametrize("levels", [380, 395, 950, 5000])
async def test_metrics_that_would_make_a_record_unreadable_are_refused(store, tmp_path, levels):
    """They cost nothing else."""
    deep = 1
    for _ in range(levels):
        deep = [deep]
    around = {}
    around["itself"] = around
    async with engine_of(tmp_path) as engine:
        trial = engine.trial("a")
        for metrics in ({"deep": deep}, around):
            if metrics is around or levels > 390:
                with pytest.raises(ConfigError, match="must be JSON of at most 390 levels"):
                    await trial.report(metrics)
        await trial.report({"loss": 0.5} if levels > 390 else {"deep": deep}, checkpoint=checkpoint(tmp_path))
    async with engine_of(tmp_path) as engine:
        await engine.trial("a").report({"loss": 0.25})
    assert (await Experiment.open(URI)).trial("a").metrics == {"loss": 0.25}


@pytest.mark.parametrize("name", ["checkpoint_\u00b2", "checkpoint_\u0663", "checkpoint_" + "9" * 40, "checkpoint_-1"])
async def test_directories_of_odd_numbers_do_not_count(store, tmp_path, name):
    await put_tree(store, f"a/{name}/", {"x": b"x"})
    async with engine_of(tmp_path) as engine:
        report = await engine.trial("a").report({}, checkpoint=checkpoint(tmp_path))
    assert report.checkpoint.name == "checkpoint_000001"
