"""Whose copy is sent: the best of those that hold it, and over which transports (K7, K12)."""

from __future__ import annotations

from collections.abc import Sequence

from dataplane.planner.known import Known
from dataplane.policy import Order, Rule, Strategy, matches_any
from dataplane.sealed import opens
from projections.nodes import NodeRow
from streams.values import S3_NODE, DataEntry, Trait, Transport


def rank_sources(
    known: Known, holders: Sequence[str], target: NodeRow, entry: DataEntry | None = None
) -> list[str]:
    """Those of `holders` that can be asked, the best first.

    Storage before others, then the same provider, then what lasts; the bucket last. A node whose
    circuit is open is left out while there is another. Of what is sealed in the bucket it is no
    source for who can't open it.
    """
    sealed_with = entry.sealed_with if entry is not None else ""
    asked = [name for name in holders if name != S3_NODE or opens(target, sealed_with)]
    rows = [known.node(name) for name in asked if name != target.name]
    online = [row for row in rows if row is not None and row.online]
    working = [row for row in online if not known.circuit_open_until(row.name)]
    ranked = sorted(
        working or online, key=lambda row: (-source_score(known, row, target, entry), row.name)
    )
    return [row.name for row in ranked]


def source_score(
    known: Known, row: NodeRow, target: NodeRow, entry: DataEntry | None = None
) -> float:
    """How good it is to ask a node for what it holds (K7)."""
    scores, description = known.policy.placement.scores, row.description
    if row.name == S3_NODE:
        # It is the farthest away and the only one that costs money: the last one to be asked.
        return float("-inf")
    score = 0.0
    if Trait.EXTERNAL_STORAGE in description.traits:
        score += scores.external_storage_source
    if description.provider and description.provider == target.description.provider:
        score += scores.same_provider
    if known.is_ephemeral(row):
        score += scores.ephemeral_source
    if entry is not None and entry.quality is not None:
        score += scores.quality * entry.quality
    return score


def on_one_mount(known: Known, holders: Sequence[str], target: NodeRow, sender: str) -> str:
    """A holder that shares the target's mount, so that both see one file; "" if none does (K5).

    `sender` has it at hand, if it is named: then nobody trusts the mount of who is away.
    """
    group = target.description.nfs_group
    if not group:
        return ""
    for name in holders:
        row = known.node(name)
        if row is None or row.description.nfs_group != group:
            continue
        if row.online or sender in ("", name):
            return name
    return ""


def transport_chain(
    known: Known, entry: DataEntry, rule: Rule, strategy: Strategy, source: str, target: str
) -> tuple[Transport, ...]:
    """Transports to try for an entry, in order, of those this installation has (K12)."""
    transports = known.policy.transports
    if source == S3_NODE:
        return (Transport.S3,)
    if target == S3_NODE:
        # Nobody runs in the bucket: of its chain, only its own transport reaches it.
        return tuple(t for t in transports.s3_backup if t is Transport.S3)
    order = Order.URGENT if strategy.urgent else rule.order
    if order in (Order.BY_SIZE, Order.URGENT) and transports.is_large(entry):
        order = Order.LARGE_FILE
    elif order is Order.BY_SIZE:
        order = Order.SMALL_FILE
    wanted: tuple[Transport, ...] = getattr(transports, order)
    chain = tuple(t for t in wanted if t in transports.installed) or transports.installed
    last = {
        transport
        for glob, unsound in transports.tried_last.items()
        if matches_any(source, (glob,)) or matches_any(target, (glob,))
        for transport in unsound
    }
    return tuple(sorted(chain, key=lambda transport: transport in last))
