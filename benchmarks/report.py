"""Tables: one a case, and one of the figures that asyncsync wants to reach."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cases import EMULATORS

MB = 1e6
UP = ("small", "large", "trials")
GCS = ("gcsfs", "gcloud-aio-storage")
LAGS = ("lag_p50_s", "lag_p99_s", "lag_max_s", "lag_idle_p99_s", "ran_p99_s", "ran_max_s")


def medians(entry: dict) -> dict[str, dict[str, float]]:
    """Peer -> the median of each value over its runs; of the longest lag the worst."""
    found = {}
    for name, runs in entry["runs"].items():
        found[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        found[name]["runs"] = len(runs)
        for key in ("lag_max_s", "ran_max_s"):
            if key in found[name]:
                found[name][key] = max(run[key] for run in runs)
    return found


def heading(known: dict) -> str:
    calls = "\n".join(f"- {name} {version}: {known['calls'][name]}" for name, version in known["versions"].items())
    load = " ".join(str(value) for value in known["load"])
    size = ", smaller data than the real ones" if known["quick"] else ""
    return (
        f"{known['time']}: {known['machine']}, Python {known['python']}, asyncsync at {known['commit']}, "
        f"load before the start {load}, files in {known['files_in']}, median of {known['runs']}{size}\n\n{calls}"
    )


def title(entry: dict) -> str:
    what = {"up": "up", "down": "down", "lag": "up, in an event loop", "again": "again"}[entry["kind"]]
    changed = f", {entry['changed']:,} of {entry['files']:,} files changed" if entry["changed"] else ""
    if entry["kind"] == "again" and not changed:
        changed = ", nothing changed"
    return f"### {entry['case']} on {entry['server']}: {entry['what']}, {what}{changed}"


def table(entry: dict) -> str:
    rows = medians(entry)
    lines = [title(entry), "", *(_lag(rows) if entry["kind"] == "lag" else _cost(entry, rows))]
    return "\n".join(lines)


def _cost(entry: dict, rows: dict[str, dict[str, float]]) -> Iterator[str]:
    rate, amount = ("MiB/s", entry["bytes"] / (1 << 20)) if entry["bulky"] else ("files/s", entry["files"])
    best = min((row["work_s"] for name, row in rows.items() if not name.startswith("asyncsync")), default=None)
    yield f"| | work s | {rate} | vs best peer | process s | CPU s | of it work | peak MB | requests | runs |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for name, row in sorted(rows.items(), key=lambda item: item[1]["work_s"]):
        ratio = f"{best / row['work_s']:.2f}" if best else "-"
        requests = f"{row['requests']:,.0f}" if "requests" in row else "-"
        mark = " (estimated from a part)" if "part" in row else ""
        yield (
            f"| {name}{mark} | {row['work_s']:.2f} | {amount / row['work_s']:,.0f} | {ratio} | {row['wall_s']:.2f} "
            f"| {row['cpu_s']:.2f} | {row['work_cpu_s']:.2f} | {row['peak_bytes'] / MB:,.0f} | {requests} "
            f"| {row['runs']} |"
        )


def _lag(rows: dict[str, dict[str, float]]) -> Iterator[str]:
    yield "| | p50 ms | p99 ms | max ms | p99 when idle ms | CPU p99 ms | CPU max ms | wake-ups | work s | runs |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for name, row in rows.items():
        late = " | ".join(f"{row[key] * 1000:.1f}" for key in LAGS)
        yield f"| {name} | {late} | {row['ticks']:,.0f} | {row['work_s']:.2f} | {row['runs']} |"


class Results:
    """Medians by case and server. KeyError for what was not run."""

    def __init__(self, document: dict) -> None:
        self._rows = {(entry["case"], entry["server"]): medians(entry) for entry in document["cases"]}
        self._files = {entry["case"]: entry["files"] for entry in document["cases"]}

    def value(self, case: str, server: str, peer: str, key: str = "work_s") -> float:
        return self._rows[case, server][peer][key]

    def faster(self, case: str, server: str, than: tuple[str, ...], key: str = "work_s") -> float:
        """How many times as fast asyncsync was as the best of `than`."""
        ours = self.value(case, server, "asyncsync", key)
        return (
            min(
                self.value(case, server, name, key if key in self._rows[case, server][name] else "work_s")
                for name in than
            )
            / ours
        )

    def part(self, case: str, server: str, of: str, key: str) -> float:
        """What asyncsync needed of what `of` needed."""
        return self.value(case, server, "asyncsync", key) / self.value(case, server, of, key)

    def peers(self, case: str, server: str) -> tuple[str, ...]:
        return tuple(name for name in self._rows[case, server] if not name.startswith("asyncsync"))

    def per_file(self, case: str, server: str, key: str) -> float:
        """Milliseconds."""
        return self.value(case, server, "asyncsync", key) / self._files[case] * 1000


@dataclass(frozen=True)
class Figure:
    """`get` gives the value; `with_start`, where there is one, the same with the interpreter's start and imports."""

    what: str
    must: float
    aim: float | None
    get: Callable[[Results], float]
    with_start: Callable[[Results], float] | None = None
    most: bool = False
    unit: str = "x"

    def row(self, results: Results) -> str | None:
        try:
            value = self.get(results)
            started = self.with_start(results) if self.with_start else None
        except KeyError:
            return None
        verdict = "held" if (value <= self.must if self.most else value >= self.must) else "**missed**"
        word = "at most" if self.most else "at least"
        aim = f"{self.aim:g}" if self.aim is not None else "-"
        also = f"{started:.2f}" if started is not None else "-"
        return f"| {self.what} | {word} {self.must:g} {self.unit} | {aim} | {value:.2f} | {verdict} | {also} |"


