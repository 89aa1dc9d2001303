"""aiobotocore's session, credentials and endpoint for one bucket, and calls of its operations.

aiobotocore is configured to make one attempt, to send no ``Expect: 100-continue`` and to follow no redirect.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from functools import cache, partial
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
from asyncsync.stores.options import ConnectionLimits
from asyncsync.stores.s3.endpoint import DEFAULT_REGION, Endpoint, Keys, is_region, regional, shown
from asyncsync.stores.s3.errors import EXPIRED, EXPLAINED_BY_GET, SKEWED, S3Failure, server_time
from asyncsync.stores.s3.options import S3Options
from asyncsync.stores.s3.responses import check_result
from asyncsync.stores.s3.sdk.aiobotocore_errors import from_client_error, no_credentials, translate
from asyncsync.stores.s3.sdk.assume_role import role_credentials
from asyncsync.stores.s3.sdk.log_filter import redact_logs
from asyncsync.stores.s3.sdk.params import params_of
from asyncsync.stores.s3.sdk.timed_body import TimedBody
from asyncsync.stores.s3.signer import Signer, timestamp_of
from asyncsync.stores.s3.static_endpoint import ca_bundle, client_certificate, region_of, tls_context

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
"""Errors that aiobotocore raises for a response of an unexpected form."""
_LONG_OPERATIONS = frozenset({"complete_multipart_upload", "copy_object", "upload_part_copy"})
"""Operations that may take a store minutes."""
_SHORT_STALL_TIMEOUTS = 4
"""Time limit of all other operations, in stall timeouts."""
_request_address: ContextVar[str] = ContextVar("request_address")
"""The s3:// address of the current request, which botocore's events lack."""


class _SingleAttemptSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore is untyped
    """Disables aiohttp's silent second attempt after a reset."""

    async def _get_session(self, proxy_url: str | None) -> _NoRedirectSession:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)
        session._retry_connection = False  # noqa: SLF001  # no public option
        return _NoRedirectSession(session)


