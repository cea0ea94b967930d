"""Which pending transfers start now: order, caps, room, backoff and versions, as a pure function.

It must never let a node or the cluster exceed its caps, and never keep CRITICAL work waiting for
lesser work: that always finds one slot more.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol

import msgspec

from dataplane.budget import (
    GRANT_S,
    Grant,
    Grants,
    Share,
    claim_in_flight,
    first_rate,
    limits_of,
    share_of,
)
from dataplane.chain import exhausted
from dataplane.execution import KnownWays, Way, choose
from dataplane.liveness import SILENT
from dataplane.ordering import at_risk, expected_end, in_turn, starved
from dataplane.policy import Policy
from dataplane.slots import Slots, Wait
from projections.nodes import NodeRow
from projections.transfers import TransferRow, attempts
from streams import events
from streams.codec import Fact, chain_fact, fact_id, node_fact
from streams.subjects import subject_for, type_filter
from streams.values import S3_NODE, Endpoint, SyncPriority

#: All assignments share one guard: what is in flight is known to whoever assigns next.
ASSIGNMENTS = type_filter(events.TransferAssigned)
#: Assigned in one append, and looked at for it: bounds one round however long the queue is.
MOST_AT_ONCE = 200
MOST_LOOKED_AT = 2_000
#: Weighed against each other in one round, at least and for each free slot.
WEIGHED, WEIGHED_PER_SLOT = 32, 3
#: Told to an executor at most: an assignment is one message.
MOST_PEERS = 32


class KnownAtAdmission(KnownWays, Protocol):
    """What admission asks of the views, transfer by transfer."""

    def sources(self, transfer: TransferRow) -> Sequence[str]:
        """Online holders of a transfer's entry, the best first."""

    def newer_versions(self, transfer: TransferRow) -> Sequence[TransferRow]:
        """Open transfers of later versions of the same path to the same target."""

    def served(self, config_key: str) -> int:
        """Bytes that a configuration was given lately."""


class Admission(msgspec.Struct, frozen=True):
    """What may start, and when to ask again for what may not start yet."""

    assignments: tuple[Fact, ...]
    #: Seconds since 1970 at which the next backoff ends; None if none is waiting.
    next_at: float | None
    #: DEADLINE_AT_RISK of what was looked at, by transfer.
    risks: Mapping[str, Fact] = {}


def admit(
    pending: Iterable[TransferRow],
    in_flight: Sequence[TransferRow],
    known: KnownAtAdmission,
    policy: Policy,
    now: float,
    full: set[str] | None = None,
    *,
    oldest: Iterable[TransferRow] = (),
    grants: Grants | None = None,
) -> Admission:
    """Pick what starts now from `pending`, which comes by priority, and from `oldest`, by age.

    Targets that can take nothing more are added to `full` on the way: who makes `pending` need not
    read the rest of their queue. `grants` are what those in flight may be using.
    """
    slots = Slots(policy, in_flight, known.node)
    wake: list[float] = []
    candidates = _Candidates(slots, known, policy, now, set() if full is None else full, wake)
    weighed = candidates.gather(pending, oldest)
    ends = {one.id: expected_end(one, known.link, policy, now) for one in weighed if one.deadline}

    def late(transfer: TransferRow) -> bool:
        end = ends.get(transfer.id)
        return end is not None and transfer.deadline is not None and end > transfer.deadline

    def first(transfer: TransferRow) -> bool:
        return starved(transfer, now) and slots.only_critical(transfer.target)

    chosen: list[tuple[TransferRow, Way]] = []

    def start(transfer: TransferRow) -> None:
        if len(chosen) == MOST_AT_ONCE:
            return
        if slots.hold(transfer) is not None:
            slots.claim(transfer)
            return
        way = choose(transfer, known.sources(transfer), known, policy, now)
        if slots.take(transfer, way.source):
            chosen.append((transfer, way))
        else:
            slots.claim(transfer, way.source)

    favoured = {one.id for one in weighed if first(one)}
    after_all: list[TransferRow] = []
    for transfer in in_turn(weighed, first=first, late=late, served=known.served, now=now):
        if transfer.id in favoured and not first(transfer):
            # Another one has just been let in before CRITICAL work: one at a time.
            after_all.append(transfer)
        else:
            start(transfer)
    for transfer in after_all:
        start(transfer)
    risks = {
        one.id: _risk(one, end)
        for one in weighed
        if (end := ends.get(one.id)) is not None and at_risk(one, end, now)
    }
    assignments = _assigned(chosen, in_flight, known, policy, now, grants)
    return Admission(assignments, min(wake, default=None), risks)


