"""The work of a node's agent, without Ray: whose calls run, and which end when a process ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("pyarrow", reason="Ray is not installed: run nox -s ray")

from asyncsync import ConcurrentWriterError, Storage, SyncFailedError, running_engines
from asyncsync.events import CheckpointAccepted, CheckpointDurable, CheckpointFailed, SyncFinished, SyncWarning
from asyncsync.integrations.ray.agent import node_work, operations
from asyncsync.integrations.ray.agent.calls import Call, NotServedError, Place
from asyncsync.integrations.ray.agent.node_work import NodeWork, live_visibly, urgency
from asyncsync.integrations.ray.agent.process_watch import ProcessWatch
from asyncsync.runtime import Presence
from asyncsync.status import AGENT
from asyncsync.status_file import Owner

ME = Presence().name
PROGRAM = "from asyncsync.runtime import Presence; print(Presence().name, flush=True); input()"


@asynccontextmanager
async def other_process():
    """Another process; yields it and its name, and kills it at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def node(uri="memory://bucket/exps", draining=lambda: False):
    async with Storage(uri) as storage:
        work = NodeWork(storage, draining)
        life = asyncio.create_task(work.live(1e9))
        try:
            yield work
        finally:
            life.cancel()
            await asyncio.wait([life])


class Upload:
    """A call that runs until it is let go."""

    def __init__(self):
        self.started, self.let_go, self.ended = asyncio.Event(), asyncio.Event(), None
        self.may_end = asyncio.Event()
        """Set: cancelling it ends it at once."""
        self.may_end.set()

    async def __call__(self, storage):
        self.started.set()
        try:
            await self.let_go.wait()
            self.ended = "done"
        except asyncio.CancelledError:
            await self.may_end.wait()
            self.ended = "cancelled"
            raise


async def begun(work, upload, caller=ME, **options):
    task = asyncio.create_task(work.run(Call(upload, (), caller, **options)))
    await upload.started.wait()
    return task


async def test_a_call_runs_on_the_storage_of_the_node():
    async with node() as work:
        await work.run(Call(operations.write, ("a/b", b"hello"), ME))
        assert await work.run(Call(operations.read, ("a/b",), ME)) == b"hello"


async def test_the_upload_of_a_killed_process_ends():
    upload = Upload()
    async with node() as work, other_process() as (process, name):
        task = await begun(work, upload, name)
        process.kill()
        await asyncio.wait([task])
        assert task.cancelled() and upload.ended == "cancelled"


async def test_an_upload_in_the_background_outlives_its_process():
    upload = Upload()
    async with node() as work, other_process() as (process, name):
        task = await begun(work, upload, name, outlives=True)
        process.kill()
        await process.wait()
        upload.let_go.set()
        await task
        assert upload.ended == "done"


async def test_a_later_attempt_ends_the_earlier_one_before_it_begins():
    first, second = Upload(), Upload()
    async with node() as work:
        earlier = await begun(work, first, target="exp/c", writer=("1", "p", 0))
        later = await begun(work, second, target="exp/c", writer=("2", "q", 0))
        assert earlier.cancelled() and first.ended == "cancelled"
        second.let_go.set()
        await later


async def test_two_later_attempts_never_run_at_the_same_time():
    """Both begin while the first one is still ending."""
    first, second, third = Upload(), Upload(), Upload()
    first.may_end.clear()
    async with node() as work:
        await begun(work, first, target="exp/c", writer=("1", "p", 0))
        calls = [(second, ("2", "q", 0)), (third, ("3", "r", 0))]
        later = [asyncio.create_task(work.run(Call(each, (), ME, None, "exp/c", who))) for each, who in calls]
        while first.ended is None:
            first.may_end.set()
            await asyncio.sleep(0)
        await third.started.wait()
        assert second.ended == ("cancelled" if second.started.is_set() else None)
        third.let_go.set()
        await asyncio.wait(later)
        assert (third.ended, later[0].cancelled(), later[1].done()) == ("done", True, True)


async def test_an_earlier_process_cannot_end_the_upload_of_a_later_one():
    """It was taken for dead: of two live attempts, the one that this node has seen first is the earlier one."""
    upload, refused = Upload(), Upload()
    async with node() as work, other_process() as (_, earlier):
        await work.run(Call(operations.is_file, ("exp/marker",), earlier))
        task = await begun(work, upload, target="exp/c", writer=("2", "q", 0))
        with pytest.raises(ConcurrentWriterError, match="exp/c is being written by a later process"):
            await work.run(Call(refused, (), earlier, target="exp/c", writer=("1", "p", 0)))
        assert not refused.started.is_set()
        upload.let_go.set()
        await task
        assert upload.ended == "done"


async def test_the_upload_that_a_later_process_has_left_behind_holds_nobody_up():
    """Processes are used again: the earlier one may have the trial now."""
    left, next_one = Upload(), Upload()
    async with node() as work, other_process() as (process, later):
        await work.run(Call(operations.is_file, ("exp/marker",), ME))
        task = await begun(work, left, later, outlives=True, target="exp/c", writer=("2", "q", 0))
        process.kill()
        await process.wait()
        running = await begun(work, next_one, target="exp/c", writer=("1", "p", 0))
        assert task.cancelled() and left.ended == "cancelled"
        next_one.let_go.set()
        await running


