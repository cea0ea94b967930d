"""One bandwidth budget: the cluster's, its nodes', and what each class of work gets of them.

A division is a pure function of what is under way. What is granted may only grow into what nobody
holds: a grant is cut first, and given to another when its executor has said so or its time is over.
It must never let grants that may be in force exceed a limit, whatever message is lost.

Rates are Mbit/s; 0 means unlimited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from dataplane.policy import Bandwidth, Policy, matches_any
from projections.nodes import NodeRow
from projections.transfers import TransferRow
from streams.events import TransferAssigned
from streams.values import S3_NODE, SMALL_BYTES, DataEntry

#: How long a grant lasts without being renewed, and when it is renewed.
GRANT_S = 60.0
RENEW_S = 20.0
#: What an executor whose grant has run out may use: so little that it needs no grant.
FLOOR_MBPS = 5.0
_CLUSTER = ""
#: Changes smaller than this share are not worth a message.
_WORTH_TELLING = 0.05


class Share(msgspec.Struct, frozen=True):
    """A transfer that is to get some of the budget; small ones that travel together are one."""

    #: What it is called in grants: `claim_of` its transfers.
    id: str
    #: The nodes whose limits it counts against; the bucket has none.
    nodes: tuple[str, ...]
    #: The most it may have by itself; `math.inf` for no limit of its own.
    most: float
    weight: float


class Limits(msgspec.Struct, frozen=True):
    """How much there is: in all, and by node. `math.inf` where there is no limit."""

    total: float
    node: Callable[[str], float]


def limits_of(policy: Bandwidth, node: Callable[[str], NodeRow | None]) -> Limits:
    """The limits of a cluster (K14): its own, each host's, and what a node says of itself."""

    def of_node(name: str) -> float:
        row = node(name)
        own = float(row.description.bandwidth_limit_mbps) if row else 0.0
        return min(_or_inf(policy.host_mb_s * 8), _or_inf(own))

    return Limits(_or_inf(policy.total_mb_s * 8), of_node)


def claim_of(transfer: str, entry: DataEntry, executor: str, source: str, target: str) -> str:
    """What a transfer's claim on the bandwidth is called: its own id, or, where it is small, that
    of all small ones that its executor brings the same way.
    """
    if entry.size_bytes > SMALL_BYTES:
        return transfer
    return f"small {executor} {source} {target}"


def claim_in_flight(row: TransferRow) -> str:
    """`claim_of` a transfer that is under way."""
    return claim_of(row.id, row.entry, row.executor, row.source, row.target)


def claim_of_order(order: TransferAssigned) -> str:
    """`claim_of` what a node is asked to carry out."""
    return claim_of(order.transfer, order.entry, order.executor, order.source, order.target)


def share_of(
    transfer: TransferRow,
    source: str,
    policy: Policy,
    node: Callable[[str], NodeRow | None],
    executor: str = "",
) -> Share:
    """What a transfer may claim: a sync's rate, tightened by provider, times its class (K14).

    What only takes what is spare never claims more than its part of what may be spared.
    """
    bandwidth = policy.bandwidth
    nodes = tuple(name for name in dict.fromkeys((source, transfer.target)) if name != S3_NODE)
    overrides = [of for name in nodes if (of := _by_provider(name, node(name), bandwidth))]
    sync = min(overrides, default=bandwidth.sync_mbps)
    weight = bandwidth.class_weights.get(transfer.priority, 1.0)
    most = _or_inf(sync * weight)
    if transfer.spare_only:
        most = min(most, _spared(nodes, policy, limits_of(bandwidth, node)))
    claim = claim_of(
        transfer.id, transfer.entry, executor or transfer.executor, source, transfer.target
    )
    return Share(claim, nodes, most, weight)


def divide(shares: Sequence[Share], limits: Limits) -> dict[str, float]:
    """How fast each may be: all grow alike by weight until something they pass is used up.

    Nobody gets more than is his, no node or cluster gives more than it has, and what one can't use
    the others get. Unlimited where nothing limits.
    """
    rates = dict.fromkeys((share.id for share in shares), 0.0)
    left = {_CLUSTER: limits.total}
    for share in shares:
        for name in share.nodes:
            left.setdefault(name, limits.node(name))
    growing = list(shares)
    while growing:
        weights = dict.fromkeys(left, 0.0)
        for share in growing:
            for name in (_CLUSTER, *share.nodes):
                weights[name] += share.weight
        steps = [left[name] / weight for name, weight in weights.items() if weight]
        steps += [(share.most - rates[share.id]) / share.weight for share in growing]
        step = max(0.0, min(steps))
        if math.isinf(step):
            return {**rates, **{share.id: 0.0 for share in growing}}
        for share in growing:
            rates[share.id] += step * share.weight
            for name in (_CLUSTER, *share.nodes):
                left[name] -= step * share.weight
        growing = [share for share in growing if not _stuck(share, rates, left)]
    return rates


class Grant(msgspec.Struct, frozen=True):
    """What a transfer may use, and until when without another word."""

    mbps: float
    until: float


