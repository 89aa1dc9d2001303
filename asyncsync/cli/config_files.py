"""The files ``~/.config/asyncsync.toml`` and ``./asyncsync.toml``: named stores, and defaults of options.

::

    [stores.prod]
    url = "s3://bucket/experiments"
    profile = "work"

    [defaults]
    max-concurrency = 64

    [defaults.push]
    exclude = ["*.tmp"]

``prod:sweep`` is then ``s3://bucket/experiments/sweep`` with these options. The file in the working directory wins,
environment variables win over both, and options on the command line over all.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncsync.errors import ConfigError

FILE = "asyncsync.toml"
ENV = "ASYNCSYNC_"
OWN_VARIABLES = ("ASYNCSYNC_STATE_DIR", "ASYNCSYNC_OPTIONS")
"""Variables that belong to no single option."""


def config_paths() -> list[Path]:
    """The files that are read, later ones win."""
    base = os.environ.get("XDG_CONFIG_HOME")
    home = Path(base) if base else Path(os.path.expanduser("~/.config"))
    return [home / FILE, Path.cwd() / FILE]


@dataclass(frozen=True, slots=True)
class FileSettings:
    """The content of the files."""

    stores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options by name; ``url`` is one of them."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Options of all commands by name, and tables of those of one command."""
    paths: tuple[str, ...] = ()
    """The files that exist."""
    unknown: tuple[str, ...] = ()
    """Entries of the files that nothing reads, for warnings."""

    def resolve(self, text: str) -> tuple[str, Mapping[str, Any]] | None:
        """URL and options for ``name:path``; None if ``text`` is another kind of address.

        ConfigError for an unknown name, unless no store is named at all.
        """
        name, colon, path = text.partition(":")
        if not colon or path.startswith("//") or not name.replace("-", "").replace("_", "").isalnum():
            return None
        if name not in self.stores:
            known = ", ".join(sorted(self.stores)) or "none: add [stores.NAME] with a url to asyncsync.toml"
            raise ConfigError(
                f"invalid URL {text!r}: no store is named {name!r}{suggestion(name, self.stores)}; known: {known}"
            )
        options = dict(self.stores[name])
        url = options.pop("url", None)
        if not isinstance(url, str) or not url:
            raise ConfigError(f'[stores.{name}] of {FILE} has no url, such as url = "s3://bucket/prefix"')
        return f"{url.rstrip('/')}/{path.strip('/')}".rstrip("/"), options


def read_files() -> FileSettings:
    """Read the files. ConfigError if one is not TOML or a table has another type."""
    stores: dict[str, Mapping[str, Any]] = {}
    defaults: dict[str, Any] = {}
    paths, unknown = [], []
    for path in config_paths():
        if not path.is_file():
            continue
        document = _parse(path)
        paths.append(str(path))
        unknown += [
            f"{path}: [{name}]{suggestion(name, ('stores', 'defaults'))}"
            for name in document.keys() - {"stores", "defaults"}
        ]
        stores |= _table(path, document, "stores")
        for name, value in _table(path, document, "defaults").items():
            key = name.replace("-", "_")
            defaults[key] = {**defaults.get(key, {}), **value} if isinstance(value, dict) else value
    for name, options in stores.items():
        if not isinstance(options, dict):
            raise ConfigError(f"stores.{name} of {FILE} is not a table: write [stores.{name}] and url = ... below it")
    return FileSettings(stores, defaults, tuple(paths), tuple(unknown))


def _parse(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _table(path: Path, document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: {name!r} is not a table: write [{name}]")
    return found


def suggestion(word: str, known: Iterable[str]) -> str:
    """``, did you mean 'x'?`` if a known word is close, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
