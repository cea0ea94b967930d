"""What S3 and the ways to it answer, in the errors of a transport.

A server's own words are never passed on, only its code: they may hold anything, a token too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import aiohttp
from botocore import exceptions as boto

from adapters.errors import (
    EntryMissing,
    Interrupted,
    Overtaken,
    Refused,
    Stalled,
    TransportError,
    Unreachable,
)
from adapters.reasons import reason

_ELSEWHERE = "the bucket is in another region or place; set s3_region, or s3_endpoint"
_FULL = "the bucket may hold no more; give it more room"
_HINTS = {
    "NoSuchBucket": "there is no such bucket; create it",
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "AccessDenied": "these credentials may not do this",
    "403": "these credentials may not do this, or are wrong",
    "ExpiredToken": "the credentials have expired",
    "RequestTimeTooSkewed": "this node's clock is wrong",
    "InvalidStorageClass": "this server has no such storage class; set another, or none",
    "InvalidObjectState": "it is archived; have the bucket restore it, then ask again",
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "IllegalLocationConstraintException": _ELSEWHERE,
    "QuotaExceeded": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
}
_NO_ROOM = 507
_HINTS_BY_STATUS = {**dict.fromkeys((301, 302, 307, 308), _ELSEWHERE), _NO_ROOM: _FULL}
_OVERTAKEN = {
    "PreconditionFailed",
    "ConditionalRequestConflict",
    "OperationAborted",
    "NoSuchUpload",
    "412",
}
_PASSING = {
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    # What was sent got spoiled on its way, or parts of two writers met.
    "BadDigest",
    "InvalidDigest",
    "InvalidPart",
    "EntityTooSmall",
}
_MISSING = {"NoSuchKey", "404"}
#: The range begins after the end of the object.
_TOO_SHORT = {"InvalidRange", "416"}
_UNREACHABLE = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    boto.ConnectTimeoutError,
    boto.ProxyConnectionError,
    boto.SSLError,
)
_BROKEN_OFF = (
    aiohttp.ClientError,
    boto.HTTPClientError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
)
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.TokenRetrievalError,
)
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")


class ObjectDamaged(EntryMissing):
    """An object is there, and is not the one that was stored: its content is not held there."""


@contextlib.contextmanager
def in_our_words(what: str) -> Iterator[None]:
    """Turn what botocore and aiohttp raise into the errors of a transport."""
    try:
        yield
    except boto.ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise meaning(error.response.get("Error", {}).get("Code", ""), status, what) from None
    except _NO_CREDENTIALS as error:
        raise Refused(
            f"{what}: no credentials ({type(error).__name__}): set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or a profile"
        ) from None
    except boto.EndpointConnectionError as error:
        if isinstance(error.kwargs.get("error"), aiohttp.ClientConnectorError):
            raise _unreached(what, error) from None
        raise _broken_off(what, error) from None
    except _UNREACHABLE as error:
        raise _unreached(what, error) from None
    except (TimeoutError, boto.ReadTimeoutError):
        raise Stalled(f"{what}: no byte and no answer for too long") from None
    except _BROKEN_OFF as error:
        raise _broken_off(what, error) from None
    except boto.BotoCoreError as error:
        raise Refused(
            f"{what}: {type(error).__name__}; look at s3_bucket, s3_endpoint and s3_region"
        ) from None


def _unreached(what: str, error: Exception) -> Unreachable:
    return Unreachable(
        f"{what} can't be reached: {_why(error)}; look at s3_endpoint, and at the way there"
    )


def _broken_off(what: str, error: Exception) -> Interrupted:
    return Interrupted(f"{what}: the connection broke off: {_why(error)}")


def _why(error: Exception) -> str:
    """The reason that botocore was given, or has itself."""
    if isinstance(error, boto.ConnectTimeoutError):
        return "no answer in time"
    behind = error.kwargs.get("error") if isinstance(error, boto.BotoCoreError) else None
    return reason(behind if isinstance(behind, Exception) else error)


def code_in(body: str, status: int) -> str:
    """The code that an answer names; its status if it names none, as one to a HEAD."""
    found = _CODE.search(body)
    return found[1] if found else str(status) if not body else ""


def meaning(said: str, status: int, what: str) -> TransportError:
    """What a server's code means."""
    code = said if re.fullmatch(r"[A-Za-z0-9.]{1,64}", said) else "an unknown error"
    if code in _OVERTAKEN:
        return Overtaken(f"{what}: {code}")
    if code in _PASSING or status == 429 or (status >= 500 and status != _NO_ROOM):
        return Interrupted(f"{what}: {code}")
    if code in _MISSING:
        return EntryMissing(f"{what}: the bucket does not hold it")
    if code in _TOO_SHORT:
        return ObjectDamaged(f"{what} is damaged: it is shorter than what was stored")
    hint = _HINTS.get(code) or _HINTS_BY_STATUS.get(status, f"status {status}")
    return Refused(f"{what}: {code}: {hint}")
