"""The charts of docs/performance.md, drawn from the tables of that page, which the benchmark printed.

``python docs/generate_charts.py`` fails if a chart differs from its table; ``--write`` draws. After a new run, paste
the tables of ``python benchmarks/run.py --show benchmarks/results/FILE.json`` into the page and draw again.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "performance.md"
PICTURES = DOCS / "pictures"
CHARTS = (("small", "sink"), ("small", "sink-30ms"), ("large", "sink"), ("trials", "seaweedfs"))
PLACES = {"sink": "a sink on the same machine", "sink-30ms": "a sink 30 ms away", "seaweedfs": "SeaweedFS"}
COLUMNS = {"work s": "seconds", "of it work": "CPU seconds", "peak MB": "peak memory, MB"}
LEFT, BAR, ROW, TOP, WIDTH = 150, 150, 26, 74, 810
LONGEST = 6
"""A bar is at most so many times as long as the shortest of its column."""
STYLE = """
    text { fill: #0f172a } .small { fill: #475569; font-size: 12.5px } .title { font-weight: 600; font-size: 15px }
    .ours { fill: #2563eb } .other { fill: #94a3b8 } .cut { stroke: #ffffff; stroke-width: 3 }
    @media (prefers-color-scheme: dark) {
      text { fill: #f1f5f9 } .small { fill: #cbd5e1 } .ours { fill: #60a5fa } .other { fill: #64748b }
      .cut { stroke: #0f172a }
    }
"""


Rows = list[tuple[str, dict[str, float]]]


def table(page: str, case: str, server: str) -> tuple[str, Rows]:
    """What was sent, and the peers with the value of each column, the quickest first."""
    found = re.search(rf"^### {case} on {server}: (.*)\n\n\| \|(.*)\n.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{PAGE.name} has no table of {case} on {server}")
    names = [name.strip() for name in found[2].split("|")]
    rows = []
    for line in found[3].splitlines():
        peer, *values = (cell.strip() for cell in line.strip("|").split("|"))
        given = dict(zip(names, values, strict=False))
        rows.append((peer.split(" (")[0], {name: float(given[name].replace(",", "")) for name in COLUMNS}))
    return found[1].removesuffix(", up"), rows


def chart(what: str, server: str, rows: Rows) -> str:
    """A picture with a row for each peer and bars for time, CPU and memory."""
    height = TOP + ROW * len(rows) + 8
    title = html.escape(f"{what}, uploaded to {PLACES[server]}: shorter is better")
    body = [f'<text class="title" x="12" y="26">{title}</text>']
    for number, (key, label) in enumerate(COLUMNS.items()):
        body += _column(LEFT + number * (BAR + 70), label, [(name, row[key]) for name, row in rows])
    body += [f'<text x="12" y="{TOP + ROW * number + 15}">{name}</text>' for number, (name, _) in enumerate(rows)]
    lines = "\n  ".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title" '
        f'font-family="system-ui, sans-serif" font-size="14">\n  <title id="title">{title}</title>\n'
        f"  <style>{STYLE}  </style>\n  {lines}\n</svg>\n"
    )


def _column(left: int, label: str, values: list[tuple[str, float]]) -> list[str]:
    """Bars up to six times the least value; longer ones are cut, and their number says how long they are."""
    longest = min(max(value for _, value in values), LONGEST * min(value for _, value in values))
    lines = [f'<text class="small" x="{left}" y="{TOP - 14}">{label}</text>']
    for number, (name, value) in enumerate(values):
        lines += _bar(
            left, TOP + ROW * number, value / longest, value, ours=name.startswith("asyncsync"), fine="MB" not in label
        )
    return lines


def _bar(left: int, top: int, share: float, value: float, *, ours: bool, fine: bool) -> list[str]:
    width = max(1.0, BAR * min(1.0, share))
    shown = f"{value:,.2f}" if fine else f"{value:,.0f}"
    kind = "ours" if ours else "other"
    lines = [f'<rect class="{kind}" x="{left}" y="{top}" width="{width:.1f}" height="20" rx="2"/>']
    if share > 1:
        lines.append(f'<path class="cut" d="M{left + width - 14:.1f} {top + 23}l6 -26"/>')
    return [*lines, f'<text class="small" x="{left + width + 6:.1f}" y="{top + 15}">{shown}</text>']


def main() -> int:
    """Compare the charts with their tables, or draw them. Returns 1 if one differs."""
    page, wrong = PAGE.read_text(), []
    for case, server in CHARTS:
        what, rows = table(page, case, server)
        path, drawn = PICTURES / f"{case}-{server}.svg", chart(what, server, rows)
        if "--write" in sys.argv:
            path.write_text(drawn)
        elif not path.is_file() or path.read_text() != drawn:
            wrong.append(path.name)
    if wrong:
        print(f"{', '.join(wrong)}: not what the tables of {PAGE.name} say; run python docs/generate_charts.py --write")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
