"""``demo``: run a sweep from start to end, and check its result.

Read it as an example: :func:`train` is a training loop that reports to asyncsync, :func:`sweep` runs twenty of them in
one engine, and :func:`demo_read` downloads the best checkpoint in a second process, which shares only the store with
the first one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from asyncsync import (
    Checkpoint,
    CheckpointConfig,
    CheckpointIncompleteError,
    ConfigError,
    Experiment,
    RunConfig,
    SyncConfig,
    SyncEngine,
    Trial,
    UploadMode,
    verify,
)
from asyncsync.cli.app import DONE, FAILED, command
from asyncsync.cli.demo_board import Board
from asyncsync.cli.options import Settings, resolve_url
from asyncsync.cli.output import Output
from asyncsync.units import counted, duration_text, size_text

MODEL_WEIGHTS = 32 * 1024
"""Numbers in the model: a checkpoint has 256 KiB."""
EPOCHS = 10
CHECKPOINT_PERIOD = 2
"""Epochs between two checkpoints."""
CHECKPOINTS_KEPT = 2
FAILING_TRIAL = 7
"""The trial that fails on purpose."""
FAILING_EPOCH = 5
"""The epoch in which it fails."""
ADDRESS_OPTIONS = ("endpoint_url", "region", "profile")
"""Options that other commands need to read the result."""

DEMO = """Run a sweep of 20 trials, watch it live, and check the result.

Why: it shows asyncsync at work in ten seconds. Twenty async training loops report metrics, checkpoints and artifacts to
one engine; every checkpoint is uploaded while training continues; one trial fails on purpose; retention keeps the best
two checkpoints of each trial. Then a second process, which knows only the URL, opens the experiment, downloads the best
checkpoint, compares it with the SHA-256 that the training computed, and verifies every byte of the experiment against
its manifests.

\b
Examples:
  asyncsync demo
  asyncsync demo --dir /tmp/results
  asyncsync demo s3://bucket/experiments --endpoint-url http://127.0.0.1:8333

Exit codes: 0 every check passed, 1 a check or the run failed, 2 usage, 130 interrupted.
"""


class Model:
    """A toy: weights that descend towards a target with noisy gradients."""

    def __init__(self, seed: int, rate: float) -> None:
        self._random = random.Random(seed)  # noqa: S311 (no secret)
        self._rate = rate
        self._target = array("d", (self._random.gauss(0, 1) for _ in range(MODEL_WEIGHTS)))
        self.weights = array("d", bytes(8 * MODEL_WEIGHTS))

    def epoch(self) -> float:
        """One step; the loss after it. Blocking."""
        rate, noise = self._rate, self._random.gauss(0, 0.05)
        self.weights = array("d", (w - rate * (w - t + noise) for w, t in zip(self.weights, self._target, strict=True)))
        return sum((w - t) ** 2 for w, t in zip(self.weights, self._target, strict=True)) / MODEL_WEIGHTS

    def save(self, directory: Path) -> str:
        """Write a checkpoint; the SHA-256 of the weights. Blocking."""
        directory.mkdir(parents=True)
        data = self.weights.tobytes()
        (directory / "weights.bin").write_bytes(data)
        (directory / "model.json").write_text(json.dumps({"weights": MODEL_WEIGHTS, "type": "float64"}))
        return hashlib.sha256(data).hexdigest()


def append(path: Path, line: str) -> None:
    """Append a line to a log, which is an artifact. Blocking."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"{line}\n")


@dataclass(frozen=True)
class Expected:
    """A checkpoint as the training saved it, to compare with the download."""

    loss: float
    sha256: str


ExpectedCheckpoints = dict[str, dict[str, Expected]]
"""Trial -> checkpoint -> content."""


def rate_of(number: int) -> float:
    """The learning rate of a trial."""
    return 0.05 * (1 + number % 10)


async def train(trial: Trial, number: int, scratch: Path, pace: float, expected: ExpectedCheckpoints) -> None:
    """One training run. The only call to asyncsync is ``await trial.report(...)``."""
    model = await asyncio.to_thread(Model, number, rate_of(number))
    for epoch in range(1, EPOCHS + 1):
        loss = await asyncio.to_thread(model.epoch)
        if number == FAILING_TRIAL and epoch == FAILING_EPOCH:
            raise ValueError(f"out of luck at epoch {epoch} (on purpose)")
        await asyncio.to_thread(append, trial.dir / "train.log", f"epoch {epoch} loss {loss:.6f}")
        metrics = {"loss": loss, "epoch": epoch}
        if epoch % CHECKPOINT_PERIOD:
            await trial.report(metrics)
        else:
            directory = scratch / trial.name / str(epoch)
            sha256 = await asyncio.to_thread(model.save, directory)
            checkpoint = Checkpoint.take(directory)  # asyncsync owns the directory and deletes it once durable
            report = await trial.report(metrics, checkpoint, upload=UploadMode.ASYNC, metadata={"sha256": sha256})
            assert report.checkpoint is not None
            expected.setdefault(trial.name, {})[report.checkpoint.name] = Expected(loss, sha256)
        await asyncio.sleep(pace * random.uniform(0.5, 1.5))  # noqa: S311 (a pause)


