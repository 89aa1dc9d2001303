"""One suite that every store passes. ``kinds.DIFFERENCES`` names known differences of servers."""

import asyncio
import contextlib
import os

import google_crc32c
import kinds
import pytest
from leases import CountedLease, leased

from asyncsync.disk.files import FileRange
from asyncsync.errors import (
    AsyncsyncError,
    IntegrityError,
    LeaseExpiredError,
    NotFoundError,
    PreconditionError,
    StoreError,
)
from asyncsync.stores.base import MISSING

MIB = 1 << 20
PART = 5 * MIB


@pytest.fixture(params=kinds.parameters())
def kind(request):
    return request.param


@pytest.fixture
def rule(kind):
    """``rule("...")`` names what is tested next, and skips it where it is known to differ."""

    def check(name):
        if reason := kinds.DIFFERENCES.get((kind, name)):
            pytest.skip(f"{kind}: {reason}")

    return check


@pytest.fixture
async def store(kind, request):
    made = kinds.KINDS[kind](request)
    async with made:
        yield made


def crc(data):
    return google_crc32c.value(data)


async def everything(store, prefix="", delimiter=""):
    objects, prefixes, token, pages = [], [], None, 0
    while True:
        page = await store.list(prefix, delimiter=delimiter, token=token)
        objects += page.objects
        prefixes += page.prefixes
        pages += 1
        if page.token is None:
            return objects, prefixes, pages
        token = page.token


def outcome(results):
    wins = [result for result in results if not isinstance(result, BaseException)]
    others = [result for result in results if isinstance(result, BaseException)]
    assert all(isinstance(other, PreconditionError) for other in others), others
    return wins


# put, get, head


async def test_what_was_put_comes_back(store):
    data = os.urandom(3 * MIB + 17)
    info = await store.put("dir/x", data, crc32c=crc(data))
    got, read = await store.get("dir/x")
    assert got == data
    assert (
        (info.key, info.size, info.version) == (read.key, read.size, read.version) == ("dir/x", len(data), info.version)
    )


async def test_head_says_what_put_said(store):
    info = await store.put("x", b"12345", crc32c=crc(b"12345"))
    head = await store.head("x")
    assert (head.key, head.size, head.version) == ("x", 5, info.version)


async def test_head_knows_when_it_was_written(store):
    await store.put("x", b"1")
    assert (await store.head("x")).modified > 1.6e9


async def test_the_checksum_of_an_object_is_right_where_one_is_given(store):
    await store.put("x", b"12345", crc32c=crc(b"12345"))
    assert (await store.head("x")).crc32c in (None, crc(b"12345"))


async def test_an_empty_object_is_an_object(store):
    await store.put("empty", b"", crc32c=0)
    assert (await store.get("empty"))[0] == b""
    assert (await store.head("empty")).size == 0


async def test_an_empty_file_can_be_put(store, tmp_path):
    (tmp_path / "f").touch()
    await store.put("empty", FileRange(str(tmp_path / "f"), 0, 0), crc32c=0)
    assert (await store.get("empty"))[0] == b""


@pytest.mark.parametrize(("offset", "size"), [(0, 2 * MIB + 5), (MIB - 1, MIB + 2), (7, 1)])
async def test_a_range_of_a_file_is_put(store, tmp_path, offset, size):
    data = os.urandom(2 * MIB + 5)
    (tmp_path / "f").write_bytes(data)
    await store.put("x", FileRange(str(tmp_path / "f"), offset, size), crc32c=crc(data[offset : offset + size]))
    assert (await store.get("x"))[0] == data[offset : offset + size]


async def test_a_put_replaces_what_was_there(store):
    first = await store.put("x", b"old and long")
    second = await store.put("x", b"new")
    assert (await store.get("x"))[0] == b"new"
    assert first.version != second.version


