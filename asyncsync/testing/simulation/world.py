"""One schedule: machines, processes, a store, and the troubles that strike them."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.stores.guard.fenced import LEASE_OUTLIVED
from asyncsync.testing.simulation.ledger import NAME, Ledger
from asyncsync.testing.simulation.loop import EPOCH, Machine, Process, SimulationLoop
from asyncsync.testing.simulation.network import CALM, SCHEME, Network, Weather
from asyncsync.testing.simulation.plan import HOUR, Options, SchedulePlan
from asyncsync.testing.simulation.programs import Life, Program, Pruner, Reader, Training

ARTIFACT_LATENESS = 45.0
"""How late (s) a write may land that overwrites a name in place: a server may still process it after its client ended.
Requests that create an object once may land at any later time."""
END_LIMIT = 3 * HOUR
"""How long (s) the processes have to end by themselves after the last trouble."""


WEATHERS = (
    CALM,
    Weather(refused=0.15),
    Weather(request_lost=0.08, response_lost=0.05, patience=20),
    Weather(response_lost=0.15, patience=10),
    Weather(late=0.10, lateness=120, patience=15, withdrawn=0.2),
    Weather(late=0.15, lateness=3000, patience=10, withdrawn=0.1),
    Weather(refused=0.05, request_lost=0.03, response_lost=0.05, late=0.08, lateness=900, patience=30, latency=0.5),
    Weather(latency=2.0),
)


class World:
    """The world of one schedule. ``root``: an empty directory, best on a file system in memory."""

    def __init__(self, seed: int, root: str, loop: SimulationLoop, options: Options) -> None:
        self.seed, self.root, self.loop = seed, root, loop
        self.dice = random.Random(f"{seed} plan")  # noqa: S311
        self.rolls = {name: random.Random(f"{seed} {name}") for name in ("storms", "clocks", "onlookers", "strikes")}  # noqa: S311
        """Separate dice, so that leaving one trouble out does not change the others."""
        self.plan = SchedulePlan.draw(self.dice, conditional=options.conditional_writes, without=options.without)
        self.network = Network(loop, f"world-{seed}", conditional=options.conditional_writes)
        self.uri = f"{SCHEME}://{self.network.bucket_name}"
        self.ledger = Ledger(self.network.bucket, self.plan.keep, loop.time)
        if options.trace:
            self.ledger.lines = []
        self.machines = [self._machine(f"m{number}") for number in range(self.plan.machines)]
        self.processes: list[Process] = []
        self._written = 0
        self._steps: dict[str, int] = {}
        self._over = self.quiet = False
        loop.pids = self._pids  # type: ignore[method-assign]
        self.network.sent, self.network.landed = self._sent, self._landed
        self.network.max_lateness = self._max_lateness

    # used by programs

    def write(self, process: Process, path: str, data: bytes) -> None:
        """Write a file. Its modification time is that of the machine's clock."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".new", "wb") as file:
            file.write(data)
        self._written += 1
        at = int((EPOCH + self.loop.time() + process.machine.clock_offset) * 1e9) + self._written
        os.utime(path + ".new", ns=(at, at))
        os.replace(path + ".new", path)

    async def first_step(self, trial: str, life: Life) -> int:
        """The step at which training starts: ranks continue after the newest checkpoint, a single process uses new
        steps."""
        if life.world_size == 1:
            self._steps[trial] = self._steps.get(trial, 0) + 100
            return self._steps[trial]
        newest = -1
        for key, found in self.network.bucket.objects.items():
            if key.startswith(f"{NAME}/{trial}/checkpoint_") and key.endswith(MANIFEST):
                newest = max(newest, int(Manifest.from_bytes(found.data).info.get("metrics", {}).get("step", -1)))
        return newest + 1

    def ended(self, process: Process, how: str) -> None:
        """A process ended by itself. Record what it leaked."""
        if process.ghost:
            return
        process.ended = True
        for session in process.sessions:
            if session.budget.in_use or session.budget.waiting:
                self.ledger.violate("slot leaked", f"{process.name}: {session.budget.in_use} in use")
        if process.under_way:
            self.ledger.violate("request leaked", f"{process.name}: {process.under_way}")
        self.ledger.note(f"end {process.name} {how}")
        self._free_place(process)

    # the schedule

    async def run(self) -> None:
        """Run the schedule, then the checks."""
        helpers = [asyncio.create_task(work) for work in self._trouble_makers()]
        try:
            await getattr(self, f"_{self.plan.kind}")()
            await self._end_troubles(helpers)
            await self._check_recovery()
            self.ledger.check_end()
        finally:
            self._over = True
            await self._end_leftover_tasks()

    async def _solo(self) -> None:
        await self._lives(self._trial_names(), "driver", self.plan.lives)

    async def _rivals(self) -> None:
        await self._lives(self._trial_names(), "driver", max(2, self.plan.lives), rivals=True)

    async def _workers(self) -> None:
        async def later(name: str) -> None:
            await asyncio.sleep(self.dice.uniform(0, 20))
            await self._lives((name,), "worker", self.plan.lives)

        await asyncio.gather(self._lives(("a",), "driver", self.plan.lives), later("b"), later("c"))

    async def _ranks(self) -> None:
        for number in range(self.plan.lives):
            await self._run_ranks(resume=number > 0, trouble=self._trouble(last=number == self.plan.lives - 1))
            await self._between()

    async def _run_ranks(self, *, resume: bool, trouble: str, calm: bool = False) -> None:
        """Start all ranks. If trouble ends one of them, the run ends, or that rank returns alone."""
        size, reports = self.plan.ranks, 1 if calm else self.dice.choice((1, 2, 3))
        struck = self.dice.randrange(size)
        ranks: list[Process] = []

        def start(rank: int, *, resume: bool, trouble: str) -> Process:
            role = "driver" if rank == 0 else "worker"
            life = Life(("a",), reports, resume, role, rank, size, calm)
            machine = self.machines[rank % len(self.machines)]
            return self._start(lambda process: Training(self, process, life), f"{role}{rank}", machine, trouble)

        for rank in range(size):
            if not calm:
                await asyncio.sleep(self.dice.choice((0.0, self.dice.uniform(0, 10))))
            ranks.append(start(rank, resume=resume, trouble=trouble if rank == struck else "none"))
        await asyncio.wait([process.place_free for process in ranks], return_when=asyncio.FIRST_COMPLETED)
        if trouble != "none" and not ranks[struck].ended and self.dice.random() < 0.5:
            await self._between_ranks()
            ranks.append(start(struck, resume=True, trouble="none"))
        elif trouble != "none" and self.dice.random() < 0.7:
            await self._between_ranks()
            for process in ranks:
                if process.alive and not process.stopped:
                    self._strike(process, self.dice.choice(("kill", "cancel")))
        await asyncio.wait([process.place_free for process in ranks])

    async def _between_ranks(self) -> None:
        await asyncio.sleep(self.dice.uniform(0, 20) if self.plan.conditional else 60)

    async def _lives(self, trials: tuple[str, ...], role: str, count: int, *, rivals: bool = False) -> None:
        for number in range(count):
            last = number == count - 1
            trouble = "rival" if rivals and not last and self.dice.random() < 0.6 else self._trouble(last=last)
            life = Life(trials, self.dice.choice((1, 2, 3)), number > 0 or self.dice.random() < 0.3, role)
            machine = self.dice.choice(self.machines)
            process = self._start(lambda process, life=life: Training(self, process, life), role, machine, trouble)  # type: ignore[misc]
            await asyncio.wait([process.place_free])
            await self._between()

    async def _between(self) -> None:
        pause = self.dice.choice((0.1, self.dice.uniform(0, 5), self.dice.uniform(0, 60)))
        await asyncio.sleep(pause if self.plan.conditional else 60 + pause)
        if self.plan.wipes and self.dice.random() < 0.5 and not self._ranks_live():
            for key in [key for key in self.network.bucket.objects if key.startswith(f"{NAME}/")]:
                del self.network.bucket.objects[key]
            self.ledger.wiped()
            if any(process.alive for process in self.processes):
                await asyncio.sleep(LEASE_OUTLIVED)  # as docs/reliability.md asks of users

    def _ranks_live(self) -> bool:
        """Whether ranks are running. Numbers are not promised to be right if data is deleted under them."""
        return self.plan.kind == "ranks" and any(process.alive for process in self.processes)

    def _trial_names(self) -> tuple[str, ...]:
        return ("a", "b")[: self.plan.trials]

    def _trouble(self, *, last: bool) -> str:
        if last:
            return self.dice.choices(("none", "stop", "partition"), (5, 2, 2))[0]
        kinds = ("none", "kill", "stop", "cancel", "partition")
        return self.dice.choices(kinds, (1, 4, 4, 2, 2))[0]

    # processes

    def _machine(self, name: str) -> Machine:
        root = f"{self.root}/{name}"
        os.makedirs(root)
        return Machine(name, root)

    def _start(
        self, program: Callable[[Process], Program], name: str, machine: Machine, trouble: str = "none"
    ) -> Process:
        pid = 100 + len(self.processes)
        number = sum(other.name.startswith(f"{name}-") for other in self.processes)
        process = Process(f"{name}-{pid}", pid, machine, f"{self.seed} {name} {number}")
        process.place_free = self.loop.create_future()
        self.processes.append(process)
        if trouble != "none":
            process.trouble = trouble
            process.trouble_at = process.network_dice.randrange(1, 50)
        self.ledger.note(f"start {process.name} on {machine.name}, {trouble} at {process.trouble_at}")
        process.spawn(self.loop, program(process).run())
        return process

    def _pids(self, machine: Machine) -> set[int]:
        return {process.pid for process in self.processes if process.machine is machine and process.alive}

    @staticmethod
    def _free_place(process: Process) -> None:
        """A successor of the process may start."""
        if not process.place_free.done():
            process.place_free.set_result(None)

    # trouble

    def _sent(self, process: Process, operation: str, key: str) -> None:
        del operation, key
        process.requests += 1
        if process.trouble != "none" and process.requests == process.trouble_at and not self.quiet:
            trouble, process.trouble = process.trouble, "none"
            delay = self.rolls["strikes"].choice(
                (0.0, 0.0, self.rolls["strikes"].uniform(0, 0.1), self.rolls["strikes"].uniform(0, 15))
            )
            if delay:
                self.loop.in_world(self.loop.time() + delay, self._strike, process, trouble)
            else:
                self._strike(process, trouble)

    def _strike(self, process: Process, trouble: str) -> None:
        if not process.alive or self.quiet or not self.plan.has(trouble):
            return
        self.ledger.note(f"{trouble} {process.name}")
        self.ledger.count(trouble)
        for_seconds = self.rolls["strikes"].choice(
            (
                self.rolls["strikes"].uniform(0, 15),
                self.rolls["strikes"].uniform(0, 200),
                self.rolls["strikes"].uniform(0, 5000),
            )
        )
        if trouble == "kill":
            process.kill()
        elif trouble == "stop":
            process.stop()
            self.loop.in_world(self.loop.time() + for_seconds, self._resume, process)
        elif trouble == "cancel":
            assert process.main is not None
            process.main.cancel()
        elif trouble == "partition":
            process.partitioned = True
            self.loop.in_world(self.loop.time() + min(for_seconds, 400), self._heal, process)
        if trouble == "kill" or (trouble != "cancel" and self.plan.conditional):
            self._free_place(process)

    def _resume(self, process: Process) -> None:
        if process.stopped:
            self.ledger.note(f"continue {process.name}")
            process.resume(self.loop)

    def _heal(self, process: Process) -> None:
        if process.partitioned:
            self.ledger.note(f"heal {process.name}")
            process.partitioned = False

    def _trouble_makers(self) -> Iterator[asyncio._CoroutineLike[None]]:
        if self.plan.storms:
            yield self._storms()
        if self.plan.clock_steps:
            yield self._clock_steps()
        yield self._start_observers()

    async def _storms(self) -> None:
        while True:
            weather = self.rolls["storms"].choice(WEATHERS)
            self.ledger.note(f"weather {WEATHERS.index(weather)}")
            if not self.plan.has("late") or not self.plan.conditional:
                weather = replace(weather, late=0.0)
            self.network.weather = weather
            await asyncio.sleep(self.rolls["storms"].uniform(1, 120))

    async def _clock_steps(self) -> None:
        while True:
            await asyncio.sleep(self.rolls["clocks"].uniform(1, 120))
            machine, seconds = (
                self.rolls["clocks"].choice(self.machines),
                self.rolls["clocks"].choice((1, -1)) * self.rolls["clocks"].uniform(1, 90000),
            )
            machine.clock_offset += seconds
            self.ledger.note(f"clock of {machine.name} by {seconds:.0f}")

    async def _start_observers(self) -> None:
        for number in range(self.plan.readers):
            await asyncio.sleep(self.rolls["onlookers"].uniform(0, 30))
            machine = self._machine(f"reader{number}")
            self._start(lambda process: Reader(self, process, 3), "reader", machine)
        if self.plan.prunes:
            await asyncio.sleep(self.rolls["onlookers"].uniform(0, 60))
            self._start(lambda process: Pruner(self, process), "prune", self._machine("prune"))

    def _max_lateness(self, operation: str, key: str, version: str | None) -> float:
        """How late (s) a request may land. Only writes that overwrite in place are bounded; requests that create once,
        replace a version, or belong to a checkpoint are not."""
        if version is not None or "/checkpoint_" in key or operation in ("list", "head", "read"):
            return float("inf")
        return ARTIFACT_LATENESS

    def _landed(self, process: Process, operation: str, key: str, result: str) -> None:
        if not self._over:
            self.ledger.landed(process.name, operation, key, result)

    # the end

    async def _end_troubles(self, helpers: list[asyncio.Task[None]]) -> None:
        """End all troubles, and let all processes end by themselves."""
        self.quiet = True
        self.network.weather = CALM
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        self.ledger.note("calm")
        for process in self.processes:
            self._heal(process)
            self._resume(process)
        await self._wait_for_all()
        while self.network.under_way:
            await asyncio.sleep(100)
        await asyncio.sleep(60)

    async def _wait_for_all(self) -> None:
        waiting = [process.main for process in self.processes if process.alive and process.main is not None]
        if not waiting:
            return
        _, left = await asyncio.wait(waiting, timeout=END_LIMIT)
        for process in self.processes:
            if process.main in left:
                self.ledger.violate("does not end", f"{process.name}, {END_LIMIT:.0f} s after the last fault")
                process.kill()

    async def _check_recovery(self) -> None:
        """Check that the experiment can be resumed, ends well, and can be read."""
        if self.dice.random() < 0.2:
            return
        first = len(self.processes)
        if self.plan.kind == "ranks":
            await self._run_ranks(resume=True, trouble="none", calm=True)
        else:
            life = Life(self._trial_names(), 1, resume=True, calm=True)
            machine = self.dice.choice(self.machines)
            self._start(lambda process: Training(self, process, life), "last", machine)
        await self._wait_for_all()
        await asyncio.sleep(100)
        failed = [process.error for process in self.processes[first:] if process.error]
        for error in failed:
            self.ledger.violate("cannot resume", error)
        if not failed:
            for trial in self._trial_names() if self.plan.kind != "ranks" else ("a",):
                self.ledger.check_tree(trial)
        reader = self._start(lambda process: Reader(self, process, 1, calm=True), "reader", self._machine("last"))
        await self._wait_for_all()
        if reader.error and not failed:
            self.ledger.violate("cannot be read", reader.error)

    async def _end_leftover_tasks(self) -> None:
        """End the tasks of killed processes, so that nothing leaks out of the simulation. A task of any other process
        is a violation."""
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for process in self.processes:
            if process.killed:
                process.run_as_ghost(self.loop)
        killed = {process for process in self.processes if process.killed}
        for task in sorted(left, key=hash):
            owner = getattr(task, "process", None)
            if owner not in killed and not self.ledger.violations:
                self.ledger.violate("task leaked", f"{getattr(owner, 'name', 'world')}: {task.get_coro()}")
            task.cancel()
        for _ in range(50):
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            if not left:
                return
            await asyncio.wait(left, timeout=60)
            for task in left:
                task.cancel()
