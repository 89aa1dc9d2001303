"""Owed deletions delete exactly the checkpoints that the trial's record gave up, and none is forgotten."""

import asyncio
import json
from pathlib import Path

import pytest
from machines import Machine, names, record, stored, told, turns
from onebench import Bench
from stored import check_complete

from asyncsync import Checkpoint, CheckpointConfig, SyncConfig, TransferConfig, UploadMode
from asyncsync.disk.journal import Journal, Owed
from asyncsync.errors import AccessDeniedError, AsyncsyncError, UnavailableError
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.planning.manifest import MANIFEST
from asyncsync.sync.janitor import clean_up
from asyncsync.sync.records.model import TrialRecord
from asyncsync.sync.session import DELETE
from asyncsync.sync.upload.open_uploads import ABORT
from asyncsync.testing import run_virtual

ONE = CheckpointConfig(num_to_keep=1)
NEVER = SyncConfig(sync_period=100_000)
MIB = 1 << 20
URI = "memory://b/exp"


async def owed(machine: Machine) -> list[Owed]:
    async with Journal.open(machine.home / "state" / "journal.sqlite3") as journal:
        return await journal.owed(URI)


async def owe(machine: Machine, kind: str, **payload: str) -> None:
    (machine.home / "state").mkdir(parents=True, exist_ok=True)
    async with Journal.open(machine.home / "state" / "journal.sqlite3") as journal:
        journal.owe(URI, kind, json.dumps(payload))


async def dies_owing(bench: Bench, machine: Machine) -> None:
    """The record gives the first checkpoint up, and then the process ends."""
    async with machine.killed(NEVER, ONE, resume=False) as engine:
        machine.network.hang(operation="delete", times=None)
        for step in range(2):
            await engine.trial("t").report({"step": step}, bench.checkpoint(f"{machine.name}{step}"))
    assert names(bench) == ["checkpoint_000001"]
    assert record(bench).given_up == ["checkpoint_000000"]
    assert "t/checkpoint_000000/weights" in bench.store.contents


def wipe(bench: Bench) -> None:
    for key in [key for key in bench.store.bucket.objects if key.startswith("exp/")]:
        del bench.store.bucket.objects[key]


def test_only_what_the_stored_record_gives_up_may_be_deleted(bench: Bench) -> None:
    """In the experiment that gave it up: one that was begun again under its name has another nonce."""

    async def main() -> None:
        async with bench.engine(NEVER, ONE) as engine:
            hold = bench.faults.hang(operation="delete", times=None)
            for step in range(2):
                await engine.trial("t").report({}, bench.checkpoint(f"c{step}"))
            nonce, may = record(bench).nonce, engine._open_registry.fence_of_given_up
            assert may("t", "checkpoint_000000", nonce) is not None
            assert may("t", "checkpoint_000000", f"not {nonce}") is None
            assert may("t", "checkpoint_000001", nonce) is None
            assert may("u", "checkpoint_000000", nonce) is None
            hold.release.set()

    run_virtual(main())


@pytest.mark.parametrize("same", [True, False], ids=["same machine", "another machine"])
def test_the_next_process_deletes_owed_files_of_the_record(bench: Bench, same: bool) -> None:
    """The journal may be missing: the record has the debt."""

    async def main() -> None:
        await dies_owing(bench, one := Machine(bench, "one"))
        heir = one if same else Machine(bench, "two")
        async with heir.engine(NEVER, ONE) as engine:
            await engine.trial("t").report({})
            await engine.trial("t").finish()
        assert not [key for key in bench.keys() if "checkpoint_000000" in key]
        assert stored(bench, "t/checkpoint_000001/")
        assert names(bench) == ["checkpoint_000001"]
        assert [item for item in await owed(heir) if item.kind == DELETE] == []
        async with heir.engine(NEVER, ONE) as engine:
            await engine.trial("t").report({})
            await engine.trial("t").sync()
            assert record(bench).given_up == []

    run_virtual(main())


