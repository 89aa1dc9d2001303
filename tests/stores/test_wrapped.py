"""A layer over a store is one method."""

import asyncio
import inspect

import pytest

from asyncsync.disk.files import FileRange, lease_of
from asyncsync.errors import NotFoundError, UnavailableError
from asyncsync.stores.base import Part, Store, Upload
from asyncsync.stores.guard.metered import MeteredStore
from asyncsync.stores.wrapped import Call, Operation, T, WrappedStore
from asyncsync.testing import FaultyStore, MemoryStore
from asyncsync.testing.conformance.leases import CountedLease


class MissingCounter(WrappedStore):
    """A complete layer: it counts missing objects."""

    missing = 0

    async def around(self, operation: Operation, call: Call[T]) -> T:
        try:
            return await call()
        except NotFoundError:
            self.missing += 1
            raise


class Recorder(WrappedStore):
    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.seen: list[Operation] = []

    async def around(self, operation: Operation, call: Call[T]) -> T:
        self.seen.append(operation)
        return await call()


class Recording:
    """Replaces a store: it records the arguments of each call and returns them."""

    uri = "recording://"

    def __getattr__(self, name):
        async def call(*args, **named):
            return name, args, {key: value for key, value in named.items() if value is not None}

        return call


UPLOAD = Upload("k", "id")
CALLS = {
    "put": (("k", b"12345"), {"crc32c": 7, "if_version": "v"}, Operation("put", "k", 5, writes=True, body=True)),
    "read": (("k", print), {"start": 1, "length": 2, "if_version": "v"}, Operation("read", "k", body=True)),
    "get": (("k",), {}, Operation("read", "k", body=True)),
    "head": (("k",), {}, Operation("head", "k")),
    "list": (("p/",), {"delimiter": "/", "token": "t"}, Operation("list", "p/")),
    "delete": ((["k", "l"],), {}, Operation("delete", "k\nl", writes=True)),
    "copy": (
        ("s", "k"),
        {"if_source_version": "v", "size": 3, "if_version": ""},
        Operation("copy", "k", writes=True),
    ),
    "create_multipart": (("k",), {}, Operation("create_multipart", "k", writes=True)),
    "put_part": ((UPLOAD, 1, 0, b"123"), {"crc32c": 7}, Operation("put_part", "k", 3, writes=True, body=True)),
    "copy_part": (
        (UPLOAD, 1, 0, "s", 0, 9),
        {"if_source_version": "v"},
        Operation("copy_part", "k", writes=True),
    ),
    "complete_multipart": (
        (UPLOAD, [Part(1, 0, 3, "e")]),
        {"crc32c": 7, "if_version": "v"},
        Operation("complete_multipart", "k", writes=True),
    ),
    "abort_multipart": ((UPLOAD,), {}, Operation("abort_multipart", "k")),
    "list_parts": ((UPLOAD,), {}, Operation("list_parts", "k")),
    "list_multiparts": (("p/",), {}, Operation("list_multiparts", "p/")),
}


def test_every_call_of_the_interface_is_in_the_table():
    assert set(CALLS) == (Store.__abstractmethods__ - {"close"}) | {"get"}


@pytest.mark.parametrize("name", CALLS)
async def test_every_call_passes_around_once_and_unchanged(name):
    args, named, operation = CALLS[name]
    layer = Recorder(Recording())
    result = await getattr(layer, name)(*args, **named)
    assert layer.seen == [operation]
    if name not in ("delete", "abort_multipart"):  # they return nothing
        assert result == (name, args, named)


def test_every_call_of_the_interface_goes_through_the_layers():
    """A call that is not a request goes to the inner store."""
    own = set(vars(WrappedStore))
    inherited = {"open_store", "__aenter__", "__aexit__"}
    methods = {
        name for name, member in vars(Store).items() if inspect.isfunction(member) or isinstance(member, property)
    }
    assert methods - inherited <= own


async def test_a_layer_of_ten_lines_counts_missing_objects():
    store = MissingCounter(MemoryStore())
    await store.put("k", b"x")
    assert (await store.get("k"))[0] == b"x"
    for key in ("a", "b"):
        with pytest.raises(NotFoundError):
            await store.head(key)
    assert store.missing == 2
    assert len(inspect.getsource(MissingCounter).splitlines()) <= 15


async def test_layers_lie_over_each_other_in_any_order():
    memory = MemoryStore()
    faulty = FaultyStore(MissingCounter(memory))
    metered = MeteredStore(faulty)
    faulty.faults.fail(1)
    with pytest.raises(UnavailableError):
        await metered.put("k", b"x")
    await metered.put("k", b"x")
    assert metered.traits is memory.traits
    assert metered.uri == memory.uri
    assert [request.operation for request in memory.log] == ["put"]


async def test_requests_bytes_and_seconds_are_counted_by_operation():
    store = MeteredStore(FaultyStore(MemoryStore(latency=0.01)))

    async def sink(piece):
        await asyncio.sleep(0)

    await store.put("k", b"12345")
    store.inner.faults.fail(1)
    with pytest.raises(UnavailableError):
        await store.put("k", b"1234567")
    await store.read("k", sink, start=1, length=3)
    await store.get("k")
    put, read = store.totals["put"], store.totals["read"]
    assert (put.requests, put.failures, put.bytes) == (2, 1, 5)
    assert (read.requests, read.failures, read.bytes) == (2, 0, 8)
    assert store.requests == 4
    assert 0.01 <= put.seconds < 5
    assert set(store.totals) == {"put", "read"}


@pytest.mark.parametrize("name", ["put", "put_part", "delete", "copy", "complete_multipart"])
async def test_every_write_of_a_layer_with_a_lease_is_made_under_it(name):
    class Leased(WrappedStore):
        lease = CountedLease()

    args, named, _ = CALLS[name]
    carried = []

    class Carrying(Recorder):
        async def around(self, operation, call):
            carried.extend(lease_of(argument) for argument in call.args)
            return await call()

    await getattr(Leased(Carrying(Recording())), name)(*args, **named)
    assert [lease for lease in carried if lease is not None] == [Leased.lease]


async def test_a_file_is_sent_under_the_lease_too():
    class Leased(WrappedStore):
        lease = CountedLease()

    body = FileRange("f", 0, 5)
    _, (_, sent), _ = await Leased(Recording()).put("k", body)
    assert sent == body
    assert sent.lease is Leased.lease
    assert body.lease is None


def test_an_operation_names_its_first_key_and_counts_the_others():
    assert str(Operation("delete", "a\nb\nc")) == "delete 'a' and 2 more"
    assert str(Operation("put", "a")) == "put 'a'"


async def test_an_attribute_named_around_does_not_replace_the_layer():
    """A subclass may use the name for something of its own."""
    store = FaultyStore(MemoryStore())
    store.around = None
    await store.put("k", b"data")
    assert [request.operation for request in store.faults.requests] == ["put"]
