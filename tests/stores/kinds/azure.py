"""Azure Blob Storage: the strict fake of these tests, and Azurite."""

from functools import partial

import pytest

from asyncsync.stores import open_store

SERVERS = ("azurite",)


def azure(fixture, request):
    from kinds import numbers

    pytest.importorskip("awscrt")
    server = request.getfixturevalue(fixture)
    return open_store(f"az://conformance/run-{next(numbers)}", options=server.storage_options)


KINDS = {"azure-strict": partial(azure, "azure_strict"), "azurite": partial(azure, "azurite")}

DIFFERENCES = {}
