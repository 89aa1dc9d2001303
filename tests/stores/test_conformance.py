"""Every store passes the one suite. Where a server is known to differ, ``kinds.DIFFERENCES`` says so by name."""

import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import kinds
import pytest

from asyncsync.testing import conformance
from asyncsync.testing.conformance import RULES, StoreConformance


@pytest.fixture(params=kinds.parameters())
def kind(request):
    return request.param


class TestEveryStore(StoreConformance):
    @pytest.fixture
    async def store(self, kind, request):
        async with kinds.KINDS[kind](request) as store:
            yield store

    @pytest.fixture
    def differences(self, kind):
        return {rule: reason for (name, rule), reason in kinds.DIFFERENCES.items() if name == kind}


def test_only_known_rules_are_excepted():
    assert {rule for _, rule in kinds.DIFFERENCES} <= RULES
    assert {name for name, _ in kinds.DIFFERENCES} <= set(kinds.KINDS)


def test_the_page_of_stores_counts_the_rules_that_each_server_breaks():
    page = (Path(__file__).parents[2] / "docs/stores.md").read_text()
    rows = {name: int(count) for name, count in re.findall(r"^\|.*\(`([\w-]+)`\).* (\d+) \|$", page, re.MULTILINE)}
    broken = Counter(name for name, _ in kinds.DIFFERENCES)
    assert kinds.SERVERS <= set(rows) <= set(kinds.KINDS)
    assert rows == {name: broken[name] for name in rows}


def test_the_documented_example_runs(tmp_path):
    example = conformance.__doc__.partition("::\n\n")[2].partition("\nA store that")[0]
    (tmp_path / "test_mine.py").write_text(textwrap.dedent(example))
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "head or range_is_read"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed" in done.stdout
