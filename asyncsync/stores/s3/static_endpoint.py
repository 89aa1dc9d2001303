"""Endpoint and credentials of a bucket without aiobotocore: a configured endpoint with configured keys.

Importing aiobotocore and reading its service models costs half a second of CPU, more than sending a small checkpoint.
Only simple cases are decided here, in the same way as aiobotocore; it handles all others.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from asyncsync.errors import ConfigError
from asyncsync.stores.http.tls import client_context
from asyncsync.stores.s3.endpoint import DEFAULT_REGION, Endpoint, Keys, S3Access
from asyncsync.stores.s3.options import S3Options

_SIMPLE_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SIMPLE_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.-]+(:\d+)?/?")
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_AIOBOTOCORE_VARIABLES = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_S3_USE_ARN_REGION",
    "AWS_S3_DISABLE_MULTIREGION_ACCESS_POINTS",
)
"""Environment variables that only aiobotocore interprets."""


@dataclass(frozen=True, slots=True, repr=False)
class StaticEndpoint:
    """``keys``: access key, secret key and token; None: requests are not signed."""

    endpoint: Endpoint
    keys: Keys | None
    fixed: bool
    """The keys are storage options and cannot be renewed."""
    ca_bundle: str | bool
    """The CA bundle for TLS; False: certificates are not verified."""
    options: S3Options

    def ssl_context(self) -> ssl.SSLContext | None:
        """Blocking: reads the bundle. None for plain HTTP."""
        if not self.endpoint.base.startswith("https:"):
            return None
        return tls_context(self.ca_bundle, self.options)


class StaticAccess:
    """Keys that are used until the store refuses them as expired. Then, and after a redirect, aiobotocore takes
    over; ``client`` opens it."""

    def __init__(self, known: StaticEndpoint, client: Callable[[], Awaitable[S3Access]]) -> None:
        self._keys, self._fixed, self._client = known.keys, known.fixed, client

    async def credentials(self) -> Keys | None:
        return self._keys

    async def renew(self) -> None:
        if not self._fixed:
            client = await self._client()
            await client.renew()
            self._keys = await client.credentials()

    async def relocate(self, region: str, location: str) -> Endpoint:
        return await (await self._client()).relocate(region, location)


def static_endpoint(bucket: str, options: S3Options, environ: Mapping[str, str] = os.environ) -> StaticEndpoint | None:
    """None: aiobotocore must decide."""
    url = options.endpoint_url or next((environ[name] for name in _ENDPOINT_VARIABLES if environ.get(name)), "")
    if options.needs_aiobotocore or any(environ.get(name) for name in _AIOBOTOCORE_VARIABLES) or _has_config(environ):
        return None
    if options.addressing_style == "virtual" or not _SIMPLE_BUCKET.fullmatch(bucket):
        return None
    if not _SIMPLE_ENDPOINT.fullmatch(url) or any(environ.get(n) or environ.get(n.upper()) for n in _PROXY_VARIABLES):
        return None
    keys = _keys(options, environ)
    if keys is None and not options.anonymous:
        return None
    bundle = ca_bundle(options, environ.get("AWS_CA_BUNDLE"))
    if url.startswith("https:") and bundle is True:
        return None  # it needs the CA bundle of botocore
    region = options.region or region_of(environ) or DEFAULT_REGION
    fixed = options.anonymous or options.access_key is not None
    return StaticEndpoint(Endpoint(f"{url.rstrip('/')}/{bucket}/", region), keys, fixed, bundle, options)


def _has_config(environ: Mapping[str, str]) -> bool:
    return os.path.exists(os.path.expanduser(environ.get("AWS_CONFIG_FILE") or "~/.aws/config"))


def _keys(options: S3Options, environ: Mapping[str, str]) -> Keys | None:
    if options.anonymous:
        return None
    if options.access_key is not None and options.secret_key is not None:
        return options.access_key, options.secret_key, options.session_token
    access_key, secret_key = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not access_key or not secret_key:
        return None
    return access_key, secret_key, environ.get("AWS_SESSION_TOKEN") or environ.get("AWS_SECURITY_TOKEN") or None


def region_of(environ: Mapping[str, str] = os.environ) -> str | None:
    """``AWS_REGION``, which newer SDKs read, else ``AWS_DEFAULT_REGION``."""
    return environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or None


def ca_bundle(options: S3Options, named: str | None) -> str | bool:
    """The CA bundle for TLS: the option, or the bundle ``named`` by environment or profile; True: the default bundle;
    False: none. ConfigError for a missing or empty file."""
    bundle, origin = options.verify, f"storage option verify={options.verify!r}"
    if bundle is True and named:
        bundle, origin = named, f"AWS_CA_BUNDLE={named!r}"
    if isinstance(bundle, str):
        try:
            size = 1 if os.path.isdir(bundle) else os.stat(bundle).st_size
        except OSError as error:
            raise ConfigError(f"{origin}: the CA bundle cannot be read: {error.strerror}") from error
        if not size:
            raise ConfigError(f"{origin}: the CA bundle is empty")
    return bundle


def tls_context(ca_bundle: str | bool, options: S3Options) -> ssl.SSLContext:
    """Blocking. ``ca_bundle``: a path, or False to verify nothing. ConfigError for an unusable file."""
    context = client_context(ca_bundle, "storage option verify or AWS_CA_BUNDLE")
    _load_client_certificate(context, options)
    return context


def client_certificate(options: S3Options) -> str | tuple[str, str] | None:
    """The client's certificate in botocore's form: one file, or the files of certificate and key."""
    if options.client_certificate is None or options.client_key is None:
        return options.client_certificate
    return options.client_certificate, options.client_key


def _load_client_certificate(context: ssl.SSLContext, options: S3Options) -> None:
    if options.client_certificate is None:
        return
    try:
        # Without a password, OpenSSL would ask for that of an encrypted key on the terminal.
        context.load_cert_chain(options.client_certificate, options.client_key, password="")
    except (OSError, ValueError) as error:
        reason = "an encrypted private key" if isinstance(error, ssl.SSLError) and not error.reason else error
        files = f"client_certificate={options.client_certificate!r}"
        files += "" if options.client_key is None else f" with client_key={options.client_key!r}"
        raise ConfigError(
            f"storage option {files} cannot be used: {reason}; it must name a PEM file with certificate and private "
            "key, not encrypted"
        ) from error
