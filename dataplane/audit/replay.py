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

from projections.chains import Chain
from projections.fold import TABLES, WANTED_VERSIONS, Checkpoint, checkpoint, view_digests
from projections.projector import Projector
from projections.store import Reader, Store, StoreError, StoreReader
from projections.transfers import transfer_id
from projections.travel import Difference, differences
from streams import events
from streams.codec import Recorded
from streams.log import ReadingLog

#: A chain's facts are looked for up to so many facts behind its end.
_BEHIND = 200
_MOST_FACTS = 2_000
_ENDS = (events.DataSyncCompleted, events.DataSyncFailed)


class Verdict(msgspec.Struct, frozen=True):
    """What a refold showed."""

    same: bool
    sequence: int
    #: View name to (digest of the live view, digest of the refold).
    digests: dict[str, tuple[str, str]]
    #: The first row that is not the fold of the log: `left` is the live one.
    difference: Difference | None = None

    @property
    def different(self) -> list[str]:
        """Names of the views that are not the fold of the log."""
        return [name for name, (live, fresh) in self.digests.items() if live != fresh]


async def timeline(
    log: ReadingLog,
    *,
    after: int = 0,
    until: int | None = None,
    type_name: str = "",
    chain: str = "",
    node: str = "",
    config_key: str = "",
    follow: bool = False,
) -> AsyncGenerator[Recorded, None]:
    """The facts behind `after`, up to `until` or what is there now, in order, narrowed down.

    With `follow` it goes on for ever, where the log can grow.
    """
    if until is None and not follow:
        until = (await log.state()).last_sequence
    subjects = [] if not type_name else [f"dp.*.*.{type_name}.>"]
    if until is not None and until <= after:
        return
    async with aclosing(log.read(after=after, until=until, subjects=subjects)) as batches:
        async for batch in batches:
            for recorded in batch:
                if (
                    (not chain or recorded.chain == chain)
                    and (not node or speaks_of(recorded, node))
                    and config_key in ("", recorded.config_key)
                ):
                    yield recorded


async def chain_history(log: ReadingLog, chain: str) -> list[Recorded]:
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


async def history_of(log: ReadingLog, row: Chain) -> list[Recorded]:
    """A chain's facts, read from no more of the log than it spans, up to `_MOST_FACTS`.

    Those of transfers that another chain asked for before it are among them.
    """
    transfers = {need.transfer for need in row.needs}
    found: list[Recorded] = []
    last = (await log.state()).last_sequence
    behind = 0
    reading = log.read(after=row.opened_sequence - 1, until=last)
    async with aclosing(reading) as batches:
        async for batch in batches:
            for fact in batch:
                if fact.chain == row.id or getattr(fact.event, "transfer", "") in transfers:
                    found.append(fact)
                    behind = 0
                elif not row.open:
                    behind += 1
            ended = any(isinstance(f.event, _ENDS) and f.chain == row.id for f in found)
            if len(found) >= _MOST_FACTS or (ended and behind > _BEHIND):
                break
    return found[:_MOST_FACTS]


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


async def verify(log: ReadingLog, views_dir: Path) -> Verdict:
    """Refold the log into a fresh store up to where the live views are, and compare the two.

    The live views are copied first, because they go on meanwhile. Raises ValueError where they
    are of another log, and StoreError where they are of another version of this program.
    """
    with tempfile.TemporaryDirectory(prefix="dataplane-verify-") as directory:
        live_dir, fresh_dir = Path(directory) / "live", Path(directory) / "fresh"
        StoreReader(views_dir, TABLES).copy(live_dir)
        live = Store.open(live_dir, TABLES, writable=False)
        try:
            with live.read() as reader:
                point = checkpoint(reader)
            _check_same_version(point, views_dir)
            await _check_same_log(log, point, views_dir)
            projector = Projector(log, fresh_dir)
            await projector.start(until=point.sequence)
            try:
                with live.read() as reader, projector.store.read() as fresh:
                    return _verdict(point, reader, fresh)
            finally:
                await projector.close()
        finally:
            live.close()


def _check_same_version(point: Checkpoint, views_dir: Path) -> None:
    ours = {name: point.versions.get(name, 0) for name in WANTED_VERSIONS}
    other = [
        f"{name} {ours[name] or 'none'}, here {wanted}"
        for name, wanted in WANTED_VERSIONS.items()
        if ours[name] != wanted
    ]
    if other:
        raise StoreError(
            f"the views in {views_dir} were folded by another version of this program "
            f"({'; '.join(other)}): verify them with that one, or start a coordinator of this one, "
            "which folds them anew"
        )


async def _check_same_log(log: ReadingLog, point: Checkpoint, views_dir: Path) -> None:
    """A log is known by when it was made; an exported one, which does not say, by its facts."""
    state = await log.state()
    if state.first_sequence > 1:
        raise ValueError(
            f"this log begins at {state.first_sequence}: views are the fold of a whole one"
        )
    if point.sequence > state.last_sequence:
        raise ValueError(
            f"the views in {views_dir} are at {point.sequence} and this log ends at "
            f"{state.last_sequence}: it is an earlier copy, or another log"
        )
    if point.created in ("", state.created, state.origin):
        return
    there = await log.get(point.sequence)
    if there is None or there.id != point.event_id:
        raise ValueError(
            f"the views in {views_dir} are of another log than this one: at {point.sequence} they "
            f"have seen event {point.event_id}, this one has {there.id if there else 'none'}"
        )


def _verdict(point: Checkpoint, live: Reader, fresh: Reader) -> Verdict:
    have, wanted = view_digests(live), view_digests(fresh)
    return Verdict(
        same=have == wanted,
        sequence=point.sequence,
        digests={name: (have[name], wanted[name]) for name in have},
        difference=None if have == wanted else next(differences(live, fresh), None),
    )


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
