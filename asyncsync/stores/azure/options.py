"""The ``storage_options`` of an Azure store, the environment, and the storage path, resolved to an account."""

from __future__ import annotations

import base64
import binascii
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from asyncsync.errors import ConfigError
from asyncsync.stores.http.tls import client_context
from asyncsync.stores.options import StoreOptions, given

DEVELOPMENT_ACCOUNT = "devstoreaccount1"
DEVELOPMENT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account of the emulators; its key is public (Azurite documentation, "Well-known storage account and key")."""
DEVELOPMENT_ENDPOINT = f"http://127.0.0.1:10000/{DEVELOPMENT_ACCOUNT}"
_ACCOUNT_VARIABLES = ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")
_KEY_VARIABLES = ("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY")
_SAS_VARIABLE = "AZURE_STORAGE_SAS_TOKEN"
_CONNECTION_VARIABLE = "AZURE_STORAGE_CONNECTION_STRING"
_ENDPOINT_VARIABLE = "AZURE_STORAGE_ENDPOINT"
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER = re.compile(r"[a-z0-9](?:[a-z0-9-]{1,61}[a-z0-9])|\$root|\$web|\$logs")
"""Azure documentation, "Naming and referencing containers, blobs, and metadata"."""
_HOST = re.compile(r"([a-z0-9]{3,24})(?:\.z[0-9]{1,2})?\.(blob|dfs)\.([a-z0-9.-]+)")
_SAS = re.compile(r"[!-~]*\bsig=[!-~]+")
_AUTHORIZATIONS = ("account_key", "sas_token", "connection_string", "token", "credential", "anonymous")
Credential = Literal["default", "workload", "managed", "cli"]


@dataclass(frozen=True, slots=True)
class Location:
    """The parts of a storage path. ``endpoint``: address of the account; empty if the path does not name it."""

    container: str
    prefix: str
    account: str = ""
    endpoint: str = ""
    sas: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Account:
    """The address of requests, and their authorization: the first of ``key``, ``sas``, ``token`` and ``credential``
    that is set. Without any of them requests are anonymous."""

    name: str
    endpoint: str
    """``https://host`` or ``http://host:port/path``, without a slash at the end."""
    key: bytes = field(default=b"", repr=False)
    sas: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    credential: Credential | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AzureOptions(StoreOptions):
    """Options of an Azure store. Without an option that authorizes, the environment does (``AZURE_STORAGE_*``), else
    azure-identity's default chain."""

    STORE: ClassVar[str] = "an Azure store"
    SECRETS: ClassVar[frozenset[str]] = frozenset({"account_key", "sas_token", "connection_string", "token"})
    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "credential": ("default", "workload", "managed", "cli"),
        "access_tier": ("Hot", "Cool", "Cold"),
    }

    account: str | None = None
    """Name of the storage account. Default: from the storage path, ``connection_string`` or
    ``AZURE_STORAGE_ACCOUNT``."""
    account_key: str | None = None
    """Key of the account, base64. Default: ``AZURE_STORAGE_KEY``."""
    sas_token: str | None = None
    """A shared access signature: ``sv=...&sig=...``. Default: ``AZURE_STORAGE_SAS_TOKEN``."""
    connection_string: str | None = None
    """``AccountName=...;AccountKey=...``, or with ``SharedAccessSignature=...``. Default:
    ``AZURE_STORAGE_CONNECTION_STRING``."""
    token: str | None = None
    """An access token of Microsoft Entra ID. It is never renewed."""
    credential: Credential | None = None
    """Where azure-identity gets tokens: ``default`` (its chain), ``workload`` (a federated token file), ``managed``
    (the machine's identity) or ``cli`` (``az login``)."""
    client_id: str | None = None
    """Of a managed or workload identity. Default: ``AZURE_CLIENT_ID``."""
    tenant_id: str | None = None
    """Default: ``AZURE_TENANT_ID``."""
    anonymous: bool = False
    """Send requests without authorization: for public containers."""
    endpoint_url: str | None = None
    """Address of the account's blob service, for other clouds and emulators. Default: the storage path's, else
    ``AZURE_STORAGE_ENDPOINT``, else ``https://ACCOUNT.blob.core.windows.net``."""
    access_tier: str | None = None
    """``Hot``, ``Cool`` or ``Cold``. Default: the account's. It applies to data only, not to manifests and records."""
    encryption_scope: str | None = None
    """Name of the encryption scope of new blobs. Default: the container's."""
    verify: bool | str = True
    """TLS: True verifies the certificate; a path names the CA bundle for this; False does not verify it."""

    def __post_init__(self) -> None:
        named = [name for name in _AUTHORIZATIONS if getattr(self, name)]
        if len(named) > 1:
            raise ConfigError(f"storage options {' and '.join(named)} exclude each other: give one")
        if self.token is not None and not re.fullmatch("[!-~]+", self.token):
            raise ConfigError("storage option token must be one word: the access token, without 'Bearer'")
        if self.account is not None and not _ACCOUNT.fullmatch(self.account):
            raise ConfigError(
                f"storage option account={self.account!r} must be 3 to 24 lowercase letters and digits, without host"
            )

    @classmethod
    def _check(cls, name: str, value: object) -> None:
        if name == "endpoint_url" and "?" in str(value):
            raise ConfigError("storage option endpoint_url must not contain a query: pass a SAS as sas_token")
        super(AzureOptions, cls)._check(name, value)  # a class with slots is made twice: super() would mean the first

    def blob_headers(self, *, data: bool = True) -> dict[str, str]:
        """Headers of a request that writes a blob. ``data``: False for manifests, records and markers."""
        return given(
            {
                "x-ms-access-tier": self.access_tier if data else None,
                "x-ms-encryption-scope": self.encryption_scope,
            }
        )

    def block_headers(self) -> dict[str, str]:
        """Headers of a request that writes a block."""
        return given({"x-ms-encryption-scope": self.encryption_scope})

    def ssl_context(self) -> ssl.SSLContext:
        """How TLS verifies certificates. Blocking: reads them. ConfigError for a CA bundle that cannot be used."""
        return client_context(self.verify, "storage option verify")


