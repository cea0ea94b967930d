"""Emptying a node before it goes: what only it holds, how long that takes, and whether it may go.

"Yes" is never taken from the catalog alone. The node has just said what it holds, nothing had to
move any more after that, and every content of it was read again, now, in enough other places.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from dataplane.api import DataPlane
from dataplane.planner import Known
from dataplane.safety import Holding, Left, holding, not_safe, unsafe
from projections.chains import ChainRow
from projections.cluster import ClusterView
from streams import events
from streams.values import DataEntry

_POLL_S = 0.2
#: How often whoever waits is told how far it is.
PROGRESS_S = 2.0
#: How often the node is asked anew because something had to move.
ROUNDS = 20
#: How long the views may take to have folded what the log has.
SEEN_S = 60.0
#: So much longer than bytes and rates say, things take.
_SLOWER = 1.5


class Verdict(msgspec.Struct, frozen=True):
    """Whether a node may go now, and what stands in the way."""

    node: str
    may_go: bool
    reason: str
    #: The chain that empties it.
    chain: str
    left: tuple[Left, ...] = ()
    #: Contents that the node holds, and how many bytes of them are not safe elsewhere.
    entries: int = 0
    bytes_left: int = 0
    #: Bytes a second that such moves have reached lately; 0.0 where nothing is known.
    rate: float = 0.0
    #: When what is left should be gone, seconds since 1970; None if nothing is left or known, or
    #: nothing more is being done for it.
    done_at: float | None = None
    #: When it must have begun to be done by the deadline; None without one.
    last_moment: float | None = None


def rate_from(view: ClusterView, node: str, size_bytes: int) -> float:
    """Bytes a second at which a node's files moved lately, by the fastest way known; else 0.0."""
    rates = [row.rate(size_bytes) or 0.0 for row in view.links() if row.node == node]
    rates += [0.0] if any(rates) else [row.rate(size_bytes) or 0.0 for row in view.links()]
    return max(rates, default=0.0)


class Cancelled(msgspec.Struct, frozen=True):
    """What came of taking a drain back."""

    node: str
    cancelled: bool
    reason: str


async def cancel(plane: DataPlane, node: str) -> Cancelled:
    """Say of a node that was to go that it stays: one fact, if there is anything to take back.

    What it holds counts again, and what was to leave it and has not yet stays where it is.
    """
    with plane.catalog.view() as view:
        row = view.node(node)
        emptied = any(_empties(chain, node) for chain in view.open_chains())
        emptied = emptied or any(chain.node == node for chain in view.drains())
    if not emptied and not (row is not None and row.is_leaving(time.time())):
        return Cancelled(node, False, f"nothing says that {node} is to go")
    said = await plane.publish(events.NodeDrainCancelled(node=node, reason="drain --cancel"))
    if said.sequence is None:
        reason = "it waits in the outbox until the bus can be reached"
        return Cancelled(node, False, reason)
    await plane.catalog.seen(said.sequence, SEEN_S)
    return Cancelled(node, True, f"{node} stays: what it holds counts again")


def _empties(row: ChainRow, node: str) -> bool:
    """Whether a chain empties a node, and nobody has taken that back."""
    return row.node == node and row.trigger == _TERMINATING and not row.cancelled_at


