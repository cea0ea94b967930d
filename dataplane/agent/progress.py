"""How far transfers are, told to whoever watches now. It is no fact, and kept nowhere."""

from __future__ import annotations

import time

import msgspec

from streams import events
from streams.log import Bus

PROGRESS_S = 0.25


class ProgressMessage(msgspec.Struct, frozen=True):
    """What watchers of ``dp.progress.<transfer>`` are told; not a fact, and kept nowhere."""

    transfer: str
    source: str
    target: str
    path: str
    config_key: str
    done: int
    total: int
    #: Seconds since 1970.
    time: float


class Progress:
    """Tells watchers how far a transfer is, a few times a second. Kept nowhere."""

    def __init__(self, bus: Bus, order: events.TransferAssigned) -> None:
        self._bus = bus
        self._order = order
        self._told = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Tell, unless it was told just now."""
        now = time.monotonic()
        if now - self._told < PROGRESS_S and done < total:
            return
        self._told = now
        order = self._order
        message = ProgressMessage(
            transfer=order.transfer,
            source=order.source,
            target=order.target,
            path=order.entry.path,
            config_key=order.entry.config_key,
            done=done,
            total=total,
            time=time.time(),
        )
        self._bus.tell(f"dp.progress.{order.transfer}", msgspec.json.encode(message))
