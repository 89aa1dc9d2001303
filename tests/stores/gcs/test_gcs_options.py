"""Options of the Cloud Storage store reach every request that needs them."""

import asyncio
import base64
import json

import google_crc32c
import pytest
from s3_script import Script, reply

from asyncsync import CheckpointConfig, Experiment, RunConfig, SyncEngine
from asyncsync.disk.files import FileRange
from asyncsync.errors import AccessDeniedError, ConfigError, StoreError
from asyncsync.stores import open_store
from asyncsync.stores.gcs import store as gcs_store
from asyncsync.stores.gcs.store import GcsStore

pytest.importorskip("gcloud.aio.auth")
from gcs_fake import Fault, GcsFake

from asyncsync.stores.gcs import proxy_transport

MIB = 1 << 20
SECRET = bytes(range(32))
CSEK = base64.b64encode(SECRET).decode()
DATA, MANIFEST, RECORD = "run/model.bin", "run/.asyncsync/manifest.json", ".asyncsync/experiment.json"


@pytest.fixture
def fake():
    with GcsFake("bucket") as fake:
        yield fake


def opened(fake, scheme="gs", **options):
    return open_store(f"{scheme}://bucket/p", options=fake.storage_options | options)


def objects(fake):
    return fake.buckets["bucket"].objects


async def every_operation(store, tmp_path):
    """Each operation of the store once, large bodies included."""
    path = tmp_path / "body"
    path.write_bytes(bytes(9 * MIB) + b"end")
    info = await store.put(DATA, b"data")
    assert (await store.get(DATA))[0] == b"data"
    assert (await store.head(DATA)).crc32c == google_crc32c.value(b"data")
    await store.copy(DATA, "copy", if_source_version=info.version, size=4)
    await store.put("large", FileRange(str(path), 0, 9 * MIB))
    upload = await store.create_multipart("parts")
    parts = [await store.put_part(upload, 1, 0, FileRange(str(path), 0, 9 * MIB))]
    parts += [await store.put_part(upload, 2 + n, 9 * MIB + n, b"x") for n in range(33)]
    assert len(await store.list_parts(upload)) == 34
    crc = google_crc32c.value(bytes(9 * MIB) + b"x" * 33)
    made = await store.complete_multipart(upload, parts, crc32c=crc)
    assert made.crc32c == crc
    assert {info.key for info in (await store.list("")).objects} == {DATA, "copy", "large", "parts"}


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "proxy"])
@pytest.mark.parametrize("options", [{}, {"encryption_key": CSEK}, {"encryption_key": SECRET}], ids=str)
async def test_a_customers_key_reaches_every_operation(fake, tmp_path, monkeypatch, proxied, options):
    if proxied:  # straight to the server, as through a proxy that connects
        monkeypatch.setattr(gcs_store, "proxy_for", lambda endpoint: "unused")
        direct = property(lambda _: None, lambda *_: None)
        monkeypatch.setattr(proxy_transport.ProxyTransport, "_proxy", direct, raising=False)
    async with opened(fake, **options) as store:
        await every_operation(store, tmp_path)
        await store.delete([DATA, "copy", "large", "parts"])
    assert objects(fake) == {}


async def test_every_object_is_encrypted_and_unreadable_without_the_key(fake, tmp_path):
    async with opened(fake, encryption_key=CSEK) as store:
        await every_operation(store, tmp_path)
        await store.put(RECORD, b"{}")
    assert all(found.key for found in objects(fake).values())
    for other in ({}, {"encryption_key": bytes(32)}):
        async with opened(fake, **other) as store:
            with pytest.raises(StoreError, match="customer-supplied encryption key"):
                await store.get(DATA)


async def test_a_customers_key_is_never_shown(fake):
    async with opened(fake, encryption_key=CSEK) as store:
        await store.put("k", b"data")
        document = {"error": {"message": f"bad key {CSEK}"}}
        fake.faults.append(Fault("GET", status=400, body=json.dumps(document).encode()))
        with pytest.raises(StoreError) as caught:
            await store.head("k")
    shown = f"{caught.value} {caught.value!r} {store._options!r}"
    assert CSEK not in shown
    assert "***" in shown


async def test_metadata_class_and_type_are_for_data_only(fake, tmp_path):
    options = {"metadata": {"Team": "vision"}, "storage_class": "NEARLINE", "content_type": "a/b"}
    async with opened(fake, **options) as store:
        await every_operation(store, tmp_path)
        await store.put(MANIFEST, b"{}")
        await store.put(RECORD, b"{}")
    for name, found in objects(fake).items():
        data = ".asyncsync" not in name
        assert found.storage_class == ("NEARLINE" if data else "STANDARD")
        assert found.properties.get("metadata") == ({"team": "vision"} if data else None)
        assert found.properties["contentType"] == ("a/b" if data else "application/octet-stream")


