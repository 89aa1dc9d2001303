"""A lazy lock excludes like any lock and exists only while it is used; a notification wakes all that wait for it."""

import asyncio

import pytest

from asyncsync.aio.lazy import LazyLock, Notification


class Owner:
    held = None


async def test_a_lock_is_held_by_one_task_at_a_time_in_the_order_of_arrival() -> None:
    owner, order, inside = Owner(), [], 0

    async def work(number: int) -> None:
        nonlocal inside
        async with LazyLock(owner, "held"):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            inside -= 1
            order.append(number)

    await asyncio.gather(*map(work, range(5)))
    assert order == [0, 1, 2, 3, 4]
    assert owner.held is None


async def test_a_lock_exists_only_while_it_is_used() -> None:
    owner = Owner()
    with pytest.raises(ZeroDivisionError):
        async with LazyLock(owner, "held"):
            assert owner.held is not None
            1 / 0
    assert owner.held is None


async def test_a_cancelled_wait_leaves_the_lock_to_the_others() -> None:
    owner, entered = Owner(), []

    async def enter(name: str) -> None:
        async with LazyLock(owner, "held"):
            entered.append(name)

    async with LazyLock(owner, "held"):
        waiting = [asyncio.create_task(enter(name)) for name in ("a", "b")]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*waiting, return_exceptions=True)
    assert entered == ["b"]
    assert owner.held is None


async def test_a_notification_wakes_all_that_wait_and_none_that_come_later() -> None:
    notification, woken = Notification(Owner(), "held"), []

    async def wait(name: str) -> None:
        await notification.wait()
        woken.append(name)

    tasks = [asyncio.create_task(wait(name)) for name in ("a", "b")]
    await asyncio.sleep(0)
    notification.notify()
    later = asyncio.create_task(wait("c"))
    await asyncio.gather(*tasks)
    assert woken == ["a", "b"]
    assert not later.done()
    notification.notify()
    await later
