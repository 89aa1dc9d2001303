"""File systems of fsspec: in memory, and SFTP with a real server."""

import pytest

from asyncsync.stores import open_store

SERVERS = ("fsspec-sftp",)


def memory(request):
    from kinds import numbers

    pytest.importorskip("fsspec")
    return open_store(f"fsspec+memory://conformance/run-{next(numbers)}")


def sftp(request):
    from kinds import numbers

    server = request.getfixturevalue("sftp")
    return open_store(f"{server.uri}/run-{next(numbers)}", options=server.storage_options)


KINDS = {"fsspec-memory": memory, "fsspec-sftp": sftp}

DIFFERENCES = {
    **{(name, "an object and a directory of one name"): "a file cannot be a directory" for name in KINDS},
    **{(name, "copies to create only"): "a file system has no conditions" for name in KINDS},
    ("fsspec-sftp", "one of many racers creates"): "conditions are checked just before the write",
    ("fsspec-sftp", "one of many racers replaces"): "conditions are checked just before the write",
    ("fsspec-sftp", "serves thousands of requests"): "each file takes a dozen round trips",
}
