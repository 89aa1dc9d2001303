"""The table of rooms in docs/design.md, generated from the docstrings of the packages, so that it cannot lie.

``python docs/generate_rooms.py`` fails if the page differs from the code, or if a package imports a room that its
docstring does not name; ``--write`` writes the table.
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
    "testing",
    "engine",
    "engine/trials",
    "remote",
    "sync",
    "sync/upload",
    "sync/download",
    "sync/records",
    "stores",
    "stores/guard",
    "stores/s3",
    "stores/gcs",
    "stores/local",
    "stores/http",
    "planning",
    "disk",
    "aio",
]
"""From top to bottom: a room imports only rooms below it."""
VOCABULARY = ("config", "errors", "events", "report", "status", "runtime")
"""Modules that every room may import."""
EXCEPTIONS = {("engine", "blocking")}
"""Named exceptions to the rule that imports point down: (room, module)."""
SHAPE = re.compile(r"(?P<purpose>.+?)\n\n.*?May import: (?P<below>.+?)\. Begin with ``(?P<first>\w+\.py)``", re.DOTALL)


def row(room: str) -> str:
    """One line of the table; SystemExit if the docstring does not have the shape that the table needs."""
    match = SHAPE.match(docstring(room))
    if match is None or not (PACKAGE / room / match["first"]).is_file():
        sys.exit(f"asyncsync/{room}/__init__.py: must say 'May import: ``room``, ... . Begin with ``file.py``'")
    purpose, below = (" ".join(match[name].split()).replace("``", "`") for name in ("purpose", "below"))
    return f"| `{room}` | {_without_roles(purpose)} | {below} | `{match['first']}` |"


def docstring(room: str) -> str:
    """The docstring of a package."""
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or ""


def _without_roles(text: str) -> str:
    """``:func:`name``` as plain code."""
    return re.sub(r":\w+:`~?([^`]*)`", lambda match: f"`{match[1].rpartition('.')[2]}`", text)


def undeclared(room: str) -> Iterator[str]:
    """Imports of rooms that the docstring does not name. Modules of the same room of the top level are its own."""
    match = SHAPE.match(docstring(room))
    declared = {name.partition(".")[0] for name in re.findall(r"``([\w.]+)``", match["below"] if match else "")}
    own = room.partition("/")[0]
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for name in imports(path):
            below = name.split(".")[1] if "." in name else own
            if below not in {own, *declared, *VOCABULARY} and (own, below) not in EXCEPTIONS:
                yield f"{path.relative_to(ROOT)} imports {name}, which asyncsync/{room}/__init__.py does not name"


def imports(path: Path) -> Iterator[str]:
    """The modules of asyncsync that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.partition(".")[0] == "asyncsync")


def table() -> str:
    """The table, in Markdown."""
    lines = ["| room | purpose | may import | begin with |", "|---|---|---|---|", *map(row, ROOMS)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Check the page, or write it."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    wanted = f"{head}{BEGIN}{table()}{END}{tail}"
    if "--write" in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        sys.exit(
            "docs/design.md differs from the docstrings of the packages: run python docs/generate_rooms.py --write"
        )
    wrong = [line for room in ROOMS for line in undeclared(room)]
    wrong += [f"asyncsync/{room} is missing in ROOMS" for room in packages() if room not in ROOMS]
    if wrong:
        sys.exit("\n".join(wrong))


def packages() -> list[str]:
    """All packages that need a row: every folder with Python files, except parts of the simulation."""
    found = [str(path.parent.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("__init__.py"))]
    return [room for room in found if room != "." and not room.startswith("testing/")]


if __name__ == "__main__":
    main()
