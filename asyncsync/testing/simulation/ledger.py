"""What a simulation knows to be true: every byte that was reported, what was acknowledged, and what the store was seen
to hold. It looks at the bucket itself, never through the library that it judges, except for the format of records and
manifests."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import google_crc32c

from asyncsync.planning.manifest import MANIFEST, Manifest
from asyncsync.sync.records.model import TRIAL_RECORD
from asyncsync.testing.memory import Bucket

NAME = "e"
"""Of the experiment, and so the prefix of everything in the bucket."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(slots=True)
class Reported:
    """One directory that one process has reported as (its rank's part of) a checkpoint."""

    number: int
    trial: str
    step: int
    rank: int
    files: dict[str, bytes]
    directory: str
    by: str
    owned: bool
    era: int
    whole: bool = False
    """Whether the store was seen to hold a manifest and every byte of it."""
    stored_as: str = ""
    """Then: the name of the checkpoint."""
    removed_by_user: bool = False


@dataclass(slots=True)
class Acknowledged:
    """What a process was told is durable."""

    trial: str
    name: str
    part: Reported
    time: float


@dataclass(slots=True)
class _TrialSeen:
    """The record of a trial as it was last seen."""

    epoch: int = 0
    following: int = 0
    names: dict[str, int] = field(default_factory=dict)
    retired: set[str] = field(default_factory=set)
    """Left out while enough newer whole ones were named."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Left out without; and what was named then."""


