"""A store that does not verify checksums is detected at the start, and gets the best protection available."""

import hashlib
import logging

import pytest
from onebench import Bench

from asyncsync import RunConfig, SyncEngine
from asyncsync.disk.files import FileRange
from asyncsync.errors import IntegrityError, UnavailableError
from asyncsync.stores.base import Traits
from asyncsync.stores.guard.checksum_probe import probe_checks
from asyncsync.stores.s3.store import S3Store
from asyncsync.testing import FaultProxy, FaultyStore, Flip, MemoryStore, run_virtual
from asyncsync.testing import memory as memory_module


class Careless(MemoryStore):
    """Accepts every body, as some servers do; ``etag`` is its response."""

    etag = staticmethod(lambda data: hashlib.md5(data).hexdigest())
    lowered = None

    async def put(self, key, body, *, crc32c=None, if_version=None):
        info = await super().put(key, body, if_version=if_version)
        return type(info)(info.key, info.size, self.etag(body), info.crc32c, info.modified)

    def lower_checks(self, checks):
        self.traits = Traits("memory", crc32c=False, etag_md5=checks == "etag")


async def test_a_store_that_checks_is_asked_once_and_keeps_nothing_of_the_probe():
    store = MemoryStore()
    assert await probe_checks(store, "probe", b"data") == "crc32c"
    assert [request.operation for request in store.log] == ["put"]
    assert store.contents == {}


@pytest.mark.parametrize(("etag", "checks"), [(Careless.etag, "etag"), (lambda data: "opaque", "none")])
async def test_a_store_that_does_not_check_gets_its_best(etag, checks):
    store = Careless()
    store.etag = etag
    assert await probe_checks(store, "probe", b"data") == checks
    assert not store.traits.crc32c


async def test_a_store_that_fails_just_now_keeps_the_benefit_of_the_doubt():
    store = FaultyStore(MemoryStore())
    store.faults.fail(1, UnavailableError("away"))
    assert await probe_checks(store, "probe", b"data") == "crc32c"


def test_the_engine_says_so_in_its_log_and_status(tmp_path, monkeypatch, caplog):
    bench = Bench(tmp_path)
    monkeypatch.setattr(memory_module, "_check_crc", lambda *_: None)
    monkeypatch.setattr(MemoryStore, "lower_checks", Careless.lower_checks)

    async def main():
        async with bench.engine() as engine:
            return engine.status().checks

    with caplog.at_level(logging.WARNING, "asyncsync"):
        assert run_virtual(main()) == "etag"
    assert "memory://b/exp does not check the CRC32C of uploads" in caplog.text


@pytest.mark.server
@pytest.mark.parametrize(("kind", "checks"), [("seaweedfs", "crc32c"), ("ministack", "crc32c"), ("moto", "etag")])
async def test_the_probe_finds_the_checksums_that_real_servers_verify(request, kind, checks, tmp_path):
    server = request.getfixturevalue(kind)
    run = RunConfig(
        name="probe", storage_path=f"s3://{server.create_bucket('probed')}", storage_options=server.storage_options
    )
    async with SyncEngine(run, local_dir=tmp_path) as engine:
        assert engine.status().checks == checks
        await engine.trial("t").report({"loss": 1.0})


@pytest.mark.server
async def test_a_byte_that_is_flipped_on_its_way_to_a_careless_store_is_noticed(moto, tmp_path):
    """For a body in memory and for a range of a file; undamaged bytes are accepted."""
    path = tmp_path / "f"
    path.write_bytes(bytes(3 << 20))
    async with FaultProxy("127.0.0.1", moto.port) as proxy:
        options = moto.storage_options | {"endpoint_url": proxy.url}
        async with S3Store(moto.create_bucket("careless"), "p", options=options) as store:
            assert await probe_checks(store, "probe", b"data") == "etag"
            for body in (b"x" * 1000, FileRange(str(path), 0, 3 << 20)):
                proxy.on("^PUT", Flip("request", 500))
                with pytest.raises(IntegrityError, match="MD5"):
                    await store.put("k", body)
                await store.put("k", body)
            upload = await store.create_multipart("big")
            proxy.on("^PUT", Flip("request", 500))
            with pytest.raises(IntegrityError, match="MD5"):
                await store.put_part(upload, 1, 0, b"y" * 1000)


@pytest.mark.server
async def test_an_explicit_crc32c_option_keeps_sending_it(moto):
    options = moto.storage_options | {"checksum": "crc32c"}
    async with S3Store(moto.create_bucket("insisted"), "p", options=options) as store:
        assert await probe_checks(store, "probe", b"data") == "crc32c"
