"""The options that commands share: store, transfer and output options, sizes, URLs, and flags in error messages."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from asyncsync.cli.config_files import ENV, read_files
from asyncsync.config import READY_PRESETS, SyncConfig, TransferConfig, split_sas
from asyncsync.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])

_UNITS = {"": 1} | {
    spelling: base**power
    for power, letter in enumerate("kmgtp", start=1)
    for spelling, base in ((letter, 1024), (f"{letter}ib", 1024), (f"{letter}b", 1000))
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*?)(?:/s)?")


def parse_size(text: str) -> int:
    """A size in bytes: ``"16MiB"`` and ``"16M"`` are 16 x 1024 x 1024, ``"16MB"`` is 16,000,000, ``"16"`` is 16.

    A rate may end in ``/s``. ValueError for anything else.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    unit = None if match is None else _UNITS.get(match[2] if match[2] != "b" else "")
    if match is None or unit is None:
        raise ValueError(f"invalid size {text!r}: must look like 65536, 512KiB, 16MiB or 1.5GB")
    return int(float(match[1]) * unit)


def byte_size(text: str) -> int:
    """:func:`parse_size` as a click type."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def resolve_url(text: str) -> str:
    """The storage path for a URL argument.

    A relative directory must start with a dot, because ``bucket/a`` is more often an address without its ``s3://``.
    """
    if "://" in text or not text:
        address = split_sas(text, {})[0]
        if address != text:
            raise ConfigError(
                f"the URL {address} has a shared access signature, and other users can see a command line: set "
                "AZURE_STORAGE_SAS_TOKEN"
            )
        return text
    path = Path(text).expanduser()
    if path.is_absolute():
        return str(path)
    if text.split("/", maxsplit=1)[0] in (".", ".."):
        return os.path.abspath(text)
    raise ConfigError(f"invalid URL {text!r}: write s3://{text} for a bucket or ./{text} for a directory")


@dataclass(frozen=True, slots=True)
class Settings:
    """The store and transfer options of one invocation."""

    storage_options: Mapping[str, object] = field(default_factory=dict)
    target_options: Mapping[str, object] | None = None
    """Options of the second store, if one of the two is named: the target of ``cp`` and ``promote``, the second of
    ``compare``. One store never gets the keys of the other."""
    transfer: TransferConfig = field(default_factory=TransferConfig)

    @property
    def second_options(self) -> Mapping[str, object]:
        """Options of the second store."""
        return self.storage_options if self.target_options is None else self.target_options


_STORE = ("endpoint_url", "region", "profile", "sse", "storage_class")
_TRANSFER = ("max_concurrency", "part_size", "bandwidth_limit")
_OUTPUT = ("as_json", "quiet", "debug", "verbose", "log_file", "log_json")

_COMMON = [
    click.option("--endpoint-url", metavar="URL", help="S3 endpoint, such as http://127.0.0.1:8333."),
    click.option("--region", metavar="NAME", help="S3 region.  [default: AWS configuration]"),
    click.option("--profile", metavar="NAME", help="Profile of the AWS configuration files."),
    click.option("--sse", metavar="KIND", help="Server-side encryption: AES256, aws:kms or aws:kms:dsse."),
    click.option("--storage-class", metavar="CLASS", help="Storage class of new objects, such as STANDARD_IA."),
    click.option(
        "-o",
        "--option",
        "extra",
        multiple=True,
        metavar="KEY=VALUE",
        envvar="ASYNCSYNC_OPTIONS",
        help="Any other option of the store. Repeatable. $ASYNCSYNC_OPTIONS holds the same, separated by spaces; use "
        "it for secrets, because other users can see a command line.",
    ),
    click.option("--max-concurrency", type=int, metavar="N", help="Maximum requests in flight.  [default: 256]"),
    click.option("--part-size", type=byte_size, metavar="SIZE", help="Part size of large files.  [default: 16MiB]"),
    click.option("--bandwidth-limit", type=byte_size, metavar="SIZE", help="Maximum bytes per second, such as 50MiB."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text."),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
    click.option("--debug", is_flag=True, help="Print a traceback with each error."),
    click.option("-v", "--verbose", count=True, help="Log what happens to stderr; -vv logs each decision."),
    click.option("--log-file", metavar="FILE", help="Append everything that is logged, as with -vv, to FILE."),
    click.option("--log-json", is_flag=True, help="Log one JSON document per line."),
]


def common_options(function: Function) -> Function:
    """Add the options that every command has, after its own ones; :func:`take_settings` reads them."""
    own = getattr(function, "__click_params__", [])
    function.__click_params__ = []  # type: ignore[attr-defined]
    for option in reversed(_COMMON):
        function = option(function)
    if any("-o" in item.opts for item in own):  # "report -o FILE": the store's options keep their long flag
        for item in function.__click_params__:  # type: ignore[attr-defined]
            item.opts = [flag for flag in item.opts if flag != "-o"]
    function.__click_params__ += own  # type: ignore[attr-defined]  # click shows the last one first
    return function


def filter_options(verb: str) -> Callable[[Function], Function]:
    """Add ``--include`` and ``--exclude`` to a command that transfers files; ``verb`` is what it does with them."""

    def add(function: Function) -> Function:
        for name, text in (
            ("--exclude", "Skip files that match this gitignore pattern; wins over --include. Repeatable."),
            ("--include", f"{verb} only files that match this gitignore pattern. Repeatable."),
        ):
            function = click.option(name, multiple=True, metavar="PATTERN", help=text)(function)
        return function

    return add


def delete_option(function: Function) -> Function:
    """Add ``--delete`` and ``--max-delete``."""
    most = "With --delete: fail, and change nothing, if more files than this are missing locally."
    function = click.option("--max-delete", type=click.IntRange(min=0), metavar="N", help=most)(function)
    return click.option("--delete", is_flag=True, help="Delete files in the store that were deleted locally.")(function)


def timeout_option(default: float | None) -> Callable[[Function], Function]:
    """Add ``--timeout`` for one transfer."""
    shown = "none" if default is None else f"{default:g}"
    return click.option(
        "--timeout",
        type=float,
        default=default,
        metavar="SECONDS",
        help=f"Cancel a transfer after this long (exit code 4); the next one resumes it.  [default: {shown}]",
    )


def take_settings(values: dict[str, Any]) -> Settings:
    """Remove the common options from ``values`` (click's keyword arguments), and put the URLs of named stores in place
    of their names. ConfigError if one is invalid."""
    given: dict[str, object] = {name: value for name in _STORE if (value := values.pop(name)) is not None}
    given |= _extra_options(values.pop("extra"))
    options = {**_named(values, "url", "source", "first"), **given}
    target = _named(values, "target", "second")
    transfer = {name: value for name in _TRANSFER if (value := values.pop(name)) is not None}
    for name in _OUTPUT:
        values.pop(name, None)
    named = bool(target) or len(options) > len(given)
    return Settings(options, {**target, **given} if named else None, TransferConfig(**transfer))


def _named(values: dict[str, Any], *names: str) -> dict[str, object]:
    """Replace ``store:path`` in the arguments of these names; returns the options of the stores."""
    options: dict[str, object] = {}
    for name in names:
        text = values.get(name)
        if isinstance(text, str) and ":" in text and "://" not in text:
            found = read_files().resolve(text)
            if found is not None:
                values[name] = found[0]
                options |= found[1]
    return options


# Environment variables and configuration files

UNSET_BY_ENVIRONMENT = ("yes", "force")
"""Options that no environment variable sets: they remove things without a question."""


def with_variables(made: click.Command) -> click.Command:
    """Give every option of a command the variables ``ASYNCSYNC_COMMAND_OPTION`` and ``ASYNCSYNC_OPTION``."""
    for option in made.params:
        if isinstance(option, click.Option) and option.envvar is None and option.name not in UNSET_BY_ENVIRONMENT:
            words = [word_of(flag) for flag in option.opts if flag.startswith("--")]
            option.envvar = [name for word in words for name in variables_of(str(made.name), word)]
    return made


def word_of(flag: str) -> str:
    """An option as it is written in files: ``part_size`` for ``--part-size``."""
    return flag.lstrip("-").replace("-", "_")


def variables_of(command: str, word: str) -> tuple[str, str]:
    """The variables of an option, such as ``part_size``; the one of the command wins."""
    return f"{ENV}{word_of(command)}_{word}".upper(), f"{ENV}{word}".upper()


def defaults_of(made: click.Command) -> dict[str, Any]:
    """The defaults of a command in the configuration files, by parameter. ConfigError becomes click's usage error."""
    try:
        found = read_files().defaults
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    mine = found.get(str(made.name).replace("-", "_"), {})
    merged = {**found, **(mine if isinstance(mine, dict) else {})}
    by_flag = {flag.lstrip("-").replace("-", "_"): item for item in made.params for flag in item.opts}
    return {
        str(by_flag[name].name): value
        for name, value in ((name.replace("-", "_"), value) for name, value in merged.items())
        if name in by_flag and by_flag[name].name not in UNSET_BY_ENVIRONMENT and not isinstance(value, dict)
    }


def _extra_options(pairs: tuple[str, ...]) -> dict[str, object]:
    words: dict[str, object] = {"true": True, "false": False}
    found: dict[str, object] = {}
    for pair in pairs:
        key, mark, value = pair.partition("=")
        if not mark or not key:
            raise ConfigError(f"invalid -o {pair!r}: must be -o KEY=VALUE")
        found[key.strip().replace("-", "_")] = words.get(value.lower(), value)
    return found


def ready_rules(values: tuple[str, ...]) -> dict[str, tuple[str, ...]] | None:
    """``--ready`` as rules of ``SyncConfig.ready``; ConfigError for an unknown preset."""
    rules: dict[str, tuple[str, ...]] = {}
    for value in values:
        pattern, mark, marker = value.partition("=")
        if mark:
            rules[pattern] = (*rules.get(pattern, ()), marker)
        elif value in READY_PRESETS:
            rules |= READY_PRESETS[value]
        else:
            raise ConfigError(f"invalid --ready {value!r}: must be {', '.join(READY_PRESETS)} or PATTERN=MARKER")
    return rules or None


def sync_config(
    *,
    timeout: float | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    delete: bool,
    max_delete: int | None,
    period: float = 300.0,
) -> SyncConfig:
    """The options of push and watch as a SyncConfig."""
    return SyncConfig(
        sync_period=period,
        sync_timeout=timeout,
        sync_artifacts=True,
        include=include,
        exclude=exclude,
        delete=delete,
        max_delete=max_delete,
    )


_SETTING_FLAGS = {"sync_timeout": "timeout", "sync_period": "period"}
_FLAGS = (
    (r"(?:SyncConfig|TransferConfig)\.(\w+)=", lambda match: f"{_flag(match[1])} "),
    (r"SyncConfig\(max_delete=(\d+)\)", lambda match: f"--max-delete {match[1]}"),
    (r"\bmax_delete(?= is)", lambda _: "--max-delete"),
    (r"\bsync_timeout=", lambda _: "--timeout "),
    (r"\bexact=True\b", lambda _: "--exact"),
    (r"storage option (\w+)(?==|:| must)", lambda match: _store_flag(match[1])),
    (r"storage_options=(\{[^}]*\})", lambda match: _pairs(match[1])),
    (r"as storage_options\b", lambda _: "with -o KEY=VALUE"),
    (r"\bchecksum=\"(\w+)\"", lambda match: f"-o checksum={match[1]}"),
    (r" \(number or timedelta\)", lambda _: ""),
    (r"^(invalid --.*?),? or None\b", lambda match: match[1]),
    (r"\bconditional_writes=False\b", lambda _: "-o conditional_writes=false"),
)


def in_flags(message: str) -> str:
    """A message of the library with the flags of this command instead of Python's arguments."""
    for pattern, flag in _FLAGS:
        message = re.sub(pattern, flag, message)
    return message


def _flag(setting: str) -> str:
    return "--" + _SETTING_FLAGS.get(setting, setting).replace("_", "-")


def _store_flag(option: str) -> str:
    return f"--{option.replace('_', '-')}" if option in _STORE else f"-o {option}"


def _pairs(options: str) -> str:
    found = re.findall(r"[\"'](\w+)[\"']: [\"']?([^\"',}]*)", options)
    return " ".join(f"-o {key}={value}" for key, value in found) or "-o KEY=VALUE"
