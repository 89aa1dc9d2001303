"""Addresses of file systems of fsspec, and connections to them. Blocking: for worker threads.

A file system of fsspec may not be used by two threads at once (the connection of an SFTP client, for example, mixes up
their responses). So each connection is a file system of its own, and serves one call at a time.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asyncsync.errors import AccessDeniedError, ConfigError, StoreError, UnavailableError

log = logging.getLogger("asyncsync")

SCHEME = "fsspec+"
NATIVE = {
    "s3": "s3://bucket/prefix",
    "s3a": "s3://bucket/prefix",
    "gs": "gs://bucket/prefix",
    "gcs": "gs://bucket/prefix",
    "az": "az://container/prefix",
    "abfs": "az://container/prefix",
    "abfss": "az://container/prefix",
    "adl": "az://container/prefix",
    "file": "an absolute path",
    "local": "an absolute path",
}
"""Protocols that asyncsync has a store of its own for, and its addresses."""
CONNECTIONS = 4
"""Connections of one store; further calls wait."""
IN_PROCESS = frozenset({"memory"})
"""Protocols whose files all instances share without a lock: one connection serves them."""
_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]*")


@dataclass(frozen=True, slots=True)
class FileSystemAddress:
    """A directory of a file system. ``options``: the arguments that open it; they may hold secrets."""

    protocol: str
    path: str
    shown: str
    """The address for messages."""
    options: Mapping[str, Any] = field(repr=False)

    @staticmethod
    def of(uri: str, options: Mapping[str, Any]) -> FileSystemAddress:
        """ConfigError for a protocol that has a store of its own, an unknown protocol, or a password in the address."""
        protocol, _, rest = uri[len(SCHEME) :].partition("://")
        protocol = protocol.lower()
        if protocol in NATIVE:
            raise ConfigError(
                f"a storage path {SCHEME}{protocol}:// is refused: asyncsync has a better store for it, use "
                f"{NATIVE[protocol]}"
            )
        server = rest.partition("/")[0]
        if ":" in server.rpartition("@")[0]:
            raise ConfigError(
                f"a storage path {SCHEME}{protocol}://... must not contain a password: pass it as "
                "storage_options, such as {'password': ...}"
            )
        found = _class_of(protocol)
        address = f"{protocol}://{rest}"
        given = {**_url_options(found, address), **options}
        missing = [name for name in _required(found) if not given.get(name)]
        if missing:
            raise ConfigError(
                f"a storage path {SCHEME}{protocol}:// needs {' and '.join(missing)}: add it to the storage options"
            )
        path = str(found._strip_protocol(address)).rstrip("/")  # noqa: SLF001  fsspec has no public name for it
        return FileSystemAddress(protocol, path, f"{SCHEME}{address}".rstrip("/"), given)

    @property
    def most_connections(self) -> int:
        """Connections that one store may have open."""
        return 1 if self.protocol in IN_PROCESS else CONNECTIONS

    def connect(self) -> Any:
        """Open a file system of its own. StoreError if that fails."""
        try:
            return _class_of(self.protocol)(**self.options, skip_instance_cache=True)
        except TypeError as error:
            raise ConfigError(f"{self.shown}: the storage options do not fit: {self.without_secrets(error)}") from None
        except Exception as error:  # noqa: BLE001  each file system raises errors of its own libraries
            _disconnect_half_made(error, _class_of(self.protocol))
            raise self.failure("connect to", "", error) from None

    def failure(self, verb: str, key: str, error: Exception) -> StoreError:
        """The error of asyncsync for an error of the file system. A missing file is not mapped here."""
        where = f"{verb} {self.shown}/{key}".rstrip("/")
        text = f"{where}: {self.without_secrets(error)}"
        names = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, PermissionError) or names & {"AuthenticationException", "PermissionDenied"}:
            return AccessDeniedError(text)
        if isinstance(error, NotImplementedError):
            return StoreError(f"{text}: this file system cannot do it")
        if isinstance(error, OSError | EOFError) or names & {"SSHException", "Error", "HTTPError", "TransportError"}:
            return UnavailableError(text)
        return StoreError(text)

    def without_secrets(self, error: BaseException) -> str:
        """The text of an error without the values of options: a library may repeat what it was given."""
        text = f"{type(error).__name__}: {error}"
        for name, value in self.options.items():
            if isinstance(value, str) and len(value) > 2 and name not in ("host", "username", "user"):
                text = text.replace(value, "***")
        return re.sub(r"//[^/\s@]*:[^/\s@]*@", "//***@", text)


def _class_of(protocol: str) -> Any:
    """The class of fsspec for a protocol. ConfigError if there is none, or its package is missing."""
    fsspec = importlib.import_module("fsspec")
    if not _PROTOCOL.fullmatch(protocol):
        raise ConfigError(f"a storage path {SCHEME}... names no protocol: use {SCHEME}sftp://host/path")
    try:
        return fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        raise ConfigError(f"fsspec knows no protocol {protocol!r}: {error}") from None
    except ImportError as error:
        raise ConfigError(f"fsspec needs another package for {protocol!r}: {error}") from None


def _url_options(found: Any, address: str) -> dict[str, Any]:
    """The arguments that the address itself gives, such as host, port and user."""
    if found._get_kwargs_from_urls.__qualname__.startswith("AbstractFileSystem"):  # noqa: SLF001
        return {}
    return dict(found._get_kwargs_from_urls(address))  # noqa: SLF001  fsspec has no public name for it


def _required(found: Any) -> list[str]:
    """Names of the arguments that a file system cannot be opened without."""
    parameters = list(inspect.signature(found.__init__).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [each.name for each in parameters if each.kind in named and each.default is inspect.Parameter.empty]


def disconnect(connection: Any) -> None:
    """Free sockets and threads of a file system. fsspec has no call for it: its parts have."""
    for name in ("close", "client", "session", "ftp"):
        part = getattr(connection, name, None)
        close = part if name == "close" else getattr(part, "close", None)
        if callable(close) and not inspect.iscoroutinefunction(close):
            try:
                close()
            except Exception as error:  # noqa: BLE001  it may be closed already
                log.debug("%s was not closed cleanly: %s", type(connection).__name__, type(error).__name__)
            return


def _disconnect_half_made(error: Exception, kind: type) -> None:
    """A file system whose login was refused has a socket and a thread, and only the failed call still knows it."""
    frame = error.__traceback__
    while frame is not None:
        half_made = frame.tb_frame.f_locals.get("self")
        if isinstance(half_made, kind):
            return disconnect(half_made)
        frame = frame.tb_next
    return None
