"""Programs of the simulated processes: training loops, readers, ``prune``. They use the library as users do, and record
in the ledger what they were promised."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import shutil
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from asyncsync import Checkpoint, CheckpointHandle, Experiment, SyncEngine, Trial, pin, prune, unpin
from asyncsync.config import CheckpointConfig, RunConfig, SyncConfig, TransferConfig, UploadMode
from asyncsync.errors import (
    AsyncsyncError,
    CheckpointIncompleteError,
    ConfigError,
    EngineClosedError,
    ExperimentExistsError,
    NotFoundError,
    SourceChangedError,
    SyncFailedError,
)
from asyncsync.testing.simulation.ledger import NAME, Ledger, Reported
from asyncsync.testing.simulation.loop import Process
from asyncsync.testing.simulation.network import PART_SIZE
from asyncsync.testing.simulation.plan import SchedulePlan

TAKES_STEP = "step" in inspect.signature(Trial.report).parameters
SHARED = b"shared|" + b"the same in every step " * 30
PADDING = bytes(range(32, 127)) * 60


@dataclass(frozen=True, slots=True)
class Life:
    """How to start one process that trains."""

    trials: tuple[str, ...]
    reports: int = 2
    resume: bool = False
    role: str = "driver"
    rank: int = 0
    world_size: int = 1
    calm: bool = False
    """No changes of sources and no cancelled reports; the process must end without error."""


@dataclass(slots=True)
class PendingPromises:
    """Handles of one process whose result is not known yet."""

    handles: list[tuple[CheckpointHandle, Reported]] = field(default_factory=list)
    watchers: list[asyncio.Task[None]] = field(default_factory=list)


class ProgramWorld(Protocol):
    """The world as programs see it; see :class:`asyncsync.testing.simulation.world.World`."""

    ledger: Ledger
    plan: SchedulePlan
    uri: str

    def write(self, process: Process, path: str, data: bytes) -> None:
        """Write a file. Its modification time is that of the machine's clock."""

    async def first_step(self, trial: str, life: Life) -> int:
        """The step at which training starts."""

    def ended(self, process: Process, how: str) -> None:
        """The process ended by itself."""


class Program:
    """The code of one process."""

    def __init__(self, world: ProgramWorld, process: Process) -> None:
        self.world, self.process, self.dice = world, process, process.dice
        self.ledger = world.ledger

    async def run(self) -> None:
        """Run the program, and record in any case how it ended."""
        how = "well"
        try:
            await self.work()
        except asyncio.CancelledError:
            how = "cancelled"
        except AsyncsyncError as error:
            how = type(error).__name__
            self.process.error = f"{how}: {error}"
        except BaseException as error:  # noqa: BLE001  the ledger hears of it
            how = type(error).__name__
            if not self.process.ghost:
                last = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(last.filename).name}:{last.name}"
                self.ledger.violate("unexpected error", f"{how} in {place} of {self.process.name}: {_text(error)}")
            self.process.error = how
        self.world.ended(self.process, how)

    async def work(self) -> None:
        """The program itself."""
        raise NotImplementedError


def _text(error: BaseException) -> str:
    inner = getattr(error, "exceptions", None)
    return str(error)[:200] if not inner else f"{error} {[_text(one) for one in inner]}"


MARKS: Mapping[str, Any] = {"pin": pin, "unpin": unpin}
"""What a process that does not run the trial may do to its checkpoints."""


