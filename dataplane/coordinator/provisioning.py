"""What a coordinator makes for others that they may not make themselves.

The durable consumers of every node that has joined, the key that signs URLs, and any bucket that is
gone. Harmless where they are there; several coordinators may do it at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from dataplane.config import DataPlaneConfig
from dataplane.consumers import tasks_of, triggers_of
from dataplane.presence import make_signing_key, present
from projections.cluster import ClusterView
from projections.projector import Projector
from streams.log import Bus, Log, LogError

logger = logging.getLogger(__name__)
_AGAIN_S, _LOOK_S = 2.0, 5.0
#: Who was provided for is provided for anew after so long.
_FORGET_S = 60.0
#: Commits come in crowds: nodes are looked through once for many.
_GATHER_S = 0.2


class Provisioner:
    """Provides for nodes. `run` in a task."""

    def __init__(self, log: Log, bus: Bus, projector: Projector, config: DataPlaneConfig) -> None:
        self._log, self._bus, self._projector = log, bus, projector
        self._replicas = config.replicas
        self._bounded = config.log_max_age_seconds > 0
        self._provided: set[str] = set()
        self._known_until = 0.0
        self._changed = asyncio.Event()
        projector.on_commit.append(lambda _: self._changed.set())

    async def run(self) -> None:
        """Provide for who has joined and for who joins, for ever."""
        while True:
            self._changed.clear()
            try:
                await self.provide()
            except LogError as error:
                logger.warning("consumers of nodes could not be made: %s", error)
                await asyncio.sleep(_AGAIN_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._changed.wait()
            await asyncio.sleep(_GATHER_S)

    async def provide(self) -> None:
        """Make what is missing."""
        try:
            await present(self._bus)
        except LogError:
            await self._log.ensure_topology(replicas=self._replicas, bounded=self._bounded)
            self._known_until = 0.0
        if time.monotonic() > self._known_until:
            # What was removed by hand is made again.
            await make_signing_key(self._bus)
            self._provided.clear()
            self._known_until = time.monotonic() + _FORGET_S
        with self._projector.store.read() as reader:
            names = [node.name for node in ClusterView(reader).nodes()]
        for name in names:
            if name not in self._provided:
                for durable in (triggers_of(name), tasks_of(name)):
                    await durable.provide(self._log)
                self._provided.add(name)
