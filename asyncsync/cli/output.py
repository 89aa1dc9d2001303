"""The output of a command: lines, tables and a progress bar for people, or one JSON document for programs.

Results go to stdout; progress, warnings and errors to stderr. With ``--json`` stdout holds only the document.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from asyncsync.cli.options import in_flags
from asyncsync.report import SyncReport
from asyncsync.units import counted, duration_text, size_text

if TYPE_CHECKING:  # most commands show no progress
    from asyncsync.cli.meters import Meter

LINES_SHOWN = 20
"""Lines of a list before "and N more"."""


def age(moment: float | None) -> str:
    """The age of a Unix time, for people; ``-`` if there is none."""
    return f"{duration_text(time.time() - moment)} ago" if moment else "-"


def jsonable(value: Any) -> Any:
    """``value`` with dataclasses, tuples and paths as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: jsonable(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON has no NaN
    return value if isinstance(value, str | int | None) else str(value)


class Output:
    """The output of one command."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.as_json, self.quiet, self._debug = as_json, quiet, debug
        self.terminal = sys.stdout.isatty() and not (as_json or quiet)
        self.at_interrupt: Callable[[], str] = lambda: "nothing was changed"
        """Returns the message for Ctrl-C: what is not durable."""

    def line(self, text: str) -> None:
        """Print a line on stdout, for people."""
        if not (self.as_json or self.quiet):
            click.echo(text)

    def note(self, text: str) -> None:
        """Print a line on stderr: a warning or progress."""
        if not self.quiet:
            click.echo(text, err=True)

    def error(self, error: BaseException, code: int, *, prefix: str = "error") -> None:
        """Print an error as one line on stderr, as a document with ``--json``, and with its traceback with
        ``--debug``."""
        if self._debug:
            click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
        click.echo(f"{prefix}: {describe(error)}", err=True)
        if self.as_json:
            details = {"type": type(error).__name__, "message": in_flags(str(error)), "exit_code": code}
            self.document({"ok": False, "error": details})

    def failure(self, error: BaseException, text: str) -> None:
        """Print an error after which the command continues."""
        if self._debug:
            click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
        click.echo(f"{text}: {describe(error)}", err=True)
        self.document({"ok": False, "error": {"type": type(error).__name__, "message": in_flags(str(error))}})

    def document(self, content: Any) -> None:
        """Print the JSON document; does nothing without ``--json``."""
        if self.as_json:
            click.echo(json.dumps(jsonable(content), allow_nan=False))

    def lines(self, items: Sequence[str], before: str = "  ") -> None:
        """Print a list for people, cut after LINES_SHOWN lines."""
        for item in items[:LINES_SHOWN]:
            self.line(f"{before}{item}")
        if len(items) > LINES_SHOWN:
            self.line(f"{before}and {len(items) - LINES_SHOWN:,} more (--json shows all)")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table: drawn on a terminal, otherwise with tabs between columns, for ``cut`` and ``awk``."""
        if self.as_json or self.quiet:
            return
        if not self.terminal:
            for row in (columns, *rows):
                click.echo("\t".join(" ".join(cell.split()) for cell in row))
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)

    def warnings(self, report: SyncReport) -> None:
        """Print the warnings of a sync."""
        for text in report.warnings[:LINES_SHOWN]:
            self.note(f"warning: {text}")
        if len(report.warnings) > LINES_SHOWN:
            self.note(f"warning: and {len(report.warnings) - LINES_SHOWN:,} more")

    @contextmanager
    def meter(self, verb: str) -> Iterator[Meter]:
        """Show the progress of a transfer while the block runs."""
        from asyncsync.cli.meters import LineMeter, Meter, bar_meter

        if self.quiet or self.as_json:
            yield Meter()
        elif sys.stderr.isatty():
            with bar_meter(verb) as meter:
                yield meter
        else:
            yield LineMeter(self.note, verb)


def describe(error: BaseException) -> str:
    """An error with its notes in one line, with the flags of this command."""
    text = str(error) or type(error).__name__
    parts = [text, *getattr(error, "__notes__", ())]
    return in_flags("; ".join(" ".join(part.split()) for part in parts))


def summary(report: SyncReport, *, verb: str, where: str) -> str:
    """The report of a push, pull or copy in one line. A copy counts what the store copied itself, too."""
    copies = verb == "copied"
    files = report.files_sent + (report.files_copied if copies else 0)
    size = report.bytes_sent + (report.bytes_copied if copies else 0)
    text = (
        f"{verb} {counted(files, 'file')} ({size_text(size)}) {where} in "
        f"{duration_text(report.seconds)}; {report.files_skipped:,} unchanged; {counted(report.requests, 'request')}; "
        f"{size_text(report.bytes_total)} in total"
    )
    if report.bytes_copied:
        text += f"; {size_text(report.bytes_copied)} copied inside the store"
    if report.files_deleted:
        text += f"; {report.files_deleted:,} deleted"
    return text
