"""Conformance of conditional writes and copies."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from asyncsync.errors import NotFoundError, PreconditionError, StoreError
from asyncsync.stores.base import MISSING, Store
from asyncsync.testing.conformance.fixtures import ConformanceBase, Rule, list_all_pages, winners


class ConditionConformance(ConformanceBase):
    """Writes and copies that only create, or only replace one version."""

    async def test_a_copy_can_create_only(self, store: Store, rule: Rule) -> None:
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
        assert sorted(info.key for info in (await list_all_pages(store))[0]) == ["new", "taken", "x"]

    async def test_a_create_only_copy_is_refused_where_it_is_unsupported(self, store: Store, rule: Rule) -> None:
        """``traits.conditional_copy`` is False, at the latest after the first such copy."""
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
        assert [info.key for info in (await list_all_pages(store))[0]] == ["x"]

    async def test_a_copy_that_names_a_version_to_replace_is_refused(self, store: Store) -> None:
        info = await store.put("x", b"12345")
        await store.put("y", b"other")
        with pytest.raises(StoreError):
            await store.copy("x", "y", if_version=info.version)
        assert (await store.get("y"))[0] == b"other"

    async def test_one_of_many_copies_creates(self, store: Store, rule: Rule) -> None:
        rule("copies to create only")
        rule("one of many racers creates")
        bodies = [f"racer {number}".encode() for number in range(8)]
        for number, body in enumerate(bodies):
            await store.put(f"{number}", body)
        copies = (store.copy(f"{number}", "x", if_version=MISSING) for number in range(len(bodies)))
        results = await asyncio.gather(*copies, return_exceptions=True)
        (winner,) = winners(results)
        assert (await store.get("x"))[0] == bodies[results.index(winner)]

    async def test_create_only_creates(self, store: Store, rule: Rule) -> None:
        rule("writes on a condition")
        await store.put("x", b"first", if_version=MISSING)
        with pytest.raises(PreconditionError):
            await store.put("x", b"second", if_version=MISSING)
        assert (await store.get("x"))[0] == b"first"

    async def test_replace_only_replaces_that_version(self, store: Store, rule: Rule) -> None:
        rule("writes on a condition")
        first = await store.put("x", b"first")
        second = await store.put("x", b"second", if_version=first.version)
        with pytest.raises(PreconditionError):
            await store.put("x", b"third", if_version=first.version)
        assert (await store.head("x")).version == second.version

    async def test_replacing_a_deleted_object_is_refused(self, store: Store, rule: Rule) -> None:
        rule("writes on a condition")
        first = await store.put("x", b"first")
        await store.delete(["x"])
        with pytest.raises((PreconditionError, NotFoundError)):
            await store.put("x", b"second", if_version=first.version)
        with pytest.raises(NotFoundError):
            await store.head("x")

    async def test_one_of_many_racers_creates(self, store: Store, rule: Rule) -> None:
        rule("one of many racers creates")
        bodies = [f"racer {number}".encode() for number in range(12)]
        results = await asyncio.gather(*(store.put("x", b, if_version=MISSING) for b in bodies), return_exceptions=True)
        (winner,) = winners(results)
        assert (await store.head("x")).version == winner.version
        assert (await store.get("x"))[0] == bodies[results.index(winner)]

    async def test_one_of_many_racers_replaces(self, store: Store, rule: Rule) -> None:
        rule("one of many racers replaces")
        old = await store.put("d/x", b"old")
        bodies = [f"racer {number}".encode() for number in range(12)]
        puts = (store.put("d/x", body, if_version=old.version) for body in bodies)
        results = await asyncio.gather(*puts, return_exceptions=True)
        (winner,) = winners(results)
        assert (await store.get("d/x"))[0] == bodies[results.index(winner)]