def why_waiting(
    transfer: TransferRow, slots: Slots, known: KnownAtAdmission, policy: Policy, now: float
) -> Wait | None:
    """Why a pending transfer does not start now; None if it is about to."""
    return not_ready(transfer, known, policy, now) or slots.hold(transfer)


def not_ready(
    transfer: TransferRow, known: KnownAtAdmission, policy: Policy, now: float
) -> Wait | None:
    """Why a transfer could not start even if there were a slot; None if it could."""
    if not transfer.chains:
        return Wait("unwanted", "no chain waits for it any more")
    failures = transfer.failures_since(transfer.asked_sequence)
    if exhausted(transfer, policy, transfer.asked_sequence):
        return Wait("attempts", f"{attempts(failures)} attempts failed; its chain ends without it")
    if failures:
        fruitless = transfer.fruitless_since(transfer.asked_sequence)
        until = failures[-1].time + policy.retries.backoff_s(transfer.id, max(1, fruitless))
        if until > now:
            last = failures[-1].error_class
            return Wait("backoff", f"{last}: again in {until - now:.1f} s", until)
    if not all(
        exhausted(newer, policy, newer.asked_sequence) for newer in known.newer_versions(transfer)
    ):
        # What waits for this one is content with the later one.
        return Wait("newer-version", "a later version of it is on its way there")
    return None


class _Candidates:
    """Those that could start, gathered from long queues without reading them to their ends."""

    def __init__(
        self,
        slots: Slots,
        known: KnownAtAdmission,
        policy: Policy,
        now: float,
        full: set[str],
        wake: list[float],
    ) -> None:
        self._slots = slots
        self._known = known
        self._policy = policy
        self._now = now
        self._full = full
        self._wake = wake
        self._at: Counter[str] = Counter()

    def gather(
        self, pending: Iterable[TransferRow], oldest: Iterable[TransferRow]
    ) -> list[TransferRow]:
        """Candidates for this round."""
        if self._slots.none_left(critical=True):
            return []
        found: dict[str, TransferRow] = {}
        most = max(WEIGHED, WEIGHED_PER_SLOT * min(self._policy.bandwidth.max_total, MOST_AT_ONCE))
        parts = most * self._slots.parts
        only_critical = self._slots.none_left(critical=False)
        looked_at = 0
        for transfer in pending:
            if transfer.target in self._full:
                continue
            looked_at += 1
            critical = transfer.priority is SyncPriority.CRITICAL
            enough = parts <= 0 or len(found) >= 2 * MOST_AT_ONCE
            if looked_at > MOST_LOOKED_AT or enough or (only_critical > critical):
                break
            if self._may_start(transfer):
                found[transfer.id] = transfer
                parts -= self._slots.takes(transfer)
        if not only_critical:
            for transfer in islice(_aging(oldest), WEIGHED):
                if not starved(transfer, self._now):
                    break
                if self._may_start(transfer):
                    found[transfer.id] = transfer
        return list(found.values())

    def _may_start(self, transfer: TransferRow) -> bool:
        target = transfer.target
        if self._slots.full(transfer):
            # In order of priority: what comes later for this target is no more urgent.
            self._full.add(target)
            return False
        if transfer.spare_only and self._slots.hold(transfer) is not None:
            return False
        wait = not_ready(transfer, self._known, self._policy, self._now)
        if wait is not None:
            if wait.until:
                self._wake.append(wait.until)
            return False
        self._at[target] += self._slots.takes(transfer)
        enough = WEIGHED_PER_SLOT * self._slots.free_at(target)
        if target != S3_NODE and self._at[target] > enough:
            # Enough of it to choose from; the others must be seen, too.
            self._full.add(target)
        return True


