"""Points of the log as people write them: ``10m`` ago, a date and time, or a sequence."""

from __future__ import annotations

import re
import time
from datetime import datetime

from dataplane.config import ConfigError
from projections.travel import sequence_at
from streams.log import ReadingLog

FORMS = "10m, 2h, 16:27, a date and time, or #1234 (a sequence)"
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
#: A time of today.
_CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d)?")
_SEQUENCE = re.compile(r"#?(\d{1,18})")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment_of(text: str, what: str, now: float | None = None) -> float | int:
    """Seconds since 1970 as a float, or a sequence as an int. Raises ConfigError naming `what`."""
    now = time.time() if now is None else now
    if found := _SEQUENCE.fullmatch(text):
        return int(found[1])
    if found := _AGO.fullmatch(text):
        return now - float(found[1]) * _UNITS[found[2]]
    try:
        if _CLOCK.fullmatch(text):
            today = datetime.fromtimestamp(now).date().isoformat()
            text = f"{today}T{text if text[2] == ':' else '0' + text}"
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"{what} {text!r} is none of {FORMS}; a date and time is like 2026-01-31T14:00"
        ) from None


async def point_of(log: ReadingLog, text: str, what: str) -> int:
    """The last sequence at or before what is written; see `moment_of`.

    Raises ConfigError naming `what` where it lies beyond the log's end, or is still to come.
    """
    now = time.time()
    moment = moment_of(text, what, now)
    if isinstance(moment, int):
        last = (await log.state()).last_sequence
        if moment > last:
            raise ConfigError(f"{what} {text!r}: the log ends at {last}")
        return moment
    if moment > now:
        raise ConfigError(f"{what} {text!r} is still to come")
    return await sequence_at(log, moment)
