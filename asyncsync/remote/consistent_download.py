"""A tree as its newest manifest says, while somebody may be replacing it; all of it or some files, exactly or not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import pathspec

from asyncsync.aio.threads import in_thread
from asyncsync.errors import AsyncsyncError, ConfigError, PreconditionError, SyncFailedError
from asyncsync.events import Progress
from asyncsync.planning.manifest import Manifest
from asyncsync.stores.base import Store
from asyncsync.sync.download.exact_target import ExactTarget, remove_files
from asyncsync.sync.download.ranged_file import ReplacedError
from asyncsync.sync.download.tree_download import DownloadReport, download_tree
from asyncsync.sync.records.manifests import NoManifestError, find_manifest, read_manifest

TRIES = 4
"""How often a tree is read anew that somebody is changing."""
PAUSE = 0.5
"""Seconds before the first of them, while there is no new manifest yet; doubled each time."""
SHOWN = 5
"""How many paths an error message names."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files are downloaded, and whether ``target`` shall hold nothing else."""

    include: tuple[str, ...] = ()
    """gitignore patterns, or paths; none: all files."""
    exact: bool = False

    @classmethod
    def of(cls, include: str | Sequence[str] | None = None, *, exact: bool = False) -> Selection:
        """ConfigError for what is not usable."""
        patterns = () if include is None else (include,) if isinstance(include, str) else tuple(include)
        if include is not None and not all(isinstance(item, str) and item.strip() for item in patterns or [""]):
            raise ConfigError(f"include={include!r} is not usable: it must be gitignore patterns, such as ['*.bin']")
        if patterns and exact:
            raise ConfigError("exact=True and include are refused together: what was not included would be removed")
        selection = cls(patterns, exact)
        try:
            selection.pick(Manifest())
        except ValueError as error:
            raise ConfigError(f"include={include!r} is not usable: {error}") from error
        return selection

    def pick(self, manifest: Manifest) -> Manifest:
        """The files of ``manifest`` that count."""
        if not self.include:
            return manifest
        spec = pathspec.GitIgnoreSpec.from_lines(self.include)
        files = {path: entry for path, entry in manifest.files.items() if spec.match_file(path)}
        return Manifest(files, manifest.info)


ALL = Selection()


@asynccontextmanager
async def exactly(target: str | os.PathLike[str], selection: Selection) -> AsyncIterator[ExactTarget | None]:
    """The target of downloads inside, to be cleared when they are done; None if nothing is to be removed.

    ConfigError if that would be dangerous, before anything is touched. After a failure what was in the way of a
    download is where it was, unless a file has taken its name.
    """
    if not selection.exact:
        yield None
        return
    room = ExactTarget(target)
    await _told(target, room.check)
    try:
        yield room
    except BaseException:  # a cancel too: a few renames, then on its way
        with suppress(OSError):
            room.put_back()
        raise


async def clear(room: ExactTarget, target: str | os.PathLike[str], named: set[str]) -> int:
    """Remove what is not ``named``; how many files. SyncFailedError."""
    return await _told(target, partial(room.clear, named))


async def _told(target: str | os.PathLike[str], work: Callable[[], int | None]) -> int:
    try:
        return await in_thread(work) or 0
    except OSError as error:
        where = str(error.filename or os.fspath(target))
        raise SyncFailedError(f"{os.fspath(target)} cannot be made exact: {error}", {where: error}) from error


async def download_exactly(
    store: Store, prefix: str, target: str | os.PathLike[str], selection: Selection, *, concurrency: int,
    on_progress: Callable[[Progress], None] | None = None, landed: list[str] | None = None,
) -> DownloadReport:  # fmt: skip
    """:func:`download_current`, and then what else lies in ``target`` goes if ``selection`` says so."""
    async with exactly(target, selection) as room:
        manifest, report = await download_current(
            store, prefix, target, selection, concurrency=concurrency, on_progress=on_progress, landed=landed, room=room
        )
        if room is None:
            return report
        return replace(report, files_removed=await clear(room, target, set(manifest.files)))


async def download_current(
    store: Store,
    prefix: str,
    target: str | os.PathLike[str],
    selection: Selection = ALL,
    *,
    concurrency: int,
    on_progress: Callable[[Progress], None] | None = None,
    landed: list[str] | None = None,
    room: ExactTarget | None = None,
    patient: bool = False,
) -> tuple[Manifest, DownloadReport]:
    """:func:`download_tree` by the manifest that is there; what counts of it is returned too.

    If that fails and there is another manifest by then, that one counts: all files of ``target`` are of one manifest,
    and what only an earlier one named goes. If there is none any more, all that was fetched goes. ``room``: the exact
    target that ``prefix`` lies in. ``patient``: objects newer than their manifest are waited for, a sync is between its
    files and its manifest.

    NoManifestError, ConfigError if nothing was selected; the rest as for :func:`download_tree`.
    """
    put: list[str] = []
    attempt = 0
    try:
        while True:
            whole = await read_manifest(store, prefix)
            manifest = selection.pick(whole)
            if whole.files and not manifest.files:
                raise _nothing_selected(store, prefix, selection, whole)
            try:
                if room is not None:
                    await _told(target, partial(room.make_room, [prefix + path for path in manifest.files]))
                report = await download_tree(
                    store, prefix, manifest, target, concurrency=concurrency, on_progress=on_progress, landed=put
                )
            except (AsyncsyncError, OSError) as error:
                attempt += 1
                waits = patient and _is_moving(error)
                now = await _manifest_now(store, prefix, whole)
                if now is None:
                    await in_thread(remove_files, os.fspath(target), put)
                    raise _deleted(store, prefix) from error
                if attempt == TRIES or not (waits or now != whole):
                    raise
                if waits:
                    await asyncio.sleep(PAUSE * 2 ** (attempt - 1))
            else:
                if attempt:
                    await in_thread(remove_files, os.fspath(target), set(put) - manifest.files.keys())
                return manifest, report
    finally:
        if landed is not None:
            landed.extend(put)


def _nothing_selected(store: Store, prefix: str, selection: Selection, manifest: Manifest) -> ConfigError:
    names = sorted(manifest.files)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ConfigError(
        f"include={list(selection.include)} matches no file of {store.uri.rstrip('/')}/{prefix}".rstrip("/")
        + f"; it has {', '.join(names[:SHOWN])}{more}"
    )


async def _manifest_now(store: Store, prefix: str, before: Manifest) -> Manifest | None:
    """The manifest that is there now, or None; one that cannot be read changes nothing."""
    try:
        return await find_manifest(store, prefix)
    except AsyncsyncError:
        return before


def _deleted(store: Store, prefix: str) -> NoManifestError:
    where = f"{store.uri.rstrip('/')}/{prefix}".rstrip("/")
    return NoManifestError(
        f"{where} was deleted while it was downloaded: it has no manifest now; what was fetched of it was removed"
    )


def _is_moving(error: Exception) -> bool:
    """Objects are newer than their manifest: a sync is between its files and its manifest."""
    if isinstance(error, SyncFailedError):
        return any(isinstance(cause, PreconditionError | ReplacedError) for cause in error.failures.values())
    return isinstance(error, ReplacedError)
