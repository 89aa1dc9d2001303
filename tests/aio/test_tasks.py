"""Tasks that run together: the first error ends the others, and one cancel ends all."""

import asyncio

import pytest

from asyncsync.aio.tasks import for_each_limited, leave_group
from asyncsync.testing import run_virtual


async def fail_or_take_a_second_to_end(number: int) -> None:
    await asyncio.sleep(1)
    if not number:
        raise OSError("the first error")
    try:
        await asyncio.sleep(1000)
    finally:
        await asyncio.sleep(1)  # such as a thread that is waited for


def test_the_first_error_ends_the_rest_and_is_raised_as_it_is() -> None:
    async def main() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        for workers in (1, 2, 5):
            began = loop.time()
            with pytest.raises(OSError, match="the first error"):
                await for_each_limited(range(5), fail_or_take_a_second_to_end, workers)
            assert loop.time() - began <= 2
            assert task is not None
            assert not task.cancelling(), "the group's own cancel is over"

    run_virtual(main())


@pytest.mark.parametrize("after", [0.5, 1.0, 1.5])
def test_a_cancel_is_one_also_while_an_error_ends_the_rest(after: float) -> None:
    async def main() -> None:
        task = asyncio.create_task(for_each_limited(range(5), fail_or_take_a_second_to_end, 5))
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run_virtual(main())


def test_every_item_is_worked_on_once_by_so_many_at_a_time() -> None:
    under_way, most, done = 0, 0, list[int]()

    async def work(number: int) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(number % 3)
        under_way -= 1
        done.append(number)

    run_virtual(for_each_limited(range(50), work, 4))
    assert (sorted(done), most) == (list(range(50)), 4)


@pytest.mark.parametrize(
    ("error", "done"), [(None, True), (ValueError("of the block"), True), (asyncio.CancelledError(), False)]
)
def test_only_a_cancel_of_the_block_ends_the_tasks_of_a_group(error: BaseException | None, done: bool) -> None:
    async def main() -> bool:
        group = asyncio.TaskGroup()
        await group.__aenter__()
        task = group.create_task(asyncio.sleep(1))
        try:
            await leave_group(group, error)
        except asyncio.CancelledError:
            assert isinstance(error, asyncio.CancelledError)
        return not task.cancelled()

    assert run_virtual(main()) is done
