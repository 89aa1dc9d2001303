"""Dates and delays in responses: any value becomes a number of seconds within bounds, or None."""

from email.utils import formatdate
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsync.errors import ThrottledError
from asyncsync.stores.gcs import errors as gcs_errors
from asyncsync.stores.guard.retry_policy import MAX_RETRY_AFTER, RetryPolicy
from asyncsync.stores.http.dates import retry_after, unix_of
from asyncsync.stores.s3 import errors as s3_errors

NOW = 1_700_000_000


@pytest.mark.parametrize("asked", ["3600", "86400", "1000000000", "9" * 12, "9" * 12 + "." + "9" * 12])
def test_a_pause_is_at_most_a_minute(asked):
    error = ThrottledError("slow", retry_after({"retry-after": asked}))
    assert RetryPolicy(base=0.5).pause(1, error, Random(1)) <= MAX_RETRY_AFTER + 0.5 == 60.5


@pytest.mark.parametrize("asked", [61.0, 3600.0, 1e300, float("inf")])
def test_a_pause_that_another_store_asks_for_is_at_most_a_minute_too(asked):
    assert RetryPolicy(base=0.5).pause(1, ThrottledError("slow", asked), Random(1)) <= MAX_RETRY_AFTER + 0.5


@pytest.mark.parametrize(("asked", "seconds"), [("7", 7), ("0", 0), ("1.5", 1.5), (" 7 ", 7)])
def test_a_short_pause_is_kept(asked, seconds):
    assert retry_after({"retry-after": asked}) == seconds


@pytest.mark.parametrize("ahead", [-1e6, 0, 1e6])
def test_a_date_is_read_against_the_clock_of_the_response(ahead):
    date = formatdate(NOW + ahead, usegmt=True)
    for seconds, kept in ((-5, 0), (20, 20), (9000, 9000)):
        until = formatdate(NOW + ahead + seconds, usegmt=True)
        assert retry_after({"retry-after": until, "date": date}) == kept


@pytest.mark.parametrize("asked", ["", "soon", "-1", "²", "1e9", "9" * 5000, "Fri, 31 Dec 99999 23:59:59 GMT"])
def test_an_invalid_pause_is_none(asked):
    assert retry_after({"retry-after": asked}) is None


@pytest.mark.parametrize("read", [s3_errors.retry_after, gcs_errors.retry_after])
def test_every_store_reads_it_the_same_way(read):
    assert read is retry_after


_DATES = st.from_regex(
    r"[A-Za-z]{0,4},? ?-?[0-9]{1,22} (Jan|Feb|Dec|Zzz) [0-9]{1,22} "
    r"[0-9]{1,3}:[0-9]{1,3}:[0-9]{1,3} ([+-][0-9]{1,9}|GMT)?"
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.one_of(st.text(max_size=80), _DATES), st.one_of(st.text(max_size=80), _DATES))
def test_any_text_is_a_date_or_none(value, date):
    seconds = unix_of(value)
    assert seconds is None or 0 <= seconds < 1e12
    pause = retry_after({"retry-after": value, "date": date})
    assert pause is None or 0 <= pause < 1e12
