"""The address of one training run, and the error for a framework that is not installed."""

from __future__ import annotations

import os
from dataclasses import dataclass

from asyncsync import ConfigError
from asyncsync.config import split_sas


@dataclass(frozen=True, slots=True)
class RunAddress:
    """``{storage_path}/{experiment}/{trial}``: a run is one trial of an experiment; others may stand beside it."""

    storage_path: str
    experiment: str
    trial: str

    @classmethod
    def of(cls, uri: str | os.PathLike[str]) -> RunAddress:
        """ConfigError unless ``uri`` names a store, an experiment and a run, such as ``s3://bucket/experiment/run``."""
        text = os.fspath(uri).rstrip("/")
        address = split_sas(text, None)[0]
        if address != text:
            raise ConfigError(
                f"the address {address!r} has a shared access signature: pass it as the storage option sas_token"
            )
        rest, _, trial = text.rpartition("/")
        storage, _, experiment = rest.rpartition("/")
        local = "://" not in text
        if not (trial and experiment and storage) or storage.endswith(":/") or (local and not os.path.isabs(text)):
            raise ConfigError(
                f"invalid address {text!r}: must be a store, an experiment and a run, such as "
                "s3://bucket/experiment/run or /shared/experiment/run"
            )
        return cls(storage, experiment, trial)

    @property
    def experiment_uri(self) -> str:
        """The address of the experiment."""
        return f"{self.storage_path}/{self.experiment}"


def missing(framework: str, extra: str, error: ImportError) -> ConfigError:
    """The error for an integration whose framework cannot be imported."""
    return ConfigError(
        f"this integration needs {framework}, which cannot be imported ({error}): pip install 'asyncsync[{extra}]'"
    )
