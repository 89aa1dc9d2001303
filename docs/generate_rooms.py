"""The table of rooms in docs/design.md, generated from the packages, so that it cannot lie.

The purpose of a room and the file to begin with come from the docstring of its package ("Begin with ``file.py``"), the
imports from its code. ``python docs/generate_rooms.py`` fails if the page differs; ``--write`` writes the table.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "asyncsync"
PAGE = ROOT / "docs/design.md"
BEGIN, END = "<!-- rooms: begin -->\n", "<!-- rooms: end -->\n"
ROOMS = [
    "cli",
    "cli/setup",
    "cli/running",
    "cli/stored",
    "integrations/ray",
    "integrations/ray/agent",
    "testing",
    "ui",
    "blocking",
    "engine",
    "engine/trials",
    "storage",
    "remote/manage",
    "remote/views",
    "remote",
    "sync",
    "sync/upload",
    "sync/download",
    "sync/records",
    "stores",
    "stores/guard",
    "stores/s3",
    "stores/gcs",
    "stores/azure",
    "stores/fsspec",
    "stores/local",
    "stores/http",
    "disk",
    "aio",
    "planning",
]
"""From top to bottom: a room imports only rooms below it."""
UPWARD = {"engine": ["blocking"]}
"""``SyncEngine.blocking()`` opens the facade above it: the one import that points up."""
SENTENCE = re.compile(r"(.+?\.)(?:\s|$)", re.DOTALL)
FIRST_FILE = re.compile(
    r"(?:begin|start)\s+(?:with|reading\s+at)\s+(?::mod:`[~.\w]*?|``)(\w+)(?:\.py)?`", re.IGNORECASE
)


def row(room: str) -> str:
    """One line of the table; SystemExit if the docstring lacks the purpose or the file to begin with."""
    text = docstring(room)
    purpose, first = SENTENCE.match(text), FIRST_FILE.search(text)
    if purpose is None or first is None or not (PACKAGE / room / f"{first[1]}.py").is_file():
        sys.exit(
            f"asyncsync/{room}/__init__.py: the docstring must say what the room is for, and 'Begin with ``x.py``'"
        )
    sentence = _without_roles(" ".join(purpose[1].split())).replace("``", "`")
    below = ", ".join(f"`{name}`" for name in rooms_below(room)) or "no other room"
    return f"| `{room}` | {sentence} | {below} | `{first[1]}.py` |"


def docstring(room: str) -> str:
    """The docstring of a package."""
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or ""


def _without_roles(text: str) -> str:
    """``:func:`name``` as plain code."""
    return re.sub(r":\w+:`~?([^`]*)`", lambda match: f"`{match[1].rpartition('.')[2]}`", text)


def rooms_below(room: str) -> list[str]:
    """The rooms that a room imports: of its own top-level room the inner ones, of all others the top level."""
    own = room.partition("/")[0]
    found = set()
    for path in (PACKAGE / room).rglob("*.py"):
        folder = path.relative_to(PACKAGE).parent
        if any(str(each) in ROOMS and f"{each}".startswith(f"{room}/") for each in (folder, *folder.parents)):
            continue  # it belongs to another row
        for name in imports(path):
            inner = [other for other in ROOMS if f"{name}.".startswith(f"asyncsync.{other.replace('/', '.')}.")]
            found |= {other if other.startswith(f"{own}/") else other.partition("/")[0] for other in inner[-1:]}
    found -= {own, room, *UPWARD.get(room, ())}
    return [other for other in ROOMS if other in found]


def imports(path: Path) -> Iterator[str]:
    """The modules of asyncsync that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.partition(".")[0] == "asyncsync")


def table() -> str:
    """The table, in Markdown."""
    lines = ["| room | purpose | imports | begin with |", "|---|---|---|---|", *map(row, ROOMS)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Check the page, or write it."""
    missing = [room for room in packages() if room not in ROOMS]
    if missing:
        sys.exit(f"ROOMS in docs/generate_rooms.py lacks {', '.join(missing)}")
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    wanted = f"{head}{BEGIN}{table()}{END}{tail}"
    if "--write" in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        sys.exit("docs/design.md differs from the packages: run python docs/generate_rooms.py --write")


def packages() -> list[str]:
    """The packages that need a row: all but those inside a room of the table, such as the simulation, and the
    package that only holds the integrations."""
    found = [str(path.parent.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("__init__.py"))]
    plain = {".", "integrations"}
    return [room for room in found if room not in plain and room.count("/") < 2 and not room.startswith("testing/")]


if __name__ == "__main__":
    main()
