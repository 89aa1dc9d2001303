"""A bucket and its open connections: signed requests on our own HTTP client, or aiobotocore.

aiobotocore takes half a second to import. So it is opened only where it is needed: for buckets and endpoints that
:mod:`asyncsync.stores.s3.requests` cannot address, credentials from its chain, and listings of parts and uploads.
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
from typing import TYPE_CHECKING, Any, TypeAlias

from asyncsync.aio.threads import in_thread
from asyncsync.errors import StoreError
from asyncsync.stores.options import ConnectionLimits
from asyncsync.stores.s3.endpoint import Endpoint, S3Access
from asyncsync.stores.s3.options import S3Options
from asyncsync.stores.s3.requests import S3Requests, supports_bucket
from asyncsync.stores.s3.static_endpoint import StaticAccess, static_endpoint
from asyncsync.stores.s3.transport import SignedTransport

if TYPE_CHECKING:
    from asyncsync.stores.s3.sdk.aiobotocore_client import AiobotocoreClient
    from asyncsync.stores.s3.sdk.aiobotocore_requests import AiobotocoreRequests

    AnyRequests: TypeAlias = S3Requests | AiobotocoreRequests


class S3Bucket:
    """The bucket called ``name``, and its open connections. ``uri`` is the store's address, for errors."""

    def __init__(self, uri: str, name: str, options: S3Options, limits: ConnectionLimits) -> None:
        self.uri = uri
        self.name = name
        self._options = options
        self._limits = limits
        self.opened: AnyRequests | None = None
        self.client: AiobotocoreClient | None = None
        self._opening = asyncio.Lock()
        self._opening_client = asyncio.Lock()
        self._closed = False

    async def requests(self) -> AnyRequests:
        """The requests of the bucket, opened on first use."""
        return self.opened or await self._open()

    async def call(self, operation: str, key: str, **params: Any) -> dict[str, Any]:
        """One operation through aiobotocore."""
        client = self.client or await self.open_client()
        return await client.call(operation, f"s3://{self.name}/{key}", **params)

    async def close(self) -> None:
        """Close all connections. Safe to call twice; nothing can be opened again."""
        self._closed = True
        opened, client, self.opened, self.client = self.opened, self.client, None, None
        if opened is not None:
            await opened.close()
        if client is not None:
            await client.close()

    async def _open(self) -> AnyRequests:
        async with self._opening:
            self._check_open()
            if self.opened is None:
                self.opened = await self._new_requests()
            return self.opened

    async def open_client(self) -> AiobotocoreClient:
        """The aiobotocore client, opened on first use."""
        async with self._opening_client:
            self._check_open()
            if self.client is None:
                # Half a second of work, which would block the event loop.
                await in_thread(importlib.import_module, "asyncsync.stores.s3.sdk.aiobotocore_client")
                from asyncsync.stores.s3.sdk.aiobotocore_client import AiobotocoreClient

                client = AiobotocoreClient(self.name, self._options, self._limits)
                try:
                    await client.open()
                except BaseException:
                    await client.close()
                    raise
                self.client = client
            return self.client

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.uri} is closed")

    async def _new_requests(self) -> AnyRequests:
        supported = supports_bucket(self.name)
        known = static_endpoint(self.name, self._options) if supported else None
        if known is not None:
            self._options.check_endpoint(known.endpoint.base)
            access = StaticAccess(known, self.open_client)
            return self._signed_requests(known.endpoint, access, await in_thread(known.ssl_context))
        client = await self.open_client()
        endpoint = await client.locate() if supported else None
        self._options.check_endpoint("" if endpoint is None else endpoint.base)
        if endpoint is not None and endpoint.proxy is None:
            context = await client.ssl_context() if endpoint.base.startswith("https:") else None
            return self._signed_requests(endpoint, client, context)
        from asyncsync.stores.s3.sdk.aiobotocore_requests import AiobotocoreRequests

        return AiobotocoreRequests(client, self.name, multi_delete=self._options.checksum != "none")

    def _signed_requests(self, endpoint: Endpoint, access: S3Access, context: ssl.SSLContext | None) -> S3Requests:
        transport = SignedTransport(
            self.name,
            endpoint,
            access,
            ssl_context=context,
            limits=self._limits,
            operation_headers=self._options.operation_headers,
            customer_key=self._options.sse_customer_key,
        )
        return S3Requests(transport)
