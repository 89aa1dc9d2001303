"""Copying an object inside Cloud Storage: a rewrite, in as many steps as the service wants."""

from __future__ import annotations

from urllib.parse import quote

from asyncsync.stores.gcs_documents import Resource, refuse, rewrite_of
from asyncsync.stores.gcs_options import GcsOptions
from asyncsync.stores.gcs_wire import Wire

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
