"""The experiment that a page shows, kept up to date: read again from the store, beside the status of its engines.

The store is read while the page is open only, and never for more than a twentieth of the time: ten thousand records on
a slow store are read seldom. The status files are local and are read every second.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from asyncsync import Experiment, RunningEngine, TransferConfig, running_engines
from asyncsync.aio.threads import in_thread
from asyncsync.errors import AsyncsyncError
from asyncsync.runtime import wall_time
from asyncsync.ui.page_data import as_json, experiment_document, live_document, sample_of
from asyncsync.ui.sources import engines_of, open_experiment
from asyncsync.ui.verdict import Reading

LIVE_PERIOD = 1.0
"""Seconds between two looks at the status files."""
READ_PERIOD_RUNNING = 5.0
READ_PERIOD_ENDED = 30.0
"""Seconds between two readings of the store, if they are quick."""
SAMPLES_KEPT = 900
"""A quarter of an hour."""
SHARE_OF_TIME = 0.05
"""Largest share of the time that readings take."""


@dataclass
class LiveExperiment:
    """The state behind a page. ``allow``: whether the page may change the store."""

    uri: str
    storage_options: Mapping[str, object] = field(default_factory=dict)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    allow: bool = False
    experiment: Experiment | None = None
    engines: list[RunningEngine] = field(default_factory=list)
    reading: Reading = field(default_factory=Reading)
    generation: int = 0
    """Increased when the records that are shown change."""
    listeners: int = 0
    samples: deque[dict[str, float]] = field(default_factory=lambda: deque(maxlen=SAMPLES_KEPT))
    """The transfers of its engines, one sample for each look at them."""
    _asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set: read the store without waiting for the period."""
    _stale: bool = False
    """Whether an engine has stored something since the last reading."""
    _closed: bool = False
    _change: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once, at the next change; then there is a new one."""
    _table: tuple[int, bytes] = (-1, b"")

    async def run(self) -> None:
        """Keep it up to date until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_at_engines(), name="engines")
            tasks.create_task(self._read_again(), name="records")

    def read_now(self) -> None:
        """Read the store again without waiting for the period."""
        self._asked.set()

    def close(self) -> None:
        """End :meth:`updates` for every listener."""
        self._closed = True
        self._tell()

    async def document(self) -> bytes:
        """The document of the experiment as JSON; the large part is made once for each generation."""
        generation, experiment = self.generation, self.experiment
        if self._table[0] != generation:
            table = await in_thread(lambda: as_json(experiment_document(experiment)))
            self._table = (generation, table)
        return b'{"live":' + as_json(self.live()["live"]) + b"," + self._table[1][1:]

    def live(self) -> dict[str, Any]:
        """The document that a listener receives every second."""
        live = live_document(self.experiment, self.engines, self.reading, wall_time())
        return {"generation": self.generation, "allow": self.allow, "live": live}

    async def updates(self) -> AsyncGenerator[dict[str, Any], None]:
        """:meth:`live`, now and whenever something may have changed, until it is closed. The first one has all samples,
        the others those that are new."""
        self.listeners += 1
        sent = 0.0
        try:
            while not self._closed:
                changed = self._change
                fresh = [sample for sample in self.samples if sample["now"] > sent]
                sent = fresh[-1]["now"] if fresh else sent
                yield {**self.live(), "samples": fresh}
                await changed.wait()
        finally:
            self.listeners -= 1

    def _tell(self) -> None:
        changed, self._change = self._change, asyncio.Event()
        changed.set()

    async def _look_at_engines(self) -> None:
        while True:
            before = [(engine.pid, engine.alive, engine.status.totals) for engine in self.engines]
            self.engines = engines_of(self.uri, await in_thread(running_engines))
            now = [(engine.pid, engine.alive, engine.status.totals) for engine in self.engines]
            self._stale |= before != now  # something became durable, or an engine came or went
            if any(engine.alive for engine in self.engines):
                self.samples.append(sample_of(self.engines, wall_time()))
            self._tell()
            await asyncio.sleep(LIVE_PERIOD)

    async def _read_again(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            self._asked.clear()
            self._stale = False
            await self._read()
            await self._pause(began, loop.time())

    async def _pause(self, began: float, ended: float) -> None:
        """Wait until the store has to be read again. Nobody looks at the page: until somebody does."""
        loop, least = asyncio.get_running_loop(), (ended - began) / SHARE_OF_TIME
        while not self._asked.is_set():
            waited = loop.time() - ended
            period = LIVE_PERIOD if self._stale else self._period()
            if self.listeners and waited >= max(least, period):
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(LIVE_PERIOD):
                    await self._asked.wait()

    def _period(self) -> float:
        runs = self.experiment is None or (self.experiment.status == "running" and not self.experiment.lost)
        return READ_PERIOD_RUNNING if runs or self.engines else READ_PERIOD_ENDED

    async def _read(self) -> None:
        self.reading = replace(self.reading, progress=wall_time())
        first = not self.reading.read_at
        try:
            on_partial = self._take_partial if first else None
            found = await open_experiment(self.uri, self.storage_options, self.transfer, on_partial)
        except AsyncsyncError as error:
            self.reading = Reading(self.reading.read_at, None, " ".join(str(error).split()))
            self.generation += self.experiment is None
        else:
            self.reading = Reading(wall_time())
            self._take(found)
        self._tell()

    def _take_partial(self, experiment: Experiment) -> None:
        self.reading = replace(self.reading, progress=wall_time())
        self._take(experiment)

    def _take(self, experiment: Experiment) -> None:
        if experiment != self.experiment:
            self.experiment = experiment
            self.generation += 1
            self._tell()