@pytest.mark.parametrize("new_machine", [True, False], ids=["another machine", "same machine"])
def test_a_debt_of_a_wiped_experiment_touches_nothing_of_the_next_one(bench: Bench, new_machine: bool) -> None:
    async def main() -> None:
        one = Machine(bench, "one")
        await dies_owing(bench, one)
        wipe(bench)
        other = Machine(bench, "two") if new_machine else one
        async with other.engine(NEVER, resume=False) as engine:
            report = await engine.trial("t").report({}, bench.checkpoint("new"))
            assert report.checkpoint is not None
            assert report.checkpoint.name == "checkpoint_000000"
        before = {key: data for key, data in bench.store.contents.items() if "checkpoint_000000" in key}
        async with one.engine(NEVER) as engine:
            await engine.trial("t").report({})
        assert {key: data for key, data in bench.store.contents.items() if "checkpoint_000000" in key} == before
        assert [item for item in await owed(one) if item.kind == DELETE] == []

    run_virtual(main())


def test_a_debt_of_a_wiped_experiment_does_not_pay_for_the_next_ones(bench: Bench) -> None:
    """Of two checkpoints of one name only the one that is given up is meant."""

    async def main() -> None:
        one = Machine(bench, "one")
        await dies_owing(bench, one)
        wipe(bench)
        await dies_owing(bench, one)
        async with one.engine(NEVER, ONE) as engine:
            await engine.trial("t").report({})
            await engine.trial("t").finish()
        assert not [key for key in bench.keys() if "checkpoint_000000" in key]
        assert [item for item in await owed(one) if item.kind == DELETE] == []

    run_virtual(main())


def test_debts_of_versions_that_did_not_say_whose_they_were_do_nothing(bench: Bench) -> None:
    async def main() -> None:
        one = Machine(bench, "one")
        async with one.engine(NEVER, resume=False) as engine:
            await engine.trial("t").report({}, bench.checkpoint())
        await owe(one, DELETE, prefix="t/checkpoint_000000/")
        before = {key for key in bench.keys() if "checkpoint_000000" in key}
        async with one.engine(NEVER) as engine:
            await engine.trial("t").report({})
        assert {key for key in bench.keys() if "checkpoint_000000" in key} == before
        assert [item for item in await owed(one) if item.kind == DELETE] == []

    run_virtual(main())


def test_a_checkpoint_named_again_by_the_record_is_not_deleted(bench: Bench) -> None:
    async def main() -> None:
        one = Machine(bench, "one")
        async with one.engine(NEVER, resume=False) as engine:
            await engine.trial("t").report({}, bench.checkpoint())
            nonce = engine.trial("t")._state.record.nonce
        await owe(one, DELETE, trial="t", name="checkpoint_000000", nonce=nonce)
        async with one.engine(NEVER) as engine:
            await engine.trial("t").report({})
        assert stored(bench, "t/checkpoint_000000/")

    run_virtual(main())


def test_retired_checkpoints_are_deleted_at_the_same_time(bench: Bench) -> None:
    async def main() -> None:
        one = Machine(bench, "one")
        async with one.engine(NEVER, resume=False) as engine:
            for step in range(16):
                await engine.trial(f"t{step}").report({}, bench.checkpoint(f"a{step}"))
        for step in range(16):
            nonce = TrialRecord.from_bytes(bench.store.contents[f"t{step}/{TRIAL_RECORD}"]).nonce
            await owe(one, DELETE, trial=f"t{step}", name="checkpoint_000009", nonce=nonce)
        async with one.engine(NEVER) as engine:
            session = engine._context.session
            bench.store.latency, before = 1.0, asyncio.get_running_loop().time()
            await clean_up(session)
            assert asyncio.get_running_loop().time() - before < 8
            bench.store.latency = 0.0

    run_virtual(main())


