"""The names of all options, to find those in files and variables that nothing reads without importing every command."""

from __future__ import annotations

import os

from asyncsync.cli.config_files import ENV, OWN_VARIABLES, read_files, suggestion
from asyncsync.cli.options import UNSET_BY_ENVIRONMENT, variables_of

COMMON = (
    "bandwidth_limit",
    "debug",
    "endpoint_url",
    "json",
    "log_file",
    "log_json",
    "max_concurrency",
    "option",
    "part_size",
    "profile",
    "quiet",
    "region",
    "sse",
    "storage_class",
    "verbose",
)
"""Options of every command."""
OPTIONS: dict[str, tuple[str, ...]] = {
    "push": (
        "check_store",
        "checksum",
        "delete",
        "dry_run",
        "exclude",
        "include",
        "max_delete",
        "skip_bad_names",
        "timeout",
    ),
    "pull": ("dry_run", "exact", "exclude", "include", "timeout"),
    "watch": (
        "delete",
        "exclude",
        "grace",
        "health_host",
        "health_port",
        "include",
        "max_delete",
        "max_lag",
        "metrics_port",
        "on_durable",
        "period",
        "ready",
        "timeout",
        "until_file",
        "wait_for_directory",
    ),
    "ls": ("checkpoints", "files", "limit", "order", "sort", "where"),
    "tree": ("depth",),
    "du": ("depth",),
    "cat": (),
    "best": ("order", "pull", "trial"),
    "compare": ("all",),
    "history": ("last", "metric"),
    "cp": ("to",),
    "promote": ("to",),
    "pin": (),
    "unpin": (),
    "tag": ("remove",),
    "rm": ("dry_run", "force", "yes"),
    "status": ("period", "watch"),
    "ui": ("allow_changes", "open", "port"),
    "report": ("curves", "output"),
    "verify": ("deep", "repair"),
    "prune": ("dry_run", "no_dry_run", "older_than", "yes"),
    "doctor": (),
    "config": (),
    "completion": (),
    "demo": ("dir", "pace", "trials"),
    "demo-read": (),
}
"""The others of each command. A test compares both with the commands."""


def unknown_settings() -> list[str]:
    """Settings in files and environment that no command reads, each with the closest known name."""
    found = read_files()
    given = {name for name in os.environ if name.startswith(ENV)}
    known = set(OWN_VARIABLES)
    for command, own in OPTIONS.items():
        for word in {*COMMON, *own}.difference(UNSET_BY_ENVIRONMENT):
            known.update(variables_of(command, word))
    words = {
        *COMMON,
        *(word for own in OPTIONS.values() for word in own),
        *(name.replace("-", "_") for name in OPTIONS),
    }
    return [
        *found.unknown,
        *(f"nothing reads ${name}{suggestion(name, known)}" for name in sorted(given - known)),
        *(f"no option is named {name!r} (defaults){suggestion(name, words)}" for name in found.defaults.keys() - words),
    ]
