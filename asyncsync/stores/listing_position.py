"""How far a listing was read, page by page, and whether it ever ends. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from asyncsync.errors import StoreError

MAX_EMPTY_PAGES = 1000
"""Pages in a row without an entry."""


@dataclass(frozen=True, slots=True)
class ListingPosition:
    """How far a listing was read.

    ``mark`` is an earlier ``token``, taken again after 1, 2, 4, 8 ... pages: a cycle of any length returns to it
    (Brent, "An improved Monte Carlo factorization algorithm", 1980). ``first`` is the first entry of a page since
    then: a server that starts over with new tokens returns to it.
    """

    token: str = ""
    mark: str = ""
    first: str = ""
    steps: int = 0
    limit: int = 1
    empty: int = 0

    @staticmethod
    def parse(text: str | None) -> ListingPosition:
        """The inverse of :meth:`text`. Any other text is taken as a token without history."""
        if not text:
            return ListingPosition()
        numbers, _, rest = text.partition(":")
        fields = numbers.split(",")
        if len(fields) != 5 or not all(field.isascii() and field.isdigit() for field in fields):
            return ListingPosition(text)
        steps, limit, empty, mark, first = map(int, fields)
        token = rest[mark + first :]
        return ListingPosition(token, rest[:mark], rest[mark : mark + first], steps, limit, empty)

    def text(self) -> str:
        """The whole position as one token."""
        numbers = f"{self.steps},{self.limit},{self.empty},{len(self.mark)},{len(self.first)}"
        return f"{numbers}:{self.mark}{self.first}{self.token}"

    def further(self, where: str, token: str, first: str) -> ListingPosition:
        """The position after a page that begins with the entry ``first`` (empty: it has none) and continues at
        ``token``. StoreError, not transient, if that is impossible."""
        if not token.strip():
            raise StoreError(f"{where}: the page is not the last, but has no token of the next one")
        if token in (self.token, self.mark):
            raise StoreError(f"{where}: the pages repeat: the token {token[:60]!r} came before")
        if first and first == self.first:
            raise StoreError(f"{where}: the pages repeat: {first[:60]!r} came before")
        empty = 0 if first else self.empty + 1
        if empty > MAX_EMPTY_PAGES:
            raise StoreError(f"{where}: {empty} pages in a row are empty and not the last")
        if self.steps + 1 < self.limit:
            return ListingPosition(token, self.mark, self.first or first, self.steps + 1, self.limit, empty)
        return ListingPosition(token, token, first, 0, 2 * self.limit, empty)
