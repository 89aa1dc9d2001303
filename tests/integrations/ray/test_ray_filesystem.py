"""The file system of asyncsync as pyarrow and Ray use it, on a directory; no cluster runs."""

from __future__ import annotations

import json
import pickle

import pytest

pytest.importorskip("ray.train", reason="Ray is not installed: run nox -s ray")
pytestmark = pytest.mark.filterwarnings("default")

from pathlib import Path

import pyarrow.fs
from ray.train import Checkpoint
from ray.train._internal import storage as tune_storage
from ray.train.v2._internal.execution import storage as train_storage

from asyncsync import ConcurrentWriterError, ConfigError
from asyncsync.integrations import ray as asyncsync_ray
from asyncsync.integrations.ray import attempts, copy_hook, settings
from asyncsync.integrations.ray.agent import process_storage
from asyncsync.integrations.ray.filesystem import rebuild


@pytest.fixture
def files(tmp_path):
    filesystem = rebuild(str(tmp_path / "storage"))
    yield filesystem
    process_storage.close_all()


@pytest.fixture
def root(files):
    return files.address.root


def write(files, path, data):
    with files.open_output_stream(path) as stream:
        stream.write(data)


def directory(tmp_path, name="source", **content):
    path = tmp_path / name
    path.mkdir(exist_ok=True)
    for each, data in content.items():
        (path / each).write_bytes(data)
    return str(path)


def tune_context(files, number=0):
    return tune_storage.StorageContext(
        files.address.root, "exp", storage_filesystem=files, trial_dir_name="trial", current_checkpoint_index=number
    )


def contents(path):
    return {str(each.relative_to(path)): each.read_bytes() for each in Path(path).rglob("*") if each.is_file()}


# Files


def test_what_was_written_is_read(files, root):
    write(files, f"{root}/a/b", b"hello")
    with files.open_input_file(f"{root}/a/b") as file:
        assert (file.size(), file.read(2), file.readall()) == (5, b"he", b"llo")
        file.seek(1)
        assert file.read() == b"ello"
    with files.open_input_stream(f"{root}/a/b") as stream:
        assert stream.readall() == b"hello"
    with pytest.raises(FileNotFoundError):
        files.open_input_file(f"{root}/a/c")


def test_a_large_file_goes_through_a_temporary_one(files, root):
    data = bytes(range(256)) * (40 << 10)
    with files.open_output_stream(f"{root}/large") as stream:
        for start in range(0, len(data), 1 << 20):
            stream.write(data[start : start + (1 << 20)])
    with files.open_input_stream(f"{root}/large") as stream:
        assert stream.readall() == data


def test_an_exception_publishes_no_torn_file(files, root):
    write(files, f"{root}/kept", b"old")
    for path in ("kept", "new"):
        with pytest.raises(KeyError), files.open_output_stream(f"{root}/{path}") as stream:
            stream.write(b"torn")
            raise KeyError
    assert files.get_file_info(f"{root}/new").type == pyarrow.fs.FileType.NotFound
    with files.open_input_stream(f"{root}/kept") as stream:
        assert stream.readall() == b"old"


def test_a_file_written_in_an_error_handler_is_published(files, root):
    try:
        raise KeyError
    except KeyError:
        write(files, f"{root}/report", b"an error")
    assert files.get_file_info(f"{root}/report").size == 8


def test_directories_are_listed_and_deleted(files, root):
    for path in ("d/one", "d/sub/two"):
        write(files, f"{root}/{path}", b"x")
    found = files.get_file_info(pyarrow.fs.FileSelector(f"{root}/d", recursive=True))
    assert sorted(item.path for item in found) == [f"{root}/d/{each}" for each in ("one", "sub", "sub/two")]
    files.delete_file(f"{root}/d/one")
    files.delete_dir(f"{root}/d/sub")
    with pytest.raises(FileNotFoundError):
        files.delete_file(f"{root}/d/one")
    with pytest.raises(FileNotFoundError):
        files.get_file_info(pyarrow.fs.FileSelector(f"{root}/nothing"))
    assert files.get_file_info(pyarrow.fs.FileSelector(f"{root}/nothing", allow_not_found=True)) == []
    files.create_dir(f"{root}/made")
    assert files.get_file_info(f"{root}/made").type == pyarrow.fs.FileType.Directory


