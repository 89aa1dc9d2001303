"""The programs of docs/frameworks.md run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import servers
from trainings import ROOT, needs

PAGE = ROOT / "docs/frameworks.md"
PROGRAM = re.compile(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {match[1]: match[2] for match in PROGRAM.finditer(PAGE.read_text(encoding="utf-8"))}

pytestmark = [needs(name) for name in ("accelerate", "keras", "lightning", "optuna", "torch", "transformers")]


def test_the_page_has_a_program_for_each_framework() -> None:
    wanted = {"transformers", "Lightning", "torch.distributed.checkpoint", "Keras", "Optuna", "accelerate"}
    assert PROGRAMS.keys() == wanted


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", PROGRAMS)
def test_its_program_runs_and_resumes(
    seaweedfs: servers.S3Server, tmp_path: Path, name: str, environment: dict[str, str]
) -> None:
    """The second run finds what the first one stored."""
    environment |= {
        "AWS_ENDPOINT_URL": seaweedfs.endpoint,
        "AWS_ACCESS_KEY_ID": seaweedfs.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweedfs.secret_key,
        "AWS_REGION": "us-east-1",
        "MASTER_PORT": str(servers._free_ports(1)[0]),
    }
    bucket = seaweedfs.create_bucket(f"page-{name.lower().replace('.', '-')}")
    for run in range(1 if name == "Optuna" else 2):
        room = tmp_path / str(run)
        room.mkdir()
        program = PROGRAMS[name].replace("s3://my-bucket", f"s3://{bucket}")
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=room,
            env=environment | {"ASYNCSYNC_STATE_DIR": str(room / "state")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
