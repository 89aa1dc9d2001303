"""Where the data of the page comes from: the experiment at an address, and its engines on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from asyncsync import Experiment, ExperimentSummary, RunningEngine, TransferConfig, TrialView, contents
from asyncsync.errors import NotFoundError

MOST_NAMED = 10


async def open_experiment(
    uri: str,
    storage_options: Mapping[str, object] | None,
    transfer: TransferConfig,
    on_partial: Callable[[Experiment], None] | None = None,
) -> Experiment:
    """``Experiment.open``. NotFoundError names the experiments below a storage path, and the one of a trial."""
    try:
        return await Experiment.open(uri, storage_options=storage_options, transfer=transfer, on_partial=on_partial)
    except NotFoundError as error:
        try:
            found = await contents(uri, storage_options=storage_options, transfer=transfer)
        except NotFoundError:
            raise error from None
        raise NotFoundError(_advice(uri.rstrip("/"), found) or str(error)) from error


def _advice(uri: str, found: object) -> str:
    """Which address to give instead; empty if nothing is known."""
    if isinstance(found, TrialView):
        return f"{uri} is a trial: give the address of its experiment, {uri.rpartition('/')[0]}"
    if not isinstance(found, list) or not all(isinstance(item, ExperimentSummary) for item in found):
        return ""
    names = ", ".join(item.name for item in found[:MOST_NAMED]) + (", ..." if len(found) > MOST_NAMED else "")
    return (
        f"{uri} holds experiments, and is none itself: give the address of one of them, {uri}/NAME with NAME: {names}"
    )


def engines_of(uri: str, engines: Iterable[RunningEngine]) -> list[RunningEngine]:
    """Those whose experiment is at ``uri``. Two addresses of one directory are equal."""
    place = _place(uri)
    return [engine for engine in engines if _place(engine.uri) == place]


def _place(uri: str) -> str:
    path = uri.removeprefix("file://")
    return os.path.realpath(path) if path.startswith("/") else uri.rstrip("/")
