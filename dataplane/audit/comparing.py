"""What changed between two moments: entries and their holders, nodes, chains, transfers.

Pure: two readings come in, rows with what they were and what they are go out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec

from dataplane.rows import chain_line, entry_line, node_line, plain, transfer_line
from projections.cluster import ClusterView

#: Section to key to the row that stands there.
Picture = dict[str, dict[str, dict[str, Any]]]


class Change(msgspec.Struct, frozen=True):
    """One thing that is not as it was; `before` or `after` is None where it was not there."""

    section: str
    key: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    @property
    def kind(self) -> str:
        """``added``, ``removed`` or ``changed``."""
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"

    def fields(self) -> dict[str, tuple[Any, Any]]:
        """The fields that differ, each with what it was and is."""
        before, after = self.before or {}, self.after or {}
        names = {**before, **after}
        return {
            name: (before.get(name), after.get(name))
            for name in names
            if before.get(name) != after.get(name)
        }


def picture(view: ClusterView, since: float | None = None) -> Picture:
    """What stands at a moment; of ended chains only those that ended after `since`, if given."""
    ended = itertools.takewhile(
        lambda row: since is not None and row.ended_at > since, view.ended_chains()
    )
    return {
        "catalog": {
            f"{entry.path} {entry.checksum[7:19]}": plain(entry_line(entry))
            for entry in view.catalog.entries()
        },
        "nodes": {row.name: plain(node_line(row, None, 0.0)) for row in view.nodes()},
        "plans": {
            f"{row.entry.path} to {row.target}": plain(transfer_line(row))
            for row in (*view.in_flight(), *view.pending())
        },
        "chains": {
            row.id: plain(chain_line(row, row.opened_at)) for row in (*view.open_chains(), *ended)
        },
    }


def changes(before: Picture, after: Picture) -> Iterator[Change]:
    """What differs, section by section, by key."""
    for section in before:
        old, new = before[section], after[section]
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                yield Change(section, key, old.get(key), new.get(key))
