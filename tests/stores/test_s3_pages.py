"""A page of ListObjectsV2 is read as botocore reads it, whatever the keys are."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsync.stores.s3.xml import is_xml_text, object_page
from asyncsync.stores.xml_reader import document

KEYS = st.text(min_size=1, max_size=40).filter(lambda text: is_xml_text(text) and "\r" not in text)


def parsed(content: str) -> object:
    root = document(
        f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{content}</ListBucketResult>'.encode()
    )
    assert root is not None
    return object_page(root)


@given(st.lists(KEYS, max_size=5), st.booleans())
def test_every_key_is_read_as_it_is(keys: list[str], encoded: bool) -> None:
    """Also with blanks at its ends, percent signs and pluses, encoded or not."""
    shown = [quote_plus(key, safe="/") if encoded else escape(key) for key in keys]
    entries = "".join(f"<Contents><Key>{text}</Key><Size>1</Size></Contents>" for text in shown)
    folded = "".join(f"<CommonPrefixes><Prefix>{text}</Prefix></CommonPrefixes>" for text in shown)
    mark = "<EncodingType>url</EncodingType>" if encoded else ""
    page = parsed(mark + entries + folded)
    assert [item["Key"] for item in page["Contents"]] == keys
    assert [item["Prefix"] for item in page["CommonPrefixes"]] == keys


def test_a_page_has_size_etag_time_and_the_token_of_the_next() -> None:
    page = parsed(
        "<IsTruncated>true</IsTruncated><NextContinuationToken>a+b=</NextContinuationToken><Contents><Key>k</Key>"
        "<LastModified>2026-11-28T11:00:00.000Z</LastModified><ETag>&quot;e-2&quot;</ETag><Size>5</Size></Contents>"
    )
    moment = datetime(2026, 11, 28, 11, tzinfo=UTC)
    assert page == {
        "Contents": [{"Key": "k", "Size": 5, "ETag": '"e-2"', "LastModified": moment}],
        "CommonPrefixes": [],
        "IsTruncated": True,
        "NextContinuationToken": "a+b=",
    }
    assert parsed("") == {"Contents": [], "CommonPrefixes": []}


@pytest.mark.parametrize("entry", ["<Size>many</Size>", "<LastModified>yesterday</LastModified>"])
def test_an_unreadable_value_is_an_error(entry: str) -> None:
    with pytest.raises(ValueError, match=r"many|yesterday"):
        parsed(f"<Contents><Key>k</Key>{entry}</Contents>")
