"""The group of commands, and what they have in common: settings, signals, exit codes."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any

import anyio
import click

from asyncsync import __version__
from asyncsync.cli.options import Settings, common_options, take_settings
from asyncsync.cli.output import Output
from asyncsync.errors import ConfigError, SyncTimeoutError

DONE, FAILED, USAGE, DAMAGED, TIMEOUT, INTERRUPTED = 0, 1, 2, 3, 4, 130

Command = Callable[..., Awaitable[int]]
"""Takes Output, Settings and the command's own options; returns the exit code."""

_MODULES = {
    "push": "push_pull",
    "pull": "push_pull",
    "watch": "watch",
    "ls": "ls",
    "verify": "verify_prune",
    "prune": "verify_prune",
    "demo": "demo",
    "demo-read": "demo",
}

HELP = """Keep directories, experiments and their checkpoints safe in S3, GCS or another directory.

A URL is s3://bucket/prefix, gs://bucket/prefix, file:///path, an absolute path, ~/path or ./path. Credentials come from
where the tools of AWS and Google look for them (environment, files at home, the machine's role). Only bytes
that changed travel; what is written last is a manifest, so whatever a manifest names is whole; a transfer that was
broken off continues where it stopped when it is run again.

\b
Start with:
  asyncsync demo                              a sweep of 20 trials, watched live
  asyncsync push results s3://bucket/results  a directory to the store
  asyncsync ls s3://bucket/results            what is there

\b
Exit codes:
  0    done
  1    something failed; the message says what
  2    wrong usage or settings
  3    verify found damaged, replaced or missing files
  4    --timeout ended the sync
  130  interrupted; the message says what is not durable
"""


class _Lazy(click.Group):
    """Imports a command's module when it is used: ``ls`` needs no engine."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Called by click."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Called by click."""
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(f"asyncsync.cli.{_MODULES[cmd_name]}")
        found: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return found


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=_Lazy, context_settings=_CONTEXT, help=HELP)
@click.version_option(__version__, message="asyncsync %(version)s")
def cli() -> None:
    """The command."""


def command(*, help: str, hidden: bool = False) -> Callable[[Command], click.Command]:  # noqa: A002 (click's name)
    """Make an async function a command: ``async def f(output, settings, **own_options) -> exit code``."""

    def decorate(function: Command) -> click.Command:
        def invoke(**values: Any) -> None:
            sys.exit(run(function, values))

        update_wrapper(invoke, function)
        return click.command(help=help, hidden=hidden, context_settings=_CONTEXT)(common_options(invoke))

    return decorate


def run(function: Command, values: dict[str, Any]) -> int:
    """Run a command on an event loop; say what went wrong in one line; return the exit code."""
    output = Output(as_json=values["as_json"], quiet=values["quiet"], debug=values["debug"])
    try:
        settings = take_settings(values)
        with _interruptible():
            return anyio.run(_main, function, output, settings, values)
    except KeyboardInterrupt as error:
        told = KeyboardInterrupt(output.at_interrupt()).with_traceback(error.__traceback__)
        for note in getattr(error.__context__, "__notes__", ()):  # the cancel's: the engine says what is not durable
            told.add_note(note)
        output.error(told, INTERRUPTED, prefix="interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        raise  # whoever read our output has left: click ends quietly
    except Exception as error:  # noqa: BLE001 (the edge of the program)
        cause_of = _single(error)
        code = exit_code(cause_of)
        output.error(cause_of, code)
        return code


async def _main(function: Command, output: Output, settings: Settings, values: dict[str, Any]) -> int:
    return await function(output, settings, **values)


def exit_code(error: BaseException) -> int:
    """Which exit code an error means."""
    if isinstance(error, SyncTimeoutError):
        return TIMEOUT
    return USAGE if isinstance(error, ConfigError) else FAILED


def _single(error: BaseException) -> BaseException:
    """The error inside a group that holds only one; of several, the group with their texts as notes."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    if len(error.exceptions) == 1:
        return _single(error.exceptions[0])
    for item in error.exceptions:
        error.add_note(str(item))
    return error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C works, also where a shell started us in the background and so had SIGINT ignored; SIGTERM does the same:
    clean up, say what is not durable, exit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    terminate = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, terminate)
        signal.signal(signal.SIGINT, interrupt)