class _NoRedirectSession:
    """Follows no redirect: aiohttp would follow one to any host, with the token and the data."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    def request(self, method: str, **params: Any) -> Any:
        return self._session.request(method, allow_redirects=False, **params)


class _RequestCaptured(Exception):  # noqa: N818  # it carries a request out of botocore; no error
    def __init__(self, request: Any) -> None:
        super().__init__("request captured")
        self.request = request


class AiobotocoreClient:
    """The aiobotocore client of one bucket. :meth:`open` does the I/O. Use it within one event loop."""

    def __init__(self, bucket: str, options: S3Options, limits: ConnectionLimits) -> None:
        self._bucket = bucket
        self._options = options
        self._limits = limits
        self.stall_timeout = limits.stall_timeout
        self._stack = AsyncExitStack()
        self._renewing = asyncio.Lock()
        self._credentials: Any = None
        self._api: Any = None
        self._session: Any = None
        self.skew = 0.0
        """Seconds by which the store's clock is ahead of ours."""

    async def open(self) -> None:
        """Find credentials and create the client. ConfigError for an invalid profile, file or option."""
        redact_logs()
        try:
            if self._options.client_certificate is not None:
                await in_thread(self._tls_context, False)  # botocore's own error names no option
            self._session, self._credentials = await self._new_session()
            self._api = await self._stack.enter_async_context(self._new_client(self._options.region))
        except ConfigError:
            raise  # its message names the setting
        except ProfileNotFound as error:
            raise ConfigError(f"storage option profile={self._options.profile!r}: {error}") from error
        except (CredentialRetrievalError, MetadataRetrievalError, ClientError) as error:
            raise translate("Sign", f"s3://{self._bucket}", error) from error
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(f"s3://{self._bucket} cannot be opened, check the storage options: {error}") from error

    async def close(self) -> None:
        await self._stack.aclose()

    async def _new_session(self) -> tuple[Any, Any]:
        """A session and its credentials; None: none found, or anonymous."""
        options = self._options
        session = AioSession(profile=options.profile)
        session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
        if options.anonymous:
            return session, None
        if options.access_key is not None:
            session.set_credentials(options.access_key, options.secret_key, options.session_token)
        if options.role_arn is None:
            return session, await session.get_credentials()
        source = await session.get_credentials()
        role = role_credentials(source, options, partial(self._new_sts_client, session))
        session._credentials = role  # noqa: SLF001  # the public method takes only fixed keys
        return session, role

    def _config(self) -> AioConfig:
        options = self._options
        extra: dict[str, Any] = {"signature_version": UNSIGNED} if options.anonymous else {}
        if options.client_certificate is not None:
            extra["client_cert"] = client_certificate(options)
        return AioConfig(
            max_pool_connections=self._limits.max_connections,
            s3={"addressing_style": options.addressing_style, "use_accelerate_endpoint": options.accelerate},
            # We send our own checksums where needed, and compare those of responses ourselves.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            http_session_cls=_SingleAttemptSession,
            warm_up_loader_caches=True,  # reads service models in a thread
            **extra,
            **self._common_config(),
        )

    def _common_config(self) -> dict[str, Any]:
        """The part of the configuration that STS has, too. A variant that is not wanted is left to the environment."""
        options, limits = self._options, self._limits
        proxies = None if options.proxy is None else {"http": options.proxy, "https": options.proxy}
        return {
            "connect_timeout": limits.connect_timeout,
            "read_timeout": limits.stall_timeout,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "proxies": proxies,
            "use_dualstack_endpoint": options.dual_stack or None,
            "use_fips_endpoint": options.fips or None,
        }

    def _new_client(self, region: str | None) -> Any:
        region = region or self._region(self._session)
        bundle = self._bundle()
        verify = None if bundle is True else bundle
        return _ConfiguredClient(
            self._session.create_client(
                "s3", region_name=region, endpoint_url=self._options.endpoint_url, verify=verify, config=self._config()
            ),
            self._configure,
        )

    def _region(self, session: Any) -> str:
        named = None if self._options.profile else region_of()  # botocore ignores AWS_REGION
        found = self._options.region or named or session.get_config_variable("region") or DEFAULT_REGION
        return str(found)

    def _new_sts_client(self, session: Any, **keys: Any) -> Any:
        bundle = ca_bundle(self._options, session.get_config_variable("ca_bundle"))
        return session.create_client(
            "sts",
            region_name=self._region(session),
            endpoint_url=self._options.sts_endpoint_url,
            verify=None if bundle is True else bundle,
            config=AioConfig(**self._common_config()),
            **keys,
        )

    def _configure(self, api: Any) -> None:
        events = api.meta.events
        events.unregister("before-call.s3", add_expect_header)
        events.register("before-send.s3", self._sign_with_skew)
        events.unregister("before-parse.s3.*", getattr(handlers, "_handle_200_error", None))  # ours checks more
        events.register_first("before-parse.s3", self._check_result)

    def _check_result(self, operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
        """Check a response before aiobotocore parses it: it takes a success without a result for an empty one."""
        status, name, body = response_dict["status_code"], operation_model.name, response_dict["body"]
        if isinstance(body, bytes) and body:
            body = response_dict["body"] = self._without_secrets(body)
        if status < 300 and isinstance(body, bytes):  # else the body is streamed
            headers = {key.lower(): value for key, value in response_dict["headers"].items()}
            result = check_result(name, _request_address.get(), status, headers, body)
            if result is None:
                response_dict["body"] = b""
            elif not body.startswith(b"<"):
                response_dict["body"] = tostring(result)  # aiobotocore parses only plain UTF-8

    def _without_secrets(self, body: bytes) -> bytes:
        """A document that an error may show. Some servers repeat what they received."""
        for secret in filter(None, (self._options.sse_customer_key, self._options.session_token)):
            body = body.replace(secret.encode(), b"***")
        return body

    def _sign_with_skew(self, request: Any, **_: Any) -> None:
        """Sign again with the store's time if our clock is known to be wrong."""
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
        """Call an operation: one attempt, except that an expired token and a wrong clock are corrected once."""
        _request_address.set(where)
        method = getattr(self._api, operation)
        name = _operation_name(operation)
        params |= params_of(self._options.operation_headers(name))
        corrected = False
        while True:
            try:
                async with asyncio.timeout(self._time_limit(operation)) as limit:
                    if isinstance(body := params.get("Body"), TimedBody):
                        body.start(limit, self.stall_timeout)
                    response: dict[str, Any] = await method(Bucket=self._bucket, **params)
                return response
            except TimeoutError as error:
                raise UnavailableError(f"{name} {where}: no complete response in time {error}".rstrip()) from error
            except ClientError as error:
                failure = from_client_error(name, where, error)
                if operation == "head_object" and failure.status in EXPLAINED_BY_GET:
                    failure = await self._explain(failure, params)
                if corrected or not await self._correct(failure.code, failure.headers):
                    raise failure.error() from error
                corrected = True
            except (BotoCoreError, aiohttp.ClientError, OSError) as error:
                raise translate(name, where, error) from error
            except _UNREADABLE_RESPONSE as error:
                # aiobotocore fails on error responses with a checksum header, and on bodies that are not XML.
                raise UnavailableError(f"{name} {where}: unreadable response: {error}") from error

    def _time_limit(self, operation: str) -> float:
        """Total time limit (s) of a call, because its response may come byte by byte. A :class:`TimedBody` extends
        it."""
        stalls = COLLECT_STALL_TIMEOUTS if operation in _LONG_OPERATIONS else _SHORT_STALL_TIMEOUTS
        return stalls * self.stall_timeout + self._limits.connect_timeout

    async def _explain(self, failure: S3Failure, params: dict[str, Any]) -> S3Failure:
        """Why a HEAD was refused. Its response has no document, so ask again with a GET of one byte."""
        try:
            async with asyncio.timeout(self._time_limit("get_object")):
                response = await self._api.get_object(Bucket=self._bucket, **params | {"Range": "bytes=0-0"})
        except ClientError as error:
            found = from_client_error(failure.operation, failure.where, error)
            return found if found.code not in ("", str(found.status)) else failure
        except (TimeoutError, BotoCoreError, aiohttp.ClientError, OSError, *_UNREADABLE_RESPONSE):
            return failure
        response["Body"].close()
        return failure

    async def _correct(self, code: str, headers: Any) -> bool:
        if code in EXPIRED:
            await self.renew()
            return True
        if code in SKEWED and (server := server_time(headers)) is not None:
            self.skew = server - time.time()
            return True
        return False

    async def credentials(self) -> Keys | None:
        """Access key, secret key and token, renewed when due; None: requests are not signed."""
        if self._options.anonymous:
            return None
        if self._credentials is None:
            raise translate("Sign", f"s3://{self._bucket}", no_credentials())
        try:
            frozen = await self._credentials.get_frozen_credentials()
        except Exception as error:
            raise self._no_credentials_error(error) from error
        return frozen.access_key, frozen.secret_key, frozen.token

    def _no_credentials_error(self, error: Exception) -> AsyncsyncError:
        """Their source is another program, file or server; any of its failures may be transient."""
        where = f"s3://{self._bucket}"
        if isinstance(error, AsyncsyncError | BotoCoreError | ClientError | aiohttp.ClientError):
            return translate("Sign", where, error)
        return UnavailableError(f"Sign {where}: the source of the credentials failed: {type(error).__name__}: {error}")

    async def renew(self) -> None:
        """Get new credentials from their provider, or from the whole chain again (files may have been replaced)."""
        if self._credentials is None or (self._options.access_key is not None and self._options.role_arn is None):
            return
        before = self._credentials
        async with self._renewing:
            if self._credentials is not before:
                return
            if hasattr(before, "_protected_refresh"):
                try:
                    await before._protected_refresh(is_mandatory=True)  # noqa: SLF001  # the public method waits until they are due
                except Exception as error:
                    raise self._no_credentials_error(error) from error
                return
            try:
                _, found = await self._new_session()
            except Exception as error:
                raise self._no_credentials_error(error) from error
            if found is not None:
                self._credentials = found
                self._api._request_signer._credentials = found  # noqa: SLF001  # a client keeps its first credentials forever

    async def locate(self) -> Endpoint:
        """The endpoint that aiobotocore would use."""
        return await self._endpoint_of(self._api)

    async def relocate(self, region: str, location: str) -> Endpoint:
        """The endpoint after a redirect. StoreError if it leads to another service."""
        current = await self.locate()
        found = regional(current.base, location) if location else (current.base, "")
        if found is None and not region:
            raise StoreError(f"s3://{self._bucket}: the redirect to {shown(location)} leads to another service")
        base, named = found or (current.base, "")
        region = region or named
        if region and not is_region(region):
            raise StoreError(f"s3://{self._bucket}: invalid region {region[:60]!r} in a redirect")
        if self._options.endpoint_url is not None or not region:
            return Endpoint(base, region or current.region, current.service, current.proxy)
        try:
            async with self._new_client(region) as api:
                return await self._endpoint_of(api)
        except (BotoCoreError, ValueError) as error:
            raise StoreError(f"s3://{self._bucket}: region {region!r} cannot be used: {error}") from error

    async def _endpoint_of(self, api: Any) -> Endpoint:
        """Let aiobotocore build a PutObject, and capture the request before it is sent."""

        def capture(request: Any, **_: Any) -> None:
            raise _RequestCaptured(request)

        api.meta.events.register_first("before-send.s3.PutObject", capture)
        try:
            await api.put_object(Bucket=self._bucket, Key="k")
        except _RequestCaptured as captured:
            request = captured.request
        except (BotoCoreError, ClientError) as error:
            raise translate("PutObject", f"s3://{self._bucket}", error) from error
        finally:
            api.meta.events.unregister("before-send.s3.PutObject", capture)
        found = _SIGNATURE.search(_text(request.headers.get("Authorization")))
        base = request.url.partition("?")[0].removesuffix("k")
        region, service = (found["region"], found["service"]) if found else (api.meta.region_name, "s3")
        return Endpoint(base, region, service, _proxy_of(api, base))

    async def ssl_context(self) -> ssl.SSLContext:
        """TLS as aiobotocore configures it."""
        verify = self._bundle()
        return await in_thread(self._tls_context, get_cert_path(verify) if verify else False)

    def _tls_context(self, bundle: str | bool) -> ssl.SSLContext:
        return tls_context(bundle, self._options)

    def _bundle(self) -> str | bool:
        return ca_bundle(self._options, self._session.get_config_variable("ca_bundle"))


@cache
def _loader(data_path: str | None) -> Any:
    """Service models are read once per process, not per store (0.1 s)."""
    return create_loader(data_path)


class _ConfiguredClient:
    """A client's context manager that configures the client on entering."""

    def __init__(self, context: Any, configure: Callable[[Any], None]) -> None:
        self._context = context
        self._configure = configure

    async def __aenter__(self) -> Any:
        api = await self._context.__aenter__()
        self._configure(api)
        return api

    async def __aexit__(self, *exc: object) -> None:
        await self._context.__aexit__(*exc)


def _operation_name(method: str) -> str:
    """``ListObjectsV2`` of ``list_objects_v2``."""
    return "".join(word.title() for word in method.split("_"))


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value or "")


def _proxy_of(api: Any, url: str) -> str | None:
    """The proxy that aiobotocore takes from the environment for this endpoint."""
    config = getattr(api._endpoint.http_session, "_proxy_config", None)  # noqa: SLF001  # no public attribute
    proxy: str | None = config.proxy_url_for(url) if config is not None else None
    return proxy
