"""The stores and their registry: :func:`open_store` turns a URI into a :class:`~asyncsync.stores.base.Store`.

May import: ``disk``, ``planning``, ``aio``. Begin with ``base.py``, the interface that every store implements.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from asyncsync.config import TransferConfig
from asyncsync.errors import ConfigError
from asyncsync.stores.base import Store

_QUERY = re.compile(r"\?([A-Za-z_]{1,40}=.*)", re.DOTALL)
"""A question mark may be part of a name; one that ``name=value`` follows is not."""
StoreFactory = Callable[[str, Mapping[str, Any], TransferConfig], Store]
"""Takes the whole URI, the storage options and the transfer settings; plain call, no I/O."""


def open_store(
    uri: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None, transfer: TransferConfig | None = None
) -> Store:
    """The store behind ``uri``. Opens no file and no connection: that is the ``async with`` of the store.

    Known are an absolute path or ``file:///path``, ``s3://bucket/prefix`` (``s3a://`` and ``s3n://`` are the same),
    ``gs://bucket/prefix`` (``gcs://`` too), and schemes added by :func:`register_scheme`. ``options`` go to stores that
    know any (endpoint, region, ...); a directory has none and ignores them, so that one configuration serves both.
    Raises ConfigError for anything else: also for a query, a user or a password in the address.
    """
    text = os.fspath(uri)
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"storage path {uri!r} is empty or not text; {_known()}")
    scheme, mark, _ = text.partition("://")
    if not mark:
        return _open_local(text, text)
    factory = _factories.get(scheme.lower())
    if factory is None:
        raise ConfigError(f"storage path {_shown(text)} has the unknown scheme {scheme!r}; {_known()}")
    return factory(text, dict(options or {}), transfer or TransferConfig())


def register_scheme(scheme: str, factory: StoreFactory) -> None:
    """Make ``open_store`` hand URIs of ``scheme://`` to ``factory``; a scheme that is known already is replaced."""
    if not scheme.isascii() or not scheme.replace("-", "").replace("+", "").isalnum():
        raise ConfigError(f"scheme {scheme!r} must be ASCII letters, digits, '-' or '+'")
    _factories[scheme.lower()] = factory


def _known() -> str:
    schemes = ", ".join(f"{name}://" for name in sorted(_factories))
    return f"known are an absolute path and {schemes}"


def _open_local(text: str, path: str) -> Store:
    from asyncsync.stores.local.store import LocalStore

    if "\0" in path:
        raise ConfigError(f"storage path {text!r} contains a NUL character")
    full = Path(path).expanduser() if path.startswith("~") else Path(path)
    if not full.is_absolute():
        raise ConfigError(f"storage path {text!r} is relative; {_known()}")
    return LocalStore(full)


def _open_file(uri: str, options: Mapping[str, Any], transfer: TransferConfig) -> Store:
    del options, transfer
    host, slash, path = uri.partition("://")[2].partition("/")
    if host not in ("", "localhost") or not slash:
        raise ConfigError(f"storage path {uri!r} must be file:///absolute/path; {_known()}")
    return _open_local(uri, "/" + unquote(path))


def _open_s3(uri: str, options: Mapping[str, Any], transfer: TransferConfig) -> Store:
    bucket, prefix = _bucket_and_prefix(uri, "s3")
    _need(uri, "s3", "aiobotocore", "aiohttp", "aiohappyeyeballs")
    from asyncsync.stores.s3.store import S3Store

    return S3Store(
        bucket,
        prefix.strip("/"),
        options=options,
        stall_timeout=_seconds(transfer.stall_timeout),
        connect_timeout=_seconds(transfer.connect_timeout),
        max_connections=transfer.max_concurrency,
    )


def _shown(uri: str) -> str:
    """For messages: without what may be a password."""
    scheme, mark, rest = uri.partition("://")
    return repr(f"{scheme}{mark}***@{rest.rpartition('@')[2]}" if "@" in rest else uri)


def _bucket_and_prefix(uri: str, scheme: str) -> tuple[str, str]:
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):  # a secret may hold slashes
        raise ConfigError(
            f"a storage path {scheme}://... must not hold user, password or port: give keys and the endpoint as "
            "storage_options, or in the environment"
        )
    if not bucket:
        raise ConfigError(f"storage path {uri!r} has no bucket; it must be {scheme}://bucket/prefix")
    query = _QUERY.search(uri)
    if query is not None:
        raise ConfigError(
            f"storage path {uri[: query.start()]!r} has a query, which is not part of a name: give "
            f"storage_options={_as_options(query[1])} instead"
        )
    return bucket, prefix


def _as_options(query: str) -> str:
    """The storage options that say the same as a query of pyarrow's. Only what cannot be secret is shown."""
    said = dict(parse_qsl(query.partition("/")[0] if "//" not in query else query, keep_blank_values=True))
    options = {"region": said["region"]} if said.get("region") else {}
    endpoint = said.get("endpoint_override", "")
    if endpoint and "@" not in endpoint:
        options["endpoint_url"] = endpoint if "://" in endpoint else f"{said.get('scheme') or 'https'}://{endpoint}"
    return repr(options) if options else "{...}"


def _need(uri: str, extra: str, *modules: str) -> None:
    """ConfigError unless the packages of an extra are there. They are not imported: some are needed later or never."""
    for name in modules:
        try:
            there = sys.modules.get(name) is not None or importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # of a package above it
            there = False
        if not there:
            raise ConfigError(f"{uri!r} needs {name}: pip install 'asyncsync[{extra}]'")


def _seconds(duration: float | timedelta) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


def _open_gcs(uri: str, options: Mapping[str, Any], transfer: TransferConfig) -> Store:
    bucket, prefix = _bucket_and_prefix(uri, "gs")
    _need(uri, "gcs", "aiohttp", "gcloud.aio.auth")
    from asyncsync.stores.gcs.store import GcsStore

    return GcsStore(
        bucket,
        prefix.strip("/"),
        options=options,
        stall_timeout=_seconds(transfer.stall_timeout),
        connect_timeout=_seconds(transfer.connect_timeout),
        max_connections=transfer.max_concurrency,
    )


_factories: dict[str, StoreFactory] = {
    "file": _open_file, "s3": _open_s3, "s3a": _open_s3, "s3n": _open_s3, "gs": _open_gcs, "gcs": _open_gcs,
}  # fmt: skip

__all__ = ["StoreFactory", "open_store", "register_scheme"]