def test_only_the_writer_of_a_key_aborts_uploads_without_an_id(bench: Bench) -> None:
    """The upload may be a successor's."""

    async def main() -> None:
        one, two = Machine(bench, "one"), Machine(bench, "two")
        async with one.engine(NEVER, resume=False) as engine:
            await engine.trial("t").report({})
            nonce = engine._context.record.nonce
            await engine.sync()
            with pytest.raises(AsyncsyncError):
                async with two.engine(NEVER) as heir:
                    await heir.trial("t").report({})
                    await heir.sync()
                    upload = await bench.store.create_multipart("t/checkpoint_000000/weights")
                    await asyncio.sleep(20)
                    engine._context.session.journal.owe(
                        URI, ABORT, json.dumps({"key": upload.key, "upload_id": "", "nonce": nonce})
                    )
                    await clean_up(engine._context.session)
                    assert upload.upload_id in bench.store.bucket.uploads
                    heir._context.session.journal.owe(
                        URI, ABORT, json.dumps({"key": upload.key, "upload_id": "", "nonce": nonce})
                    )
                    await clean_up(heir._context.session)
                    assert upload.upload_id not in bench.store.bucket.uploads
                    raise UnavailableError("enough")

    with pytest.raises(AsyncsyncError):
        run_virtual(main())


def test_a_failed_checkpoint_is_deleted_and_then_forgotten(bench: Bench) -> None:
    async def main() -> None:
        one = Machine(bench, "one")
        async with one.engine(NEVER, resume=False) as engine:
            trial = engine.trial("t")
            one.network.fail(error=AccessDeniedError("not you"), operation="put", key="/b")
            assert isinstance(await told(trial.report({}, bench.checkpoint("x", a=b"1", b=b"2"))), AsyncsyncError)
            await turns(200)
            await asyncio.sleep(1)
            assert not [key for key in bench.keys() if "checkpoint_000000" in key]
            await trial.sync()
            assert record(bench).given_up == []
            report = await trial.report({}, bench.checkpoint("y"))
            assert report.checkpoint is not None
            assert report.checkpoint.name == "checkpoint_000001"

    run_virtual(main())


@pytest.mark.parametrize("after", [False, True])
def test_the_next_process_completes_a_retirement_cut_at_any_request(tmp_path: Path, after: bool) -> None:
    n, begun = 0, True
    while begun:
        n += 1
        from asyncsync.testing import reset_memory

        reset_memory()
        (tmp_path / str(n)).mkdir()
        bench = Bench(tmp_path / str(n))

        async def main(bench: Bench = bench, n: int = n) -> bool:
            one, two = Machine(bench, "one"), Machine(bench, "two")
            async with one.killed(NEVER, ONE, resume=False) as engine:
                trial = engine.trial("t")
                await trial.report({}, bench.checkpoint("a"))
                await trial.sync()
                before = one.network.calls
                one.network.hang(n, after=after, times=None)
                report = asyncio.create_task(told(trial.report({}, bench.checkpoint("b"))))
                await asyncio.sleep(30)
                acknowledged = report.done()
                begun = one.network.calls - before >= n
            await report
            check_complete(bench.store.contents)
            assert names(bench)
            if acknowledged:
                assert names(bench) == ["checkpoint_000001"]
            async with two.engine(NEVER, ONE) as engine:
                await engine.trial("t").report({}, bench.checkpoint("c"))
                await engine.trial("t").finish()
            check_complete(bench.store.contents)
            (last,) = names(bench)
            there = {key.split("/")[1] for key in bench.keys("weights")}
            unknown = there - {last}
            # one without a manifest that no record ever named is for prune
            assert all(f"t/{name}/{MANIFEST}" not in bench.store.contents for name in unknown), unknown
            assert acknowledged <= (not unknown)
            return begun

        begun = run_virtual(main())
    assert n > 8


async def pending_under_a_number_that_was_given_up(bench: Bench, mode: str) -> None:
    """A number that one machine has pending is used, and retired, by another one meanwhile."""
    one, two = Machine(bench, "one"), Machine(bench, "two")
    async with one.killed(NEVER, ONE, resume=False) as engine:
        trial = engine.trial("t")
        await trial.sync()
        one.network.hang(key="checkpoint_000000", times=None)
        source = bench.checkpoint("mine", weights=b"mine")
        taken = Checkpoint.take(source) if mode == "take" else Checkpoint.lend(source)
        await trial.report({"who": "one"}, taken, upload=UploadMode.ASYNC)
        await asyncio.sleep(1)
    async with two.killed(NEVER, ONE) as engine:
        trial = engine.trial("t")
        two.network.hang(operation="delete", times=None)
        await trial.report({"who": "two"}, bench.checkpoint("x"))
        await trial.report({"who": "two"}, bench.checkpoint("y"))
    assert record(bench).given_up == ["checkpoint_000000"]
    for key in [key for key in bench.store.bucket.objects if "checkpoint_000000" in key]:
        del bench.store.bucket.objects[key]  # it was deleted, and the process ended before its record was written
    async with one.engine(NEVER, CheckpointConfig(num_to_keep=3)) as engine:
        slow = one.network.hang(operation="delete", key="checkpoint_000000")
        report = None
        if mode == "lend":
            report = await engine.trial("t").report({"who": "one"}, source, upload=UploadMode.ASYNC)
        await asyncio.sleep(1)
        await engine.trial("t")._state.wait_durable()
        slow.release.set()
        assert report is None or (report.checkpoint is not None and report.checkpoint.is_durable)


