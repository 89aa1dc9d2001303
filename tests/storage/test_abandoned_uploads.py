"""Uploads that a killed process was sending below a prefix are aborted by the next process of the machine."""

from __future__ import annotations

import json

from asyncsync import TransferConfig
from asyncsync.disk.journal import OpenUpload
from asyncsync.stores.base import Upload
from asyncsync.sync.janitor import clean_up
from asyncsync.sync.session import ABANDON, Session

URI = "memory://b/exp"
DEAD = 2**31 - 5
"""No process has this number."""


async def opened_by_a_dead_process(session: Session, key: str) -> Upload:
    upload = await session.store.create_multipart(key)
    session.journal.upload_opened(
        OpenUpload(session.uri, key, upload.upload_id, "multipart", "/gone", 10, 0, 0, 5 << 20)
    )
    return upload


def owe(session: Session, prefix: str, pid: int) -> None:
    session.journal.owe(session.uri, ABANDON, json.dumps({"prefix": prefix, "pid": pid}))


async def test_open_uploads_of_a_killed_process_are_aborted(bench):
    session = await Session.open(URI, TransferConfig())
    try:
        await opened_by_a_dead_process(session, "t/c/weights")
        other = await opened_by_a_dead_process(session, "t/d/weights")
        owe(session, "t/c/", DEAD)
        assert await clean_up(session) == 1
        assert [upload.key for upload in await session.store.list_multiparts("")] == [other.key]
    finally:
        await session.close()


async def test_a_prefix_that_a_live_process_sends_to_is_left_alone(bench):
    session = await Session.open(URI, TransferConfig())
    try:
        await opened_by_a_dead_process(session, "t/c/weights")
        owe(session, "t/c/", DEAD)
        number = session.uploads.in_hand(ABANDON, prefix="t/c/")
        assert await clean_up(session) == 0
        assert len(await session.store.list_multiparts("")) == 1
        session.uploads.intention_done(number)
        assert await clean_up(session) == 1
        assert await session.store.list_multiparts("") == []
    finally:
        await session.close()
