"""``-v``, ``-vv``, ``--log-file`` and ``--log-json``."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from asyncsync.cli.command_log import command_log, secrets_of

from .conftest import Invoke

log = logging.getLogger("asyncsync")


@pytest.mark.parametrize(
    ("verbose", "shown"), [(0, ["w"]), (1, ["w", "i"]), (2, ["w", "i", "d"]), (9, ["w", "i", "d"])]
)
def test_each_v_shows_more(capsys: pytest.CaptureFixture[str], verbose: int, shown: list[str]) -> None:
    with command_log(verbose, None, {}, as_json=True):
        log.warning("w")
        log.info("i")
        log.debug("d")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["message"] for line in lines] == shown


def test_the_file_has_everything_and_the_terminal_what_was_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with command_log(0, str(tmp_path / "log"), {}, as_json=False):
        log.debug("a decision")
    assert "a decision" in (tmp_path / "log").read_text()
    assert capsys.readouterr().err == ""


def test_secret_values_are_hidden_also_in_tracebacks(tmp_path: Path) -> None:
    options = {"secret_access_key": "s3cr3t-value", "region": "us-east-1", "session_token": "tok", "sas": "sig=abcdef"}
    assert secrets_of(options) == ("s3cr3t-value", "sig=abcdef")
    assert secrets_of({"connection_string": "AccountName=a;AccountKey=b"})
    for as_json in (False, True):
        with command_log(2, str(tmp_path / "log"), options, as_json=as_json):
            log.info("key %s in us-east-1", "s3cr3t-value")
            try:
                raise ValueError("s3cr3t-value and sig=abcdef")
            except ValueError:
                log.exception("failed")
    text = (tmp_path / "log").read_text()
    assert "s3cr3t-value" not in text
    assert "sig=abcdef" not in text
    assert text.count("us-east-1") == 2


def test_afterwards_nothing_is_changed() -> None:
    before = (log.level, list(log.handlers))
    with command_log(2, None, {}, as_json=False):
        pass
    assert (log.level, list(log.handlers)) == before


def test_a_push_tells_its_decisions(invoke: Invoke, tree: Path, tmp_path: Path) -> None:
    result = invoke("push", tree, "memory://b/t", "--log-file", tmp_path / "log", "--log-json")
    assert result.exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert any("SyncFinished" in line["message"] for line in lines)


def test_a_log_file_that_cannot_be_written_is_exit_code_2(invoke: Invoke, tree: Path, tmp_path: Path) -> None:
    result = invoke("push", tree, "memory://b/t", "--log-file", tmp_path / "no" / "log")
    assert (result.exit_code, "--log-file" in result.stderr) == (2, True)
