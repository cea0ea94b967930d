"""The newest facts of a kind, a page at a time: what stands behind a number.

It only reads, and never more than a page asks for: a filter that matches little ends with how far
back it has looked, so that the next page goes on from there.
"""

from __future__ import annotations

from contextlib import aclosing

import msgspec

from dataplane.audit.replay import speaks_of
from projections.links import outcomes
from streams.codec import Recorded
from streams.events import EVENT_TYPES, Event, TransferFailed, TransferSucceeded
from streams.log import ReadingLog
from streams.subjects import type_filter

_FIRST_WINDOW, _MOST_WINDOW = 500, 20_000
#: Facts looked at for one page.
_BUDGET = 60_000


class FactFilter(msgspec.Struct, frozen=True):
    """Which facts; empty fields match all."""

    type: str = ""
    node: str = ""
    chain: str = ""
    config: str = ""
    #: Attempts that say something of the way to or from this node, by any transport or by one.
    link: str = ""
    transport: str = ""
    #: "worked" or "failed", of such attempts.
    outcome: str = ""
    id: str = ""

    @property
    def types(self) -> tuple[str, ...]:
        """The only types that match; none where all may."""
        if self.type:
            return (self.type,)
        return ("TRANSFER_SUCCEEDED", "TRANSFER_FAILED") if self.link else ()

    def matches(self, fact: Recorded) -> bool:
        """Whether a fact is one of these."""
        return (
            self.type in ("", fact.type)
            and self.config in ("", fact.config_key)
            and self.chain in ("", fact.chain)
            and self.id in ("", fact.id)
            and (not self.node or speaks_of(fact, self.node))
            and (not self.link or self._of_link(fact.event))
        )

    def _of_link(self, event: Event | None) -> bool:
        """Whether the row of this link among the links counts this fact."""
        if not isinstance(event, TransferSucceeded | TransferFailed):
            return False
        return any(
            node == self.link
            and (transport or "") == self.transport
            and self.outcome in ("", "worked" if result.success else "failed")
            for node, transport, result in outcomes(event)
        )


class FactPage(msgspec.Struct, frozen=True):
    """Facts, newest first."""

    facts: tuple[Recorded, ...]
    #: The next page is `before` this sequence; 0 if there is none.
    before: int


async def newest(
    log: ReadingLog, wanted: FactFilter, *, before: int = 0, limit: int = 50
) -> FactPage:
    """The newest facts with a sequence below `before`, or of all."""
    top = (before or (await log.state()).last_sequence + 1) - 1
    kinds = [EVENT_TYPES[name] for name in wanted.types if name in EVENT_TYPES]
    subjects = [type_filter(kind) for kind in kinds]
    found: list[Recorded] = []
    window, looked = _FIRST_WINDOW, 0
    while top > 0 and len(found) < limit and looked < _BUDGET:
        low = max(0, top - window)
        found += reversed([f for f in await _between(log, low, top, subjects) if wanted.matches(f)])
        looked, top = looked + top - low, low
        window = min(window * 2, _MOST_WINDOW)
    page = tuple(found[:limit])
    if len(found) > limit:
        return FactPage(page, page[-1].sequence)
    return FactPage(page, top + 1 if top else 0)


async def _between(log: ReadingLog, after: int, until: int, subjects: list[str]) -> list[Recorded]:
    facts: list[Recorded] = []
    async with aclosing(log.read(after=after, until=until, subjects=subjects)) as batches:
        async for batch in batches:
            facts += batch
    return facts
