"""Writes the man page of the command, docs/asyncsync.1, from its own help: ``python docs/generate_man.py --write``.

Without ``--write`` it checks that the page is current. The wheel installs it below share/man/man1.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from asyncsync.cli.app import HELP, SUMMARIES, cli
from asyncsync.planning.document import __version__

PAGE = Path(__file__).with_name("asyncsync.1")
FILES = (
    ("~/.config/asyncsync.toml", "Named stores, and defaults of options; asyncsync config show explains it."),
    ("./asyncsync.toml", "The same; wins over the file above."),
    ("~/.local/state/asyncsync", "The journal that lets interrupted uploads resume; ASYNCSYNC_STATE_DIR moves it."),
)


def page() -> str:
    """The whole page in roff."""
    return "\n".join([*_head(), *_commands(), *_common(), *_tail()]) + "\n"


def _head() -> Iterator[str]:
    yield f'.TH ASYNCSYNC 1 "" "asyncsync {__version__}" "User Commands"'
    yield ".SH NAME"
    yield r"asyncsync \- keep directories, experiments and their checkpoints safe in a store"
    yield ".SH SYNOPSIS"
    yield r".B asyncsync"
    yield r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]"
    yield ".SH DESCRIPTION"
    yield from _prose(HELP)


def _commands() -> Iterator[str]:
    yield ".SH COMMANDS"
    context = click.Context(cli, info_name="asyncsync")
    for name in SUMMARIES:
        made = cli.get_command(context, name)
        assert made is not None
        usage = " ".join(made.collect_usage_pieces(click.Context(made, info_name=name)))
        yield f".SS {_text(f'asyncsync {name} {usage}')}"
        yield from _prose(made.help or "")
        yield from _options(item for item in made.params if item.name not in _common_names())


def _common() -> Iterator[str]:
    yield ".SH OPTIONS OF ALL COMMANDS"
    made = cli.get_command(click.Context(cli), "du")
    assert made is not None
    yield from _options(item for item in made.params if item.name in _common_names())


def _common_names() -> set[str]:
    context = click.Context(cli)
    commands = [cli.get_command(context, name) for name in SUMMARIES]
    return set.intersection(*({str(item.name) for item in made.params} for made in commands if made is not None))


def _tail() -> Iterator[str]:
    yield ".SH ENVIRONMENT"
    yield _text(
        "ASYNCSYNC_OPTION or ASYNCSYNC_COMMAND_OPTION, such as ASYNCSYNC_PART_SIZE or ASYNCSYNC_PULL_TIMEOUT, sets an "
        "option. ASYNCSYNC_OPTIONS holds -o KEY=VALUE pairs, separated by spaces; use it for secrets."
    )
    yield ".SH FILES"
    for path, text in FILES:
        yield from (".TP", f".I {_text(path)}", _text(text))


def _options(items: Iterable[click.Parameter]) -> Iterator[str]:
    context = click.Context(cli)
    for item in items:
        record = item.get_help_record(context) if isinstance(item, click.Option) else None
        if record is not None:
            yield from (".TP", f".B {_text(record[0])}", _text(re.sub(r"\s+", " ", record[1])))


def _prose(text: str) -> Iterator[str]:
    """Paragraphs of help. One that begins with click's ``\\b`` keeps its lines."""
    for paragraph in text.strip().split("\n\n"):
        yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", *(_text(line) for line in paragraph.split("\n")[1:]), ".fi")
        else:
            yield _text(" ".join(paragraph.split()))


def _text(line: str) -> str:
    escaped = line.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is not current: python docs/generate_man.py --write")
