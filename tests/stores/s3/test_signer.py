"""The signer agrees with botocore's for any request."""

import datetime as dt
import string
from unittest import mock
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsync.stores.http.body import crc32c_to_text
from asyncsync.stores.s3.responses import object_crc32c
from asyncsync.stores.s3.signer import (
    UNSIGNED_PAYLOAD,
    Signer,
    canonical_query,
    timestamp_of,
)

UNSIGNED_HEADERS = {"authorization", "user-agent", "expect", "transfer-encoding", "x-amzn-trace-id"}

words = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
values = st.text(string.ascii_letters + string.digits + " \t/=+-_.:;,\"'", max_size=40)
names = st.from_regex(r"\A[a-zA-Z][a-zA-Z0-9-]{0,20}\Z").filter(lambda name: name.lower() not in UNSIGNED_HEADERS)
queries = st.lists(st.tuples(words, st.text(max_size=12)), max_size=5)
times = st.datetimes(dt.datetime(2001, 1, 1), dt.datetime(2099, 1, 1))


def by_botocore(method, url, headers, credentials, region, when):
    """The headers of the request after botocore has signed it with an unsigned payload."""
    request = AWSRequest(method=method, url=url, headers=headers)
    request.context["client_config"] = Config(s3={"payload_signing_enabled": False})
    with mock.patch("botocore.auth.get_current_datetime", return_value=when):
        S3SigV4Auth(Credentials(*credentials), "s3", region).add_auth(request)
    return dict(request.headers.items())


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from(["GET", "PUT", "POST", "HEAD", "DELETE"]),
    key=keys,
    query=queries,
    extra=st.dictionaries(names, values, max_size=5),
    secret=st.text(string.printable.strip(), min_size=1, max_size=50),
    token=st.one_of(st.none(), words),
    region=st.sampled_from(["us-east-1", "eu-central-1", "x"]),
    when=times,
)
def test_a_signature_is_the_one_that_botocore_makes(method, key, query, extra, secret, token, region, when):
    path = "/bucket/" + quote(key, safe="/~")
    text = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in query)
    extra = {name.lower(): value for name, value in extra.items() if name.lower() not in ("host", "date")}
    url = f"http://127.0.0.1:9000{path}{'?' if text else ''}{text}"
    theirs = by_botocore(method, url, extra, ("AKID", secret, token), region, when)

    signed = {name.lower(): value for name, value in theirs.items() if name.lower() not in UNSIGNED_HEADERS}
    signed["host"] = "127.0.0.1:9000"
    signer = Signer("AKID", secret, token, region)
    stamp = when.strftime("%Y%m%dT%H%M%SZ")
    assert theirs["X-Amz-Content-SHA256"] == UNSIGNED_PAYLOAD
    assert signer.authorization(method, path, text, signed, UNSIGNED_PAYLOAD, stamp) == theirs["Authorization"]


def test_the_key_is_derived_anew_on_another_day():
    signer = Signer("AKID", "secret", None, "us-east-1")
    for day in (1, 2, 1):
        when = dt.datetime(2026, 3, day, 12)
        theirs = by_botocore("GET", "http://h/k", {}, ("AKID", "secret", None), "us-east-1", when)
        headers = {"host": "h", "x-amz-content-sha256": UNSIGNED_PAYLOAD, "x-amz-date": theirs["X-Amz-Date"]}
        ours = signer.authorization("GET", "/k", "", headers, UNSIGNED_PAYLOAD, theirs["X-Amz-Date"])
        assert ours == theirs["Authorization"]


def test_a_signer_shows_no_secret():
    assert "hidden" not in repr(Signer("AKID-hidden", "hidden", "hidden-token", "us-east-1"))


def test_a_query_is_sorted_by_name_then_value():
    assert canonical_query("b=2&a=2&a=1&flag") == "a=1&a=2&b=2&flag="


def test_a_time_is_spelled_in_utc():
    assert timestamp_of(0.9) == "19700101T000000Z"


@given(st.integers(0, 2**32 - 1))
def test_a_crc_survives_its_header(crc):
    assert object_crc32c(crc32c_to_text(crc), "FULL_OBJECT", "etag-3") == crc


@pytest.mark.parametrize(
    ("text", "kind", "version"),
    [
        (None, None, "e"),
        ("", None, "e"),
        ("AAAAAA==", "COMPOSITE", "e"),
        ("AAAAAA==", None, "e-2"),
        ("AAAAAA==-2", None, "e"),
        ("AAAA", None, "e"),
    ],
)
def test_what_is_not_the_crc_of_a_whole_object_is_none(text, kind, version):
    assert object_crc32c(text, kind, version) is None