# Storage paths


def location_of(uri: str) -> Location:
    """The parts of a storage path. ConfigError, which never shows the query: it may be a SAS."""
    address, _, query = uri.partition("?")
    scheme, _, rest = address.partition("://")
    if query and not _SAS.fullmatch(query):
        raise ConfigError(f"storage path {address!r} has a query that is not a SAS: pass storage_options instead")
    host, _, path = rest.partition("/")
    if scheme.lower() in ("https", "http"):
        return _from_url(scheme.lower(), address, host, path, query)
    if "@" in host:
        container, _, server = host.partition("@")
        return _from_host(address, container, server, path, query)
    return _located(address, host, path, sas=query)


def _from_url(scheme: str, address: str, host: str, path: str, sas: str) -> Location:
    known = _HOST.fullmatch(host.lower())
    container, _, prefix = unquote(path).partition("/")
    if known is None or scheme != "https":
        raise ConfigError(
            f"storage path {_hidden(address)!r} is not https://ACCOUNT.blob.core.windows.net/container/prefix; for "
            "another server use az://container/prefix and storage_options={'endpoint_url': ...}"
        )
    return _located(address, container, prefix, known[1], f"https://{host.lower().replace('.dfs.', '.blob.', 1)}", sas)


def _from_host(address: str, container: str, server: str, path: str, sas: str) -> Location:
    known = _HOST.fullmatch(server.lower())
    if known is None:
        raise ConfigError(
            f"storage path {_hidden(address)!r} must be abfss://container@ACCOUNT.dfs.core.windows.net/prefix; keys "
            "and other servers belong in storage_options"
        )
    endpoint = f"https://{server.lower().replace('.dfs.', '.blob.', 1)}"
    return _located(address, container, path, known[1], endpoint, sas)


def _located(
    address: str, container: str, prefix: str, account: str = "", endpoint: str = "", sas: str = ""
) -> Location:
    if not _CONTAINER.fullmatch(container) or "--" in container:
        raise ConfigError(
            f"storage path {_hidden(address)!r} has no valid container: a name has 3 to 63 lowercase letters, digits "
            "and single dashes, as in az://container/prefix"
        )
    return Location(container, prefix.strip("/"), account, endpoint, sas)


def _hidden(address: str) -> str:
    """An address for messages, without a part that may be a password."""
    scheme, separator, rest = address.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{separator}***@{host}" if at and (":" in user or "/" in user) else address


# Accounts


def account_of(options: AzureOptions, location: Location, environ: Mapping[str, str] = os.environ) -> Account:
    """The account that options, storage path and environment describe, in this order. ConfigError if one is missing or
    two contradict each other."""
    if location.sas and any(getattr(options, name) for name in _AUTHORIZATIONS):
        raise ConfigError("the storage path has a SAS, and storage options authorize too: give one")
    fields, origin = _connection(options, location, environ)
    name = options.account or location.account or fields.get("accountname", "") or _first(environ, _ACCOUNT_VARIABLES)
    if location.account and name != location.account:
        raise ConfigError(f"storage option account={name!r} is not the storage path's account {location.account!r}")
    endpoint = _endpoint(options, location, fields, name, environ)
    if not name:
        name = _account_in(endpoint)
    if not name:
        raise ConfigError(
            "no storage account: give the storage option account or connection_string, set AZURE_STORAGE_ACCOUNT, or "
            "use abfss://container@ACCOUNT.dfs.core.windows.net/prefix"
        )
    return _authorized(Account(name, endpoint), options, location, fields, origin, environ)


