"""Access tokens. gcloud-aio-auth finds the credentials and requests tokens; this module keeps and renews them.

The library's own cache renews tokens in background tasks without an owner, and repeats a failure for a minute. So only
its single token request is used.
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
from asyncsync.errors import AccessDeniedError, AsyncsyncError, ConfigError, StoreError, UnavailableError
from asyncsync.stores.gcs.options import GcsOptions, proxy_for
from asyncsync.stores.http.errors import UNTRUSTED_ADVICE

SCOPES = ["https://www.googleapis.com/auth/devstorage.full_control"]
IMPERSONATION_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
"""Of a token that can request tokens of another account (IAM documentation, "Create short-lived credentials")."""
CREDENTIALS_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
RENEW_AFTER = 0.9
"""Fraction of its lifetime after which a token is renewed; Google's tokens live an hour."""
MAX_TOKEN_LIFETIME = 1 << 31
"""Longest lifetime (s) that is accepted."""
TOKEN_TIMEOUT = 10
"""Time limit (s) of a token request."""
_TOKEN = re.compile("[!-~]+")


class GcsAccess:
    """The ``Authorization`` header of one store; one renewal at a time. Create it inside a running loop."""

    def __init__(self, options: GcsOptions, where: str, now: Callable[[], float] = time.monotonic) -> None:
        self._options, self._where, self._now = options, where, now
        self._source: Any = None
        self._session: aiohttp.ClientSession | None = None
        self._renew_at = 0.0
        self._lock = asyncio.Lock()
        self._header: str | None = None
        if options.token is not None:
            self._header, self._renew_at = f"Bearer {options.token}", float("inf")
        elif not options.needs_token():
            self._renew_at = float("inf")

    def current(self) -> tuple[bool, str | None]:
        """Whether the header is fresh, and the header; None: requests are sent without one."""
        return self._now() < self._renew_at, self._header

    @property
    def renewable(self) -> bool:
        """Whether a new token can be requested."""
        return self._options.token is None and self._options.needs_token()

    async def renew(self, refused: str | None) -> None:
        """Request a new token, unless another call has already replaced the ``refused`` one.

        ConfigError for an invalid credentials file, AccessDeniedError for refused credentials, UnavailableError if the
        token server does not respond.
        """
        async with self._lock:
            if self._header != refused:
                return
            if self._source is None:
                self._source = await self._open()
            try:
                response = await self._source.refresh(timeout=TOKEN_TIMEOUT)
            except AsyncsyncError:
                raise
            except Exception as error:
                machine = self._source.token_type is Type.GCE_METADATA
                raise no_token(self._where, error, from_machine=machine) from error
            token, lifetime = response.value, response.expires_in
            if not isinstance(token, str) or not _TOKEN.fullmatch(token):
                raise UnavailableError(f"{self._where}: no access token: the response has no valid token")
            if type(lifetime) is not int or lifetime >= MAX_TOKEN_LIFETIME:
                raise UnavailableError(f"{self._where}: no access token: the response has no valid lifetime")
            self._header, self._renew_at = f"Bearer {token}", self._now() + RENEW_AFTER * lifetime

    async def _open(self) -> Any:
        path = self._options.credentials or os.environ.get(CREDENTIALS_VARIABLE)
        try:
            source = await in_thread(self._new_source, path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # for any JSON in the file
            raise self._invalid_credentials(path, str(error)) from error
        if path and source.token_type is Type.GCE_METADATA:  # it would use the machine's permissions instead
            raise self._invalid_credentials(path, "the file is not readable JSON")
        machine = source.token_type is Type.GCE_METADATA  # the metadata server is on the machine itself
        if not machine or self._options.impersonate_service_account is not None:
            connector = aiohttp.TCPConnector(ssl=await in_thread(self._options.token_tls))
            self._session = aiohttp.ClientSession(connector=connector)
            source.session = AioSession(
                cast("Any", _ProxiedSession(self._session, source.token_uri if machine else ""))
            )
        return source

    def _new_source(self, path: str | None) -> Token:
        """With impersonation, the scopes also apply to the request for the other account's token."""
        account = self._options.impersonate_service_account
        scopes = SCOPES if account is None else IMPERSONATION_SCOPES
        return Token(service_file=path, scopes=scopes, target_principal=account)

    def _invalid_credentials(self, path: str | None, reason: str) -> ConfigError:
        return ConfigError(f"{self._where}: invalid credentials {path or CREDENTIALS_VARIABLE!r}: {reason}")

    async def close(self) -> None:
        if self._source is not None:
            await self._source.close()
        if self._session is not None:
            await self._session.close()


class _ProxiedSession:
    """Sends token requests through the proxies of the environment. (aiohttp's ``trust_env`` ignores ``all_proxy``.)
    ``local``: an address on this machine."""

    def __init__(self, session: aiohttp.ClientSession, local: str) -> None:
        self._session, self._local = session, local

    async def get(self, url: str, **options: Any) -> aiohttp.ClientResponse:
        proxy = None if url == self._local else proxy_for(url)
        return await self._session.get(url, proxy=proxy, **options)

    async def post(self, url: str, **options: Any) -> aiohttp.ClientResponse:
        return await self._session.post(url, proxy=proxy_for(url), **options)

    async def close(self) -> None:
        await self._session.close()


def no_token(where: str, error: Exception, *, from_machine: bool) -> AsyncsyncError:
    """The error of a failed token request. ``from_machine``: without a credentials file, the request went to the
    machine's metadata server."""
    cause = f"{type(error).__name__}: {error}"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return StoreError(f"{where}: no access token: {cause}{UNTRUSTED_ADVICE}")
    if _is_transient(error):
        return UnavailableError(f"{where}: no access token: {cause}")
    if from_machine:
        return AccessDeniedError(
            f"{where}: no usable credentials; set GOOGLE_APPLICATION_CREDENTIALS, run 'gcloud auth application-default "
            f"login', or give the storage option credentials, token or anonymous (metadata server: {cause})"
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):  # its text may contain the proxy's password
        return UnavailableError(f"{where}: no access token: the proxy refused: HTTP {error.status}")
    if isinstance(error, aiohttp.ClientResponseError):
        return AccessDeniedError(f"{where}: the credentials give no access token: HTTP {error.status}")
    if isinstance(error, aiohttp.ClientError | OSError):
        return UnavailableError(f"{where}: no access token: {cause}")
    return AccessDeniedError(f"{where}: the credentials cannot be used: {type(error).__name__}")


def _is_transient(error: Exception) -> bool:
    """Whether the token server failed temporarily, or another server responded in its place."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return False
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status < 300 or error.status in (408, 429) or error.status >= 500
    if isinstance(error, KeyError):
        return error.args in (("access_token",), ("expires_in",), ("accessToken",))
    return isinstance(error, json.JSONDecodeError | TypeError | RecursionError)
