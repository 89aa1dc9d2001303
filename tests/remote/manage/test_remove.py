"""``remove``: the record that names it first, and never something that runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from onebench import Bench
from stored import check_complete, put_experiment, put_tree, put_trial

from asyncsync import Experiment, pin, push, remove, tag, verify
from asyncsync.errors import ConcurrentWriterError, ConfigError, NotFoundError, StoreError
from asyncsync.planning.document import EXPERIMENT_RECORD
from asyncsync.stores import base, open_store
from asyncsync.sync.records.model import ExperimentRecord
from asyncsync.testing import MemoryStore, inject_faults, reset_memory, run_virtual

FILES = {"a": b"a" * 1000, "!": b"its name comes before that of a manifest"}


async def stored(status: str = "finished") -> MemoryStore:
    reset_memory()
    store = MemoryStore("b", "exp")
    record = ExperimentRecord("exp", {"t": status, "u": "finished"}, status=status)
    await put_experiment(store, t=status, u="finished")
    await store.put(EXPERIMENT_RECORD, record.to_bytes())
    checkpoints = {"checkpoint_000000": (FILES, {}), "checkpoint_000001": (FILES, {})}
    await put_trial(store, "t", checkpoints, status=status)
    await put_trial(store, "u", {"checkpoint_000000": (FILES, {})})
    return store


@pytest.mark.parametrize(
    ("path", "kind"), [("", "experiment"), ("/t", "trial"), ("/t/checkpoint_000000", "checkpoint")]
)
def test_a_dry_run_counts_and_removes_nothing(path: str, kind: str) -> None:
    async def main() -> None:
        store = await stored()
        before = dict(store.contents)
        report = await remove(f"memory://b/exp{path}")
        prefix = f"{path[1:]}/" if path else ""
        assert (report.kind, report.dry_run) == (kind, True)
        assert report.objects == sum(key.startswith(prefix) for key in before)
        assert store.contents == before

    run_virtual(main())


def test_a_removed_checkpoint_leaves_its_trials_record() -> None:
    async def main() -> None:
        store = await stored()
        await remove("memory://b/exp/t/checkpoint_000000", dry_run=False)
        experiment = await Experiment.open("memory://b/exp")
        assert [item.name for item in experiment.trial("t").checkpoints] == ["checkpoint_000001"]
        assert not any(key.startswith("t/checkpoint_000000/") for key in store.contents)
        assert (await verify("memory://b/exp", deep=True)).ok

    run_virtual(main())


def test_a_removed_trial_leaves_the_experiments_record() -> None:
    async def main() -> None:
        store = await stored()
        await remove("memory://b/exp/t", dry_run=False)
        assert [trial.name for trial in (await Experiment.open("memory://b/exp")).trials] == ["u"]
        assert not any(key.startswith("t/") for key in store.contents)
        assert (await verify("memory://b/exp", deep=True)).ok

    run_virtual(main())


def test_of_a_removed_experiment_nothing_is_left() -> None:
    async def main() -> None:
        store = await stored()
        report = await remove("memory://b/exp", dry_run=False)
        assert (report.kind, store.contents) == ("experiment", {})

    run_virtual(main())


@pytest.mark.parametrize("path", ["", "/t", "/t/checkpoint_000000"])
@pytest.mark.parametrize("keys_per_request", [1, 1000])
def test_broken_off_anywhere_no_reader_sees_half_and_it_resumes(
    monkeypatch: pytest.MonkeyPatch, path: str, keys_per_request: int
) -> None:
    monkeypatch.setattr(base, "KEYS_PER_DELETE", keys_per_request)
    prefix = f"{path[1:]}/" if path else ""

    def attempt(number: int) -> bool:
        async def main() -> bool:
            store = await stored()
            faults = inject_faults("b")
            fault = faults.fail(number, StoreError("refused"))
            try:
                await remove(f"memory://b/exp{path}", dry_run=False)
            except StoreError:
                check_complete(store.contents)
                left = any(key.startswith(prefix) for key in store.contents)
                faults.clear()
                if left:
                    await remove(f"memory://b/exp{path}", dry_run=False)
            faults.clear()
            check_complete(store.contents)
            assert not any(key.startswith(prefix) for key in store.contents)
            return fault.seen >= number

        return run_virtual(main())

    number = 1
    while attempt(number):
        number += 1
    assert number > 4


@pytest.mark.parametrize("path", ["", "/t", "/t/checkpoint_000000"])
def test_what_runs_is_refused_unless_forced(path: str) -> None:
    async def main() -> None:
        store = await stored("running")
        before = dict(store.contents)
        with pytest.raises(ConcurrentWriterError, match="has not ended"):
            await remove(f"memory://b/exp{path}", dry_run=False)
        assert store.contents == before
        await remove(f"memory://b/exp{path}", dry_run=False, force=True)
        assert store.contents != before

    run_virtual(main())


def test_a_plain_prefix_is_refused() -> None:
    async def main() -> None:
        store = await stored()
        for place in ("", "t/"):
            await store.put(f"{place}notes/a.txt", b"x")
        for path in ("/notes", "/nothing", "/t/notes", "/t/checkpoint_000009"):
            with pytest.raises(NotFoundError, match="nothing is removed"):
                await remove(f"memory://b/exp{path}", dry_run=False)
        assert {"notes/a.txt", "t/notes/a.txt"} <= store.contents.keys()

    run_virtual(main())


def test_a_pushed_tree_is_removed_and_its_neighbour_stays() -> None:
    async def main() -> None:
        reset_memory()
        store = MemoryStore("b", "")
        await put_tree(store, "tree/", FILES)
        await put_tree(store, "tree2/", FILES)
        assert (await remove("memory://b/tree", dry_run=False)).kind == "tree"
        assert all(key.startswith("tree2/") for key in store.contents)
        assert (await verify("memory://b/tree2")).ok

    run_virtual(main())


@pytest.mark.parametrize("mark", ["pinned", "tagged"])
def test_a_checkpoint_that_is_kept_is_removed_by_force_only(bench: Bench, mark: str) -> None:
    uri = "memory://b/exp/t/checkpoint_000000"

    async def main() -> None:
        async with bench.engine() as engine:
            for number in range(2):
                await engine.trial("t").report({}, bench.checkpoint(f"c{number}"))
        await (pin(uri) if mark == "pinned" else tag(uri, "best"))
        before = dict(bench.store.contents)
        for dry_run in (True, False):
            with pytest.raises(ConfigError, match=r"is pinned: unpin it first|has tags \(best\): remove them first"):
                await remove(uri, dry_run=dry_run)
        assert bench.store.contents == before
        await remove(uri, dry_run=False, force=True)
        await remove("memory://b/exp/t/checkpoint_000001", dry_run=False)
        assert (await Experiment.open("memory://b/exp")).trial("t").checkpoints == []

    run_virtual(main())


def test_a_writer_that_goes_on_writing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        store = await stored()
        real = MemoryStore.delete

        async def written_again(self: MemoryStore, keys: Sequence[str]) -> None:
            await real(self, keys)
            store._store("t/result.json", b"{}", "again")

        monkeypatch.setattr(MemoryStore, "delete", written_again)
        with pytest.raises(ConcurrentWriterError, match="another process writes there"):
            await remove("memory://b/exp/t", dry_run=False)

    run_virtual(main())


def test_a_whole_bucket_is_removed_only_if_it_is_a_tree() -> None:
    async def main() -> None:
        reset_memory()
        store = MemoryStore("b", "")
        await store.put("sub/a", b"x")
        with pytest.raises(NotFoundError):
            await remove("memory://b", dry_run=False)
        await put_tree(store, "", FILES)
        assert (await remove("memory://b/", dry_run=False)).kind == "tree"
        assert store.contents == {}

    run_virtual(main())


async def test_open_uploads_are_removed_too_also_those_of_a_directory(tmp_path: Path) -> None:
    reset_memory()
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a").write_bytes(b"a")
    for uri in (f"{tmp_path}/store/tree", "memory://b/tree"):
        await push(tmp_path / "src", uri)
        async with open_store(uri) as store:
            await store.put_part(await store.create_multipart("big"), 1, 0, b"p" * 1000)
            await remove(uri, dry_run=False)
            assert not await store.list_multiparts()
    assert not list((tmp_path / "store").iterdir())
