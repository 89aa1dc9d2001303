"""Real trainings of tiny models, each in processes of its own, on SeaweedFS. ``nox -s integrations`` runs them.

A test is skipped where its framework is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import servers

from asyncsync.blocking import Experiment

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KILLED = -9


def needs(framework: str) -> pytest.MarkDecorator:
    """Skip the tests of a module where its framework is missing."""
    found = importlib.util.find_spec(framework) is not None
    return pytest.mark.skipif(not found, reason=f"{framework} is not installed; nox -s integrations installs it")


def environment(tmp_path: Path) -> dict[str, str]:
    """Of a training process: no network but the store, one thread, asyncsync's state in the test's directory."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ASYNCSYNC_STATE_DIR": str(tmp_path / "state"),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "KERAS_BACKEND": "torch",
    }


@dataclass
class Trainings:
    """Runs the scripts beside the tests."""

    tmp_path: Path
    uri: str
    options: dict[str, object]
    results: list[subprocess.CompletedProcess[str]] = field(default_factory=list)

    def run(self, script: str, *args: object, code: int = 0, ranks: int = 1, uri: str | None = None) -> Any:
        """Run a script to its end; the JSON that it prints last. ``args`` follow the address and the options."""
        command = [sys.executable, str(HERE / script), uri or self.uri, json.dumps(self.options), *map(str, args)]
        processes = [self._start(command, rank, ranks) for rank in range(ranks)]
        outputs = [process.communicate(timeout=300) for process in processes]
        codes = [process.returncode for process in processes]
        assert codes == [code] * ranks, "\n".join(text[-3000:] for output in outputs for text in output)
        self.last_error = outputs[0][1]
        lines = outputs[0][0].strip().splitlines()
        return json.loads(lines[-1]) if lines and lines[-1].startswith('{"') else None

    def _start(self, command: list[str], rank: int, ranks: int) -> subprocess.Popen[str]:
        env = environment(self.tmp_path)
        if ranks > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._port())}
        return subprocess.Popen(
            command, cwd=self.tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def _port(self) -> int:
        if not hasattr(self, "_free_port"):
            self._free_port = servers._free_ports(1)[0]
        return self._free_port

    def experiment(self) -> Experiment:
        return Experiment.open(self.uri.rpartition("/")[0], storage_options=self.options)
