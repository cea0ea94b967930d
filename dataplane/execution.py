"""Who carries out a transfer, from which holder, by which transports: a pure function.

The target fetches if it can reach a holder; else the holder pushes; else, where neither can reach
the other, a third node that both can reach relays, or the bucket does. Transports are those of the
plan, but for those that the two have no servers for. What failed lately is asked
last: a breaker that is open excludes a way only as long as there is another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from dataplane.policy import Breakers, Policy, matches_any
from dataplane.sealed import opens
from projections.links import BreakerRule, BreakerState, LinkRow, breaker
from projections.nodes import NodeRow
from projections.transfers import TransferRow
from streams.values import S3_NODE, Role, Trait, Transport, Value

#: Transports that go to a node's file server, and those that go to its SSH server.
TO_FILE_SERVER = (Transport.P2P_GOSSIP, Transport.HTTP_FETCH)
TO_SSH = (Transport.RSYNC, Transport.BASE64_SSH)
#: What does the same by way of a file server as another transport by way of SSH: the one saves what
#: an older version has, the other needs next to nothing.
STANDS_IN = {Transport.RSYNC: Transport.P2P_GOSSIP, Transport.BASE64_SSH: Transport.HTTP_FETCH}
#: Transports by which a holder can send; the bucket is only ever pushed to.
PUSHING = (Transport.HTTP_FETCH, Transport.RSYNC, Transport.BASE64_SSH)
#: Failures after which another holder, if there is one, is asked instead.
SOURCE_FAILED = ("EntryMissing", "Unreachable", "Refused", "Stalled", "Interrupted")
#: Failures after which the other end is to open the connection, if it can.
WAY_FAILED = ("Unreachable", "Refused", "Unanswered")
#: Failures of the disk of whoever carries it out: of a third node, another may relay instead.
DISK_FAILED = ("DiskFull", "DiskFailed")
#: How long a transport that brought wrong bytes is tried after the others.
CORRUPT_S = 3600.0
#: Third nodes that are thought of for a relay.
MOST_RELAYS = 4


class Way(Value, frozen=True):
    """One way to carry out a transfer."""

    #: The target fetches, the source pushes, anybody else relays.
    executor: str
    source: str
    transports: tuple[Transport, ...]
    #: Whom the executor speaks with.
    remote: str
    #: 0 is the most direct.
    detour: int = 0


class KnownWays(Protocol):
    """What is asked of the views."""

    def node(self, name: str) -> NodeRow | None:
        """A node by name."""

    def nodes(self) -> Sequence[NodeRow]:
        """All nodes, by name."""

    def link(self, node: str, transport: Transport | None = None) -> LinkRow | None:
        """How a node could be reached lately, by a transport or by any."""


def choose(
    transfer: TransferRow,
    holders: Sequence[str],
    known: KnownWays,
    policy: Policy,
    now: float,
) -> Way:
    """The way by which the next attempt at a transfer goes; `holders` are online, best first.

    The planned source is preferred, then the better holder. If nobody can reach anybody, the target
    is to try all the same, and its failure says so.
    """
    ranked = _ranked(transfer, holders)
    ways = list(_ways(transfer, ranked, known, policy))
    if not ways:
        source = ranked[0]
        return Way(transfer.target, source, transfer.transports, source)

    def badness(way: Way) -> tuple[bool, bool, int, int, int, int]:
        # A way that brings the file on is no worse for having to be taken again.
        by_source = [f for f in transfer.failures if f.source == way.source and not f.headway]
        same_way = [f for f in by_source if f.executor == way.executor]
        executor = known.node(way.executor)
        relays = way.executor not in (way.source, transfer.target)
        in_the_way = (*WAY_FAILED, *DISK_FAILED) if relays else WAY_FAILED
        return (
            _is_open(known.link(way.remote), policy.breakers, now),
            executor is not None and not executor.online,
            sum(f.error_class in SOURCE_FAILED for f in by_source),
            sum(f.error_class in in_the_way for f in same_way),
            way.detour,
            ranked.index(way.source),
        )

    best = min(ways, key=badness)
    return Way(
        best.executor,
        best.source,
        _ordered(best, transfer, known, policy, now),
        best.remote,
        best.detour,
    )


def can_be_reached(node: NodeRow | None, transport: Transport, by: str) -> bool:
    """Whether another node can open a connection to a node for this transport.

    A node that says where its SSH server is can be reached there, also if nobody reaches its file
    server; one that is marked as blocked can't be reached at all. Of a node that nobody knows, it
    is for the attempt to find out.
    """
    if node is None:
        return True
    if Trait.NAT_BLOCKED in node.description.traits:
        return False
    at = node.description.endpoint
    if transport in TO_SSH:
        return bool(at.ssh_host) and at.ssh_reachable is not False and by not in at.ssh_not_from
    if transport in TO_FILE_SERVER:
        return bool(at.http_url) and at.reachable is not False and by not in at.not_from
    return False


def _ranked(transfer: TransferRow, holders: Sequence[str]) -> list[str]:
    """Whom to ask, the planned source first if it still holds the entry, else last."""
    others = [name for name in holders if name not in (transfer.source, transfer.target)]
    planned = [transfer.source]
    return [*others, *planned] if holders and transfer.source not in holders else planned + others


def _ways(
    transfer: TransferRow, holders: Sequence[str], known: KnownWays, policy: Policy
) -> Iterator[Way]:
    target = transfer.target
    if target == S3_NODE:
        yield from (Way(h, h, (Transport.S3,), S3_NODE) for h in holders if h != S3_NODE)
        return
    direct = False
    installed = policy.transports.installed
    for way in _direct(transfer, holders, known, installed):
        direct = direct or way.source != S3_NODE
        yield way
    if direct or not _expects(known.node(target)):
        return
    relaying = known.nodes() if Transport.HTTP_FETCH in installed else ()
    for holder in holders:
        if holder == S3_NODE:
            continue
        for relay in _relays((holder, target), relaying):
            yield Way(relay, holder, (Transport.HTTP_FETCH,), holder, detour=2)
        sender = known.node(holder)
        key = sender.description.seal_key if sender is not None else ""
        if policy.s3.enabled and opens(known.node(target), key):
            yield Way(holder, holder, (Transport.S3,), S3_NODE, detour=3)


def _direct(
    transfer: TransferRow,
    holders: Sequence[str],
    known: KnownWays,
    installed: Sequence[Transport],
) -> Iterator[Way]:
    target = known.node(transfer.target)
    sending = [t for t in installed if t in PUSHING] if _expects(target) else []
    for holder in holders:
        if holder == S3_NODE:
            yield Way(transfer.target, S3_NODE, (Transport.S3,), S3_NODE)
            continue
        if fetched := _usable(known.node(holder), transfer, transfer.target, installed):
            yield Way(transfer.target, holder, fetched, holder)
        if pushed := _usable(target, transfer, holder, sending):
            yield Way(holder, holder, pushed, transfer.target, detour=1)


def _expects(target: NodeRow | None) -> bool:
    """Whether a file may be sent to a node.

    Where no agent expects it, not even over SSH: it would be taken for the node's own.
    """
    return target is None or target.online


def _usable(
    node: NodeRow | None, transfer: TransferRow, by: str, among: Sequence[Transport]
) -> tuple[Transport, ...]:
    """A transfer's transports for which a connection to a node can be opened, in order.

    What needs an SSH server that is not there is stood in for in its place; after a failure all
    that stand in are tried at last.
    """

    def usable(transport: Transport) -> bool:
        return transport in among and can_be_reached(node, transport, by)

    standing_in = {t: STANDS_IN[t] for t in transfer.transports if t in STANDS_IN}
    found = [t if usable(t) else standing_in.get(t, t) for t in transfer.transports]
    if transfer.failures:
        found += standing_in.values()
    return tuple(dict.fromkeys(filter(usable, found)))


def _relays(ends: tuple[str, str], nodes: Iterable[NodeRow]) -> list[str]:
    """Third nodes whose file server both ends can reach, those that are there to store first."""
    found = [
        node
        for node in nodes
        if node.online
        and node.name not in ends
        and all(can_be_reached(node, Transport.HTTP_FETCH, end) for end in ends)
    ]
    storing = {Role.STORAGE, Role.COORDINATOR}
    found.sort(key=lambda node: (not storing & set(node.description.roles), node.name))
    return [node.name for node in found[:MOST_RELAYS]]


def _ordered(
    way: Way, transfer: TransferRow, known: KnownWays, policy: Policy, now: float
) -> tuple[Transport, ...]:
    """A way's transports: without those whose breaker is open, the corruption-prone ones last, and
    after them those that nobody answered when this transfer was tried before.
    """
    failed = transfer.failures_since(transfer.asked_sequence)
    links = {t: known.link(way.remote, t) for t in way.transports}
    closed = [t for t in way.transports if not _is_open(links[t], policy.breakers, now)]
    marked = {
        transport
        for glob, transports in policy.transports.tried_last.items()
        if matches_any(way.remote, [glob]) or matches_any(transfer.target, [glob])
        for transport in transports
    }

    def corrupts(transport: Transport) -> bool:
        link = links[transport]
        return transport in marked or (link is not None and link.corrupted_since(now - CORRUPT_S))

    def unanswered(transport: Transport) -> bool:
        link = links[transport]
        return bool(failed) and link is not None and link.unanswered_since(failed[0].time)

    return tuple(sorted(closed or way.transports, key=lambda t: (unanswered(t), corrupts(t))))


def _is_open(link: LinkRow | None, rules: Breakers, now: float) -> bool:
    if link is None:
        return False
    if link.transport is None:
        rule = BreakerRule(rules.node_failures, rules.node_open_s, rules.half_open_successes)
    else:
        rule = BreakerRule(
            rules.transport_failures, rules.transport_open_s, rules.half_open_successes
        )
    return breaker(link, now, rule).state is BreakerState.OPEN
