"""The command ``asyncsync ui``, as a process and with a browser."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from onebench import Bench

from asyncsync.cli.app import cli

ROOT = Path(__file__).parents[2]


def test_ctrl_c_ends_it_while_a_page_listens(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "asyncsync", "ui", str(tmp_path / "nothing"), "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        address = json.loads(running.stdout.readline())["address"]
        parts = urlsplit(address)
        with socket.create_connection((parts.hostname, parts.port)) as client:
            client.sendall(f"GET {parts.path}events HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
            while b"data: " not in client.recv(4096):
                pass
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert errors == "interrupted: the page is closed\n"


def test_the_token_is_on_no_command_line(sweep: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser is given a file that only its user can read, and that leads to the address."""
    seen: list[str] = []

    def opened(url: str) -> bool:
        path = Path(urlsplit(url).path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        seen.extend((url, path.read_text()))
        signal.raise_signal(signal.SIGINT)
        return True

    monkeypatch.setattr(webbrowser, "open", opened)
    result = CliRunner().invoke(cli, ["ui", "memory://b/exp", "--open"])
    address = re.search(r"http://\S+", result.stdout)[0]
    assert result.exit_code == 130
    assert address not in seen[0]
    assert f"url={address}" in seen[1]
    assert not Path(urlsplit(seen[0]).path).exists()


def test_a_report_into_a_directory_that_does_not_exist_is_refused_first(sweep: Bench, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["report", "memory://b/exp", "-o", str(tmp_path / "none" / "r.html")])
    assert (result.exit_code, "its directory does not exist" in result.stderr) == (2, True)
    assert not sweep.faults.requests or sweep.faults.requests[-1].operation == "put"
