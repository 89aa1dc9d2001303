"""Google's own client and asyncsync read each other's objects: google-cloud-storage on the fake."""

import os

import google_crc32c
import pytest

from asyncsync import TransferConfig, pull, push
from asyncsync.disk.files import FileRange
from asyncsync.stores import open_store

pytest.importorskip("gcloud.aio.auth")
storage = pytest.importorskip("google.cloud.storage")
credentials = pytest.importorskip("google.auth.credentials")

MIB = 1 << 20


@pytest.fixture
def bucket(gcs_strict, monkeypatch):
    """The bucket as google-cloud-storage sees it; gs:// means the same server."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_strict.endpoint)
    client = storage.Client(project="p", credentials=credentials.AnonymousCredentials())
    try:
        yield client.bucket("conformance")
    finally:
        client.close()


async def test_googles_client_reads_a_pushed_tree(bucket, tmp_path):
    """In one request, in a session of chunks, and composed of parts."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, size in {"empty": 0, "ünï #?%": 1000, "session": 9 * MIB, "composed": 23 * MIB}.items():
        (tree / name).write_bytes(os.urandom(size))
    await push(tree, "gs://conformance/run", transfer=TransferConfig(multipart_threshold=10 * MIB, part_size=5 * MIB))
    found = {blob.name.removeprefix("run/"): blob for blob in bucket.client.list_blobs(bucket, prefix="run/")}
    for path in tree.iterdir():
        blob = found[path.name]
        assert blob.download_as_bytes(checksum="crc32c" if path.name == "composed" else "md5") == path.read_bytes()
        assert blob.component_count == (5 if path.name == "composed" else None)
    assert not any(".asyncsync/parts" in name for name in found)


async def test_objects_of_googles_client_are_read(bucket, tmp_path):
    data = os.urandom(3 * MIB)
    bucket.blob("p/plain").upload_from_string(data, checksum="crc32c")
    resumable = bucket.blob("p/resumable", chunk_size=MIB)
    (tmp_path / "f").write_bytes(data)
    resumable.upload_from_filename(str(tmp_path / "f"))
    async with open_store("gs://conformance/p") as store:
        for name in ("plain", "resumable"):
            got, info = await store.get(name)
            assert (got, info.crc32c) == (data, google_crc32c.value(data))


async def test_generations_are_the_same_for_both(bucket, tmp_path):
    (tmp_path / "f").write_bytes(bytes(9 * MIB))
    async with open_store("gs://conformance/p") as store:
        info = await store.put("x", FileRange(str(tmp_path / "f"), 0, 9 * MIB))
        assert str(bucket.get_blob("p/x").generation) == info.version


async def test_a_pulled_tree_equals_a_download_by_googles_client(bucket, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_bytes(os.urandom(MIB))
    await push(tmp_path / "tree", "gs://conformance/run")
    await pull("gs://conformance/run", tmp_path / "copy")
    bucket.blob("run/a").download_to_filename(str(tmp_path / "theirs"))
    assert (tmp_path / "copy/a").read_bytes() == (tmp_path / "theirs").read_bytes()