class Training(Program):
    """A driver, a worker or a rank that trains."""

    def __init__(self, world: ProgramWorld, process: Process, life: Life) -> None:
        super().__init__(world, process)
        self.life = life
        self.promises = PendingPromises()
        self.steps: dict[str, int] = {}
        self.curator = random.Random(f"{world.plan!r} {process.name}")  # noqa: S311  not those of the schedule
        self.marker = random.Random(f"marks {world.plan!r} {process.name}")  # noqa: S311

    async def work(self) -> None:
        resume = self.life.resume
        while True:
            engine = self._make_engine(resume=resume)
            try:
                async with engine:
                    self.process.sessions.append(engine._context.session)  # noqa: SLF001  the kit knows the engine
                    await self._train(engine)
            except ExperimentExistsError:
                if resume:
                    raise
                resume = True
            except AsyncsyncError as error:
                if not (self.life.calm and _is_from_earlier_process(error)):
                    raise
                return
            else:
                return
            finally:
                await self._end_promises()

    def _make_engine(self, *, resume: bool) -> SyncEngine:
        life = self.life
        return SyncEngine(
            self._run_config(),
            local_dir=f"{self.process.machine.root}/{self._local()}",
            resume=resume,
            role=life.role,
            rank=life.rank,
            world_size=life.world_size,
            exit_grace=20.0,
        )

    def _run_config(self) -> RunConfig:
        plan = self.world.plan
        return RunConfig(
            name=NAME,
            storage_path=self.world.uri,
            sync_config=SyncConfig(
                sync_period=plan.sync_period, sync_timeout=plan.sync_timeout, sync_artifacts=plan.sync_artifacts
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=plan.keep, commit_timeout=plan.commit_timeout),
            transfer=TransferConfig(
                max_concurrency=plan.concurrency, multipart_threshold=PART_SIZE, request_cost_bytes=0
            ),
        )

    def _local(self) -> str:
        return f"rank{self.life.rank}" if self.life.rank else "local"

    async def _train(self, engine: SyncEngine) -> None:
        trials = [engine.trial(name, params={"lr": 1}) for name in self.life.trials]
        for trial in trials:
            self.steps[trial.name] = await self.world.first_step(trial.name, self.life)
        for number in range(self.life.reports):
            for trial in trials:
                think = min(self.world.plan.think, 2.0) if self.life.calm else self.world.plan.think
                await asyncio.sleep(self.dice.uniform(0, think))
                await self._step(engine, trial, last=number == self.life.reports - 1)
        if self.dice.random() < 0.4:
            for trial in trials:
                await self._finish(trial)

    async def _finish(self, trial: Trial) -> None:
        try:
            await trial.finish()
        except EngineClosedError:
            raise
        except AsyncsyncError as error:
            self._note_refused(error)

    async def _step(self, engine: SyncEngine, trial: Trial, *, last: bool) -> None:
        step, self.steps[trial.name] = self.steps[trial.name], self.steps[trial.name] + 1
        if self._deviates() and await self._skip_step(trial, step):
            return
        self._write_artifacts(trial, step)
        source, part = self._make(trial, step)
        mode = UploadMode.ASYNC if self.dice.random() < 0.5 else UploadMode.SYNC
        handle = await self._report(trial, step, source, mode)
        if handle is None:
            return
        if mode is UploadMode.SYNC:
            self.ledger.acknowledge(part, handle.name)
            await self._curate(trial)
            return
        self.promises.handles.append((handle, part))
        self.promises.watchers.append(asyncio.create_task(self._watch(handle, part)))
        if not self.life.calm:
            await self._meddle(part)
        if self._deviates():
            await asyncio.sleep(self.dice.uniform(0, 2))
            await self._skip(trial, step)

    async def _report(
        self, trial: Trial, step: int, source: Checkpoint | str, mode: UploadMode
    ) -> CheckpointHandle | None:
        """Report a checkpoint, sometimes with a timeout. None: the report failed or timed out."""
        limit = None
        roll, seconds = self.dice.random(), self.dice.uniform(0, 3)
        if roll < 0.08 and not self.life.calm and self.world.plan.has("timeouts"):
            limit = seconds
        more: dict[str, Any] = {"step": step} if TAKES_STEP else {}
        try:
            async with asyncio.timeout(limit):
                report = await trial.report({"step": step}, source, upload=mode, **more)
        except EngineClosedError:
            raise
        except AsyncsyncError as error:
            self._note_refused(error)
            return None
        except TimeoutError:
            return None
        assert report.checkpoint is not None
        return report.checkpoint

    def _deviates(self) -> bool:
        """Whether this rank deviates from the others now."""
        may = self.life.world_size > 1 and not self.life.calm and self.world.plan.has("skips")
        return may and self.dice.random() < 0.06

    async def _skip_step(self, trial: Trial, step: int) -> bool:
        """Skip the checkpoint of this step, with or without reporting that; or move ahead of the others for good.
        Returns whether the step was skipped."""
        kind = self.dice.choice(("silently", "aloud", "ahead"))
        self.ledger.note(f"skips {self.process.name} {step} {kind}")
        self.ledger.count("skip")
        if kind == "aloud":
            await self._skip(trial, step)
        elif kind == "ahead":
            self.steps[trial.name] += 1
        return True

    async def _skip(self, trial: Trial, step: int) -> None:
        try:
            await trial.skip(step, "the loss is not a number")
        except EngineClosedError:
            raise
        except AsyncsyncError as error:
            self._note_refused(error)

    async def _curate(self, trial: Trial) -> None:
        """Pin, unpin or retire one of the stored checkpoints."""
        if not self.world.plan.curates or self.life.calm or self.life.rank or self.curator.random() < 0.5:
            return
        names = [item.name for item in self.ledger.acknowledged if item.trial == trial.name][-3:]
        latest = trial.latest()
        name = self.curator.choice([*names, *([latest.name] if latest is not None else [])])
        verb = self.curator.choice(("retire", "retire", "pin", "unpin"))
        self.ledger.curates(verb, trial.name, name)
        outside = verb in MARKS and self.marker.random() < 0.5
        if outside:
            self.ledger.count(f"{verb} from outside")
        try:
            await (MARKS[verb](f"{trial.uri}/{name}") if outside else getattr(trial, verb)(name))
        except EngineClosedError:
            raise
        except (NotFoundError, ConfigError):
            self.ledger.curates("refused", trial.name, name)
        except AsyncsyncError as error:
            self._note_refused(error)
        else:
            self.ledger.curated(verb, trial.name, name)

    def _note_refused(self, error: AsyncsyncError) -> None:
        """A report failed: some programs end, others continue."""
        self.ledger.note(f"refused {self.process.name} {type(error).__name__}")
        if self.life.calm and _is_from_earlier_process(error):
            return  # raised once; this process may continue
        if self.life.calm or self.dice.random() < 0.5:
            raise error

    async def _watch(self, handle: CheckpointHandle, part: Reported) -> None:
        try:
            await handle.durable()
        except AsyncsyncError as error:
            self.ledger.note(f"not durable {self.process.name} {type(error).__name__}")
            if self.life.calm:
                self.process.error = f"{type(error).__name__}: {error}"
        else:
            self.ledger.acknowledge(part, handle.name)

    async def _end_promises(self) -> None:
        for watcher in self.promises.watchers:
            watcher.cancel()
        await asyncio.gather(*self.promises.watchers, return_exceptions=True)
        for handle, part in self.promises.handles:
            if handle.is_durable and not self.process.ghost:
                self.ledger.acknowledge(part, handle.name)
        self.promises = PendingPromises()

    # files

    def _make(self, trial: Trial, step: int) -> tuple[Checkpoint | str, Reported]:
        """A directory of a few files: a new one, or the last one with new contents."""
        reuse = self.dice.random() < 0.3 and not self.life.calm and self.world.plan.has("meddling")
        number = len(self.ledger.reports)
        directory = (
            f"{self.process.machine.root}/latest-{self.process.pid}"
            if reuse
            else (f"{self.process.machine.root}/step-{number}")
        )
        files = {f"w{self.life.rank}.bin": self._bytes(number, self.dice.choice((40, 300, 4000)))}
        if self.dice.random() < 0.5:
            files[f"opt/o{self.life.rank}.bin"] = self._bytes(number, 50)
        if self.life.world_size == 1 and self.dice.random() < 0.3:
            files["frozen.bin"] = SHARED
        owned = self.dice.random() < 0.6 and not reuse
        for path, data in files.items():
            self.world.write(self.process, f"{directory}/{path}", data)
        if reuse:
            for path in (f"opt/o{self.life.rank}.bin", "frozen.bin"):
                if path not in files and os.path.exists(f"{directory}/{path}"):
                    os.unlink(f"{directory}/{path}")
            for earlier in self.ledger.reports:
                if earlier.directory == directory:
                    earlier.removed_by_user = True
        part = self.ledger.report(trial.name, step, self.life.rank, directory, files, self.process.name, owned=owned)
        return (Checkpoint.take(directory) if owned else directory), part

    def _bytes(self, number: int, size: int) -> bytes:
        return f"report {number}|".encode() + PADDING[:size]

    async def _meddle(self, part: Reported) -> None:
        """Change a lent directory after its report, as a training loop or another program may do."""
        roll = self.dice.random()
        if roll > 0.2 or self.life.calm or not self.world.plan.has("meddling"):
            return
        await asyncio.sleep(self.dice.uniform(0, 0.4))
        if not os.path.isdir(part.directory):
            return
        part.removed_by_user = True
        path = self.dice.choice(sorted(part.files))
        if roll < 0.06:
            shutil.rmtree(part.directory)
        elif roll < 0.12:
            os.unlink(f"{part.directory}/{path}")
        else:
            other = b"report 999999|" + part.files[path][14:]
            self.world.write(self.process, f"{part.directory}/{path}", other[: len(part.files[path])])
        self.ledger.note(f"meddled {self.process.name} {path}")

    def _write_artifacts(self, trial: Trial, step: int) -> None:
        if self.world.plan.sync_artifacts:
            text = f"{self.process.name} step {step} " * self.dice.choice((1, 10, 100))
            self.world.write(self.process, f"{trial.dir}/art.log", text.encode())


