"""What proves a request to S3, beside what botocore makes of the same request."""

from __future__ import annotations

import datetime
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from adapters.s3 import signing
from adapters.s3.signing import signed

NOW = 1_790_000_000.0
DIGEST = "ab" * 32
_WORDS = st.text(st.sampled_from('abcXYZ019-_.~ =/+"*'), max_size=20)
_NAMES = st.sampled_from(["range", "If-Match", "x-amz-meta-size", "x-amz-storage-class"])


def by_botocore(
    method: str, path: str, query: str, headers: dict[str, str], token: str | None, now: float
) -> dict[str, str]:
    """The headers that botocore would send."""
    url = f"https://bucket.example:8333{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method, url, headers=headers | {"X-Amz-Content-SHA256": DIGEST})
    auth = S3SigV4Auth(Credentials("AKID", "secret", token), "s3", "eu-west-3")
    with pytest.MonkeyPatch.context() as patched:
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
        patched.setattr("botocore.auth.get_current_datetime", lambda: moment)
        patched.setattr(auth, "payload", lambda request: DIGEST)
        auth.add_auth(request)
    return dict(request.headers)


def by_us(
    method: str, path: str, query: str, headers: dict[str, str], token: str | None, now: float
) -> dict[str, str]:
    """The headers that we send."""
    given: dict[str, Any] = {"access_key": "AKID", "secret_key": "secret", "token": token}
    return signed(
        method,
        "bucket.example:8333",
        path,
        query,
        headers,
        sha256=DIGEST,
        now=now,
        region="eu-west-3",
        **given,
    )


@given(
    st.sampled_from(["GET", "PUT", "HEAD"]),
    st.text(st.sampled_from("abz09/-_."), max_size=30).map(lambda text: f"/objects/{text}"),
    st.dictionaries(st.sampled_from(["partNumber", "uploadId", "a"]), _WORDS),
    st.dictionaries(_NAMES, _WORDS),
    st.one_of(st.none(), st.just("a token")),
    st.integers(0, 4_000_000_000).map(float),
)
def test_a_request_is_signed_as_botocore_signs_it(
    method: str,
    path: str,
    query: dict[str, str],
    headers: dict[str, str],
    token: str | None,
    now: float,
) -> None:
    """For any method, key, part, header, kind of credentials, and time."""
    asked = urlencode(sorted(query.items()), quote_via=quote, safe="-_.~")
    theirs = by_botocore(method, path, asked, headers, token, now)
    ours = by_us(method, path, asked, headers, token, now)
    assert ours["Authorization"] == theirs["Authorization"]
    assert ours["X-Amz-Date"] == theirs["X-Amz-Date"]
    assert ours.get("X-Amz-Security-Token") == theirs.get("X-Amz-Security-Token")


def test_a_day_has_a_key_of_its_own() -> None:
    """What was signed with the key of another day would be refused."""
    signing._day_key.cache_clear()
    days = [by_us("GET", "/x", "", {}, None, NOW + day * 86_400) for day in range(2)]
    assert len({said["Authorization"] for said in days}) == 2
    for day, said in enumerate(days):
        theirs = by_botocore("GET", "/x", "", {}, None, NOW + day * 86_400)
        assert said["Authorization"] == theirs["Authorization"]
