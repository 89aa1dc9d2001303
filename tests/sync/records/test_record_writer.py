"""Only the writer of the stored version may replace a record."""

import asyncio
import itertools
import json

import pytest
from machines import Network, told

from asyncsync.errors import AsyncsyncError, ConcurrentWriterError, UnavailableError
from asyncsync.stores.base import Traits
from asyncsync.sync.records.model import TRIALS_PER_SLICE, WRITER, ExperimentRecord
from asyncsync.sync.records.writer import RecordFile
from asyncsync.testing import FaultyStore, MemoryStore, run_virtual


class Ours:
    def encode(self, stamp: str) -> bytes:
        return b"ours"

    def adopt(self, stored: bytes) -> None:
        raise AssertionError("nobody has marked it")


async def test_another_version_in_the_store_is_another_writers():
    store, record = MemoryStore(), RecordFile("record", Ours())
    await record.save(store)
    await record.confirm(store)
    await store.put("record", b"theirs")
    with pytest.raises(ConcurrentWriterError, match="another process"):
        await record.confirm(store)


async def test_a_missing_record_has_no_owner():
    """A successor leaves its record; neither a deletion nor a server that keeps nothing is a successor."""
    store, record = MemoryStore(), RecordFile("record", Ours())
    await record.save(store)
    await store.delete(["record"])
    await record.confirm(store)


@pytest.mark.parametrize("error", [None, UnavailableError("away")])
async def test_concurrent_confirms_share_one_response_or_its_failure(error: Exception | None) -> None:
    store, record = FaultyStore(MemoryStore()), RecordFile("record", Ours())
    await record.save(store)
    hang = store.faults.hang(operation="head")
    first = asyncio.create_task(record.confirm(store))
    await hang.reached.wait()
    others = [asyncio.create_task(record.confirm(store)) for _ in range(50)]
    await asyncio.sleep(0)
    if error is not None:
        store.faults.fail(error=error, operation="head", times=None)
    hang.release.set()
    await first
    await asyncio.gather(*others, return_exceptions=True)
    assert {type(task.exception()) for task in others} == {type(error)}
    assert store.faults.count("head") == 2
    store.faults.clear()
    await record.confirm(store)  # the failure is not kept


@pytest.mark.virtual_time
async def test_a_confirm_since_then_is_not_repeated() -> None:
    """A write counts as well; requests before ``since`` do not, nor does one with a lost response."""
    store, record = FaultyStore(MemoryStore()), RecordFile("record", Ours())
    loop = asyncio.get_running_loop()
    before = loop.time()
    await asyncio.sleep(1)
    await record.save(store)
    assert await record.confirm(store, before) == loop.time()
    assert store.faults.count("head") == 0
    later = loop.time()
    await asyncio.sleep(1)
    await record.confirm(store, later)
    assert store.faults.count("head") == 1
    await record.confirm(store, later)
    await record.confirm(store, before)
    assert store.faults.count("head") == 1
    await store.put("record", b"theirs")
    with pytest.raises(ConcurrentWriterError):
        await record.confirm(store)
    with pytest.raises(ConcurrentWriterError):  # once lost, always lost
        await record.confirm(store, before)


class Document:
    """A record with a ``value``, on a network that may lose its writes for a while."""

    def __init__(self, *, conditional: bool = True) -> None:
        self.network = Network()
        self.inner = MemoryStore()
        if not conditional:
            self.inner.traits = Traits("memory", conditional_writes=False)
        self.store = FaultyStore(self.inner, self.network)
        self.value = "first"
        self.file = RecordFile("record", self)

    def encode(self, stamp: str) -> bytes:
        return f'{{"{WRITER}": "{stamp}", "value": "{self.value}"}}'.encode()

    def adopt(self, stored: bytes) -> None:
        """A write of its own, whose response was lost, is adopted as it is."""

    def lose(self, *, lose: bool = True) -> None:
        self.network.late = lambda request: lose and request.operation == "put"

    def stored(self) -> str:
        return self.inner.contents["record"].decode().split('"value": "')[1].rstrip('"}')


ACTS = ("lost save", "save", "land", "confirm", "lost confirm", "change back")


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("conditional", [True, False])
async def test_the_last_save_counts_in_any_order_of_lost_writes(exists: bool, conditional: bool) -> None:
    """All orders of writes that are lost, arrive late or never, and of reads in between: no other writer is suspected,
    the last save is stored, and no later arrival changes it.
    """
    for acts in itertools.product(ACTS, repeat=4):
        document = Document(conditional=conditional)
        if exists:
            await document.file.save(document.store)
        for number, act in enumerate(acts):
            document.lose(lose=act.startswith("lost"))
            if act.endswith("save"):
                document.value = f"value {number}"
                end = await told(document.file.save(document.store))
                assert isinstance(end, UnavailableError) == act.startswith("lost"), (acts, end)
            elif act.endswith("confirm"):
                end = await told(document.file.confirm(document.store))
                assert not isinstance(end, ConcurrentWriterError), acts
            elif act == "land" and conditional:
                await document.network.land()
            elif act == "change back":
                document.value = "first"
        document.lose(lose=False)
        await document.file.save(document.store)
        assert document.file.is_current()
        assert document.stored() == document.value, acts
        if conditional:
            await document.network.land()
        assert document.stored() == document.value, acts
        await document.file.confirm(document.store)