def _aging(oldest: Iterable[TransferRow]) -> Iterable[TransferRow]:
    """Of the oldest, those that grow more urgent with time."""
    return (one for one in islice(oldest, MOST_LOOKED_AT) if not one.spare_only)


def _assigned(
    chosen: Sequence[tuple[TransferRow, Way]],
    in_flight: Sequence[TransferRow],
    known: KnownAtAdmission,
    policy: Policy,
    now: float,
    grants: Grants | None,
) -> tuple[Fact, ...]:
    """Assignments of what was chosen, each with what of the bandwidth is free for it now."""
    held = grants or grants_of(in_flight)
    limits = limits_of(policy.bandwidth, known.node)
    shares = shares_of(in_flight, policy, known.node)
    getting = defaultdict[str, list[str]](list)
    for one in (*in_flight, *(transfer for transfer, _ in chosen)):
        getting[one.entry.checksum].append(one.target)
    facts = []
    for transfer, way in chosen:
        share = share_of(transfer, way.source, policy, known.node, way.executor)
        if share.id in held:
            # Others that it travels with have a rate already.
            least = held.least(share.id, now)
            rate = 0.0 if math.isinf(least) else least
        else:
            rate = first_rate(share, shares, limits, held, now)
            held.adopt(share.id, Grant(rate, math.inf))
            shares.append(share)
        peers = _peers(transfer, way.source, getting[transfer.entry.checksum], known)
        facts.append(_assignment(transfer, way, peers, rate, known.node, policy))
    return tuple(facts)


def grants_of(in_flight: Iterable[TransferRow]) -> Grants:
    """What assignments say their executors may use, as far as the log knows."""
    grants = Grants()
    for row in in_flight:
        grants.adopt(claim_in_flight(row), Grant(row.bandwidth_mbps, math.inf))
    return grants


def shares_of(
    in_flight: Iterable[TransferRow], policy: Policy, node: Callable[[str], NodeRow | None]
) -> list[Share]:
    """What is under way, as claims on the bandwidth."""
    rows: dict[str, list[TransferRow]] = {}
    for row in in_flight:
        rows.setdefault(claim_in_flight(row), []).append(row)
    return [_share_together(some, policy, node) for some in rows.values()]


def _share_together(
    rows: Sequence[TransferRow], policy: Policy, node: Callable[[str], NodeRow | None]
) -> Share:
    """What those of one claim may have: as much as the slots that they fill."""
    share = share_of(rows[0], rows[0].source, policy, node)
    slots = math.ceil(len(rows) / policy.bandwidth.small_per_slot)
    return msgspec.structs.replace(share, most=share.most * slots, weight=share.weight * slots)


def _risk(transfer: TransferRow, end: float) -> Fact:
    deadline = transfer.deadline or 0.0
    event = events.DeadlineAtRisk(
        transfer=transfer.id,
        target=transfer.target,
        deadline=deadline,
        estimate=round(end, 3),
        config_key=transfer.entry.config_key,
    )
    return chain_fact(event, transfer.chains[0], "", transfer.id, deadline)


