"""In which order what may start does start: class, age, deadline, and turns between configurations.

Nothing starves: who waits long rises class by class, and who waited for too long goes before all
others wherever nothing but CRITICAL work is under way. A deadline that can be kept goes before one
that can't.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from dataplane.policy import Policy
from projections.links import LinkRow
from projections.transfers import SPARE_RANKS, TransferRow
from streams.values import SyncPriority, Transport

#: So long a wait makes work one class more urgent, up to just below CRITICAL.
AGE_S = 600.0
#: So long a wait makes it go first where CRITICAL work has everything.
STARVED_S = 3600.0
#: Rates are taken so pessimistically: three of four moves were faster.
QUANTILE = 0.25
#: An estimate may be wrong by so much before a deadline is called safe.
MARGIN = 1.1
LinkOf = Callable[[str, Transport | None], LinkRow | None]


def urgency(transfer: TransferRow, now: float) -> float:
    """The smaller the more urgent: 0 is CRITICAL, waiting raises the others up to 0.5."""
    rank = float(transfer.priority.rank)
    if transfer.spare_only:
        # However long it waits, it goes behind all others.
        return rank + SPARE_RANKS
    if rank == 0.0:
        return rank
    return max(0.5, rank - (now - transfer.queued_at) // AGE_S)


def starved(transfer: TransferRow, now: float) -> bool:
    """Whether lesser work has waited for too long."""
    waits = transfer.priority is not SyncPriority.CRITICAL and not transfer.spare_only
    return waits and now - transfer.queued_at >= STARVED_S


def seconds_needed(transfer: TransferRow, link: LinkOf, policy: Policy) -> float | None:
    """How long it takes once it moves, by what the log knows of such sizes; None if nothing.

    By the slower end of its first transport that was ever used, or of any.
    """
    size = transfer.entry.size_bytes
    rates = []
    for node in (transfer.source, transfer.target):
        for transport in (*transfer.transports, None):
            row = link(node, transport)
            rate = row.rate(size, QUANTILE) if row else None
            if rate:
                rates.append(rate)
                break
    if not rates:
        return None
    most = policy.bandwidth.sync_mbps * policy.bandwidth.class_weights.get(transfer.priority, 1.0)
    limit = most * 1_000_000 / 8 if most else math.inf
    return size / min(*rates, limit)


def expected_end(transfer: TransferRow, link: LinkOf, policy: Policy, now: float) -> float | None:
    """When it would be there if it moved from now on, or since it was assigned."""
    needed = seconds_needed(transfer, link, policy)
    if needed is None:
        return None
    began = transfer.assigned_at if transfer.executor and transfer.assigned_at else now
    return max(now, began + needed) if began != now else now + needed


def at_risk(transfer: TransferRow, end: float | None, now: float) -> bool:
    """Whether a deadline will probably be missed."""
    if transfer.deadline is None or end is None:
        return False
    return now + (end - now) * MARGIN > transfer.deadline


def in_turn(
    candidates: Iterable[TransferRow],
    *,
    first: Callable[[TransferRow], bool],
    late: Callable[[TransferRow], bool],
    served: Callable[[str], int],
    now: float,
) -> Iterator[TransferRow]:
    """Candidates in the order in which they should start.

    `first` says who has waited for too long, `late` whose deadline can't be kept any more, `served`
    how many bytes a configuration was given lately: of equals, the one that was given least goes
    next, and what is taken from here counts at once.
    """
    groups: dict[tuple[bool, float, bool, float], list[TransferRow]] = {}
    for one in candidates:
        due = math.inf if one.deadline is None else one.deadline
        key = (not first(one), urgency(one, now), late(one), due)
        groups.setdefault(key, []).append(one)
    given: dict[str, int] = {}
    for key in sorted(groups):
        yield from _take_turns(groups[key], served, given)


def _take_turns(
    group: Sequence[TransferRow], served: Callable[[str], int], given: dict[str, int]
) -> Iterator[TransferRow]:
    waiting: dict[str, deque[TransferRow]] = {}
    for one in sorted(group, key=lambda one: one.queued_sequence):
        waiting.setdefault(one.entry.config_key, deque()).append(one)
    for config_key in waiting:
        given.setdefault(config_key, served(config_key))
    while waiting:
        config_key = min(waiting, key=lambda key: (given[key], waiting[key][0].queued_sequence))
        one = waiting[config_key].popleft()
        if not waiting[config_key]:
            del waiting[config_key]
        yield one
        given[config_key] += one.entry.size_bytes