async def test_what_is_not_there_is_not_found(store):
    with pytest.raises(NotFoundError):
        await store.head("missing/x")
    with pytest.raises(NotFoundError):
        await store.get("missing/x")


async def test_a_missing_object_is_a_missing_file_to_python(store):
    with pytest.raises(FileNotFoundError):
        await store.get("missing")


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 4, b"0123"), (3, 4, b"3456"), (7, None, b"789"), (7, 100, b"789"), (9, 1, b"9"), (2, 0, b""), (0, 0, b"")],
)
async def test_ranges(store, start, length, expected):
    await store.put("x", b"0123456789")
    pieces = []

    async def sink(piece):
        pieces.append(bytes(piece))

    info = await store.read("x", sink, start=start, length=length)
    assert b"".join(pieces) == expected
    assert info.size == 10


async def test_pieces_are_of_bounded_size(store):
    await store.put("x", bytes(3 * MIB))
    sizes = []

    async def sink(piece):
        sizes.append(len(piece))

    await store.read("x", sink)
    assert sum(sizes) == 3 * MIB
    assert max(sizes) <= MIB


async def test_a_failing_sink_ends_the_read(store):
    await store.put("x", bytes(3 * MIB))

    async def sink(piece):
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        await store.read("x", sink)
    assert (await store.head("x")).size == 3 * MIB


async def test_a_read_can_insist_on_a_version(store):
    old = await store.put("x", b"old")
    new = await store.put("x", b"newer")

    async def sink(piece):
        assert piece == b"newer"

    await store.read("x", sink, if_version=new.version)
    with pytest.raises(PreconditionError):
        await store.read("x", sink, if_version=old.version)


async def test_a_wrong_checksum_is_refused(store, rule):
    rule("refuses a wrong checksum")
    with pytest.raises(IntegrityError):
        await store.put("x", b"data", crc32c=crc(b"other"))
    with pytest.raises(NotFoundError):
        await store.head("x")


async def test_a_wrong_checksum_of_a_file_is_refused(store, rule, tmp_path):
    rule("refuses a wrong checksum of a file")
    (tmp_path / "f").write_bytes(b"data" * 1000)
    with pytest.raises(IntegrityError):
        await store.put("x", FileRange(str(tmp_path / "f"), 0, 4000), crc32c=1)


