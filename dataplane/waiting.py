"""Why each transfer waits, for who asks: the very rules that let it wait, asked again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from dataplane.admission import why_waiting
from dataplane.coordinator.dispatch import Known
from dataplane.ordering import at_risk, expected_end
from dataplane.policy import Policy
from dataplane.rows import TransferLine, transfer_line
from dataplane.slots import Slots
from projections.cluster import ClusterView
from projections.links import BreakerState, breaker
from projections.transfers import TransferRow, TransferState


def transfer_lines(
    view: ClusterView, policy: Policy, now: float, *, target: str = "", source: str = ""
) -> Iterator[TransferLine]:
    """What runs, then what waits, in order and each with its reason: all, or of these nodes."""
    running = view.in_flight()
    known = Known(view, policy, now)
    slots = Slots(policy, running, known.node)
    for row in chain(running, view.pending(target)):
        if target in ("", row.target) and source in ("", row.source):
            yield _line(row, slots, known, policy, now)


def _line(row: TransferRow, slots: Slots, known: Known, policy: Policy, now: float) -> TransferLine:
    end = expected_end(row, known.link, policy, now)
    notes = []
    if row.state is TransferState.PENDING:
        wait = why_waiting(row, slots, known, policy, now)
        if wait is not None:
            notes.append(f"{wait.rule}: {wait.reason}")
        for node in (row.source, row.target):
            state = breaker(known.link(node), now)
            if state.state is BreakerState.OPEN:
                notes.append(f"breaker: {node} failed too often, for {state.until - now:.0f} s")
    if at_risk(row, end, now) and row.deadline is not None and end is not None:
        notes.append(f"deadline: {end - row.deadline:+.0f} s by the estimate")
    return transfer_line(row, "; ".join(notes), end)
