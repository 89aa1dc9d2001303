"""Shared Key signatures and SAS are those of the documentation, and those of azure-storage-blob where it is
installed."""

import base64
import random
from urllib.parse import parse_qs, quote

import pytest

from asyncsync.stores.azure.signer import SharedKeySigner, canonical_query, date_of

ACCOUNT, KEY = "testaccount", base64.b64encode(b"0123456789abcdef" * 4).decode()
NAMES = [
    "x-ms-date",
    "x-ms-version",
    "x-ms-meta-crc32c",
    "x-ms-meta-a_b",
    "x-ms-blob-type",
    "x-ms-content-crc64",
    "if-match",
    "if-none-match",
    "x-ms-range",
    "x-ms-meta-a1",
    "content-type",
    "content-md5",
]


@pytest.fixture
def signer():
    return SharedKeySigner(ACCOUNT, base64.b64decode(KEY))


def cases(count):
    dice = random.Random(7)
    for _ in range(count):
        headers = {name: f"v{dice.randrange(9)}" for name in dice.sample(NAMES, dice.randrange(2, len(NAMES)))}
        if dice.random() < 0.8:
            headers["content-length"] = str(dice.choice([0, 1, 16384]))
        key = "".join(dice.choice("ab/ é%+&=~'🎉") for _ in range(dice.randrange(1, 12)))
        query = dice.choice(["", "comp=list", "restype=container&comp=list&prefix=a%20b%2Fc&marker=%2Bx%3D%3D"])
        yield dice.choice(["GET", "PUT", "HEAD", "DELETE"]), f"/box/{quote(key, safe='/~')}", query, headers


def test_signatures_are_those_of_the_documentation(signer):
    access = pytest.importorskip("azure_fake.access")
    for method, path, query, headers in cases(300):
        text = access.string_to_sign(ACCOUNT, method, f"{path}?{query}" if query else path, headers)
        expected = f"SharedKey {ACCOUNT}:{access.hmac_text(KEY, text)}"
        assert signer.authorization(method, path, query, headers) == expected


def test_signatures_are_those_of_the_sdk(signer):
    authentication = pytest.importorskip("azure.storage.blob._shared.authentication")
    rest = pytest.importorskip("azure.core.rest")
    pipeline = pytest.importorskip("azure.core.pipeline")
    policy = authentication.SharedKeyCredentialPolicy(ACCOUNT, KEY)
    for method, path, query, headers in cases(100):
        address = f"https://{ACCOUNT}.blob.core.windows.net{path}" + (f"?{query}" if query else "")
        request = rest.HttpRequest(method, address, headers=headers)
        wrapped = pipeline.PipelineRequest(request, pipeline.PipelineContext(None))
        policy.on_request(wrapped)
        assert signer.authorization(method, path, query, headers) == request.headers["Authorization"], (path, query)


def test_a_read_sas_is_that_of_the_documentation(signer):
    access = pytest.importorskip("azure_fake.access")
    sas = {
        name: values[0] for name, values in parse_qs(signer.read_sas("box", "2030-01-31T12:00:00Z", https=True)).items()
    }
    access.check_read_sas(ACCOUNT, KEY, "box", sas, now=0.0)
    for change in ({"se": "2031-01-31T12:00:00Z"}, {"sp": "rw"}, {"spr": "http"}):
        with pytest.raises(access.ApiError):
            access.check_read_sas(ACCOUNT, KEY, "box", sas | change, now=0.0)
    with pytest.raises(access.ApiError):
        access.check_read_sas(ACCOUNT, KEY, "other", sas, now=0.0)


def test_a_query_is_decoded_and_sorted():
    assert canonical_query("comp=list&Prefix=a%2Fb&blockid=YQ%3D%3D") == "\nblockid:YQ==\ncomp:list\nprefix:a/b"


def test_a_date_is_that_of_http():
    assert date_of(0) == "Thu, 01 Jan 1970 00:00:00 GMT"


def test_a_signer_shows_no_secret(signer):
    assert KEY not in repr(signer)
