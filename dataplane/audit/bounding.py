"""The log bounded in age: what is old, archived and needed by nobody is removed from the bus.

Nothing is removed that was not held against the archive, message by message, just before; nothing
from the first fact of an open chain on; and nothing that a subscriber has still to read.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from adapters.blobs import Blobs
from dataplane.audit.archive import compare, manifest_at
from projections.cluster import ClusterView
from projections.projector import Projector
from projections.travel import sequence_at
from streams.jetstream import JetStreamLog
from streams.permissions import node_durables
from streams.restoring import durable_consumers
from streams.segments import ConsumerInfo

#: The log grows to this many times its age before its beginning goes: not a bit every minute.
_SLACK = 1.1


class Hold(msgspec.Struct, frozen=True, order=True):
    """What must stay in the log: everything from a sequence on, and why."""

    sequence: int
    reason: str


class Shortened(msgspec.Struct, frozen=True):
    """What became of a look at the log's beginning."""

    first_sequence: int
    #: How many messages went; 0 if it was not yet time, or `held` allows none.
    removed: int
    held: Hold
    #: Consumers of nodes that had not read all of it.
    passed_over: tuple[str, ...] = ()


async def shorten(
    log: JetStreamLog, blobs: Blobs, projector: Projector, *, max_age_s: float, now: float
) -> Shortened:
    """Remove from the log what is older than `max_age_s`, as far as nothing holds it.

    Raises ArchiveMismatch and ArchiveDamaged where the archive is not what the log is, LogError
    where the bus refuses, and what `blobs` raises; then nothing is removed.
    """
    state = await log.state()
    first = await log.get(state.first_sequence)
    young = Hold(await sequence_at(log, now - max_age_s) + 1, "what comes then is younger")
    if first is None or now - first.time < _SLACK * max_age_s:
        return Shortened(state.first_sequence, 0, young)
    manifest, _ = await manifest_at(blobs)
    consumers = await durable_consumers(log.connection)
    with projector.store.read() as reader:
        view = ClusterView(reader)
        nodes = {name for row in view.nodes() for name in node_durables(row.name)}
        holds = [
            young,
            Hold(manifest.last_sequence + 1, f"{blobs.where} holds nothing from there on"),
            *holds_of(view),
            *holds_of_consumers(consumers, nodes),
        ]
    held = min(holds)
    if held.sequence <= state.first_sequence:
        return Shortened(state.first_sequence, 0, held)
    await compare(blobs, log, state.first_sequence, held.sequence - 1)
    await log.remove_before(held.sequence)
    passed = [c.name for c in consumers if c.waiting and c.acknowledged < held.sequence - 1]
    removed = held.sequence - state.first_sequence
    return Shortened(held.sequence, removed, held, tuple(sorted(passed)))


def holds_of(view: ClusterView) -> Iterable[Hold]:
    """What the views say is still needed: open chains and deletions, and what is to be rejected."""
    yield Hold(view.checkpoint.sequence, "the views are no further")
    for chain in view.open_chains():
        yield Hold(chain.opened_sequence, f"chain {chain.id} is open")
        break
    for deletion in view.open_deletions():
        yield Hold(deletion.requested_sequence, f"deletion {deletion.id} is open")
    for rejection in view.rejections_unsaid():
        yield Hold(rejection.sequence, "it is not yet reported as rejected")


def holds_of_consumers(consumers: Iterable[ConsumerInfo], nodes: set[str]) -> Iterable[Hold]:
    """What durable consumers have not read. Those of nodes hold nothing: chains hold for them."""
    for consumer in consumers:
        if consumer.waiting and consumer.name not in nodes:
            reason = f"the consumer {consumer.name} has not acknowledged it"
            yield Hold(consumer.acknowledged + 1, reason)
