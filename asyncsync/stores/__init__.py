"""The stores and their registry: :func:`open_store` turns a URI into a :class:`~asyncsync.stores.base.Store`.

May import: ``disk``, ``planning``, ``aio``. Begin with ``base.py``, the interface that every store implements.
``wrapped.py`` puts a layer around a store; ``guard`` is such a layer, with retries, limits and leases. ``s3``, ``gcs``,
``azure``, ``local`` and ``fsspec`` are the stores; ``http`` has the HTTP client that they share. To add a store, see
:func:`register_scheme`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from asyncsync.config import TransferConfig
from asyncsync.errors import ConfigError
from asyncsync.stores.base import Store
from asyncsync.stores.options import ConnectionLimits

__all__ = ["StoreFactory", "known_schemes", "open_store", "register_scheme"]

StoreFactory = Callable[[str, Mapping[str, Any], TransferConfig], Store]
"""Takes the whole URI, the storage options and the transfer settings. Plain call, no I/O."""

_QUERY = re.compile(r"\?([A-Za-z_]{1,40}=.*)", re.DOTALL)
"""A question mark may be part of a name; one that ``name=value`` follows begins a query."""


@dataclass(frozen=True, slots=True)
class _Scheme:
    """An entry of the registry; the fields are the arguments of :func:`register_scheme`."""

    name: str
    factory: StoreFactory
    extra: str | None
    needs: tuple[str, ...]

    def check_packages(self) -> None:
        """ConfigError for a missing package. Packages are not imported here: some are needed later or never."""
        for package in self.needs:
            try:
                found = sys.modules.get(package) is not None or importlib.util.find_spec(package) is not None
            except ModuleNotFoundError:  # a package above it is missing
                found = False
            if not found:
                install = f"asyncsync[{self.extra}]" if self.extra else package.partition(".")[0]
                raise ConfigError(f"a storage path {self.name}://... needs {package}: pip install '{install}'")


_schemes: dict[str, _Scheme] = {}


def open_store(
    uri: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None, transfer: TransferConfig | None = None
) -> Store:
    """The store behind ``uri``. It opens no file and no connection: its ``async with`` does.

    Known are an absolute path or ``file:///path``, ``s3://bucket/prefix`` (``s3a://`` and ``s3n://`` are the same),
    ``gs://bucket/prefix`` (``gcs://`` too), ``az://container/prefix``
    (``abfss://container@account.dfs.core.windows.net/prefix`` and ``https://account.blob.core.windows.net/container/
    prefix`` too), and schemes added by :func:`register_scheme`. A directory has no options
    and ignores ``options``, so that one configuration serves every store. Raises ConfigError for anything
    else: also for a query, a user or a password in the address, and for a missing package.
    """
    text = os.fspath(uri)
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"storage path {uri!r} is empty or not text; {_known_text()}")
    _check_encodable(text)
    name, separator, _ = text.partition("://")
    if not separator:
        return _open_directory(text, text)
    plus = name.lower().partition("+")
    scheme = _schemes.get(name.lower()) or _schemes.get(plus[0] + plus[1])
    if scheme is None:
        raise ConfigError(f"storage path {_without_user(text)} has the unknown scheme {name!r}; {_known_text()}")
    scheme.check_packages()
    return scheme.factory(text, dict(options or {}), transfer or TransferConfig())


def _check_encodable(text: str) -> None:
    """ConfigError for a text that is no name in any store: it holds half of a surrogate pair."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ConfigError(f"storage path {text!a} has a character that cannot be encoded: {error.reason}") from error


def register_scheme(scheme: str, factory: StoreFactory, *, extra: str | None = None, needs: Sequence[str] = ()) -> None:
    """Make :func:`open_store` pass URIs of ``scheme://`` to ``factory``, replacing a factory of that scheme::

        register_scheme("ram", lambda uri, options, transfer: RamStore(uri), needs=("ramdisk",))

    A scheme that ends in ``+`` takes all addresses ``scheme+ANYTHING://``. ``needs`` names importable packages; opening
    a URI raises ConfigError if one is missing. The message names the command that installs it: the ``extra`` of
    asyncsync, or the package itself.
    """
    if not scheme.isascii() or not scheme.replace("-", "").replace("+", "").isalnum():
        raise ConfigError(f"scheme {scheme!r} must be ASCII letters, digits, '-' or '+'")
    _schemes[scheme.lower()] = _Scheme(scheme.lower(), factory, extra, tuple(needs))


def known_schemes() -> tuple[str, ...]:
    """All registered schemes, sorted."""
    return tuple(sorted(_schemes))


