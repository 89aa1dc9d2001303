"""The server: who may ask, what it answers, and what it may change."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
from onebench import Bench

from asyncsync import Experiment, RunConfig, SyncEngine
from asyncsync.errors import ConfigError
from asyncsync.ui import live_experiment, serve, write_report
from asyncsync.ui.html_page import SCRIPTS, static_file
from asyncsync.ui.live_experiment import LiveExperiment

from .conftest import ATTACK, URI, ask, event_stream, wait_for_event, wait_until_read

PATHS = ("", "page.js", "page.css", "plotly.min.js", "experiment", "trial?name=t0", "objects", "events")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_experiment, "LIVE_PERIOD", 0.02)
    monkeypatch.setattr(live_experiment, "READ_PERIOD_RUNNING", 0.05)
    monkeypatch.setattr(live_experiment, "READ_PERIOD_ENDED", 0.05)
    monkeypatch.setattr(live_experiment, "SHARE_OF_TIME", 10.0)


async def test_the_page_shows_what_the_store_holds(sweep: Bench) -> None:
    async with serve(URI) as address:
        event = await wait_until_read(address)
        document = (await ask(address, "experiment")).json()
        trial = (await ask(address, "trial?name=t1")).json()
    assert event["live"]["level"] == "safe"
    assert document["table"]["values"]["trial"] == ["hostile", "t0", "t1", "t2"]
    assert document["table"]["values"]["status"] == ["failed", "finished", "finished", "failed"]
    assert document["table"]["values"]["metric:acc"] == [None, "NaN", "NaN", "NaN"]
    assert trial["curves"]["loss"]["y"] == [1 / (step + 1) for step in range(6)]
    assert trial["not_finite"] == {"acc": 6}
    assert [item["name"] for item in trial["checkpoints"]] == [f"checkpoint_{number:06}" for number in range(6)]
    assert len(trial["durable"]) == 6


@pytest.mark.parametrize("path", PATHS)
async def test_nothing_without_the_token(sweep: Bench, path: str) -> None:
    async with serve(URI) as address:
        base = address[: address.rstrip("/").rindex("/") + 1]
        for prefix in ("", "x/", address.rstrip("/").rpartition("/")[2][:-1] + "/", "%2e%2e/"):
            reply = await ask(base + prefix, path)
            assert (reply.status, b"loss" in reply.body) == (404, False)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "events"])
async def test_every_response_is_strict_about_content(sweep: Bench, path: str) -> None:
    async with serve(URI) as address:
        await wait_until_read(address)
        reply = await ask(address, path)
    policy = reply.headers["content-security-policy"]
    assert reply.status == 200
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'self';" in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"


async def test_another_name_for_this_server_is_refused(sweep: Bench) -> None:
    async with serve(URI) as address:
        assert (await ask(address, Host="evil.example")).status == 421


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "https://127.0.0.1"])
async def test_a_change_from_another_site_is_refused(sweep: Bench, origin: str | None) -> None:
    headers = {} if origin is None else {"Origin": origin}
    async with serve(URI, allow_changes=True) as address:
        await wait_until_read(address)
        reply = await ask(
            address, "retire?trial=t0&checkpoint=checkpoint_000000", "POST", Content_Length="0", **headers
        )
    assert reply.status == 403
    assert len((await Experiment.open(URI)).trial("t0").checkpoints) == 6


async def change(address: str, action: str, checkpoint: str = "checkpoint_000000", trial: str = "t0"):
    origin = address[: address.index("/", 8)]
    path = f"{action}?trial={trial}&checkpoint={checkpoint}"
    return await ask(address, path, "POST", Origin=origin, Content_Length="0")


async def test_without_allow_changes_the_page_only_reads(sweep: Bench) -> None:
    async with serve(URI) as address:
        await wait_until_read(address)
        for action in ("verify", "pin", "unpin", "retire"):
            assert (await change(address, action)).status == 403
    assert len((await Experiment.open(URI)).trial("t0").checkpoints) == 6


async def test_a_checkpoint_is_verified(sweep: Bench) -> None:
    async with serve(URI, allow_changes=True) as address:
        await wait_until_read(address)
        good = (await change(address, "verify")).json()
        await sweep.store.put("t0/checkpoint_000000/weights", b"x")
        bad = (await change(address, "verify")).json()
    assert (good["ok"], bad["ok"]) == (True, False)
    assert "weights" in bad["text"]


async def test_a_checkpoint_is_retired_and_the_page_learns_it(sweep: Bench) -> None:
    async with serve(URI, allow_changes=True) as address:
        before = await wait_until_read(address)
        assert (await change(address, "retire")).status == 200
        await wait_for_event(address, lambda event: event["generation"] > before["generation"])
        trial = (await ask(address, "trial?name=t0")).json()
        again = await change(address, "retire")
    assert [item["name"] for item in trial["checkpoints"]] == [f"checkpoint_{number:06}" for number in range(1, 6)]
    assert "checkpoint_000000" in trial["given_up"]
    assert (again.status, b"any more" in again.body) == (404, True)


async def test_a_checkpoint_is_pinned_and_then_not_retired(sweep: Bench) -> None:
    async with serve(URI, allow_changes=True) as address:
        await wait_until_read(address)
        assert (await change(address, "pin")).status == 200
        assert (await ask(address, "trial?name=t0")).json()["checkpoints"][0]["pinned"]
        assert (await change(address, "retire")).status == 409
        assert (await change(address, "retire", "checkpoint_000077")).status == 404
        assert (await change(address, "retire", checkpoint="none")).status == 404
        assert (await change(address, "unpin")).status == 200
    assert not (await Experiment.open(URI)).trial("t0").checkpoints[0].pinned


@pytest.mark.parametrize("path", ["trial?name=none", "trial", "trial?name=..%2f..", "a/b"])
async def test_an_unknown_name_is_missing(sweep: Bench, path: str) -> None:
    async with serve(URI) as address:
        await wait_until_read(address)
        assert (await ask(address, path)).status == 404


@pytest.mark.server
async def test_a_bucket_is_shown_and_changed_with_the_given_options(seaweedfs, tmp_path: Path) -> None:
    uri, options = f"s3://{seaweedfs.create_bucket('page')}", seaweedfs.storage_options
    (tmp_path / "model.bin").write_bytes(b"weights")
    async with SyncEngine(
        RunConfig(name="exp", storage_path=uri, storage_options=options), local_dir=tmp_path / "l"
    ) as engine:
        await engine.trial("t0").report({"loss": 1.0}, checkpoint=tmp_path / "model.bin")
    async with serve(f"{uri}/exp", allow_changes=True, storage_options=options) as address:
        await wait_until_read(address)
        assert (await ask(address, "trial?name=t0")).json()["curves"]["loss"]["y"] == [1.0]
        assert (await ask(address, "objects")).json()["rows"][0]["checkpoints"] == 7
        assert (await change(address, "verify")).json()["ok"]
        assert [(await change(address, action)).status for action in ("pin", "unpin", "retire")] == [200] * 3
    await write_report(f"{uri}/exp", tmp_path / "r.html", storage_options=options)
    assert seaweedfs.secret_key not in (tmp_path / "r.html").read_text()


async def test_a_store_without_experiment_is_said_on_the_page(bench: Bench) -> None:
    async with serve("memory://b/nothing") as address:
        event = await wait_for_event(address, lambda event: event["live"]["error"])
        document = (await ask(address, "experiment")).json()
        trial = await ask(address, "trial?name=t")
    assert event["live"]["level"] == "unknown"
    assert "no experiment" in event["live"]["verdict"]
    assert document["experiment"] is None
    assert trial.status == 404


async def test_an_experiment_that_is_removed_meanwhile_is_not_called_safe(sweep: Bench) -> None:
    async with serve(URI) as address, event_stream(address) as events:
        async for event in events:
            if event["live"]["read_at"]:
                break
        for key in sweep.keys():
            await sweep.store.delete([key])
        async for event in events:
            if event["live"]["error"]:
                break
        await events.aclose()
    assert event["live"]["level"] == "unknown"
    assert "this is its state" in event["live"]["verdict"]


async def test_a_running_engine_is_live_and_its_end_is_seen(bench: Bench) -> None:
    async with serve(URI) as address, event_stream(address) as events:
        async with bench.engine() as engine:
            await engine.trial("t").report({"loss": math.nan}, checkpoint=bench.checkpoint())
            async for event in events:
                if event["live"]["engines"] and event["live"]["read_at"] and event["live"]["trials"]:
                    break
            assert event["live"]["engines"][0]["alive"]
            assert event["live"]["level"] in ("safe", "risk")
        async for event in events:
            if not event["live"]["engines"] and "Ended" in event["live"]["verdict"]:
                break
        await events.aclose()
    assert event["live"]["level"] == "safe"


async def test_a_page_that_opens_late_has_the_earlier_samples(bench: Bench) -> None:
    async with serve(URI) as address, bench.engine() as engine:
        await engine.trial("t").report({"loss": 1.0}, checkpoint=bench.checkpoint())
        early: list[float] = []
        async with event_stream(address) as events:
            async for event in events:
                early += [sample["now"] for sample in event["samples"]]
                if len(early) >= 3:
                    break
            await events.aclose()
        late = await wait_for_event(address, lambda event: event["samples"])
    assert early == sorted(set(early))
    assert [sample["now"] for sample in late["samples"]][: len(early)] == early
    assert {"rate", "in_flight", "waiting", "limit", "lag", "bytes_at_risk"} < late["samples"][0].keys()


@pytest.mark.parametrize("uri", ["nowhere://b/e", "s3://", "relative"])
async def test_an_address_that_never_works_is_refused_at_once(uri: str) -> None:
    with pytest.raises(ConfigError):
        async with serve(uri):
            pass


async def test_the_port_is_taken(sweep: Bench) -> None:
    async with serve(URI) as address:
        port = int(address.split(":")[2].split("/")[0])
        with pytest.raises(ConfigError, match=f"--port {port}"):
            async with serve(URI, port=port):
                pass


async def test_a_cancel_ends_the_server_while_a_page_listens(sweep: Bench) -> None:
    ready = asyncio.Event()

    async def main() -> None:
        async with serve(URI) as address, event_stream(address) as events:
            await anext(events)
            await events.aclose()
            ready.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(main())
    await ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_scripts_never_make_markup_of_a_text() -> None:
    code = b"\n".join(static_file(name) for name in SCRIPTS).replace(b"http://www.w3.org/2000/svg", b"")
    for word in (
        b"innerHTML",
        b"outerHTML",
        b"insertAdjacentHTML",
        b"document.write",
        b"eval(",
        b"new Function",
        b"http",
    ):
        assert word not in code, word
    assert ATTACK.encode() not in code


async def test_an_error_of_the_block_is_raised_as_it_is(sweep: Bench) -> None:
    with pytest.raises(KeyError):
        async with serve(URI):
            raise KeyError("x")


async def test_the_cause_of_an_error_of_the_block_stays(sweep: Bench) -> None:
    cause = ValueError("why")
    with pytest.raises(KeyError) as caught:
        async with serve(URI):
            raise KeyError("x") from cause
    assert caught.value.__cause__ is cause


async def test_an_error_of_the_server_does_not_replace_that_of_the_block(
    sweep: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(LiveExperiment, "run", fail)
    with pytest.raises(ExceptionGroup) as caught:
        async with serve(URI):
            try:
                await asyncio.Event().wait()  # cancelled, because the server has failed
            finally:
                raise KeyError("x")
    assert {type(error) for error in caught.value.exceptions} == {KeyError, ZeroDivisionError}
