"""The heartbeat of an experiment: its record is written again while its driver runs. When a reader counts it as overdue
is in sync/records/overdue.py."""

from __future__ import annotations

import asyncio
import logging

from asyncsync.engine.trials.context import EXPERIMENT_KEY, EngineContext
from asyncsync.errors import ConcurrentWriterError, StoreError
from asyncsync.stores.base import Lane

log = logging.getLogger("asyncsync")


async def beat(context: EngineContext, period: float) -> None:
    """Write the experiment's record again whenever it was not written for ``period`` seconds, so that readers know that
    this driver runs. Ends by cancel, or when another driver has taken over."""
    file, clock = context.record_file, asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(max(0.0, file.last_write + period - clock()))
        if clock() < file.last_write + period:
            continue  # it was written since
        try:
            store = context.session.view(Lane.RECORD, EXPERIMENT_KEY)
            await file.confirm(store)  # a process that slept past its lease writes nothing more
            await file.save(store, force=True)
        except ConcurrentWriterError as error:
            log.warning("no more heartbeats: %s", error)
            return
        except StoreError as error:
            log.info("a heartbeat failed, the next one follows in %.0f s: %s", period, error)
            await asyncio.sleep(period)
