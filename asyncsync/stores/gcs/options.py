"""The ``storage_options`` of a Google Cloud Storage store, validated once."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, replace
from typing import ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from asyncsync.errors import ConfigError
from asyncsync.stores.options import StoreOptions, given

GOOGLE_ENDPOINT = "https://storage.googleapis.com"
"""Address of the JSON API (Cloud Storage documentation, "Request endpoints")."""
EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class GcsOptions(StoreOptions):
    """Options of a GCS store. By default, Application Default Credentials apply: ``GOOGLE_APPLICATION_CREDENTIALS``,
    the file written by ``gcloud auth application-default login``, then the machine's metadata server."""

    STORE: ClassVar[str] = "a GCS store"
    SECRETS: ClassVar[frozenset[str]] = frozenset({"token"})

    endpoint_url: str | None = None
    """``http://host:port`` or ``https://...`` of another server. Default: ``STORAGE_EMULATOR_HOST``, else Google's.
    A plain ``http://`` server gets a token only if ``credentials`` or ``token`` is given here."""
    credentials: str | None = None
    """Path of a JSON file: a service account, an authorized user, workload identity or impersonation."""
    token: str | None = None
    """An OAuth 2.0 access token. It is never renewed."""
    anonymous: bool = False
    """Send no token: for public buckets and emulators."""
    user_project: str | None = None
    """The project that pays, for requester-pays buckets."""
    storage_class: str | None = None
    """Such as ``NEARLINE``. Default: the bucket's. It also applies to parts of large files, as composing requires."""
    kms_key_name: str | None = None
    """The customer-managed key that encrypts new objects. Default: the bucket's."""
    predefined_acl: str | None = None
    """Such as ``bucketOwnerFullControl``; not for buckets with uniform access."""
    cache_control: str = "no-cache, no-transform"
    """Cache-Control of new objects. The default keeps caches and gzip from changing what a reader gets."""
    verify: bool | str = True
    """TLS: True verifies certificates; a path names the CA bundle for the storage and the token server; False does not
    verify the storage server's certificate."""

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token.split()) != 1:
            raise ConfigError("storage option token must be one word: the access token, without 'Bearer'")
        if sum(map(bool, (self.anonymous, self.credentials, self.token))) > 1:
            raise ConfigError("storage options anonymous, credentials and token exclude each other: give one")
        self.endpoint()

    def endpoint(self) -> str:
        """Address of the server without a trailing slash. ConfigError if it is invalid."""
        found = self.endpoint_url or os.environ.get(EMULATOR_VARIABLE) or GOOGLE_ENDPOINT
        full = (found if "://" in found else f"http://{found}").rstrip("/")
        server = urlsplit(full)
        try:
            usable = server.scheme in ("http", "https") and bool(server.hostname) and server.port != 0
        except ValueError:  # the port
            usable = False
        if not usable:
            named = "storage option endpoint_url" if self.endpoint_url else EMULATOR_VARIABLE
            raise ConfigError(f"{named}={found!r} is not an address: give http://host:port or https://host")
        return full

    def _emulated(self) -> bool:
        """Whether the environment names an emulator. Like Google's clients, we send no credentials to one."""
        if self.endpoint_url or not os.environ.get(EMULATOR_VARIABLE):
            return False
        return not (urlsplit(self.endpoint()).hostname or "").endswith(".googleapis.com")

    def ssl_context(self) -> ssl.SSLContext | None:
        """None for plain HTTP. Blocking: reads certificates."""
        return self.tls() if self.endpoint().startswith("https://") else None

    def tls(self) -> ssl.SSLContext:
        """How TLS verifies certificates. Blocking."""
        context = ssl.create_default_context(cafile=self.verify if isinstance(self.verify, str) else None)
        if self.verify is False:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def token_tls(self) -> ssl.SSLContext:
        """The same for token requests, whose certificates are always verified. Blocking."""
        return replace(self, verify=self.verify or True).tls()

    def needs_token(self) -> bool:
        """Whether requests carry a token. Credentials found in the environment are not sent to an emulator or over
        plain HTTP."""
        if self.anonymous or self.credentials or self.token:
            return not self.anonymous
        return not (self._emulated() or self.endpoint().startswith("http://"))

    def properties(self) -> dict[str, str]:
        """Properties of a new object, besides its name and checksum."""
        found = {"cacheControl": self.cache_control, "contentType": "application/octet-stream"}
        return found if self.storage_class is None else found | {"storageClass": self.storage_class}

    def object_query(self) -> dict[str, str]:
        """Query parameters of a request that writes an object."""
        return given({"kmsKeyName": self.kms_key_name, "predefinedAcl": self.predefined_acl})

    def destination_query(self, key: str = "kmsKeyName") -> dict[str, str]:
        """The same for a compose and, with ``key="destinationKmsKeyName"``, a rewrite."""
        return given({key: self.kms_key_name, "destinationPredefinedAcl": self.predefined_acl})


def proxy_for(address: str) -> str | None:
    """The proxy for a server, from the environment: ``https_proxy`` or ``http_proxy``, else ``all_proxy``; None for
    hosts in ``no_proxy``. ConfigError if it is not an HTTP proxy."""
    server = urlsplit(address)
    if proxy_bypass(server.netloc.rpartition("@")[2]):
        return None
    proxies = getproxies_environment()
    found = proxies.get(server.scheme) or proxies.get("all")
    if not found:
        return None
    found = found if "://" in found else f"http://{found}"
    if not found.startswith(("http://", "https://")):
        raise ConfigError(
            f"the environment sets a {found.partition(':')[0]} proxy for {server.hostname}, but only HTTP proxies are "
            "supported: set another proxy, or add the host to no_proxy"
        )
    return found
