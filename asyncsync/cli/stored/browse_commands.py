"""``tree``, ``du`` and ``cat``: look at any prefix, also one of another program."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import click

from asyncsync import StoredObject, browse, read_object
from asyncsync.aio.threads import in_thread
from asyncsync.cli.app import DONE, command
from asyncsync.cli.options import Settings, resolve_url
from asyncsync.cli.output import Output
from asyncsync.units import counted, size_text

TREE = """Show the directories and files below a URL as a tree.

Why: it shows any prefix, also one that asyncsync did not write, with the size of every directory. The documents of
asyncsync are left out.

\b
Examples:
  asyncsync tree s3://bucket/experiments/sweep --depth 2
  asyncsync tree s3://bucket/results --json

Exit codes: 0 done, 1 there is nothing or it cannot be read, 2 usage.
"""

DU = """Show the sizes of the directories below a URL, the largest first.

Why: it shows where the bytes are before you remove something. It lists every object, one request per thousand.

\b
Examples:
  asyncsync du s3://bucket/experiments
  asyncsync du s3://bucket/experiments/sweep --depth 2

Exit codes: 0 done, 1 there is nothing or it cannot be read, 2 usage.
"""

CAT = """Write one object to stdout.

Why: to look into a result or a log without fetching a directory.

\b
Examples:
  asyncsync cat s3://bucket/experiments/sweep/trial_00003/result.json
  asyncsync cat s3://bucket/results/model.pt > model.pt

Exit codes: 0 done, 1 there is no such object or it cannot be read, 2 usage.
"""


@dataclass(slots=True)
class _Branch:
    """A directory of a listing."""

    name: str
    size: int = 0
    files: int = 0
    directories: dict[str, _Branch] = field(default_factory=dict)
    objects: list[StoredObject] = field(default_factory=list)

    @classmethod
    def of(cls, objects: Sequence[StoredObject]) -> _Branch:
        root = cls("")
        for item in objects:
            *steps, _ = item.path.split("/")
            place = root
            place.add(item.size)
            for step in steps:
                place = place.directories.setdefault(step, cls(step))
                place.add(item.size)
            place.objects.append(item)
        return root

    def add(self, size: int) -> None:
        self.size += size
        self.files += 1

    def walk(self, depth: int, path: str = "") -> Iterator[tuple[str, _Branch]]:
        """Every directory down to ``depth`` levels, with its path."""
        for name, inner in self.directories.items():
            yield f"{path}{name}/", inner
            if depth > 1:
                yield from inner.walk(depth - 1, f"{path}{name}/")

    def lines(self, depth: int, before: str = "") -> Iterator[str]:
        """The tree for people."""
        inner: list[_Branch | StoredObject] = [*self.directories.values(), *self.objects]
        for place, item in enumerate(inner, start=1):
            last = place == len(inner)
            branch = before + ("`-- " if last else "|-- ")
            if isinstance(item, StoredObject):
                yield f"{branch}{item.path.rpartition('/')[2]} ({size_text(item.size)})"
                continue
            yield f"{branch}{item.name}/ ({counted(item.files, 'file')}, {size_text(item.size)})"
            if depth > 1:
                yield from item.lines(depth - 1, before + ("    " if last else "|   "))


@command(help=TREE)
@click.argument("url")
@click.option("--depth", type=click.IntRange(min=1), default=20, metavar="N", help="Levels to show.  [default: 20]")
async def tree(output: Output, settings: Settings, *, url: str, depth: int) -> int:
    """See TREE."""
    uri = resolve_url(url)
    objects = await browse(uri, storage_options=settings.storage_options, transfer=settings.transfer)
    root = _Branch.of(objects)
    output.line(uri)
    for line in root.lines(depth):
        output.line(line)
    output.line(f"{counted(root.files, 'file')}, {size_text(root.size)}")
    output.document({"ok": True, "uri": uri, "files": objects, "bytes": root.size})
    return DONE


@command(help=DU)
@click.argument("url")
@click.option("--depth", type=click.IntRange(min=1), default=1, metavar="N", help="Levels to show.  [default: 1]")
async def du(output: Output, settings: Settings, *, url: str, depth: int) -> int:
    """See DU."""
    uri = resolve_url(url)
    root = _Branch.of(await browse(uri, storage_options=settings.storage_options, transfer=settings.transfer))
    found = sorted(root.walk(depth), key=lambda pair: -pair[1].size)
    rows = [(size_text(item.size), f"{item.files:,}", path) for path, item in found]
    output.table(("size", "files", "path"), [*rows, (size_text(root.size), f"{root.files:,}", ".")])
    directories = [{"path": path, "bytes": item.size, "files": item.files} for path, item in found]
    output.document({"ok": True, "uri": uri, "bytes": root.size, "files": root.files, "directories": directories})
    return DONE


@command(help=CAT)
@click.argument("url")
async def cat(output: Output, settings: Settings, *, url: str) -> int:
    """See CAT."""
    uri = resolve_url(url)
    stdout = sys.stdout.buffer
    pieces: list[bytes] = []

    async def write(piece: bytes) -> None:
        if output.as_json:
            pieces.append(piece)
        else:
            await in_thread(stdout.write, piece)

    size = await read_object(uri, write, storage_options=settings.storage_options, transfer=settings.transfer)
    stdout.flush()
    text = b"".join(pieces).decode(errors="replace")
    output.document({"ok": True, "uri": uri, "bytes": size, "text": text})
    return DONE
