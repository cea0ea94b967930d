"""Which pending transfers start now: priority, caps, backoff and versions, as a pure function.

It must never let a node or the cluster exceed its caps, and never keep CRITICAL work waiting for
lesser work: that always finds one slot more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from dataplane.chain import exhausted
from dataplane.execution import KnownWays, Way, choose
from dataplane.policy import Policy
from projections.nodes import NodeRow
from projections.transfers import TransferRow
from streams import events
from streams.codec import Fact, fact_id, node_fact
from streams.subjects import subject_for, type_filter
from streams.values import S3_NODE, Endpoint, SyncPriority

#: All assignments share one guard: what is in flight is known to whoever assigns next.
ASSIGNMENTS = type_filter(events.TransferAssigned)
#: Assigned in one append, and looked at for it: bounds one round however long the queue is.
MOST_AT_ONCE = 200
MOST_LOOKED_AT = 2_000
#: Told to an executor at most: an assignment is one message.
MOST_PEERS = 32


class KnownAtAdmission(KnownWays, Protocol):
    """What admission asks of the views, transfer by transfer."""

    def sources(self, transfer: TransferRow) -> Sequence[str]:
        """Online holders of a transfer's entry, the best first."""

    def newer_versions(self, transfer: TransferRow) -> Sequence[TransferRow]:
        """Open transfers of later versions of the same path to the same target."""


class Admission(msgspec.Struct, frozen=True):
    """What may start, and when to ask again for what may not start yet."""

    assignments: tuple[Fact, ...]
    #: Seconds since 1970 at which the next backoff ends; None if none is waiting.
    next_at: float | None


def admit(
    pending: Iterable[TransferRow],
    in_flight: Sequence[TransferRow],
    known: KnownAtAdmission,
    policy: Policy,
    now: float,
    full: set[str] | None = None,
) -> Admission:
    """Pick what starts now from `pending`, which is in order of priority, deadline and age.

    Targets that can take nothing more are added to `full` on the way: who makes `pending` need not
    read the rest of their queue.
    """
    full = set() if full is None else full
    slots = _Slots(policy, in_flight)
    chosen: list[tuple[TransferRow, Way]] = []
    wake: list[float] = []
    looked_at = 0
    for transfer in pending:
        if slots.full(transfer):
            # In order of priority: what comes later for this target is no more urgent.
            full.add(transfer.target)
            continue
        looked_at += 1
        if (
            looked_at > MOST_LOOKED_AT
            or len(chosen) >= MOST_AT_ONCE
            or slots.none_left_for(transfer)
        ):
            break
        if exhausted(transfer, policy, transfer.asked_sequence) or not transfer.chains:
            continue
        ready_at = _ready_at(transfer, policy)
        if ready_at > now:
            wake.append(ready_at)
            continue
        if not all(
            exhausted(newer, policy, newer.asked_sequence)
            for newer in known.newer_versions(transfer)
        ):
            # A later version is on its way; what waits for this one is content with it.
            continue
        way = choose(transfer, known.sources(transfer), known, policy, now)
        if slots.take(transfer, way.source):
            chosen.append((transfer, way))
    getting = [*in_flight, *(transfer for transfer, _ in chosen)]
    assignments = tuple(
        _assignment(transfer, way, _peers(transfer, way.source, getting, known), known.node, policy)
        for transfer, way in chosen
    )
    return Admission(assignments, min(wake, default=None))


def unanswered(
    in_flight: Iterable[TransferRow], policy: Policy, now: float, teller: str
) -> list[Fact]:
    """Attempts whose executor has stayed away beyond their time, as failed; said by `teller`."""
    return [
        _given_up(transfer, teller)
        for transfer in in_flight
        if now > transfer.assigned_at + transfer.timeout_s + policy.retries.grace_s
    ]


class _Slots:
    """How much is under way, by node and in all."""

    def __init__(self, policy: Policy, in_flight: Sequence[TransferRow]) -> None:
        self._policy = policy
        #: The bucket has no limit of its own: it counts for nobody.
        self._by_node: Counter[str] = Counter()
        self._places = {(row.target, row.entry.path) for row in in_flight}
        self._total = len(in_flight)
        for row in in_flight:
            self._count(row.target, row.source)

    def full(self, transfer: TransferRow) -> bool:
        """Whether the target has no slot for it; then it does not stand in others' way."""
        extra = 1 if transfer.priority is SyncPriority.CRITICAL else 0
        return self._by_node[transfer.target] >= self._policy.bandwidth.max_per_node + extra

    def none_left_for(self, transfer: TransferRow) -> bool:
        """Whether neither this transfer nor any of lesser priority can start any more."""
        extra = 1 if transfer.priority is SyncPriority.CRITICAL else 0
        return self._total >= self._policy.bandwidth.max_total + extra

    def take(self, transfer: TransferRow, source: str) -> bool:
        """Count a transfer in if it fits; two versions never move to one place at once."""
        place = (transfer.target, transfer.entry.path)
        extra = 1 if transfer.priority is SyncPriority.CRITICAL else 0
        busiest = max(self._by_node[transfer.target], self._by_node[source])
        if (
            place in self._places
            or busiest >= self._policy.bandwidth.max_per_node + extra
            or self._total >= self._policy.bandwidth.max_total + extra
        ):
            return False
        self._places.add(place)
        self._count(transfer.target, source)
        self._total += 1
        return True

    def _count(self, *names: str) -> None:
        self._by_node.update(name for name in names if name != S3_NODE)


def _ready_at(transfer: TransferRow, policy: Policy) -> float:
    failures = transfer.failures_since(transfer.asked_sequence)
    if not failures:
        return 0.0
    return failures[-1].time + policy.retries.backoff_s(transfer.id, len(failures))


def _peers(
    transfer: TransferRow, source: str, getting: Iterable[TransferRow], known: KnownAtAdmission
) -> tuple[Endpoint, ...]:
    """Who else can give bytes of this content: those that get it now, and its other holders."""
    digest = transfer.entry.checksum
    names = [one.target for one in getting if one.entry.checksum == digest]
    names += known.sources(transfer)
    others = dict.fromkeys(name for name in names if name not in (source, transfer.target))
    found = (_endpoint(name, known.node) for name in others)
    return tuple(one for one in found if one.http_url)[:MOST_PEERS]


def _assignment(
    transfer: TransferRow,
    way: Way,
    peers: tuple[Endpoint, ...],
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
        bandwidth_mbps=_bandwidth(transfer, way.source, node, policy),
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


def _bandwidth(
    transfer: TransferRow, source: str, node: Callable[[str], NodeRow | None], policy: Policy
) -> float:
    """The tightest of the limits of this sync and of both nodes; 0 means unlimited."""
    limits = [policy.bandwidth.sync_mbps]
    for name in (source, transfer.target):
        row = node(name)
        limits.append(float(row.description.bandwidth_limit_mbps) if row else 0.0)
    return min((limit for limit in limits if limit > 0), default=0.0)


def _given_up(transfer: TransferRow, teller: str) -> Fact:
    event = events.TransferFailed(
        transfer=transfer.id,
        node=teller,
        source=transfer.source,
        target=transfer.target,
        entry=transfer.entry,
        attempt=transfer.attempt,
        error=f"{transfer.executor} gave no result within {transfer.timeout_s:g} s",
        error_class="Unanswered",
        # The assignment still waits for the node: when it comes back, it carries it out.
        retryable=False,
    )
    id = fact_id(transfer.id, transfer.queued_sequence, transfer.attempt, "unanswered")
    return node_fact(event, teller, id, chain=transfer.chains[0] if transfer.chains else "")
