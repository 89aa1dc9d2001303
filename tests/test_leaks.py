"""The leak check of every test finds leaked tasks, threads, descriptors and sockets."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LEAKS = """
import asyncio, os, socket, threading
import conftest
conftest.LEAK_SECONDS = 0.1  # nobody is to notice anything here
kept = []

async def test_task():
    kept.append(asyncio.create_task(asyncio.Event().wait()))

def test_thread():
    stop = threading.Event()
    kept.append(stop)
    threading.Thread(target=stop.wait, daemon=True, name="forgotten").start()

def test_descriptor():
    kept.append(open("/dev/null"))

def test_socket():
    kept.append(socket.socket())

async def test_good():
    await asyncio.to_thread(os.getpid)
"""


def test_tasks_threads_descriptors_and_sockets_left_behind_fail_their_test(tmp_path):
    (tmp_path / "test_it.py").write_text(LEAKS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", str(tmp_path)]
    paths = os.pathsep.join([str(HERE), str(HERE / "support"), str(HERE.parent)])
    result = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert "1 failed, 4 passed, 3 errors" in result.stdout, result.stdout + result.stderr
    for expected in ("leaves tasks behind", "thread forgotten", "/dev/null", "socket:["):
        assert expected in result.stdout
