"""The bytes of S3 over plain signed requests: a tenth of what a client's call costs an object.

Where the bucket is and who may use it, botocore says; how a request is signed, too. It makes each
request once, and keeps connections.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from typing import Any
from urllib.parse import urlencode

import aiohttp
from botocore import exceptions as boto
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from yarl import URL

from adapters.s3.flow import CONNECT_S

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_CONNECTIONS = 64
_READ_BYTES = 1 << 20
_PROBE = "x"


class _Auth(S3SigV4Auth):  # type: ignore[misc]
    """Signs the digest of a body that is known, so that no body is read to sign it."""

    def payload(self, request: Any) -> str:
        return str(request.context["sha256"])


class Wire:
    """Requests to one bucket. Lives on one event loop."""

    def __init__(self, base: str, region: str, credentials: Any) -> None:
        self._base = base
        self._region = region
        self._credentials = credentials
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=_CONNECTIONS),
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        )

    @classmethod
    async def open(cls, session: Any, client: Any, bucket: str, region: str | None) -> Wire:
        """As `client` of `session` would do it. Raises what botocore raises."""
        credentials = await session.get_credentials()
        if credentials is None:
            raise boto.NoCredentialsError
        # The one question to botocore that costs no request and tells where objects are.
        probe = await client.generate_presigned_url(
            "head_object", Params={"Bucket": bucket, "Key": _PROBE}
        )
        base = probe.partition("?")[0].removesuffix(_PROBE)
        return cls(base, region or client.meta.region_name, credentials)

    async def close(self) -> None:
        """Let go of connections."""
        await self._session.close()

    async def ask(
        self,
        method: str,
        key: str,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None,
        body: AsyncIterable[bytes] | None,
        sha256: str,
        length: int,
    ) -> aiohttp.ClientResponse:
        """Ask once; the answer may be one of an error. Keys need no quoting."""
        url = self._base + key
        if query:
            url += "?" + urlencode(query)
        given = dict(headers)
        if method == "PUT":
            given["Content-Length"] = str(length)
        request = AWSRequest(method, url, headers=given)
        request.context["sha256"] = sha256
        known = await self._credentials.get_frozen_credentials()
        _Auth(known, "s3", self._region).add_auth(request)
        return await self._session.request(
            method,
            URL(url, encoded=True),
            headers={**request.headers, "Accept-Encoding": "identity"},
            data=body,
            allow_redirects=False,
            skip_auto_headers=("Content-Type", "User-Agent"),
        )
