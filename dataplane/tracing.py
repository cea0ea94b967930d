"""Spans of an ended chain, read from its facts: with the log's times, and ids that follow from it.

Nothing is measured where it happens: whoever reads the same facts gets the same spans. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from streams import events
from streams.codec import Recorded, span_of, trace_of
from streams.events import CHAIN_TRIGGERS, Event

ENDS = (events.DataSyncCompleted, events.DataSyncFailed)
#: What a chain says to others: who goes on from there is of the same trace.
_SAID = (
    events.NewGamesAvailable,
    events.ModelDistributionComplete,
    events.S3BackupCompleted,
    events.NodeDrained,
    events.SelfplayNeeded,
)

Attribute = str | int | float | bool | tuple[str, ...]


class Span(msgspec.Struct, frozen=True):
    """Something of a chain that took time."""

    #: Hex digits: 32, 16 and 16; `parent_id` is "" at the root of a trace.
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    #: The node that did it, or "coordinator".
    process: str
    #: Seconds since 1970 by the clock of the log.
    start: float
    end: float
    attributes: dict[str, Attribute] = {}
    #: Why it went wrong; "" if it did not.
    error: str = ""
    #: It is something said to others, who may go on from it.
    said: bool = False


def spans_of(chain: str, facts: Sequence[Recorded]) -> list[Span]:
    """The spans of a chain whose facts these are, in order, the whole first; [] if it is open.

    Attempts that the end did not wait for are left out. One that another chain had asked for
    may have begun before this one.
    """
    own = [fact for fact in facts if fact.chain == chain]
    trigger = next((fact for fact in own if type(fact.event) in CHAIN_TRIGGERS), None)
    end = next((fact for fact in own if isinstance(fact.event, ENDS)), None)
    if trigger is None or end is None:
        return []
    whole = _whole(trigger, end)
    before = [fact for fact in facts if fact.sequence < end.sequence]
    own_before = [fact for fact in own if fact.sequence < end.sequence]
    parts = [
        *_answer(whole, own_before),
        *_plan(whole, own_before),
        *_attempts(whole, before),
        # An announcement stands right behind the end, written together with it.
        *(_said(whole, fact) for fact in own if isinstance(fact.event, _SAID)),
    ]
    return [whole, *sorted(parts, key=lambda span: (span.start, span.end))]


def _whole(trigger: Recorded, end: Recorded) -> Span:
    """From the trigger to the end, within the trace of whoever said the trigger, if he had one."""
    trace, span, parent = trace_of(trigger.chain), span_of(trigger.id), ""
    if trigger.traceparent:
        _, trace, said, *_ = trigger.traceparent.split("-")
        # Our own trigger names the span that it begins.
        parent = said if said != span else ""
    result = end.event
    assert isinstance(result, ENDS)
    failed = isinstance(result, events.DataSyncFailed)
    attributes: dict[str, Attribute] = {
        "dataplane.chain": trigger.chain,
        "dataplane.config_key": trigger.config_key,
        "dataplane.node": trigger.owner,
        "dataplane.outcome": end.type,
        "dataplane.bytes": result.bytes_transferred,
        "dataplane.games": result.games_synced,
    }
    error = result.reason or "something is missing" if failed else ""
    return Span(
        trace,
        span,
        parent,
        trigger.type,
        "coordinator",
        trigger.time,
        end.time,
        attributes,
        error,
    )


def _part(
    whole: Span, name: str, process: str, start: float, fact: Recorded, **attributes: Attribute
) -> Span:
    """A part of the whole that ended with a fact, and has its id."""
    named = {f"dataplane.{key}": value for key, value in attributes.items()}
    return Span(
        whole.trace_id,
        span_of(fact.id),
        whole.span_id,
        name,
        process,
        start,
        fact.time,
        named,
    )


def _answer(whole: Span, own: Sequence[Recorded]) -> Iterator[Span]:
    """The node the trigger spoke of said what it holds."""
    fact = _last_part(own, events.FilesObserved)
    if fact is not None and isinstance(fact.event, events.FilesObserved):
        count = len(fact.event.entries)
        yield _part(whole, "answer", fact.owner, whole.start, fact, entries=count)


def _plan(whole: Span, own: Sequence[Recorded]) -> Iterator[Span]:
    """From when all was known that it needs."""
    fact = _last_part(own, events.SyncPlanned)
    if fact is None:
        return
    answered = _last_part(own, events.FilesObserved)
    start = answered.time if answered and answered.time <= fact.time else whole.start
    parts = [one.event for one in own if isinstance(one.event, events.SyncPlanned)]
    yield _part(
        whole,
        "plan",
        "coordinator",
        start,
        fact,
        plans=sum(len(part.plans) for part in parts),
        held=sum(len(part.held) for part in parts),
        refused=sum(len(part.refusals) for part in parts),
    )


def _last_part(own: Sequence[Recorded], kind: type[Event]) -> Recorded | None:
    of_kind = (fact for fact in own if isinstance(fact.event, kind))
    return next((fact for fact in of_kind if getattr(fact.event, "last_part", True)), None)


def _attempts(whole: Span, facts: Sequence[Recorded]) -> Iterator[Span]:
    """Each attempt of its transfers, from its assignment to its result."""
    assigned: dict[tuple[str, int], Recorded] = {}
    for fact in facts:
        event = fact.event
        if isinstance(event, events.TransferAssigned):
            assigned[event.transfer, event.attempt] = fact
        elif isinstance(event, events.TransferSucceeded | events.TransferFailed):
            order = assigned.pop((event.transfer, event.attempt), None)
            if order is not None:
                yield _attempt(whole, order, fact, event)


def _attempt(
    whole: Span,
    order: Recorded,
    fact: Recorded,
    result: events.TransferSucceeded | events.TransferFailed,
) -> Span:
    tried = tuple(str(one.transport_used) for one in result.results)
    attributes: dict[str, Attribute] = {
        "dataplane.transfer": result.transfer,
        "dataplane.attempt": result.attempt,
        "dataplane.path": result.entry.path,
        "dataplane.source": result.source,
        "dataplane.target": result.target,
        "dataplane.transport": tried[-1] if tried else "",
        "dataplane.transports_tried": tried,
        "dataplane.bytes": result.bytes_transferred,
    }
    error = ""
    if isinstance(result, events.TransferFailed):
        attributes["error.type"] = result.error_class
        error = result.error or result.error_class
    if order.chain != whole.attributes["dataplane.chain"]:
        attributes["dataplane.asked_by"] = order.chain
    # Its id is the assignment's: the executor's trace context names the span it works in.
    return Span(
        whole.trace_id,
        span_of(order.id),
        whole.span_id,
        "transfer",
        order.owner,
        order.time,
        fact.time,
        attributes,
        error,
    )


def _said(whole: Span, fact: Recorded) -> Span:
    span = _part(whole, fact.type, "coordinator", fact.time, fact)
    return msgspec.structs.replace(span, said=True)