def _connection(options: AzureOptions, location: Location, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The fields of the connection string that applies, and where it comes from. That of the environment applies only
    if nothing else authorizes."""
    if options.connection_string:
        return parse_connection_string(options.connection_string, "storage option connection_string")
    if location.sas or any(getattr(options, name) for name in _AUTHORIZATIONS) or not environ.get(_CONNECTION_VARIABLE):
        return {}, ""
    fields, origin = parse_connection_string(environ[_CONNECTION_VARIABLE], _CONNECTION_VARIABLE)
    wanted = options.account or location.account
    return ({}, "") if wanted and fields.get("accountname") not in (None, wanted) else (fields, origin)


def parse_connection_string(text: str, origin: str) -> tuple[dict[str, str], str]:
    """Fields of a connection string by their names in lower case, and ``origin``. ConfigError without any value."""
    fields: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in text.split(";"))):
        name, equals, value = item.partition("=")
        if not equals or not name.isalnum():
            raise ConfigError(f"{origin} is malformed: it must be Name=value;Name=value")
        fields[name.lower()] = value
    if fields.get("usedevelopmentstorage", "").lower() == "true":
        development = {"accountname": DEVELOPMENT_ACCOUNT, "accountkey": DEVELOPMENT_KEY}
        fields = {**development, "blobendpoint": DEVELOPMENT_ENDPOINT, **fields}
    if not {"accountname", "blobendpoint"} & set(fields):
        raise ConfigError(f"{origin} names neither AccountName nor BlobEndpoint")
    return fields, origin


def _endpoint(
    options: AzureOptions, location: Location, fields: Mapping[str, str], name: str, environ: Mapping[str, str]
) -> str:
    suffix = fields.get("endpointsuffix") or "core.windows.net"
    scheme = fields.get("defaultendpointsprotocol", "https").lower()
    found = (
        options.endpoint_url
        or location.endpoint
        or fields.get("blobendpoint")
        or environ.get(_ENDPOINT_VARIABLE)
        or (f"{scheme}://{name}.blob.{suffix}" if name else "")
    ).rstrip("/")
    server = urlsplit(found)
    try:
        usable = server.scheme in ("http", "https") and bool(server.hostname) and server.port != 0
    except ValueError:  # the port
        usable = False
    if name and (not usable or server.query or "@" in server.netloc):
        raise ConfigError(
            f"the address of the account {name!r} must be http://host:port or https://host, without a query: check "
            f"endpoint_url, {_ENDPOINT_VARIABLE} and the connection string"
        )
    return found


def _account_in(endpoint: str) -> str:
    """The account in the address of its blob service, also in the path as emulators have it."""
    server = urlsplit(endpoint)
    known = _HOST.fullmatch(server.hostname or "")
    if known is not None:
        return known[1]
    path = server.path.strip("/")
    return path if _ACCOUNT.fullmatch(path) else ""


def _authorized(
    account: Account,
    options: AzureOptions,
    location: Location,
    fields: Mapping[str, str],
    origin: str,
    environ: Mapping[str, str],
) -> Account:
    def made(**authorization: object) -> Account:
        return Account(account.name, account.endpoint, **authorization)  # type: ignore[arg-type]

    if options.anonymous:
        return account
    if options.account_key:
        return made(key=_key(options.account_key, "storage option account_key"))
    if options.sas_token or location.sas:
        return made(sas=sas_of(options.sas_token or location.sas, "storage option sas_token"))
    if options.token:
        return made(token=options.token)
    if fields.get("accountkey"):
        return made(key=_key(fields["accountkey"], origin))
    if fields.get("sharedaccesssignature"):
        return made(sas=sas_of(fields["sharedaccesssignature"], origin))
    if not options.credential and not options.connection_string:
        if key := _first(environ, _KEY_VARIABLES):
            return made(key=_key(key, _KEY_VARIABLES[0]))
        if environ.get(_SAS_VARIABLE) and account.endpoint.startswith("https:"):
            return made(sas=sas_of(environ[_SAS_VARIABLE], _SAS_VARIABLE))
    return _with_identity(account, options)


def _with_identity(account: Account, options: AzureOptions) -> Account:
    """Only over https: over plain HTTP everybody on the way could read the tokens."""
    if account.endpoint.startswith("https:"):
        return Account(account.name, account.endpoint, credential=options.credential or "default")
    if options.credential:
        raise ConfigError(f"storage option credential={options.credential!r} needs https, not {account.endpoint}")
    raise ConfigError(
        f"nothing authorizes requests to {account.endpoint}: give the storage option account_key, sas_token, token or "
        "anonymous"
    )


def _key(text: str, origin: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ConfigError(f"{origin} has no valid account key: it must be base64, as the portal shows it")
    return key


def sas_of(text: str, origin: str) -> str:
    """A shared access signature as the end of a query. ConfigError without its value."""
    sas = text.strip().lstrip("?&")
    if not _SAS.fullmatch(sas) or "#" in sas:
        raise ConfigError(f"{origin} has no valid SAS: it must be the query of a signed address, with sig=...")
    return sas


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environ[name] for name in names if environ.get(name)), "")


def check_no_proxy(endpoint: str) -> None:
    """ConfigError if the environment names a proxy for the endpoint: requests go straight to it."""
    server = urlsplit(endpoint)
    proxies = getproxies_environment()
    if not (proxies.get(server.scheme) or proxies.get("all")):
        return
    if not proxy_bypass(server.netloc.rpartition("@")[2]):
        raise ConfigError(
            f"the environment sets a proxy for {server.hostname}, and an Azure store cannot use one: add the host to "
            "no_proxy if it can be reached directly"
        )