def _ratio(what: str, case: str, server: str, than: tuple[str, ...], must: float, aim: float | None) -> Figure:
    return Figure(
        what, must, aim, lambda r: r.faster(case, server, than), lambda r: r.faster(case, server, than, "wall_s")
    )


def _most(what: str, case: str, server: str, peer: str, key: str, must: float, aim: float | None, unit: str) -> Figure:
    factor = {"MB": 1 / MB, "ms": 1000.0}.get(unit, 1.0)
    return Figure(what, must, aim, lambda r: r.value(case, server, peer, key) * factor, most=True, unit=unit)


FIGURES = (
    _ratio("small files: files/s to s5cmd's", "small", "sink", ("s5cmd",), 1.0, 1.4),
    _ratio("small files: to obstore's", "small", "sink", ("obstore",), 0.7, 1.0),
    _ratio("small files: to pyarrow's as Ray calls it", "small", "sink", ("pyarrow-as-ray",), 3.0, None),
    _ratio("small files, 30 ms: to s5cmd's", "small", "sink-30ms", ("s5cmd",), 1.0, 1.5),
    _ratio("small files, 30 ms: to pyarrow's as Ray calls it", "small", "sink-30ms", ("pyarrow-as-ray",), 60.0, None),
    _ratio("one large file: to the better of obstore and pyarrow with threads", "large", "sink",
           ("obstore", "pyarrow-threads"), 0.9, 1.1),
    _most("one large file: peak memory", "large", "sink", "asyncsync", "peak_bytes", 150, None, "MB"),
    _ratio("one large file, TLS: to obstore", "large", "sink-tls", ("obstore",), 1.0, 1.1),
    _most("unchanged tree, process running: requests", "unchanged", "sink", "asyncsync-running", "requests", 0, 0,
          "requests"),
    _most("unchanged tree, process running: CPU", "unchanged", "sink", "asyncsync-running", "work_cpu_s", 0.7, 0.4,
          "s"),
    _ratio("one large file down, every byte checked: to obstore", "large-down", "seaweedfs", ("obstore",), 0.85, 1.0),
    _most("one large file down: peak memory", "large-down", "seaweedfs", "asyncsync", "peak_bytes", 150, None, "MB"),
    *(
        _most(f"event loop while it sends {of}: {word}", f"lag-{case}", "sink", "asyncsync-engine", key, must, aim,
              "ms")
        for case, of in (("small", "small files"), ("large", "a large file"), ("trials", "trials"))
        for word, key, must, aim in (("p99", "lag_p99_s", 10, 3), ("max", "lag_max_s", 100, None))
    ),
    *(
        _ratio(f"Cloud Storage, {what} on {server}: to the better of gcsfs and gcloud-aio-storage", case, server, GCS,
               1.0, None)
        for case, what, servers in (
            ("gcs-small", "small files", ("sink", "sink-30ms", *EMULATORS)),
            ("gcs-small-down", "small files down", EMULATORS),
            ("gcs-large", "1 GiB", EMULATORS),
            ("gcs-large-down", "1 GiB down", EMULATORS),
        )
        for server in servers
    ),
    *(
        Figure(f"Cloud Storage, small files on {server}: CPU to gcloud-aio-storage's", 1.2, None,
               lambda r, at=server: r.part("gcs-small", at, "gcloud-aio-storage", "work_cpu_s"),
               lambda r, at=server: r.part("gcs-small", at, "gcloud-aio-storage", "cpu_s"), most=True)
        for server in ("sink", "sink-30ms", *EMULATORS)
    ),
    *(
        _most(f"Cloud Storage, {case}: peak memory", case, "gcp-storage-emulator", "asyncsync", "peak_bytes", 150, None,
              "MB")
        for case in ("gcs-large", "gcs-large-down")
    ),
    Figure("CPU per small file, all included", 0.25, 0.16, lambda r: r.per_file("small", "sink", "work_cpu_s"),
           lambda r: r.per_file("small", "sink", "cpu_s"), most=True, unit="ms"),
    *(
        Figure(f"{case} on SeaweedFS: to the fastest peer", 1.0, None,
               lambda r, case=case: r.faster(case, "seaweedfs", r.peers(case, "seaweedfs")),
               lambda r, case=case: r.faster(case, "seaweedfs", r.peers(case, "seaweedfs"), "wall_s"))
        for case in UP
    ),
)  # fmt: skip


def figures(document: dict) -> str:
    """What of FIGURES was run, and whether it was reached."""
    results = Results(document)
    rows = [row for figure in FIGURES if (row := figure.row(results))]
    if not rows:
        return "None of the figures to reach was part of this run."
    head = ["| figure | must | aim | measured | | start-up included |", "|---|--:|--:|--:|---|--:|"]
    return "\n".join(head + rows)


def joined(documents: list[dict]) -> str:
    """Tables of several results; what a later one has replaces what an earlier one has."""
    entries = {(entry["case"], entry["server"]): entry for document in documents for entry in document["cases"]}
    whole = {"cases": list(entries.values())}
    heads = [heading(known) for document in documents for known in document["conditions"]]
    tables = [table(entry) for entry in whole["cases"]]
    return "\n\n".join([*dict.fromkeys(heads), figures(whole), *tables])