@pytest.mark.parametrize(
    ("option", "hold"), [("temporary_hold", "temporaryHold"), ("event_based_hold", "eventBasedHold")]
)
async def test_data_is_held_and_parts_and_records_are_not(fake, tmp_path, option, hold):
    async with opened(fake, **{option: True}) as store:
        await every_operation(store, tmp_path)
        await store.put(RECORD, b"{}")
        await store.put(RECORD, b"{} ")
        assert {n for n, found in objects(fake).items() if not found.properties.get(hold)} == {f"p/{RECORD}"}
        for call in (store.put(DATA, b"new"), store.delete([DATA]), store.delete([DATA, "large"])):
            with pytest.raises(AccessDeniedError, match="hold"):
                await call


async def test_a_retired_checkpoint_under_a_hold_keeps_its_data_only(fake, tmp_path, caplog):
    options = fake.storage_options | {"temporary_hold": True}
    keep = CheckpointConfig(num_to_keep=1)
    run = RunConfig(name="e", storage_path="gs://bucket/p", storage_options=options, checkpoint_config=keep)
    async with SyncEngine(run, local_dir=tmp_path) as engine:
        for step in range(2):
            files = tmp_path / f"files{step}"
            files.mkdir()
            (files / "w").write_bytes(b"x")
            await engine.trial("t").report({"step": step}, files)
    experiment = await Experiment.open("gs://bucket/p/e", storage_options=options)
    assert [one.name for one in experiment.checkpoints] == ["checkpoint_000001"]
    left = [name for name in objects(fake) if "checkpoint_000000" in name]
    assert left == ["p/e/t/checkpoint_000000/w"]
    assert "it remains due" in caplog.text


async def test_the_other_name_of_the_scheme_is_the_same_store(fake):
    async with opened(fake, "gcs") as store:
        await store.put("k", b"data")
    assert list(objects(fake)) == ["p/k"]


@pytest.mark.parametrize(
    ("options", "named", "accepts"),
    [
        ({"encryption_key": "short-secret"}, "encryption_key", "256 bits"),
        ({"encryption_key": CSEK, "kms_key_name": "k"}, "encryption_key", "exclude"),
        ({"encryption_key": CSEK, "endpoint_url": "http://store:1"}, "encryption_key", "https"),
        ({"endpoint_url": "http://["}, "endpoint_url", "http://host:port"),
        ({"metadata": {"a": "b\n"}}, "metadata", "printable ASCII"),
        ({"metadata": {"a": "b" * 8192}}, "metadata", "at most 8192"),
        ({"content_type": "a\nb"}, "content_type", "printable"),
        ({"temporary_hold": "yes"}, "temporary_hold", "True or False"),
        ({"event_based_hold": 1}, "event_based_hold", "True or False"),
        ({"impersonate_service_account": "name"}, "impersonate_service_account", "e-mail"),
        ({"impersonate_service_account": "a@b", "token": "t"}, "impersonate_service_account", "exclude"),
        ({"impersonate_service_account": "a@b", "anonymous": True}, "impersonate_service_account", "exclude"),
    ],
)
def test_a_value_that_is_not_accepted_is_named(options, named, accepts):
    with pytest.raises(ConfigError, match="storage option") as caught:
        GcsStore("bucket", "", options=options)
    assert named in str(caught.value)
    assert accepts in str(caught.value)
    assert "short-secret" not in str(caught.value)


# Impersonation

ROBOT = "robot@project.iam.gserviceaccount.com"


@pytest.fixture
async def google(fake, monkeypatch, tmp_path):
    """Token servers of the user and of IAM: the options of the user, and the requests for the robot's token."""
    asked = []

    def answer(request):
        if request.target == "/token":
            return reply(body=b'{"access_token": "user", "expires_in": 3600}', Content_Type="application/json")
        asked.append(request)
        return reply(body=b'{"accessToken": "robot"}', Content_Type="application/json")

    script = Script(answer)
    async with await asyncio.start_server(script.serve, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        place = "gcloud.aio.auth.token.GCLOUD_ENDPOINT_GENERATE_ACCESS_TOKEN"
        monkeypatch.setattr(place, f"{address}/impersonate/{{service_account}}")
        user = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}
        (tmp_path / "user.json").write_text(json.dumps(user | {"token_uri": f"{address}/token"}))
        fake.tokens = {"robot"}
        yield {"credentials": str(tmp_path / "user.json"), "anonymous": None}, asked
        for writer in script.connections:
            writer.close()


async def test_another_account_is_impersonated_with_our_credentials(fake, google):
    options, asked = google
    async with opened(fake, impersonate_service_account=ROBOT, **options) as store:
        await store.put("k", b"data")
        await store.head("k")
    (request,) = asked
    assert request.target == f"/impersonate/{ROBOT}"
    assert request.headers["authorization"] == "Bearer user"
    assert json.loads(request.body)["scope"] == ["https://www.googleapis.com/auth/cloud-platform"]


async def test_without_it_our_own_token_is_sent(fake, google):
    options, asked = google
    async with opened(fake, **options) as store:
        with pytest.raises(AccessDeniedError):
            await store.put("k", b"data")
    assert asked == []
