"""Small files that wait to be saved share calls to worker threads."""

import asyncio
import threading

import pytest

from asyncsync.aio import threads
from asyncsync.sync.download import small_files as saving
from asyncsync.sync.download.small_files import FILES_PER_EXTRA_THREAD, MOST_FILES_PER_CALL, SmallFileWriter


class Door:
    """A landing whose thread waits until the test opens it."""

    def __init__(self, *, is_open=True, result=True):
        self.open, self.came, self.result = threading.Event(), threading.Event(), result
        if is_open:
            self.open.set()

    def save(self, data):
        self.came.set()
        assert self.open.wait(30)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def visits(monkeypatch):
    """How many files each visit had."""
    sizes, save = [], saving._save

    def counted(batch):
        sizes.append(len(batch))
        return save(batch)

    monkeypatch.setattr(saving, "_save", counted)
    with threads.worker_threads():
        yield sizes


async def began(shelf, doors):
    """A task for each; all of them wait when this returns."""
    tasks = [asyncio.create_task(shelf.save(door, b"")) for door in doors]
    await asyncio.sleep(0)
    return tasks


async def test_files_that_arrive_during_a_batch_go_into_the_next(visits):
    shelf, first = SmallFileWriter(), Door(is_open=False)
    tasks = await began(shelf, [first, *(Door() for _ in range(FILES_PER_EXTRA_THREAD - 1))])
    first.open.set()
    assert await asyncio.gather(*tasks) == [True] * FILES_PER_EXTRA_THREAD
    assert visits == [1, FILES_PER_EXTRA_THREAD - 1]


async def test_a_slow_disk_gets_further_threads(visits):
    shelf, doors = SmallFileWriter(), [Door(is_open=False) for _ in range(1 + 2 * FILES_PER_EXTRA_THREAD)]
    tasks = await began(shelf, doors)
    for number in (0, 1, 1 + FILES_PER_EXTRA_THREAD):  # all three at once, though none has ended
        assert await threads.in_thread(doors[number].came.wait, 30)
    for door in doors:
        door.open.set()
    await asyncio.gather(*tasks)
    assert sorted(visits) == [1, FILES_PER_EXTRA_THREAD, FILES_PER_EXTRA_THREAD]


async def test_each_waiter_gets_the_result_of_its_own_file(visits):
    full = OSError("full")
    shelf, first = SmallFileWriter(), Door(is_open=False)
    tasks = await began(shelf, [first, Door(result=full), Door(result=False), Door()])
    first.open.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [True, full, False, True]


async def test_a_cancelled_file_leaves_the_others_of_its_batch(visits):
    shelf, first = SmallFileWriter(), Door(is_open=False)
    tasks = await began(shelf, [first, Door(), Door()])
    tasks[0].cancel()
    tasks[1].cancel()
    await asyncio.wait(tasks[:2])
    first.open.set()
    assert await tasks[2]
    assert visits == [1, 2]


async def test_a_visit_has_only_so_many_files(visits, monkeypatch):
    monkeypatch.setattr(saving, "FILES_PER_EXTRA_THREAD", 10 * MOST_FILES_PER_CALL)
    shelf, first = SmallFileWriter(), Door(is_open=False)
    tasks = await began(shelf, [first, *(Door() for _ in range(MOST_FILES_PER_CALL + 1))])
    first.open.set()
    await asyncio.gather(*tasks)
    assert visits == [1, MOST_FILES_PER_CALL, 1]