def test_paths_outside_of_the_storage_are_refused(files, root):
    with pytest.raises(ConfigError, match="is not below the storage path"):
        files.get_file_info("/somewhere/else")


def test_a_uri_is_a_path_too(files, root):
    write(files, f"{root}/a", b"x")
    assert files.get_file_info(f"file://{root}/a").size == 1


def test_equal_addresses_are_equal_also_after_a_pickle(files, tmp_path):
    again = pickle.loads(pickle.dumps(files))
    assert again == files and again.address == files.address
    assert rebuild(str(tmp_path / "other")) != files
    assert len(pickle.dumps(files)) < 200 + len(str(tmp_path))


# Copies


def test_a_checkpoint_of_tune_is_committed_by_its_upload(files, root, tmp_path):
    source = directory(tmp_path, weights=b"w" * 100, state=b"s")
    stored = tune_context(files).persist_current_checkpoint(Checkpoint.from_directory(source))
    assert (Path(root) / "exp/trial/checkpoint_000000/.asyncsync/manifest.json").exists()
    with stored.as_directory() as path:
        assert contents(path) == contents(source)
    stored.set_metadata({"best": 1})
    stored.update_metadata({"more": 2})
    assert stored.get_metadata() == {"best": 1, "more": 2}
    assert ".metadata.json" in contents(stored.to_directory(tmp_path / "copy"))


def test_a_number_used_again_holds_the_new_files(files, tmp_path):
    tune_context(files).persist_current_checkpoint(
        Checkpoint.from_directory(directory(tmp_path, "one", a=b"1", b=b"1"))
    )
    stored = tune_context(files).persist_current_checkpoint(
        Checkpoint.from_directory(directory(tmp_path, "two", a=b"2"))
    )
    assert contents(stored.to_directory(tmp_path / "copy")) == {"a": b"2"}


def test_artifacts_are_no_checkpoint_whatever_their_name(files, root, tmp_path):
    tune_context(files)
    source = directory(tmp_path, log=b"1")
    tune_storage._upload_to_fs_path(source, files, f"{root}/exp/checkpoint_000007")
    assert not (Path(root) / "exp/checkpoint_000007/.asyncsync/intents").exists()
    assert contents(source) == {"log": b"1"}


def test_excluded_files_stay_here(files, root, tmp_path):
    source = directory(tmp_path, keep=b"1", **{"we[ird] #!name": b"2"})
    directory(tmp_path / "source", "checkpoint_1", big=b"3")
    tune_storage._upload_to_fs_path(source, files, f"{root}/exp", exclude=["*checkpoint_*", "we*"])
    found = files.get_file_info(pyarrow.fs.FileSelector(f"{root}/exp", recursive=True))
    assert [item.base_name for item in found] == ["keep"]


def test_a_stored_checkpoint_can_be_reported_again(files, tmp_path):
    """As a trial does that exploits another one."""
    source = directory(tmp_path, weights=b"w" * 10_000)
    first = tune_context(files).persist_current_checkpoint(Checkpoint.from_directory(source))
    second = tune_context(files, 1).persist_current_checkpoint(first)
    assert contents(second.to_directory(tmp_path / "copy")) == contents(source)


def test_what_plain_ray_has_written_can_be_read(files, root, tmp_path):
    source = directory(tmp_path, weights=b"w", state=b"s")
    plain = tune_storage.StorageContext(root, "old", trial_dir_name="trial", current_checkpoint_index=0)
    plain.persist_current_checkpoint(Checkpoint.from_directory(source))
    found = files.get_file_info(pyarrow.fs.FileSelector(f"{root}/old/trial"))
    assert [item.base_name for item in found] == ["checkpoint_000000"]
    stored = Checkpoint(f"{root}/old/trial/checkpoint_000000", files)
    assert contents(stored.to_directory(tmp_path / "copy")) == contents(source)


def test_single_files_are_copied(files, root, tmp_path):
    write(files, f"{root}/exp/result.json", b"{}\n")
    pyarrow.fs.copy_files(f"{root}/exp/result.json", str(tmp_path / "result.json"), source_filesystem=files)
    assert (tmp_path / "result.json").read_bytes() == b"{}\n"
    pyarrow.fs.copy_files(str(tmp_path / "result.json"), f"{root}/exp/again", destination_filesystem=files)
    assert files.get_file_info(f"{root}/exp/again").size == 3
    with pytest.raises(FileNotFoundError):
        pyarrow.fs.copy_files(f"{root}/exp/missing", str(tmp_path / "missing"), source_filesystem=files)


