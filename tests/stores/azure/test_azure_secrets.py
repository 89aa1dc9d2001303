"""A shared access signature in an address is used, and neither shown nor recorded."""

import logging

import pytest

from asyncsync import (
    Experiment,
    RunConfig,
    SyncEngine,
    Syncer,
    contents,
    copy,
    plan_pull,
    pull,
    push,
    verify,
)
from asyncsync.cli.options import resolve_url
from asyncsync.config import split_sas
from asyncsync.errors import AsyncsyncError, ConfigError, NotFoundError
from asyncsync.integrations.run_address import RunAddress
from asyncsync.remote.prune import prune
from asyncsync.remote.repair import repair

azure_fake = pytest.importorskip("azure_fake")
SECRET = "TOPSECRET"
SAS = f"sv=2021-12-02&ss=b&srt=sco&sp=rwdlac&se=2030-01-01T00%3A00%3A00Z&sig={SECRET}%3D"
URI = f"https://{azure_fake.ACCOUNT}.blob.core.windows.net/conformance/run"


@pytest.fixture
def options(azure_strict):
    azure_strict.sas = SAS
    return {"endpoint_url": f"{azure_strict.endpoint}/{azure_fake.ACCOUNT}"}


@pytest.fixture
def nothing_recorded(tmp_path, azure_strict, caplog):
    """Searches everything that was stored, here and there, and every line of the log."""
    caplog.set_level(logging.DEBUG)
    yield
    for path in (tmp_path / "state").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    for name, blob in azure_strict.containers["conformance"].blobs.items():
        assert SECRET.encode() not in blob.data, name
    assert SECRET not in caplog.text


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_bytes(b"12345")
    return tmp_path / "tree"


async def test_every_operation_takes_it_and_hides_it(options, nothing_recorded, tree, tmp_path):
    signed = f"{URI}?{SAS}"
    await push(tree, signed, storage_options=options)
    shown = [await verify(signed, deep=True, storage_options=options)]
    shown.append(await repair(signed, tree, storage_options=options))
    shown.append(await prune(signed, storage_options=options))
    await pull(signed, tmp_path / "copy", storage_options=options)
    assert (tmp_path / "copy/a").read_bytes() == b"12345"
    async with Syncer(tree, signed, storage_options=options) as syncer:
        assert syncer.uri == URI
    assert SECRET not in repr(shown)


async def test_an_experiment_takes_it_and_hides_it(options, nothing_recorded, tree, tmp_path):
    run = RunConfig(name="sweep", storage_path=f"{URI}?{SAS}", storage_options=options)
    assert run.uri == f"{URI}/sweep"
    assert SECRET not in repr(run)
    async with SyncEngine(run, local_dir=tmp_path / "local") as engine:
        trial = engine.trial("one")
        await trial.report({"loss": 1.0}, checkpoint=tree)
        assert SECRET not in f"{engine.uri} {trial.uri} {engine.status()!r}"
    experiment = await Experiment.open(f"{URI}/sweep?{SAS}", storage_options=options)
    assert SECRET not in f"{experiment!r} {experiment.uri}"
    await experiment.latest_checkpoint().download(tmp_path / "back")
    assert (tmp_path / "back/a").read_bytes() == b"12345"


async def test_reading_one_file_and_looking_around_takes_it_and_hides_it(options, nothing_recorded, tree, tmp_path):
    run = RunConfig(name="sweep", storage_path=f"{URI}?{SAS}", storage_options=options)
    async with SyncEngine(run, local_dir=tmp_path / "local") as engine:
        await engine.trial("one").report({"loss": 1.0}, checkpoint=tree)
    checkpoint = f"{URI}/sweep/one/checkpoint_000000"
    plan = await plan_pull(f"{checkpoint}/a?{SAS}", tmp_path / "file", storage_options=options)
    assert plan.fetch == {"a": 5}
    await pull(f"{checkpoint}/a?{SAS}", tmp_path / "file", storage_options=options)
    assert (tmp_path / "file/a").read_bytes() == b"12345"
    shown = [await contents(f"{URI}{path}?{SAS}", storage_options=options) for path in ("", "/sweep", "/sweep/one")]
    assert SECRET not in repr(shown)
    assert shown[0][0].uri == f"{URI}/sweep"
    assert shown[2].checkpoints[0].uri == checkpoint
    await shown[2].checkpoints[0].download(tmp_path / "again")
    with pytest.raises(NotFoundError) as caught:
        await contents(f"{URI}/nothing?{SAS}", storage_options=options)
    assert SECRET not in str(caught.value)


async def test_a_copy_within_an_account_goes_from_container_to_container(azure_strict, options, tree):
    azure_strict.containers["second"] = azure_fake.server.Container("second")
    other = URI.replace("/conformance/", "/second/")
    await push(tree, f"{URI}?{SAS}", storage_options=options)
    for target in (f"{URI}-copy", other):
        await copy(f"{URI}?{SAS}", f"{target}?{SAS}", storage_options=options)
        assert (await verify(f"{target}?{SAS}", deep=True, storage_options=options)).files == 1


async def test_no_error_shows_it(azure_strict, options, nothing_recorded, tree):
    azure_strict.sas = "another"
    for call in (push(tree, f"{URI}?{SAS}", storage_options=options), verify(f"{URI}?{SAS}", storage_options=options)):
        with pytest.raises(AsyncsyncError) as caught:
            await call
        assert SECRET not in f"{caught.value!r} {caught.value} {getattr(caught.value, '__notes__', '')}"


def test_the_command_refuses_it():
    """Other users see a command line."""
    with pytest.raises(ConfigError, match="AZURE_STORAGE_SAS_TOKEN") as caught:
        resolve_url(f"{URI}?{SAS}")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["s3://bucket/a?sig=x", "/local/dir?sig=x", "az://box/a?x=1", "az://box/what?", "az://box"]
)
def test_other_addresses_stay_as_they_are(uri):
    assert split_sas(uri, {"a": 1}) == (uri, {"a": 1})


def test_an_integration_refuses_it():
    """An address is taken apart there, and its parts become names."""
    with pytest.raises(ConfigError, match="sas_token") as caught:
        RunAddress.of(f"{URI}/experiment/trial?{SAS}")
    assert SECRET not in str(caught.value)
    assert RunAddress.of(f"{URI}/experiment/trial").trial == "trial"
