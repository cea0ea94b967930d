"""Short-lived URLs that prove who may fetch or send what. A signature is bound to all of the URL.

Neither the key nor a signature ever goes into an error's text.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from urllib.parse import urlencode, urlsplit

from adapters.errors import Refused
from adapters.files.digest import hex_of

#: Below it a key could be guessed.
SHORTEST_KEY = 16
ENTRY_ROUTE = "/entry/"
#: What else may be asked of a content: its block map, which of it is there, its changed pages.
MAP_ROUTE, HAVE_ROUTE, PAGES_ROUTE = "/map/", "/have/", "/pages/"
#: Many small contents at once; signed for the digest of the list that is sent.
BATCH_ROUTE = "/batch/"


class BadSignature(Exception):
    """A URL that proves nothing; the text says why."""


class Signer:
    """Makes and checks URLs with a key that all nodes share."""

    def __init__(self, key: bytes, *, plain: bool = True) -> None:
        """`plain`: whether an address without TLS will do. Nobody asks a node for anything, or
        sends it anything, by a URL that is not made here.
        """
        if len(key) < SHORTEST_KEY:
            raise ValueError(f"a signing key needs at least {SHORTEST_KEY} bytes")
        self._key = key
        self._plain = plain

    def url(
        self,
        base: str,
        entry_checksum: str,
        path: str,
        target: str,
        now: float,
        ttl_s: float,
        verb: str = "GET",
        route: str = ENTRY_ROUTE,
    ) -> str:
        """Where `target` may fetch that content under `base`, until `ttl_s` from `now`.

        With the verb ``PUT`` it is where that content may be sent to `target`, and nothing else.
        Who may fetch a content may ask all `route`s about it. Raises `Refused` where `base` is an
        address without TLS and that won't do.
        """
        if not self._plain and urlsplit(base).scheme != "https":
            raise Refused(f"{base} is an address without TLS, and http_plain_too is off")
        expiry = int(now + ttl_s)
        query = {
            "path": path,
            "target": target,
            "expires": str(expiry),
            "signature": self._sign(verb, entry_checksum, path, target, expiry),
        }
        return f"{base.rstrip('/')}{route}{hex_of(entry_checksum)}?{urlencode(query)}"

    def verify(
        self, entry_checksum: str, query: Mapping[str, str], now: float, verb: str = "GET"
    ) -> str:
        """The target that a URL's query was signed for, and for this verb.

        Raises `BadSignature` with the reason.
        """
        missing = [name for name in ("path", "target", "expires", "signature") if name not in query]
        if missing:
            raise BadSignature(f"the URL lacks {', '.join(missing)}")
        if not query["expires"].isascii() or not query["expires"].isdigit():
            raise BadSignature("the URL's expiry is no number")
        expiry = int(query["expires"][:20])
        proper = self._sign(verb, entry_checksum, query["path"], query["target"], expiry)
        if not hmac.compare_digest(proper.encode(), query["signature"].encode(errors="replace")):
            raise BadSignature("wrong signature: another key, or something in the URL was changed")
        if now > expiry:
            raise BadSignature(f"the URL expired {now - expiry:.0f} s ago; do the clocks agree?")
        return query["target"]

    def _sign(self, verb: str, checksum: str, path: str, target: str, expiry: int) -> str:
        # JSON keeps the parts apart: no two different URLs sign the same bytes.
        said = json.dumps([verb, checksum, path, target, expiry]).encode()
        return hmac.new(self._key, said, hashlib.sha256).hexdigest()
