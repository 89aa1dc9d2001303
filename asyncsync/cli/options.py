"""What the commands have in common on their command line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from asyncsync.config import SyncConfig, TransferConfig
from asyncsync.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])

_UNITS = {"": 1} | {
    spelling: base**power
    for power, letter in enumerate("kmgtp", start=1)
    for spelling, base in ((letter, 1024), (f"{letter}ib", 1024), (f"{letter}b", 1000))
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*?)(?:/s)?")


def parse_size(text: str) -> int:
    """``"16MiB"`` and ``"16M"`` are 16 x 1024 x 1024 bytes, ``"16MB"`` is 16,000,000, ``"16"`` is 16.

    A rate may end in ``/s``. ValueError says what is allowed.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    unit = None if match is None else _UNITS.get(match[2] if match[2] != "b" else "")
    if match is None or unit is None:
        raise ValueError(f"{text!r} is no size: write 65536, 512KiB, 16MiB, 1.5GB or the like")
    return int(float(match[1]) * unit)


def byte_size(text: str) -> int:
    """:func:`parse_size` as click wants it."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def resolve_url(text: str) -> str:
    """The storage path that an argument means.

    In a shell a relative directory is clear, but ``bucket/a`` is more often an address without its ``s3://``: so a
    relative directory must start with a dot.
    """
    if "://" in text or not text:
        return text
    path = Path(text).expanduser()
    if path.is_absolute():
        return str(path)
    if text.split("/", maxsplit=1)[0] in (".", ".."):
        return os.path.abspath(text)
    raise ConfigError(f"{text!r} is not usable as a URL: write s3://{text} for a bucket or ./{text} for a directory")


@dataclass(frozen=True, slots=True)
class Settings:
    """The common options of one invocation."""

    storage_options: Mapping[str, object] = field(default_factory=dict)
    transfer: TransferConfig = field(default_factory=TransferConfig)


_STORE = ("endpoint_url", "region", "profile", "sse", "storage_class")
_TRANSFER = ("max_concurrency", "part_size", "bandwidth_limit")
_OUTPUT = ("as_json", "quiet", "debug")

_COMMON = [
    click.option("--endpoint-url", metavar="URL", help="S3 endpoint, such as http://127.0.0.1:8333."),
    click.option("--region", metavar="NAME", help="S3 region. Default: the usual AWS configuration."),
    click.option("--profile", metavar="NAME", help="Profile of the AWS configuration files."),
    click.option("--sse", metavar="KIND", help="Server-side encryption: AES256 or aws:kms."),
    click.option("--storage-class", metavar="CLASS", help="Storage class of new objects, such as STANDARD_IA."),
    click.option(
        "-o",
        "extra",
        multiple=True,
        metavar="KEY=VALUE",
        envvar="ASYNCSYNC_OPTIONS",
        help="Any other option of the store. Repeatable. $ASYNCSYNC_OPTIONS takes them too, separated by spaces: "
        "what is secret does not belong on a command line.",
    ),
    click.option("--max-concurrency", type=int, metavar="N", help="Most requests at once.  [default: 256]"),
    click.option(
        "--part-size", type=byte_size, metavar="SIZE", help="Bytes per part of a large file.  [default: 16MiB]"
    ),
    click.option("--bandwidth-limit", type=byte_size, metavar="SIZE", help="Most bytes per second, such as 50MiB."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    click.option("--debug", is_flag=True, help="Print a traceback with an error, and log to stderr."),
]


def common_options(function: Function) -> Function:
    """Add the options that every command has; :func:`settings` reads them."""
    for option in reversed(_COMMON):
        function = option(function)
    return function


def filter_options(function: Function) -> Function:
    """Which files: ``--include`` and ``--exclude``."""
    for name, text in (
        ("--exclude", "Leave out files that match this gitignore pattern; wins. Repeatable."),
        ("--include", "Only files that match this gitignore pattern. Repeatable."),
    ):
        function = click.option(name, multiple=True, metavar="PATTERN", help=text)(function)
    return function


def delete_option(function: Function) -> Function:
    """``--delete``."""
    return click.option("--delete", is_flag=True, help="Delete in the store what is gone from the directory.")(function)


def timeout_option(default: float | None) -> Callable[[Function], Function]:
    """``--timeout`` for one sync."""
    shown = "none" if default is None else f"{default:g}"
    return click.option(
        "--timeout", type=float, default=default, metavar="SECONDS",
        help=f"End a sync after this long (exit code 4); what was sent is not lost.  [default: {shown}]",
    )  # fmt: skip


def take_settings(values: dict[str, Any]) -> Settings:
    """Take the common options out of ``values`` (click's keyword arguments). ConfigError for what is not usable."""
    options: dict[str, object] = {name: value for name in _STORE if (value := values.pop(name)) is not None}
    options |= _extra_options(values.pop("extra"))
    transfer = {name: value for name in _TRANSFER if (value := values.pop(name)) is not None}
    for name in _OUTPUT:
        del values[name]
    return Settings(options, TransferConfig(**transfer))


def _extra_options(pairs: tuple[str, ...]) -> dict[str, object]:
    words: dict[str, object] = {"true": True, "false": False}
    found: dict[str, object] = {}
    for pair in pairs:
        key, mark, value = pair.partition("=")
        if not mark or not key:
            raise ConfigError(f"-o {pair!r} is not usable: write -o KEY=VALUE")
        found[key.strip().replace("-", "_")] = words.get(value.lower(), value)
    return found


def sync_config(
    *, timeout: float | None, include: tuple[str, ...], exclude: tuple[str, ...], delete: bool, period: float = 300.0
) -> SyncConfig:
    """The options of push and watch as a SyncConfig."""
    return SyncConfig(
        sync_period=period, sync_timeout=timeout, sync_artifacts=True, include=include, exclude=exclude, delete=delete
    )
