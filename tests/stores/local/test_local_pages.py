"""Pages of the local store's listings while the files change."""

from pathlib import Path

from asyncsync.stores.local import listing
from asyncsync.stores.local.listing import Listings


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_a_listing_never_goes_on_with_one_that_began_earlier(tmp_path: Path, monkeypatch) -> None:
    """Each listing shows every object that was there when it began."""
    monkeypatch.setattr(listing, "PAGE_SIZE", 2)
    make(tmp_path, "a", "b", "c")
    listings, later = Listings(str(tmp_path)), []
    look = listing._ListingWalk._object

    def put_and_list(walk, key, entry):
        """While the first listing reads, an object comes and another listing begins."""
        monkeypatch.setattr(listing._ListingWalk, "_object", look)
        make(tmp_path, "d")
        later.append(listings.page("", folded=False, token=None))
        return look(walk, key, entry)

    monkeypatch.setattr(listing._ListingWalk, "_object", put_and_list)
    earlier = listings.page("", folded=False, token=None)
    assert earlier.token == later[0].token == "b"
    rest = listings.page("", folded=False, token="b")
    assert [info.key for info in rest.objects] == ["c", "d"]


def test_a_directory_that_becomes_a_file_between_pages_is_no_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(listing, "PAGE_SIZE", 2)
    make(tmp_path, "d/a", "d/b", "d/c", "d/d", "e")
    listings = Listings(str(tmp_path))
    token = listings.page("", folded=False, token=None).token
    for path in (tmp_path / "d").iterdir():
        path.unlink()
    (tmp_path / "d").rmdir()
    make(tmp_path, "d")
    rest = listings.page("", folded=False, token=token)
    assert "e" in [info.key for info in rest.objects]
