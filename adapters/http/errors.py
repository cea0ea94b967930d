"""What goes wrong on the way to another node's file server, in words that name the node. Pure.

No URL stands in them, nor what a library says with one: it holds a signature.
"""

from __future__ import annotations

import http.client
import os
import re
import ssl

import aiohttp

from adapters.errors import Interrupted, Refused, TransportError, Unreachable

_SAID_CHARS = 200
#: The first that fits counts.
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (TimeoutError, "no answer in time"),
    (http.client.RemoteDisconnected, "it closed the connection without an answer"),
    (aiohttp.ServerDisconnectedError, "it closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "it closed the connection before the end"),
    (http.client.IncompleteRead, "it closed the connection before the end"),
    (http.client.HTTPException, "what it says is no HTTP"),
    (aiohttp.ClientResponseError, "what it says is no HTTP"),
    (ValueError, "what it says is no HTTP"),
)


def unreached(who: str, url: str, error: BaseException) -> TransportError:
    """No connection came about to the server of a URL, for this reason."""
    where = re.split("[/?#]", url.partition("//")[2], maxsplit=1)[0].rpartition("@")[2]
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Refused(f"{who} at {where} does not prove who it is: {cause.verify_message}")
    if isinstance(cause, ValueError | http.client.HTTPException):
        return Unreachable(f"{who}: {where!r} is no address of a server")
    return Unreachable(f"{who} can't be reached at {where}: {reason(cause)}")


def broken_off(who: str, what: str, error: BaseException) -> Interrupted:
    """A connection broke off on the way of something, for this reason."""
    return Interrupted(f"{who} broke off at {what}: {reason(error)}")


def reason(error: BaseException) -> str:
    """Why a connection failed, in the system's words where it has any."""
    error = _cause(error)
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.lower().replace('_', ' ')}"
    for kind, words in _REASONS:
        if isinstance(error, kind):
            return words
    if isinstance(error, OSError):
        number = error.errno or 0
        said = os.strerror(number) if number > 0 else error.strerror or str(error)
        return said[:1].lower() + said[1:_SAID_CHARS]
    return type(error).__name__


def _cause(error: BaseException) -> BaseException:
    """What is behind an error of aiohttp, if anything is."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return error.certificate_error
    return error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
