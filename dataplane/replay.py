"""Reading the log again: as a timeline, as one chain, and as a fold to hold the views against.

It only reads. Nothing here can write to the log or to the live views.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from projections.fold import TABLES, checkpoint, view_digests
from projections.projector import Projector
from projections.store import StoreReader
from projections.transfers import transfer_id
from streams import events
from streams.codec import Recorded
from streams.log import Log


class Verdict(msgspec.Struct, frozen=True):
    """What a refold showed."""

    same: bool
    sequence: int
    #: View name to (digest of the live view, digest of the refold).
    digests: dict[str, tuple[str, str]]

    @property
    def different(self) -> list[str]:
        """Names of the views that are not the fold of the log."""
        return [name for name, (live, fresh) in self.digests.items() if live != fresh]


async def timeline(
    log: Log,
    *,
    since: float = 0.0,
    until: float | None = None,
    type_name: str = "",
    chain: str = "",
    node: str = "",
    config_key: str = "",
    follow: bool = False,
) -> AsyncGenerator[Recorded, None]:
    """The log in order, narrowed down; times in seconds since 1970 by the log's clock."""
    state = await log.state()
    if state.last_sequence == 0 and not follow:
        return
    subjects = [] if not type_name else [f"dp.*.*.{type_name}.>"]
    end = None if follow else state.last_sequence
    async with aclosing(log.read(until=end, subjects=subjects)) as batches:
        async for batch in batches:
            for recorded in batch:
                if until is not None and recorded.time > until:
                    return
                if (
                    recorded.time >= since
                    and (not chain or recorded.chain == chain)
                    and (not node or speaks_of(recorded, node))
                    and config_key in ("", recorded.config_key)
                ):
                    yield recorded


async def chain_history(log: Log, chain: str) -> list[Recorded]:
    """All facts of a chain, in order: its trigger, what was decided, and each attempt."""
    state = await log.state()
    found: list[Recorded] = []
    if state.last_sequence == 0:
        return found
    wanted: set[str] = set()
    async with aclosing(log.read(until=state.last_sequence)) as batches:
        async for batch in batches:
            for recorded in batch:
                if recorded.chain == chain or _transfer_of(recorded) in wanted:
                    found.append(recorded)
                    wanted |= _transfers_planned(recorded)
    return found


def speaks_of(recorded: Recorded, node: str) -> bool:
    """Whether a fact was said by a node, to it, or of it."""
    event = recorded.event
    named = [recorded.owner, getattr(event, "source", ""), getattr(event, "target", "")]
    named += [getattr(event, "node", ""), getattr(event, "source_node", "")]
    return node in named


def _transfer_of(recorded: Recorded) -> str:
    return getattr(recorded.event, "transfer", "")


def _transfers_planned(recorded: Recorded) -> set[str]:
    """Transfers a plan waits for, those that another chain asked for first among them."""
    event = recorded.event
    if not isinstance(event, events.SyncPlanned):
        return set()
    return {
        transfer_id(entry, target)
        for plan in event.plans
        for target in plan.target_nodes
        for entry in plan.entries
    }


async def verify(log: Log, views_dir: Path) -> Verdict:
    """Refold the log into a fresh store up to where the live views are, and compare digests."""
    live = StoreReader(views_dir, TABLES)
    try:
        with live.read() as reader:
            point = checkpoint(reader)
            have = view_digests(reader)
    finally:
        live.close()
    state = await log.state()
    if point.created not in ("", state.created) or point.sequence > state.last_sequence:
        raise ValueError(
            f"the views in {views_dir} are of another log than the one on this bus: they are at "
            f"{point.sequence}, it ends at {state.last_sequence}"
        )
    with tempfile.TemporaryDirectory(prefix="dataplane-verify-") as directory:
        fresh = await refold(log, Path(directory), point.sequence)
    return Verdict(
        same=have == fresh,
        sequence=point.sequence,
        digests={name: (have[name], fresh[name]) for name in have},
    )


async def refold(log: Log, directory: Path, until: int) -> dict[str, str]:
    """Digests of the views as folded from the log's beginning up to `until`."""
    projector = Projector(log, directory)
    await projector.start(until=until)
    try:
        with projector.store.read() as reader:
            return view_digests(reader)
    finally:
        await projector.close()


def describe(recorded: Recorded) -> dict[str, Any]:
    """A fact as plain data: envelope first, then its payload."""
    row: dict[str, Any] = {
        "sequence": recorded.sequence,
        "time": recorded.time,
        "type": recorded.type,
        "subject": recorded.subject,
        "id": recorded.id,
        "chain": recorded.chain,
        "cause": recorded.cause,
    }
    if recorded.event is None:
        return {**row, "problem": recorded.problem}
    return {**row, "event": msgspec.to_builtins(recorded.event)}
