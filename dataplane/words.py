"""Numbers and facts in words for people: the same on a terminal and on a page.

Pure, but for the local time zone that a time of day needs.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from projections.standing import SWEEP_CHAIN
from streams.codec import STREAM, Recorded
from streams.values import DataEntry, Endpoint, NodeDescription, TransportResult


def summary(recorded: Recorded) -> str:
    """A fact's payload in one line of words."""
    event = recorded.event
    if event is None:
        return f"could not be understood: {recorded.problem}"
    parts = []
    for name in msgspec.structs.fields(type(event)):
        value = getattr(event, name.name)
        if value == name.default or value in ("", None, ()):
            continue
        parts.append(f"{name.name}={_brief(value)}")
    return " ".join(parts)


def clock(seconds: float) -> str:
    """Local time of day with milliseconds, with the date where it isn't today's."""
    moment = datetime.fromtimestamp(seconds).astimezone()
    form = "%H:%M:%S" if moment.date() == datetime.now().date() else "%Y-%m-%d %H:%M:%S"
    return f"{moment.strftime(form)}.{moment.microsecond // 1000:03d}"


def size(count: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def rate(bytes_per_s: float) -> str:
    """Bytes a second in the unit that reads best."""
    text = size(bytes_per_s)
    number, unit = text.split()
    return f"{float(number):.0f} {unit}/s" if float(number) >= 100 else f"{text}/s"


def counted(number: int, one: str, many: str) -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else many}"


def span(seconds: float) -> str:
    """A duration as people say it: two units at most."""
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    for unit, length, below in (("d", 86400, 3600), ("h", 3600, 60), ("min", 60, 1)):
        if seconds >= length:
            whole, rest = divmod(seconds, length)
            smaller = {"d": "h", "h": "min", "min": "s"}[unit]
            part = int(rest // below)
            return f"{whole:.0f} {unit} {part} {smaller}" if part else f"{whole:.0f} {unit}"
    return f"{seconds:.0f} s"


def short(chain: str) -> str:
    """A chain's id where there is little room.

    Of a sweep the number, for they all begin alike; what a message without an id began keeps all
    of its own, which is the stream's name and a sequence.
    """
    if chain.startswith(SWEEP_CHAIN):
        return f"{SWEEP_CHAIN}{chain[-4:]}"
    return chain if chain.startswith(f"{STREAM}-") else chain[:8]


def _brief(value: Any) -> str:
    if isinstance(value, NodeDescription):
        return "+".join((*value.roles, *value.traits)) or value.name
    if isinstance(value, DataEntry):
        return f"{value.path}@{value.checksum[7:15]}"
    if isinstance(value, Endpoint):
        return value.http_url or value.ssh_host or value.node or "-"
    if isinstance(value, TransportResult):
        return f"{value.transport_used}:{'ok' if value.success else value.error_class or 'failed'}"
    if isinstance(value, msgspec.Struct):
        named = [getattr(value, name, "") for name in ("target", "path", "rule", "source_node")]
        return "/".join(str(part) for part in named if part) or type(value).__name__
    if isinstance(value, tuple | list):
        shown = ", ".join(_brief(item) for item in value[:3])
        return f"[{shown}{', …' if len(value) > 3 else ''}]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
