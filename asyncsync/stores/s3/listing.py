"""Lists of more than one page, and what is in them. A page that says that there is more has to say where, and not in a
circle; what cannot be read is an error, never a shorter list. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asyncsync.errors import StoreError, UnavailableError

MAX_EMPTY_PAGES = 1000
"""Pages in a row that may name nothing."""


@dataclass(frozen=True, slots=True)
class ListingPosition:
    """How far a list has been read. ``mark`` is an earlier ``token``, taken again after 1, 2, 4, 8 ... pages: a circle
    of any length comes back to it (Brent, "An improved Monte Carlo factorization algorithm", 1980)."""

    token: str = ""
    mark: str = ""
    steps: int = 0
    limit: int = 1
    empty: int = 0

    @staticmethod
    def parse(text: str | None) -> ListingPosition:
        """The inverse of :meth:`text`; of another text: a place that was reached in no known way."""
        if not text:
            return ListingPosition()
        numbers, _, rest = text.partition(":")
        fields = numbers.split(",")
        if len(fields) != 4 or not all(field.isascii() and field.isdigit() for field in fields):
            return ListingPosition(text)
        steps, limit, empty, size = map(int, fields)
        return ListingPosition(rest[size:], rest[:size], steps, limit, empty)

    def text(self) -> str:
        """One token that holds all of it."""
        return f"{self.steps},{self.limit},{self.empty},{len(self.mark)}:{self.mark}{self.token}"

    def further(self, where: str, token: str, *, empty: bool) -> ListingPosition:
        """The place after a page that says that there is more, at ``token``. StoreError, final: it cannot be."""
        if not token.strip():
            raise StoreError(f"{where}: the page says that there is more, and not where")
        if token in (self.token, self.mark):
            raise StoreError(f"{where}: the pages go in a circle: {token[:60]!r} came before")
        blank = self.empty + 1 if empty else 0
        if blank > MAX_EMPTY_PAGES:
            raise StoreError(f"{where}: {blank} pages in a row say that there is more, and name nothing")
        if self.steps + 1 < self.limit:
            return ListingPosition(token, self.mark, self.steps + 1, self.limit, blank)
        return ListingPosition(token, token, 0, 2 * self.limit, blank)


def is_more(page: Mapping[str, Any]) -> bool:
    """Whether a page of objects is not the last: it says so, or says nothing and has a token all the same."""
    more = page.get("IsTruncated")
    return bool(page.get("NextContinuationToken") if more is None else more)


def text_in(where: str, item: Mapping[str, Any], name: str) -> str:
    """What an entry must say; UnavailableError where it does not."""
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise UnavailableError(f"{where}: an entry of the list has no {name}")
    return value


def number_in(where: str, item: Mapping[str, Any], name: str, least: int = 0) -> int:
    """A number that an entry must have; UnavailableError where it does not."""
    value = item.get(name)
    if not isinstance(value, int) or not least <= value < 1 << 60:
        raise UnavailableError(f"{where}: an entry of the list has {name} {str(value)[:60]!r}")
    return value


def below(where: str, name: str, prefix: str) -> str:
    """``name`` without the prefix that was asked for; UnavailableError if it is not below it."""
    if not name.startswith(prefix):
        raise UnavailableError(f"{where}: the list names {name[:60]!r}, which was not asked for")
    return name[len(prefix) :]
