"""Experiments in the store in memory, one with texts that try to become markup, and a real browser."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from onebench import Bench
from statuses import NOW, running_engine
from stored import put_tree

from asyncsync import RunningEngine
from asyncsync.planning.document import EXPERIMENT_RECORD, TRIAL_RECORD
from asyncsync.sync.records.model import CheckpointRecord, ExperimentRecord, TrialRecord
from asyncsync.testing import MemoryStore, reset_memory, run_virtual
from asyncsync.ui.html_page import plotly_script

pytest.importorskip("plotly")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

URI = "memory://b/exp"
ATTACK = "<img src=x onerror=\"window.hacked='yes'\"></script><script>window.hacked='yes'</script>${1}{{1}}"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def an_engine(
    *, alive: bool = True, healthy: bool = True, lag: float = 0.0, size: int = 0, written: float = NOW
) -> RunningEngine:
    """An engine with two checkpoints pending if there are bytes at risk."""
    return running_engine(
        alive=alive, written=written, lag=lag, size=size, store_healthy=healthy, pending_checkpoints=2 if size else 0
    )


@pytest.fixture
def sweep(bench: Bench) -> Bench:
    """Four trials with checkpoints: one failed, one with hostile texts everywhere, and values that JSON has not."""

    async def main() -> None:
        async with bench.engine() as engine:
            for number in range(3):
                trial = engine.trial(f"t{number}", params={"lr": 0.1 * number, "name": "sgd"})
                for step in range(6):
                    directory = bench.checkpoint(f"c{number}_{step}", weights=b"w" * (step + 1))
                    await trial.report({"loss": 1 / (step + 1), "acc": float("nan")}, checkpoint=directory)
                await trial.finish("failed" if number == 2 else "finished")
            trial = engine.trial("hostile", params={ATTACK: ATTACK})
            metrics = {"loss": float("inf"), f"m{ATTACK}": 1.0, "text": ATTACK}
            await trial.report(metrics, checkpoint=bench.checkpoint("h"), metadata={ATTACK: ATTACK})
            await trial.finish()

    run_virtual(main())
    run_virtual(_set_error(TrialRecord, "hostile", ATTACK))
    return bench


async def _set_error(kind: type[TrialRecord], name: str, error: str) -> None:
    store = MemoryStore("b", "exp")
    record = kind.from_bytes((await store.get(f"{name}/{TRIAL_RECORD}"))[0])
    record.status, record.error = "failed", error
    await store.put(f"{name}/{TRIAL_RECORD}", record.to_bytes())


@pytest.fixture
def many(request: pytest.FixtureRequest) -> Iterator[int]:
    """An experiment of many trials, as their records."""
    count = getattr(request, "param", 10_000)
    reset_memory()
    run_virtual(put_many(count))
    yield count
    reset_memory()


async def put_many(count: int) -> None:
    store = MemoryStore("b", "exp")
    names = [f"trial_{number:05}" for number in range(count)]
    for number, name in enumerate(names):
        loss = (number * 7919 % count) / count
        item = CheckpointRecord("checkpoint_000000", 0, {"loss": loss}, {}, 1, number, 100.0 + number, 1)
        record = TrialRecord(name, "exp", "finished", params={"lr": number / count}, metrics={"loss": loss})
        record.checkpoints, record.reports, record.updated = [item], 1, 100.0 + number
        await store.put(f"{name}/{TRIAL_RECORD}", record.to_bytes())
    config = {"checkpoint": {"checkpoint_score_attribute": "loss", "checkpoint_score_order": "min", "num_to_keep": 1}}
    driver = ExperimentRecord("exp", dict.fromkeys(names, "finished"), config, "finished")
    await store.put(EXPERIMENT_RECORD, driver.to_bytes())
    await put_tree(store, "trial_00000/", {"result.json": b'{"loss": 1.0}\n{"loss": 0.5}\n'})


@dataclass
class Reply:
    """A response."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        """The body as JSON, without NaN and infinity."""

        def refuse(text: str) -> None:
            raise AssertionError(f"{text} is no JSON")

        return json.loads(self.body, parse_constant=refuse)


async def ask(address: str, path: str = "", method: str = "GET", **headers: str) -> Reply:
    """One request; a header is given by its name with ``_`` for ``-``."""
    parts = urlsplit(address)
    given = {"Host": parts.netloc, "Connection": "close"} | {
        name.replace("_", "-"): text for name, text in headers.items()
    }
    head = "".join(f"{name}: {text}\r\n" for name, text in given.items())
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"{method} {parts.path}{path} HTTP/1.1\r\n{head}\r\n".encode())
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        found = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(found["content-length"])) if "content-length" in found else b""
        return Reply(int(first.split()[1]), found, body)
    finally:
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def event_stream(address: str) -> AsyncIterator[AsyncIterator[Any]]:
    """The server-sent events of a page."""
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)

    async def events() -> AsyncIterator[Any]:
        while line := await reader.readline():
            if line.startswith(b"data: "):
                yield json.loads(line[6:])

    try:
        writer.write(f"GET {parts.path}events HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        yield events()
    finally:
        writer.close()
        await writer.wait_closed()


async def wait_for_event(address: str, wanted: Any) -> Any:
    """The first event for which ``wanted`` holds."""
    async with event_stream(address) as events:
        async for event in events:
            if wanted(event):
                await events.aclose()
                return event
    raise AssertionError("the events have ended")


async def wait_until_read(address: str) -> Any:
    """The event after the first complete reading."""
    return await wait_for_event(address, lambda event: event["live"]["read_at"])


@pytest.fixture
def chromium() -> Any:
    """A function that opens a page in a real browser: ``async with chromium(address) as page``. Every error on the page
    fails the test, and so does every refusal by its policy but one: plotly's style of maps, which the page has not."""
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")

    @asynccontextmanager
    async def opened(address: str, **options: Any) -> AsyncIterator[Any]:
        problems: list[str] = []
        async with playwright.async_playwright() as tool:
            browser = await tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            context = await browser.new_context(**options)
            page = await context.new_page()
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            await page.goto(address)
            yield page
            await browser.close()
        closed = "net::ERR"  # the server has ended: a test says so
        expected = (closed, f"Either the 'unsafe-inline' keyword, a hash ('{hash_of_map_style()}')")
        problems = [text for text in problems if not any(known in text for known in expected)]
        assert problems == [], "\n".join(problems)

    return opened


def hash_of_map_style() -> str:
    """The hash of the one style element with rules that plotly adds when it is loaded. Only maps need it."""
    (style,) = re.findall(
        r"""createElement\("style"\);\w+\.id="\w+",\w+\.textContent='([^']*)'""", plotly_script().decode()
    )
    return f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}"