async def test_a_missing_source_is_a_plain_missing_file(store, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        await store.put("x", FileRange(str(tmp_path / "gone"), 0, 5), crc32c=1)
    assert not isinstance(caught.value, StoreError)


async def test_a_source_that_became_shorter_is_refused(store, tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    with pytest.raises((AsyncsyncError, OSError)):
        await store.put("x", FileRange(str(tmp_path / "f"), 0, 50), crc32c=1)
    with pytest.raises(NotFoundError):
        await store.head("x")


# names

ODD = [
    "a b/c d",
    "ünï/cödé.bin",
    "plus+and&equals=?question#hash%25percent",
    "quotes'\"`",
    "~tilde/$dollar/!bang/(paren)/[bracket]/{brace}",
    "emoji-🎉",
    "UPPER/lower",
    ".hidden/.dot",
    "trailing.dot.",
    "comma,semi;colon:at@",
    "long/" + "x" * 200,
    "new\tline-free",
    "-dash/--flag",
    "deep/" + "/".join("abcdefghij") + "/leaf",
]


@pytest.mark.parametrize("key", ODD, ids=ascii)
async def test_odd_names_come_back(store, key):
    await store.put(key, key.encode(), crc32c=crc(key.encode()))
    assert (await store.get(key))[0] == key.encode()
    objects, _, _ = await everything(store)
    assert [info.key for info in objects] == [key]
    await store.copy(key, "copy of " + key)
    await store.delete([key])
    assert [info.key for info in (await everything(store))[0]] == ["copy of " + key]


async def test_an_object_may_lie_beside_a_directory_of_the_same_beginning(store):
    for key in ("a/b", "a-b", "a.b"):
        await store.put(key, key.encode())
    assert sorted(info.key for info in (await everything(store))[0]) == ["a-b", "a.b", "a/b"]


async def test_an_object_may_have_the_name_of_a_directory(store, rule):
    rule("an object and a directory of one name")
    await store.put("a/b", b"1")
    await store.put("a", b"2")
    assert (await store.get("a"))[0] == b"2"


# list


async def test_an_empty_prefix_is_an_empty_page(store):
    assert await everything(store, "nothing/here/") == ([], [], 1)


async def test_a_list_gives_size_and_version(store):
    info = await store.put("d/x", b"12345")
    (listed,) = (await everything(store, "d/"))[0]
    assert (listed.key, listed.size, listed.version) == ("d/x", 5, info.version)


async def test_a_prefix_need_not_end_at_a_slash(store):
    for key in ("run-1/x", "run-10/x", "run-2/x", "run"):
        await store.put(key, b"1")
    assert sorted(info.key for info in (await everything(store, "run-1"))[0]) == ["run-1/x", "run-10/x"]


async def test_a_delimiter_folds_what_lies_deeper(store):
    for key in ("t/a/1", "t/a/2", "t/b/c/3", "t/file", "other/x"):
        await store.put(key, b"1")
    objects, prefixes, _ = await everything(store, "t/", "/")
    assert [info.key for info in objects] == ["t/file"]
    assert sorted(prefixes) == ["t/a/", "t/b/"]


async def test_the_order_is_that_of_the_bytes(store, rule):
    rule("lists in byte order")
    keys = ["a", "b/c", "a-b", "c/a/x", "B", "é", "c/a-x", "a.b"]
    for key in keys:
        await store.put(key, b"")
    assert [info.key for info in (await everything(store))[0]] == sorted(keys, key=str.encode)


async def fill(store, keys):
    waiting = iter(keys)

    async def worker():
        for key in waiting:
            await store.put(key, b"")

    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(worker())


async def test_more_than_a_page_is_listed_in_pages(store, rule):
    rule("serves thousands of requests")
    keys = [f"many/{number:04}" for number in range(1005)]
    await fill(store, keys)
    objects, _, pages = await everything(store, "many/")
    assert [info.key for info in objects] == keys
    assert pages >= 2
    await store.delete(keys[:1000])
    assert [info.key for info in (await everything(store))[0]] == keys[1000:]


async def test_more_than_a_page_of_prefixes_is_listed_in_pages(store, rule):
    rule("serves thousands of requests")
    keys = [f"trials/{number:04}/.asyncsync/trial.json" for number in range(1003)]
    await fill(store, keys)
    objects, prefixes, _ = await everything(store, "trials/", "/")
    assert objects == []
    assert prefixes == [f"trials/{number:04}/" for number in range(1003)]


# delete, copy


async def test_what_is_deleted_is_gone(store):
    await store.put("d/x", b"1")
    await store.put("d/y", b"1")
    await store.delete(["d/x"])
    with pytest.raises(NotFoundError):
        await store.head("d/x")
    assert [info.key for info in (await everything(store))[0]] == ["d/y"]


async def test_deleting_what_is_not_there_is_no_error(store):
    await store.delete(["never/was", "d/x"])


async def test_deleting_nothing_is_no_error(store):
    await store.delete([])


async def test_a_copy_has_the_same_bytes(store):
    await store.put("x", b"12345")
    info = await store.copy("x", "dir/y")
    assert (await store.get("dir/y"))[0] == b"12345"
    assert info.version == (await store.head("dir/y")).version


async def test_a_copy_of_nothing_is_not_found(store):
    with pytest.raises(NotFoundError):
        await store.copy("missing", "y")


async def test_a_copy_can_insist_on_a_version(store, rule):
    rule("copies on a condition")
    old = await store.put("x", b"old")
    await store.put("x", b"newer")
    with pytest.raises(PreconditionError):
        await store.copy("x", "y", if_source_version=old.version)


# conditions


async def test_a_copy_can_create_only(store, rule):
    rule("copies to create only")
    await store.put("x", b"12345")
    await store.put("taken", b"other")
    await store.copy("x", "new", if_version=MISSING)
    assert (await store.get("new"))[0] == b"12345"
    before = await store.head("taken")
    for key in ("taken", "new", "taken"):
        with pytest.raises(PreconditionError):
            await store.copy("x", key, if_version=MISSING)
    assert await store.head("taken") == before
    assert (await store.get("taken"))[0] == b"other"
    assert sorted(info.key for info in (await everything(store))[0]) == ["new", "taken", "x"]


async def test_a_copy_that_cannot_create_only_is_refused_and_makes_nothing(store, rule):
    """The store says so in its traits, once it was asked for one."""
    await store.put("x", b"12345")
    with contextlib.suppress(StoreError):
        await store.copy("x", "new", if_version=MISSING)
    if store.traits.conditional_copy:
        pytest.skip("copies to create only")
    for key in ("x2", "x"):
        with pytest.raises(StoreError) as caught:
            await store.copy("x", key, if_version=MISSING)
        assert not caught.value.retryable
        assert not isinstance(caught.value, PreconditionError)
    assert [info.key for info in (await everything(store))[0]] == ["x"]


async def test_a_copy_replaces_no_version_that_it_is_given(store):
    info = await store.put("x", b"12345")
    await store.put("y", b"other")
    with pytest.raises(StoreError):
        await store.copy("x", "y", if_version=info.version)
    assert (await store.get("y"))[0] == b"other"


async def test_one_of_many_copies_creates(store, rule):
    rule("copies to create only")
    rule("one of many racers creates")
    bodies = [f"racer {number}".encode() for number in range(8)]
    for number, body in enumerate(bodies):
        await store.put(f"{number}", body)
    copies = (store.copy(f"{number}", "x", if_version=MISSING) for number in range(len(bodies)))
    results = await asyncio.gather(*copies, return_exceptions=True)
    (winner,) = outcome(results)
    assert (await store.get("x"))[0] == bodies[results.index(winner)]


async def test_create_only_creates(store, rule):
    rule("writes on a condition")
    await store.put("x", b"first", if_version=MISSING)
    with pytest.raises(PreconditionError):
        await store.put("x", b"second", if_version=MISSING)
    assert (await store.get("x"))[0] == b"first"


async def test_replace_only_replaces_that_version(store, rule):
    rule("writes on a condition")
    first = await store.put("x", b"first")
    second = await store.put("x", b"second", if_version=first.version)
    with pytest.raises(PreconditionError):
        await store.put("x", b"third", if_version=first.version)
    assert (await store.head("x")).version == second.version


async def test_replacing_what_is_gone_is_refused(store, rule):
    rule("writes on a condition")
    first = await store.put("x", b"first")
    await store.delete(["x"])
    with pytest.raises((PreconditionError, NotFoundError)):
        await store.put("x", b"second", if_version=first.version)
    with pytest.raises(NotFoundError):
        await store.head("x")


async def test_one_of_many_racers_creates(store, rule):
    rule("one of many racers creates")
    bodies = [f"racer {number}".encode() for number in range(12)]
    results = await asyncio.gather(*(store.put("x", b, if_version=MISSING) for b in bodies), return_exceptions=True)
    (winner,) = outcome(results)
    assert (await store.head("x")).version == winner.version
    assert (await store.get("x"))[0] == bodies[results.index(winner)]


async def test_one_of_many_racers_replaces(store, rule):
    rule("one of many racers replaces")
    old = await store.put("d/x", b"old")
    bodies = [f"racer {number}".encode() for number in range(12)]
    puts = (store.put("d/x", body, if_version=old.version) for body in bodies)
    results = await asyncio.gather(*puts, return_exceptions=True)
    (winner,) = outcome(results)
    assert (await store.get("d/x"))[0] == bodies[results.index(winner)]


# multipart


async def three_parts(store, key, tmp_path):
    data = os.urandom(2 * PART + 100)
    (tmp_path / "source").write_bytes(data)
    upload = await store.create_multipart(key)
    parts = []
    for number, start in enumerate(range(0, len(data), PART), 1):
        size = min(PART, len(data) - start)
        body = FileRange(str(tmp_path / "source"), start, size)
        parts.append(await store.put_part(upload, number, start, body, crc32c=crc(data[start : start + size])))
    return data, upload, parts


async def test_parts_become_an_object(store, tmp_path):
    data, upload, parts = await three_parts(store, "d/x", tmp_path)
    info = await store.complete_multipart(upload, parts)
    assert (await store.get("d/x"))[0] == data
    assert info.size == len(data)
    assert info.version == (await store.head("d/x")).version
    assert await store.list_multiparts() == []


async def test_an_upload_is_not_seen_before_it_is_complete(store, tmp_path):
    _, upload, _ = await three_parts(store, "d/x", tmp_path)
    with pytest.raises(NotFoundError):
        await store.head("d/x")
    assert (await everything(store))[0] == []
    await store.abort_multipart(upload)


async def test_parts_may_come_in_any_order_and_from_memory(store):
    upload = await store.create_multipart("x")
    last = await store.put_part(upload, 2, PART, b"tail", crc32c=crc(b"tail"))
    first = await store.put_part(upload, 1, 0, bytes(PART), crc32c=crc(bytes(PART)))
    await store.complete_multipart(upload, [first, last])
    assert (await store.get("x"))[0] == bytes(PART) + b"tail"


async def test_the_same_number_again_replaces_a_part(store):
    upload = await store.create_multipart("x")
    await store.put_part(upload, 1, 0, b"long and wrong")
    part = await store.put_part(upload, 1, 0, b"right")
    await store.complete_multipart(upload, [part])
    assert (await store.get("x"))[0] == b"right"


async def test_finished_parts_are_listed(store, tmp_path):
    _, upload, parts = await three_parts(store, "d/x", tmp_path)
    listed = await store.list_parts(upload)
    assert [(part.number, part.size, part.etag) for part in listed] == [(p.number, p.size, p.etag) for p in parts]
    assert all(one.crc32c in (None, other.crc32c) for one, other in zip(listed, parts, strict=True))
    assert all(one.offset in (-1, other.offset) for one, other in zip(listed, parts, strict=True))
    await store.abort_multipart(upload)


async def test_listed_parts_complete_an_upload(store, tmp_path):
    data, upload, _ = await three_parts(store, "d/x", tmp_path)
    await store.complete_multipart(upload, await store.list_parts(upload))
    assert (await store.get("d/x"))[0] == data


async def test_open_uploads_are_listed_below_a_prefix(store):
    one = await store.create_multipart("a/x")
    other = await store.create_multipart("b/y")
    assert [(up.key, up.upload_id) for up in await store.list_multiparts("a/")] == [("a/x", one.upload_id)]
    assert {up.key for up in await store.list_multiparts()} == {"a/x", "b/y"}
    await store.abort_multipart(one)
    await store.abort_multipart(other)
    assert await store.list_multiparts() == []


async def test_an_aborted_upload_is_gone(store, rule):
    upload = await store.create_multipart("x")
    part = await store.put_part(upload, 1, 0, b"data")
    await store.abort_multipart(upload)
    with pytest.raises(NotFoundError):
        await store.list_parts(upload)
    assert (await everything(store))[0] == []
    rule("forgets an aborted upload")
    rule("knows that a part is gone")
    with pytest.raises(NotFoundError):
        await store.complete_multipart(upload, [part])


async def test_an_aborted_upload_takes_no_more_parts(store, rule):
    rule("takes no part of an aborted upload")
    upload = await store.create_multipart("x")
    await store.abort_multipart(upload)
    with pytest.raises(NotFoundError):
        await store.put_part(upload, 2, 4, b"more")


async def test_aborting_twice_is_no_error(store):
    upload = await store.create_multipart("x")
    await store.abort_multipart(upload)
    await store.abort_multipart(upload)


async def test_completing_twice_never_damages_the_object(store, rule):
    rule("knows that a part is gone")
    upload = await store.create_multipart("x")
    part = await store.put_part(upload, 1, 0, b"data")
    await store.complete_multipart(upload, [part])
    with contextlib.suppress(NotFoundError):
        await store.complete_multipart(upload, [part])
    assert (await store.get("x"))[0] == b"data"


async def test_a_part_with_a_wrong_checksum_is_refused(store, rule):
    rule("refuses a wrong checksum")
    upload = await store.create_multipart("x")
    with pytest.raises(IntegrityError):
        await store.put_part(upload, 1, 0, b"data", crc32c=crc(b"other"))
    assert await store.list_parts(upload) == []
    await store.abort_multipart(upload)


async def test_a_wrong_checksum_of_the_whole_is_refused(store, rule):
    rule("refuses a wrong checksum of the whole")
    upload = await store.create_multipart("x")
    part = await store.put_part(upload, 1, 0, b"data", crc32c=crc(b"data"))
    with pytest.raises(IntegrityError):
        await store.complete_multipart(upload, [part], crc32c=crc(b"other"))
    with pytest.raises(NotFoundError):
        await store.head("x")
    await store.abort_multipart(upload)


async def test_complete_can_create_only(store, rule):
    rule("completes on a condition")
    await store.put("x", b"first")
    upload = await store.create_multipart("x")
    part = await store.put_part(upload, 1, 0, b"data")
    with pytest.raises(PreconditionError):
        await store.complete_multipart(upload, [part], if_version=MISSING)
    assert (await store.get("x"))[0] == b"first"
    await store.abort_multipart(upload)


async def test_a_part_can_be_a_range_of_another_object(store):
    if not store.traits.range_copy:
        pytest.skip("copies whole objects only")
    data = os.urandom(PART + 300)
    info = await store.put("old", data)
    upload = await store.create_multipart("new")
    first = await store.copy_part(upload, 1, 0, "old", 100, PART, if_source_version=info.version)
    last = await store.put_part(upload, 2, PART, b"tail")
    await store.complete_multipart(upload, [first, last])
    assert (await store.get("new"))[0] == data[100 : 100 + PART] + b"tail"


async def test_a_part_can_be_copied_from_the_object_it_will_replace(store):
    data = os.urandom(PART)
    await store.put("x", data)
    upload = await store.create_multipart("x")
    first = await store.copy_part(upload, 1, 0, "x", 0, PART)
    last = await store.put_part(upload, 2, PART, b"appended")
    await store.complete_multipart(upload, [first, last])
    assert (await store.get("x"))[0] == data + b"appended"


async def test_a_range_of_an_object_is_refused_where_only_whole_ones_are_copied(store):
    if store.traits.range_copy:
        pytest.skip("copies any range")
    await store.put("old", b"0123456789")
    upload = await store.create_multipart("new")
    for start, length in ((1, 9), (0, 9)):
        with pytest.raises(StoreError):
            await store.copy_part(upload, 1, 0, "old", start, length)
    await store.abort_multipart(upload)


async def test_a_part_of_a_missing_object_is_not_found(store):
    upload = await store.create_multipart("x")
    with pytest.raises(NotFoundError):
        await store.copy_part(upload, 1, 0, "missing", 0, 10)
    await store.abort_multipart(upload)


async def test_a_copied_part_can_insist_on_a_version(store, rule):
    rule("copies on a condition")
    old = await store.put("old", bytes(PART))
    await store.put("old", b"x" * PART)
    upload = await store.create_multipart("new")
    with pytest.raises(PreconditionError):
        await store.copy_part(upload, 1, 0, "old", 0, PART, if_source_version=old.version)
    await store.abort_multipart(upload)


# leases


@pytest.mark.parametrize("kind_of_body", ["memory", "file"])
@pytest.mark.parametrize("size", [10, 40_000, 3 * MIB])
async def test_without_its_lease_nothing_is_written(store, tmp_path, kind_of_body, size):
    data = os.urandom(size)
    expired = leased(kind_of_body, data, CountedLease(1), tmp_path)
    before = await store.put("x", b"before")
    upload = await store.create_multipart("y")
    kept = await store.put_part(upload, 1, 0, b"kept")
    for key, condition in (("x", None), ("x", before.version), ("new", None), ("new", MISSING)):
        with pytest.raises(LeaseExpiredError):
            await store.put(key, expired, crc32c=crc(data), if_version=condition)
    for number in (1, 2):
        with pytest.raises(LeaseExpiredError):
            await store.put_part(upload, number, 0, expired, crc32c=crc(data))
    found, info = await store.get("x")  # its time may be less exact than that of a head
    assert (found, info.version) == (b"before", before.version)
    assert (await store.head("x")).version == before.version
    assert [info.key for info in (await everything(store))[0]] == ["x"]
    assert [(part.number, part.etag) for part in await store.list_parts(upload)] == [(1, kept.etag)]
    await store.abort_multipart(upload)


@pytest.mark.parametrize("kind_of_body", ["memory", "file"])
@pytest.mark.parametrize("size", [0, 10, 40_000, 3 * MIB])
async def test_under_its_lease_a_body_arrives_whole(store, tmp_path, kind_of_body, size):
    data, lease = os.urandom(size), CountedLease()
    body = leased(kind_of_body, data, lease, tmp_path)
    await store.put("x", body, crc32c=crc(data))
    upload = await store.create_multipart("y")
    part = await store.put_part(upload, 1, 0, body, crc32c=crc(data))
    await store.complete_multipart(upload, [part])
    assert (await store.get("x"))[0] == (await store.get("y"))[0] == data
    assert lease.checks >= 2


# cancel


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 20])
async def test_a_cancelled_put_is_whole_or_nothing(store, tmp_path, steps):
    old, new = b"old", os.urandom(4 * MIB)
    (tmp_path / "f").write_bytes(new)
    await store.put("x", old)
    task = asyncio.create_task(store.put("x", FileRange(str(tmp_path / "f"), 0, len(new)), crc32c=crc(new)))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (await store.get("x"))[0] in (old, new)
    assert [info.key for info in (await everything(store))[0]] == ["x"]


@pytest.mark.parametrize("steps", [0, 1, 3, 8])
async def test_a_cancelled_read_leaves_the_store_usable(store, steps):
    data = os.urandom(4 * MIB)
    await store.put("x", data)
    task = asyncio.create_task(store.get("x"))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (await store.get("x"))[0] == data


@pytest.mark.parametrize("steps", [0, 1, 3, 8])
async def test_after_a_cancelled_part_the_upload_goes_on(store, tmp_path, steps):
    data, upload, parts = await three_parts(store, "x", tmp_path)
    body = FileRange(str(tmp_path / "source"), PART, PART)
    task = asyncio.create_task(store.put_part(upload, 2, PART, body, crc32c=crc(data[PART : 2 * PART])))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    parts[1] = await store.put_part(upload, 2, PART, body, crc32c=crc(data[PART : 2 * PART]))
    await store.complete_multipart(upload, parts)
    assert (await store.get("x"))[0] == data


async def test_closing_twice_is_no_error(store):
    await store.put("x", b"1")
    await store.close()
    await store.close()
