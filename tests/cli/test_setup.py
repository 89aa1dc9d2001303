"""Configuration files, environment variables, misspelled words, completion and doctor."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from asyncsync.cli import app
from asyncsync.cli.options import take_settings, word_of
from asyncsync.cli.setup.option_names import COMMON, OPTIONS
from asyncsync.errors import AccessDeniedError
from asyncsync.testing import MemoryStore, inject_faults, reset_memory

from .conftest import Invoke, imported

Answer = Callable[..., dict[str, Any]]
NO_OPTIONS = ("endpoint_url", "region", "profile", "sse", "storage_class")
FILE = """
[stores.prod]
url = "memory://b/experiments"
secret_access_key = "s3cr3t"

[defaults]
max-concurrency = 7

[defaults.push]
exclude = ["*.tmp"]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    reset_memory()
    room = tmp_path / "here"
    room.mkdir()
    monkeypatch.chdir(room)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return room


def test_a_named_store_is_its_url(invoke: Invoke, here: Path, tree: Path) -> None:
    (here / "asyncsync.toml").write_text(FILE.replace('secret_access_key = "s3cr3t"', ""))
    result = invoke("push", tree, "prod:sweep")
    assert (result.exit_code, "to memory://b/experiments/sweep in" in result.stdout) == (0, True)
    assert sorted(MemoryStore("b", "experiments/sweep").contents) == [".asyncsync/manifest.json", "a.txt", "sub/b.bin"]
    assert invoke("cp", "prod:sweep", "prod:other").exit_code == 0


def test_each_of_two_named_stores_has_its_own_options_only(here: Path) -> None:
    """Otherwise the keys of one would be sent to the server of the other."""
    (here / "asyncsync.toml").write_text(
        '[stores.prod]\nurl = "az://prod"\ntoken = "s3cr3t"\n'
        '[stores.other]\nurl = "az://other"\nendpoint_url = "https://other"'
    )
    for first, second in (("source", "target"), ("first", "second")):
        given = dict.fromkeys((*NO_OPTIONS, "max_concurrency", "part_size", "bandwidth_limit"))
        values = {**given, "extra": (), first: "prod:a", second: "other:b"}
        settings = take_settings(values)
        assert (values[first], settings.storage_options) == ("az://prod/a", {"token": "s3cr3t"})
        assert (values[second], settings.second_options) == ("az://other/b", {"endpoint_url": "https://other"})


def test_named_stores_are_compared(invoke: Invoke, here: Path, tree: Path) -> None:
    text = '[stores.{}]\nurl = "memory://{}"\npage_size = {}\n'
    (here / "asyncsync.toml").write_text(text.format("one", "b", 3) + text.format("two", "c", 4))
    for name in ("one", "two"):
        assert invoke("push", tree, f"{name}:t").exit_code == 0
    assert "0 differences, 4 equal" in invoke("compare", "one:t", "two:t").stdout


def test_an_unknown_store_is_answered_with_the_closest(invoke: Invoke, here: Path, tree: Path) -> None:
    (here / "asyncsync.toml").write_text(FILE)
    result = invoke("push", tree, "prd:sweep")
    assert (result.exit_code, "did you mean 'prod'?" in result.stderr) == (2, True)


def test_the_nearer_file_wins_and_options_win_over_all(answer: Answer, here: Path, tmp_path: Path, tree: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/asyncsync.toml").write_text(
        '[stores.prod]\nurl = "memory://b/far"\n[stores.far]\nurl = "memory://b/f"'
    )
    (here / "asyncsync.toml").write_text(FILE)
    stores = answer("config", "show")["stores"]
    assert stores["prod"]["url"] == "memory://b/experiments"
    assert stores["far"]["url"] == "memory://b/f"
    assert answer("push", tree, "memory://b/t", "--exclude", "a.txt")["files_sent"] == 2


@pytest.mark.parametrize("text", ["[", "stores = 1", "[stores]\nprod = 1", "\x00", '[stores.prod]\nprofile = "x"'])
def test_a_damaged_file_is_exit_code_2_and_no_traceback(invoke: Invoke, here: Path, tree: Path, text: str) -> None:
    (here / "asyncsync.toml").write_text(text)
    result = invoke("push", tree, "prod:x")
    assert result.exit_code == 2
    assert "asyncsync.toml" in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_secrets_are_never_shown(invoke: Invoke, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "asyncsync.toml").write_text(FILE)
    monkeypatch.setenv("ASYNCSYNC_OPTIONS", "secret_access_key=hidden")
    for arguments in ((), ("--json",)):
        text = invoke("config", "show", *arguments).output
        assert "s3cr3t" not in text
        assert "hidden" not in text
        assert "memory://b/experiments" in text


def test_every_option_has_a_variable_but_yes_and_force() -> None:
    context = click.Context(app.cli)
    for name in app.cli.list_commands(context):
        made = app.cli.get_command(context, name)
        assert made is not None
        for option in made.params:
            if isinstance(option, click.Option):
                assert bool(option.envvar) == (option.name not in ("yes", "force")), (name, option.name)


@pytest.mark.parametrize("name", ["ASYNCSYNC_EXCLUDE", "ASYNCSYNC_PUSH_EXCLUDE"])
def test_a_variable_sets_an_option(answer: Answer, tree: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "*.tmp")
    assert answer("push", tree, "memory://b/t")["files_sent"] == 2


