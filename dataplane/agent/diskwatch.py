"""Says how full this node's disk is whenever that begins to matter, or no longer does (K21).

DISK_TIER_CHANGED is for whoever writes on this node: from STOP_PRODUCTION on, self-play is to stop
until it hears a lower tier. What planning goes by is the node's description, said anew whenever the
free space has moved by more than a little.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from dataplane.policy import Policy
from dataplane.sweeps import tier_of
from streams import events
from streams.codec import fact_id, node_fact
from streams.log import Log, LogError
from streams.values import DiskTier, NodeDescription

logger = logging.getLogger(__name__)
LOOK_S = 10.0
#: A change of the free space by this share of the disk is worth a fact.
_WORTH_SAYING = 0.02


class DiskWatch:
    """One node's disk. `described` is the node's description as it was said last, whoever had it
    said; `describe_anew` says it again.
    """

    def __init__(
        self,
        log: Log,
        node: str,
        data_dir: Path,
        policy: Policy,
        described: Callable[[], NodeDescription],
        describe_anew: Callable[[], Awaitable[None]],
    ) -> None:
        self._log = log
        self._node = node
        self._data_dir = data_dir
        self._policy = policy
        self._described = described
        self._describe_anew = describe_anew
        self.tier = DiskTier.NORMAL

    async def run(self) -> None:
        """Look every few seconds, for ever."""
        while True:
            usage = shutil.disk_usage(self._data_dir)
            try:
                await self.saw(usage.used + usage.free, usage.free)
            except LogError as error:
                logger.debug("how full the disk is could not be said: %s", error)
            await asyncio.sleep(LOOK_S)

    async def saw(self, total: int, free: int) -> None:
        """Say what is worth saying of a disk that looks so."""
        used = 1 - free / total if total else 0.0
        tier = tier_of(used, self.tier, self._policy)
        moved = abs(free - self._described().disk_free_bytes) > _WORTH_SAYING * total
        if tier is not self.tier:
            event = events.DiskTierChanged(
                node=self._node,
                tier=tier,
                before=self.tier,
                used=round(used, 4),
                free_bytes=free,
                total_bytes=total,
            )
            id = fact_id("disk", self._node, time.time_ns())
            await self._log.publish(node_fact(event, self._node, id))
            self.tier = tier
            moved = True
        if moved:
            await self._describe_anew()
