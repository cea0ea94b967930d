"""How processes log: for people or as JSON lines, with the chain and the event a line is about.

No secret of the configuration is ever written, whoever puts it into a message or an exception.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime

from streams.codec import Recorded

#: Shorter ones are words, and would be cut out of everything.
_SHORTEST = 6
_MASK = "[secret]"
#: What the lines of a task are about, as they name it.
_about: ContextVar[dict[str, str]] = ContextVar("about")
_secrets: set[str] = set()


def protect(secrets: Iterable[str]) -> None:
    """Keep these out of everything that is logged or shown from now on."""
    _secrets.update(secret for secret in secrets if len(secret) >= _SHORTEST)


def redacted(text: str) -> str:
    """A text without any protected secret."""
    for secret in _secrets:
        text = text.replace(secret, _MASK)
    return text


def about(recorded: Recorded) -> contextlib.AbstractContextManager[None]:
    """What is logged within, by whatever it calls, is about this fact and its chain."""
    return _within({"event": recorded.id, "type": recorded.type, "chain": recorded.chain})


def about_chain(chain: str, event: str = "") -> contextlib.AbstractContextManager[None]:
    """What is logged within is about this chain, and the fact with the id `event` that moved it."""
    return _within({"event": event, "chain": chain})


@contextlib.contextmanager
def _within(names: dict[str, str]) -> Iterator[None]:
    token = _about.set(names)
    try:
        yield
    finally:
        _about.reset(token)


class PlainFormatter(logging.Formatter):
    """For people."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, its traceback with it."""
        return redacted(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The object: time, level, logger and message always, the others where there are any."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        line |= _about.get({})
        if record.exc_info:
            line["exception"] = redacted(self.formatException(record.exc_info))
        return json.dumps({name: value for name, value in line.items() if value})
