"""How what comes to a node gets its names: one path at a time, each time the newest.

Whatever brings an entry, alone or among others, fetched or pushed, ends here. Nothing appears that
the inventory was not told of before, nothing undoes a later version or a file of the node's own,
and who comes by two ways at once comes by one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Protocol

from adapters.errors import Interrupted, NeverReplaced, Overtaken, Superseded, TransportError
from adapters.files.group import Group
from adapters.files.landing import Landed, Landing
from adapters.files.partial import disk_error, disk_errors
from adapters.workers import finish
from streams.identity import Ownership, PathRules
from streams.values import DataEntry


class Knows(Protocol):
    """What arrivals ask and tell; `inventory.Inventory` does it for a node's data."""

    def alone(self, local_paths: Iterable[str]) -> AbstractAsyncContextManager[None]:
        """As long as this lasts, nobody else lets anything appear there."""

    async def arrived(self, paths: Sequence[str]) -> list[DataEntry | None]:
        """What was received under each logical path; asked before the other two."""

    def keeps_own(self, path: str) -> bool:
        """Whether a file of the node's own stands there."""

    def written_at(self, path: str) -> float | None:
        """Where in the log the node's own file there was said; infinity: not yet, None: none."""

    async def expect(self, entries: Mapping[str, DataEntry]) -> None:
        """These are about to appear, by local path."""

    async def landed(self, entries: Mapping[str, DataEntry]) -> set[str]:
        """They have appeared; which of them are gone again."""


class Arrivals:
    """What comes to one node. Lives on one event loop; several may share what `Knows`."""

    def __init__(self, node: str, inventory: Knows, rules: PathRules) -> None:
        self._node = node
        self._inventory = inventory
        self._rules = rules

    def local(self, entry: DataEntry) -> str:
        """Where this node keeps an entry, relative to its data root."""
        return self._rules.local(entry.path, self._node)

    async def there(self, entry: DataEntry) -> DataEntry | None:
        """The entry if it was received before; None if it may come.

        Raises `Superseded` or `NeverReplaced` if it may not, `Overtaken` if it may not now, or the
        disk's errors.
        """
        (found,) = await self.all_there([entry])
        if isinstance(found, TransportError):
            raise found
        return found

    async def all_there(
        self, entries: Sequence[DataEntry]
    ) -> list[DataEntry | TransportError | None]:
        """As `there`, of many at once: what it would raise of one is what is said of it."""
        with disk_errors():
            arrived = await self._inventory.arrived([entry.path for entry in entries])
        said = list[DataEntry | TransportError | None]()
        for entry, there in zip(entries, arrived, strict=True):
            try:
                said.append(self._may_come(entry, there))
            except TransportError as error:
                said.append(error)
            except OSError as error:
                said.append(disk_error(error))
        return said

    def _may_come(self, entry: DataEntry, there: DataEntry | None) -> DataEntry | None:
        """As `there`, of what has arrived under its path."""
        if there is not None and there.checksum == entry.checksum:
            return there
        if there is not None and there.version > entry.version:
            why = f"version {there.version} is newer than {entry.version}"
            raise Superseded(f"{entry.path}: {why}")
        ownership = self._rules.ownership(entry.path)
        if ownership is Ownership.OWNED and self._inventory.keeps_own(entry.path):
            raise NeverReplaced(f"{self.local(entry)} is a file of {self._node}'s own")
        if ownership is Ownership.SHARED:
            self._yield_to_own(entry)
        return None

    def _yield_to_own(self, entry: DataEntry) -> None:
        """Raise if this node has written a later version of a path that many may write.

        What comes was decided on before anybody knew of that.
        """
        written_at = self._inventory.written_at(entry.path)
        if written_at is None or written_at <= entry.version:
            return
        if written_at == math.inf:
            raise Overtaken(f"{entry.path} was written on {self._node}, and is yet to be told")
        raise Superseded(
            f"{entry.path}: {self._node} has written a version of its own at {written_at:.0f}, "
            f"which is newer than {entry.version}"
        )

    async def ready(self, entry: DataEntry) -> bool:
        """As `there`; if it may come, the inventory expects it from now on."""
        async with self._inventory.alone([self.local(entry)]):
            if await self.there(entry) is not None:
                return True
            with disk_errors():
                await self._inventory.expect({self.local(entry): entry})
            return False

    async def land(
        self,
        landing: Landing,
        *,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> Landed:
        """Let one appear that has come, and note it in the inventory as received.

        `before` is called when it is about to get its name, `after` when it has it. Raises what
        `Landing.prove` and `Landing.publish` do, and what `there` does of what came meanwhile.
        """
        entry, local = landing.entry, self.local(landing.entry)
        # First, and beside others: it may take long, and a later version need not wait for it.
        await landing.prove()
        async with self._inventory.alone([local]):
            with disk_errors():
                await self.there(entry)
                # Said before the file appears: a crash in between must not make the file our own.
                await self._inventory.expect({local: entry})
                before()
            landed = await landing.publish()
            after()
            with disk_errors():
                gone = await self._inventory.landed({local: entry})
        if gone:
            raise Interrupted(f"{local} is gone again")
        return landed

    async def land_all(
        self,
        group: Group,
        *,
        before: Callable[[Sequence[int]], None] = lambda coming: None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """As `land`, of all that a group has gathered: its outcomes say what became of each.

        `before` is called with the numbers of those that are about to get their names.
        """
        async with self._inventory.alone(group.wanted[one].local for one in group.gathered):
            with disk_errors():
                await self._withdraw_overtaken(group)
                coming = group.gathered
                await self._inventory.expect(dict(_by_local(group, coming)))
                before(coming)
            await finish(group.commit)
            after()
            landed = [n for n, one in enumerate(group.outcomes) if isinstance(one, Landed)]
            with disk_errors():
                gone = await self._inventory.landed(dict(_by_local(group, landed)))
        for number in landed:
            local = group.wanted[number].local
            if local in gone:
                group.outcomes[number] = Interrupted(f"{local} is gone again")

    async def _withdraw_overtaken(self, group: Group) -> None:
        """Withdraw what must not appear any more because of what came meanwhile."""
        gathered = group.gathered
        found = await self.all_there([group.wanted[number].entry for number in gathered])
        for number, error in zip(gathered, found, strict=True):
            if isinstance(error, TransportError):
                await finish(partial(group.withdraw, number, error))


def _by_local(group: Group, numbers: Iterable[int]) -> Iterable[tuple[str, DataEntry]]:
    return ((group.wanted[number].local, group.wanted[number].entry) for number in numbers)
