"""GcsAccess tokens: gcloud-aio-auth finds the credentials and asks for tokens; here they are kept and renewed.

Its own cache renews in tasks that nobody owns and repeats a failure for a minute; so only its one request is used.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any, cast

import aiohttp
from gcloud.aio.auth import AioSession, Token
from gcloud.aio.auth.token import Type

from asyncsync.aio.threads import in_thread
from asyncsync.errors import AccessDeniedError, AsyncsyncError, ConfigError, UnavailableError
from asyncsync.stores.gcs.options import GcsOptions, proxy_for

SCOPES = ["https://www.googleapis.com/auth/devstorage.full_control"]
CREDENTIALS_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
RENEW_AFTER = 0.9
"""The part of its life after which a token is renewed; Google's live an hour."""
_TOKEN = re.compile("[!-~]+")
MAX_TOKEN_LIFETIME = 1 << 31
"""Seconds beyond which it is none."""
TOKEN_TIMEOUT = 10


class GcsAccess:
    """The ``Authorization`` header of one store. Made inside a running loop; one renewal at a time."""

    def __init__(self, options: GcsOptions, where: str, now: Callable[[], float] = time.monotonic) -> None:
        self._options, self._where, self._now = options, where, now
        self._source: Any = None
        self._session: aiohttp.ClientSession | None = None
        self._until = 0.0
        self._lock = asyncio.Lock()
        self._header: str | None = None
        if options.token is not None:
            self._header, self._until = f"Bearer {options.token}", float("inf")
        elif not options.needs_token():
            self._until = float("inf")

    def current(self) -> tuple[bool, str | None]:
        """Whether no renewal is due, and the header; None: requests go out without one."""
        return self._now() < self._until, self._header

    @property
    def renewable(self) -> bool:
        """Whether another token can be had."""
        return self._options.token is None and self._options.needs_token()

    async def renew(self, refused: str | None) -> None:
        """Get a new token, unless somebody else has replaced the ``refused`` one meanwhile.

        ConfigError for an unusable file, AccessDeniedError for credentials that are refused, UnavailableError if
        nobody answers.
        """
        async with self._lock:
            if self._header != refused:
                return
            if self._source is None:
                self._source = await self._open()
            try:
                answer = await self._source.refresh(timeout=TOKEN_TIMEOUT)
            except AsyncsyncError:
                raise
            except Exception as error:
                machine = self._source.token_type is Type.GCE_METADATA
                raise no_token(self._where, error, from_machine=machine) from error
            token, life = answer.value, answer.expires_in
            if not (
                isinstance(token, str)
                and re.fullmatch("[!-~]+", token)
                and type(life) is int
                and life < MAX_TOKEN_LIFETIME
            ):
                raise UnavailableError(f"{self._where}: no access token: what was given is none that can be used")
            self._header, self._until = f"Bearer {token}", self._now() + RENEW_AFTER * life

    async def _open(self) -> Any:
        path = self._options.credentials or os.environ.get(CREDENTIALS_VARIABLE)
        try:
            source = await in_thread(Token, service_file=path, scopes=SCOPES)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # whatever its JSON may be
            raise ConfigError(
                f"{self._where}: credentials {path or CREDENTIALS_VARIABLE!r} cannot be used: {error}"
            ) from error
        if path and source.token_type is Type.GCE_METADATA:  # it would ask the machine, whose rights are others
            raise ConfigError(f"{self._where}: credentials {path!r} cannot be used: no JSON that can be read")
        if source.token_type is not Type.GCE_METADATA:  # that one is on the machine itself
            connector = aiohttp.TCPConnector(ssl=await in_thread(self._options.token_tls))
            self._session = aiohttp.ClientSession(connector=connector)
            source.session = AioSession(cast("Any", _Proxied(self._session)))
        return source

    async def close(self) -> None:
        if self._source is not None:
            await self._source.close()
        if self._session is not None:
            await self._session.close()


class _Proxied:
    """The session of token requests, through the proxies of the environment. (aiohttp's own ``trust_env`` knows no
    ``all_proxy``.)"""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(self, url: str, **options: Any) -> aiohttp.ClientResponse:
        return await self._session.get(url, proxy=proxy_for(url), **options)

    async def post(self, url: str, **options: Any) -> aiohttp.ClientResponse:
        return await self._session.post(url, proxy=proxy_for(url), **options)

    async def close(self) -> None:
        await self._session.close()


def no_token(where: str, error: Exception, *, from_machine: bool) -> AsyncsyncError:
    """No access token. ``from_machine``: there is no credentials file, so the metadata server was asked."""
    said = f"{type(error).__name__}: {error}"
    if _passes(error):
        return UnavailableError(f"{where}: no access token: {said}")
    if from_machine:
        return AccessDeniedError(
            f"{where}: no usable credentials; set GOOGLE_APPLICATION_CREDENTIALS, run 'gcloud auth application-default "
            f"login', or give the storage option credentials, token or anonymous (metadata server: {said})"
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):  # its text may tell the proxy's password
        return UnavailableError(f"{where}: no access token: the proxy refused: HTTP {error.status}")
    if isinstance(error, aiohttp.ClientResponseError):
        return AccessDeniedError(f"{where}: the credentials give no access token: HTTP {error.status}")
    if isinstance(error, aiohttp.ClientError | OSError):
        return UnavailableError(f"{where}: no access token: {said}")
    return AccessDeniedError(f"{where}: the credentials cannot be used: {type(error).__name__}")


def _passes(error: Exception) -> bool:
    """Whether who gives tokens failed for a moment, or somebody else answered in its place."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return False
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status < 300 or error.status in (408, 429) or error.status >= 500
    if isinstance(error, KeyError):
        return error.args in (("access_token",), ("expires_in",))
    return isinstance(error, json.JSONDecodeError | TypeError | RecursionError)
