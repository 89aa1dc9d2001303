"""The ledger: every byte that was reported, every acknowledgement, and what the store held. It checks the promises.

It reads the bucket directly and never uses the library under test, except for the formats of records and manifests.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import google_crc32c

from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.testing.memory import Bucket

NAME = "e"
"""Name of the experiment, and so the prefix of all objects in the bucket."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(slots=True)
class Reported:
    """A directory that one process reported as a checkpoint, or as its rank's part of one."""

    number: int
    trial: str
    step: int
    rank: int
    files: dict[str, bytes]
    directory: str
    by: str
    owned: bool
    era: int
    complete: bool = False
    """Whether the store held a manifest and every byte at some time."""
    stored_as: str = ""
    """The name of the checkpoint, if it was complete."""
    removed_by_user: bool = False


@dataclass(slots=True)
class Acknowledged:
    """A checkpoint that a process received as durable."""

    trial: str
    name: str
    part: Reported
    time: float


@dataclass(slots=True)
class TrialHistory:
    """The history of a trial's record."""

    epoch: int = 0
    following: int = 0
    names: dict[str, int] = field(default_factory=dict)
    retired: set[str] = field(default_factory=set)
    """Left out of the record while enough newer complete checkpoints were listed."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Left out of the record without that; and the names that were listed then."""


