"""The journal's records of unfinished parts."""

from dataclasses import replace

import pytest
from msgspec import structs

from asyncsync.disk.journal import Journal
from asyncsync.planning.snapshot import FileStat
from asyncsync.stores.base import Part, Upload
from asyncsync.sync.upload.open_uploads import OpenUploads

FILE = FileStat("file", 100, 0, 1, 0o644)

UPLOAD = Upload("key", "id")
PART = Part(3, 16, 8, "", 7)


@pytest.fixture
async def process(tmp_path):
    """Another process with the same journal, each time."""

    async def started():
        uploads = OpenUploads("gs://b", await opened())
        await uploads.load()
        return uploads

    journals = []

    async def opened():
        while journals:
            await journals.pop().__aexit__(None, None, None)
        journals.append(Journal.open(tmp_path / "journal.sqlite"))
        return await journals[0].__aenter__()

    yield started
    await journals.pop().__aexit__(None, None, None)


async def begun(process):
    uploads = await process()
    uploads.opened(UPLOAD, "/file", FILE, 8)
    uploads.resume_token(UPLOAD, PART).keep("token")
    return await process()


async def test_a_part_that_was_begun_can_be_resumed(process):
    uploads = await begun(process)
    assert uploads.resume_token(UPLOAD, PART).token == "token"
    assert uploads.resume_token(UPLOAD, replace(PART, number=4)).token is None


@pytest.mark.parametrize("other", [{"crc32c": 8}, {"size": 9}, {"offset": 0}])
async def test_not_with_other_bytes(process, other):
    assert (await begun(process)).resume_token(UPLOAD, replace(PART, **other)).token is None


async def test_an_open_upload_is_not_a_finished_part(process):
    uploads = await begun(process)
    assert uploads.parts(UPLOAD, []) == {}
    there = replace(PART, etag="generation", offset=-1)
    assert uploads.parts(UPLOAD, [there]) == {3: there}


async def test_a_finished_part_is_not_resumed(process):
    uploads = await begun(process)
    uploads.part_done(UPLOAD, replace(PART, etag="generation"))
    assert (await process()).resume_token(UPLOAD, PART).token is None


async def whole_begun(process):
    uploads = await process()
    uploads.resume_token_of_file("key", "/file", FILE, 7).keep("token")
    return await process()


async def test_a_file_in_one_piece_can_be_resumed(process):
    uploads = await whole_begun(process)
    assert uploads.resume_token_of_file("key", "/file", FILE, 7).token == "token"
    assert uploads.resume_token_of_file("other", "/file", FILE, 7).token is None


@pytest.mark.parametrize(("size", "crc32c"), [(100, 8), (99, 7)])
async def test_a_file_in_one_piece_is_not_resumed_with_other_bytes(process, size, crc32c):
    uploads = await whole_begun(process)
    assert uploads.resume_token_of_file("key", "/file", structs.replace(FILE, size=size), crc32c).token is None


async def test_a_file_that_is_sent_in_one_piece_is_forgotten(process):
    uploads = await whole_begun(process)
    uploads.file_put("key")
    assert (await process()).resume_token_of_file("key", "/file", FILE, 7).token is None


async def test_only_a_multipart_upload_is_owed_an_abort(process):
    """A file goes in one request or in parts."""
    uploads = await whole_begun(process)
    assert uploads.find("key", 8) is None
    assert await uploads._journal.owed("gs://b") == []
    uploads.opened(UPLOAD, "/file", FILE, 8)
    assert uploads.resume_token_of_file("key", "/file", FILE, 7).token is None
    (owed,) = await uploads._journal.owed("gs://b")
    assert '"upload_id": "id"' in owed.payload
