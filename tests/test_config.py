"""Settings are checked when they are made."""

import dataclasses
import inspect
import math
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from asyncsync import CheckpointConfig, ConfigError, RunConfig, SyncConfig, SyncEngine, TransferConfig


def test_the_defaults_are_those_of_the_interface_that_it_replaces() -> None:
    config = SyncConfig()
    values = (config.sync_period, config.sync_timeout, config.sync_artifacts, config.sync_artifacts_on_checkpoint)
    assert values == (300, 1800, False, True)


def test_the_positional_order_is_kept() -> None:
    names = [field.name for field in dataclasses.fields(SyncConfig) if not field.kw_only]
    assert names == [
        "sync_period",
        "sync_timeout",
        "sync_artifacts",
        "sync_artifacts_on_checkpoint",
        "upload_dir",
        "syncer",
        "sync_on_checkpoint",
    ]
    assert list(inspect.signature(RunConfig).parameters) == [
        "name",
        "storage_path",
        "sync_config",
        "checkpoint_config",
        "transfer",
        "storage_options",
    ]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (SyncConfig, "sync_period", -1),
        (SyncConfig, "sync_period", math.nan),
        (SyncConfig, "sync_period", "300"),
        (SyncConfig, "sync_period", None),
        (SyncConfig, "sync_timeout", 0),
        (SyncConfig, "sync_timeout", -5),
        (SyncConfig, "sync_timeout", math.inf),
        (SyncConfig, "sync_timeout", True),
        (SyncConfig, "sync_artifacts", 1),
        (SyncConfig, "include", "*.log"),
        (SyncConfig, "symlinks", "maybe"),
        (CheckpointConfig, "num_to_keep", 0),
        (CheckpointConfig, "num_to_keep", 1.5),
        (CheckpointConfig, "checkpoint_score_order", "best"),
        (CheckpointConfig, "checkpoint_score_attribute", ""),
        (CheckpointConfig, "max_pending_checkpoints", 0),
        (TransferConfig, "max_concurrency", 0),
        (TransferConfig, "part_size", 100),
        (TransferConfig, "bandwidth_limit", 0),
        (TransferConfig, "memory_limit", 1),
        (TransferConfig, "stall_timeout", 0),
        (RunConfig, "name", "a/b"),
        (RunConfig, "name", ".."),
        (RunConfig, "name", ".asyncsync"),
        (RunConfig, "name", "\ud800"),
        (RunConfig, "storage_path", "relative/path"),
        (RunConfig, "storage_path", ""),
        (RunConfig, "sync_config", {}),
    ],
)
def test_invalid_settings_are_refused_by_name_and_value(kind: Any, field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**{field: value})
    assert field.split("_", maxsplit=1)[0] in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_seconds_may_be_a_timedelta() -> None:
    assert SyncConfig(timedelta(minutes=1), timedelta(hours=1)).period == 60
    assert SyncConfig(sync_timeout=timedelta(hours=1)).timeout == 3600


def test_zero_and_none_mean_unlimited() -> None:
    assert SyncConfig(sync_period=0).period == 0
    assert SyncConfig(sync_timeout=None).timeout is None


@pytest.mark.parametrize("field", ["upload_dir", "syncer", "sync_on_checkpoint"])
def test_a_deprecated_field_gives_one_warning_with_its_replacement(field: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = SyncConfig(**{field: None})  # type: ignore[arg-type]
    assert [item.category for item in caught] == [DeprecationWarning]
    assert field in str(caught[0].message)
    assert caught[0].filename == __file__
    assert config.sync_period == 300


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SyncConfig().sync_period = 1  # type: ignore[misc]


def test_the_default_place_and_name() -> None:
    run = RunConfig()
    assert run.storage_path == str(Path("~/asyncsync_results").expanduser())
    assert run.name is not None
    assert run.name.startswith("run_20")


def test_secrets_are_not_shown() -> None:
    assert "hunter2" not in repr(RunConfig(storage_options={"secret_key": "hunter2"}))


@pytest.mark.parametrize("options", [{"role": "boss"}, {"rank": 1, "world_size": 2}])
def test_an_engine_refuses_impossible_calls(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SyncEngine(RunConfig(), **options)


@pytest.mark.parametrize("local", ["store", "store/exp", "store/exp/inside", "."])
async def test_a_local_directory_that_is_the_store_is_refused(tmp_path: Path, local: str) -> None:
    run = RunConfig(name="exp", storage_path=tmp_path / "store")
    if local == ".":
        run = RunConfig(name="exp", storage_path=tmp_path / "exp")
    with pytest.raises(ConfigError, match="same place"):
        async with SyncEngine(run, local_dir=tmp_path / local):
            pass


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_pattern_that_gitignore_does_not_allow_is_refused(field: str) -> None:
    """Otherwise every sync would fail with it."""
    with pytest.raises(ConfigError, match=rf"SyncConfig\.{field}='!'"):
        SyncConfig(**{field: ["*.log", "!"]})
