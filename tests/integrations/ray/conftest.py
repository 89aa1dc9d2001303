"""Ray on SeaweedFS. Each program of ``programs`` runs in a process of its own, so that nothing of Ray stays here.

A program is called with the name of its case, reads its storage from the environment and prints one JSON document.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent / "programs"
PACKAGE = Path(__file__).parents[3]
SECONDS = 400
"""Most seconds that a program may run: Ray alone takes about ten to start and end."""
SECONDS_OF_ALL = 1200
"""The same with ``--all``: Ray takes 5 to 20 seconds to restart two ranks, and they are killed 20 times."""
RESULT = "RESULT "


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="Kill at every moment, not at some: 10 minutes more.")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(seconds_of_a_program(config) + 30))


def seconds_of_a_program(config):
    return SECONDS_OF_ALL if config.getoption("--all", False) else SECONDS


@dataclass
class RayBench:
    """A bucket for one test, and the programs that use it."""

    server: Any
    room: Path
    bucket: str
    seconds: float

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/exps"

    @property
    def options(self) -> dict[str, Any]:
        return self.server.storage_options

    def start(self, program: str, case: str = "", endpoint: str | None = None, **settings: Any) -> subprocess.Popen:
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": self.server.access_key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret_key,
            "RAY_TRAIN_V2_ENABLED": "1",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_AIR_NEW_OUTPUT": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # it counts the memory of all programs of the machine
            "PYTHONPATH": os.pathsep.join([str(PACKAGE), str(PROGRAMS)]),
            "STORAGE_URI": self.uri,
            "STORAGE_OPTIONS": json.dumps({"endpoint_url": endpoint or self.server.endpoint, "region": "us-east-1"}),
            "SETTINGS": json.dumps({"case": case, "room": str(self.room), **settings}),
        }
        log = (self.room / f"{program}.log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, str(PROGRAMS / f"{program}.py")],
                cwd=self.room,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def run(self, program: str, case: str = "", endpoint: str | None = None, **settings: Any) -> dict[str, Any]:
        """Run a program to its end; its result. Its log is shown if it fails."""
        with self.start(program, case, endpoint, **settings) as process:
            try:
                code = process.wait(self.seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                code = None
        lines = (self.room / f"{program}.log").read_text(errors="replace").splitlines()
        results = [line.removeprefix(RESULT) for line in lines if line.startswith(RESULT)]
        assert code == 0 and results, f"{program} {case} ended with {code}:\n" + "\n".join(lines[-60:])
        return json.loads(results[-1])

    def keys(self, prefix: str = "") -> list[str]:
        """All keys below the storage path."""
        with self.server.client() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"exps/{prefix}")
            return [item["Key"].removeprefix("exps/") for page in pages for item in page.get("Contents", ())]

    def contents(self, keys: list[str]) -> dict[str, bytes]:
        """Objects below the storage path."""
        with self.server.client() as client:
            found = {key: client.get_object(Bucket=self.bucket, Key=f"exps/{key}") for key in keys}
            return {key: response["Body"].read() for key, response in found.items()}

    def open_uploads(self) -> list[str]:
        with self.server.client() as client:
            return [item["Key"] for item in client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ())]


@pytest.fixture(scope="session")
def make_ray_bench(seaweedfs, pytestconfig):
    """Makes a bench: ``make_ray_bench(name, directory)``."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("ray.train") is None:
        pytest.skip("Ray is not installed: run nox -s ray")  # this directory may be found as an empty package `ray`

    def make(name, room):
        bucket = f"ray-{name[:30]}-{name[-15:]}".strip("-")
        seaweedfs.create_bucket(bucket)
        return RayBench(seaweedfs, room, bucket, seconds_of_a_program(pytestconfig))

    return make


@pytest.fixture
def ray_bench(make_ray_bench, tmp_path, request):
    return make_ray_bench(re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()), tmp_path)
