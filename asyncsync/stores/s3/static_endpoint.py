"""Where a bucket is and who asks, known without aiobotocore: an endpoint that was named, with keys that were given.

Importing aiobotocore and reading its service models costs half a second of CPU, which is more than sending a small
checkpoint. Only what is plain is decided here, and the same as aiobotocore would; everything else is left to it.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from asyncsync.errors import ConfigError
from asyncsync.stores.s3.endpoint import DEFAULT_REGION, Endpoint, Keys, S3Access
from asyncsync.stores.s3.options import S3Options

_PLAIN_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PLAIN_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.-]+(:\d+)?/?")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_AIOBOTOCORE_VARIABLES = (
    "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_USE_FIPS_ENDPOINT",
    "AWS_USE_DUALSTACK_ENDPOINT", "AWS_S3_USE_ARN_REGION", "AWS_S3_DISABLE_MULTIREGION_ACCESS_POINTS",
)  # fmt: skip
"""Environment variables that change what aiobotocore would do."""


@dataclass(frozen=True, slots=True, repr=False)
class StaticEndpoint:
    """``keys``: access key, secret key and token; None: requests go out unsigned."""

    target: Endpoint
    keys: Keys | None
    lasting: bool
    """The keys were given as options: there is nobody to ask for new ones."""
    ca_bundle: str | bool
    """What TLS checks with; False: nothing."""

    def ssl_context(self) -> ssl.SSLContext | None:
        """Blocking: reads the bundle. None for plain HTTP."""
        if not self.target.base.startswith("https:"):
            return None
        return tls_context(self.ca_bundle)


class StaticAccess:
    """Keys that hold until the store calls them expired; then, and to be sent to another region, aiobotocore is asked
    after all (``client`` opens it)."""

    def __init__(self, known: StaticEndpoint, client: Callable[[], Awaitable[S3Access]]) -> None:
        self._keys, self._lasting, self._client = known.keys, known.lasting, client

    async def credentials(self) -> Keys | None:
        return self._keys

    async def renew(self) -> None:
        if not self._lasting:
            client = await self._client()
            await client.renew()
            self._keys = await client.credentials()

    async def relocate(self, region: str, location: str) -> Endpoint:
        return await (await self._client()).relocate(region, location)


def static_endpoint(bucket: str, options: S3Options, environ: Mapping[str, str] = os.environ) -> StaticEndpoint | None:
    """None: aiobotocore has to be asked."""
    endpoint = options.endpoint_url or next((environ[name] for name in _ENDPOINTS if environ.get(name)), "")
    if options.profile or any(environ.get(name) for name in _AIOBOTOCORE_VARIABLES) or _has_config(environ):
        return None
    if options.addressing_style == "virtual" or not _PLAIN_BUCKET.fullmatch(bucket):
        return None
    if not _PLAIN_ENDPOINT.fullmatch(endpoint) or any(environ.get(n) or environ.get(n.upper()) for n in _PROXIES):
        return None
    keys = _keys(options, environ)
    if keys is None and not options.anonymous:
        return None
    bundle = ca_bundle(options, environ.get("AWS_CA_BUNDLE"))
    if endpoint.startswith("https:") and bundle is True:
        return None  # the bundle that comes with botocore
    region = options.region or region_of(environ) or DEFAULT_REGION
    lasting = options.anonymous or options.access_key is not None
    return StaticEndpoint(Endpoint(f"{endpoint.rstrip('/')}/{bucket}/", region), keys, lasting, bundle)


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
    """``AWS_REGION``, which newer SDKs read, before ``AWS_DEFAULT_REGION``."""
    return environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or None


def ca_bundle(options: S3Options, named: str | None) -> str | bool:
    """What TLS checks with: the option, or the bundle that environment or profile name. True: the usual ones.
    ConfigError for a file that is not there or empty."""
    bundle, what = options.verify, f"storage option verify={options.verify!r}"
    if bundle is True and named:
        bundle, what = named, f"AWS_CA_BUNDLE={named!r}"
    if isinstance(bundle, str):
        try:
            size = 1 if os.path.isdir(bundle) else os.stat(bundle).st_size
        except OSError as error:
            raise ConfigError(f"{what}: the CA bundle cannot be read: {error.strerror}") from error
        if not size:
            raise ConfigError(f"{what}: the CA bundle is empty")
    return bundle


def tls_context(ca_bundle: str | bool) -> ssl.SSLContext:
    """Blocking. ``ca_bundle``: a path, or False to check nothing."""
    if isinstance(ca_bundle, str):
        directory = os.path.isdir(ca_bundle)
        try:
            return ssl.create_default_context(
                cafile=None if directory else ca_bundle, capath=ca_bundle if directory else None
            )
        except (OSError, ValueError) as error:  # ssl.SSLError is one
            raise ConfigError(f"the CA bundle {ca_bundle!r} (option verify or AWS_CA_BUNDLE): {error}") from error
    context = ssl.create_default_context()
    if not ca_bundle:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
