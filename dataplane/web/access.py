"""Who may look: on loopback anybody on this machine, elsewhere who has the token.

The token is compared in constant time, and is never logged, shown or put into a link.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

COOKIE = "dataplane_token"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether an address to listen on, or a name a browser used, is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def token_for(host: str, configured: str, file: Path) -> str:
    """The token that is asked for on `host`: "" on loopback, else the configured one.

    Where none is configured one is made, once, and kept in `file` for its owner alone to read.
    """
    if configured or is_loopback(host):
        return configured
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(24))
    return file.read_text().strip()


def guard(token: str) -> Middleware:
    """Middleware that lets in who may look, and says to browsers what a page may do."""

    @web.middleware
    async def let_in(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not token and not is_loopback(request.url.host or ""):
            # A page elsewhere whose name was made to point here (DNS rebinding).
            raise web.HTTPForbidden(text="ask for this page by a loopback address\n")
        if token and request.query.get("token") is not None:
            return _remember(request, token)
        if token and not _same(_shown(request), token):
            raise web.HTTPUnauthorized(
                text="this page needs a token: add ?token=... once, or send it as a bearer token\n",
                headers={"WWW-Authenticate": 'Bearer realm="dataplane"'},
            )
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(_HEADERS)
            raise
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    return let_in


def _remember(request: web.Request, token: str) -> web.StreamResponse:
    """Take the token out of the address and into a cookie that scripts can't read."""
    if not _same(request.query["token"], token):
        raise web.HTTPUnauthorized(text="that is not the token\n")
    rest = {name: value for name, value in request.query.items() if name != "token"}
    response = web.HTTPSeeOther(str(request.rel_url.with_query(rest)))
    response.set_cookie(
        COOKIE, token, httponly=True, samesite="Strict", secure=request.secure, max_age=30 * 86400
    )
    return response


def _shown(request: web.Request) -> str:
    kind, _, shown = request.headers.get("Authorization", "").partition(" ")
    return shown.strip() if kind.lower() == "bearer" else request.cookies.get(COOKIE, "")


def _same(shown: str, token: str) -> bool:
    return hmac.compare_digest(shown.encode(), token.encode())
