"""What goes on in the cluster, folded from the log as it grows: whom a kill would hit at work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from streams import events
from streams.codec import Recorded, chain_of_trigger
from streams.events import CHAIN_TRIGGERS, FILE_TRIGGERS
from streams.log import Log
from streams.values import S3_NODE

_ENDS = (events.DataSyncCompleted, events.DataSyncFailed)
_DELETION_ENDS = (events.DeletionDone, events.DeletionRefused)


@dataclass
class Scene:
    """Chains, transfers and copies at this moment."""

    chains: int = 0
    open: dict[str, str] = field(default_factory=dict)
    #: Chains that wait for a node's answer, by chain.
    asked: dict[str, str] = field(default_factory=dict)
    moving: dict[str, events.TransferAssigned] = field(default_factory=dict)
    #: Received copies by node and path: the checksum.
    copies: dict[tuple[str, str], str] = field(default_factory=dict)
    registered: dict[str, int] = field(default_factory=dict)
    #: Deletions that have not ended: the node, by request.
    deleting: dict[str, str] = field(default_factory=dict)
    #: Copies that were said to be damaged.
    damaged: set[tuple[str, str, str]] = field(default_factory=set)
    #: Nodes of which NODE_DRAINED was said.
    drained: set[str] = field(default_factory=set)
    sequence: int = 0

    def apply(self, recorded: Recorded) -> None:
        """Fold one fact."""
        event, self.sequence = recorded.event, recorded.sequence
        if isinstance(event, CHAIN_TRIGGERS):
            self.chains += 1
            self.open[recorded.chain] = recorded.type
            if type(event) in FILE_TRIGGERS:
                self.asked[recorded.chain] = recorded.owner
        elif isinstance(event, _ENDS):
            self.open.pop(recorded.chain, None)
            self.asked.pop(recorded.chain, None)
        elif isinstance(event, events.FilesObserved):
            self.asked.pop(recorded.chain, None)
        elif isinstance(event, events.TransferAssigned):
            self.moving[event.transfer] = event
        elif isinstance(event, events.TransferFailed):
            self.moving.pop(event.transfer, None)
        elif isinstance(event, events.TransferSucceeded):
            self.moving.pop(event.transfer, None)
            if event.target != S3_NODE:
                self.copies[event.target, event.entry.path] = event.entry.checksum
        elif isinstance(event, events.FileQuarantined):
            self.damaged.add((event.node, event.path, event.checksum))
            if self.copies.get((event.node, event.path)) == event.checksum:
                del self.copies[event.node, event.path]
        elif isinstance(event, events.DeletionRequested):
            self.deleting[chain_of_trigger(recorded.id)] = event.node
        elif isinstance(event, _DELETION_ENDS):
            self.deleting.pop(event.request, None)
        elif isinstance(event, events.FilesRemoved):
            for path in event.paths:
                self.copies.pop((event.node, path), None)
        elif isinstance(event, events.NodeDrained):
            self.drained.add(event.node)
        elif isinstance(event, events.NodeRegistered):
            name = event.description.name
            self.registered[name] = self.registered.get(name, 0) + 1

    @property
    def calm(self) -> bool:
        """Whether nothing is owed, under way or to be deleted."""
        return not self.open and not self.moving and not self.deleting

    def work_of(self, node: str) -> str:
        """What an agent, or the bucket, has under way, in words; "" if nothing."""
        for order in self.moving.values():
            if order.executor == node:
                return f"receiving {order.entry.path}"
            if node in (order.source, order.target):
                return f"serving {order.entry.path}"
        if node in self.deleting.values():
            return "asked to delete"
        asked = [chain for chain, name in self.asked.items() if name == node]
        return f"asked what it holds by {len(asked)} chains" if asked else ""


class Watcher:
    """Keeps a scene up with the log, and waits for what is seen there."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._changed = asyncio.Condition()
        self.scene = Scene()

    async def follow(self) -> None:
        """Fold the log, for ever."""
        async with aclosing(self._log.read()) as batches:
            async for batch in batches:
                async with self._changed:
                    for recorded in batch:
                        self.scene.apply(recorded)
                    self._changed.notify_all()

    async def until(self, holds: Callable[[Scene], bool], limit_s: float) -> bool:
        """Wait until something holds; whether it did in time."""
        try:
            async with asyncio.timeout(limit_s), self._changed:
                await self._changed.wait_for(lambda: holds(self.scene))
        except TimeoutError:
            return False
        return True
