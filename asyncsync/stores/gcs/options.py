"""What can be said about a Google Cloud Storage store: ``storage_options``, checked once."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, replace
from typing import ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from asyncsync.errors import ConfigError
from asyncsync.stores.options import StoreOptions, given

GOOGLE = "https://storage.googleapis.com"
"""Where the JSON API is (Cloud Storage documentation, "GcsRequest endpoints")."""
EMULATOR = "STORAGE_EMULATOR_HOST"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class GcsOptions(StoreOptions):
    """Options of a GCS store. Without any, Application Default Credentials apply: ``GOOGLE_APPLICATION_CREDENTIALS``,
    the file that ``gcloud auth application-default login`` writes, then the metadata server of the machine."""

    STORE: ClassVar[str] = "a GCS store"
    SECRETS: ClassVar[frozenset[str]] = frozenset({"token"})

    endpoint_url: str | None = None
    """``http://host:port`` or ``https://...`` of another server; default: ``STORAGE_EMULATOR_HOST``, else Google's.
    A plain ``http://`` server gets no token, unless ``credentials`` or ``token`` is given here."""
    credentials: str | None = None
    """Path of a JSON file: a service account, an authorized user, workload identity or impersonation."""
    token: str | None = None
    """An OAuth 2.0 access token, used as it is and never refreshed."""
    anonymous: bool = False
    """Send no token: public buckets, emulators."""
    user_project: str | None = None
    """The project that pays, for buckets whose reader pays."""
    storage_class: str | None = None
    """Such as ``NEARLINE``; default: the bucket's. Parts of large files have it too, as composing demands."""
    kms_key_name: str | None = None
    """The customer-managed key that encrypts new objects; default: the bucket's."""
    predefined_acl: str | None = None
    """Such as ``bucketOwnerFullControl``; not for buckets with uniform access."""
    cache_control: str = "no-cache, no-transform"
    """Of new objects: neither caches nor gzip come between a reader and the bytes."""
    verify: bool | str = True
    """TLS: True checks the certificate, a path names the CA bundle to check with (of the server, and of who gives
    tokens), False does not check the server's."""

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token.split()) != 1:
            raise ConfigError("storage option token must be one word: the access token, without 'Bearer'")
        if sum(map(bool, (self.anonymous, self.credentials, self.token))) > 1:
            raise ConfigError("storage options anonymous, credentials and token exclude each other: give one")
        self.endpoint()

    def endpoint(self) -> str:
        """Scheme and host of the server, without a slash at the end. ConfigError if it is no address."""
        found = self.endpoint_url or os.environ.get(EMULATOR) or GOOGLE
        full = (found if "://" in found else f"http://{found}").rstrip("/")
        server = urlsplit(full)
        try:
            usable = server.scheme in ("http", "https") and bool(server.hostname) and server.port != 0
        except ValueError:  # the port
            usable = False
        if not usable:
            named = "storage option endpoint_url" if self.endpoint_url else EMULATOR
            raise ConfigError(f"{named}={found!r} is no address: give http://host:port or https://host")
        return full

    def _emulated(self) -> bool:
        """Whether the environment names an emulator. Google's clients send no credentials to one."""
        if self.endpoint_url or not os.environ.get(EMULATOR):
            return False
        return not (urlsplit(self.endpoint()).hostname or "").endswith(".googleapis.com")

    def ssl_context(self) -> ssl.SSLContext | None:
        """None for a plain connection. Blocking: reads certificates."""
        return self.tls() if self.endpoint().startswith("https://") else None

    def tls(self) -> ssl.SSLContext:
        """What TLS checks. Blocking."""
        context = ssl.create_default_context(cafile=self.verify if isinstance(self.verify, str) else None)
        if self.verify is False:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def token_tls(self) -> ssl.SSLContext:
        """The same for requests for tokens, which are always checked. Blocking."""
        return replace(self, verify=self.verify or True).tls()

    def needs_token(self) -> bool:
        """Whether requests carry one. Credentials that are found, not given, go neither to an emulator nor over a
        connection in the clear."""
        if self.anonymous or self.credentials or self.token:
            return not self.anonymous
        return not (self._emulated() or self.endpoint().startswith("http://"))

    def properties(self) -> dict[str, str]:
        """What a new object is told beside its name and checksum."""
        found = {"cacheControl": self.cache_control, "contentType": "application/octet-stream"}
        return found if self.storage_class is None else found | {"storageClass": self.storage_class}

    def object_query(self) -> dict[str, str]:
        """Query parameters of a request that makes an object."""
        return given({"kmsKeyName": self.kms_key_name, "predefinedAcl": self.predefined_acl})

    def destination_query(self, key: str = "kmsKeyName") -> dict[str, str]:
        """The same for compose and, with ``key="destinationKmsKeyName"``, rewrite."""
        return given({key: self.kms_key_name, "destinationPredefinedAcl": self.predefined_acl})


def proxy_for(address: str) -> str | None:
    """The proxy that the environment names for a server: ``https_proxy`` or ``http_proxy``, else ``all_proxy``;
    ``no_proxy`` lists who is reached without. ConfigError if it is none that speaks HTTP."""
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
            f"the environment names a {found.partition(':')[0]} proxy; {server.hostname} is reached through HTTP "
            "proxies only: name another one, or put it into no_proxy"
        )
    return found
