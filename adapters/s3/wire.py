"""The bytes of S3 over plain signed requests: a tenth of what a client's call costs an object.

Where the bucket is and who may use it, botocore says. It makes each request once, and keeps
connections.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
from botocore import exceptions as boto
from yarl import URL

from adapters.s3.flow import CONNECT_S
from adapters.s3.signing import signed

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_CONNECTIONS = 64
_READ_BYTES = 1 << 20
_PROBE = "x"


class Wire:
    """Requests to one bucket. Lives on one event loop."""

    def __init__(self, base: str, region: str, credentials: Any) -> None:
        where = urlsplit(base)
        self._origin = f"{where.scheme}://{where.netloc}"
        self._host = _host(where.scheme, where.netloc)
        self._path = where.path
        self._region = region
        self._credentials = credentials
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=_CONNECTIONS),
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Content-Type", "User-Agent"),
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
        body: AsyncIterable[bytes | memoryview] | bytes,
        sha256: str,
        length: int,
    ) -> aiohttp.ClientResponse:
        """Ask once; the answer may be one of an error. Keys need no quoting."""
        path = self._path + key
        asked = urlencode(sorted((query or {}).items()), quote_via=quote, safe="-_.~")
        known = await self._credentials.get_frozen_credentials()
        given = signed(
            method,
            self._host,
            path,
            asked,
            headers,
            sha256=sha256,
            now=time.time(),
            region=self._region,
            access_key=known.access_key,
            secret_key=known.secret_key,
            token=known.token,
        )
        given["Accept-Encoding"] = "identity"
        if method == "PUT":
            given["Content-Length"] = str(length)
        return await self._session.request(
            method,
            URL(f"{self._origin}{path}?{asked}" if asked else self._origin + path, encoded=True),
            headers=given,
            data=body or None,
            allow_redirects=False,
        )


def _host(scheme: str, netloc: str) -> str:
    """A server as the header ``Host`` names it."""
    usual = {"http": ":80", "https": ":443"}.get(scheme, "")
    return netloc.rpartition("@")[2].removesuffix(usual)