def test_a_missing_directory_is_an_error(files, root, tmp_path):
    """As in pyarrow: Ray may sync the artifacts of a trial before their directory exists."""
    with pytest.raises(FileNotFoundError, match="missing"):
        pyarrow.fs.copy_files(str(tmp_path / "missing"), f"{root}/exp/trial", destination_filesystem=files)


def test_other_copies_are_those_of_pyarrow(tmp_path, files):
    source = directory(tmp_path, a=b"1")
    (tmp_path / "copy").mkdir()
    pyarrow.fs.copy_files(source, str(tmp_path / "copy"))
    assert contents(tmp_path / "copy") == {"a": b"1"}
    original = pyarrow.fs.copy_files
    copy_hook.install()
    assert pyarrow.fs.copy_files is original


def test_unchanged_artifacts_of_200_trials_cost_no_request(bench, tmp_path):
    files = rebuild("memory://b/exps")
    try:
        trials = [(directory(tmp_path, f"trial_{n}", log=b"%d" % n), f"b/exps/exp/trial_{n}") for n in range(200)]
        for period in range(3):
            before = bench.faults.calls
            for local_dir, path in trials:
                tune_storage._upload_to_fs_path(local_dir, files, path)
            assert (bench.faults.calls == before) == (period > 0)
    finally:
        process_storage.close_all()


def test_an_exploited_checkpoint_is_copied_inside_the_store(bench, tmp_path):
    """A trial reads the checkpoint of another one, and stores most of it again."""
    files = rebuild("memory://b/exps")
    try:
        donor = directory(tmp_path, "donor", weights=b"w" * 1_000_000)
        stored = tune_context(files).persist_current_checkpoint(Checkpoint.from_directory(donor))
        process_storage.close_all()  # the trial that exploits is another process
        copy = stored.to_directory(tmp_path / "exploited")
        tune_context(files, 7).persist_current_checkpoint(Checkpoint.from_directory(copy))
        assert bench.faults.count("copy") == 1
        assert bench.puts("checkpoint_000007/weights") == 0
    finally:
        process_storage.close_all()


# The workers of Ray Train


@pytest.fixture
def worker(monkeypatch):
    """Acts as one worker after the other; the reports of all of them arrive in this process."""
    monkeypatch.setattr(attempts, "SEEN", attempts.SeenWriters())
    monkeypatch.setattr("asyncsync.integrations.ray.registration.SEEN", attempts.SEEN)

    def act(attempt, process, rank, context, checkpoint, name="step"):
        with monkeypatch.context() as patch:
            patch.setattr(attempts, "train_token", lambda: (attempt, process, rank))
            stored = context.persist_current_checkpoint(checkpoint, name)
            return pickle.loads(pickle.dumps(stored))

    return act


@pytest.fixture
def context(files):
    return train_storage.StorageContext(files.address.root, "run", storage_filesystem=files)


def register(files, root, *names):
    results = [{"checkpoint_dir_name": name, "metrics": {"loss": 1}, "version": 0} for name in names]
    document = {"checkpoint_results": results, "checkpoint_report_indices": list(range(len(names)))}
    write(files, f"{root}/run/checkpoint_manager_snapshot.json", json.dumps(document).encode())


def local(tmp_path, name, **content):
    return Checkpoint.from_directory(directory(tmp_path, name, **content))


def test_a_registration_commits_the_parts_that_were_reported(worker, files, root, context, tmp_path):
    for rank in (1, 3):
        stored = worker("g", f"p{rank}", rank, context, local(tmp_path, f"r{rank}", **{f"rank{rank}": b"x"}))
        assert files.get_file_info(f"{root}/run/step").type == pyarrow.fs.FileType.NotFound
    register(files, root, "step")
    assert set(contents(stored.to_directory(tmp_path / "copy"))) == {"rank1", "rank3"}


def test_parts_of_an_earlier_attempt_are_not_committed(worker, files, root, context, tmp_path):
    for rank in range(2):
        worker("first", f"p{rank}", rank, context, local(tmp_path, f"old{rank}", **{f"rank{rank}": b"old"}))
    stored = worker("second", "p9", 0, context, local(tmp_path, "new", rank0=b"new"))
    register(files, root, "step")
    assert contents(stored.to_directory(tmp_path / "copy")) == {"rank0": b"new"}


