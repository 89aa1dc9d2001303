"""The inbox keeps sync requests in order, is bounded, and refuses requests once it is closed."""

import asyncio

import pytest

from asyncsync.errors import EngineClosedError
from asyncsync.sync import scheduler
from asyncsync.sync.scheduler import Inbox, SyncRequest


def request(key: str) -> SyncRequest:
    return SyncRequest(key, force=False, done=None)


async def test_requests_are_taken_in_their_order():
    inbox = Inbox()
    for key in "abc":
        await inbox.put(request(key))
    await inbox.wait()
    assert [taken.key for taken in inbox.take()] == ["a", "b", "c"]
    assert inbox.qsize() == 0


async def test_a_wake_up_is_not_a_request():
    inbox = Inbox()
    inbox.wake_up()
    await inbox.wait()
    assert list(inbox.take()) == []


async def test_a_full_inbox_makes_the_caller_wait(monkeypatch):
    monkeypatch.setattr(scheduler, "INBOX_REQUESTS", 1)
    inbox = Inbox()
    await inbox.put(request("a"))
    waiting = asyncio.create_task(inbox.put(request("b")))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert [taken.key for taken in inbox.take()] == ["a"]
    await waiting
    assert [taken.key for taken in inbox.take()] == ["b"]


async def test_closing_returns_waiting_requests_and_refuses_further_ones(monkeypatch):
    monkeypatch.setattr(scheduler, "INBOX_REQUESTS", 1)
    inbox = Inbox()
    await inbox.put(request("a"))
    waiting = asyncio.create_task(inbox.put(request("b")))
    await asyncio.sleep(0)
    assert [left.key for left in inbox.close()] == ["a"]
    with pytest.raises(EngineClosedError):
        await waiting
    with pytest.raises(EngineClosedError):
        await inbox.put(request("c"))
