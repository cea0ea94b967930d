"""How a request to S3 proves who makes it: AWS Signature Version 4 over its digest and headers.

What botocore would sign takes it as long as the whole rest of a small object; this signs the same.
It is pure: the time and the credentials come as arguments. Neither a key nor a signature ever goes
into an error's text.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from functools import lru_cache

_ALGORITHM = "AWS4-HMAC-SHA256"


def signed(
    method: str,
    host: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    *,
    sha256: str,
    now: float,
    region: str,
    access_key: str,
    secret_key: str,
    token: str | None = None,
) -> dict[str, str]:
    """`headers` and those that prove them, for a body with this digest (hexadecimal).

    `path` and `query` are as they go over the wire, quoted, the parts of the query in order of
    their names. `token` belongs to credentials that last for a while only.
    """
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    proving = {"Host": host, "X-Amz-Content-SHA256": sha256, "X-Amz-Date": moment}
    if token:
        proving["X-Amz-Security-Token"] = token
    given = {**headers, **proving}
    lines = sorted((name.lower(), " ".join(value.split())) for name, value in given.items())
    names = ";".join(name for name, _ in lines)
    said = "".join(f"{name}:{value}\n" for name, value in lines)
    request = f"{method}\n{path}\n{query}\n{said}\n{names}\n{sha256}"
    digest = hashlib.sha256(request.encode()).hexdigest()
    signature = hmac.digest(
        _day_key(secret_key, moment[:8], region),
        f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}".encode(),
        "sha256",
    ).hex()
    given["Authorization"] = (
        f"{_ALGORITHM} Credential={access_key}/{scope}, SignedHeaders={names}, "
        f"Signature={signature}"
    )
    return given


# A day's key is the same for all requests of the day.
@lru_cache(maxsize=8)
def _day_key(secret_key: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
