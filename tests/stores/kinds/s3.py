"""S3 servers."""

from functools import partial

import pytest

from asyncsync.stores import open_store

SERVERS = ("seaweedfs", "ministack", "moto")
_buckets = {}


def s3(name, request):
    from kinds import numbers

    pytest.importorskip("aiobotocore")
    server = request.getfixturevalue(name)
    if server.endpoint not in _buckets:
        _buckets[server.endpoint] = server.create_bucket("conformance")
    return open_store(f"s3://conformance/run-{next(numbers)}", options=server.storage_options)


KINDS = {name: partial(s3, name) for name in SERVERS}

DIFFERENCES = {
    ("moto", "refuses a wrong checksum"): "moto accepts any checksum and echoes it",
    ("moto", "copies to create only"): "moto does not know the condition, and overwrites",
    ("ministack", "copies to create only"): "ministack does not know the condition, and overwrites",
    ("moto", "copies on a condition"): "moto does not enforce CopySourceIfMatch",
    ("moto", "forgets an aborted upload"): "moto answers 500 to whatever comes after an abort",
    ("moto", "takes no part of an aborted upload"): "moto answers 500 to whatever comes after an abort",
    (
        "ministack",
        "refuses a wrong checksum of the complete object",
    ): "ministack treats the checksum as a composite one",
    ("moto", "refuses a wrong checksum of the complete object"): "moto accepts any checksum",
    ("moto", "refuses a wrong checksum of a file"): "moto accepts any checksum",
    ("seaweedfs", "lists in byte order"): "SeaweedFS lists per directory: a/b before a-b",
    ("moto", "one of many racers replaces"): "moto checks and writes in two steps",
    ("moto", "one of many racers creates"): "moto checks and writes in two steps",
    ("moto", "serves thousands of requests"): "moto closes every connection: they take half a minute",
}