class Drain:
    """One node's emptying, as one client sees it."""

    def __init__(
        self, plane: DataPlane, node: str, *, copies: int = 1, deadline: float | None = None
    ) -> None:
        """`copies` places must hold each content besides the node; `deadline` in s since 1970."""
        self._plane, self._node, self._copies = plane, node, copies
        self._deadline = deadline
        #: The chain that empties the node; "" before anything was said of it.
        self.chain = ""

    async def look(self) -> Verdict:
        """Say that the node is to go, unless that is said; and whether it may go as it is now.

        Waits for the node to say what it holds, but not for bytes to move.
        """
        chain = await self._begun()
        row = await self._row(chain, answered=True)
        return await self._judge(row)

    async def wait(
        self, timeout_s: float, on_progress: Callable[[Verdict], None] = lambda verdict: None
    ) -> Verdict:
        """Go on until the node may go, nothing more is being done for it, or time is up.

        `on_progress` hears every few seconds how far it is: verdicts without their proofs. Whoever
        stops to wait stops nothing: the node is emptied all the same.
        """
        end = time.monotonic() + timeout_s
        chain = await self._begun()
        for _ in range(ROUNDS):
            row = await self._row(chain, end=end, on_progress=on_progress)
            verdict = await self._judge(row)
            if verdict.may_go or row.open or time.monotonic() > end or not row.bytes_transferred:
                return verdict
            # Bytes have moved since the node last said what it holds.
            chain = await self._said()
        return verdict

    async def _begun(self) -> str:
        with self._plane.catalog.view() as view:
            for row in view.open_chains():
                if _empties(row, self._node):
                    self.chain = row.id
                    return row.id
        return await self._said()

    async def _said(self) -> str:
        event = events.NodeTerminating(node=self._node, deadline=self._deadline, reason="drain")
        said = await self._plane.publish(event)
        self.chain = said.chain
        if said.sequence is not None:
            await self._plane.catalog.seen(said.sequence, SEEN_S)
        return said.chain

    async def _row(
        self,
        chain: str,
        *,
        answered: bool = False,
        end: float = 0.0,
        on_progress: Callable[[Verdict], None] | None = None,
    ) -> ChainRow:
        """The chain once it has ended, or with `answered` once it is known what is to move."""
        told_at = time.monotonic()
        while True:
            with self._plane.catalog.view() as view:
                row = view.chain(chain)
            if row is not None and not row.open:
                return row
            if row is not None and answered and row.planned_at:
                return row
            if row is not None and end and time.monotonic() > end:
                return row
            if row is not None and on_progress and time.monotonic() > told_at + PROGRESS_S:
                told_at = time.monotonic()
                on_progress(self._so_far(row))
            await asyncio.sleep(_POLL_S)

    async def _judge(self, row: ChainRow) -> Verdict:
        so_far = self._so_far(row)
        if not so_far.may_go:
            return so_far
        log = await self._plane.log()

        async def read() -> Holding:
            # What was decided meanwhile may not be folded here yet.
            await self._plane.catalog.seen((await log.state()).last_sequence, SEEN_S)
            with self._plane.catalog.view() as view:
                return self._holding(view)

        found, left = await not_safe(log.bus, read, self._copies)
        return self._verdict(row, found.held, left, so_far.rate)

    def _holding(self, view: ClusterView) -> Holding:
        known = Known(self._plane.config.policy(), view, time.time())
        return holding(known, view, self._node)

    def _so_far(self, row: ChainRow) -> Verdict:
        """What the catalog says, before anything is proven."""
        with self._plane.catalog.view() as view:
            found = self._holding(view)
            left = unsafe(self._node, found.held, found.elsewhere, self._copies)
            rate = rate_from(view, self._node, max((one.size_bytes for one in left), default=0))
        return self._verdict(row, found.held, left, rate)

    def _verdict(
        self, row: ChainRow, held: Sequence[DataEntry], left: Sequence[Left], rate: float
    ) -> Verdict:
        unsure = _unsure(row, self._node)
        bytes_left = sum(one.size_bytes for one in left)
        takes_s = _SLOWER * bytes_left / rate if rate and bytes_left else None
        return Verdict(
            self._node,
            may_go=not left and not unsure,
            reason=unsure or reason_of(row, left, len(held), self._copies),
            chain=row.id,
            left=tuple(left),
            entries=len(held),
            bytes_left=bytes_left,
            rate=rate,
            done_at=done_at(row, takes_s, time.time()),
            last_moment=None if self._deadline is None else self._deadline - (takes_s or 0.0),
        )


_TERMINATING = events.type_name(events.NodeTerminating)


def _unsure(row: ChainRow, node: str) -> str:
    """Why it is not known what the node holds now; "" if it is."""
    if not row.answered_at:
        return f"{node} gave no answer: what it holds now is not known"
    unread = [refusal.reason for refusal in row.unread]
    if unread:
        return f"{node} could not read everything: {'; '.join(unread)}"
    if row.open:
        return f"bytes are still moving: dataplane chain {row.id}"
    if row.bytes_transferred:
        return f"bytes have moved since {node} said what it holds; ask again"
    return ""


def done_at(row: ChainRow, takes_s: float | None, now: float) -> float | None:
    """When what is left should be gone; None if that is not known, or nobody works on it."""
    return None if takes_s is None or not row.open else now + takes_s


def reason_of(row: ChainRow, left: Sequence[Left], held: int, copies: int) -> str:
    """Why a node may go, or not; with what its chain says, where that has given it up."""
    if left:
        reason = f"{len(left)} of {held} files are not safe elsewhere"
        return reason if row.open else f"{reason}, and nothing moves: {row.reason}"
    where = "another place" if copies == 1 else f"{copies} other places"
    return f"each of {held} files was just read in {where}, and is what it should be"