class Reader(Program):
    """A program that opens the experiment and downloads checkpoints."""

    def __init__(self, world: ProgramWorld, process: Process, looks: int, *, calm: bool = False) -> None:
        super().__init__(world, process)
        self.looks, self.calm = looks, calm

    async def work(self) -> None:
        for number in range(self.looks):
            await asyncio.sleep(0 if self.calm else self.dice.uniform(0, 40))
            target = f"{self.process.machine.root}/read-{self.process.pid}-{number}"
            try:
                trial, name = await self._get(target)
            except AsyncsyncError as error:
                self.ledger.note(f"reader {self.process.name} {type(error).__name__}")
                if self.calm:
                    raise
                continue
            files = _files(target)
            self.ledger.note(f"reader {self.process.name} got {trial}/{name} {len(files)}")
            self.ledger.count("read")
            if problem := self.ledger.mixed(files):
                self.ledger.violate("reader got wrong bytes", f"{trial}/{name}: {problem}")
            shutil.rmtree(target)

    async def _get(self, target: str) -> tuple[str, str]:
        experiment = await Experiment.open(f"{self.world.uri}/{NAME}")
        if self.calm or self.dice.random() < 0.5:
            await asyncio.sleep(0 if self.calm else self.dice.uniform(0, 5))
            report = await experiment.restore(target)
            return report.checkpoint.trial, report.checkpoint.name
        found = experiment.latest_checkpoint()
        if found is None:
            raise EngineClosedError("there is no checkpoint yet")
        await asyncio.sleep(self.dice.uniform(0, 5))
        await found.download(target)
        return found.trial, found.name


class Pruner(Program):
    """A program that prunes while others work."""

    async def work(self) -> None:
        for _ in range(2):
            await asyncio.sleep(self.dice.uniform(0, 100))
            await prune(f"{self.world.uri}/{NAME}", dry_run=False, older_than=self.world.plan.prune_age)


def _files(root: str) -> Mapping[str, bytes]:
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.relpath(f"{directory}/{name}", root)
            if not path.startswith(".asyncsync"):
                with open(f"{directory}/{name}", "rb") as file:
                    found[path] = file.read()
    return found


def _is_from_earlier_process(error: AsyncsyncError) -> bool:
    """Whether all failures are of checkpoints whose files an earlier process left changed or missing."""
    causes = list(error.failures.values()) if isinstance(error, SyncFailedError) else [error]
    changed = CheckpointIncompleteError | SourceChangedError
    return bool(causes) and all(isinstance(cause.__cause__, changed) for cause in causes)