async def run_trial(trial: Trial, number: int, scratch: Path, pace: float, expected: ExpectedCheckpoints) -> None:
    """Run one trial; a failing trial is marked as failed and does not stop the others."""
    try:
        await train(trial, number, scratch, pace, expected)
    except ValueError as error:
        await trial.finish("failed", error=error)
    else:
        await trial.finish()


async def sweep(run: RunConfig, work: Path, trials: int, pace: float, board: Board) -> ExpectedCheckpoints:
    """Run all trials in parallel in one engine. After ``async with`` everything is durable."""
    expected: ExpectedCheckpoints = {}
    async with asyncio.TaskGroup() as listeners, SyncEngine(run, local_dir=work / "runs") as engine:
        listeners.create_task(board.follow(engine.events()), name="demo events")
        async with asyncio.TaskGroup() as group:
            for number in range(trials):
                trial = engine.trial(f"trial_{number:05d}", params={"rate": rate_of(number)})
                group.create_task(run_trial(trial, number, work / "scratch", pace, expected), name=trial.name)
            group.create_task(board.refresh(engine), name="demo table")
    return expected


@command(help=DEMO)
@click.argument("url", required=False)
@click.option("--dir", "directory", type=click.Path(file_okay=False), help="Store in this directory.")
@click.option(
    "--trials", type=click.IntRange(FAILING_TRIAL + 1, 1000), default=20, show_default=True, help="Number of trials."
)
@click.option("--pace", type=click.FloatRange(0, 10), default=0.25, hidden=True, help="Seconds an epoch.")
async def demo(
    output: Output, settings: Settings, *, url: str | None, directory: str | None, trials: int, pace: float
) -> int:
    """See DEMO."""
    if url is not None and directory is not None:
        raise ConfigError("invalid arguments: give a URL or --dir, not both")
    storage = resolve_url(url) if url is not None else os.path.abspath(directory) if directory is not None else None
    run = RunConfig(
        name=time.strftime(f"demo_%Y-%m-%d_%H-%M-%S_{os.getpid()}"),
        storage_path=storage,
        sync_config=SyncConfig(sync_period=1.0, sync_artifacts=True),
        checkpoint_config=CheckpointConfig(
            num_to_keep=CHECKPOINTS_KEPT, checkpoint_score_attribute="loss", checkpoint_score_order="min"
        ),
        transfer=settings.transfer,
        storage_options=settings.storage_options,
    )
    output.line(f"{trials} trials of {EPOCHS} epochs at once, a checkpoint every {CHECKPOINT_PERIOD}, to\n  {run.uri}")
    output.at_interrupt = lambda: f"the demo was stopped; {run.uri} holds everything that is durable"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="asyncsync-demo-") as work, Board(output, trials) as board:
        expected = await sweep(run, Path(work), trials, pace, board)
    seconds = time.monotonic() - started
    _print_sweep(output, board, seconds)
    found = await _second_process(run.uri, settings)
    checks = _checks(board, expected, found, trials)
    _print_checks(output, found, checks)
    _print_commands(output, run.uri, found, settings)
    held = all(checks.values())
    output.document({"ok": held, "uri": run.uri, "seconds": seconds, **board.totals(), "best": found, "checks": checks})
    return DONE if held else FAILED


async def _second_process(uri: str, settings: Settings) -> dict[str, Any]:
    """Read the experiment in another interpreter, which gets only the URL and the options of the store."""
    options = " ".join(f"{key}={value}" for key, value in settings.storage_options.items())
    environment = {**os.environ, "ASYNCSYNC_OPTIONS": options}  # every user of the machine can see the arguments
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "asyncsync", "demo-read", uri, "--json", env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        document, _ = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()  # a cancelled demo leaves no process behind
        raise
    found: dict[str, Any] = json.loads(document or b"{}")
    return found


