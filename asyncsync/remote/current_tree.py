"""Private: the download of the tree that the newest manifest of a prefix names, while a sync may be replacing it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

from asyncsync.aio.threads import in_thread
from asyncsync.errors import AsyncsyncError, ConfigError, PreconditionError, SyncFailedError
from asyncsync.events import Progress
from asyncsync.planning.manifest import Manifest
from asyncsync.remote.selection import EVERYTHING, Selection
from asyncsync.stores.base import Store
from asyncsync.stores.read import uri_of
from asyncsync.sync.download.exact_target import ExactTarget, remove_files
from asyncsync.sync.download.ranged_file import ReplacedError
from asyncsync.sync.download.tree_download import DownloadReport, download_tree
from asyncsync.sync.records.manifests import NoManifestError, find_manifest, read_manifest

DOWNLOAD_ATTEMPTS = 4
"""Downloads of a tree that keeps changing, before the last error is raised."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt if there is no new manifest yet; doubled for each further one."""
PATHS_IN_MESSAGE = 5


@asynccontextmanager
async def open_exact_target(target: str | os.PathLike[str], selection: Selection) -> AsyncIterator[ExactTarget | None]:
    """The target of an exact download, or None if ``selection`` is not exact.

    ConfigError if clearing ``target`` would be dangerous, before anything changes. If the block fails, files that were
    moved out of the way of a download return to their place, unless a downloaded file has taken it.
    """
    if not selection.exact:
        yield None
        return
    exact = ExactTarget(target)
    await _change(target, exact.check)
    try:
        yield exact
    except BaseException:  # a cancel too: a few renames, then it is re-raised
        with suppress(OSError):
            exact.put_back()
        raise


async def remove_others(exact: ExactTarget, target: str | os.PathLike[str], named: set[str]) -> int:
    """Remove everything from ``target`` except the files ``named``. Returns the number of removed files;
    SyncFailedError if one cannot be removed."""
    return await _change(target, partial(exact.clear, named))


async def _change(target: str | os.PathLike[str], work: Callable[[], int | None]) -> int:
    """Run ``work`` on ``target`` in a thread; an OSError becomes a SyncFailedError."""
    try:
        return await in_thread(work) or 0
    except OSError as error:
        where = str(error.filename or os.fspath(target))
        raise SyncFailedError(f"{os.fspath(target)} cannot be made exact: {error}", {where: error}) from error


async def download_selection(
    store: Store,
    prefix: str,
    target: str | os.PathLike[str],
    selection: Selection,
    *,
    concurrency: int,
    on_progress: Callable[[Progress], None] | None = None,
    landed: list[str] | None = None,
) -> DownloadReport:
    """:func:`download_current`; then, if ``selection`` is exact, remove everything else from ``target``."""
    async with open_exact_target(target, selection) as exact:
        manifest, report = await download_current(
            store,
            prefix,
            target,
            selection,
            concurrency=concurrency,
            on_progress=on_progress,
            landed=landed,
            exact=exact,
        )
        if exact is None:
            return report
        return replace(report, files_removed=await remove_others(exact, target, set(manifest.files)))


async def download_current(
    store: Store,
    prefix: str,
    target: str | os.PathLike[str],
    selection: Selection = EVERYTHING,
    *,
    concurrency: int,
    on_progress: Callable[[Progress], None] | None = None,
    landed: list[str] | None = None,
    exact: ExactTarget | None = None,
    wait_for_manifest: bool = False,
) -> tuple[Manifest, DownloadReport]:
    """Download the tree that the current manifest of ``prefix`` names. Returns the selected part of that manifest.

    If the download fails and the manifest has been replaced since, the new one is downloaded instead: all files of
    ``target`` belong to one manifest, and files that only the earlier one named are removed. If the manifest has been
    deleted, everything that was downloaded is removed.

    Args:
        landed: filled with the paths of files that were put in place, also after a failure.
        exact: the exact target that contains ``prefix``.
        wait_for_manifest: if objects are newer than their manifest, a sync has sent files and not yet the manifest that
            names them: wait for it and try again.

    Raises:
        NoManifestError: ``prefix`` has no manifest.
        ConfigError: ``selection`` matches no file.
        SyncFailedError: and the other errors of :func:`download_tree`.
    """
    put: list[str] = []
    attempt = 0
    try:
        while True:
            stored, manifest = await _read_selected(store, prefix, selection)
            below = prefix + selection.below
            try:
                if exact is not None:
                    await _change(target, partial(exact.make_room, [prefix + path for path in manifest.files]))
                report = await download_tree(
                    store, below, manifest, target, concurrency=concurrency, on_progress=on_progress, landed=put
                )
            except (AsyncsyncError, OSError) as error:
                attempt += 1
                if (now := await _manifest_now(store, prefix, stored)) is None:
                    await in_thread(remove_files, os.fspath(target), put)
                    raise _deleted(store, prefix) from error
                pause = _pause(error, attempt, changed=now != stored, wait_for_manifest=wait_for_manifest)
                if pause is None:
                    raise
                await asyncio.sleep(pause)
            else:
                if attempt:
                    await in_thread(remove_files, os.fspath(target), set(put) - manifest.files.keys())
                return manifest, report
    finally:
        if landed is not None:
            landed.extend(put)


async def _read_selected(store: Store, prefix: str, selection: Selection) -> tuple[Manifest, Manifest]:
    """The current manifest, and its selected part. NoMatchError if no file of it is selected."""
    stored = await read_manifest(store, prefix)
    manifest = selection.pick(stored, prefix)
    if stored.files and not manifest.files:
        raise _no_match(store, prefix, selection, stored)
    return stored, manifest


def _pause(error: Exception, attempt: int, *, changed: bool, wait_for_manifest: bool) -> float | None:
    """Seconds before the next attempt; None if another attempt makes no sense."""
    if attempt == DOWNLOAD_ATTEMPTS:
        return None
    if wait_for_manifest and _is_newer_than_manifest(error):
        return FIRST_PAUSE * 2.0 ** (attempt - 1)
    return 0.0 if changed else None


class NoMatchError(ConfigError):
    """The patterns select no file of a tree."""


def _no_match(store: Store, prefix: str, selection: Selection, manifest: Manifest) -> NoMatchError:
    names = sorted(manifest.files)
    more = f" and {len(names) - PATHS_IN_MESSAGE} more" if len(names) > PATHS_IN_MESSAGE else ""
    unless = f", exclude={list(selection.exclude)}" if selection.exclude else ""
    return NoMatchError(
        f"include={list(selection.include)}{unless} matches no file of "
        f"{uri_of(store, prefix + selection.below).rstrip('/')}; it has {', '.join(names[:PATHS_IN_MESSAGE])}{more}"
    )


async def _manifest_now(store: Store, prefix: str, before: Manifest) -> Manifest | None:
    """The current manifest, or None if there is none; ``before`` if it cannot be read."""
    try:
        return await find_manifest(store, prefix)
    except AsyncsyncError:
        return before


def _deleted(store: Store, prefix: str) -> NoManifestError:
    return NoManifestError(
        f"{uri_of(store, prefix).rstrip('/')} was deleted during the download: its manifest is missing now; the "
        "downloaded files were removed"
    )


def _is_newer_than_manifest(error: Exception) -> bool:
    """Whether objects are newer than the manifest that names them: a sync writes its manifest after its files."""
    if isinstance(error, SyncFailedError):
        return any(isinstance(cause, PreconditionError | ReplacedError) for cause in error.failures.values())
    return isinstance(error, ReplacedError)
