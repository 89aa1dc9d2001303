"""Authorization of requests: signatures, a SAS, or access tokens. azure-identity finds credentials and requests tokens;
this module keeps and renews them. It is imported when the first token is needed: that takes 0.4 s."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import time
from collections.abc import Callable
from typing import Any

from asyncsync.aio.threads import in_thread
from asyncsync.errors import AccessDeniedError, ConfigError, UnavailableError
from asyncsync.stores.azure.options import Account, AzureOptions
from asyncsync.stores.azure.signer import SharedKeySigner

SCOPE = "https://storage.azure.com/.default"
RENEW_BEFORE = 300.0
"""Seconds before its end from which a token is renewed; Entra's tokens live an hour or more."""
SAS_SECONDS = 3600.0
"""Lifetime of the SAS that authorizes copy sources; it is renewed after half of it."""
_TOKEN = re.compile("[!-~]+")
_CREDENTIALS = {
    "default": ("DefaultAzureCredential", {"managed_identity_client_id": "client_id"}),
    "workload": ("WorkloadIdentityCredential", {"client_id": "client_id", "tenant_id": "tenant_id"}),
    "managed": ("ManagedIdentityCredential", {"client_id": "client_id"}),
    "cli": ("AzureCliCredential", {"tenant_id": "tenant_id"}),
}
"""Class of azure-identity, and its arguments by the options that give them."""


class AzureAccess:
    """Authorizes the requests of one store; one renewal at a time. Its ``repr`` shows no secret."""

    def __init__(
        self, account: Account, options: AzureOptions, where: str, now: Callable[[], float] = time.time
    ) -> None:
        self.account = account
        self.signer = SharedKeySigner(account.name, account.key) if account.key else None
        self._options, self._where, self._now = options, where, now
        self._header = f"Bearer {account.token}" if account.token else ""
        self._renew_at = float("inf")
        if account.credential is not None:
            self._renew_at = 0.0
        self._source: Any = None
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"AzureAccess({self._where})"

    def current(self) -> tuple[bool, str]:
        """Whether the ``Authorization`` header of a bearer is fresh, and the header; empty: there is none."""
        return self._now() < self._renew_at, self._header

    @property
    def renewable(self) -> bool:
        """Whether a new token can be requested."""
        return self.account.credential is not None

    async def renew(self, refused: str) -> None:
        """Request a new token, unless another call has already replaced the ``refused`` header.

        ConfigError if azure-identity is missing, AccessDeniedError if it has no usable credentials, UnavailableError if
        the token server does not respond.
        """
        async with self._lock:
            if self._header != refused:
                return
            if self._source is None:
                self._source = await in_thread(self._open)
            try:
                found = await in_thread(self._source.get_token, SCOPE)
            except Exception as error:  # noqa: BLE001  azure-identity raises errors of many libraries
                raise self._no_token(error) from None  # its text and its causes may contain requests
            if not isinstance(found.token, str) or not _TOKEN.fullmatch(found.token):
                raise UnavailableError(f"{self._where}: no access token: the response has no valid token")
            self._header = f"Bearer {found.token}"
            self._renew_at = max(float(found.expires_on) - RENEW_BEFORE, self._now() + 1.0)

    def _open(self) -> Any:
        """The credential of azure-identity. Blocking: imports it."""
        credential = self.account.credential or "default"
        name, arguments = _CREDENTIALS[credential]
        given = {argument: self._named(option) for argument, option in arguments.items()}
        try:
            identity = importlib.import_module("azure.identity")
            return getattr(identity, name)(**{key: value for key, value in given.items() if value is not None})
        except ImportError:
            raise ConfigError(
                f"{self._where}: credential {credential!r} needs azure-identity: pip install 'asyncsync[azure]', "
                "or give the storage option account_key, sas_token or anonymous"
            ) from None
        except ValueError as error:
            raise ConfigError(f"{self._where}: credential {credential!r} cannot be used: {error}") from None

    def _named(self, option: str) -> str | None:
        """An option, else its environment variable: not every class of azure-identity reads it."""
        value: str | None = getattr(self._options, option)
        return value or os.environ.get(f"AZURE_{option.upper()}")

    def _no_token(self, error: Exception) -> AccessDeniedError | UnavailableError:
        status = getattr(error, "status_code", None)
        kind = type(error).__name__
        if kind in ("ServiceRequestError", "ServiceResponseError") or status in (408, 429) or (status or 0) >= 500:
            return UnavailableError(f"{self._where}: no access token: {kind}")
        return AccessDeniedError(
            f"{self._where}: no usable credentials: {_first_line(error)}. Run 'az login', give the machine an "
            "identity, or give the storage option account_key, sas_token, token or anonymous"
        )

    async def close(self) -> None:
        source, self._source = self._source, None
        if source is not None and hasattr(source, "close"):
            await in_thread(source.close)


def _first_line(error: Exception) -> str:
    """The first line of an error of azure-identity. The other lines may hold the response of a token server."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