def test_what_nothing_reads_is_warned_about(invoke: Invoke, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCSYNC_MAX_CONCURENCY", "3")
    (here / "asyncsync.toml").write_text("[default]\nx = 1\n[defaults]\nbandwith-limit = 1\n")
    text = invoke("status").stderr
    assert "$ASYNCSYNC_MAX_CONCURENCY, did you mean 'ASYNCSYNC_MAX_CONCURRENCY'?" in text
    assert "[default]" in text
    assert "did you mean 'defaults'?" in text
    assert "'bandwith_limit' (defaults), did you mean 'bandwidth_limit'?" in text


def test_the_list_of_options_is_that_of_the_commands() -> None:
    """It is written down so that a warning about an unknown variable imports no command."""
    context, found = click.Context(app.cli), {}
    for name in app.cli.list_commands(context):
        made = app.cli.get_command(context, name)
        assert made is not None
        flags = [flag for item in made.params for flag in item.opts if flag.startswith("--")]
        found[name] = {word_of(flag) for flag in flags}
    assert {name: {*COMMON, *own} for name, own in OPTIONS.items()} == found


@pytest.mark.parametrize("variable", ["ASYNCSYNC_PULL_TIMEOUT", "ASYNCSYNC_NOBODY_READS_THIS"])
def test_a_variable_of_another_command_costs_no_import(variable: str) -> None:
    modules = imported("config", **{variable: "1"})
    assert "asyncsync.cli.setup.config_command" in modules
    assert not {"asyncsync.sync.tree", "asyncsync.engine.engine", "asyncsync.remote.pull"} & modules


def test_ls_imports_neither_the_engine_nor_what_draws(tree: Path) -> None:
    modules = imported("ls", str(tree))
    assert "asyncsync.remote.views.contents" in modules
    assert (
        not {"asyncsync.engine.engine", "rich.console", "rich.progress", "aiobotocore", "asyncsync.sync.tree"} & modules
    )
    assert not {"anyio", "asyncio", "asyncsync.config", "rich"} & imported("--help")


def test_ls_with_keys_given_imports_nothing_that_it_does_not_use(
    seaweedfs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", seaweedfs.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
    bucket = seaweedfs.create_bucket("ls-imports")
    with seaweedfs.client() as client:
        client.put_object(Bucket=bucket, Key="file", Body=b"x")
    modules = imported("ls", f"s3://{bucket}")
    assert "asyncsync.stores.s3.store" in modules
    assert not {"aiobotocore", "aiofiles", "http.client", "rich.console", "urllib.request"} & modules


@pytest.mark.parametrize(("word", "meant"), [("pul", "pull"), ("list", "ls"), ("verfy", "verify"), ("frobnicate", "")])
def test_a_misspelled_command_is_answered_with_the_closest(invoke: Invoke, word: str, meant: str) -> None:
    result = invoke(word, "x")
    assert result.exit_code == 2
    assert (f"did you mean {meant!r}?" if meant else "asyncsync --help") in result.stderr


def test_the_list_of_commands_has_the_first_line_of_each_help() -> None:
    context = click.Context(app.cli)
    shown = [name for name in app.cli.list_commands(context) if name != "demo-read"]
    assert set(app.SUMMARIES) == set(shown)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(invoke: Invoke, shell: str) -> None:
    assert "_ASYNCSYNC_COMPLETE" in invoke("completion", shell).stdout


# doctor


def test_a_healthy_store_passes_and_keeps_nothing(answer: Answer, tmp_path: Path) -> None:
    document = answer("doctor", "memory://b/exp")
    checks = [finding["check"] for finding in document["findings"]]
    assert checks[2:] == [
        "reach",
        "write",
        "read",
        "list",
        "clock",
        "checksums",
        "conditional writes",
        "multipart",
        "speed",
        "delete",
    ]
    assert MemoryStore("b", "exp").contents == {}
    assert answer("doctor", tmp_path / "store")["ok"]


@pytest.mark.parametrize(
    ("operation", "check"), [("list", "list"), ("create_multipart", "multipart"), ("read", "read")]
)
def test_a_missing_permission_is_a_finding(answer: Answer, operation: str, check: str) -> None:
    inject_faults("b").fail(1, AccessDeniedError("403 Forbidden"), operation=operation, times=None)
    document = answer("doctor", "memory://b/exp", code=1)
    failed = {finding["check"]: finding["text"] for finding in document["findings"] if not finding["ok"]}
    assert "403 Forbidden" in failed[check]


def test_a_store_that_refuses_writes_is_one_finding(answer: Answer) -> None:
    inject_faults("b").fail(1, AccessDeniedError("403 Forbidden"), times=None)
    findings = answer("doctor", "memory://b/exp", code=1)["findings"]
    assert [finding["check"] for finding in findings if not finding["ok"]] == ["write"]


def test_doctor_without_a_url_checks_this_machine(invoke: Invoke) -> None:
    result = invoke("doctor")
    assert (result.exit_code, "interrupted uploads" in result.stdout) == (0, False)


# start-up

HELP_ONLY = """
import sys
from asyncsync.cli.app import cli
cli(["--help"], standalone_mode=False)
print([name for name in ("asyncio", "rich", "anyio", "asyncsync.config", "asyncsync.engine") if name in sys.modules])
"""
LS_ONLY = """
import sys
from asyncsync.cli.app import cli
try:
    cli(["ls", "memory://b/nothing"])
except SystemExit:
    print([name for name in ("aiohttp", "aiobotocore", "asyncsync.sync.tree") if name in sys.modules])
"""


@pytest.mark.parametrize("program", [HELP_ONLY, LS_ONLY], ids=["help", "ls"])
def test_a_command_imports_only_what_it_needs(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
