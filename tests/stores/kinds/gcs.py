"""Google Cloud Storage: the strict fake of these tests, and two emulators."""

from functools import partial

import pytest

from asyncsync.stores import open_store

SERVERS = ("gcp-storage-emulator", "fake-gcs-server")


def gcs(fixture, request):
    from kinds import numbers

    pytest.importorskip("gcloud.aio.auth")
    server = request.getfixturevalue(fixture)
    return open_store(f"gs://conformance/run-{next(numbers)}", options=server.storage_options)


KINDS = {
    "gcs-strict": partial(gcs, "gcs_strict"),
    "gcp-storage-emulator": partial(gcs, "gcp_storage_emulator"),
    "fake-gcs-server": partial(gcs, "fake_gcs_server"),
}

_PART = "a part is an object of its own: one that comes too late stays until it is pruned"
_CONDITIONS = "it ignores every precondition"
_PAGES = "it ignores maxResults and pageToken"

DIFFERENCES = {
    **{(name, "takes no part of an aborted upload"): _PART for name in KINDS},
    ("gcp-storage-emulator", "writes on a condition"): _CONDITIONS,
    ("gcp-storage-emulator", "completes on a condition"): _CONDITIONS,
    ("gcp-storage-emulator", "copies on a condition"): _CONDITIONS,
    ("gcp-storage-emulator", "copies to create only"): _CONDITIONS,
    ("fake-gcs-server", "copies to create only"): "it ignores conditions of rewrite",
    ("gcp-storage-emulator", "one of many racers creates"): _CONDITIONS,
    ("gcp-storage-emulator", "one of many racers replaces"): _CONDITIONS,
    ("gcp-storage-emulator", "serves thousands of requests"): _PAGES,
    ("fake-gcs-server", "refuses a wrong checksum"): "it stores whatever comes",
    ("fake-gcs-server", "copies on a condition"): "it ignores conditions of rewrite",
    ("fake-gcs-server", "completes on a condition"): "it ignores conditions of compose",
    ("fake-gcs-server", "reports a missing part"): "it answers 500 to a compose of what is not there",
}
