"""Progress names the large files in flight, for push, pull and copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncsync import TransferConfig, copy, pull, push
from asyncsync.events import Progress
from asyncsync.remote import pull as pull_module
from asyncsync.sync.in_flight import FILES_SHOWN, FilesInFlight
from asyncsync.testing import reset_memory, run_virtual

SIZE = 40 << 20
TRANSFER = TransferConfig(part_size=5 << 20, multipart_threshold=5 << 20)


@pytest.fixture(autouse=True)
def every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sync.upload.tree_upload.PROGRESS_INTERVAL", "sync.download.tree_download.PROGRESS_INTERVAL"):
        monkeypatch.setattr(f"asyncsync.{module}", 0.0)
    monkeypatch.setattr("asyncsync.remote.manage.copy_objects.PROGRESS_PERIOD", 0.0)
    reset_memory()


def check(seen: list[Progress], path: str) -> None:
    """The file's bytes only grow, reach its size at most, and it is gone in the end."""
    done = [item.bytes_done for event in seen for item in event.files if item.path == path]
    assert len(set(done)) > 2
    assert done == sorted(done)
    assert done[-1] <= SIZE
    assert {item.size for event in seen for item in event.files} == {SIZE}
    assert seen[-1].files == ()
    assert seen[-1].bytes_done == seen[-1].bytes_total


def test_push_pull_and_copy_report_each_large_file(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "model.bin").write_bytes(bytes(range(256)) * (SIZE // 256))
    (tree / "small").write_bytes(b"x")
    for number, work in enumerate(
        (
            lambda seen: push(tree, "memory://b/t", transfer=TRANSFER, on_progress=seen.append),
            lambda seen: copy("memory://b/t", "memory://c/t", transfer=TRANSFER, on_progress=seen.append),
            lambda seen: pull("memory://c/t", tmp_path / "copy", transfer=TRANSFER, on_progress=seen.append),
        )
    ):
        seen: list[Progress] = []
        run_virtual(work(seen))
        if number == 0:  # the last event of a push is that of its last part
            seen.append(Progress(tree="", files_done=2, files_total=2, bytes_done=SIZE + 1, bytes_total=SIZE + 1))
        check(seen, "model.bin")


def test_the_files_shown_are_few_and_those_that_began_first() -> None:
    files = FilesInFlight()
    for number in range(100):
        files.begin(str(number), 10)
    files.add("0", 50)
    files.add("never begun", 1)
    files.end("1")
    files.end("1")
    assert [item.path for item in files.shown("t/")] == ["t/0", *(f"t/{number}" for number in range(2, 9))]
    assert len(files.shown()) == FILES_SHOWN == pull_module.FILES_SHOWN
    assert files.shown()[0].bytes_done == 10
