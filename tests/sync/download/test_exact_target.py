"""exact=True: the target ends with exactly the files of the checkpoint, and nothing outside it is touched."""

import os
from pathlib import Path

import pytest
from stored import files_of, put_experiment, put_tree, put_trial

from asyncsync import ConfigError, IntegrityError, SyncFailedError, pull
from asyncsync.remote.views.experiment import Experiment
from asyncsync.sync.download.exact_target import remove_files
from asyncsync.testing import MemoryStore, inject_faults

URI = "memory://lab/exp"
OLD = {"model.safetensors": b"old", "weights": b"one file", "tok/v1": b"1"}
NEW = {"model-00001-of-00002.safetensors": b"new", "weights/part-0": b"p", "tok": b"a file now"}


@pytest.fixture
async def store():
    store = MemoryStore("lab", "exp")
    await put_experiment(store, t="running")
    await put_trial(store, "t", {"checkpoint_000000": (OLD, {}), "checkpoint_000001": (NEW, {})})
    return store


@pytest.fixture
async def both(store):
    """The old and the new checkpoint: with other names, a file that becomes a directory, and the reverse."""
    return (await Experiment.open(URI)).trial("t").checkpoints


def everything(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


async def test_two_checkpoints_in_one_directory_leave_the_second_alone(both, tmp_path):
    target = tmp_path / "model"
    for item, files in zip((*both, both[0]), (OLD, NEW, OLD), strict=True):
        await item.download(target, exact=True)
        assert files_of(target) == files
        assert len(everything(target)) == len(files) + len({name for name in files if "/" in name})


async def test_without_exact_nothing_is_removed(both, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_bytes(b"mine")
    await both[0].download(tmp_path / "model")
    assert files_of(tmp_path / "model") == {**OLD, "mine": b"mine"}


async def test_links_are_removed_and_never_followed(both, tmp_path):
    """A link to a directory outside, one in the place of a directory that is needed, one to a file, one to nothing."""
    outside, target = tmp_path / "outside", tmp_path / "model"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "precious").write_bytes(b"precious")
    (outside / "part-0").write_bytes(b"not yours")
    target.mkdir()
    (target / "elsewhere").symlink_to(outside)
    (target / "weights").symlink_to(outside)
    (target / "tok").symlink_to(outside / "part-0")
    (target / "nowhere").symlink_to("nothing")
    report = await both[1].download(target, exact=True)
    assert files_of(target) == NEW
    assert everything(target) == {*NEW, "weights"}
    assert files_of(outside) == {"deep/precious": b"precious", "part-0": b"not yours"}
    assert report.files_removed == 3  # "tok" was replaced


async def test_files_do_not_land_behind_a_link_and_vanish_when_it_is_cleared(both, tmp_path):
    """``weights`` links to ``other``: files do not land in there, where they would be removed with it."""
    target = tmp_path / "model"
    (target / "other").mkdir(parents=True)
    (target / "weights").symlink_to("other")
    await both[1].download(target, exact=True)
    assert files_of(target) == NEW


async def test_directories_that_are_empty_then_go_too(both, tmp_path):
    target = tmp_path / "model"
    (target / "a" / "b" / "c").mkdir(parents=True)
    (target / "a" / "file").write_bytes(b"x")
    await both[1].download(target, exact=True)
    assert everything(target) == {*NEW, "weights"}


async def test_nothing_is_removed_before_everything_is_in_place(store, both, tmp_path):
    target = tmp_path / "model"
    await both[0].download(target)
    before = files_of(target)
    store.damage("t/checkpoint_000001/weights/part-0", b"q")
    with pytest.raises(IntegrityError):
        await both[1].download(target, exact=True)
    kept = {name: data for name, data in files_of(target).items() if name in before}
    assert kept["model.safetensors"] == b"old"
    assert b"1" in files_of(target).values()  # tok/v1, under its name or set aside


async def test_a_failure_before_the_first_file_landed_restores_the_old_files(both, tmp_path):
    target = tmp_path / "model"
    (target / "tok").mkdir(parents=True)
    (target / "tok" / "v1").write_bytes(b"1")
    for name in NEW:
        inject_faults("lab").fail(1, IntegrityError("damaged"), key=name, times=None)
    with pytest.raises(IntegrityError):
        await both[1].download(target, exact=True)
    assert files_of(target) == {"tok/v1": b"1"}


async def test_restore_is_exact_too_and_falls_back_exactly(store, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "mine").write_bytes(b"mine")
    store.damage("t/checkpoint_000001/tok", b"b file now")
    report = await (await Experiment.open(URI)).restore(target, exact=True)
    assert (report.checkpoint.number, files_of(target)) == (0, OLD)


async def test_a_pulled_experiment_is_exact_over_all_its_trees(store, tmp_path):
    target = tmp_path / "run"
    (target / "t" / "checkpoint_000007").mkdir(parents=True)
    (target / "t" / "checkpoint_000007" / "w").write_bytes(b"of an older pull")
    (target / "stray").write_bytes(b"x")
    report = await pull(URI, target, exact=True)
    assert files_of(target) == {
        "searcher.pkl": b"state",
        "t/result.json": b'{"loss": 1}\n',
        **{f"t/checkpoint_000000/{name}": data for name, data in OLD.items()},
        **{f"t/checkpoint_000001/{name}": data for name, data in NEW.items()},
    }
    assert report.files_deleted == 2
    assert not (target / "t" / "checkpoint_000007").exists()


async def test_a_pull_that_fails_removes_nothing(store, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stray").write_bytes(b"x")
    store.damage("t/checkpoint_000001/tok", b"b file now")
    with pytest.raises(IntegrityError):
        await pull(URI, tmp_path / "run", exact=True)
    assert (tmp_path / "run" / "stray").exists()


async def test_a_pushed_tree_replaces_the_previously_pulled_one(tmp_path):
    store = MemoryStore("lab", "tree")
    for files in ({"a": b"1", "d/x": b"2"}, {"a/y": b"3", "d": b"4"}):
        await put_tree(store, "", files)
        await pull("memory://lab/tree", tmp_path / "copy", exact=True)
        assert files_of(tmp_path / "copy") == files


@pytest.mark.parametrize("where", ["a", "a/b"])
async def test_a_directory_that_becomes_a_link_while_it_is_cleared_leads_nowhere(both, tmp_path, monkeypatch, where):
    """Swapped after it was seen, before it is opened."""
    target, outside = tmp_path / "model", tmp_path / "outside"
    (target / "a" / "b").mkdir(parents=True)
    (outside / "b").mkdir(parents=True)
    for name in ("file", "b/file"):
        (target / "a" / name).write_bytes(b"x")
        (outside / name).write_bytes(b"precious")
    real, swapped = os.scandir, []

    def scandir(path):
        entries = real(path)
        if (target / "tok").is_file() and (target / where).is_dir() and not swapped:  # all is in place: it is cleared
            swapped.append((target / where).rename(tmp_path / "was"))
            (target / where).symlink_to(outside)
        return entries

    monkeypatch.setattr(os, "scandir", scandir)
    await both[1].download(target, exact=True)
    assert swapped
    assert files_of(outside) == {"file": b"precious", "b/file": b"precious"}


def test_a_failed_download_removes_nothing_behind_a_link(tmp_path):
    """The directory that it had put files into was swapped for a link before they are removed."""
    target, outside = tmp_path / "model", tmp_path / "outside"
    for directory in (target / "a" / "b", target / "c", outside / "b"):
        directory.mkdir(parents=True)
        (directory / "file").write_bytes(b"precious")
    (target / "a").rename(tmp_path / "was")
    (target / "a").symlink_to(outside)
    remove_files(str(target), ["a/b/file", "c/file", "gone/file", "gone"])
    assert files_of(outside) == {"b/file": b"precious"}
    assert everything(target) == {"a"}


@pytest.mark.parametrize("where", ["", "t", "deep/er"])
async def test_a_directory_that_asyncsync_keeps_in_step_is_refused(both, tmp_path, where):
    """A running trial's directory, an experiment's, a store: at any depth."""
    target = tmp_path / "run"
    (target / where / ".asyncsync").mkdir(parents=True)
    (target / "mine").write_bytes(b"mine")
    for call in (both[0].download, (await Experiment.open(URI)).restore, lambda *a, **k: pull(URI, *a, **k)):
        with pytest.raises(ConfigError, match="asyncsync keeps"):
            await call(target, exact=True)
    assert files_of(target) == {"mine": b"mine"}


@pytest.mark.parametrize("where", ["home", "", "home/inner/..", "link", "state"])
async def test_a_home_or_state_directory_or_its_parent_is_refused(both, tmp_path, monkeypatch, where):
    (tmp_path / "home" / "inner").mkdir(parents=True)
    (tmp_path / "home" / "thesis").write_bytes(b"five years")
    (tmp_path / "link").symlink_to("home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match="Use a directory of its own"):
        await both[0].download(tmp_path / where, exact=True)
    assert (tmp_path / "home" / "thesis").exists()


async def test_the_root_and_parents_of_the_working_directory_are_refused(both, tmp_path, monkeypatch):
    (tmp_path / "project" / "src").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "src")
    for target in ("/", tmp_path / "project", ".."):
        with pytest.raises(ConfigError, match="exact=True is refused"):
            await both[0].download(target, exact=True)
    await both[0].download(".", exact=True)
    assert files_of(tmp_path / "project" / "src") == OLD


async def test_a_file_that_cannot_be_removed_is_named_when_all_else_is_done(both, tmp_path, monkeypatch):
    target = tmp_path / "model"
    (target / "kept").mkdir(parents=True)
    for name in ("kept/file", "other"):
        (target / name).write_bytes(b"x")
    real = os.unlink

    def unlink(path, *, dir_fd=None):
        if path == "file":
            raise PermissionError(1, "Operation not permitted", path)
        real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(SyncFailedError, match=r"1 other file\(s\) cannot be removed: kept/file"):
        await both[1].download(target, exact=True)
    assert files_of(target) == {**NEW, "kept/file": b"x"}


async def test_include_takes_the_files_that_match_and_checks_them(both, tmp_path):
    for include, names in (
        ("*.safetensors", ["model-00001-of-00002.safetensors"]),
        (["weights/"], ["weights/part-0"]),
        (["tok", "weights/part-0"], ["tok", "weights/part-0"]),
        (["*", "!tok"], ["model-00001-of-00002.safetensors", "weights/part-0"]),
    ):
        target = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        report = await both[1].download(target, include=include)
        assert sorted(files_of(target)) == names
        assert report.bytes_total == sum(len(NEW[name]) for name in names)


async def test_a_restore_of_some_files_needs_only_those_to_be_right(store, tmp_path):
    store.damage("t/checkpoint_000001/weights/part-0", b"q")
    report = await (await Experiment.open(URI)).restore(tmp_path / "r", include=["tok"])
    assert (report.checkpoint.number, files_of(tmp_path / "r")) == (1, {"tok": b"a file now"})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"include": ["*.nothing"]}, "matches no file of .*checkpoint_000001; it has model-0"),
        ({"include": ["*"], "exact": True}, "exact=True with include"),
        ({"include": []}, "must be gitignore patterns"),
        ({"include": [3]}, "must be gitignore patterns"),
        ({"include": ["!"]}, r"invalid include=\['!'\]"),
    ],
)
async def test_senseless_arguments_are_refused_before_any_write(both, tmp_path, options, told):
    for call in (both[1].download, (await Experiment.open(URI)).restore):
        with pytest.raises(ConfigError, match=told):
            await call(tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()
