"""Whether what a node holds is safe without it: by the catalog first, then by fresh proofs.

"Safe" is never taken from the catalog alone. Only places count that last: not those that may
vanish themselves, that are away, whose own copy is being deleted, or that share the node's mount.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from dataplane.planner.known import Known
from dataplane.proving import prove
from projections.catalog import entry_key
from projections.cluster import ClusterView
from streams.log import Bus
from streams.values import S3_NODE, DataEntry

#: Proofs that are asked for at once; each reads a whole file somewhere.
_PROVEN_AT_ONCE = 4
#: Where else a content is that it counts.
Places = Callable[[DataEntry], Sequence[str]]
#: A content under its path.
Key = tuple[str, str]


class Left(msgspec.Struct, frozen=True):
    """A content that is not safe without the node."""

    path: str
    checksum: str
    size_bytes: int
    #: Other places that hold it, and how many of them have just proven it.
    elsewhere: tuple[str, ...]
    proven: int
    why: str


class Holding(NamedTuple):
    """What a node holds, and where else each content of it counts, at one moment."""

    node: str
    held: list[DataEntry]
    places: dict[Key, tuple[str, ...]]

    def elsewhere(self, entry: DataEntry) -> tuple[str, ...]:
        """The places that count for a content without the node."""
        return self.places.get(_key(entry), ())


def holding(known: Known, view: ClusterView, node: str) -> Holding:
    """What `node` holds and who else counts for it, as `view` has it.

    With what is on its way there: it may have arrived already, and nobody have heard of that.
    """
    entries = {_key(entry): entry for entry in view.catalog.entries(node=node)}
    for row in view.in_flight():
        if row.target == node:
            key = row.entry.path, row.entry.checksum
            there = view.catalog.at(entry_key(*key)) or replace(row.entry, locations=())
            entries.setdefault(key, there)
    held = list(entries.values())
    counts = lasting_without(known, node)
    return Holding(node, held, {_key(entry): tuple(counts(entry)) for entry in held})


def lasting_without(known: Known, node: str) -> Places:
    """The places that count for what is on `node`.

    Where some copy of a content is to be deleted, or may be by now, neither that counts nor what is
    on the same mount.
    """

    def counts(entry: DataEntry) -> list[str]:
        key = entry.sealed_with
        others = known.lasting(entry.locations, node, sealed_with=key)
        going = known.view.deletion_of(entry.path, entry.checksum)
        return others if going is None else known.lasting(others, going.node, sealed_with=key)

    return counts


def unsafe(node: str, held: Iterable[DataEntry], places: Places, copies: int) -> list[Left]:
    """Contents of `node` that fewer than `copies` other places hold, by the catalog; by path."""
    found = []
    for entry in held:
        others = tuple(places(entry))
        if len(others) < copies:
            names = ", ".join(others) or "none"
            why = f"{names} of {copies} other places hold it"
            sealed = S3_NODE in entry.locations and S3_NODE not in others and entry.sealed_with
            counted = (node, *others, *([S3_NODE] if sealed else []))
            if rest := [name for name in entry.locations if name not in counted]:
                why += (
                    f"; {', '.join(rest)} may vanish, is to go, is away, is about to delete it or "
                    "on the same mount"
                )
            if sealed:
                why += f"; {S3_NODE} has it only with the key {sealed}"
            found.append(Left(entry.path, entry.checksum, entry.size_bytes, others, 0, why))
    return sorted(found, key=lambda one: one.path)


async def unproven(bus: Bus, held: Iterable[DataEntry], places: Places, copies: int) -> list[Left]:
    """Contents that fewer than `copies` other places could prove just now, by path."""
    return _failed(await _checked(bus, held, places, copies), copies)


async def not_safe(
    bus: Bus, read: Callable[[], Awaitable[Holding]], copies: int
) -> tuple[Holding, list[Left]]:
    """What a node holds now, and which of it `copies` other places did not just prove, by path.

    It is read again once they have: files take long to read, and meanwhile who proved one may have
    been told to delete it or to go, and the node may have got something new.
    """
    before = await read()
    left = unsafe(before.node, before.held, before.elsewhere, copies)
    if left:
        return before, left
    checked = await _checked(bus, before.held, before.elsewhere, copies)
    left = _failed(checked, copies)
    if left:
        return before, left
    return _still((await read()), {_key(one.entry): one for one in checked}, copies)


class _Checked(NamedTuple):
    """A content, and who of those that were asked could prove it, or why they could not."""

    entry: DataEntry
    others: tuple[str, ...]
    proven: tuple[str, ...]
    reasons: tuple[str, ...]


async def _checked(
    bus: Bus, held: Iterable[DataEntry], places: Places, copies: int
) -> list[_Checked]:
    free = asyncio.Semaphore(_PROVEN_AT_ONCE)

    async def check(entry: DataEntry) -> _Checked:
        proven: list[str] = []
        reasons: list[str] = []
        others = tuple(places(entry))
        async with free:
            for place in others:
                if len(proven) == copies:
                    break
                proof = await prove(bus, place, entry)
                if proof.proven and proof.sealed_with not in ("", entry.sealed_with):
                    # It was counted as if everybody could open it.
                    reasons.append(f"{place}: only with the key {proof.sealed_with}")
                elif proof.proven:
                    proven.append(place)
                else:
                    reasons.append(f"{place}: {proof.reason}")
        return _Checked(entry, others, tuple(proven), tuple(reasons))

    return list(await asyncio.gather(*map(check, held)))


def _failed(checked: Iterable[_Checked], copies: int) -> list[Left]:
    found = []
    for entry, others, proven, reasons in checked:
        if len(proven) < copies:
            why = f"{len(proven)} of {copies} other places prove it ({'; '.join(reasons)})"
            found.append(
                Left(entry.path, entry.checksum, entry.size_bytes, others, len(proven), why)
            )
    return sorted(found, key=lambda one: one.path)


def _still(now: Holding, checked: dict[Key, _Checked], copies: int) -> tuple[Holding, list[Left]]:
    """What is not safe as things are after the proofs."""
    found = []
    for entry in now.held:
        one = checked.get(_key(entry))
        proven = [] if one is None else [p for p in one.proven if p in now.elsewhere(entry)]
        if len(proven) < copies:
            why = f"{now.node} has got it since it was asked what it holds"
            if one is not None:
                gone = ", ".join(p for p in one.proven if p not in proven)
                why = f"{gone} proved it, and has been told to delete it or to go since"
            others = now.elsewhere(entry)
            found.append(
                Left(entry.path, entry.checksum, entry.size_bytes, others, len(proven), why)
            )
    return now, sorted(found, key=lambda one: one.path)


def _key(entry: DataEntry) -> Key:
    return entry.path, entry.checksum
