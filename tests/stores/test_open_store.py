"""Which storage paths are understood, and what is said of the others."""

import sys

import pytest

from asyncsync.config import TransferConfig
from asyncsync.errors import ConfigError
from asyncsync.stores import open_store, register_scheme
from asyncsync.stores.local import LocalStore
from asyncsync.testing import MemoryStore


@pytest.mark.parametrize("spelled", ["{}/x", "file://{}/x", "file://localhost{}/x", "FILE://{}/x"])
def test_an_absolute_path_is_a_directory(tmp_path, spelled):
    store = open_store(spelled.format(tmp_path))
    assert isinstance(store, LocalStore)
    assert store.uri == f"{tmp_path}/x"


def test_a_path_object_is_taken(tmp_path):
    assert open_store(tmp_path).uri == str(tmp_path)


def test_a_file_uri_is_unquoted(tmp_path):
    assert open_store(f"file://{tmp_path}/a%20b").uri == f"{tmp_path}/a b"


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/results").uri == f"{tmp_path}/results"


def test_opening_makes_nothing(tmp_path):
    open_store(tmp_path / "not" / "there")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["", "  ", "relative/path", "./x", "ftp://host/x", "x://", "file://host/x", "file://x"])
def test_anything_else_is_refused_with_a_list_of_what_is_known(uri):
    with pytest.raises(ConfigError, match=r"known are an absolute path and .*s3://"):
        open_store(uri)


def test_a_nul_in_a_path_is_refused():
    with pytest.raises(ConfigError, match="NUL"):
        open_store("/tmp/a\0b")


def test_gs_without_a_bucket_is_refused():
    with pytest.raises(ConfigError, match="no bucket"):
        open_store("gs:///x")


def test_s3_without_a_bucket_is_refused():
    with pytest.raises(ConfigError, match="no bucket"):
        open_store("s3:///x")


@pytest.mark.parametrize(
    ("uri", "missing", "extra"),
    [
        ("s3://bucket/x", "aiobotocore", "s3"),
        ("s3://bucket/x", "aiohttp", "s3"),
        ("gs://bucket/x", "aiohttp", "gcs"),
        ("gs://bucket/x", "gcloud.aio.auth", "gcs"),
    ],
)
def test_each_missing_package_is_told_when_the_store_is_opened(monkeypatch, uri, missing, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"needs {missing}: pip install 'asyncsync\[{extra}\]'"):
        open_store(uri)


def test_a_scheme_can_be_added_and_gets_options_and_transfer_settings():
    seen = []

    def factory(uri, options, transfer):
        seen.append((uri, options, transfer))
        return MemoryStore()

    register_scheme("mine", factory)
    transfer = TransferConfig(stall_timeout=3)
    open_store("mine://x", options={"a": 1}, transfer=transfer)
    assert seen == [("mine://x", {"a": 1}, transfer)]


def test_a_scheme_must_be_one():
    with pytest.raises(ConfigError):
        register_scheme("a/b", lambda *_: MemoryStore())
