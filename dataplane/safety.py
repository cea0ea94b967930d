"""Whether what a node holds is safe without it: by the catalog first, then by fresh proofs.

"Safe" is never taken from the catalog alone. Only places count that last: not those that may
vanish themselves, that are away, or that share the node's mount.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import msgspec

from dataplane.planner.known import Known
from dataplane.proving import prove
from streams.log import Bus
from streams.values import DataEntry

#: Proofs that are asked for at once; each reads a whole file somewhere.
_PROVEN_AT_ONCE = 4
#: Where else a content is that it counts.
Places = Callable[[DataEntry], Sequence[str]]


class Left(msgspec.Struct, frozen=True):
    """A content that is not safe without the node."""

    path: str
    checksum: str
    size_bytes: int
    #: Other places that hold it, and how many of them have just proven it.
    elsewhere: tuple[str, ...]
    proven: int
    why: str


def lasting_without(known: Known, node: str) -> Places:
    """The places that count for what is on `node`."""
    return lambda entry: known.lasting(entry.locations, node)


def unsafe(node: str, held: Iterable[DataEntry], places: Places, copies: int) -> list[Left]:
    """Contents of `node` that fewer than `copies` other places hold, by the catalog; by path."""
    found = []
    for entry in held:
        others = tuple(places(entry))
        if len(others) < copies:
            names = ", ".join(others) or "none"
            why = f"{names} of {copies} other places hold it"
            if rest := [name for name in entry.locations if name not in (node, *others)]:
                why += f"; {', '.join(rest)} may vanish, is to go, is away or on the same mount"
            found.append(Left(entry.path, entry.checksum, entry.size_bytes, others, 0, why))
    return sorted(found, key=lambda one: one.path)


async def unproven(bus: Bus, held: Iterable[DataEntry], places: Places, copies: int) -> list[Left]:
    """Contents that fewer than `copies` other places could prove just now, by path."""
    free = asyncio.Semaphore(_PROVEN_AT_ONCE)

    async def check(entry: DataEntry) -> Left | None:
        proven, reasons = 0, []
        others = tuple(places(entry))
        async with free:
            for place in others:
                proof = await prove(bus, place, entry)
                proven += proof.proven
                reasons += [] if proof.proven else [f"{place}: {proof.reason}"]
                if proven == copies:
                    return None
        why = f"{proven} of {copies} other places prove it ({'; '.join(reasons)})"
        return Left(entry.path, entry.checksum, entry.size_bytes, others, proven, why)

    found = await asyncio.gather(*map(check, held))
    return sorted((one for one in found if one is not None), key=lambda one: one.path)
