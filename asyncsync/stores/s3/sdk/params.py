"""Headers of S3 as the parameters of botocore's operations. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_METADATA = "x-amz-meta-"
_ENCRYPTION = "x-amz-server-side-encryption"
_SOURCE_KEY = "x-amz-copy-source-server-side-encryption-customer"
_NAMES = {
    "cache-control": "CacheControl",
    "content-md5": "ContentMD5",
    "content-type": "ContentType",
    "if-match": "IfMatch",
    "if-none-match": "IfNoneMatch",
    "range": "Range",
    "x-amz-acl": "ACL",
    "x-amz-checksum-algorithm": "ChecksumAlgorithm",
    "x-amz-checksum-crc32c": "ChecksumCRC32C",
    "x-amz-checksum-mode": "ChecksumMode",
    "x-amz-checksum-type": "ChecksumType",
    "x-amz-copy-source-if-match": "CopySourceIfMatch",
    "x-amz-copy-source-range": "CopySourceRange",
    "x-amz-expected-bucket-owner": "ExpectedBucketOwner",
    "x-amz-metadata-directive": "MetadataDirective",
    "x-amz-mp-object-size": "MpuObjectSize",
    "x-amz-object-lock-legal-hold": "ObjectLockLegalHoldStatus",
    "x-amz-object-lock-mode": "ObjectLockMode",
    "x-amz-object-lock-retain-until-date": "ObjectLockRetainUntilDate",
    "x-amz-request-payer": "RequestPayer",
    "x-amz-source-expected-bucket-owner": "ExpectedSourceBucketOwner",
    "x-amz-sdk-checksum-algorithm": "ChecksumAlgorithm",
    "x-amz-storage-class": "StorageClass",
    "x-amz-tagging": "Tagging",
    "x-amz-tagging-directive": "TaggingDirective",
    _ENCRYPTION: "ServerSideEncryption",
    f"{_ENCRYPTION}-aws-kms-key-id": "SSEKMSKeyId",
    f"{_ENCRYPTION}-bucket-key-enabled": "BucketKeyEnabled",
    f"{_ENCRYPTION}-context": "SSEKMSEncryptionContext",
    f"{_ENCRYPTION}-customer-algorithm": "SSECustomerAlgorithm",
    f"{_ENCRYPTION}-customer-key": "SSECustomerKey",
    f"{_ENCRYPTION}-customer-key-md5": "SSECustomerKeyMD5",
    f"{_SOURCE_KEY}-algorithm": "CopySourceSSECustomerAlgorithm",
    f"{_SOURCE_KEY}-key": "CopySourceSSECustomerKey",
    f"{_SOURCE_KEY}-key-md5": "CopySourceSSECustomerKeyMD5",
}
"""botocore encodes a customer's key only if it has to compute the MD5 of the key; here both are given as sent."""


def params_of(headers: Mapping[str, str]) -> dict[str, Any]:
    """The parameters that make botocore send these headers. Names are in lower case."""
    found: dict[str, Any] = {_NAMES[name]: text for name, text in headers.items() if not name.startswith(_METADATA)}
    metadata = {name[len(_METADATA) :]: text for name, text in headers.items() if name.startswith(_METADATA)}
    if metadata:
        found["Metadata"] = metadata
    if "MpuObjectSize" in found:
        found["MpuObjectSize"] = int(found["MpuObjectSize"])
    if "BucketKeyEnabled" in found:
        found["BucketKeyEnabled"] = found["BucketKeyEnabled"] == "true"
    return found
