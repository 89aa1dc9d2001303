"""The addresses below the token, and what each returns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from asyncsync import Experiment, TrialView, browse, contents
from asyncsync.aio.threads import in_thread
from asyncsync.errors import AsyncsyncError, ConcurrentWriterError, ConfigError, NotFoundError
from asyncsync.ui.actions import ACTIONS, found_checkpoint
from asyncsync.ui.curves import curves_document
from asyncsync.ui.html_page import page, plotly_script, script, static_file
from asyncsync.ui.live_experiment import LiveExperiment
from asyncsync.ui.object_listing import listing_document
from asyncsync.ui.page_data import as_json, trial_document, value
from asyncsync.ui.retention_forecast import RetentionRule

Endpoint = Callable[[Request], Awaitable[Response]]
JSON, SCRIPT = "application/json", "text/javascript"


def application(source: LiveExperiment) -> Starlette:
    """The application for one experiment."""
    routes = PageRoutes(source)
    reads: dict[str, Endpoint] = {
        "/": routes.page,
        "/page.css": routes.style,
        "/page.js": routes.script,
        "/plotly.min.js": routes.plotly,
        "/experiment": routes.experiment,
        "/trial": routes.trial,
        "/objects": routes.objects,
        "/events": routes.events,
    }
    changes: dict[str, Endpoint] = {"/reload": routes.reload, "/{action}": routes.change}
    return Starlette(
        routes=[
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in reads.items()),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in changes.items()),
        ],
        exception_handlers={AsyncsyncError: _failed},
    )


async def _failed(request: Request, error: Exception) -> Response:
    """A name that does not exist, a change that is refused, or a failure of the store, as text for the page."""
    refused = isinstance(error, ConcurrentWriterError) or (isinstance(error, ConfigError) and request.method == "POST")
    status = 409 if refused else 404 if isinstance(error, ConfigError | NotFoundError) else 502
    return PlainTextResponse(" ".join(str(error).split()), status)


class PageRoutes:
    """An endpoint for each address."""

    def __init__(self, source: LiveExperiment) -> None:
        self._source = source

    async def page(self, request: Request) -> Response:
        """The page without data."""
        return Response(page(), media_type="text/html")

    async def style(self, request: Request) -> Response:
        """Its style."""
        return Response(static_file("page.css"), media_type="text/css")

    async def script(self, request: Request) -> Response:
        """Its scripts."""
        return Response(script(), media_type=SCRIPT)

    async def plotly(self, request: Request) -> Response:
        """The drawing library."""
        return Response(await in_thread(plotly_script), media_type=SCRIPT)

    async def experiment(self, request: Request) -> Response:
        """The experiment with the table of its trials."""
        return Response(await self._source.document(), media_type=JSON)

    async def trial(self, request: Request) -> Response:
        """A trial as its record is now, with its curves."""
        trial, rule = await self._trial_now(request.query_params.get("name", ""))
        document = trial_document(trial, rule)
        try:
            rows = await trial.history()
            document |= await in_thread(curves_document, trial, rows)
        except AsyncsyncError as error:
            document["unread"] = value(" ".join(str(error).split()))
        return Response(as_json(document), media_type=JSON)

    async def objects(self, request: Request) -> Response:
        """Every object, by trial."""
        source, experiment = self._source, self._experiment()
        found = await browse(experiment.uri, storage_options=source.storage_options, transfer=source.transfer)
        return Response(await in_thread(lambda: as_json(listing_document(experiment, found))), media_type=JSON)

    async def events(self, request: Request) -> Response:
        """The live state, as server-sent events."""

        async def stream() -> AsyncIterator[bytes]:
            async with aclosing(self._source.updates()) as updates:
                async for update in updates:
                    yield b"data: " + as_json(update) + b"\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def reload(self, request: Request) -> Response:
        """Read the store again."""
        self._source.read_now()
        return JSONResponse({})

    async def change(self, request: Request) -> Response:
        """An action on a checkpoint: what its record says now decides, not what the page showed."""
        action = ACTIONS.get(request.path_params["action"])
        if action is None:
            return PlainTextResponse("there is no such action", 404)
        if not self._source.allow:
            return PlainTextResponse("the page only reads: start it with --allow-changes", 403)
        trial, _ = await self._trial_now(request.query_params.get("trial", ""))
        item = found_checkpoint(trial, request.query_params.get("checkpoint", ""))
        result = await action(self._source, item)
        self._source.read_now()
        return Response(as_json({**result, "text": value(result["text"])}), media_type=JSON)

    async def _trial_now(self, name: str) -> tuple[TrialView, RetentionRule]:
        """The trial as its record is now. The record of the driver decides whether it is lost."""
        source, experiment = self._source, self._experiment()
        known = experiment.trial(name)
        rule = RetentionRule.of(experiment.config)
        if known.uri == experiment.uri or not known.updated:
            return known, rule
        found = await contents(known.uri, storage_options=source.storage_options, transfer=source.transfer)
        return (found if isinstance(found, TrialView) else known), rule

    def _experiment(self) -> Experiment:
        if self._source.experiment is None:
            raise NotFoundError(self._source.reading.error or "the records have not been read yet")
        return self._source.experiment
