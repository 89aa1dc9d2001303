"""The S3 control plane: aiobotocore's session, credentials, endpoint and every operation that carries no bulk.

aiobotocore makes one attempt, sends no ``Expect: 100-continue`` and repeats nothing behind our back.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from xml.etree.ElementTree import tostring

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore import UNSIGNED, handlers
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    ProfileNotFound,
)
from botocore.handlers import add_expect_header
from botocore.httpsession import get_cert_path
from botocore.loaders import create_loader
from botocore.parsers import ResponseParserError

from asyncsync.aio.threads import in_thread
from asyncsync.errors import AsyncsyncError, ConfigError, StoreError, UnavailableError
from asyncsync.stores.http.connection import COLLECT_STALL_TIMEOUTS
from asyncsync.stores.s3.aiobotocore.errors import from_client_error, translate
from asyncsync.stores.s3.endpoint import DEFAULT_REGION, Endpoint, Keys, is_region, regional, shown
from asyncsync.stores.s3.errors import EXPIRED, SKEWED, server_time
from asyncsync.stores.s3.options import S3Options
from asyncsync.stores.s3.responses import check_result
from asyncsync.stores.s3.signer import Signer, timestamp_of
from asyncsync.stores.s3.static_endpoint import ca_bundle, region_of, tls_context

_SIGNATURE = re.compile(r"Credential=[^/]+/\d+/(?P<region>[^/]+)/(?P<service>[^/]+)/.*SignedHeaders=(?P<names>[^,]+)")
_UNREADABLE_RESPONSE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    ResponseParserError,
)
"""What aiobotocore raises on a response that is not of the shape that it expects."""
_WITH_BODIES = frozenset({"put_object", "upload_part"})
_LONG_OPERATIONS = frozenset({"complete_multipart_upload", "copy_object", "upload_part_copy"})
"""What a store may work at for minutes."""
_SHORT_STALL_TIMEOUTS = 4
"""Stall timeouts within which any other response must be over."""
_asked_for: ContextVar[str] = ContextVar("asked_for")
"""The address that a request is for, which botocore's events do not name."""


class _Session(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore is untyped
    """Without aiohttp's silent second attempt after a reset."""

    async def _get_session(self, proxy_url: str | None) -> _Unredirected:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)
        session._retry_connection = False  # noqa: SLF001  # there is no public switch
        return _Unredirected(session)


