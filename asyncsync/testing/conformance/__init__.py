"""The suite that every store passes, for authors of stores. It needs pytest 8.3 and pytest-asyncio 0.24.

Subclass :class:`StoreConformance` in a test module and give it a fixture ``store``: an empty store for each test.
More than 110 tests then check the rules of the interface::

    import pytest_asyncio

    from asyncsync.stores import open_store
    from asyncsync.testing.conformance import StoreConformance


    class TestMyStore(StoreConformance):
        @pytest_asyncio.fixture
        async def store(self, tmp_path):
            async with open_store(tmp_path / "objects") as store:
                yield store

A store that is known to break a rule names it, with the reason, in a fixture ``differences``: the tests of that rule
are skipped. Only the rules of :data:`RULES` can be named::

        @pytest.fixture
        def differences(self):
            return {"lists in byte order": "the server lists each directory by itself"}

A store with ``traits.min_part_size`` above 5 MiB cannot be tested: the suite uploads parts of 5 MiB.
"""

from __future__ import annotations

import pytest

for _part in ("conditions", "fixtures", "interruption", "list_delete_copy", "multipart", "objects"):
    pytest.register_assert_rewrite(f"{__name__}.{_part}")  # before it is imported: failures show the values

from asyncsync.testing.conformance.conditions import ConditionConformance  # noqa: E402
from asyncsync.testing.conformance.fixtures import RULES  # noqa: E402
from asyncsync.testing.conformance.interruption import CancelConformance, LeaseConformance  # noqa: E402
from asyncsync.testing.conformance.list_delete_copy import ListingConformance  # noqa: E402
from asyncsync.testing.conformance.multipart import MultipartConformance  # noqa: E402
from asyncsync.testing.conformance.objects import ObjectConformance  # noqa: E402

__all__ = ["RULES", "StoreConformance"]


class StoreConformance(
    ObjectConformance,
    ListingConformance,
    ConditionConformance,
    MultipartConformance,
    LeaseConformance,
    CancelConformance,
):
    """All rules of :class:`asyncsync.stores.base.Store` as tests. Subclass it, with a fixture ``store``."""