@pytest.mark.parametrize("mode", ["take", "lend"])
def test_a_pending_checkpoint_is_not_sent_under_a_number_that_is_given_up(bench: Bench, mode: str) -> None:
    run_virtual(pending_under_a_number_that_was_given_up(bench, mode))
    check_complete(bench.store.contents)
    mine = [name for name in names(bench) if stored(bench, f"t/{name}/").get("weights") == b"mine"]
    assert mine


def test_a_name_used_again_after_retirement_keeps_its_data(bench: Bench) -> None:
    """The record in the store gives the name up until it is written again."""

    async def main() -> None:
        one = Machine(bench, "one")
        async with one.killed(NEVER, ONE, resume=False) as engine:
            trial = engine.trial("t")
            await trial.report({}, bench.checkpoint("a", weights=b"a"), name="best")
            await trial.report({}, bench.checkpoint("b", weights=b"b"))
            await asyncio.sleep(5)
            assert not [key for key in bench.keys() if "/best/" in key]
            one.network.hang(operation="put", key="trial.json", times=None)
            late = Checkpoint.take(bench.checkpoint("c", weights=b"c"))
            await trial.report({}, late, name="best", upload=UploadMode.ASYNC)
            await asyncio.sleep(5)
        slow = one.network.hang(operation="put", key="trial.json", at=2)
        async with one.engine(NEVER, ONE):
            await asyncio.sleep(5)
            slow.release.set()
        check_complete(bench.store.contents)
        assert names(bench) == ["best"]
        assert stored(bench, "t/best/") == {"weights": b"c"}

    run_virtual(main())


def test_a_lost_response_to_the_start_of_an_upload_leaves_none_open(bench: Bench) -> None:
    """The next attempt works at once, and nobody knows the first one's id."""
    bench.transfer = TransferConfig(multipart_threshold=5 * MIB, part_size=5 * MIB)

    async def main() -> None:
        one = Machine(bench, "one")
        async with one.engine(NEVER, resume=False) as engine:
            await engine.trial("t").sync()
            one.network.fail(after=True, operation="create_multipart", error=UnavailableError("lost"))
            await engine.trial("t").report({}, bench.checkpoint("big", weights=bytes(11 * MIB)))
        assert bench.store.bucket.uploads == {}
        assert [item for item in await owed(one) if item.kind == ABORT] == []

    run_virtual(main())


def test_the_janitor_leaves_an_upload_alone_that_is_just_being_opened(bench: Bench) -> None:
    """The janitor does not know the id of the upload to abort, nor yet that of the one just opened."""
    bench.transfer = TransferConfig(multipart_threshold=5 * MIB, part_size=5 * MIB)

    async def main() -> None:
        one = Machine(bench, "one")
        async with one.engine(NEVER, resume=False) as engine:
            trial = engine.trial("t")
            await trial.sync()
            key = "t/checkpoint_000000/weights"
            owe = json.dumps({"key": key, "upload_id": "", "nonce": engine._context.record.nonce})
            opening = one.network.hang(after=True, operation="create_multipart")
            report = asyncio.create_task(trial.report({}, bench.checkpoint("big", weights=bytes(11 * MIB))))
            await opening.reached.wait()
            engine._context.session.journal.owe(URI, ABORT, owe)
            await clean_up(engine._context.session)
            opening.release.set()
            await report
        assert bench.store.bucket.uploads == {}
        assert names(bench) == ["checkpoint_000000"]

    run_virtual(main())
