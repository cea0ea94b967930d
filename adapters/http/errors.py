"""What goes wrong on the way to another node's file server, in words that name the node. Pure.

No URL stands in them, nor what a library says with one: it holds a signature.
"""

from __future__ import annotations

import http.client
import re
import ssl

from adapters.errors import Interrupted, Refused, TransportError, Unreachable
from adapters.reasons import behind, reason


def unreached(who: str, url: str, error: BaseException) -> TransportError:
    """No connection came about to the server of a URL, for this reason."""
    where = re.split("[/?#]", url.partition("//")[2], maxsplit=1)[0].rpartition("@")[2]
    cause = behind(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Refused(f"{who} at {where} does not prove who it is: {cause.verify_message}")
    if isinstance(cause, ValueError | http.client.HTTPException):
        return Unreachable(f"{who}: {where!r} is no address of a server")
    return Unreachable(f"{who} can't be reached at {where}: {reason(cause)}")


def broken_off(who: str, what: str, error: BaseException) -> Interrupted:
    """A connection broke off on the way of something, for this reason."""
    return Interrupted(f"{who} broke off at {what}: {reason(error)}")