class Ledger:
    """``keep``: the ``num_to_keep`` of all processes. ``now``: virtual seconds."""

    def __init__(self, bucket: Bucket, keep: int | None, now: Callable[[], float]) -> None:
        self._bucket, self._keep, self._now = bucket, keep, now
        self.reports: list[Reported] = []
        self.acknowledged: list[Acknowledged] = []
        self.violations: list[Violation] = []
        self.era = 0
        """Raised when the experiment is wiped: nothing that was promised before is asked for."""
        self._eras: dict[str, int] = {}
        """In which one a process was first heard of."""
        self._raised: set[str] = set()
        """Trials whose manifest landed after the wipe, sent by a process from before: nobody promises what it names."""
        self._disowned: set[tuple[str, str]] = set()
        """Trial and checkpoint that a record names which landed after the wipe, sent by a process from before."""
        self._trials: dict[str, _TrialSeen] = {}
        self._trace = hashlib.sha256()
        self.events = 0
        self.lines: list[str] | None = None
        self.counts: dict[str, int] = {}

    # the trace

    def note(self, text: str) -> None:
        """One line of the trace; must not depend on anything but the seed."""
        line = f"{self._now():.6f} {text}"
        self._trace.update(line.encode() + b"\n")
        self.events += 1
        if self.lines is not None:
            self.lines.append(line)

    def count(self, what: str) -> None:
        """For the statistics."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def digest(self) -> str:
        """Of the trace."""
        return self._trace.hexdigest()[:16]

    def broken(self, kind: str, text: str) -> None:
        """A promise is; told once."""
        found = Violation(kind, text)
        if found not in self.violations:
            self.violations.append(found)
            self.note(f"BROKEN {found}")

    # what processes say

    def report(
        self, trial: str, step: int, rank: int, directory: str, files: Mapping[str, bytes], by: str, *, owned: bool
    ) -> Reported:
        """A directory is about to be reported."""
        part = Reported(len(self.reports), trial, step, rank, dict(files), directory, by, owned, self.era)
        self.reports.append(part)
        return part

    def acknowledge(self, part: Reported, name: str) -> None:
        """A process was told that it is durable: from now on it is asked for."""
        if any(item.part is part for item in self.acknowledged):
            return
        self.note(f"ack {part.by} {part.trial} {name} report {part.number}")
        self.count("acknowledged")
        done = Acknowledged(part.trial, name, part, self._now())
        self.acknowledged.append(done)
        self._check(done, "when it was acknowledged")

    def wiped(self) -> None:
        """The user has removed the experiment."""
        self.era += 1
        self._trials.clear()
        self.note("wipe")

    # what the store holds

    def landed(self, by: str, operation: str, key: str, result: str) -> None:
        """A request has taken effect, or was refused."""
        self.note(f"land {by} {operation} {key} {result}".replace("\n", " "))
        self._eras.setdefault(by, self.era)
        if result != "ok" or operation in ("delete", "put_part", "copy_part", "create_multipart"):
            return
        path = key.removeprefix(f"{NAME}/")
        trial = path.partition("/")[0]
        if self._eras[by] < self.era and path == f"{trial}/{MANIFEST}":
            self._raised.add(trial)
        if path == f"{trial}/{TRIAL_RECORD}":
            self._record_landed(trial, by)
        elif path.endswith(f"/{MANIFEST}") and path.split("/")[1].startswith("checkpoint_"):
            self._manifest_landed(trial, path.split("/")[1])

    def _record_landed(self, trial: str, by: str) -> None:
        record = self._json(f"{NAME}/{trial}/{TRIAL_RECORD}")
        seen = self._trials.setdefault(trial, _TrialSeen())
        epoch, following = int(record["epoch"]), int(record["next_checkpoint"])
        names = {item["name"]: int(item["number"]) for item in record["checkpoints"]}
        numbers = list(names.values())
        where = f"{trial} as {by} wrote it"
        if epoch < seen.epoch:
            self.broken("epoch goes back", f"{where}: {seen.epoch} -> {epoch}")
        if following < seen.following:
            self.broken("number goes back", f"{where}: next {seen.following} -> {following}")
        if numbers != sorted(numbers) or (numbers and numbers[-1] >= following):
            self.broken("numbers out of order", f"{where}: {numbers}, next {following}")
        if self._eras[by] < self.era:
            self._disowned |= {(trial, name) for name in names}
        for name in names:
            if (
                name not in seen.names
                and (trial, name) not in self._disowned
                and (problem := self.problem(trial, name))
            ):
                self.broken("named, not whole", f"{where}: {name}: {problem}")
        for name, number in seen.names.items():
            if name not in names:
                newer = [other for other, its in names.items() if its > number]
                if self._keep is not None and len(newer) >= self._keep:
                    seen.retired.add(name)
                    self._check_retired(trial, name, newer)
                else:
                    seen.dropped[name] = f"left out by {by}, which names {sorted(names)}"
        seen.epoch, seen.following, seen.names = max(epoch, seen.epoch), max(following, seen.following), names

    def _check_retired(self, trial: str, name: str, newer: list[str]) -> None:
        """What retires a checkpoint was reported after it, not only given a higher number."""
        order = {part.stored_as: part.number for part in self.reports if part.whole and part.trial == trial}
        later = [other for other in newer if order.get(other, 0) > order.get(name, 0)]
        acknowledged = any((item.trial, item.name) == (trial, name) for item in self.acknowledged)
        if acknowledged and len(later) < (self._keep or 0):
            self.broken("retired by an older one", f"{trial}/{name} by {sorted(set(newer) - set(later))}")

    def _manifest_landed(self, trial: str, name: str) -> None:
        problem = self.problem(trial, name)
        if problem:
            self.count("manifest that is not whole")
            self.note(f"{trial}/{name} not whole: {problem}")
            return
        for part in self.reports:
            if part.trial == trial and not part.whole and not self._differs(part, f"{NAME}/{trial}/{name}/"):
                part.whole, part.stored_as = True, name
                self._check_order(trial, part.by)

    def problem(self, trial: str, name: str) -> str | None:
        """Why a checkpoint is not whole: its manifest is missing, or what it names is not there."""
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
                return f"{path} has other bytes than the manifest says: {data.data[:40]!r}"
        return self.mixed({path: self._bucket.objects[prefix + path].data for path in manifest.files})

    def mixed(self, files: Mapping[str, bytes]) -> str | None:
        """Why these files are not what was reported as one step, by as many ranks as there were."""
        parts: dict[int, Reported] = {}
        for path, data in sorted(files.items()):
            head = data.split(b"|", 1)[0]
            if head == b"shared":
                continue
            if head.startswith(b"report ") and head[7:].isdigit() and int(head[7:]) < len(self.reports):
                part = self.reports[int(head[7:])]
                parts[part.number] = part
            else:
                return f"{path} holds bytes that nobody reported: {data[:40]!r}"
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
            return f"not what was reported: missing {missing}, unknown {other}, changed {changed}"
        return None

    def check_end(self) -> None:
        """All that was promised, once everything is quiet."""
        for item in self.acknowledged:
            self._check(item, "at the end")
        for trial, seen in sorted(self._trials.items()):
            for name in seen.names:
                if (trial, name) not in self._disowned and (problem := self.problem(trial, name)):
                    self.broken("named, not whole", f"{trial}/{name} at the end: {problem}")
        for part in self.reports:
            if not part.whole and not part.removed_by_user and not self._kept(part):
                self.broken("deleted, not stored", f"report {part.number} of {part.by}")

    def _kept(self, part: Reported) -> bool:
        return all(os.path.exists(f"{part.directory}/{path}") for path in part.files)

    def check_tree(self, trial: str) -> None:
        """After a clean end: what the manifest of the trial's own files says is in the store."""
        prefix = f"{NAME}/{trial}/"
        found = self._bucket.objects.get(prefix + MANIFEST)
        if found is None:
            self.broken("artifacts", f"{trial} ended well and has no manifest")
            return
        for path, entry in sorted(Manifest.from_bytes(found.data).files.items()):
            data = self._bucket.objects.get(prefix + path)
            if data is None and trial in self._raised:
                continue
            if data is None:
                self.broken("artifacts", f"{trial}/{path} is in the manifest and not in the store")
            elif len(data.data) != entry.size or google_crc32c.value(data.data) != entry.crc32c:
                self.broken("artifacts", f"{trial}/{path} has other bytes than the manifest says")

    # inside

    def _check(self, item: Acknowledged, when: str) -> None:
        part, where = item.part, f"{item.trial}/{item.name} of {item.part.by} (report {item.part.number}) {when}"
        if part.era != self.era:
            return
        seen = self._trials.get(item.trial, _TrialSeen())
        if item.name in seen.retired or (item.name not in seen.names and self._made_obsolete(item, seen)):
            return
        if item.name in seen.dropped:
            self.broken("acknowledged, dropped", f"{where}: {seen.dropped[item.name]}")
        elif item.name not in seen.names and not part.rank:
            # another rank than 0 hears of it when it is whole; who resumes takes in what rank 0 had not named yet
            self.broken("acknowledged, not named", f"{where}: the record names {sorted(seen.names)}")
        elif problem := self.problem(item.trial, item.name):
            self.broken("acknowledged, not whole", f"{where}: {problem}")
        elif problem := self._differs(part, f"{NAME}/{item.trial}/{item.name}/"):
            self.broken("acknowledged, changed", f"{where}: {problem}")

    def _made_obsolete(self, item: Acknowledged, seen: _TrialSeen) -> bool:
        """It came behind newer ones, as when time was short: the write that would have named it retired it."""
        number = _number(item.name)
        return self._keep is not None and sum(other > number for other in seen.names.values()) >= self._keep

    def _check_order(self, trial: str, by: str) -> None:
        """What one process reported later has a higher number: else retention takes the newer for the older."""
        mine = [
            part for part in self.reports if part.whole and (part.trial, part.by, part.era) == (trial, by, self.era)
        ]
        for before, part in itertools.pairwise(mine):
            if _number(before.stored_as) >= _number(part.stored_as):
                text = f"{trial}: {by} reported {before.stored_as} before {part.stored_as}"
                self.broken("numbers against the order of reports", text)

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


def _number(name: str) -> int:
    return int(name.rpartition("_")[2].partition("-")[0])  # one that was given another name has a mark
