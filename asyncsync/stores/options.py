"""The base of the ``storage_options`` of every store: parses, checks and shows them; and the limits of connections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, ClassVar, Literal, Self, TypeAlias

from asyncsync.aio.descriptors import within_descriptors
from asyncsync.config import TransferConfig
from asyncsync.errors import ConfigError

ObjectKind: TypeAlias = Literal["data", "report", "manifest", "document"]
"""The kind of an object, for options that do not apply to all: a file of the user, a file that grows with each report,
a manifest, or another document of asyncsync (a record, a probe)."""
_REPORT_FILES = frozenset({"result.json", "progress.csv", "params.json"})


def kind_of(key: str) -> ObjectKind:
    """The kind of an object, from its key in the store."""
    if not key.startswith(".asyncsync/") and "/.asyncsync/" not in key:
        return "report" if key.rpartition("/")[2] in _REPORT_FILES else "data"
    return "manifest" if key.endswith(".asyncsync/manifest.json") else "document"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StoreOptions:
    """Options of one kind of store, one field each. Subclasses raise ConfigError in ``__post_init__`` for values that
    contradict each other."""

    STORE: ClassVar[str]
    """Name of the store in messages."""
    SECRETS: ClassVar[frozenset[str]]
    """Names of options whose values are never shown."""
    FLAGS: ClassVar[frozenset[str]] = frozenset({"anonymous"})
    """Names of options that are True or False."""
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Allowed values of options that have few."""
    FORMS: ClassVar[Mapping[str, Callable[[object], Any]]] = {}
    """Checks of options that have a form of their own (see :mod:`asyncsync.stores.option_values`). Each returns the
    value in its normal form, or raises ValueError."""

    def __repr__(self) -> str:
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name not in self.SECRETS)
        return f"{type(self).__name__}({', '.join(shown)})"

    @classmethod
    def parse(cls, options: Mapping[str, object]) -> Self:
        """ConfigError for an unknown name or an invalid value."""
        known = {f.name for f in fields(cls)}
        found: dict[str, Any] = {}
        for name, value in options.items():
            if name not in known:
                raise ConfigError(f"unknown storage option {name!r}; {cls.STORE} has {', '.join(sorted(known))}")
            if value is not None:
                found[name] = cls._checked(name, value)
        return cls(**found)

    @classmethod
    def _checked(cls, name: str, value: object) -> object:
        """The value in its normal form."""
        form = cls.FORMS.get(name)
        if form is None:
            cls._check(name, value)
            return value
        try:
            return form(value)
        except ValueError as error:
            shown = name if name in cls.SECRETS else f"{name}={value!r}"
            raise ConfigError(f"storage option {shown}: {error}") from None

    @classmethod
    def _check(cls, name: str, value: object) -> None:
        shown = "that value" if name in cls.SECRETS else repr(value)
        if name in cls.FLAGS and not isinstance(value, bool):
            raise ConfigError(f"storage option {name}={shown} must be True or False")
        if name == "verify" and not isinstance(value, bool | str):
            raise ConfigError(f"storage option verify={shown} must be True, False or the path of a CA bundle")
        if name not in cls.FLAGS | {"verify"} and (not isinstance(value, str) or not value):
            raise ConfigError(f"storage option {name}: {shown} must be non-empty text")
        if name in cls.CHOICES and value not in cls.CHOICES[name]:
            raise ConfigError(f"storage option {name}={shown} must be one of {', '.join(cls.CHOICES[name])}")
        if name == "endpoint_url" and "@" in str(value).partition("://")[2].partition("?")[0]:
            raise ConfigError("storage option endpoint_url must not contain user and password: pass keys as options")
        if name == "endpoint_url" and not str(value).startswith(("http://", "https://")):
            raise ConfigError(f"storage option endpoint_url={shown} must start with http:// or https://")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How long a store waits for its server, and how many connections it opens."""

    stall_timeout: float = 30.0
    """Seconds. A request that moves no byte for this time fails."""
    connect_timeout: float = 10.0
    """Seconds within which a connection must be open."""
    max_connections: int = 256
    """Connections to one host that are open at a time; further requests wait."""

    @classmethod
    def of(cls, transfer: TransferConfig) -> Self:
        """The limits in the transfer settings."""
        stall, connect = _seconds(transfer.stall_timeout), _seconds(transfer.connect_timeout)
        return cls(stall, connect, within_descriptors(transfer.max_concurrency))


DEFAULT_LIMITS = ConnectionLimits()


def _seconds(duration: float | timedelta) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


def given(values: Mapping[str, str | None]) -> dict[str, str]:
    """The entries whose value is not None."""
    return {name: value for name, value in values.items() if value is not None}
