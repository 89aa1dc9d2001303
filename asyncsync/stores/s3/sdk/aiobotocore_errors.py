"""Maps errors of aiobotocore to :mod:`asyncsync.errors`."""

from __future__ import annotations

import os
import ssl

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from asyncsync.errors import AccessDeniedError, AsyncsyncError, IntegrityError, StoreError, UnavailableError
from asyncsync.stores.http.errors import UNTRUSTED_ADVICE
from asyncsync.stores.s3.errors import S3Failure


def from_client_error(operation: str, where: str, error: ClientError) -> S3Failure:
    """The error response in a ClientError."""
    details = error.response.get("Error", {})
    meta = error.response.get("ResponseMetadata", {})
    code = str(details.get("Code", ""))
    status = int(meta.get("HTTPStatusCode", 0))
    headers = {str(name).lower(): str(value) for name, value in meta.get("HTTPHeaders", {}).items()}
    region = headers.get("x-amz-bucket-region") or str(details.get("Region", ""))
    return S3Failure(operation, where, status, code, str(details.get("Message", "")), headers, region)


def translate(operation: str, where: str, error: Exception) -> AsyncsyncError:
    """The error for any failure of a request: of the network, the SDK, the credentials, or an error response."""
    text = f"{operation} {where}: {type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, AsyncsyncError):
        return error
    if isinstance(error, ClientError):
        return from_client_error(operation, where, error).error()
    if isinstance(error, NoCredentialsError | PartialCredentialsError | TokenRetrievalError | SSOError):
        return AccessDeniedError(
            f"{operation} {where}: no usable credentials ({error}). Looked at: {_credential_sources()}. Set the "
            "storage options access_key and secret_key, profile, or anonymous=True"
        )
    if isinstance(error, CredentialRetrievalError | MetadataRetrievalError):
        return UnavailableError(f"{operation} {where}: the source of the credentials failed: {error}")
    if isinstance(error, FlexibleChecksumError):
        return IntegrityError(text, retryable=True)
    if _is_untrusted(error):
        return StoreError(f"{text}{UNTRUSTED_ADVICE}")
    if isinstance(error, HTTPClientError | BotoConnectionError | aiohttp.ClientError | OSError):
        return UnavailableError(text)
    if isinstance(error, BotoCoreError):
        return StoreError(text)
    raise error


def _is_untrusted(error: BaseException | None) -> bool:
    """Whether the cause is an untrusted certificate. A retry cannot succeed."""
    for _ in range(10):
        if error is None:
            return False
        if isinstance(error, ssl.SSLCertVerificationError | aiohttp.ClientConnectorCertificateError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _credential_sources() -> str:
    """The sources of the credential chain, in order."""
    known = "set" if os.environ.get("AWS_ACCESS_KEY_ID") else "not set"
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    files = [
        os.environ.get(name) or default
        for name, default in (
            ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
            ("AWS_CONFIG_FILE", "~/.aws/config"),
        )
    ]
    return (
        f"the storage options; AWS_ACCESS_KEY_ID ({known}); profile {profile!r} in {' and '.join(files)}; the metadata "
        "services of container and instance"
    )


def no_credentials() -> Exception:
    """The error of botocore if it found no credentials."""
    return NoCredentialsError()  # type: ignore[no-any-return]