class Ledger:
    """Records reports and acknowledgements, and checks them. ``keep``: ``num_to_keep`` of all processes. ``now``:
    virtual seconds."""

    def __init__(self, bucket: Bucket, keep: int | None, now: Callable[[], float]) -> None:
        self._bucket, self._keep, self._now = bucket, keep, now
        self.reports: list[Reported] = []
        self.acknowledged: list[Acknowledged] = []
        self.violations: list[Violation] = []
        self.era = 0
        """Increased when the experiment is wiped. Promises of earlier eras are void."""
        self._process_eras: dict[str, int] = {}
        """The era in which each process started."""
        self._revived_trials: set[str] = set()
        """Trials whose manifest landed after a wipe, from a process of an earlier era: its content is not promised."""
        self._revived_checkpoints: set[tuple[str, str]] = set()
        """Trial and checkpoint in a record that landed after a wipe, from a process of an earlier era."""
        self._trials: dict[str, TrialHistory] = {}
        self._pinned: set[tuple[str, str]] = set()
        """Trial and checkpoint that a process received as pinned."""
        self._retired_by_user: set[tuple[str, str]] = set()
        """Trial and checkpoint that a process retired, or tried to."""
        self._trace = hashlib.sha256()
        self.events = 0
        self.lines: list[str] | None = None
        self.counts: dict[str, int] = {}

    # the trace

    def note(self, text: str) -> None:
        """Add a line to the trace. It must depend only on the seed."""
        line = f"{self._now():.6f} {text}"
        self._trace.update(line.encode() + b"\n")
        self.events += 1
        if self.lines is not None:
            self.lines.append(line)

    def count(self, what: str) -> None:
        """Count an event for the statistics."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def digest(self) -> str:
        """Hash of the trace."""
        return self._trace.hexdigest()[:16]

    def violate(self, kind: str, text: str) -> None:
        """Record a broken promise, once."""
        found = Violation(kind, text)
        if found not in self.violations:
            self.violations.append(found)
            self.note(f"BROKEN {found}")

    # reports of processes

    def report(
        self, trial: str, step: int, rank: int, directory: str, files: Mapping[str, bytes], by: str, *, owned: bool
    ) -> Reported:
        """A process is about to report a directory."""
        part = Reported(len(self.reports), trial, step, rank, dict(files), directory, by, owned, self.era)
        self.reports.append(part)
        return part

    def acknowledge(self, part: Reported, name: str) -> None:
        """A process received a checkpoint as durable. From now on it must be complete."""
        if any(item.part is part for item in self.acknowledged):
            return
        self.note(f"ack {part.by} {part.trial} {name} report {part.number}")
        self.count("acknowledged")
        done = Acknowledged(part.trial, name, part, self._now())
        self.acknowledged.append(done)
        self._check(done, "when it was acknowledged")

    def curates(self, verb: str, trial: str, name: str) -> None:
        """A process is about to pin, unpin or retire a checkpoint, or was ``refused`` to retire it."""
        self.note(f"{verb} {trial}/{name}")
        if verb == "retire":
            self._retired_by_user.add((trial, name))
        elif verb == "refused":
            self._retired_by_user.discard((trial, name))
        elif verb == "unpin":
            self._pinned.discard((trial, name))

    def curated(self, verb: str, trial: str, name: str) -> None:
        """It has done so, and the result is stored."""
        self.count(verb)
        if verb == "pin":
            self._pinned.add((trial, name))
        if verb == "retire" and name in self._trials.get(trial, TrialHistory()).names:
            self.violate("retired, listed", f"{trial}/{name}: the record still lists it")

    def wiped(self) -> None:
        """The user removed the experiment."""
        self.era += 1
        self._trials.clear()
        self._pinned.clear()
        self._retired_by_user.clear()
        self.note("wipe")

    # contents of the store

    def landed(self, by: str, operation: str, key: str, result: str) -> None:
        """A request took effect or was refused."""
        self.note(f"land {by} {operation} {key} {result}".replace("\n", " "))
        self._process_eras.setdefault(by, self.era)
        if result != "ok" or operation in ("delete", "put_part", "copy_part", "create_multipart"):
            return
        path = key.removeprefix(f"{NAME}/")
        trial = path.partition("/")[0]
        if self._process_eras[by] < self.era and path == f"{trial}/{MANIFEST}":
            self._revived_trials.add(trial)
        if path == f"{trial}/{TRIAL_RECORD}":
            self._record_landed(trial, by)
        elif path.endswith(f"/{MANIFEST}") and path.split("/")[1].startswith("checkpoint_"):
            self._manifest_landed(trial, path.split("/")[1])

    def _record_landed(self, trial: str, by: str) -> None:
        record = self._json(f"{NAME}/{trial}/{TRIAL_RECORD}")
        seen = self._trials.setdefault(trial, TrialHistory())
        epoch, following = int(record["epoch"]), int(record["next_checkpoint"])
        names = {item["name"]: int(item["number"]) for item in record["checkpoints"]}
        where = f"{trial} as {by} wrote it"
        self._check_numbers(seen, epoch, following, list(names.values()), where)
        if self._process_eras[by] < self.era:
            self._revived_checkpoints |= {(trial, name) for name in names}
        for name in [name for name in names if name not in seen.names]:
            if (trial, name) not in self._revived_checkpoints and (problem := self.problem(trial, name)):
                self.violate("listed, incomplete", f"{where}: {name}: {problem}")
        self._note_left_out(trial, seen, names, by)
        seen.epoch, seen.following, seen.names = max(epoch, seen.epoch), max(following, seen.following), names

    def _check_numbers(self, seen: TrialHistory, epoch: int, following: int, numbers: list[int], where: str) -> None:
        if epoch < seen.epoch:
            self.violate("epoch goes back", f"{where}: {seen.epoch} -> {epoch}")
        if following < seen.following:
            self.violate("number goes back", f"{where}: next {seen.following} -> {following}")
        if numbers != sorted(numbers) or (numbers and numbers[-1] >= following):
            self.violate("numbers out of order", f"{where}: {numbers}, next {following}")

    def _note_left_out(self, trial: str, seen: TrialHistory, names: Mapping[str, int], by: str) -> None:
        """Note checkpoints that the record does not list any more: retired, or dropped without reason."""
        for name, number in seen.names.items():
            if name in names:
                continue
            if (trial, name) in self._retired_by_user:
                seen.retired.add(name)
                continue
            if (trial, name) in self._pinned:
                self.violate("pinned, retired", f"{trial}/{name} by {by}, which lists {sorted(names)}")
            newer = [other for other, its in names.items() if its > number]
            if self._keep is not None and len(newer) >= self._keep:
                seen.retired.add(name)
                self._check_retired(trial, name, newer)
            else:
                seen.dropped[name] = f"left out by {by}, which lists {sorted(names)}"

    def _check_retired(self, trial: str, name: str, newer: list[str]) -> None:
        """Check that the checkpoints that retire another one were reported later, or by a process that started later
        and so took the trial over. A higher number alone is not enough."""
        stored = {part.stored_as: part for part in self.reports if part.complete and part.trial == trial}
        later = [other for other in newer if _is_later(stored.get(other), stored.get(name))]
        acknowledged = any((item.trial, item.name) == (trial, name) for item in self.acknowledged)
        if acknowledged and len(later) < (self._keep or 0):
            self.violate("retired by an older one", f"{trial}/{name} by {sorted(set(newer) - set(later))}")

    def _manifest_landed(self, trial: str, name: str) -> None:
        problem = self.problem(trial, name)
        if problem:
            self.count("manifest of an incomplete checkpoint")
            self.note(f"{trial}/{name} incomplete: {problem}")
            return
        for part in self.reports:
            if part.trial == trial and not part.complete and not self._differs(part, f"{NAME}/{trial}/{name}/"):
                part.complete, part.stored_as = True, name
                self._check_order(trial, part.by)

    def problem(self, trial: str, name: str) -> str | None:
        """Why a checkpoint is incomplete: its manifest or a file in it is missing or wrong. None if it is complete."""
        prefix = f"{NAME}/{trial}/{name}/"
        found = self._bucket.objects.get(prefix + MANIFEST)
        if found is None:
            return "no manifest"
        manifest = Manifest.from_bytes(found.data)
        if not manifest.files:
            return "no files"
        for path, entry in sorted(manifest.files.items()):
            data = self._bucket.objects.get(prefix + path)
            if data is None:
                return f"{path} is missing"
            if len(data.data) != entry.size or google_crc32c.value(data.data) != entry.crc32c:
                return f"{path} differs from its manifest entry: {data.data[:40]!r}"
        return self.mixed({path: self._bucket.objects[prefix + path].data for path in manifest.files})

    def mixed(self, files: Mapping[str, bytes]) -> str | None:
        """Why these files are not those of one step of all ranks. None if they are."""
        parts: dict[int, Reported] = {}
        for path, data in sorted(files.items()):
            head = data.split(b"|", 1)[0]
            if head == b"shared":
                continue
            if head.startswith(b"report ") and head[7:].isdigit() and int(head[7:]) < len(self.reports):
                part = self.reports[int(head[7:])]
                parts[part.number] = part
            else:
                return f"{path} holds bytes that no process reported: {data[:40]!r}"
        steps = {(part.trial, part.step) for part in parts.values()}
        if len(steps) > 1:
            return f"mixed steps {sorted(steps)}"
        ranks = [part.rank for part in parts.values()]
        if len(ranks) != len(set(ranks)):
            return f"parts of several reports: {sorted((part.by, part.number) for part in parts.values())}"
        wanted: dict[str, bytes] = {}
        for part in parts.values():
            wanted |= part.files
        if wanted != dict(files):
            missing, other = sorted(wanted.keys() - files.keys()), sorted(files.keys() - wanted.keys())
            changed = sorted(path for path in wanted.keys() & files.keys() if wanted[path] != files[path])
            return f"differs from the report: missing {missing}, unknown {other}, changed {changed}"
        return None

    def check_end(self) -> None:
        """Check all promises at the end of the schedule."""
        for item in self.acknowledged:
            self._check(item, "at the end")
        for trial, seen in sorted(self._trials.items()):
            for name in seen.names:
                if (trial, name) not in self._revived_checkpoints and (problem := self.problem(trial, name)):
                    self.violate("listed, incomplete", f"{trial}/{name} at the end: {problem}")
        for part in self.reports:
            if not part.complete and not part.removed_by_user and not self._kept(part):
                self.violate("deleted, not stored", f"report {part.number} of {part.by}")

    def _kept(self, part: Reported) -> bool:
        return all(os.path.exists(f"{part.directory}/{path}") for path in part.files)

    def check_tree(self, trial: str) -> None:
        """Check, after a clean end, that the store holds the files in the manifest of the trial's artifacts."""
        prefix = f"{NAME}/{trial}/"
        found = self._bucket.objects.get(prefix + MANIFEST)
        if found is None:
            self.violate("artifacts", f"{trial} ended without error, but has no manifest")
            return
        for path, entry in sorted(Manifest.from_bytes(found.data).files.items()):
            data = self._bucket.objects.get(prefix + path)
            if data is None and trial in self._revived_trials:
                continue
            if data is None:
                self.violate("artifacts", f"{trial}/{path} is in the manifest, but not in the store")
            elif len(data.data) != entry.size or google_crc32c.value(data.data) != entry.crc32c:
                self.violate("artifacts", f"{trial}/{path} differs from its manifest entry")

    # helpers

    def _check(self, item: Acknowledged, when: str) -> None:
        part, where = item.part, f"{item.trial}/{item.name} of {item.part.by} (report {item.part.number}) {when}"
        if part.era != self.era:
            return
        seen = self._trials.get(item.trial, TrialHistory())
        if item.name in seen.retired or (item.name not in seen.names and self._is_superseded(item, seen)):
            return
        if item.name in seen.dropped:
            self.violate("acknowledged, dropped", f"{where}: {seen.dropped[item.name]}")
        elif item.name not in seen.names and not part.rank:
            # other ranks see it once it is complete; a resuming rank 0 adopts what it had not listed yet
            self.violate("acknowledged, not listed", f"{where}: the record lists {sorted(seen.names)}")
        elif problem := self.problem(item.trial, item.name):
            self.violate("acknowledged, incomplete", f"{where}: {problem}")
        elif problem := self._differs(part, f"{NAME}/{item.trial}/{item.name}/"):
            self.violate("acknowledged, changed", f"{where}: {problem}")

    def _is_superseded(self, item: Acknowledged, seen: TrialHistory) -> bool:
        """Whether newer checkpoints retired it in the write that would have listed it, as after a flush with a
        deadline."""
        number = _number(item.name)
        return self._keep is not None and sum(other > number for other in seen.names.values()) >= self._keep

    def _check_order(self, trial: str, by: str) -> None:
        """Check that later reports of a process have higher numbers: otherwise retention takes the newer for the
        older."""
        mine = [
            part for part in self.reports if part.complete and (part.trial, part.by, part.era) == (trial, by, self.era)
        ]
        for before, part in itertools.pairwise(mine):
            if _number(before.stored_as) >= _number(part.stored_as):
                text = f"{trial}: {by} reported {before.stored_as} before {part.stored_as}"
                self.violate("numbers not in the order of reports", text)

    def _differs(self, part: Reported, prefix: str) -> str | None:
        for path, data in part.files.items():
            found = self._bucket.objects.get(prefix + path)
            if found is None:
                return f"{path} is missing"
            if found.data != data:
                return f"{path} holds {found.data[:40]!r} instead of {data[:40]!r}"
        return None

    def _json(self, key: str) -> dict[str, Any]:
        return json.loads(self._bucket.objects[key].data)  # type: ignore[no-any-return]


def _is_later(part: Reported | None, than: Reported | None) -> bool:
    if part is None or than is None:
        return part is not None
    return part.number > than.number or _start_of(part.by) > _start_of(than.by)


def _start_of(process: str) -> int:
    """Processes have the order of their starts in their names."""
    return int(process.rpartition("-")[2])


def _number(name: str) -> int:
    return int(name.rpartition("_")[2].partition("-")[0])  # a checkpoint that was renamed has a mark
