"""``ui`` and ``report``: look at an experiment in a browser, or in one file."""

from __future__ import annotations

import asyncio
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from asyncsync.aio.threads import in_thread
from asyncsync.cli.app import DONE, command
from asyncsync.cli.options import Settings, resolve_url
from asyncsync.cli.output import Output
from asyncsync.errors import ConfigError
from asyncsync.ui import serve
from asyncsync.ui.html_report import MOST_TRIALS_WITH_CURVES, write_report
from asyncsync.units import size_text

UI = """Show an experiment as a page in the browser, live while it runs.

Why: it shows whether the work is safe now, which trial is best, and which checkpoints are stored and will be kept. It
reads records and the status of engines of this machine. It is served on 127.0.0.1 only, and its address holds a token:
without the address nobody sees the page. It needs asyncsync[ui].

\b
Examples:
  asyncsync ui s3://bucket/experiments/sweep --open
  asyncsync ui ./results/sweep --port 8765
  asyncsync ui s3://bucket/experiments/sweep --allow-changes

Exit codes: 1 it cannot be served, 2 usage, 130 interrupted.
"""

REPORT = """Write the page of an experiment as one file, to keep or to mail.

Why: it shows whether the work is safe, which trial is best and what is stored, without a server, a network or the
store. Curves are those of the best trials by the score of the retention, else of the last updated ones. It needs
asyncsync[ui].

\b
Examples:
  asyncsync report s3://bucket/experiments/sweep
  asyncsync report s3://bucket/experiments/sweep -o sweep.html --curves 100

Exit codes: 0 done, 1 there is no experiment or it cannot be read, 2 usage.
"""


@command(help=UI)
@click.argument("url")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of 127.0.0.1.  [default: a free one]")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@click.option("--allow-changes", is_flag=True, help="Let the page verify, pin and retire checkpoints.")
async def ui(
    output: Output, settings: Settings, *, url: str, port: int, open_browser: bool, allow_changes: bool
) -> int:
    """See UI."""
    uri = resolve_url(url)
    options, transfer = settings.storage_options, settings.transfer
    serving = serve(uri, port=port, allow_changes=allow_changes, storage_options=options, transfer=transfer)
    output.at_interrupt = lambda: "the page is closed"
    async with serving as address:
        output.line(f"the page of {uri} is at {address} until Ctrl-C")
        output.document({"ok": True, "uri": uri, "address": address})
        with _redirection(address) as file:
            if open_browser and not await in_thread(webbrowser.open, f"file://{file}"):
                output.note("no browser was found: open the address in one")
            await asyncio.Event().wait()
    return DONE


@contextmanager
def _redirection(address: str) -> Iterator[str]:
    """A file that leads a browser to the address. Other users can see a command line, but not the file."""
    with tempfile.NamedTemporaryFile("w", prefix="asyncsync-", suffix=".html") as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">')
        file.flush()
        yield file.name


@command(help=REPORT)
@click.argument("url")
@click.option("-o", "--output", "file", type=click.Path(dir_okay=False), default="report.html", show_default=True)
@click.option("--curves", type=click.IntRange(min=0), default=MOST_TRIALS_WITH_CURVES, help="Trials with curves.")
async def report(output: Output, settings: Settings, *, url: str, file: str, curves: int) -> int:
    """See REPORT."""
    uri = resolve_url(url)
    if not Path(file).resolve().parent.is_dir():
        raise ConfigError(f"invalid --output {file!r}: its directory does not exist")
    size = await write_report(
        uri, file, curves=curves, storage_options=settings.storage_options, transfer=settings.transfer
    )
    output.line(f"wrote {file} ({size_text(size)}): open it in a browser")
    output.document({"ok": True, "uri": uri, "file": str(Path(file).resolve()), "bytes": size})
    return DONE
