"""run.py forwards signals to its program and waits for it."""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "run.py"

START = f"""
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("run", {str(RUN)!r})
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
sys.exit(run.become([sys.executable, "-c", sys.argv[1]], dict(os.environ)))
"""

PROGRAM = """
import signal, sys, time
seen = []
def handle(number, frame):
    seen.append(number)
for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(kind, handle)
print("ready", flush=True)
while not seen:
    signal.pause()
time.sleep(0.4)  # a starter that does not wait has ended by then
print("ended by", seen, flush=True)
sys.exit(7)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_its_program_gets_each_signal_once_and_is_waited_for(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", START, PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=30)
    assert stdout == f"ended by [{number.value}]\n"
    assert process.returncode == 7


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("run", RUN)
    assert spec is not None
    assert spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    monkeypatch.setattr(run, "prepare", lambda kind: None)
    monkeypatch.setattr(sys, "argv", ["run.py", "no-such-program"])
    with pytest.raises(SystemExit, match="there is no program 'no-such-program'"):
        run.main()
