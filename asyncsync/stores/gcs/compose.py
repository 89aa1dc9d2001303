"""Composing objects of a Cloud Storage bucket: at most 32 a request, so more go in a tree.

What a compose makes is guarded by the generation that it replaces, as its sources are by theirs: only so may it be
repeated (Cloud Storage documentation, "Retry strategy"). Intermediate results have names that nobody used before, so
they are only created.

Copying an object inside Cloud Storage: a rewrite, in as many steps as the service wants.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from urllib.parse import quote

from asyncsync.aio.tasks import for_each_limited
from asyncsync.errors import NotFoundError, PreconditionError
from asyncsync.stores.base import MISSING
from asyncsync.stores.gcs.multipart_layout import AT_ONCE, WIDTH, Source, groups, step_name
from asyncsync.stores.gcs.options import GcsOptions
from asyncsync.stores.gcs.requests import Wire
from asyncsync.stores.gcs.responses import Resource, document_of, generation_of, refuse, resource_of, rewrite_of


class Composes:
    """The composes of one store. ``fields``: what is told of an object that was made."""

    def __init__(self, wire: Wire, options: GcsOptions, fields: str) -> None:
        self._wire, self._fields = wire, fields
        self._query = options.destination_query()
        self._properties = {name: value for name, value in options.properties().items() if name != "storageClass"}

    async def run(self, name: str, sources: Sequence[Source], home: str, if_version: str | None) -> Resource:
        """Make ``name``, by way of objects below ``home`` if there are many ``sources``; what was made.

        PreconditionError if ``name`` is not at ``if_version``; NotFoundError if a source is gone or has changed.
        """
        if_version = self._appended(name, sources, if_version)
        attempt, level = secrets.token_hex(4), 0
        while len(sources) > WIDTH:
            level += 1
            sources = await self._level(sources, f"{home}{level}-", attempt)
        return await self._compose(name, sources, if_version)

    def _appended(self, name: str, sources: Sequence[Source], if_version: str | None) -> str | None:
        """What is composed onto itself must still be what it was when that was decided."""
        for source in sources:
            if source.name == name:
                if if_version not in (None, source.generation):
                    raise PreconditionError(
                        f"compose {self._wire.where(name)}: has generation {if_version or 0}, not {source.generation}"
                    )
                return source.generation
        return if_version

    async def _level(self, sources: Sequence[Source], home: str, attempt: str) -> Sequence[Source]:
        made: dict[int, Source] = {}

        async def step(numbered: tuple[int, Sequence[Source]]) -> None:
            index, group = numbered
            name = step_name(home, index, attempt)
            made[index] = Source(name, (await self._compose(name, group, MISSING)).generation)

        await for_each_limited(enumerate(groups(sources)), step, AT_ONCE)
        return [made[index] for index in sorted(made)]

    async def _compose(self, name: str, sources: Sequence[Source], if_version: str | None) -> Resource:
        wire = self._wire
        params = wire.params(ifGenerationMatch=generation_of(if_version), fields=self._fields, **self._query)
        listed = [source.document() for source in sources]
        document = json.dumps({"sourceObjects": listed, "destination": self._properties}).encode()
        target = wire.target(wire.object_path(name, "/compose"), params)
        try:
            answer = await wire.post("compose", name, target, document, "application/json; charset=UTF-8")
        except (PreconditionError, NotFoundError) as error:
            if if_version is not None:
                await self._explain(name, if_version, error)
            raise
        where = f"compose {wire.where(name)}"
        return resource_of(where, document_of(where, answer), name, wire.bucket)

    async def _explain(self, name: str, if_version: str, error: PreconditionError | NotFoundError) -> None:
        """Sources and destination are refused alike: only what is there now tells which it was."""
        now = await self._wire.generation(name)
        wanted = generation_of(if_version)
        if now != wanted:
            raise PreconditionError(f"{error}: it has generation {now}, not {wanted}") from error
        if isinstance(error, PreconditionError):
            raise NotFoundError(f"{error}: what it is made of has changed") from error


STILL = 16
"""Steps in a row that may move nothing."""


class Rewrites:
    """The rewrites of one store. ``fields``: what is told of an object that was made."""

    def __init__(self, wire: Wire, options: GcsOptions, fields: str) -> None:
        self._wire = wire
        self._query = options.destination_query("destinationKmsKeyName") | {
            "fields": f"done,rewriteToken,totalBytesRewritten,resource({fields})"
        }

    async def run(self, source: str, name: str, if_source_version: str | None, met: str, size: int | None) -> Resource:
        """What was made of ``source``, which has ``size`` bytes, where that is known. Every step names the generation
        ``met`` that it replaces (0: there is none); PreconditionError if it finds another, or another source."""
        wire, where = self._wire, f"rewrite {self._wire.where(source)}"
        path = wire.object_path(source, f"/rewriteTo/b/{wire.bucket}/o/{quote(name, safe='')}")
        params = wire.params(ifSourceGenerationMatch=if_source_version, ifGenerationMatch=met, **self._query)
        moved = still = 0
        while True:
            step = rewrite_of(where, await wire.post("rewrite", source, wire.target(path, params)), name, wire.bucket)
            if step.resource is not None:
                break
            still = 0 if step.moved > moved else still + 1
            if still == STILL:
                refuse(where, f"{STILL} steps in a row moved nothing")
            moved, params = max(moved, step.moved), params | {"rewriteToken": step.token}
        if size not in (None, step.resource.size):
            refuse(where, f"it has 'size' {step.resource.size}, {size} bytes were to be copied")
        return step.resource
