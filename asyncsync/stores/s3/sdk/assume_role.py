"""Credentials of a role, from STS. The credentials that aiobotocore finds otherwise sign the request to STS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import aiohttp
from aiobotocore.credentials import AioDeferredRefreshableCredentials
from botocore.exceptions import BotoCoreError, ClientError

from asyncsync.stores.s3.options import S3Options
from asyncsync.stores.s3.sdk.aiobotocore_errors import no_credentials, translate

DEFAULT_SESSION_NAME = "asyncsync"


def role_credentials(source: Any, options: S3Options, new_client: Callable[..., Any]) -> Any:
    """Credentials that are requested on first use, and again before they expire. ``source`` signs; ``new_client`` makes
    an STS client with the given keys."""
    names = {"RoleArn": options.role_arn, "ExternalId": options.external_id}
    params = {name: text for name, text in names.items() if text is not None}
    params["RoleSessionName"] = options.role_session_name or DEFAULT_SESSION_NAME

    async def refresh() -> dict[str, str]:
        try:
            return await _assume(source, params, new_client)
        except (BotoCoreError, ClientError, aiohttp.ClientError, OSError) as error:
            raise translate("AssumeRole", str(options.role_arn), error) from error

    return AioDeferredRefreshableCredentials(refresh_using=refresh, method="assume-role")


async def _assume(source: Any, params: dict[str, Any], new_client: Callable[..., Any]) -> dict[str, str]:
    if source is None:
        raise no_credentials()
    frozen = await source.get_frozen_credentials()
    keys = {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
    async with new_client(**keys, aws_session_token=frozen.token) as sts:
        found = (await sts.assume_role(**params))["Credentials"]
    return {
        "access_key": found["AccessKeyId"],
        "secret_key": found["SecretAccessKey"],
        "token": found["SessionToken"],
        "expiry_time": found["Expiration"].isoformat(),
    }
