"""A message exactly as the log keeps it, and as one line of a file: nothing is lost of it.

What it means is for `codec` to say. A line is JSON, so that it can be read without this code:
``sequence``, ``time_ns``, ``subject``, ``headers`` and ``body``, or ``body64`` in Base64 where the
body is no text.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from streams.codec import Recorded, decode

#: What a restore puts before the names of headers that the bus would act on; see `as_restored`.
KEPT_PREFIX = "Dp-Kept-"
_KEPT_TIME = "Dp-Kept-At"
_BUS_PREFIXES = ("nats-", "dp-kept-")
_MSG_ID = "Nats-Msg-Id"


class NotALine(ValueError):
    """A line of a file is no message; the text says what is wrong."""


class Stored(NamedTuple):
    """One message of the log, undecoded."""

    sequence: int
    #: Nanoseconds since 1970 by the clock of the log.
    time_ns: int
    subject: str
    headers: Mapping[str, str]
    body: bytes

    def recorded(self) -> Recorded:
        """The fact it is; one that can't be understood carries a `problem`."""
        return decode(self.sequence, self.time_ns / 1e9, self.subject, self.headers, self.body)


class _Line(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    sequence: int
    time_ns: int
    subject: str
    headers: dict[str, str] = {}
    body: str = ""
    body64: str = ""


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Line)


def to_line(message: Stored) -> bytes:
    """A message as one line, with its newline."""
    text, base = "", ""
    try:
        text = message.body.decode()
    except UnicodeDecodeError:
        base = base64.b64encode(message.body).decode()
    line = _Line(
        message.sequence, message.time_ns, message.subject, dict(message.headers), text, base
    )
    return _ENCODER.encode(line) + b"\n"


def from_line(line: bytes) -> Stored:
    """The message of a line. Raises `NotALine`."""
    try:
        said = _DECODER.decode(line)
        body = base64.b64decode(said.body64, validate=True) if said.body64 else said.body.encode()
    except (msgspec.DecodeError, UnicodeError, binascii.Error, RecursionError) as error:
        raise NotALine(str(error)) from None
    if said.sequence < 1 or not 0 <= said.time_ns < 1 << 63:
        raise NotALine(f"sequence {said.sequence} and time {said.time_ns} can't be a message's")
    return Stored(said.sequence, said.time_ns, said.subject, said.headers, body)


# A restored message stands in a new stream, whose server gives it a new time and would act on the
# headers that were meant for the old one (guards, batches, ids from long ago). So it carries the
# time as a header, and those headers under other names. That this is to be undone is known from
# the stream's own configuration, and only up to where the restore ended: nobody who may only
# publish can give a message another time.


def as_restored(message: Stored) -> dict[str, str]:
    """The headers with which a message is stored again, so that `as_stored` gives the old ones."""
    headers = {
        (f"{KEPT_PREFIX}{name}" if name.lower().startswith(_BUS_PREFIXES) else name): value
        for name, value in message.headers.items()
    }
    return {**headers, _KEPT_TIME: str(message.time_ns)}


def as_stored(message: Stored) -> Stored:
    """A restored message as it was before; one that carries no time is left as it is."""
    kept = message.headers.get(_KEPT_TIME, "")
    if not (kept.isascii() and kept.isdigit() and len(kept) < 20):
        return message
    headers = {
        name.removeprefix(KEPT_PREFIX): value
        for name, value in message.headers.items()
        if name != _KEPT_TIME and not name.lower().startswith("nats-")
    }
    return message._replace(time_ns=int(kept), headers=headers)


def msg_id(message: Stored) -> str:
    """The id by which the bus recognised it; "" if it had none."""
    return message.headers.get(_MSG_ID, "")