class _Unredirected:
    """A session that goes where it was sent and nowhere else: aiohttp follows a redirect to any host, with the token
    and the data."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    def request(self, method: str, **params: Any) -> Any:
        return self._session.request(method, allow_redirects=False, **params)


class _RequestCaptured(Exception):  # noqa: N818  # it carries a request out of botocore, nothing failed
    def __init__(self, request: Any) -> None:
        super().__init__("request seen")
        self.request = request


class AiobotocoreClient:
    """One bucket's control plane. Made plain; :meth:`open` does the I/O; use within one event loop."""

    def __init__(
        self, bucket: str, options: S3Options, *, stall_timeout: float, connect_timeout: float, max_connections: int
    ) -> None:
        self._bucket = bucket
        self._options = options
        self._timeouts = (connect_timeout, stall_timeout)
        self._max_connections = max_connections
        self._stack = AsyncExitStack()
        self._renewing = asyncio.Lock()
        self._credentials: Any = None
        self._api: Any = None
        self._session: Any = None
        self.skew = 0.0
        """Seconds by which the store's clock is ahead of ours."""

    async def open(self) -> None:
        try:
            self._session, self._credentials = await self._new_session()
            self._api = await self._stack.enter_async_context(self._new_client(self._options.region))
        except ConfigError:
            raise  # it names the setting
        except ProfileNotFound as error:
            raise ConfigError(f"storage option profile={self._options.profile!r}: {error}") from error
        except (CredentialRetrievalError, MetadataRetrievalError, ClientError) as error:
            raise translate("Sign", f"s3://{self._bucket}", error) from error
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(f"s3://{self._bucket} cannot be opened: {error}") from error

    async def close(self) -> None:
        await self._stack.aclose()

    async def _new_session(self) -> tuple[Any, Any]:
        """A session and its credentials (None: there are none, or none are wanted)."""
        options = self._options
        session = AioSession(profile=options.profile)
        session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
        if options.anonymous:
            return session, None
        if options.access_key is not None:
            session.set_credentials(options.access_key, options.secret_key, options.session_token)
        return session, await session.get_credentials()

    def _config(self) -> AioConfig:
        connect, read = self._timeouts
        options = self._options
        extra = {"signature_version": UNSIGNED} if options.anonymous else {}
        return AioConfig(
            connect_timeout=connect,
            read_timeout=read,
            max_pool_connections=self._max_connections,
            retries={"total_max_attempts": 1, "mode": "standard"},
            s3={"addressing_style": options.addressing_style},
            # Our own checksums are sent where they are wanted; answers are compared by whoever planned them.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            http_session_cls=_Session,
            warm_up_loader_caches=True,  # service models are read in a thread
            **extra,
        )

    def _new_client(self, region: str | None) -> Any:
        named = None if self._options.profile else region_of()  # botocore does not know AWS_REGION
        region = region or named or self._session.get_config_variable("region") or DEFAULT_REGION
        bundle = self._bundle()
        verify = None if bundle is True else bundle
        return _Configured(
            self._session.create_client(
                "s3", region_name=region, endpoint_url=self._options.endpoint_url, verify=verify, config=self._config()
            ),
            self._settle,
        )

    def _settle(self, api: Any) -> None:
        events = api.meta.events
        events.unregister("before-call.s3", add_expect_header)
        events.register("before-send.s3", self._right_the_clock)
        events.unregister("before-parse.s3.*", getattr(handlers, "_handle_200_error", None))  # ours sees more
        events.register_first("before-parse.s3", self._check_result)

    def _check_result(self, operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
        """Before aiobotocore, for which a success without a result is an empty one."""
        status, name, body = response_dict["status_code"], operation_model.name, response_dict["body"]
        if status < 300 and isinstance(body, bytes):  # else it is streamed
            headers = {key.lower(): value for key, value in response_dict["headers"].items()}
            result = check_result(name, _asked_for.get(), status, headers, body)
            if result is None:
                response_dict["body"] = b""
            elif not body.startswith(b"<"):
                response_dict["body"] = tostring(result)  # aiobotocore reads plain UTF-8 only

    def _right_the_clock(self, request: Any, **_: Any) -> None:
        """Sign again by the store's clock, where ours is known to be wrong."""
        found = _SIGNATURE.search(_text(request.headers.get("Authorization")))
        if not self.skew or found is None or self._credentials is None:
            return
        stamp = timestamp_of(time.time() + self.skew)
        request.headers["X-Amz-Date"] = stamp
        url = urlsplit(request.url)
        sent = {name.lower(): _text(value) for name, value in request.headers.items()}
        sent.setdefault("host", url.netloc)
        signed = {name: sent[name] for name in found["names"].split(";")}
        frozen = self._credentials
        signer = Signer(frozen.access_key, frozen.secret_key, frozen.token, found["region"], found["service"])
        request.headers["Authorization"] = signer.authorization(
            request.method, url.path or "/", url.query, signed, sent["x-amz-content-sha256"], stamp
        )

    async def call(self, operation: str, where: str, **params: Any) -> dict[str, Any]:
        """One request, one attempt; an expired token and a wrong clock are put right once."""
        _asked_for.set(where)
        method = getattr(self._api, operation)
        name = "".join(word.title() for word in operation.split("_"))
        repaired = False
        while True:
            try:
                async with asyncio.timeout(self._within(operation)):
                    answer: dict[str, Any] = await method(Bucket=self._bucket, **params)
                return answer
            except TimeoutError as error:
                raise UnavailableError(f"{name} {where}: the response did not come in time {error}".rstrip()) from error
            except ClientError as error:
                failure = from_client_error(name, where, error)
                if repaired or not await self._repair(failure.code, failure.headers):
                    raise failure.error() from error
                repaired = True
            except (BotoCoreError, aiohttp.ClientError, OSError) as error:
                raise translate(name, where, error) from error
            except _UNREADABLE_RESPONSE as error:
                # aiobotocore trips over error answers that carry a checksum header, and over what is no XML.
                raise UnavailableError(f"{name} {where}: unreadable answer: {error}") from error

    def _within(self, operation: str) -> float | None:
        """Seconds that a call may take in all: its response may come byte by byte. None: it depends on its body, and
        each byte has the stall timeout."""
        if operation in _WITH_BODIES:
            return None
        return (COLLECT_STALL_TIMEOUTS if operation in _LONG_OPERATIONS else _SHORT_STALL_TIMEOUTS) * self._timeouts[
            1
        ] + self._timeouts[0]

    async def _repair(self, code: str, headers: Any) -> bool:
        if code in EXPIRED:
            await self.renew()
            return True
        if code in SKEWED and (server := server_time(headers)) is not None:
            self.skew = server - time.time()
            return True
        return False

    async def credentials(self) -> Keys | None:
        """S3Access key, secret key and token, refreshed when due; None: requests go out unsigned."""
        if self._options.anonymous:
            return None
        if self._credentials is None:
            raise translate("Sign", f"s3://{self._bucket}", _no_credentials())
        try:
            frozen = await self._credentials.get_frozen_credentials()
        except Exception as error:
            raise self._not_given(error) from error
        return frozen.access_key, frozen.secret_key, frozen.token

    def _not_given(self, error: Exception) -> AsyncsyncError:
        """Their source is a program, a file or a server of somebody else's: whatever it does wrong may pass."""
        where = f"s3://{self._bucket}"
        if isinstance(error, BotoCoreError | ClientError | aiohttp.ClientError):
            return translate("Sign", where, error)
        return UnavailableError(f"Sign {where}: the source of the credentials failed: {type(error).__name__}: {error}")

    async def renew(self) -> None:
        """Get new credentials: from their provider, or by asking the chain again (files may have been replaced)."""
        if self._credentials is None or self._options.access_key is not None:
            return
        before = self._credentials
        async with self._renewing:
            if self._credentials is not before:
                return
            if hasattr(before, "_protected_refresh"):
                try:
                    await before._protected_refresh(is_mandatory=True)  # noqa: SLF001  # the public way waits for the due time
                except Exception as error:
                    raise self._not_given(error) from error
                return
            try:
                _, found = await self._new_session()
            except Exception as error:
                raise self._not_given(error) from error
            if found is not None:
                self._credentials = found
                self._api._request_signer._credentials = found  # noqa: SLF001  # a client keeps its first credentials

    async def locate(self) -> Endpoint:
        """Where the bucket is, as aiobotocore would address it."""
        return await self._ask(self._api)

    async def relocate(self, region: str, location: str) -> Endpoint:
        """The same after the store has sent us elsewhere. StoreError if that is not the same service."""
        current = await self.locate()
        found = regional(current.base, location) if location else (current.base, "")
        if found is None and not region:
            raise StoreError(f"s3://{self._bucket}: {shown(location)} is not the same service")
        base, named = found or (current.base, "")
        region = region or named
        if region and not is_region(region):
            raise StoreError(f"s3://{self._bucket}: {region[:60]!r} is no region")
        if self._options.endpoint_url is not None or not region:
            return Endpoint(base, region or current.region, current.service, current.proxy)
        try:
            async with self._new_client(region) as api:
                return await self._ask(api)
        except (BotoCoreError, ValueError) as error:
            raise StoreError(f"s3://{self._bucket}: region {region!r} cannot be used: {error}") from error

    async def _ask(self, api: Any) -> Endpoint:
        """Let aiobotocore build a PutObject, and take it away from it before it is sent."""

        def take(request: Any, **_: Any) -> None:
            raise _RequestCaptured(request)

        api.meta.events.register_first("before-send.s3.PutObject", take)
        try:
            await api.put_object(Bucket=self._bucket, Key="k")
        except _RequestCaptured as seen:
            request = seen.request
        except (BotoCoreError, ClientError) as error:
            raise translate("PutObject", f"s3://{self._bucket}", error) from error
        finally:
            api.meta.events.unregister("before-send.s3.PutObject", take)
        found = _SIGNATURE.search(_text(request.headers.get("Authorization")))
        base = request.url.partition("?")[0].removesuffix("k")
        region, service = (found["region"], found["service"]) if found else (api.meta.region_name, "s3")
        return Endpoint(base, region, service, _proxy_of(api, base))

    async def ssl_context(self) -> ssl.SSLContext:
        """How the wire checks certificates: as aiobotocore does."""
        verify = self._bundle()
        return await in_thread(tls_context, get_cert_path(verify) if verify else False)

    def _bundle(self) -> str | bool:
        return ca_bundle(self._options, self._session.get_config_variable("ca_bundle"))


@cache
def _loader(data_path: str | None) -> Any:
    """Service models are read once a process, not once a store (0.1 s)."""
    return create_loader(data_path)


class _Configured:
    """A client context whose client is set up on entering."""

    def __init__(self, context: Any, settle: Callable[[Any], None]) -> None:
        self._context = context
        self._settle = settle

    async def __aenter__(self) -> Any:
        api = await self._context.__aenter__()
        self._settle(api)
        return api

    async def __aexit__(self, *exc: object) -> None:
        await self._context.__aexit__(*exc)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value or "")


def _no_credentials() -> Exception:
    from botocore.exceptions import NoCredentialsError

    return NoCredentialsError()  # type: ignore[no-any-return]


def _proxy_of(api: Any, url: str) -> str | None:
    """The proxy that aiobotocore takes from the environment for this endpoint."""
    config = getattr(api._endpoint.http_session, "_proxy_config", None)  # noqa: SLF001  # not told otherwise
    proxy: str | None = config.proxy_url_for(url) if config is not None else None
    return proxy
