"""Why a connection failed, in words that hold nothing of what was said over it. Pure."""

from __future__ import annotations

import http.client
import os
import ssl

import aiohttp

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


def reason(error: BaseException) -> str:
    """Why a connection failed, in the system's words where it has any."""
    error = behind(error)
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


def behind(error: BaseException) -> BaseException:
    """What is behind an error of aiohttp, if anything is."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return error.certificate_error
    return error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
