"""The progress of a transfer, with its rate and the time that is left: bars on a terminal, otherwise lines."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from asyncsync.events import FileProgress, Progress
from asyncsync.units import counted, duration_text, size_text

LINE_PERIOD = 10.0
"""Seconds between progress lines if stderr is not a terminal."""
RATE_SECONDS = 10.0
"""The rate is that of the last so many seconds."""
FILES_IN_LINE = 3
NAME_WIDTH = 36
"""Characters of a path beside its bar; of a longer one the end is shown."""


class Meter:
    """Keeps the last progress of a transfer and its rate, and shows nothing. ``clock`` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.last: Progress | None = None
        self.clock = clock
        self._samples: deque[tuple[float, int]] = deque()
        """Time and bytes done, at most five a second for RATE_SECONDS."""

    def update(self, progress: Progress) -> None:
        """Take a Progress event."""
        now = self.clock()
        self._samples.append((now, progress.bytes_done))
        while now - self._samples[0][0] > RATE_SECONDS and len(self._samples) > 2:
            self._samples.popleft()
        self.last = progress
        self.show(progress)

    def show(self, progress: Progress) -> None:
        """Show the progress; a subclass implements this."""

    @property
    def rate(self) -> float:
        """Bytes per second; 0 if it is not known yet."""
        if len(self._samples) < 2:
            return 0.0
        (first, before), (last, now) = self._samples[0], self._samples[-1]
        return max(0.0, (now - before) / (last - first)) if last > first else 0.0

    def text(self) -> str:
        """The last progress, for people."""
        if self.last is None:
            return "nothing yet"
        done = self.last
        return (
            f"{done.files_done:,} of {counted(done.files_total, 'file')}, "
            f"{size_text(done.bytes_done)} of {size_text(done.bytes_total)}"
        )

    def speed(self) -> str:
        """Rate and time left, for people; empty while they are not known."""
        if not self.rate or self.last is None:
            return ""
        left = (self.last.bytes_total - self.last.bytes_done) / self.rate
        return f"{size_text(self.rate)}/s, {duration_text(left)} left"


class BarMeter(Meter):
    """Shows a bar for the whole transfer on a terminal, and one for each large file in flight."""

    def __init__(self, bars: Bars, verb: str) -> None:
        super().__init__()
        self.bars, self._verb = bars, verb
        self._all: TaskID = bars.add_task(verb, total=None, detail="")
        self._files: dict[str, TaskID] = {}

    def show(self, progress: Progress) -> None:
        """Move the bars."""
        detail = f"{size_text(progress.bytes_done)} of {size_text(progress.bytes_total)}  {self.speed()}"
        text = f"{self._verb} {progress.files_done:,}/{progress.files_total:,} files"
        self.bars.update(
            self._all, description=text, completed=progress.bytes_done, total=progress.bytes_total, detail=detail
        )
        for path in self._files.keys() - {item.path for item in progress.files}:
            self.bars.remove_task(self._files.pop(path))
        for item in progress.files:
            self._show_file(item)

    def _show_file(self, item: FileProgress) -> None:
        if item.path not in self._files:
            self._files[item.path] = self.bars.add_task(_short(item.path), total=item.size, detail="")
        detail = f"{size_text(item.bytes_done)} of {size_text(item.size)}"
        self.bars.update(self._files[item.path], completed=item.bytes_done, detail=detail)


@contextmanager
def bar_meter(verb: str, console: Console | None = None) -> Iterator[BarMeter]:
    """Bars on stderr that vanish at the end of the block."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[detail]}")
    with Bars(*columns, console=console or Console(stderr=True), transient=True) as bars:
        yield BarMeter(bars, verb)


class LineMeter(Meter):
    """Prints a progress line every LINE_PERIOD seconds."""

    def __init__(self, note: Callable[[str], None], verb: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._note, self._verb = note, verb
        self._next = clock() + LINE_PERIOD

    def show(self, progress: Progress) -> None:
        """Print a line, at most one per LINE_PERIOD."""
        if self.clock() < self._next:
            return
        self._next = self.clock() + LINE_PERIOD
        files = [f"{item.path} {100 * item.bytes_done // max(1, item.size)} %" for item in progress.files]
        parts = [self.text(), self.speed(), ", ".join(files[:FILES_IN_LINE])]
        self._note(f"{self._verb}: {'; '.join(part for part in parts if part)}")


def _short(path: str) -> str:
    return f"  {path}" if len(path) <= NAME_WIDTH else f"  ...{path[3 - NAME_WIDTH :]}"
