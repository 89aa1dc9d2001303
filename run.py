#!/usr/bin/env python3
"""Sets up .venv beside this file and runs asyncsync's demo, its tests, or any tool in it. Standard library only.

python3 run.py demo [URL]      a sweep of 20 trials, synced while it runs and read back
python3 run.py test [ARGS]     the whole test suite, on all cores; ARGS go to pytest, which is one process then
python3 run.py nox [ARGS]      the development sessions (lint, types, layers, tests, docs, bench, build)
python3 run.py TOOL [ARGS]     any other program of the environment, such as asyncsync or ruff
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "asyncsync-installed"
EXTRAS = {"demo": "", "dev": "[all,dev]"}


def wanted(kind: str) -> str:
    """What the stamp says when the environment fits: the kind, and all that decides what is installed."""
    text = (HERE / "pyproject.toml").read_bytes() + sys.version.encode() + str(HERE).encode()
    return f"{kind} {hashlib.sha256(text).hexdigest()}"


def ready(kind: str) -> bool:
    """A development environment is good for the demo too."""
    if not STAMP.is_file() or not PYTHON.exists():
        return False
    return STAMP.read_text() in {wanted(kind), wanted("dev")}


def prepare(kind: str) -> None:
    """Make .venv, or bring it up to date."""
    if ready(kind):
        return
    print(f"setting up {VENV} (once) ...", flush=True)
    STAMP.unlink(missing_ok=True)
    pip = [str(PYTHON), "-m", "pip"]
    bundled = importlib.util.find_spec("ensurepip") is not None
    if not PYTHON.exists():
        shutil.rmtree(VENV, ignore_errors=True)
        venv.create(VENV, with_pip=bundled, symlinks=os.name != "nt")
    if not bundled:  # some distributions take ensurepip out; the pip that is there can fill the environment
        pip = [sys.executable, "-m", "pip", "--python", str(PYTHON)]
    target = f"{HERE}{EXTRAS[kind]}"
    command = [*pip, "install", "--quiet", "--disable-pip-version-check", "--editable", target]
    if subprocess.run(command, check=False).returncode:
        sys.exit("run.py: the installation failed; see above")
    STAMP.write_text(wanted(kind))


def workers() -> str:
    """Processes for the tests: one more than cores, because a process often waits for a server or for its children."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return str(cores + 1)


def become(command: list[str], environment: dict[str, str]) -> int:
    """Run the program in our place: signals are its own, and whoever started us waits for it. Where a process cannot
    become another one (Windows) we wait for it, however often Ctrl-C comes: it gets that too. The exit code is its."""
    if os.name != "nt":
        sys.stdout.flush()
        os.execve(command[0], command, environment)  # noqa: S606  that is what we are for
    program = subprocess.Popen(command, env=environment)
    while True:
        try:
            return program.wait()
        except KeyboardInterrupt:
            continue


def main() -> int:
    """Prepare the environment for the first argument and run it; the exit code is the program's."""
    if sys.version_info < (3, 11):  # noqa: UP036  (this file also runs before anything is installed)
        sys.exit("run.py: asyncsync needs Python 3.11 or later")
    name, *arguments = sys.argv[1:] or ["--help"]
    if name.startswith("-"):
        print(__doc__)
        return 0
    prepare("demo" if name in {"demo", "asyncsync"} else "dev")
    program = {
        "demo": [str(BIN / "asyncsync"), "demo"],
        "test": [str(PYTHON), "-m", "pytest", *(() if arguments else ("-n", workers(), "--dist", "worksteal"))],
    }.get(name, [str(BIN / name)])
    environment = dict(os.environ)
    if name != "demo":  # which prints commands for the user's own shell
        environment |= {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", "VIRTUAL_ENV": str(VENV)}
    try:
        return become([*program, *arguments], environment)
    except FileNotFoundError:
        sys.exit(f"run.py: there is no program {name!r} in {BIN}")


if __name__ == "__main__":
    sys.exit(main())
