"""Command-line values: sizes, options of stores, and their errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncsync.cli.options import in_flags, parse_size, resolve_url, take_settings
from asyncsync.errors import ConfigError

NOTHING = {
    "endpoint_url": None,
    "region": None,
    "profile": None,
    "sse": None,
    "storage_class": None,
    "extra": (),
    "max_concurrency": None,
    "part_size": None,
    "bandwidth_limit": None,
    "as_json": False,
    "quiet": False,
    "debug": False,
}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("12b", 12),
        ("1k", 1024),
        ("1KiB", 1024),
        ("1KB", 1000),
        ("16MiB", 16 << 20),
        ("16m", 16 << 20),
        ("1.5 GiB", 3 << 29),
        ("2GB", 2_000_000_000),
        ("1TiB", 1 << 40),
        ("50MiB/s", 50 << 20),
    ],
)
def test_sizes_have_binary_and_decimal_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1 XB", "1e3", "ten", "1/s/s"])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        parse_size(text)


def test_an_address_with_a_scheme_stays_as_it_is() -> None:
    assert resolve_url("s3://bucket/a") == "s3://bucket/a"


def test_a_relative_directory_must_start_with_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_url("./a") == str(tmp_path / "a")
    assert resolve_url("..") == str(tmp_path.parent)
    with pytest.raises(ConfigError, match="write s3://bucket/a for a bucket or"):
        resolve_url("bucket/a")


def test_a_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    assert resolve_url("~/a") == "/somebody/a"


def test_only_store_options_reach_the_store() -> None:
    values = NOTHING | {"region": "eu-1", "extra": ("path-style=true", "sse_key=a=b"), "deep": True}
    settings = take_settings(values)
    assert settings.storage_options == {"region": "eu-1", "path_style": True, "sse_key": "a=b"}
    assert values == {"deep": True}


def test_transfer_options_make_a_transfer_config() -> None:
    settings = take_settings(NOTHING | {"part_size": 8 << 20, "bandwidth_limit": 1000, "max_concurrency": 3})
    transfer = settings.transfer
    assert (transfer.part_size, transfer.bandwidth_limit, transfer.max_concurrency) == (8 << 20, 1000, 3)


def test_an_option_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        take_settings(NOTHING | {"extra": ("region",)})


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "invalid SyncConfig.sync_timeout=-1.0: must be more than 0 seconds (number or timedelta), or None",
            "invalid --timeout -1.0: must be more than 0 seconds",
        ),
        ("invalid TransferConfig.part_size=5: must be an integer or None", "invalid --part-size 5: must be an integer"),
        ("allow it with SyncConfig(max_delete=3)", "allow it with --max-delete 3"),
        (
            "give storage_options={'region': 'eu-1', 'endpoint_url': 'http://s'} instead",
            "give -o region=eu-1 -o endpoint_url=http://s instead",
        ),
        ("give storage_options={...} instead", "give -o KEY=VALUE instead"),
        ("storage option endpoint_url='x' must start with http://", "--endpoint-url='x' must start with http://"),
        ("storage option acl=3 must be text", "-o acl=3 must be text"),
        ("exact=True is refused for /", "--exact is refused for /"),
    ],
)
def test_messages_name_flags_instead_of_arguments(message: str, shown: str) -> None:
    assert in_flags(message) == shown