class Grants:
    """What each executor may be using now, for sure and at most.

    Told by who divides, confirmed by who uses. An executor that was told less may use the old rate
    until it confirms or its old grant runs out; then the floor.
    """

    def __init__(self) -> None:
        self._confirmed: dict[str, Grant] = {}
        #: What it may have heard of since, each for less than the one before.
        self._told: dict[str, tuple[Grant, ...]] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._confirmed

    def forget_others(self, running: Iterable[str]) -> None:
        """Transfers that have ended use nothing."""
        ids = set(running)
        self._confirmed = {id: one for id, one in self._confirmed.items() if id in ids}
        self._told = {id: told for id, told in self._told.items() if id in ids}

    def adopt(self, id: str, grant: Grant) -> None:
        """What an assignment says it may use; also one that somebody else made."""
        self._confirmed.setdefault(id, grant)

    def told(self, id: str, grant: Grant) -> None:
        """A new rate is on its way to its executor, which may not have heard the last one."""
        more = [g for g in self._told.get(id, ()) if _or_inf(g.mbps) > _or_inf(grant.mbps)]
        self._told[id] = (*more, grant)

    def confirmed(self, id: str, grant: Grant) -> None:
        """The executor keeps to it now, and to nothing that it was told before."""
        self._confirmed[id] = grant
        self._told[id] = tuple(g for g in self._told.get(id, ()) if g.until > grant.until)

    def most(self, id: str, now: float) -> float:
        """The most a transfer may be using now; `math.inf` for one without a limit."""
        return max(self._in_force(id, now), default=FLOOR_MBPS)

    def least(self, id: str, now: float) -> float:
        """What it may use for sure, whichever of these words it has heard."""
        return min(self._in_force(id, now), default=FLOOR_MBPS)

    def _in_force(self, id: str, now: float) -> list[float]:
        found = [self._confirmed.get(id), *self._told.get(id, ())]
        return [_or_inf(grant.mbps) for grant in found if grant and grant.until > now]

    def until(self, id: str) -> float:
        """Until when its confirmed grant lasts."""
        grant = self._confirmed.get(id)
        return grant.until if grant else 0.0

    def rate(self, id: str) -> float:
        """Its confirmed rate."""
        grant = self._confirmed.get(id)
        return grant.mbps if grant else 0.0


def changes(
    shares: Sequence[Share], limits: Limits, grants: Grants, now: float
) -> dict[str, float]:
    """Which rates to tell now: cuts at once, growth only into what nobody may be using.

    Grants that soon run out are told again.
    """
    wanted = divide(shares, limits)
    headroom = _Headroom(shares, limits, grants, now)
    told: dict[str, float] = {}
    for share in sorted(shares, key=lambda share: wanted[share.id] - grants.most(share.id, now)):
        have, want = grants.most(share.id, now), _or_inf(wanted[share.id])
        rate = max(min(want, grants.least(share.id, now) + headroom.left(share)), FLOOR_MBPS)
        if rate > have:
            headroom.take(share, rate - have)
        ends = grants.until(share.id) - now < GRANT_S - RENEW_S
        if ends or not (_alike(rate, _or_inf(grants.rate(share.id))) and _alike(rate, have)):
            told[share.id] = 0.0 if math.isinf(rate) else rate
    return told


def most_granted(share: Share, limits: Limits) -> float:
    """The most that anybody may ever have granted; 0 for no limit."""
    most = min(share.most, limits.total, *(limits.node(name) for name in share.nodes))
    return 0.0 if math.isinf(most) else max(most, FLOOR_MBPS)


def first_rate(
    share: Share, others: Sequence[Share], limits: Limits, grants: Grants, now: float
) -> float:
    """What a transfer that starts now may use at first; others are cut for it later.

    Never less than the floor, which no limit counts.
    """
    fair = _or_inf(divide([*others, share], limits)[share.id])
    free = _Headroom(others, limits, grants, now).left(share)
    rate = max(min(fair, free), FLOOR_MBPS)
    return 0.0 if math.isinf(rate) else rate


class _Headroom:
    """What nobody may be using, by node and in all."""

    def __init__(self, shares: Sequence[Share], limits: Limits, grants: Grants, now: float) -> None:
        self._limits = limits
        self._used: dict[str, float] = {}
        for share in shares:
            self.take(share, grants.most(share.id, now))

    def left(self, share: Share) -> float:
        free = self._limits.total - self._used.get(_CLUSTER, 0.0)
        for name in share.nodes:
            free = min(free, self._limits.node(name) - self._used.get(name, 0.0))
        return 0.0 if math.isnan(free) else max(0.0, free)

    def take(self, share: Share, rate: float) -> None:
        for name in (_CLUSTER, *share.nodes):
            self._used[name] = self._used.get(name, 0.0) + rate


def _stuck(share: Share, rates: Mapping[str, float], left: Mapping[str, float]) -> bool:
    full = rates[share.id] >= share.most * (1 - 1e-9)
    return full or any(left[name] <= 1e-9 for name in (_CLUSTER, *share.nodes))


def _spared(nodes: Iterable[str], policy: Policy, limits: Limits) -> float:
    """What one of those that share what may be spared can have of it."""
    bandwidth, share = policy.bandwidth, policy.prestage.max_share
    most = limits.total * share / max(1, int(share * bandwidth.max_total))
    for name in nodes:
        most = min(most, limits.node(name) * share / max(1, int(share * bandwidth.max_per_node)))
    return max(most, FLOOR_MBPS)


def _by_provider(name: str, row: NodeRow | None, policy: Bandwidth) -> float:
    """The rate of a node's provider, or else of its name; 0 if no glob names either."""
    names = [row.description.provider] if row and row.description.provider else []
    for one in (*names, name):
        for glob, mbps in policy.provider_mbps.items():
            if matches_any(one, (glob,)):
                return mbps
    return 0.0


def _alike(one: float, other: float) -> bool:
    if math.isinf(one) or math.isinf(other):
        return one == other
    return abs(one - other) <= _WORTH_TELLING * max(one, other)


def _or_inf(mbps: float) -> float:
    return mbps if mbps > 0 else math.inf
