"""How the current version of each path stands: who holds it, since when, did a chain take it.

One row a path, so that a sweep reads one table from end to end and no other. Whether so many copies
are enough is not known here: that is policy. Kept by the catalog's fold, which knows what changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec.structs import replace

from projections.store import Reader, Writer
from projections.tallies import Countable, moved
from projections.view import Row, unpacker

TABLE = "standing"
#: How the names of sweeps' chains begin.
SWEEP_CHAIN = "sweep-"


class StandingRow(Row, frozen=True):
    """Table ``standing``: path key to what a sweep must know of its current version."""

    entry: bytes
    #: Who holds it, by name.
    nodes: tuple[str, ...]
    #: When it became the version that counts, or last lost a copy: seconds since 1970.
    since: float
    #: Since when games are there that no chain took; 0.0 if one did, or if they are no games.
    untaken_since: float = 0.0


_STANDING = unpacker(StandingRow)


def standing_of(reader: Reader, path_key: bytes) -> StandingRow | None:
    """How a path stands; None if nobody knows it."""
    return reader.row(TABLE, path_key, _STANDING)


def all_standing(reader: Reader, *, after: bytes = b"") -> Iterator[tuple[bytes, StandingRow]]:
    """Every path by its key, from the one behind `after` on."""
    for key, value in reader.scan(TABLE, start=after + b"\x00" if after else b""):
        yield key, _STANDING.decode(value)


def came(tx: Writer, path_key: bytes, entry: bytes, what: Countable, node: str) -> None:
    """A node got a copy; it matters if it is of the version that counts."""
    row = standing_of(tx, path_key)
    if row is not None and row.entry == entry and node not in row.nodes:
        nodes = tuple(sorted((*row.nodes, node)))
        tx.put(TABLE, path_key, replace(row, nodes=nodes))
        moved(tx, what, row.nodes, nodes)


def went(
    tx: Writer, path_key: bytes, entry: bytes, what: Countable, node: str, time: float
) -> None:
    """A node lost a copy."""
    row = standing_of(tx, path_key)
    if row is not None and row.entry == entry and node in row.nodes:
        rest = tuple(name for name in row.nodes if name != node)
        tx.put(TABLE, path_key, replace(row, nodes=rest, since=time))
        moved(tx, what, row.nodes, rest)


def counts(
    tx: Writer,
    path_key: bytes,
    entry: bytes,
    nodes: tuple[str, ...],
    time: float,
    *,
    games: bool,
    what: Callable[[Writer, bytes], Countable | None],
) -> None:
    """Another version counts now, with these holders; `games` if a chain is to take it.

    `what` knows an entry that somebody holds, by its key.
    """
    before = standing_of(tx, path_key)
    for key, held, holds in (
        (before.entry if before else b"", before.nodes if before else (), ()),
        (entry, (), nodes),
    ):
        known = what(tx, key) if held or holds else None
        if known is not None:
            moved(tx, known, held, holds)
    untaken = 0.0
    if games:
        # Games that waited for a chain go on waiting when more are added to their file.
        untaken = (before.untaken_since if before else 0.0) or time
    tx.put(TABLE, path_key, StandingRow(entry, nodes, time, untaken))


def taken(tx: Writer, path_key: bytes, entry: bytes) -> None:
    """A chain planned this version."""
    row = standing_of(tx, path_key)
    if row is not None and row.entry == entry and row.untaken_since:
        tx.put(TABLE, path_key, replace(row, untaken_since=0.0))
