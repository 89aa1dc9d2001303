"""The command group, and the parts that all commands share: settings, signals, exit codes."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

import click

from asyncsync.errors import ConfigError, SyncTimeoutError
from asyncsync.planning.document import __version__

if TYPE_CHECKING:  # ``--help`` needs none of it
    from asyncsync.cli.options import Settings
    from asyncsync.cli.output import Output

DONE, FAILED, USAGE, DAMAGED, TIMEOUT, INTERRUPTED = 0, 1, 2, 3, 4, 130

Command = Callable[..., Awaitable[int]]
"""An async function that takes Output, Settings and the options of the command, and returns the exit code."""

_MODULES = {
    "push": "push_pull",
    "pull": "push_pull",
    "watch": "running.watch",
    "ls": "ls",
    "tree": "stored.browse_commands",
    "du": "stored.browse_commands",
    "cat": "stored.browse_commands",
    "best": "stored.choose",
    "compare": "stored.choose",
    "history": "stored.choose",
    "cp": "stored.change",
    "promote": "stored.change",
    "pin": "stored.mark_commands",
    "unpin": "stored.mark_commands",
    "tag": "stored.mark_commands",
    "rm": "stored.change",
    "status": "running.engine_status",
    "ui": "stored.see",
    "report": "stored.see",
    "verify": "verify_prune",
    "prune": "verify_prune",
    "doctor": "setup.doctor",
    "config": "setup.config_command",
    "completion": "setup.completion",
    "demo": "demo",
    "demo-read": "demo",
}

SUMMARIES = {
    "push": "Send the new and changed files of a directory, or one file.",
    "pull": "Fetch a URL into a directory: verified, never half a file.",
    "watch": "Sync a directory to a URL periodically until Ctrl-C.",
    "ls": "List experiments, trials, checkpoints or files; sort and filter them.",
    "tree": "Show the directories and files below a URL as a tree.",
    "du": "Show the sizes of the directories below a URL.",
    "cat": "Write one object to stdout.",
    "best": "Show or fetch the best checkpoint of an experiment by a metric.",
    "compare": "Compare two trials or two checkpoints.",
    "history": "Show the reports of a trial, one row each.",
    "cp": "Copy a tree, a trial or an experiment from any store to any store.",
    "promote": "Copy one checkpoint to a URL of its own.",
    "pin": "Keep a checkpoint whatever retention says, also while its trial runs.",
    "unpin": "Leave a pinned checkpoint to retention again.",
    "tag": "Give a checkpoint a name; a tagged checkpoint is kept.",
    "rm": "Remove an experiment, a trial, a checkpoint or a tree.",
    "status": "Show whether the work of running engines is safe now.",
    "ui": "Show an experiment as a page in the browser, live while it runs.",
    "report": "Write the page of an experiment as one file.",
    "verify": "Check that a store holds every file that its manifests name.",
    "prune": "Remove abandoned data: incomplete uploads, retired checkpoints.",
    "doctor": "Check permissions, clock, checksums and speed of a store.",
    "config": "Show the settings of the command, and where each comes from.",
    "completion": "Print the completion script for bash, zsh or fish.",
    "demo": "Run a sweep of 20 trials and watch it live.",
}
"""The first line of each command's own help; a test compares them."""

SYNONYMS = {
    "copy": "cp",
    "delete": "rm",
    "download": "pull",
    "get": "pull",
    "list": "ls",
    "put": "push",
    "remove": "rm",
    "restore": "pull",
    "sync": "push",
    "upload": "push",
}
"""Words of other tools for our commands."""

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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Called by click. The error for a misspelled command names the closest one."""
        name = args[0]
        if name not in _MODULES and not name.startswith("-"):
            from asyncsync.cli.config_files import suggestion

            shown = [known for known in _MODULES if known != "demo-read"]
            meant = SYNONYMS.get(name)
            close = f", did you mean {meant!r}?" if meant else suggestion(name, shown)
            hint = close or "; asyncsync --help lists the commands"
            raise click.UsageError(f"no command is named {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Called by click. The table is written here, because ``--help`` imports no command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=_Lazy, context_settings=_CONTEXT, help=HELP)
@click.version_option(__version__, message="asyncsync %(version)s")
def cli() -> None:
    """The command."""


def command(*, help: str, hidden: bool = False) -> Callable[[Command], click.Command]:  # noqa: A002 (click's name)
    """Make an async function a command: ``async def f(output, settings, **own_options) -> exit code``."""
    from asyncsync.cli.options import common_options, with_variables

    def decorate(function: Command) -> click.Command:
        def invoke(**values: Any) -> None:
            sys.exit(run(function, values))

        update_wrapper(invoke, function)
        name = function.__name__.replace("_", "-")
        made = click.command(name, _Command, help=help, hidden=hidden, context_settings=_CONTEXT)
        return with_variables(made(common_options(invoke)))

    return decorate


class _Command(click.Command):
    """A command whose defaults may come from the configuration files."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Called by click."""
        from asyncsync.cli.options import defaults_of

        if "default_map" not in extra and (found := defaults_of(self)):
            extra["default_map"] = found
        return super().make_context(info_name, args, parent, **extra)


def run(function: Command, values: dict[str, Any]) -> int:
    """Run a command on an event loop, report an error in one line, and return the exit code."""
    import anyio

    from asyncsync.cli.command_log import command_log
    from asyncsync.cli.options import take_settings
    from asyncsync.cli.output import Output
    from asyncsync.cli.setup.option_names import unknown_settings

    output = Output(as_json=values["as_json"], quiet=values["quiet"], debug=values["debug"])
    log = {"verbose": values["verbose"], "file": values["log_file"], "as_json": values["log_json"]}
    try:
        settings = take_settings(values)
        for text in unknown_settings():
            output.note(f"warning: {text}")
        with _interruptible(), command_log(options=settings.storage_options, **log):
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