def _known_text() -> str:
    return f"known are an absolute path and {', '.join(map(_shown, known_schemes()))}"


def _shown(scheme: str) -> str:
    return f"{scheme}PROTOCOL://" if scheme.endswith("+") else f"{scheme}://"


# Directories


def _open_directory(text: str, path: str) -> Store:
    from asyncsync.stores.local.store import LocalStore

    if "\0" in path:
        raise ConfigError(f"storage path {text!r} contains a NUL character")
    full = Path(path).expanduser() if path.startswith("~") else Path(path)
    if not full.is_absolute():
        raise ConfigError(f"storage path {text!r} is relative; {_known_text()}")
    return LocalStore(full)


def _open_file(uri: str, options: Mapping[str, Any], transfer: TransferConfig) -> Store:
    del options, transfer
    host, slash, path = uri.partition("://")[2].partition("/")
    if host not in ("", "localhost") or not slash:
        raise ConfigError(f"storage path {uri!r} must be file:///absolute/path; {_known_text()}")
    return _open_directory(uri, "/" + unquote(path))


# Buckets


def _bucket_store(scheme: str, module: str, name: str) -> StoreFactory:
    """A factory for the class ``name`` of ``module``, which is imported when the first URI is opened.

    The class takes bucket, prefix, ``options`` and ``limits``, a ConnectionLimits.
    """

    def open_bucket(uri: str, options: Mapping[str, Any], transfer: TransferConfig) -> Store:
        bucket, prefix = _bucket_and_prefix(uri, scheme)
        store: Store = getattr(importlib.import_module(module), name)(
            bucket,
            prefix.strip("/"),
            options=options,
            limits=ConnectionLimits.of(transfer),
        )
        return store

    return open_bucket


def _open_azure(uri: str, options: Mapping[str, Any], transfer: TransferConfig) -> Store:
    from asyncsync.stores.azure.options import location_of
    from asyncsync.stores.azure.store import AzureStore

    return AzureStore(location_of(uri), options=options, limits=ConnectionLimits.of(transfer))


def _open_fsspec(uri: str, options: Mapping[str, Any], transfer: TransferConfig) -> Store:
    from asyncsync.stores.fsspec.store import FsspecStore

    del transfer
    return FsspecStore(uri, options=options)


def _bucket_and_prefix(uri: str, scheme: str) -> tuple[str, str]:
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):  # a secret may contain slashes
        raise ConfigError(
            f"a storage path {scheme}://... must not contain user, password or port: pass keys and the endpoint as "
            "storage_options, or in the environment"
        )
    if not bucket:
        raise ConfigError(f"storage path {uri!r} has no bucket; it must be {scheme}://bucket/prefix")
    query = _QUERY.search(uri)
    if query is not None:
        raise ConfigError(
            f"storage path {uri[: query.start()]!r} has a query, which cannot be part of a name: pass "
            f"storage_options={_as_options(query[1])} instead"
        )
    return bucket, prefix


def _as_options(query: str) -> str:
    """The storage options that correspond to a query of pyarrow. Only values that cannot be secret are shown."""
    fields = dict(parse_qsl(query.partition("/")[0] if "//" not in query else query, keep_blank_values=True))
    options = {"region": fields["region"]} if fields.get("region") else {}
    endpoint = fields.get("endpoint_override", "")
    if endpoint and "@" not in endpoint:
        options["endpoint_url"] = endpoint if "://" in endpoint else f"{fields.get('scheme') or 'https'}://{endpoint}"
    return repr(options) if options else "{...}"


def _without_user(uri: str) -> str:
    """The URI for messages, without a user and password."""
    scheme, separator, rest = uri.partition("://")
    return repr(f"{scheme}{separator}***@{rest.rpartition('@')[2]}" if "@" in rest else uri)


register_scheme("file", _open_file)
for _name in ("s3", "s3a", "s3n"):
    register_scheme(
        _name,
        _bucket_store("s3", "asyncsync.stores.s3.store", "S3Store"),
        extra="s3",
        needs=("aiobotocore", "aiohttp", "aiohappyeyeballs"),
    )
for _name in ("gs", "gcs"):
    register_scheme(
        _name,
        _bucket_store("gs", "asyncsync.stores.gcs.store", "GcsStore"),
        extra="gcs",
        needs=("aiohttp", "gcloud.aio.auth"),
    )
for _name in ("az", "abfs", "abfss", "https"):
    register_scheme(_name, _open_azure, extra="azure", needs=("aiohappyeyeballs", "awscrt"))
register_scheme("fsspec+", _open_fsspec, extra="fsspec", needs=("fsspec",))
