"""A Cloud Storage store on the strict fake."""

import shutil
import subprocess

import pytest

from asyncsync.stores import open_store
from asyncsync.stores.guard.budget import Budget
from asyncsync.stores.guard.guarded import GuardedStore
from asyncsync.stores.guard.retry_policy import RetryPolicy


@pytest.fixture
def objects(gcs_strict):
    """The objects of the bucket, by name."""
    return gcs_strict.buckets["conformance"].objects


@pytest.fixture
async def store(gcs_strict):
    async with open_store("gs://conformance/p", options=gcs_strict.storage_options) as opened:
        yield opened


@pytest.fixture
def guarded(store):
    """The same, with retries that do not wait."""
    return GuardedStore(store, Budget(max_concurrency=8), retry=RetryPolicy(attempts=5, base=0.0, cap=0.0))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """An authority of our own and, signed by it, a certificate of 127.0.0.1: paths of authority, certificate, key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = tmp_path_factory.mktemp("tls")
    new = "openssl req -newkey rsa:2048 -nodes"
    extensions = "-addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
    authority = "-addext keyUsage=critical,keyCertSign,cRLSign"  # Python 3.13 requires it
    for command in (
        f"{new} -x509 -days 1 -subj /CN=authority {authority} -keyout ca.key -out ca.pem",
        f"{new} -x509 -days 1 -subj /CN=127.0.0.1 {extensions} -CA ca.pem -CAkey ca.key -keyout key.pem -out cert.pem",
    ):
        subprocess.run(command.split(), check=True, capture_output=True, cwd=made)
    return tuple(str(made / name) for name in ("ca.pem", "cert.pem", "key.pem"))
