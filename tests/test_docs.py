"""The documentation is true: its programs run, its commands parse, its tables agree with the code."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

import asyncsync
from asyncsync import SyncConfig, errors
from asyncsync.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page.stem}-{self.line}"


def blocks(language: str) -> list[Block]:
    return [
        Block(page, text.count("\n", 0, match.start()) + 2, language, match[2])
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for match in FENCE.finditer(text)
        if match[1] == language
    ]


PROGRAMS = blocks("python")


@pytest.fixture(scope="session")
def bucket(seaweedfs):
    seaweedfs.create_bucket("my-bucket")
    return {
        "AWS_ENDPOINT_URL": seaweedfs.endpoint,
        "AWS_ACCESS_KEY_ID": seaweedfs.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweedfs.secret_key,
        "AWS_REGION": "us-east-1",
    }


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_every_python_block_is_a_program_that_works(block, tmp_path, request):
    environment = dict(os.environ)
    runs = ("await ", "SyncEngine.blocking(", "asyncsync.blocking")
    if "s3://my-bucket" in block.text and any(word in block.text for word in runs):
        environment |= request.getfixturevalue("bucket")
    room = tmp_path / "room"
    room.mkdir()
    program = "\n" * (block.line - 1) + block.text  # so that a traceback gives the page's own lines
    path = tmp_path / f"{block.page.stem}.py"
    path.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=room,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{block.page.name} line {block.line}:\n{done.stdout}{done.stderr}"


def test_the_pages_have_programs():
    assert len(PROGRAMS) >= 15


COMMANDS = [
    (block, line[2:])
    for block in blocks("console")
    for line in block.text.splitlines()
    if line.startswith("$ asyncsync ") and "--help" not in line
]


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=[line for _, line in COMMANDS])
def test_every_command_that_is_shown_can_be_typed(block, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "model.pt").write_bytes(b"weights")
    _, name, *arguments = shlex.split(line)
    with app.cli.make_context("asyncsync", [name, *arguments]) as context:
        command = app.cli.get_command(context, name)
        with command.make_context(name, arguments, parent=context) as parsed:
            assert parsed.params  # unknown options, missing arguments and wrong values have raised by now


def test_the_command_page_has_every_subcommand():
    text = (ROOT / "docs/command.md").read_text()
    context = app.cli.make_context("asyncsync", ["demo"])
    names = [name for name in app.cli.list_commands(context) if not app.cli.get_command(context, name).hidden]
    assert set(names) == set(re.findall(r"^## (\w+)$", text, re.MULTILINE))


def test_the_command_page_has_every_exit_code():
    text = (ROOT / "docs/command.md").read_text()
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert shown == {app.DONE, app.FAILED, app.USAGE, app.DAMAGED, app.TIMEOUT, app.INTERRUPTED}


def test_the_troubleshooting_page_has_every_error():
    """What it means and what to do: three cells, none of them empty."""
    text = (ROOT / "docs/troubleshooting.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+ \| .+) \|$", text, re.MULTILINE))
    known = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert rows.keys() == known
    assert [name for name, row in rows.items() if min(map(len, row.split(" | "))) < 10] == []


def test_the_monitoring_page_has_every_metric():
    prometheus = pytest.importorskip("asyncsync.integrations.prometheus")
    text = (ROOT / "docs/monitoring.md").read_text()
    shown = {name.removesuffix("_total") for name in re.findall(r"`(asyncsync_[a-z_]+)", text)}
    assert shown == {metric.name for metric in prometheus.EngineCollector(list).describe()}


@pytest.mark.parametrize(
    ("heading", "module", "name"),
    [
        ("S3", "s3", "S3Options"),
        ("Google Cloud Storage", "gcs", "GcsOptions"),
        ("Azure Blob Storage", "azure", "AzureOptions"),
    ],
)
def test_the_stores_page_has_every_option(heading, module, name):
    options = getattr(pytest.importorskip(f"asyncsync.stores.{module}.options"), name)
    section = (ROOT / "docs/stores.md").read_text().partition(f"## {heading}\n")[2]
    table = section.partition("| `storage_options` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {
        item.name for item in dataclasses.fields(options)
    }


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs/configuration.md").read_text()
    shown = set(re.findall(r"^::: (asyncsync[\w.]+)$", text, re.MULTILINE))
    names = {name: getattr(getattr(asyncsync, name), "__module__", "") for name in asyncsync.__all__}
    missing = {name for name, module in names.items() if not {f"asyncsync.{name}", module} & shown}
    assert missing == {"__version__"}


def test_the_reference_names_everything_without_await():
    text = (ROOT / "docs/configuration.md").read_text().partition("## Without await\n")[2].partition("```")[0]
    own = {name for name in asyncsync.blocking.__all__ if not name.startswith(("Blocking", "Stored"))}
    assert own <= set(re.findall(r"`(\w+)`", text))


def test_the_ray_page_has_every_field_of_syncconfig():
    text = (ROOT / "docs/from-ray.md").read_text()
    missing = [item.name for item in dataclasses.fields(SyncConfig) if f"`{item.name}`" not in text and item.init]
    assert missing == []


def test_ci_runs_the_commands_of_the_readme():
    shown = [line for block in blocks("sh") if block.page.name == "README.md" for line in block.text.splitlines()]
    ci = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in shown if line.startswith("python3")] == ["python3 run.py demo", "python3 run.py test"]
    assert [line for line in ci if line.startswith("python3")][-2:] == ["python3 run.py demo", "python3 run.py test"]


def test_every_link_between_pages_leads_somewhere():
    broken = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_every_page_can_be_found():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    index, readme, nav = ((ROOT / name).read_text() for name in ("docs/index.md", "README.md", "mkdocs.yml"))
    assert pages <= set(re.findall(r"\]\(([\w-]+\.md)\)", index))
    assert pages <= set(re.findall(r"\]\(docs/([\w-]+\.md)\)", readme))
    assert pages <= set(re.findall(r"^  - .*: ([\w-]+\.md)$", nav, re.MULTILINE))


def test_the_design_page_has_every_room_of_the_house():
    text = (ROOT / "docs/design.md").read_text()
    rooms = {path.stem for path in (ROOT / "asyncsync").iterdir() if path.is_dir() or path.suffix == ".py"}
    missing = [room for room in sorted(rooms) if not room.startswith("__") and f"`{room}`" not in text]
    assert missing == []


def test_the_charts_are_what_the_tables_say():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/generate_charts.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_of_rooms_is_that_of_the_packages():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/generate_rooms.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_man_page_is_that_of_the_commands():
    script, here = str(ROOT / "docs/generate_man.py"), {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert built["shared-data"] == {"docs/asyncsync.1": "share/man/man1/asyncsync.1"}


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff, which renders man pages, is not installed")
def test_the_man_page_is_rendered_without_a_warning():
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", str(ROOT / "docs/asyncsync.1")], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "asyncsync pull [OPTIONS] URL LOCAL" in re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)


@pytest.mark.parametrize("block", blocks("mermaid"), ids=str)
def test_a_walk_has_few_modules_and_never_goes_back_up(block):
    rooms = re.findall(r'^    "([\w/]+)",$', (ROOT / "docs/generate_rooms.py").read_text(), re.MULTILINE)
    nodes = dict(re.findall(r'(\w+)\["([\w/]+\.py)<br>', block.text))
    assert 10 <= len(nodes) <= 16
    for path in nodes.values():
        assert (ROOT / "asyncsync" / path).is_file(), path
    floor = {name: rooms.index(path.rpartition("/")[0]) for name, path in nodes.items()}
    arrows = re.findall(r"^ +(\w+)[^-]*(?:-->|-- .* -->|-. .* .->) (\w+)", block.text, re.MULTILINE)
    assert len(arrows) >= len(nodes) - 1
    assert [(above, below) for above, below in arrows if floor[above] > floor[below]] == []


def test_the_contributing_page_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    assert len(table) >= 15
    missing = [
        name
        for name in re.findall(r"`([\w./-]+\.(?:py|md|toml|js))`", text)
        if not ((ROOT / name).exists() or (ROOT / "asyncsync" / name).exists())
    ]
    assert missing == []
    assert all(re.search(r"\.(py|md|toml|js)`", line) for line in table)
