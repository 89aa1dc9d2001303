"""The ``storage_options`` of a Google Cloud Storage store, validated once."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from asyncsync.errors import ConfigError
from asyncsync.stores import option_values as forms
from asyncsync.stores.http.tls import client_context
from asyncsync.stores.options import ObjectKind, StoreOptions, given

GOOGLE_ENDPOINT = "https://storage.googleapis.com"
"""Address of the JSON API (Cloud Storage documentation, "Request endpoints")."""
EMULATOR_VARIABLE = "STORAGE_EMULATOR_HOST"
MAX_METADATA_BYTES = 8192
"""Bytes of an object's custom metadata (Cloud Storage documentation, "Quotas and limits")."""

GcsObjectKind: TypeAlias = ObjectKind | Literal["part"]
"""Parts of a multipart upload are objects, too, until they are composed."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class GcsOptions(StoreOptions):
    """Options of a GCS store. By default, Application Default Credentials apply: ``GOOGLE_APPLICATION_CREDENTIALS``,
    the file written by ``gcloud auth application-default login``, then the machine's metadata server."""

    STORE: ClassVar[str] = "a GCS store"
    SECRETS: ClassVar[frozenset[str]] = frozenset({"token", "encryption_key"})
    FLAGS: ClassVar[frozenset[str]] = frozenset({"anonymous", "temporary_hold", "event_based_hold"})
    FORMS: ClassVar[Mapping[str, Callable[[object], Any]]] = {
        "impersonate_service_account": forms.matching("[!-~]+@[!-~]+", "the e-mail address of a service account"),
        "encryption_key": forms.customer_key,
        "metadata": forms.metadata_pairs(MAX_METADATA_BYTES),
        "content_type": forms.header_text,
        "cache_control": forms.header_text,
    }

    endpoint_url: str | None = None
    """``http://host:port`` or ``https://...`` of another server. Default: ``STORAGE_EMULATOR_HOST``, else Google's.
    A plain ``http://`` server gets a token only if ``credentials`` or ``token`` is given here."""
    credentials: str | None = None
    """Path of a JSON file: a service account, an authorized user, workload identity or impersonation."""
    token: str | None = None
    """An OAuth 2.0 access token. It is never renewed."""
    anonymous: bool = False
    """Send no token: for public buckets and emulators."""
    impersonate_service_account: str | None = None
    """E-mail address of a service account. The credentials found otherwise get its tokens; they need the role Service
    Account Token Creator on it."""
    user_project: str | None = None
    """The project that pays, for requester-pays buckets."""
    storage_class: str | None = None
    """Such as ``NEARLINE``. Default: the bucket's. It applies to data only, and to parts of large files, as composing
    requires; manifests and records are in the bucket's default class."""
    kms_key_name: str | None = None
    """The customer-managed key that encrypts new objects. Default: the bucket's."""
    encryption_key: str | None = None
    """CSEK: a key of 256 bits, as 32 bytes or base64 of them. Every object is encrypted with it, and without it nothing
    can be read: Google does not keep it, and neither does asyncsync."""
    metadata: Mapping[str, str] | None = None
    """Custom metadata of data objects: a mapping of text to text, at most 8 KiB."""
    content_type: str = "application/octet-stream"
    """Content-Type of data objects."""
    temporary_hold: bool = False
    """Put a temporary hold on data objects: they cannot be replaced or deleted until somebody releases it."""
    event_based_hold: bool = False
    """Put an event-based hold on data objects; the bucket's retention period begins when it is released."""
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
        if self.impersonate_service_account is not None and (self.anonymous or self.token):
            other = "anonymous" if self.anonymous else "token"
            raise ConfigError(f"storage options impersonate_service_account and {other} exclude each other: give one")
        self._check_encryption_key(urlsplit(self.endpoint()))

    def _check_encryption_key(self, server: SplitResult) -> None:
        if self.encryption_key is None:
            return
        if self.kms_key_name is not None:
            raise ConfigError("storage options encryption_key and kms_key_name exclude each other: give one")
        if server.scheme == "http" and not forms.is_loopback(server.hostname or ""):
            raise ConfigError(
                f"storage option encryption_key needs https, but the endpoint is http://{server.netloc}: anybody on "
                "the way could read the key"
            )

    def endpoint(self) -> str:
        """Address of the server without a trailing slash. ConfigError if it is invalid."""
        found = self.endpoint_url or os.environ.get(EMULATOR_VARIABLE) or GOOGLE_ENDPOINT
        full = (found if "://" in found else f"http://{found}").rstrip("/")
        try:
            server = urlsplit(full)
            usable = server.scheme in ("http", "https") and bool(server.hostname) and server.port != 0
        except ValueError:  # the port, or unbalanced brackets
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
        """As :meth:`tls`; None for plain HTTP."""
        return self.tls() if self.endpoint().startswith("https://") else None

    def tls(self) -> ssl.SSLContext:
        """How TLS verifies certificates. Blocking: reads them. ConfigError for a CA bundle that cannot be used."""
        return client_context(self.verify, "storage option verify")

    def token_tls(self) -> ssl.SSLContext:
        """The same for token requests, whose certificates are always verified. Blocking."""
        return replace(self, verify=self.verify or True).tls()

    def needs_token(self) -> bool:
        """Whether requests carry a token. Credentials found in the environment are not sent to an emulator or over
        plain HTTP."""
        if self.anonymous or self.credentials or self.token or self.impersonate_service_account:
            return not self.anonymous
        return not (self._emulated() or self.endpoint().startswith("http://"))

    def properties(self, kind: GcsObjectKind) -> dict[str, Any]:
        """Properties of a new object, besides its name and checksum."""
        found: dict[str, Any] = {"cacheControl": self.cache_control, "contentType": "application/octet-stream"}
        if kind in ("data", "report", "part") and self.storage_class is not None:
            found["storageClass"] = self.storage_class
        if kind in ("data", "report"):
            found["contentType"] = self.content_type
            found |= {} if self.metadata is None else {"metadata": dict(self.metadata)}
        holds = {"temporaryHold": self.temporary_hold, "eventBasedHold": self.event_based_hold}
        return found | ({name: True for name, held in holds.items() if held} if kind == "data" else {})

    def describes_copies(self) -> bool:
        """Whether a copy needs properties of its own, because those of its source may lack some."""
        return bool(self.metadata or self.temporary_hold or self.event_based_hold)

    def key_headers(self, prefix: str = "x-goog-encryption") -> str:
        """Header lines with the customer's key, and a line end each; empty without one."""
        if self.encryption_key is None:
            return ""
        digest = forms.key_digest(self.encryption_key, "sha256")
        return f"{prefix}-algorithm: AES256\r\n{prefix}-key: {self.encryption_key}\r\n{prefix}-key-sha256: {digest}\r\n"

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
