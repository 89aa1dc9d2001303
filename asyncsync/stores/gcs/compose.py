"""Objects that Cloud Storage makes from its own objects: composing several, and copying one (a rewrite).

A compose takes at most 32 sources; more are composed in a tree. It names the generation that it replaces and those of
its sources: only then is a retry safe (Cloud Storage documentation, "Retry strategy"). Intermediate results have new
random names and are only created. A rewrite takes as many steps as the service wants.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from asyncsync.aio.tasks import for_each_limited
from asyncsync.errors import NotFoundError, PreconditionError
from asyncsync.stores.base import MISSING
from asyncsync.stores.gcs.multipart_layout import (
    CONCURRENT_REQUESTS,
    MAX_COMPOSE_SOURCES,
    ComposeSource,
    groups,
    step_name,
)
from asyncsync.stores.gcs.options import GcsObjectKind, GcsOptions
from asyncsync.stores.gcs.requests import GcsRequests
from asyncsync.stores.gcs.responses import (
    ObjectResource,
    document_of,
    generation_of,
    refuse_response,
    resource_of,
    rewrite_of,
)

_JSON = "application/json; charset=UTF-8"
MAX_IDLE_STEPS = 16
"""Steps of a rewrite in a row that may move nothing."""


class Composer:
    """The composes of one store. ``fields``: the requested fields of a new object."""

    def __init__(self, requests: GcsRequests, options: GcsOptions, fields: str) -> None:
        self._requests, self._fields = requests, fields
        self._query = options.destination_query()
        self._final, self._intermediate = _composed(options, "data"), _composed(options, "part")

    async def run(
        self, name: str, sources: Sequence[ComposeSource], home: str, if_version: str | None
    ) -> ObjectResource:
        """Make the object ``name``; intermediate results of many ``sources`` are below ``home``.

        PreconditionError if ``name`` does not have ``if_version``; NotFoundError if a source is missing or has changed.
        """
        if_version = self._version_to_append_to(name, sources, if_version)
        attempt, level = secrets.token_hex(4), 0
        while len(sources) > MAX_COMPOSE_SOURCES:
            level += 1
            sources = await self._compose_level(sources, f"{home}{level}-", attempt)
        return await self._compose(name, sources, if_version, self._final)

    def _version_to_append_to(self, name: str, sources: Sequence[ComposeSource], if_version: str | None) -> str | None:
        """An object that is a source of itself must still have the generation that was chosen as source."""
        for source in sources:
            if source.name == name:
                if if_version not in (None, source.generation):
                    where = self._requests.where(name)
                    raise PreconditionError(
                        f"compose {where}: has generation {if_version or 0}, not {source.generation}"
                    )
                return source.generation
        return if_version

    async def _compose_level(
        self, sources: Sequence[ComposeSource], home: str, attempt: str
    ) -> Sequence[ComposeSource]:
        made: dict[int, ComposeSource] = {}

        async def step(numbered: tuple[int, Sequence[ComposeSource]]) -> None:
            index, group = numbered
            name = step_name(home, index, attempt)
            composed = await self._compose(name, group, MISSING, self._intermediate)
            made[index] = ComposeSource(name, composed.generation)

        await for_each_limited(enumerate(groups(sources)), step, CONCURRENT_REQUESTS)
        return [made[index] for index in sorted(made)]

    async def _compose(
        self, name: str, sources: Sequence[ComposeSource], if_version: str | None, properties: Mapping[str, Any]
    ) -> ObjectResource:
        requests = self._requests
        params = requests.params(ifGenerationMatch=generation_of(if_version), fields=self._fields, **self._query)
        listed = [source.document() for source in sources]
        document = json.dumps({"sourceObjects": listed, "destination": properties}).encode()
        target = requests.target(requests.object_path(name, "/compose"), params)
        try:
            content = await requests.post("compose", name, target, document, _JSON, requests.key_headers)
        except (PreconditionError, NotFoundError) as error:
            if if_version is not None:
                await self._explain(name, if_version, error)
            raise
        where = f"compose {requests.where(name)}"
        return resource_of(where, document_of(where, content), name, requests.bucket)

    async def _explain(self, name: str, if_version: str, error: PreconditionError | NotFoundError) -> None:
        """The service refuses a changed source and a changed destination alike; the live generation shows which
        one it was."""
        live = await self._requests.generation(name)
        wanted = generation_of(if_version)
        if live != wanted:
            raise PreconditionError(f"{error}: it has generation {live}, not {wanted}") from error
        if isinstance(error, PreconditionError):
            raise NotFoundError(f"{error}: a source object has changed") from error


def _composed(options: GcsOptions, kind: GcsObjectKind) -> dict[str, Any]:
    """Properties of a composed object; it has the storage class of its sources."""
    return {name: value for name, value in options.properties(kind).items() if name != "storageClass"}


class Rewriter:
    """The rewrites of one store. ``fields``: the requested fields of a new object."""

    def __init__(self, requests: GcsRequests, options: GcsOptions, fields: str) -> None:
        self._requests = requests
        self._query = options.destination_query("destinationKmsKeyName") | {
            "fields": f"done,rewriteToken,totalBytesRewritten,resource({fields})"
        }
        document = json.dumps(options.properties("data")).encode() if options.describes_copies() else b""
        self._more = (document, _JSON, requests.key_headers + requests.source_key_headers)

    async def run(
        self, source: str, name: str, if_source_version: str | None, replaces: str, size: int | None
    ) -> ObjectResource:
        """Copy ``source``, of ``size`` bytes where that is known, to ``name``. Every step names the generation that it
        ``replaces`` (0: none); PreconditionError if another one is live, or another source."""
        requests, where = self._requests, f"rewrite {self._requests.where(source)}"
        path = requests.object_path(source, f"/rewriteTo/b/{requests.bucket}/o/{quote(name, safe='')}")
        params = requests.params(ifSourceGenerationMatch=if_source_version, ifGenerationMatch=replaces, **self._query)
        moved = idle = 0
        while True:
            content = await requests.post("rewrite", source, requests.target(path, params), *self._more)
            step = rewrite_of(where, content, name, requests.bucket)
            if step.resource is not None:
                break
            idle = 0 if step.moved > moved else idle + 1
            if idle == MAX_IDLE_STEPS:
                refuse_response(where, f"{MAX_IDLE_STEPS} steps in a row moved nothing")
            moved, params = max(moved, step.moved), params | {"rewriteToken": step.token}
        if size not in (None, step.resource.size):
            refuse_response(where, f"it has 'size' {step.resource.size}, but the source has {size} bytes")
        return step.resource
