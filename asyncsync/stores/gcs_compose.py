"""Composing objects of a Cloud Storage bucket: at most 32 a request, so more go in a tree.

What a compose makes is guarded by the generation that it replaces, as its sources are by theirs: only so may it be
repeated (Cloud Storage documentation, "Retry strategy"). Intermediate results have names that nobody used before, so
they are only created.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

from asyncsync.errors import NotFoundError, PreconditionError
from asyncsync.stores.base import MISSING
from asyncsync.stores.gcs_answers import generation_of
from asyncsync.stores.gcs_documents import Resource, document_of, resource_of
from asyncsync.stores.gcs_options import GcsOptions
from asyncsync.stores.gcs_parts import AT_ONCE, WIDTH, Source, groups, step_name
from asyncsync.stores.gcs_wire import Wire
from asyncsync.stores.together import for_each


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

        await for_each(enumerate(groups(sources)), step, AT_ONCE)
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