async def test_a_replaced_process_of_a_rank_ends():
    """As in a replica group, whose attempt goes on."""
    first, second = Upload(), Upload()
    async with node() as work:
        earlier = await begun(work, first, target="exp/c", writer=("1", "p", 3))
        later = await begun(work, second, target="exp/c", writer=("1", "q", 3))
        assert earlier.cancelled()
        second.let_go.set()
        await later


async def test_what_outlives_its_process_replaces_nothing(tmp_path):
    """Its rank may have been restarted on another node, and has uploaded the same file there."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    async with Storage("memory://bucket/exps") as storage, other_process() as (process, name):
        process.kill()
        await process.wait()
        new = (str(tmp_path / "new"), "run/c", ("a", "q", 0), False, "", ME)
        await operations.push_checkpoint(storage, *new)
        with pytest.raises(ConcurrentWriterError, match="must not be replaced"):
            await operations.push_checkpoint(storage, str(tmp_path / "old"), "run/c", ("a", "p", 0), False, "", name)
        assert await operations.commit(storage, "run/c", "a", {0: "q"})
        assert await storage.read("run/c/weights") == b"new"


async def test_ranks_of_one_attempt_upload_at_the_same_time():
    first, second = Upload(), Upload()
    async with node() as work:
        tasks = [
            await begun(work, upload, target="exp/c", writer=("1", f"p{rank}", rank))
            for rank, upload in enumerate((first, second))
        ]
        first.let_go.set()
        second.let_go.set()
        await asyncio.gather(*tasks)


async def test_what_was_cut_off_is_cleaned_up(monkeypatch):
    cleaned = asyncio.Event()

    async def clean_up(storage):
        cleaned.set()

    monkeypatch.setattr(Storage, "clean_up", clean_up)
    async with node() as work, other_process() as (process, name):
        task = await begun(work, Upload(), name)
        process.kill()
        await cleaned.wait()
        assert task.done()


async def test_a_directory_that_the_agent_does_not_see_is_refused(tmp_path):
    other = Place(str(tmp_path), 1, 1)
    async with node() as work:
        with pytest.raises(NotServedError):
            await work.run(Call(operations.push, (str(tmp_path), "a", ()), ME, other))
        await work.run(Call(operations.push, (str(tmp_path), "a", ()), ME, Place.of(str(tmp_path))))


@pytest.mark.parametrize("name", ["", "another-machine 4026531836 7/1 abc"])
async def test_a_process_that_cannot_be_watched_is_refused(name):
    async with node() as work:
        with pytest.raises(NotServedError):
            await work.run(Call(operations.is_file, ("a",), name))


async def test_a_node_that_is_drained_ends_what_nobody_waits_for(monkeypatch):
    drained, orphan, waited_for = False, Upload(), Upload()
    monkeypatch.setattr(node_work, "DRAIN_INTERVAL", 0.01)
    async with node(draining=lambda: drained) as work, other_process() as (process, name):
        first = await begun(work, orphan, name, outlives=True)
        second = await begun(work, waited_for, target="exp/c")
        process.kill()
        await process.wait()
        drained = True
        await asyncio.wait([first])
        assert orphan.ended == "cancelled" and not second.done()
        found, _ = await work.events.after(0, 1.0)
        assert isinstance(found[-1], SyncWarning)
        waited_for.let_go.set()
        await second


async def test_a_node_that_is_drained_prefers_the_newest_checkpoints(monkeypatch):
    preferred = asyncio.Queue()
    monkeypatch.setattr(Storage, "prefer", lambda storage, paths: preferred.put_nowait(paths))
    uploads = [Upload(), Upload(), Upload()]
    async with node(draining=lambda: True) as work:
        tasks = [await begun(work, uploads[0], target="t/1")]
        assert await preferred.get() == ["t/1/"]
        async with other_process() as (_, name):
            tasks += [await begun(work, upload, name, target=f"u/{n}") for n, upload in enumerate(uploads[1:])]
            assert await preferred.get() == ["u/0/", "t/1/"]
            assert await preferred.get() == ["u/0/", "u/1/", "t/1/"]
            for upload in uploads:
                upload.let_go.set()
            await asyncio.gather(*tasks)


def test_one_process_sends_in_the_order_in_which_ray_registers():
    assert urgency([("p", "a"), ("q", "b"), ("p", "c")]) == ["a", "c", "b"]
    assert urgency([("p", "a"), ("q", "a")]) == ["a"]
    assert urgency([]) == []


async def test_an_agent_is_idle_when_no_process_lives_that_used_it():
    async with node() as work:
        async with other_process() as (process, name):
            await work.run(Call(operations.is_file, ("a",), name))
            assert work.idle == 0.0
            ended = asyncio.Event()
            watch = ProcessWatch(lambda _: ended.set())
            watch.add(name)
            process.kill()
            await ended.wait()
        while not work.idle:  # both watches hear of it in the same turn of the loop, in any order
            await asyncio.sleep(0)
        assert work.idle > 0.0


async def test_an_idle_agent_ends():
    async with Storage("memory://bucket/exps") as storage:
        await asyncio.wait_for(NodeWork(storage).live(0.0), 10)


async def test_an_agent_is_seen_on_its_node(tmp_path, monkeypatch):
    """As an engine with a status file, until it ends."""
    upload, owner = Upload(), Owner(ME, "memory://bucket/exps", "", f"{AGENT}4f8a2c91", 0)
    async with Storage(owner.uri) as storage:
        work = NodeWork(storage)
        life = asyncio.create_task(live_visibly(work, owner, 0.1))
        task = await begun(work, upload, target="exp/c")
        found = await status_when(lambda status: status.pending_checkpoints == 1)
        assert (found.role, found.uri, found.pid, found.alive) == (owner.role, owner.uri, os.getpid(), True)
        assert not found.status.is_safe
        upload.let_go.set()
        await task
        assert (await status_when(lambda status: not status.pending_checkpoints)).status.is_safe
        life.cancel()
        await asyncio.wait([life])
    assert running_engines() == []


async def status_when(holds):
    """The status file of the only engine of this machine, once its status is so."""
    async with asyncio.timeout(20):
        while not ((found := running_engines()) and holds(found[0].status)):
            await asyncio.sleep(0.02)
    return found[0]


async def test_listeners_hear_of_checkpoints(tmp_path):
    source = tmp_path / "checkpoint"
    source.mkdir()
    (source / "weights").write_bytes(b"w" * 100)
    alone = (str(source), "exp/trial/c_1", ("a", "p", 0), True, "", ME)
    part = (str(source), "run/c_2", ("a", "p", 0), False, "", ME)
    async with node() as work:
        await work.run(Call(operations.push_checkpoint, alone, ME))
        await work.run(Call(operations.push_checkpoint, part, ME))
        await work.run(Call(operations.commit, ("run/c_2", "a", {0: "p"}), ME))
        await work.run(Call(operations.commit, ("run/c_2", "a", {0: "p"}), ME))  # is complete already
        found, number = await work.events.after(0, 1.0)
        kinds = [CheckpointAccepted, CheckpointDurable, CheckpointAccepted, SyncFinished, CheckpointDurable]
        assert [type(event) for event in found] == kinds
        assert (found[1].trial, found[1].checkpoint, found[1].bytes_total) == ("exp/trial", "c_1", 100)
        assert await work.events.after(number, 0.01) == ([], number)
        waiting = asyncio.create_task(work.events.after(number, 60.0))
        with pytest.raises((SyncFailedError, ConcurrentWriterError)):
            await work.run(Call(operations.push_checkpoint, part, ME))
        found, _ = await waiting
        more, _ = await work.events.after(number, 1.0)
        assert [type(event) for event in more] == [CheckpointAccepted, CheckpointFailed]


def test_a_process_that_has_ended_is_not_watched():
    async def watch():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        name = (await process.stdout.readline()).decode().strip()
        await process.communicate(b"\n")
        watched = ProcessWatch(lambda _: None)
        return watched.add(name), len(watched)

    assert asyncio.run(watch()) == (False, 0)


async def test_without_descriptors_of_processes_they_are_asked_about(monkeypatch):
    monkeypatch.delattr("os.pidfd_open", raising=False)
    monkeypatch.setattr("asyncsync.integrations.ray.agent.process_watch.INTERVAL", 0.01)
    ended = asyncio.Queue()
    watch = ProcessWatch(ended.put_nowait)
    async with other_process() as (process, name):
        assert watch.add(name) and watch.add(name)
        process.kill()
        assert await ended.get() == name
    assert len(watch) == 0


async def test_unchanged_artifacts_of_200_trials_cost_no_request(tmp_path):
    directories = [tmp_path / f"trial_{number}" for number in range(200)]
    for directory in directories:
        directory.mkdir()
        (directory / "log.txt").write_text(directory.name)
    old = time.time() - 60
    for directory in directories:  # a file that has just been written is read again
        os.utime(directory / "log.txt", (old, old))
    async with node() as work:
        for _ in range(2):
            before = work.status().requests
            calls = [Call(operations.push, (str(path), f"exp/{path.name}", ()), ME) for path in directories]
            await asyncio.gather(*(work.run(call) for call in calls))
        assert work.status().requests == before > 0


async def test_what_one_trial_has_uploaded_is_copied_for_another(tmp_path):
    """As when a trial exploits another one: a second process uploads what it has downloaded."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    (source / "weights").write_bytes(os.urandom(8 << 20))
    async with node() as work, other_process() as (_, name):
        await work.run(Call(operations.push_checkpoint, (str(source), "t/a/c_1", ("a", "p", 0), True, "", ME), ME))
        await work.run(Call(operations.pull, ("t/a/c_1", str(copy), False), name))
        arguments = (str(copy), "t/b/c_1", ("b", "q", 0), True, "", name)
        report = await work.run(Call(operations.push_checkpoint, arguments, name))
        assert (report.bytes_sent, report.bytes_copied) == (0, 8 << 20)