def test_nothing_is_registered_that_cannot_be_committed(worker, files, root, context, tmp_path):
    worker("g", "p", 0, context, local(tmp_path, "one", a=b"1"))
    files.delete_file(f"{root}/run/step/a")
    with pytest.raises(Exception, match="a is missing"):
        register(files, root, "step")
    assert files.get_file_info(f"{root}/run/checkpoint_manager_snapshot.json").type == pyarrow.fs.FileType.NotFound


def test_two_ranks_with_two_contents_are_named(worker, context, tmp_path):
    worker("g", "p0", 0, context, local(tmp_path, "one", a=b"1"))
    with pytest.raises(ConcurrentWriterError, match="ranks 0 and 4 both wrote 'a'"):
        worker("g", "p4", 4, context, local(tmp_path, "two", a=b"2"))


def test_a_committed_name_that_is_not_registered_is_replaced(worker, files, root, context, tmp_path, monkeypatch):
    """The controller was killed between the commit and the registration."""
    worker("first", "p", 0, context, local(tmp_path, "one", a=b"1", old=b"1"))
    register(files, root, "step")
    files.delete_file(f"{root}/run/checkpoint_manager_snapshot.json")
    monkeypatch.setattr("asyncsync.integrations.ray.registration._registered", set())
    stored = worker("second", "p", 0, context, local(tmp_path, "two", a=b"2"))
    register(files, root, "step")
    assert contents(stored.to_directory(tmp_path / "copy")) == {"a": b"2"}


def test_a_registered_name_is_refused(worker, files, root, context, tmp_path):
    worker("first", "p", 0, context, local(tmp_path, "one", a=b"1"))
    register(files, root, "step")
    with pytest.raises(ConcurrentWriterError, match="registered checkpoint"):
        worker("second", "p", 0, context, local(tmp_path, "two", a=b"2"))


# Settings


@pytest.mark.parametrize("name", ["access_key", "secret_key", "session_token", "token", "credentials", "unknown"])
def test_secrets_are_refused_with_advice(name):
    with pytest.raises(ConfigError, match="environment variables, a profile or a role"):
        asyncsync_ray.storage("s3://bucket/exps", storage_options={name: "x"})


def test_secrets_in_an_endpoint_are_refused():
    with pytest.raises(ConfigError, match="user or password"):
        asyncsync_ray.storage("s3://bucket", storage_options={"endpoint_url": "https://me:pw@host"})


def test_storage_says_what_ray_needs(tmp_path):
    where = asyncsync_ray.storage(tmp_path / "exps")
    try:
        assert set(where) == {"storage_path", "storage_filesystem"}
        assert asyncsync_ray.uri(where, "sweep") == f"{tmp_path}/exps/sweep" == asyncsync_ray.address(where, "sweep")
        assert asyncsync_ray.restore_options(where) == {"storage_filesystem": where["storage_filesystem"]}
    finally:
        process_storage.close_all()


def test_an_unknown_address_is_refused():
    with pytest.raises(ConfigError, match="unknown scheme"):
        asyncsync_ray.storage("ftp://host/path")


@pytest.mark.parametrize("module", [tune_storage, train_storage])
def test_a_ray_that_goes_past_the_hook_is_refused(module, monkeypatch):
    """As a version would that imports copy_files before the hook is in place."""
    original = pyarrow.fs.copy_files.asyncsync_original

    def past(source, destination, source_filesystem=None, destination_filesystem=None, **options):
        original(source, destination, source_filesystem, destination_filesystem)

    monkeypatch.setattr(module, "_pyarrow_fs_copy_files", past)
    monkeypatch.setattr(settings, "_checked", [])
    with pytest.raises(ConfigError, match="does not upload checkpoints of Ray"):
        settings.check_ray()
    process_storage.close_all()


def test_a_ray_that_uploads_in_another_way_is_refused(monkeypatch):
    def other(filesystem, source):
        raise TypeError("persist_current_checkpoint() takes other arguments")

    monkeypatch.setattr(settings, "_upload_train", other)
    monkeypatch.setattr(settings, "_checked", [])
    with pytest.raises(ConfigError, match="does not upload checkpoints of Ray Train through asyncsync"):
        settings.check_ray()
    process_storage.close_all()