@command(help="The demo's second process: download the best checkpoint and check it.", hidden=True)
@click.argument("uri")
async def demo_read(output: Output, settings: Settings, *, uri: str) -> int:
    """Download and check the best checkpoint, given only the URL."""
    options = settings.storage_options
    experiment = await Experiment.open(uri, storage_options=options)
    best = experiment.best_checkpoint("loss", order="min")
    if best is None:
        raise CheckpointIncompleteError(f"{uri} has no checkpoint")
    with tempfile.TemporaryDirectory(prefix="asyncsync-demo-") as target:
        await best.download(target)
        data = await asyncio.to_thread((Path(target) / "weights.bin").read_bytes)
    report = await verify(uri, deep=True, storage_options=options)
    found = {
        "trial": best.trial,
        "checkpoint": best.name,
        "loss": best.metrics["loss"],
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "metadata": best.metadata,
        "verified": report.ok,
        "verified_files": report.files,
        "verified_bytes": report.bytes,
        "statuses": {trial.name: trial.status for trial in experiment.trials},
        "kept": {trial.name: [item.name for item in trial.checkpoints] for trial in experiment.trials},
    }
    output.document(found)
    output.line(f"{best.trial} {best.name}: loss {found['loss']:.4g}, SHA-256 {found['sha256']}")
    return DONE


def _to_keep(checkpoints: dict[str, Expected]) -> set[str]:
    """The names of the checkpoints that retention keeps: the best by loss, and the latest."""
    best = sorted(checkpoints, key=lambda name: checkpoints[name].loss)[:CHECKPOINTS_KEPT]
    return {*best, max(checkpoints)}


def _checks(board: Board, expected: ExpectedCheckpoints, found: dict[str, Any], trials: int) -> dict[str, bool]:
    """The checks of the result, each with its outcome."""
    states = list(found.get("statuses", {}).values())
    kept = {name: set(names) for name, names in found.get("kept", {}).items()}
    saved = expected.get(found.get("trial", ""), {}).get(found.get("checkpoint", ""))
    least = min(item.loss for checkpoints in expected.values() for item in checkpoints.values())
    return {
        f"{trials - 1} trials finished and 1 failed, as intended": (states.count("finished"), states.count("failed"))
        == (trials - 1, 1),
        "no checkpoint and no sync failed": not board.failures,
        f"retention kept the best {CHECKPOINTS_KEPT} of each trial, and its latest": kept
        == {name: _to_keep(checkpoints) for name, checkpoints in expected.items()},
        "the best checkpoint came back bit for bit": saved is not None
        and saved.loss == least
        and found["sha256"] == saved.sha256 == found["metadata"]["sha256"],
        "every byte of the experiment matches its manifests": bool(found.get("verified")),
    }


def _print_sweep(output: Output, board: Board, seconds: float) -> None:
    totals = board.totals()
    output.line(
        f"\nall durable after {duration_text(seconds)}: {totals['checkpoints_durable']} checkpoints "
        f"({size_text(totals['checkpoint_bytes'])}) and {counted(totals['syncs'], 'sync')} of artifacts and records; "
        f"{totals['checkpoints_retired']} retired"
    )
    for failure in board.failures:
        output.note(f"failed: {failure}")


def _print_checks(output: Output, found: dict[str, Any], checks: dict[str, bool]) -> None:
    if "sha256" in found:
        output.line(
            f"a second process read it back: best is {found['trial']} {found['checkpoint']}, loss {found['loss']:.4g}, "
            f"SHA-256 {found['sha256'][:16]}...; {counted(found['verified_files'], 'file')} "
            f"({size_text(found['verified_bytes'])}) verified"
        )
    for text, held in checks.items():
        output.line(f"  {'ok    ' if held else 'FAILED'} {text}")


def _command() -> str:
    """The command as the user can type it: in an environment that is not active, by its path."""
    installed = Path(sys.executable).with_name("asyncsync")
    return "asyncsync" if shutil.which("asyncsync") or not installed.exists() else os.path.relpath(installed)


def _print_commands(output: Output, uri: str, found: dict[str, Any], settings: Settings) -> None:
    store = settings.storage_options
    options = "".join(f" --{name.replace('_', '-')} {store[name]}" for name in ADDRESS_OPTIONS if name in store)
    command = _command()
    output.line(f"\nwhere to look:\n  {command} ls {uri}{options}")
    if "trial" in found:
        output.line(f"  {command} pull {uri}/{found['trial']}/{found['checkpoint']} best{options}")
    output.line("  the code: asyncsync/cli/demo.py")
