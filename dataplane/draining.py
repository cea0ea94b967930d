"""Emptying a node before it goes: what only it holds, how long that takes, and whether it may go.

"Yes" is never taken from the catalog alone. The node is to go, so that nobody counts on it; it has
just said what it holds, nothing had to move any more after that, and every content of it was
proven, now, in enough other places: nodes read theirs again, the bucket says what it keeps of a
digest.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from dataplane.api import DataPlane
from dataplane.planner import Known
from dataplane.proving import untold
from dataplane.safety import Holding, Left, holding, not_safe, unsafe
from projections.chains import ChainRow
from projections.cluster import ClusterView
from streams import events
from streams.values import S3_NODE, DataEntry

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
    #: When it must have begun to be done by the deadline; None without one, or where bytes are left
    #: of which nobody knows how fast they move.
    last_moment: float | None = None
    #: By when it goes, as far as that was said; seconds since 1970.
    deadline: float | None = None
    #: What the answer is taken from, in words.
    rests_on: str = ""


def rate_from(view: ClusterView, node: str, size_bytes: int) -> float:
    """Bytes a second at which a node's files moved lately, by the fastest way known; else 0.0."""
    rates = [row.rate(size_bytes) or 0.0 for row in view.links() if row.node == node]
    rates += [0.0] if any(rates) else [row.rate(size_bytes) or 0.0 for row in view.links()]
    return max(rates, default=0.0)


def begun(
    chains: Iterable[ChainRow], node: str, deadline: float | None
) -> tuple[str, float | None] | None:
    """The newest open chain that empties a node, and by when all is to have left it.

    None where that is still to be said, also if it was, but for a later time than `deadline`.
    """
    rows = [row for row in chains if _empties(row, node)]
    said = [at for row in rows if (at := getattr(row.event(), "deadline", None)) is not None]
    if not rows or (deadline is not None and deadline < min(said, default=math.inf)):
        return None
    return rows[-1].id, min(said, default=None)


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

    async def ask(self) -> Verdict:
        """Whether the node may go as it is now. Says nothing, so that nothing is begun by it.

        The node is asked whether it holds what it has not told of, and the others to read again
        what they hold. Never "yes" of a node that is not to go: somebody may count on its copies.
        """
        unsure = await untold((await self._plane.log()).bus, self._node)
        word = (
            f"the last word of {self._node} on what it holds"
            if unsure
            else (f"{self._node} has just looked, and has told of all it holds")
        )
        found, left, goes = await self._proven()
        with self._plane.catalog.view() as view:
            going = begun(view.open_chains(), self._node, None)
            row = view.chain(going[0]) if going else None
            self._deadline = going[1] if going else None
            rate = self._rate(view, left)
        return self._verdict(row, found, left, rate, goes=goes, unsure=unsure, word=word)

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
            with self._plane.catalog.view() as view:
                if not self._goes(view):
                    # Somebody has taken it back: whoever waits does not begin it anew.
                    return verdict
            # Bytes have moved since the node last said what it holds.
            chain = await self._said()
        return verdict

    async def _begun(self) -> str:
        with self._plane.catalog.view() as view:
            going = begun(view.open_chains(), self._node, self._deadline)
        if going is None:
            return await self._said()
        self.chain, self._deadline = going
        return self.chain

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
        found, left, goes = await self._proven()
        return self._verdict(row, found, left, so_far.rate, goes=goes)

    async def _proven(self) -> tuple[Holding, list[Left], bool]:
        """What the node holds, what of it was not just proven elsewhere, and whether it goes."""
        log = await self._plane.log()
        goes = False

        async def read() -> Holding:
            nonlocal goes
            # What was decided meanwhile may not be folded here yet.
            await self._plane.catalog.seen((await log.state()).last_sequence, SEEN_S)
            with self._plane.catalog.view() as view:
                goes = self._goes(view)
                return self._holding(view)

        found, left = await not_safe(log.bus, read, self._copies)
        return found, left, goes

    def _so_far(self, row: ChainRow) -> Verdict:
        """What the catalog says, before anything is proven."""
        with self._plane.catalog.view() as view:
            found = self._holding(view)
            left = unsafe(self._node, found.held, found.elsewhere, self._copies)
            rate, goes = self._rate(view, left), self._goes(view)
        return self._verdict(row, found, left, rate, goes=goes)

    def _goes(self, view: ClusterView) -> bool:
        node = view.node(self._node)
        return node is not None and node.is_leaving(time.time())

    def _holding(self, view: ClusterView) -> Holding:
        known = Known(self._plane.config.policy(), view, time.time())
        return holding(known, view, self._node)

    def _rate(self, view: ClusterView, left: Sequence[Left]) -> float:
        return rate_from(view, self._node, max((one.size_bytes for one in left), default=0))

    def _verdict(
        self,
        row: ChainRow | None,
        found: Holding,
        left: Sequence[Left],
        rate: float,
        *,
        goes: bool,
        unsure: str | None = None,
        word: str = "",
    ) -> Verdict:
        if row is not None and unsure is None:
            unsure = _unsure(row, self._node)
        if row is not None and not word:
            word = f"what {self._node} said it holds in chain {row.id}"
        by_log = unsafe(self._node, found.held, found.elsewhere, self._copies)
        bucket = bucket_said(found.held, found.places)
        proved = (
            "others, who proved it just now" if bucket else "others, who read it again just now"
        )
        read = "who else holds it by the log" if by_log else proved
        if not left and not unsure and not goes:
            unsure = not_to_go(self._node, len(found.held), self._copies, bucket)
        seconds = estimate(row, left, rate, self._deadline, time.time())
        return Verdict(
            self._node,
            may_go=not left and not unsure,
            reason=unsure or reason_of(row, left, len(found.held), self._copies, bucket),
            chain="" if row is None else row.id,
            left=tuple(left),
            entries=len(found.held),
            bytes_left=seconds.bytes_left,
            rate=rate,
            done_at=seconds.done_at,
            last_moment=seconds.last_moment,
            deadline=self._deadline,
            rests_on=f"{word}, and {read}",
        )


