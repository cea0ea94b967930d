"""Compares what the log says a node holds with what is on its disk, and says the difference.

A scan tells what changed since the last one; this finds what no scan would: files that went
together with the index that knew them, and files of which the log never heard. It must never call a
file lost that a transfer is just bringing, so a difference counts only if it is still there a
moment later.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

import msgspec

from adapters.files.inventory import Inventory
from dataplane.held import held_by
from streams import events
from streams.codec import Fact, fact_id, node_fact, split_entries
from streams.log import Bus, Log
from streams.values import DataEntry

logger = logging.getLogger(__name__)
#: A difference is looked at again after so long.
SETTLE_S = 5.0


class Difference(msgspec.Struct, frozen=True):
    """What log and disk disagree on."""

    #: Said to be here under a path with a content that is not here.
    lost: frozenset[tuple[str, str]] = frozenset()
    #: Here, and the log does not say so.
    dark: frozenset[tuple[str, str]] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.lost or self.dark)

    def still(self, later: Difference) -> Difference:
        """What both looks found."""
        return Difference(self.lost & later.lost, self.dark & later.dark)


class Believed:
    """What the log says one node holds, read on from where it was left.

    What was said before the log begins, a coordinator knows.
    """

    def __init__(self, log: Log, bus: Bus, node: str) -> None:
        self._log = log
        self._bus = bus
        self._node = node
        #: Up to where the log was read.
        self.sequence = 0
        self.paths: dict[str, str] = {}

    async def catch_up(self) -> None:
        """Read what was said since the last time."""
        state = await self._log.state()
        until = state.last_sequence
        if until <= self.sequence:
            return
        if self.sequence + 1 < state.first_sequence:
            known = await held_by(self._bus, self._node)
            self.paths = {entry.path: entry.checksum for entry in known.entries}
            self.sequence = known.sequence
        subjects = [
            f"dp.node.{self._node}.FILES_OBSERVED.>",
            f"dp.node.{self._node}.FILES_REMOVED.>",
            f"dp.node.{self._node}.FILE_QUARANTINED.>",
            # Whoever pushed a file here says so.
            "dp.node.*.TRANSFER_SUCCEEDED.>",
        ]
        reading = self._log.read(after=self.sequence, until=until, subjects=subjects)
        async with aclosing(reading) as batches:
            async for batch in batches:
                for recorded in batch:
                    self._fold(recorded.event)
        self.sequence = until

    def _fold(self, event: events.Event | None) -> None:
        if isinstance(event, events.FilesObserved):
            self.paths |= {entry.path: entry.checksum for entry in event.entries}
        elif isinstance(event, events.FilesRemoved):
            for path in event.paths:
                self.paths.pop(path, None)
        elif isinstance(event, events.TransferSucceeded):
            if event.target == self._node:
                self.paths[event.entry.path] = event.entry.checksum
        elif isinstance(event, events.FileQuarantined) and (
            self.paths.get(event.path) == event.checksum
        ):
            del self.paths[event.path]


class Reconciler:
    """One node's log and disk."""

    def __init__(self, log: Log, bus: Bus, node: str, inventory: Inventory) -> None:
        self._log = log
        self._bus = bus
        self._node = node
        self._inventory = inventory
        self.forget()

    def forget(self) -> None:
        """What was read of the log no longer stands in it."""
        self._believed = Believed(self._log, self._bus, self._node)

    async def reconcile(self) -> Difference:
        """Say what log and disk disagree on; what was said. The inventory has just been scanned
        and reported.
        """
        first = await self._difference()
        if not first:
            return first
        await asyncio.sleep(SETTLE_S)
        difference = first.still(await self._difference())
        held = {entry.path: entry for entry in await self._inventory.held()}
        for fact in self._facts(difference, held):
            await self._log.publish(fact)
        if difference:
            lost, dark = len(difference.lost), len(difference.dark)
            logger.warning("%d files were lost, %d were unknown to the log", lost, dark)
        return difference

    async def _difference(self) -> Difference:
        await self._believed.catch_up()
        said = set(self._believed.paths.items())
        here = {(entry.path, entry.checksum) for entry in await self._inventory.held()}
        lost = said - here
        # What can't be read, of an inventory that has forgotten it, is not gone.
        unread = await self._inventory.unread({path for path, _ in lost})
        lost = {(path, checksum) for path, checksum in lost if path not in unread}
        return Difference(frozenset(lost), frozenset(here - said))

    def _facts(self, found: Difference, held: dict[str, DataEntry]) -> list[Fact]:
        known = [held[path] for path, _ in sorted(found.dark) if path in held]
        # A path that is here with another content is told by that content alone.
        gone = [path for path, _ in sorted(found.lost) if path not in held]
        facts: list[Fact] = []
        for entries in split_entries(tuple(known)) if known else ():
            event: events.Event = events.FilesObserved(node=self._node, entries=entries)
            facts.append(node_fact(event, self._node, self._id("dark", entries)))
        for paths in split_entries(tuple(gone)) if gone else ():
            event = events.FilesRemoved(node=self._node, paths=paths)
            facts.append(node_fact(event, self._node, self._id("lost", paths)))
        return facts

    def _id(self, what: str, items: tuple[object, ...]) -> str:
        # The same difference found anew, after it was mended and came back, is said anew.
        return fact_id(what, self._node, self._believed.sequence, *items)
