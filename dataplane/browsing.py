"""A page of current entries of a kind, for who looks through the catalog with a browser.

However large the catalog is, a page costs no more than a page: what is counted already is not
counted again, and where little matches it ends with how far it has looked, so that the next one
goes on from there. Pure: it only reads.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from dataplane.queries import Reading, check_joined
from dataplane.rows import EntryLine, entry_line
from projections.tallies import Tally
from projections.view import text_key
from streams.values import DataEntry, DataType

#: Entries that a page shows, and that are looked at for one.
MOST_SHOWN, MOST_LOOKED_AT = 200, 5_000


class EntryFilter(msgspec.Struct, frozen=True):
    """Which entries; empty fields match all."""

    type: DataType | None = None
    config: str = ""
    #: That holds them.
    node: str = ""
    #: On which they belong and are not.
    lacks: str = ""
    #: With fewer copies than this.
    fewer_than: int = 0


class EntryPage(msgspec.Struct, frozen=True):
    """Entries by configuration, type and, on each page by itself, path."""

    entries: tuple[EntryLine, ...]
    #: How many there are in all; None where that is not counted.
    count: int | None
    #: Where the next page goes on; "" if there is none.
    after: str


def entry_page(
    known: Reading, wanted: EntryFilter, *, after: str = "", most: int = MOST_SHOWN
) -> EntryPage:
    """The page behind `after`, as the last one named it.

    Refused for a node that never joined as one that lacks something; ValueError for an `after`
    that no page named.
    """
    if wanted.lacks:
        check_joined(known, wanted.lacks)
    kinds = known.planner.kinds_for(wanted.lacks) if wanted.lacks else frozenset(DataType)
    groups = [
        tally
        for tally in known.view.catalog.tallied()
        if tally.data_type in kinds and _may_match(tally, wanted)
    ]
    found: list[DataEntry] = []
    ended_at = b""
    looked = enumerate(_entries(known, wanted, groups, bytes.fromhex(after)), 1)
    for count, (key, entry) in looked:
        if entry is not None:
            found.append(entry)
        if len(found) >= most or count >= MOST_LOOKED_AT:
            ended_at = key
            break
    lines = sorted(map(entry_line, found), key=lambda line: (line.config_key, line.type, line.path))
    # Whether anything is left nobody knows without looking; a page that is full is rarely the last.
    return EntryPage(tuple(lines), _count(groups, wanted), ended_at.hex())


def _may_match(tally: Tally, wanted: EntryFilter) -> bool:
    """Whether of a configuration and type, as far as is counted, something matches."""
    return (
        wanted.type in (None, tally.data_type)
        and wanted.config in ("", tally.config_key)
        and (not wanted.node or wanted.node in tally.by_node)
        and (not wanted.lacks or tally.lacks(wanted.lacks))
        and (not wanted.fewer_than or tally.fewer(wanted.fewer_than) > 0)
    )


def _entries(
    known: Reading, wanted: EntryFilter, groups: list[Tally], behind: bytes
) -> Iterator[tuple[bytes, DataEntry | None]]:
    """What is looked at, by key; None for what does not match."""
    catalog = known.view.catalog
    for tally in groups:
        place = text_key(tally.config_key, tally.data_type)
        if place < behind and not behind.startswith(place):
            continue
        after = behind if behind.startswith(place) else b""
        for key, nodes in catalog.standing(
            tally.config_key, tally.data_type, node=wanted.node, after=after
        ):
            entry = catalog.at(key[-16:]) if nodes and _matches(nodes, wanted) else None
            if entry and wanted.lacks and not known.planner.belongs(entry, wanted.lacks):
                entry = None
            yield key, entry


def _matches(nodes: tuple[str, ...], wanted: EntryFilter) -> bool:
    return wanted.lacks not in nodes and not 0 < wanted.fewer_than <= len(nodes)


def _count(groups: list[Tally], wanted: EntryFilter) -> int | None:
    if wanted.lacks or (wanted.node and wanted.fewer_than):
        return None
    if wanted.node:
        return sum(tally.by_node[wanted.node].entries for tally in groups)
    if wanted.fewer_than:
        return sum(tally.fewer(wanted.fewer_than) for tally in groups)
    return sum(tally.entries for tally in groups)
