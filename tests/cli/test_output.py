"""Output of the command, for people and as JSON."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from asyncsync.cli.ls import short_metrics
from asyncsync.cli.meters import LineMeter, Meter, bar_meter
from asyncsync.cli.output import Output, describe, summary
from asyncsync.events import FileProgress, Progress
from asyncsync.report import SyncReport
from asyncsync.units import counted, duration_text, size_text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (1 << 52, "4096.0 TiB")]
)
def test_bytes_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (0.84, "0.8 s"), (42, "42 s"), (180, "3 min"), (18_000, "5 h"), (200_000, "2 d")],
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_one_file_is_not_one_files() -> None:
    assert (counted(1, "file"), counted(1024, "file")) == ("1 file", "1,024 files")


def test_an_error_is_one_line_with_its_notes() -> None:
    error = ValueError("first\n  line")
    error.add_note("and a note")
    assert describe(error) == "first line; and a note"
    assert describe(KeyError()) == "KeyError"


def test_a_document_is_json_even_where_metrics_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).document({"loss": float("nan"), "report": SyncReport(warnings=("a",)), 1: {2}})
    document = json.loads(capsys.readouterr().out)
    assert document["loss"] is None
    assert document["report"]["warnings"] == ["a"]
    assert document["1"] == [2]


def test_with_json_nothing_but_the_document_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.line("for people")
    output.table(("a",), [("b",)])
    output.document({"ok": True})
    assert capsys.readouterr().out == '{"ok": true}\n'


def test_without_a_terminal_a_table_is_parted_by_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("name", "error"), [("a", "two\nlines\there")])
    assert capsys.readouterr().out == "name\terror\na\ttwo lines here\n"


def test_long_lists_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    Output().lines([str(number) for number in range(25)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "  and 5 more (--json shows all)"


def test_a_meter_knows_how_far_a_transfer_came() -> None:
    meter = Meter()
    assert meter.text() == "nothing yet"
    meter.update(Progress(tree="", files_done=1, files_total=3, bytes_done=1024, bytes_total=4096))
    assert meter.text() == "1 of 3 files, 1.0 KiB of 4.0 KiB"


def progress(done: int, *files: FileProgress) -> Progress:
    return Progress(tree="", files_done=1, files_total=3, bytes_done=done, bytes_total=1 << 30, files=files)


def test_rate_and_time_left_are_those_of_the_last_seconds() -> None:
    """In the units of the sizes, and without a jump when a transfer pauses and goes on."""
    now = [0.0]
    meter = Meter(lambda: now[0])
    assert meter.speed() == ""
    for second in range(31):
        now[0] = float(second)
        meter.update(progress(min(second, 20) * (10 << 20) + max(0, second - 20) * (40 << 20)))
    assert meter.speed() == "40.0 MiB/s, 11 s left"


def test_a_line_names_the_large_files_and_comes_every_ten_seconds() -> None:
    now, lines = [0.0], list[str]()
    meter = LineMeter(lines.append, "sending", lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        meter.update(progress(second << 20, FileProgress("model.bin", second, 50)))
    assert lines == [
        "sending: 1 of 3 files, 10.0 MiB of 1.0 GiB; 1.0 MiB/s, 17 min left; model.bin 20 %",
        "sending: 1 of 3 files, 20.0 MiB of 1.0 GiB; 1.0 MiB/s, 17 min left; model.bin 40 %",
    ]


def test_each_large_file_has_a_bar_while_it_is_in_flight() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with bar_meter("sending", console) as meter:
        meter.update(progress(1 << 20, FileProgress("a" * 60 + "/[bold]", 1 << 20, 8 << 20), FileProgress("b", 5, 9)))
        meter.update(progress(4 << 20, FileProgress("b", 7, 9)))
        shown = [(task.description.strip(), task.fields["detail"]) for task in meter.bars.tasks]
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert [name for name, _ in shown] == ["sending 1/3 files", "b"]
    assert shown[1][1] == "7 B of 9 B"
    assert "1.0 MiB of 8.0 MiB" in text
    assert "aaa/[bold]" in text
    assert " MB" not in text


def test_a_copy_counts_the_files_that_the_store_copied_itself() -> None:
    report = SyncReport(files_sent=1, bytes_sent=1024, files_copied=2, bytes_copied=2048)
    assert summary(report, verb="copied", where="to x").startswith("copied 3 files (3.0 KiB) to x in ")
    assert summary(report, verb="sent", where="to x").startswith("sent 1 file (1.0 KiB) to x in ")


def test_a_summary_shows_the_transferred_bytes() -> None:
    report = SyncReport(
        bytes_total=3072, files_sent=2, bytes_sent=2048, files_skipped=1, requests=4, seconds=0.5, files_deleted=1
    )
    assert summary(report, verb="sent", where="to x") == (
        "sent 2 files (2.0 KiB) to x in 0.5 s; 1 unchanged; 4 requests; 3.0 KiB in total; 1 deleted"
    )


def test_metrics_are_shortened_and_nested_ones_named() -> None:
    metrics = {"loss": 0.123456, "eval": {"acc": 1}, "list": [1], "a": "x" * 30, "b": 1, "c": 2}
    assert short_metrics(metrics) == f"loss=0.1235 eval/acc=1 a={'x' * 21}... b=1 ..."
    assert short_metrics({}) == "-"
