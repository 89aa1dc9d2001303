"""``doctor``: checks this machine and a store."""

from __future__ import annotations

import os
import platform
import sys

import click

from asyncsync import Finding, __version__, diagnose
from asyncsync.cli.app import DONE, FAILED, command
from asyncsync.cli.options import Settings, resolve_url
from asyncsync.cli.output import Output
from asyncsync.config import state_dir

DOCTOR = """Check reach, permissions, clock, checksums, conditional writes, multipart uploads and speed of a store.

Why: it shows the problems of a run on this store, and how to solve them, before the run. It writes a few small objects
below .asyncsync/doctor-... and removes them; about 16 MiB travel. Without URL it checks this machine only.

\b
Examples:
  asyncsync doctor s3://bucket/experiments
  asyncsync doctor ./results --json

Exit codes: 0 everything works, 1 something does not, 2 usage.
"""


@command(help=DOCTOR)
@click.argument("url", required=False)
async def doctor(output: Output, settings: Settings, *, url: str | None) -> int:
    """See DOCTOR."""
    found = [_machine(), _state()]
    if url is not None:
        where = {"storage_options": settings.storage_options, "transfer": settings.transfer}
        found += await diagnose(resolve_url(url), **where)  # type: ignore[arg-type]
    output.table(("", "check", "result"), [("ok" if item.ok else "FAIL", item.check, item.text) for item in found])
    ok = all(item.ok for item in found)
    output.document({"ok": ok, "findings": found})
    return DONE if ok else FAILED


def _machine() -> Finding:
    text = f"asyncsync {__version__}, Python {platform.python_version()}, {sys.platform}, {os.cpu_count()} CPUs"
    return Finding("machine", ok=True, text=text)


def _state() -> Finding:
    """Whether the journal can be kept: without it an interrupted upload starts again."""
    directory = state_dir()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".doctor-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        text = f"{directory} cannot be written ({error}): set ASYNCSYNC_STATE_DIR, or interrupted uploads start again"
        return Finding("state", ok=False, text=text)
    return Finding("state", ok=True, text=f"{directory} keeps what is needed to resume")
