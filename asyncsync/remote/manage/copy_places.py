"""Private: the two ends of a copy, and whether one store holds both."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import unquote

from asyncsync.aio.threads import in_thread, worker_threads
from asyncsync.config import TransferConfig
from asyncsync.errors import ConfigError
from asyncsync.remote.access import open_for_reading
from asyncsync.stores.guard.guarded import GuardedView


@dataclass(frozen=True, slots=True)
class Places:
    """The two ends. ``server_side``: one store holds both, so that it can copy itself."""

    source: GuardedView
    target: GuardedView
    source_prefix: str = ""
    target_prefix: str = ""
    server_side: bool = False

    def source_uri(self, path: str) -> str:
        return f"{self.source.uri.rstrip('/')}/{self.source_prefix}{path}"

    def target_uri(self, path: str = "") -> str:
        return f"{self.target.uri.rstrip('/')}/{self.target_prefix}{path}"


@asynccontextmanager
async def opened(
    here: str,
    there: str,
    transfer: TransferConfig,
    options: Mapping[str, object] | None,
    target_options: Mapping[str, object] | None,
) -> AsyncIterator[Places]:
    root, source_prefix = _bucket(here)
    other_root, target_prefix = _bucket(there)
    async with AsyncExitStack() as stack:
        if root and root == other_root and (options or {}) == (target_options or {}):
            store = await stack.enter_async_context(open_for_reading(root, transfer, options))
            yield Places(store, store, source_prefix, target_prefix, server_side=True)
            return
        first = await stack.enter_async_context(open_for_reading(here, transfer, options))
        yield Places(first, await stack.enter_async_context(open_for_reading(there, transfer, target_options)))


def _bucket(uri: str) -> tuple[str, str]:
    """The bucket of a URI and the prefix in it; empty for a directory."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return "", ""
    bucket, _, prefix = rest.partition("/")
    if scheme.lower() == "https":  # Azure: the container follows the host
        container, _, prefix = prefix.partition("/")
        bucket = f"{bucket}/{container}"
    return f"{scheme}://{bucket}", f"{prefix}/" if prefix else ""


async def check_apart(here: str, there: str, transfer: TransferConfig) -> None:
    """ConfigError if one address contains the other."""
    with worker_threads(transfer.threads):
        one, other = await in_thread(lambda: (_place(here), _place(there)))
    if _is_above(one, other) or _is_above(other, one):
        raise ConfigError(f"cannot copy {here} to {there}: one contains the other. Choose another target")


def _place(uri: str) -> str:
    """An address for comparisons: of a directory, the only path without links. Blocking."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return os.path.realpath(os.path.expanduser(uri))
    return os.path.realpath(f"/{unquote(rest.partition('/')[2])}") if scheme.lower() == "file" else uri


def _is_above(above: str, below: str) -> bool:
    return below == above or below.startswith(f"{above}/")
