"""Whether a copy may be deleted: two steps, and never on what is only believed.

First the deletion is reserved, so that no other copy of the same entry is deleted meanwhile; then
those who hold the current content elsewhere have proven it just now, or the copy stays. Each
decision is guarded by the history of the entry's copies, ``dp.chain.copies-<entry>.>``: whoever
decides on an older reading of it is refused by the log. Only what was never reserved is refused
elsewhere, because a node deletes by a grant only while that is the last word there.

It must never let fewer proven copies of the content that counts remain than the policy says, and
never touch what is named there as never to be deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec
from msgspec.structs import replace

from dataplane.policy import Policy
from dataplane.sealed import stands_alone
from projections.catalog import entry_key
from projections.deletions import DeletionRow, DeletionState, turned_down
from projections.nodes import NodeRow
from projections.transfers import TransferRow
from streams import events
from streams.codec import Fact, chain_fact
from streams.identity import Ownership, falls_under
from streams.values import S3_NODE, DataEntry, Proof


class KnownAtDeletion(Protocol):
    """What deletion asks of the views; `projections.cluster.ClusterView` knows it."""

    def node(self, name: str) -> NodeRow | None:
        """A node by name."""

    def nodes(self) -> list[NodeRow]:
        """All nodes."""

    def held_by(self, node: str, path: str) -> DataEntry | None:
        """What a node holds under a path."""

    def current_of(self, path: str) -> DataEntry | None:
        """The version of a path that counts, with those who hold it."""

    def deletion_of(self, path: str, checksum: str) -> DeletionRow | None:
        """The reserved or granted deletion of some copy of an entry."""

    def open_transfers_of(self, node: str, path: str) -> Sequence[TransferRow]:
        """Transfers that bring something under a path to a node, or fetch it from there."""


#: Of what a place says of a copy it was to prove, as many characters are kept.
PROOF_CHARACTERS = 300


class Keep(msgspec.Struct, frozen=True):
    """A copy stays, by a rule and in words."""

    rule: str
    reason: str


class Witnesses(msgspec.Struct, frozen=True):
    """The content that counts under a path, and the places elsewhere that are to prove it."""

    entry: DataEntry
    nodes: tuple[str, ...]


def copies_chain(path: str, checksum: str) -> str:
    """Under which name decisions on the copies of one entry are said, and guarded."""
    return f"copies-{entry_key(path, checksum).hex()}"


def reserve(row: DeletionRow, known: KnownAtDeletion, policy: Policy) -> Fact:
    """The first decision on a request: reserved, or refused before anybody was asked."""
    held = known.held_by(row.node, row.path)
    found = _judge(row, held, known, policy)
    if isinstance(found, Keep):
        # Apart from the history of the copies: a grant must stay the last word there.
        fact = refused(row, held.checksum if held else row.checksum, found)
        return chain_fact(fact.event, turned_down(row.id), row.id, row.id)
    assert held is not None
    event = events.DeletionReserved(
        path=row.path,
        checksum=held.checksum,
        node=row.node,
        request=row.id,
        reason=row.reason,
        requester=row.requester,
    )
    return _said(row, event, held.checksum)


def witnesses(row: DeletionRow, known: KnownAtDeletion, policy: Policy) -> Witnesses | Keep:
    """Who is to prove the content that counts, for a deletion that is reserved."""
    held = known.held_by(row.node, row.path)
    if held is None or held.checksum != row.checksum:
        return Keep("not-held", f"{row.node} no longer holds this content of {row.path}")
    return _witnesses(row, held, known, policy)


def settle(
    row: DeletionRow,
    asked: Witnesses,
    proofs: Sequence[Proof],
    known: KnownAtDeletion,
    policy: Policy,
) -> Fact:
    """The second decision: granted if enough have proven it, and nothing has changed meanwhile."""
    now = witnesses(row, known, policy)
    if isinstance(now, Keep):
        return refused(row, row.checksum, now, proofs)
    if now.entry.checksum != asked.entry.checksum:
        changed = Keep("changed", f"another content of {row.path} counts since it was reserved")
        return refused(row, row.checksum, changed, proofs)
    proven = [
        proof
        for proof in proofs
        if proof.proven
        and proof.checksum == now.entry.checksum
        and proof.node in now.nodes
        # What nobody knew to be sealed was counted as if everybody could open it.
        and proof.sealed_with in ("", now.entry.sealed_with)
    ]
    wanted = policy.disk.min_verified_copies
    if len(_places((proof.node for proof in proven), known.node)) < wanted:
        failed = "; ".join(
            f"{proof.node}: {proof.reason[:PROOF_CHARACTERS]}"
            for proof in proofs
            if not proof.proven
        )
        reason = f"{len(proven)} of {wanted} copies elsewhere are proven ({failed})"
        return refused(row, row.checksum, Keep("unproven", reason), proofs)
    event = events.DeletionGranted(
        path=row.path,
        checksum=row.checksum,
        node=row.node,
        request=row.id,
        proofs=tuple(map(_brief, proven)),
    )
    return _said(row, event, row.checksum)


def done(row: DeletionRow, *, deleted: bool, freed_bytes: int, reason: str) -> Fact:
    """What came of a granted deletion."""
    event = events.DeletionDone(
        path=row.path,
        checksum=row.checksum,
        node=row.node,
        request=row.id,
        deleted=deleted,
        freed_bytes=freed_bytes,
        reason=reason[:1000],
    )
    return _said(row, event, row.checksum)


def refused(row: DeletionRow, checksum: str, why: Keep, proofs: Sequence[Proof] = ()) -> Fact:
    """A copy stays."""
    event = events.DeletionRefused(
        path=row.path,
        node=row.node,
        request=row.id,
        rule=why.rule,
        reason=why.reason[:1000],
        checksum=checksum,
        proofs=tuple(map(_brief, proofs)),
    )
    return _said(row, event, checksum)


def undecided(row: DeletionRow, tries: int, problem: str) -> Fact:
    """A copy stays because whether it may go could not be decided; of none that is granted."""
    why = Keep("undecided", f"set aside after {tries} tries: {problem}")
    fact = refused(row, row.checksum, why)
    if row.state is DeletionState.REQUESTED:
        return chain_fact(fact.event, turned_down(row.id), row.id, row.id)
    return fact


def protected(path: str, policy: Policy) -> Keep | None:
    """The rule by which a path is never deleted, whoever holds however many copies; None if
    there is none.
    """
    if falls_under(path, policy.disk.never_delete):
        return Keep("never-deleted", f"{path} is of what is never deleted")
    if policy.paths.ownership(path) is Ownership.MERGED:
        return Keep("merged", f"{path} is merged: no copy of it stands for another")
    return None


def _judge(
    row: DeletionRow, held: DataEntry | None, known: KnownAtDeletion, policy: Policy
) -> Witnesses | Keep:
    """What can be said before anybody is asked."""
    if held is None:
        return Keep("not-held", f"{row.node} holds nothing under {row.path}")
    if row.checksum and held.checksum != row.checksum:
        return Keep("another-content", f"{row.node} holds {held.checksum} under {row.path}")
    other = known.deletion_of(row.path, held.checksum)
    if other is not None and other.id != row.id:
        return Keep("another-deletion", f"the copy on {other.node} is being deleted")
    busy = known.open_transfers_of(row.node, row.path)
    if busy:
        ways = ", ".join(f"{one.source} to {one.target}" for one in busy[:3])
        return Keep("in-use", f"it is under way: {ways}")
    return _witnesses(row, held, known, policy)


def _witnesses(
    row: DeletionRow, held: DataEntry, known: KnownAtDeletion, policy: Policy
) -> Witnesses | Keep:
    keep = protected(row.path, policy)
    if keep is not None:
        return keep
    current = known.current_of(row.path)
    if current is None or (held.checksum != current.checksum and held.version >= current.version):
        return Keep("conflict", f"what {row.node} holds never became the version that counts")
    elsewhere = [
        name
        for name in current.locations
        if name != row.node and _counts(name, row, known.node, policy)
    ]
    leaving = known.deletion_of(current.path, current.checksum)
    if leaving is not None:
        elsewhere = [name for name in elsewhere if name != leaving.node]
    only_with = _key_of_the_bucket(current, elsewhere, row, known, policy)
    elsewhere = [name for name in elsewhere if not (only_with and name == S3_NODE)]
    wanted = policy.disk.min_verified_copies
    if len(_places(elsewhere, known.node)) < wanted:
        names = ", ".join(elsewhere) or "nobody"
        reason = f"{wanted} lasting copies elsewhere are needed, and only {names} has one"
        reason += f"; {S3_NODE} has it only with the key {only_with}" if only_with else ""
        return Keep("too-few-copies", reason)
    return Witnesses(current, tuple(elsewhere))


def _key_of_the_bucket(
    entry: DataEntry,
    elsewhere: Sequence[str],
    deletion: DeletionRow,
    known: KnownAtDeletion,
    policy: Policy,
) -> str:
    """The key that the bucket's copy needs and nobody would have who remains; else "".

    Whoever deletes his copy and stays may be the one who has it.
    """
    remaining = (
        node
        for node in known.nodes()
        if not policy.is_ephemeral(node.description) and not node.is_leaving(deletion.requested_at)
    )
    if S3_NODE not in elsewhere or stands_alone(entry.sealed_with, elsewhere, remaining):
        return ""
    return entry.sealed_with


def _counts(
    name: str, deletion: DeletionRow, node: Callable[[str], NodeRow | None], policy: Policy
) -> bool:
    """Whether a copy there would remain: on a node that is to stay, and not on the same mount."""
    row, other = node(name), node(deletion.node)
    if row is None:
        # The bucket; or a node whose description nobody knows.
        return True
    if policy.is_ephemeral(row.description) or row.is_leaving(deletion.requested_at):
        return False
    group = row.description.nfs_group
    return not (group and other is not None and other.description.nfs_group == group)


def _places(names: Iterable[str], node: Callable[[str], NodeRow | None]) -> set[str]:
    """Distinct disks: nodes of one NFS group are one."""
    places = set()
    for name in names:
        row = node(name)
        group = row.description.nfs_group if row else ""
        places.add(f"nfs:{group}" if group else name)
    return places


def _brief(proof: Proof) -> Proof:
    """A proof whose words, which are a node's own, fit into a message with those of others."""
    return replace(proof, reason=proof.reason[:PROOF_CHARACTERS])


def _said(row: DeletionRow, event: events.Event, checksum: str) -> Fact:
    chain = copies_chain(row.path, checksum)
    return chain_fact(event, chain, row.id, row.id)
