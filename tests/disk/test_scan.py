"""A scan of a directory that changes meanwhile."""

import os
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("path", [b"bad\xff/file", b"bad\xff/deep/file", b"good/bad\xff", b"bad\xff/f\xc3\xa9"])
@pytest.mark.parametrize("rules", [Rules(), Rules(include=("*",))])
def test_a_name_no_store_can_hold_is_refused_wherever_it_is(tmp_path: Path, path: bytes, rules: Rules) -> None:
    full = os.path.join(os.fsencode(tmp_path), path)
    os.makedirs(os.path.dirname(full))
    for name in (full, os.fsencode(tmp_path / "mine")):
        with open(name, "wb") as file:
            file.write(b"1")
    found = scan(str(tmp_path), rules)
    assert [file.path for file in found.files] == ["mine"]
    assert found.refused == [os.fsdecode(path)]
