"""The programs of the pages about frameworks run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import servers
from trainings import ROOT, needs

PAGES = [ROOT / "docs" / name for name in ("frameworks.md", "torch.md", "ddp.md")]
PROGRAM = re.compile(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {match[1]: match[2] for page in PAGES for match in PROGRAM.finditer(page.read_text(encoding="utf-8"))}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")
TWO_RANKS = ("One rank reports", "Every rank reports")
"""Programs that torchrun starts in two processes."""
STORED = {
    "transformers": ("transformers", r"language/run1/checkpoint_\d+/model.safetensors"),
    "Lightning": ("lightning", r"lightning/run1/last.ckpt"),
    "torch.distributed.checkpoint": ("torch", r"sharded/run1/checkpoint_\d+/__0_0.distcp"),
    "A training loop": ("torch", r"plain/run1/checkpoint_000002/state.pt"),
    "One rank reports": ("torch", r"ddp/run1/checkpoint_000002/state.pt"),
    "Every rank reports": ("torch", r"shards/run1/checkpoint_000002/shard-1-of-2.pt"),
    "Keras": ("keras", r"keras/run1/checkpoint_\d+/model.keras"),
    "Optuna": ("optuna", r"study/trial_00005/checkpoint_\d+/weights"),
    "accelerate": ("accelerate", r"accelerate/run1/checkpoint_\d+/model.safetensors"),
    "Hydra": ("hydra", r"hydra/defaults/checkpoint_000002/weights"),
    "submitit": ("submitit", r"submitit/run1/checkpoint_000003/weights"),
    "TensorBoard": ("tensorboard", r"tensorboard/run1/tensorboard/events.+"),
    "W&B": ("wandb", r"wandb/run1/wandb/offline-run-.+/run-\w+.wandb"),
    "MLflow": ("mlflow", r"mlflow/\w+/checkpoint_000000/weights"),
}
"""The package that each program needs, and one of the files that it stores."""


def test_the_page_has_a_program_for_each_framework() -> None:
    assert PROGRAMS.keys() == STORED.keys()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(STORED[name][0])) for name in STORED])
def test_its_program_runs_and_resumes(
    seaweedfs: servers.S3Server, tmp_path: Path, name: str, environment: dict[str, str]
) -> None:
    """The second run finds what the first one stored."""
    bucket = seaweedfs.create_bucket(f"page-{re.sub('[^a-z]', '-', name.lower())}")
    environment |= {
        "AWS_ENDPOINT_URL": seaweedfs.endpoint,
        "AWS_ACCESS_KEY_ID": seaweedfs.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweedfs.secret_key,
        "AWS_REGION": "us-east-1",
        "MASTER_PORT": str(servers._free_ports(1)[0]),
    }
    for run in range(1 if name == "Optuna" else 2):
        room = tmp_path / str(run)
        room.mkdir()
        (room / "program.py").write_text(PROGRAMS[name].replace("s3://my-bucket", f"s3://{bucket}"))
        launcher = (*TORCHRUN, environment["MASTER_PORT"]) if name in TWO_RANKS else ()
        done = subprocess.run(
            [sys.executable, *launcher, "program.py"],
            cwd=room,
            env=environment | {"ASYNCSYNC_STATE_DIR": str(room / "state")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    with seaweedfs.client() as client:
        keys = [item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert any(re.fullmatch(STORED[name][1], key) for key in keys), keys
