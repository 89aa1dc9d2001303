"""What aiobotocore raises, in the words of :mod:`asyncsync.errors`."""

from __future__ import annotations

import ssl

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from asyncsync.errors import AccessDeniedError, AsyncsyncError, IntegrityError, StoreError, UnavailableError
from asyncsync.stores.http1_answer import UNTRUSTED
from asyncsync.stores.s3_errors import Failure


def from_client_error(operation: str, where: str, error: ClientError) -> Failure:
    said = error.response.get("Error", {})
    meta = error.response.get("ResponseMetadata", {})
    code = str(said.get("Code", ""))
    status = int(meta.get("HTTPStatusCode", 0))
    headers = {str(name).lower(): str(value) for name, value in meta.get("HTTPHeaders", {}).items()}
    region = headers.get("x-amz-bucket-region") or str(said.get("Region", ""))
    return Failure(operation, where, status, code, str(said.get("Message", "")), headers, region)


def translate(operation: str, where: str, error: Exception) -> AsyncsyncError:
    """Any failure of a request that is not an answer of the store: the network, the SDK, the credentials."""
    text = f"{operation} {where}: {type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, AsyncsyncError):
        return error
    if isinstance(error, ClientError):
        return from_client_error(operation, where, error).error()
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError):
        return AccessDeniedError(
            f"{operation} {where}: no usable credentials; set access_key and secret_key, profile, anonymous=True, or "
            f"the usual environment variables ({error})"
        )
    if isinstance(error, FlexibleChecksumError):
        return IntegrityError(text, retryable=True)
    if _is_untrusted(error):
        return StoreError(f"{text}{UNTRUSTED}")
    if isinstance(error, HTTPClientError | BotoConnectionError | aiohttp.ClientError | OSError):
        return UnavailableError(text)
    if isinstance(error, BotoCoreError):
        return StoreError(text)
    raise error


def _is_untrusted(error: BaseException | None) -> bool:
    """Whether a certificate was refused: that is final."""
    for _ in range(10):
        if error is None:
            return False
        if isinstance(error, ssl.SSLCertVerificationError | aiohttp.ClientConnectorCertificateError):
            return True
        error = error.__cause__ or error.__context__
    return False
