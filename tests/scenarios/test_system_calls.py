"""Whatever system call fails, of Python, of SQLite or of the C library: the errors are ours, no file is half or left
over, no descriptor stays open, and the same work succeeds afterwards.

A few calls of each kind; ``python tests/support/failing_calls/sweep.py`` fails each single one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from failing_calls import SOURCE, WRITING, Plan, build

SWEEP = SOURCE.with_name("sweep.py")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = build(tmp_path_factory.mktemp("library"))
    if built is None:
        pytest.skip("there is no C compiler that builds the library of failing calls")
    return built


@pytest.mark.parametrize(
    ("work", "plan", "first", "stride"),
    [
        ("push", Plan("once"), 4, 37),
        ("push", Plan("once", "EIO", "close,fstat"), 1, 9),
        ("push", Plan("always", "ENOSPC", WRITING), 1, 9),
        ("push", Plan("short"), 1, 200),
        ("pull", Plan("once", "EIO", "close,fstat"), 1, 9),
        ("pull", Plan("once", "EIO", "flock,ftruncate,open"), 2, 11),
        ("pull", Plan("always", "EDQUOT", WRITING), 1, 3),
        ("pull", Plan("always", "EROFS", f"{WRITING},rename,unlink"), 2, 7),
        ("pull", Plan("short"), 1, 200),
        ("engine", Plan("once"), 6, 331),
        ("engine", Plan("once", "ENOSPC", "mkdir,write,open"), 3, 41),
        ("engine", Plan("short"), 1, 900),
    ],
    ids=lambda value: "-".join(vars(value).values()) if isinstance(value, Plan) else str(value),
)
def test_a_failed_system_call_costs_an_error_and_nothing_else(
    library: Path, work: str, plan: Plan, first: int, stride: int
) -> None:
    arguments = [work, "--how", plan.how, "--error", plan.error, "--calls", plan.calls]
    numbers = ["--first", str(first), "--stride", str(stride)]
    environment = os.environ | {"LD_PRELOAD": str(library)}
    command = [sys.executable, str(SWEEP), *arguments, *numbers]
    swept = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert int(swept.stdout.split()[1]) > 1
