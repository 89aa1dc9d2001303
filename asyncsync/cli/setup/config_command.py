"""``config``: the settings of the command, and where each comes from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

from asyncsync.cli.app import DONE, command
from asyncsync.cli.config_files import ENV, OWN_VARIABLES, config_paths, read_files
from asyncsync.cli.options import Settings
from asyncsync.cli.output import Output

CONFIG = """Show the settings of the command, and where each comes from.

Why: a named store saves typing, and a setting that comes from somewhere unexpected is found here. Files are
~/.config/asyncsync.toml and ./asyncsync.toml; the second wins, ASYNCSYNC_... variables win over both, and options over
all. Values that may be secret are not shown.

\b
Examples:
  asyncsync config show
  asyncsync config show --json

\b
A file:
  [stores.prod]
  url = "s3://bucket/experiments"     prod:sweep is then s3://bucket/experiments/sweep
  profile = "work"
  [defaults]
  max-concurrency = 64                for all commands
  [defaults.push]
  exclude = ["*.tmp"]                 for one command

Exit codes: 0 done, 2 a file cannot be read.
"""

SECRET = ("secret", "token", "password", "key", "credential", "customer")


@command(help=CONFIG)
@click.argument("action", type=click.Choice(["show"]), default="show")
async def config(output: Output, settings: Settings, *, action: str) -> int:
    """See CONFIG."""
    del settings, action
    found = read_files()
    stores = {name: hidden(options) for name, options in found.stores.items()}
    variables = hidden({name: value for name, value in sorted(os.environ.items()) if name.startswith(ENV)})
    for path in config_paths():
        output.line(f"{path}: {'read' if str(path) in found.paths else 'does not exist'}")
    for name, options in stores.items():
        output.line(f"{name}: is {options.get('url', 'without url')} {_text(options)}".rstrip())
    for name, value in hidden(found.defaults).items():
        output.line(f"default {name} = {value}")
    for name, value in variables.items():
        output.line(f"{name}={value}")
    document = {"paths": found.paths, "stores": stores, "defaults": hidden(found.defaults), "environment": variables}
    output.document({"ok": True, **document})
    return DONE


def hidden(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without values that may be secret."""
    return {
        name: hidden(value) if isinstance(value, dict) else "(not shown)" if _may_be_secret(name) else value
        for name, value in options.items()
    }


def _may_be_secret(name: str) -> bool:
    return name == OWN_VARIABLES[1] or any(word in name.lower() for word in SECRET)


def _text(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items() if name != "url")
