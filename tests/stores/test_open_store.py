"""Which storage paths are valid, and the errors for the others."""

import sys

import pytest

from asyncsync.config import TransferConfig
from asyncsync.errors import ConfigError
from asyncsync.stores import known_schemes, open_store, register_scheme
from asyncsync.stores.local.store import LocalStore
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


@pytest.mark.parametrize("content", [None, "", "no certificate"], ids=["missing", "empty", "of something else"])
@pytest.mark.parametrize(
    ("uri", "options"),
    [
        ("gs://bucket/x", {"token": "t"}),
        ("az://container/x", {"account": "account", "account_key": "a2V5"}),
        ("s3://bucket/x", {"endpoint_url": "https://127.0.0.1:1", "access_key": "a", "secret_key": "s"}),
    ],
    ids=["gs", "az", "s3"],
)
async def test_a_ca_bundle_that_cannot_be_used_is_a_config_error(tmp_path, uri, options, content):
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    with pytest.raises(ConfigError, match=r"storage option verify.*CA bundle"):
        async with open_store(uri, options=options | {"verify": str(bundle)}) as store:
            await store.head("key")


@pytest.mark.parametrize("uri", ["", "  ", "relative/path", "./x", "ftp://host/x", "x://", "file://host/x", "file://x"])
def test_anything_else_is_refused_with_a_list_of_known_schemes(uri):
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
def test_each_missing_package_is_reported_when_the_store_is_opened(monkeypatch, uri, missing, extra):
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


def test_a_scheme_names_the_packages_that_it_needs():
    register_scheme("needing", lambda *_: MemoryStore(), needs=("asyncio", "no_such_package.client"))
    with pytest.raises(ConfigError, match=r"needing://.* needs no_such_package\.client: pip install 'no_such_package'"):
        open_store("needing://x")


def test_schemes_are_known_once_they_are_registered():
    register_scheme("Registered", lambda *_: MemoryStore())
    assert {"file", "gcs", "gs", "registered", "s3", "s3a", "s3n"} <= set(known_schemes())
    with pytest.raises(ConfigError, match="registered://"):
        open_store("ftp://host/x")


def test_a_scheme_must_be_one():
    with pytest.raises(ConfigError):
        register_scheme("a/b", lambda *_: MemoryStore())


@pytest.mark.parametrize("scheme", ["s3a", "s3n", "S3A"])
def test_other_names_of_s3_are_s3(scheme):
    assert open_store(f"{scheme}://bucket/p").uri == "s3://bucket/p"


def test_another_name_of_gs_is_gs():
    assert open_store("gcs://bucket/p").uri == "gs://bucket/p"


@pytest.mark.parametrize("end", ["", "/experiment"])
def test_a_query_is_refused_with_the_options_that_say_the_same(end):
    query = "scheme=http&endpoint_override=127.0.0.1%3A9000&region=eu-west-1"
    with pytest.raises(ConfigError, match="query") as caught:
        open_store(f"s3://bucket/p?region=eu-west-1&{query}{end}")
    assert "'endpoint_url': 'http://127.0.0.1:9000'" in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://b?region=x", "gs://b/p?a=x", "s3://b/p?secret_key=hidden", "s3a://b/?x="])
def test_any_query_is_refused_and_its_values_are_not_shown(uri):
    with pytest.raises(ConfigError, match="query") as caught:
        open_store(uri)
    assert "hidden" not in str(caught.value)


def test_a_question_mark_may_be_part_of_a_name():
    assert open_store("s3://bucket/what?").uri == "s3://bucket/what?"


@pytest.mark.parametrize("scheme", ["s3", "s3a", "gs", "ftp"])
@pytest.mark.parametrize("secret", ["AKID:hidden@", "AKID:hid/hidden@", "hidden@"])
def test_user_information_in_an_address_is_refused_and_not_shown(scheme, secret):
    with pytest.raises(ConfigError) as caught:
        open_store(f"{scheme}://{secret}bucket/p")
    assert "hidden" not in str(caught.value)
    assert "AKID" not in str(caught.value)


def test_user_information_in_an_endpoint_is_refused_and_not_shown():
    with pytest.raises(ConfigError, match="endpoint_url") as caught:
        open_store("s3://b/p", options={"endpoint_url": "http://me:hidden@host:9000"})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("path", ["/a/\ud800", "s3://bucket/\ud800", "gs://bucket/\ud800", "file:///\ud800"])
def test_half_a_surrogate_pair_is_refused(path):
    with pytest.raises(ConfigError, match="cannot be encoded"):
        open_store(path)
