"""The HTML of the page and of the report, and the policy that a browser holds them to.

No script or style comes from anywhere but this package and the package ``plotly``. Nothing is evaluated, and records
never become markup: the scripts write texts with ``textContent`` only.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import importlib.util
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

from asyncsync.errors import ConfigError

SCRIPTS = ("base.js", "charts.js", "parallel.js", "table.js", "views.js", "page.js")
EMPTY_STYLE = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
"""The hash of an empty text. plotly adds an empty style element for charts and inserts its rules by ``insertRule``;
drawings have style attributes. Its other style element is for maps and stays blocked: the page has no map."""
NOTHING_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'"
PAGE_POLICY = (
    f"{NOTHING_ELSE}; frame-ancestors 'none'; connect-src 'self'; img-src data:; script-src 'self'; "
    f"style-src 'self' {EMPTY_STYLE}; style-src-attr 'unsafe-inline'"
)


@cache
def static_file(name: str) -> bytes:
    """A file of this package."""
    return files("asyncsync.ui").joinpath("static", name).read_bytes()


@cache
def script() -> bytes:
    """All scripts of the page, in order."""
    return b"\n".join(static_file(name) for name in SCRIPTS)


@cache
def plotly_script() -> bytes:
    """The script of plotly, from its package. ConfigError if that is not installed."""
    spec = None
    with suppress(ModuleNotFoundError):
        spec = importlib.util.find_spec("plotly")  # importing it takes longer than drawing a page
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = Path(places[0], "package_data", "plotly.min.js") if places else None
    if path is None or not path.is_file():
        raise ConfigError("the page needs the package plotly: pip install 'asyncsync[ui]'")
    return path.read_bytes()


def page() -> str:
    """The page that the server sends; it fetches its data itself."""
    style, script_tag = '<link rel="stylesheet" href="page.css">', '<script src="page.js" defer></script>'
    return _document(style, script_tag, policy=None, title="asyncsync")


def report(title: str, data: bytes, without_scripts: str) -> str:
    """A page that holds its data and everything else, about 2 MB. ``without_scripts``: HTML for mail programs."""
    style, code = static_file("page.css").decode(), script().decode()
    packed = base64.b64encode(gzip.compress(plotly_script(), mtime=0)).decode()
    policy = (
        f"{NOTHING_ELSE}; img-src data:; script-src {_hash(code)} blob:; style-src {_hash(style)} {EMPTY_STYLE}; "
        "style-src-attr 'unsafe-inline'"
    )
    body = (
        f'<div id="static">{without_scripts}</div>'
        f'<script type="application/json" id="data">{data.decode()}</script>'
        f'<script type="text/plain" id="plotly">{packed}</script><script>{code}</script>'
    )
    return _document(f"<style>{style}</style>", body, policy=policy, title=title)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _document(head: str, body: str, *, policy: str | None, title: str) -> str:
    meta = "" if policy is None else f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{meta}<meta name="referrer" content="no-referrer">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title>{head}</head><body>{body}</body></html>"
    )
