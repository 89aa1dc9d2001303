"""The command group, and the parts that all commands share: settings, signals, exit codes."""

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
"""An async function that takes Output, Settings and the options of the command, and returns the exit code."""

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

HELP = """Keep directories, experiments and their checkpoints safe in S3, GCS, Azure or another directory.

A URL is s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///path, an absolute path, ~/path or
./path. Credentials come from the usual places of the tools of AWS, Google and Azure: environment variables, files in
your home directory, the role of the machine.

Only changed bytes are sent. The manifest is written last, so everything that a manifest names is complete. To resume an
interrupted transfer, run the same command again.

\b
Start with:
  asyncsync demo                              run a sweep of 20 trials and watch it live
  asyncsync push results s3://bucket/results  send a directory to the store
  asyncsync ls s3://bucket/results            list it
  asyncsync pull s3://bucket/results copy     fetch it

\b
Exit codes:
  0    done
  1    failed; the message says why
  2    wrong usage or invalid settings
  3    verify found damaged, replaced or missing files
  4    --timeout ended the transfer
  130  interrupted; the message says what is not durable

Every command explains itself: asyncsync COMMAND --help.
"""


class _Lazy(click.Group):
    """Imports the module of a command when it is used, because ``ls`` needs no engine."""

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
    """Run a command on an event loop, report an error in one line, and return the exit code."""
    output = Output(as_json=values["as_json"], quiet=values["quiet"], debug=values["debug"])
    try:
        settings = take_settings(values)
        with _interruptible():
            return anyio.run(_main, function, output, settings, values)
    except KeyboardInterrupt as error:
        interrupt = KeyboardInterrupt(output.at_interrupt()).with_traceback(error.__traceback__)
        for note in getattr(error.__context__, "__notes__", ()):  # the engine notes what is not durable
            interrupt.add_note(note)
        output.error(interrupt, INTERRUPTED, prefix="interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        raise  # the reader of our output has exited: click ends quietly
    except Exception as error:  # noqa: BLE001 (the edge of the program)
        cause = _single(error)
        code = exit_code(cause)
        output.error(cause, code)
        return code


async def _main(function: Command, output: Output, settings: Settings, values: dict[str, Any]) -> int:
    return await function(output, settings, **values)


def exit_code(error: BaseException) -> int:
    """The exit code for an error."""
    if isinstance(error, SyncTimeoutError):
        return TIMEOUT
    return USAGE if isinstance(error, ConfigError) else FAILED


def _single(error: BaseException) -> BaseException:
    """The only error of a group; a group of several errors gets their messages as notes."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    if len(error.exceptions) == 1:
        return _single(error.exceptions[0])
    for item in error.exceptions:
        error.add_note(str(item))
    return error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM interrupt the command: clean up, report what is not durable, exit. A shell ignores SIGINT
    for background jobs, so the handler is set here."""
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
