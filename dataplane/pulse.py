"""Signs of life of a process, for as long as its event loop turns, and its end where it does not.

Whoever supervises is told in each way that there is: a file for ``dataplane up``, datagrams for
systemd. And where nobody supervises, or only looks whether the process exists, it ends itself: a
thread that needs nothing of Python says where each thread stands, and exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from dataplane.standstill import StandsStill

logger = logging.getLogger(__name__)

#: Set for children: a file they touch while their event loop turns.
PULSE_VARIABLE = "DATAPLANE_PULSE_FILE"
#: Set by systemd for units of ``Type=notify``: where it is told how this process does.
SOCKET_VARIABLE = "NOTIFY_SOCKET"
PULSE_S = 5.0
#: A process whose event loop did not turn for so long ends itself, and one that is to end and does
#: not is ended.
HUNG_S = 60.0
#: A process whose pulse was not felt for so long is killed by whoever supervises it: a bit later,
#: so that it can say where it hangs.
PULSE_LIMIT_S = 75.0

_STDERR = 2

_given_up = False


class Pulse:
    """The pulse of this process. One at a time."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, *, hung_s: float | None = None
    ) -> None:
        self._file = environment.get(PULSE_VARIABLE, "")
        self._address = environment.get(SOCKET_VARIABLE, "")
        self._hung_s = HUNG_S if hung_s is None else hung_s
        self._ready = False

    async def beat(self) -> None:
        """Beat until cancelled. From then on the process has as long to end as it may hang."""
        global _given_up
        _given_up = False
        try:
            while not _given_up:
                self._may_go_on()
                if self._file:
                    await asyncio.to_thread(Path(self._file).touch)
                self._tell("WATCHDOG=1" if self._ready else f"EXTEND_TIMEOUT_USEC={_LIMIT_US}")
                await asyncio.sleep(min(PULSE_S, self._hung_s / 4))
        finally:
            if not _given_up:
                self._may_go_on()
                self._tell("STOPPING=1")

    def ready(self) -> None:
        """Say that all has started."""
        self._ready = True
        self._tell("READY=1")

    def _may_go_on(self) -> None:
        """So long from now this process is ended, unless it beats again before."""
        faulthandler.dump_traceback_later(self._hung_s, exit=True, file=_STDERR)

    def _tell(self, words: str) -> None:
        if not self._address:
            return
        # A name that begins so is one of the system's, and of no file.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        # Who can't be told now is told with the next beat.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaking,
        ):
            speaking.setblocking(False)
            speaking.sendto(words.encode(), address)


_LIMIT_US = round(PULSE_LIMIT_S * 1e6)


def stands_still(problem: str) -> StandsStill:
    """What to raise where a loop of this process does nothing: it ends, whatever holds it.

    From now on it has no pulse: a thread that hangs, and keeps it from ending in order, can't keep
    it from ending.
    """
    global _given_up
    _given_up = True
    logger.error("this process ends to be started anew: %s", problem)
    return StandsStill(problem)