class MarkedDocument(Document):
    """A record in which other processes set marks. As with pins, its writer keeps those that it has adopted."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: set[str] = set()

    def encode(self, stamp: str) -> bytes:
        return json.dumps({WRITER: stamp, "marks": sorted(self.marks), "value": self.value}).encode()

    def adopt(self, stored: bytes) -> None:
        self.marks |= set(json.loads(stored)["marks"])

    async def mark(self, name: str) -> bool:
        """Mark as another process does: over exactly the version that was read, with the stamp of the writer."""
        data, info = await self.inner.get("record")
        document = json.loads(data)
        document["marks"].append(name)
        document[WRITER] += "+1"
        await self.inner.put("record", json.dumps(document).encode(), if_version=info.version)
        return True


async def test_marks_and_saves_are_kept_in_any_order_of_lost_writes() -> None:
    """Whatever is lost, late or marked in between: each mark and the last save are stored, and nobody is suspected."""
    for acts in itertools.product(("lost save", "save", "land", "confirm", "lost confirm", "mark"), repeat=4):
        document, marked = MarkedDocument(), set()
        await document.file.save(document.store)
        for number, act in enumerate(acts):
            document.lose(lose=act.startswith("lost"))
            if act.endswith("save"):
                document.value = f"value {number}"
                assert not isinstance(await told(document.file.save(document.store)), ConcurrentWriterError), acts
            elif act.endswith("confirm"):
                assert not isinstance(await told(document.file.confirm(document.store)), ConcurrentWriterError), acts
            elif act == "land":
                await document.network.land()
            elif act == "mark":
                await document.mark(f"mark {number}")
                marked.add(f"mark {number}")
        document.lose(lose=False)
        document.value = "last"
        await document.file.save(document.store)
        await document.network.land()
        await document.file.confirm(document.store)
        stored = json.loads(document.inner.contents["record"])
        assert (stored["value"], set(stored["marks"])) == ("last", marked), acts


async def test_a_mark_is_adopted_by_the_confirmation_of_the_fence() -> None:
    document = MarkedDocument()
    await document.file.save(document.store)
    await document.mark("pinned")
    await document.file.confirm(document.store)
    assert document.marks == {"pinned"}
    assert not document.file.lost
    assert await document.file.save(document.store), "the confirmation writes nothing"


async def test_a_record_that_is_marked_without_end_stops_its_writer_in_the_end() -> None:
    """A bound: each attempt is refused by one more mark."""
    document = MarkedDocument()
    await document.file.save(document.store)
    document.value = "second"
    read = document.inner.get

    async def get(key: str) -> object:
        found = await read(key)
        document.inner.get = read  # type: ignore[method-assign]
        await document.mark("again")
        document.inner.get = get  # type: ignore[method-assign, assignment]
        return found

    await document.mark("first")
    document.inner.get = get  # type: ignore[method-assign, assignment]
    with pytest.raises(ConcurrentWriterError):
        await document.file.save(document.store)


async def test_a_save_is_never_skipped_while_a_write_is_unsure() -> None:
    """Not even if the record is again what the store certainly has: the lost write may still arrive."""
    document = Document()
    await document.file.save(document.store)
    document.value = "second"
    document.lose()
    assert isinstance(await told(document.file.save(document.store)), UnavailableError)
    document.lose(lose=False)
    document.value = "first"
    assert await document.file.save(document.store)
    assert isinstance((await document.network.land())[0], AsyncsyncError)
    assert document.stored() == "first"
    assert not await document.file.save(document.store)


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("question", ["save", "confirm"])
async def test_another_writer_is_noticed_despite_unsure_writes(lost: int, landed: bool, question: str) -> None:
    document = Document()
    await document.file.save(document.store)
    for number in range(lost):
        document.lose()
        document.value = f"lost {number}"
        await told(document.file.save(document.store))
    document.lose(lose=False)
    if landed:
        await document.network.land()
    await document.inner.put("record", b'{"writer": "another/1", "value": "theirs"}')
    document.value = "ours again"
    ask = document.file.save if question == "save" else document.file.confirm
    for _ in range(2):
        with pytest.raises(ConcurrentWriterError):
            await ask(document.store)
    await document.network.land()
    assert document.stored() == "theirs"
    assert document.file.lost


async def test_a_save_that_is_cancelled_on_its_way_is_unsure() -> None:
    document = Document()
    await document.file.save(document.store)
    hang = document.network.hang(operation="put", after=True)
    document.value = "second"
    save = asyncio.create_task(document.file.save(document.store))
    await hang.reached.wait()
    save.cancel()
    await asyncio.wait([save])
    assert not document.file.is_current()
    document.value = "first"
    await document.file.save(document.store)
    assert document.stored() == "first"


def test_many_trials_are_encoded_in_slices_between_which_they_may_change():
    async def main():
        record = ExperimentRecord("e")
        for number in range(3 * TRIALS_PER_SLICE):
            record.set_status(f"t{number}", "running")
        store, file = MemoryStore(), RecordFile("record", record, prepare=record.make_text)
        saving = asyncio.create_task(file.save(store))
        await asyncio.sleep(0)  # the first slice is encoded
        record.set_status("t0", "finished")
        record.set_status("new", "running")
        assert await saving
        assert not file.is_current()
        stored = ExperimentRecord.from_bytes(store.contents["record"])
        assert list(stored.trials) == list(record.trials)[:-1]
        assert await file.save(store)
        assert file.is_current()
        stored = ExperimentRecord.from_bytes(store.contents["record"])
        assert (stored.trials, list(stored.trials)) == (record.trials, list(record.trials))
        assert not await file.save(store)

    run_virtual(main())


def test_no_slice_is_longer_than_the_others():
    async def main():
        record = ExperimentRecord("e", {f"t{number}": "running" for number in range(10 * TRIALS_PER_SLICE)})
        turns = 0

        async def count():
            nonlocal turns
            while not record.trials_text:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await record.make_text()
        await counting
        assert turns >= 10

    run_virtual(main())
