"""The report: one file with everything in it, that runs nothing but its own scripts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from onebench import Bench

from asyncsync.cli.app import cli
from asyncsync.errors import NotFoundError
from asyncsync.ui import write_report
from asyncsync.ui.html_report import chosen
from asyncsync.ui.retention_forecast import RetentionRule

from .conftest import ATTACK, URI


def scripts(text: str) -> list[tuple[str, str]]:
    """Attributes and content of each script element, as a browser finds them."""
    return re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)


async def test_every_script_and_style_is_named_by_its_hash(sweep: Bench, tmp_path: Path) -> None:
    await write_report(URI, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    code = [content for attributes, content in scripts(text) if not attributes]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    for content in (*code, style):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(code) == 1
    assert "default-src 'none'" in policy
    assert "http" not in policy


async def test_texts_of_records_stay_texts(sweep: Bench, tmp_path: Path) -> None:
    await write_report(URI, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<img" not in text
    assert [attributes for attributes, _ in scripts(text)] == [
        ' type="application/json" id="data"',
        ' type="text/plain" id="plotly"',
        "",
    ]
    data = json.loads(scripts(text)[0][1])
    hostile = next(trial for trial in data["details"] if trial["name"] == "hostile")
    assert hostile["error"] == ATTACK


async def test_it_is_readable_without_scripts(sweep: Bench, tmp_path: Path) -> None:
    await write_report(URI, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    static = text[text.index('<div id="static">') : text.index('<script type="application/json"')]
    assert "t0" in static
    assert "<polyline" in static


async def test_a_trial_whose_reports_cannot_be_read_says_so(sweep: Bench, tmp_path: Path) -> None:
    await sweep.store.put("t0/result.json", b"{]\n")
    await write_report(URI, tmp_path / "r.html")
    data = json.loads(scripts((tmp_path / "r.html").read_text())[0][1])
    assert "damaged" in next(trial for trial in data["details"] if trial["name"] == "t0")["unread"]


@pytest.mark.parametrize("many", [60], indirect=True)
async def test_the_best_trials_have_curves(many: int, tmp_path: Path) -> None:
    await write_report(URI, tmp_path / "r.html", curves=5)
    data = json.loads(scripts((tmp_path / "r.html").read_text())[0][1])
    losses = dict(zip(data["table"]["values"]["trial"], data["table"]["values"]["metric:loss"], strict=True))
    best = sorted(losses, key=losses.__getitem__)[:5]
    assert [trial["name"] for trial in data["details"]] == best
    assert len(losses) == many


def test_no_trial_is_chosen_from_none() -> None:
    assert chosen([], RetentionRule(), 5) == []


@pytest.mark.parametrize(("uri", "advice"), [("memory://b", "NAME: exp"), (f"{URI}/t0", f"experiment, {URI}")])
async def test_an_address_above_or_below_an_experiment_names_it(sweep: Bench, tmp_path: Path, uri, advice) -> None:
    with pytest.raises(NotFoundError, match=re.escape(advice)):
        await write_report(uri, tmp_path / "r.html")


async def test_nothing_is_written_without_an_experiment(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("earlier")
    with pytest.raises(NotFoundError):
        await write_report("memory://b/nothing", tmp_path / "r.html")
    assert [path.name for path in tmp_path.glob("*r.html*")] == ["r.html"]
    assert (tmp_path / "r.html").read_text() == "earlier"


def test_the_command_writes_it(sweep: Bench, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["report", URI, "-o", str(tmp_path / "r.html"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["bytes"] == (tmp_path / "r.html").stat().st_size
    assert CliRunner().invoke(cli, ["report", "memory://b/nothing", "-o", str(tmp_path / "n.html")]).exit_code == 1
    assert not (tmp_path / "n.html").exists()
