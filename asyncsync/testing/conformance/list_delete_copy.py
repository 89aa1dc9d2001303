"""Conformance of list, delete and unconditional copy."""

from __future__ import annotations

import pytest

from asyncsync.errors import NotFoundError, PreconditionError
from asyncsync.stores.base import Store
from asyncsync.testing.conformance.fixtures import ConformanceBase, Rule, list_all_pages, put_empty


class ListingConformance(ConformanceBase):
    """Listings, deletions and copies."""

    async def test_an_empty_prefix_is_an_empty_page(self, store: Store) -> None:
        assert await list_all_pages(store, "nothing/here/") == ([], [], 1)

    async def test_a_list_gives_size_and_version(self, store: Store) -> None:
        info = await store.put("d/x", b"12345")
        (listed,) = (await list_all_pages(store, "d/"))[0]
        assert (listed.key, listed.size, listed.version) == ("d/x", 5, info.version)

    async def test_a_prefix_need_not_end_at_a_slash(self, store: Store) -> None:
        for key in ("run-1/x", "run-10/x", "run-2/x", "run"):
            await store.put(key, b"1")
        assert sorted(info.key for info in (await list_all_pages(store, "run-1"))[0]) == ["run-1/x", "run-10/x"]

    async def test_a_delimiter_folds_deeper_keys_into_prefixes(self, store: Store) -> None:
        for key in ("t/a/1", "t/a/2", "t/b/c/3", "t/file", "other/x"):
            await store.put(key, b"1")
        objects, prefixes, _ = await list_all_pages(store, "t/", "/")
        assert [info.key for info in objects] == ["t/file"]
        assert sorted(prefixes) == ["t/a/", "t/b/"]

    async def test_a_listing_is_in_byte_order(self, store: Store, rule: Rule) -> None:
        rule("lists in byte order")
        keys = ["a", "b/c", "a-b", "c/a/x", "B", "é", "c/a-x", "a.b"]
        for key in keys:
            await store.put(key, b"")
        assert [info.key for info in (await list_all_pages(store))[0]] == sorted(keys, key=str.encode)

    async def test_more_than_a_page_is_listed_in_pages(self, store: Store, rule: Rule) -> None:
        rule("serves thousands of requests")
        keys = [f"many/{number:04}" for number in range(1005)]
        await put_empty(store, keys)
        objects, _, pages = await list_all_pages(store, "many/")
        assert [info.key for info in objects] == keys
        assert pages >= 2
        await store.delete(keys[:1000])
        assert [info.key for info in (await list_all_pages(store))[0]] == keys[1000:]

    async def test_more_than_a_page_of_prefixes_is_listed_in_pages(self, store: Store, rule: Rule) -> None:
        rule("serves thousands of requests")
        keys = [f"trials/{number:04}/.asyncsync/trial.json" for number in range(1003)]
        await put_empty(store, keys)
        objects, prefixes, _ = await list_all_pages(store, "trials/", "/")
        assert objects == []
        assert prefixes == [f"trials/{number:04}/" for number in range(1003)]

    async def test_a_deleted_object_is_missing(self, store: Store) -> None:
        await store.put("d/x", b"1")
        await store.put("d/y", b"1")
        await store.delete(["d/x"])
        with pytest.raises(NotFoundError):
            await store.head("d/x")
        assert [info.key for info in (await list_all_pages(store))[0]] == ["d/y"]

    async def test_deleting_a_missing_object_succeeds(self, store: Store) -> None:
        await store.delete(["never/was", "d/x"])

    async def test_deleting_nothing_succeeds(self, store: Store) -> None:
        await store.delete([])

    async def test_a_copy_has_the_same_bytes(self, store: Store) -> None:
        await store.put("x", b"12345")
        info = await store.copy("x", "dir/y")
        assert (await store.get("dir/y"))[0] == b"12345"
        assert info.version == (await store.head("dir/y")).version

    async def test_a_copy_of_a_missing_object_raises_not_found(self, store: Store) -> None:
        with pytest.raises(NotFoundError):
            await store.copy("missing", "y")

    async def test_a_copy_checks_the_version_of_its_source(self, store: Store, rule: Rule) -> None:
        rule("copies on a condition")
        old = await store.put("x", b"old")
        await store.put("x", b"newer")
        with pytest.raises(PreconditionError):
            await store.copy("x", "y", if_source_version=old.version)