def unanswered(
    in_flight: Iterable[TransferRow],
    node: Callable[[str], NodeRow | None],
    policy: Policy,
    now: float,
    teller: str,
    silent: Container[str] = (),
) -> list[Fact]:
    """Attempts whose executor stayed away beyond their time, or is gone; said by `teller`.

    Who pushes or relays can be replaced, as soon as it is offline or its time is over. A target
    that is offline has its whole time to come back, unless it is known to be dead: no heartbeat
    took it out, or, being out for another reason, it is `silent` now. So has who was offline
    already when it was asked.
    """
    facts = []
    for transfer in in_flight:
        executor = node(transfer.executor)
        if now > transfer.assigned_at + transfer.timeout_s + policy.retries.grace_s:
            error = f"{transfer.executor} gave no result within {transfer.timeout_s:.0f} s"
            # The assignment still waits for the node: when it comes back, it carries it out. What a
            # target does not do, nobody else can do for it.
            replaceable = transfer.executor != transfer.target
            facts.append(_given_up(transfer, teller, error, retryable=replaceable))
        elif executor is not None and _left(executor, transfer):
            error = f"{executor.name} went offline: {executor.reason}"
            facts.append(_given_up(transfer, teller, error, retryable=True))
        elif executor is not None and _dead(executor, silent):
            error = f"{executor.name} is gone: {executor.reason}"
            # Should the node come back before its chain has ended, what it does by this assignment
            # counts all the same.
            facts.append(_given_up(transfer, teller, error, retryable=False))
    return facts


def _left(executor: NodeRow, transfer: TransferRow) -> bool:
    """Whether who was to bring something to another node has gone since."""
    gone = not executor.online and executor.since >= transfer.assigned_at
    return gone and executor.name != transfer.target


def _dead(executor: NodeRow, silent: Container[str]) -> bool:
    """Whether an executor will not answer: it was taken out, and nobody hears of it."""
    unheard = executor.reason.startswith(SILENT) or executor.name in silent
    return not executor.online and unheard


def _peers(
    transfer: TransferRow, source: str, getting: Iterable[str], known: KnownAtAdmission
) -> tuple[Endpoint, ...]:
    """Who else can give bytes of this content: those that get it now, and its other holders."""
    names = [*getting, *known.sources(transfer)]
    others = dict.fromkeys(name for name in names if name not in (source, transfer.target))
    found = (_endpoint(name, known.node) for name in others)
    return tuple(one for one in found if one.http_url)[:MOST_PEERS]


def _assignment(
    transfer: TransferRow,
    way: Way,
    peers: tuple[Endpoint, ...],
    mbps: float,
    node: Callable[[str], NodeRow | None],
    policy: Policy,
) -> Fact:
    attempt = transfer.attempt + 1
    event = events.TransferAssigned(
        transfer=transfer.id,
        executor=way.executor,
        source=way.source,
        target=transfer.target,
        entry=transfer.entry,
        transports=way.transports,
        source_at=_endpoint(way.source, node),
        target_at=_endpoint(transfer.target, node),
        peers=peers,
        bandwidth_mbps=round(mbps, 3),
        grant_s=GRANT_S,
        priority=transfer.priority,
        deadline=transfer.deadline,
        attempt=attempt,
        timeout_s=policy.retries.attempt_timeout_s(transfer.entry),
    )
    chain = transfer.chains[0]
    return Fact(
        event,
        subject_for(event, way.executor),
        fact_id(transfer.id, transfer.queued_sequence, attempt),
        chain,
        fact_id(chain, "SYNC_PLANNED", 0),
        "coordinator",
    )


def _endpoint(name: str, node: Callable[[str], NodeRow | None]) -> Endpoint:
    row = node(name)
    return Endpoint(node=name) if row is None else row.description.endpoint


def _given_up(transfer: TransferRow, teller: str, error: str, *, retryable: bool) -> Fact:
    event = events.TransferFailed(
        transfer=transfer.id,
        node=teller,
        source=transfer.source,
        target=transfer.target,
        entry=transfer.entry,
        attempt=transfer.attempt,
        error=error,
        error_class="Unanswered",
        retryable=retryable,
    )
    id = fact_id(transfer.id, transfer.queued_sequence, transfer.attempt, "unanswered")
    return node_fact(event, teller, id, chain=transfer.chains[0] if transfer.chains else "")