class Seconds(NamedTuple):
    """How long a node's emptying takes."""

    bytes_left: int
    done_at: float | None
    last_moment: float | None


_TERMINATING = events.type_name(events.NodeTerminating)


def estimate(
    row: ChainRow | None, left: Sequence[Left], rate: float, deadline: float | None, now: float
) -> Seconds:
    """When what is left is gone at `rate` bytes a second, and when it must begin to by `deadline`.

    Both None where bytes are left and no rate is known; nothing is done without an open chain.
    """
    bytes_left = sum(one.size_bytes for one in left)
    takes_s = _SLOWER * bytes_left / rate if rate and bytes_left else None
    done = done_at(row, takes_s, now)
    if deadline is None or (bytes_left and takes_s is None):
        return Seconds(bytes_left, done, None)
    return Seconds(bytes_left, done, deadline - (takes_s or 0.0))


def _unsure(row: ChainRow, node: str) -> str:
    """Why it is not known what the node holds now; "" if it is."""
    if row.cancelled_at:
        return f"{node} stays after all: chain {row.id} empties it no more"
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


def done_at(row: ChainRow | None, takes_s: float | None, now: float) -> float | None:
    """When what is left should be gone; None if that is not known, or nobody works on it."""
    return None if takes_s is None or row is None or not row.open else now + takes_s


def bucket_said(held: Sequence[DataEntry], places: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """What proofs of the bucket, where it has some of what is held, are worth; else ""."""
    there = [entry for entry in held if S3_NODE in places[entry.path, entry.checksum]]
    if not there:
        return ""
    keys = ", ".join(sorted({entry.sealed_with for entry in there} - {""}))
    only = f", to be opened only with the key {keys}" if keys else ""
    return f"of {len(there)} {S3_NODE} was asked, which says what it keeps of their digests{only}"


def reason_of(
    row: ChainRow | None, left: Sequence[Left], held: int, copies: int, bucket: str = ""
) -> str:
    """Why a node may go, or not; with what its chain says, where that has given it up.

    `bucket` is as of `bucket_said`.
    """
    if left:
        reason = f"{len(left)} of {held} files are not safe elsewhere"
        given_up = row is not None and not row.open
        return f"{reason}, and nothing moves: {row.reason}" if row and given_up else reason
    return f"{_all_read(held, copies, bucket)}, and is what it should be"


def not_to_go(node: str, held: int, copies: int, bucket: str = "") -> str:
    """Why a node that nobody is told of may not go, though all it holds is elsewhere."""
    return (
        f"{_all_read(held, copies, bucket)}, but {node} is not said to go: others may count on its "
        f"copies until `dataplane drain {node}`"
    )


def _all_read(held: int, copies: int, bucket: str) -> str:
    where = "another place" if copies == 1 else f"{copies} other places"
    read = f"proven ({bucket})" if bucket else "read"
    return f"each of {held} files was just {read} in {where}"
