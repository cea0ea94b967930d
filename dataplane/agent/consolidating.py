"""Merges the games of all databases here into one for each configuration, as they come (K20).

The consolidated database is a file of this node's like any other: it is found, said and moved as
policy says. Merging is asked for again whenever a database has changed, which does no harm: what
is there is not merged again, and what was begun by a process that was killed is finished, and said
whole, before anything else is merged. It must never run in this process; see `apart`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from adapters.errors import DiskFull
from adapters.files import checks
from adapters.files.gametables import NotMergeable
from adapters.files.inventory import Inventory
from adapters.files.merging import Merged
from adapters.files.places import OWN_DIRECTORY
from adapters.files.sqlite import Locked, Unsound
from adapters.workers import finish
from dataplane.agent.apart import merge_apart, noted
from dataplane.agent.scrub import Say
from dataplane.coordinator.trouble import Troubles
from dataplane.crashpoints import reach
from dataplane.policy import Quality
from streams import events
from streams.codec import fact_id, node_fact
from streams.identity import Ownership, PathRules
from streams.values import ALL_CONFIGS, DataEntry, DataType

logger = logging.getLogger(__name__)
LOOK_S = 10.0
#: In the name of the consolidated database, what stands for the configuration.
CONFIG = "{config}"
#: Merges the source, given second, into the target, given first, and notes where it is told to how
#: many of the games were there before; see `apart.merge_apart`.
Merge = Callable[[Path, Path, Quality, Path], Awaitable[Merged]]


class Consolidator:
    """One node's consolidated databases. `run` in a task."""

    def __init__(
        self,
        say: Say,
        node: str,
        root: Path,
        inventory: Inventory,
        rules: PathRules,
        quality: Quality,
        into: str,
        *,
        merge: Merge = merge_apart,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`into` is where games go, below `root`, such as ``games/canonical_{config}.db``."""
        self._say_in_the_end = say
        self._node = node
        self._root = root
        self._inventory = inventory
        self._rules = rules
        self._quality = quality
        self._into = into
        self._merge_one = merge
        self._clock = clock
        self._notes = root / OWN_DIRECTORY / "consolidated.json"
        #: By logical path, the content that was merged last, or that can't be.
        self._done: dict[str, str] | None = None
        self.troubles = Troubles("{} could not be merged")

    async def run(self) -> None:
        """Merge what comes, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Merge what has changed since it was merged last."""
        if self._done is None:
            self._done = await finish(partial(_read, self._notes))
        due = [
            entry
            for entry in await self._inventory.held()
            if self._is_game_database(entry) and self._done.get(entry.path) != entry.checksum
        ]
        # What was begun comes first: else what others bring would be counted as its own.
        for entry in sorted(due, key=lambda one: (not self._note(one).exists(), one.path)):
            if not self.troubles.must_wait(entry.path, self._clock()):
                await self._merge(entry, self._done)

    def _is_game_database(self, entry: DataEntry) -> bool:
        """Whether it is one producer's games of one configuration: no consolidated ones."""
        if entry.config_key == ALL_CONFIGS or entry.path == self._path(entry.config_key):
            return False
        owned = self._rules.ownership(entry.path) is Ownership.OWNED
        games = entry.data_type is DataType.GAMES and checks.is_database(entry.path)
        return owned and games and bool(entry.games)

    def _note(self, entry: DataEntry) -> Path:
        """Where it is noted that a merge of a path has begun."""
        return self._notes.with_name(f"merging-{fact_id(entry.path)}")

    def _local(self, config_key: str) -> str:
        """Where the games of a configuration go, relative to the root."""
        return self._into.replace(CONFIG, config_key)

    def _path(self, config_key: str) -> str:
        """What the cluster calls that file."""
        return self._rules.logical(self._local(config_key), self._node)

    async def _merge(self, entry: DataEntry, done: dict[str, str]) -> None:
        target = self._local(entry.config_key)
        source = self._root / self._rules.local(entry.path, self._node)
        try:
            merged = await self._merge_one(
                self._root / target, source, self._quality, self._note(entry)
            )
        except (Locked, DiskFull, OSError) as error:
            self.troubles.failed(entry.path, error, self._clock())
            logger.warning("%s is merged later: %s", entry.path, error)
            return
        except (NotMergeable, Unsound) as error:
            # As it is now it never can be: once it has changed it is tried again.
            logger.error("%s can't be merged into %s: %s", entry.path, target, error)
        else:
            reach("agent.merged")
            await self._say(entry, merged)
        self.troubles.over(entry.path)
        done[entry.path] = entry.checksum
        await finish(partial(_write, self._notes, dict(done)))
        with suppress(OSError):
            self._note(entry).unlink(missing_ok=True)

    async def _say(self, entry: DataEntry, merged: Merged) -> None:
        """Say what came over, also in a process before this one that could not say it."""
        there = noted(self._note(entry))
        if there is None:
            there = merged.there
        added = merged.there + merged.added - there
        if added <= 0:
            return
        event = events.GamesMerged(
            node=self._node,
            config_key=entry.config_key,
            path=self._path(entry.config_key),
            source=entry.path,
            checksum=entry.checksum,
            games_added=added,
            games_there=there,
            games_left=sum(merged.left.values()),
        )
        id = fact_id("merged", self._node, event.path, entry.path, entry.checksum, there)
        await self._say_in_the_end(node_fact(event, self._node, id))


def _read(notes: Path) -> dict[str, str]:
    """What was merged before; nothing where that can't be known: then all is looked at again."""
    try:
        return msgspec.json.decode(notes.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}


def _write(notes: Path, done: dict[str, str]) -> None:
    # Lost with the power or with a full disk, all is merged again: that adds nothing.
    with suppress(OSError):
        fresh = notes.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(done))
        fresh.replace(notes)
