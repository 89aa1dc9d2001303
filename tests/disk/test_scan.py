"""A scan of a directory that changes meanwhile."""

from pathlib import Path

from asyncsync.disk.scan import scan
from asyncsync.planning.patterns import Rules


def test_a_directory_marked_during_the_scan_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"12")
    (tmp_path / "trial" / "deep").mkdir(parents=True)
    for name in ("trial/known", "trial/new", "trial/deep/new"):
        (tmp_path / name).write_bytes(b"123")

    def marked_meanwhile(path: str, *_: int) -> bool:
        if path.startswith("trial/"):
            (tmp_path / "trial" / ".asyncsync").mkdir(exist_ok=True)
        return path.endswith("known")

    found = scan(str(tmp_path), Rules(skip_marked=True), marked_meanwhile)
    assert [file.path for file in found.files] == ["mine"]
    assert (found.same, found.bytes_total, found.warnings) == (0, 2, [])
