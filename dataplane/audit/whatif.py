"""What another policy would have decided: the production planner over the recorded log.

Each decision of the log is taken twice more, on what was known when it was taken: under today's
policy and under the other one. What both then plan is compared. It follows no decision further: a
copy that the other policy would have made, or not, is not there in what is known later on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import msgspec

from dataplane.planner import SyncPlanner
from dataplane.policy import Policy
from projections.chains import ChainRow
from projections.cluster import ClusterView
from projections.snapshot import Snapshots
from projections.travel import past
from streams import events
from streams.codec import Recorded
from streams.log import ReadingLog

#: One thing that is to be on one target: path, digest, target.
Wanted = tuple[str, str, str]
_MEGABIT = 125_000


class Moves(msgspec.Struct):
    """What one policy makes of the decisions."""

    plans: int = 0
    copies: int = 0
    bytes: int = 0
    #: Copies that at the rates of then would have come after their deadline.
    deadlines_missed: int = 0
    #: Contents that a decision was about and left with fewer copies than the policy's minimum.
    below_minimum: int = 0
    #: Chains that would have ended as failed by their plan alone.
    blocked: int = 0


class ChangedChain(msgspec.Struct, frozen=True):
    """A chain for which the two policies do not plan the same."""

    chain: str
    trigger: str
    node: str
    at: float
    added: tuple[str, ...]
    dropped: tuple[str, ...]
    added_bytes: int
    dropped_bytes: int


class Outcome(msgspec.Struct):
    """What would be different."""

    decisions: int = 0
    #: Decisions that today's policy takes as they were recorded; the rest were taken by another.
    as_recorded: int = 0
    today: Moves = msgspec.field(default_factory=Moves)
    other: Moves = msgspec.field(default_factory=Moves)
    changed: list[ChangedChain] = msgspec.field(default_factory=list)


async def what_if(
    log: ReadingLog,
    today: Policy,
    other: Policy,
    *,
    since: int = 0,
    until: int | None = None,
    snapshots: Snapshots | None = None,
) -> Outcome:
    """Take the decisions behind `since` again under both policies."""
    outcome = Outcome()
    end = (await log.state()).last_sequence if until is None else until
    async with past(log, since, snapshots) as there, aclosing(_decisions(log, since, end)) as all:
        async for recorded, event in all:
            taken_on = event.as_of_sequence or recorded.sequence - 1
            await there.go_on(max(there.checkpoint.sequence, min(taken_on, recorded.sequence - 1)))
            view = ClusterView(there.reader)
            row = view.chain(recorded.chain)
            if row is not None:
                _compare(outcome, view, row, recorded, event, today, other)
    return outcome


async def _decisions(
    log: ReadingLog, since: int, until: int
) -> AsyncGenerator[tuple[Recorded, events.SyncPlanned], None]:
    """The plans of the log, each chain's once and whole, where its first part stands."""
    parts: dict[str, tuple[Recorded, events.SyncPlanned]] = {}
    if until <= since:
        return
    reading = log.read(after=since, until=until, subjects=["dp.chain.*.SYNC_PLANNED.>"])
    async with aclosing(reading) as batches:
        async for batch in batches:
            for recorded in batch:
                event = recorded.event
                if not isinstance(event, events.SyncPlanned):
                    continue
                first, whole = parts.pop(recorded.chain, (recorded, None))
                joined = event if whole is None else _joined(whole, event)
                if event.last_part:
                    yield first, joined
                else:
                    parts[recorded.chain] = first, joined


def _joined(one: events.SyncPlanned, more: events.SyncPlanned) -> events.SyncPlanned:
    return msgspec.structs.replace(
        one,
        plans=one.plans + more.plans,
        held=one.held + more.held,
        refusals=one.refusals + more.refusals,
        announces=one.announces + more.announces,
        last_part=more.last_part,
    )


def _compare(
    outcome: Outcome,
    view: ClusterView,
    row: ChainRow,
    recorded: Recorded,
    said: events.SyncPlanned,
    today: Policy,
    other: Policy,
) -> None:
    plans = [
        SyncPlanner(policy, view, recorded.time).decide(row.event(), row.opened_at)
        for policy in (today, other)
    ]
    old, new = (_copies(plan) for plan in plans)
    outcome.decisions += 1
    outcome.as_recorded += old.keys() == _copies(said).keys()
    # What one policy refuses for want of a target, the other names.
    about = set[tuple[str, str]]().union(*(_contents(plan, view) for plan in (*plans, said)))
    for moves, policy, plan in zip(
        (outcome.today, outcome.other), (today, other), plans, strict=True
    ):
        _count(moves, policy, plan, view, recorded.time, about)
    added, dropped = new.keys() - old.keys(), old.keys() - new.keys()
    if added or dropped:
        outcome.changed.append(
            ChangedChain(
                row.id,
                row.trigger,
                row.node,
                recorded.time,
                _said(added),
                _said(dropped),
                sum(new[key] for key in added),
                sum(old[key] for key in dropped),
            )
        )


def _copies(plan: events.SyncPlanned) -> dict[Wanted, int]:
    """What a decision moves, with the bytes of each."""
    return {
        (entry.path, entry.checksum, target): entry.size_bytes
        for one in plan.plans
        for target in one.target_nodes
        for entry in one.entries
    }


def _contents(plan: events.SyncPlanned, view: ClusterView) -> set[tuple[str, str]]:
    """Path and digest of what a decision is about, as far as it says so."""
    found = {key[:2] for key in _copies(plan)} | {(h.path, h.checksum) for h in plan.held}
    refused = {refusal.path for refusal in plan.refusals if refusal.path}
    entries = (view.catalog.get(path) for path in refused)
    return found | {(entry.path, entry.checksum) for entry in entries if entry is not None}


def _count(
    moves: Moves,
    policy: Policy,
    plan: events.SyncPlanned,
    view: ClusterView,
    now: float,
    about: set[tuple[str, str]],
) -> None:
    copies = _copies(plan)
    moves.plans += len(plan.plans)
    moves.copies += len(copies)
    moves.bytes += sum(copies.values())
    moves.blocked += any(refusal.blocking for refusal in plan.refusals)
    for one in plan.plans:
        if one.deadline is not None:
            moves.deadlines_missed += sum(
                now + _takes_s(view, policy, one.source_node, entry.size_bytes) > one.deadline
                for entry in one.entries
                for _ in one.target_nodes
            )
    for path, checksum in about:
        places = {key[2] for key in copies if key[:2] == (path, checksum)}
        places |= set(view.catalog.holders(path, checksum))
        moves.below_minimum += len(places) < policy.replication.minimum


def _takes_s(view: ClusterView, policy: Policy, source: str, size_bytes: int) -> float:
    """How long a file would have taken from there, by the rates of then and the policy's limit."""
    rates = [row.rate(size_bytes) or 0.0 for row in view.links() if row.node == source]
    limit = policy.bandwidth.sync_mbps * _MEGABIT
    rate = max(rates, default=0.0) or limit
    rate = min(rate, limit) if limit else rate
    return size_bytes / rate if rate else 0.0


def _said(keys: Iterable[Wanted]) -> tuple[str, ...]:
    return tuple(sorted(f"{path} to {target}" for path, _, target in keys))
