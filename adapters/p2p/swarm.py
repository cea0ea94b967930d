"""Which piece to ask of whom, where many nodes fetch one content at once.

The source is to give each piece once: of n receivers, the k-th takes from it every n-th piece, and
all else from those who have it, the rarest first. Pure: it is told what happens and when, asks
nobody and waits for nothing.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable

import msgspec

#: How long a receiver that says nothing is counted on.
SILENT_S = 3.0
#: How long a peer that failed too often is left alone.
AWAY_S = 10.0
MOST_FAILURES = 3
#: From here on pieces of others are taken from the source too, lest the last ones be waited for.
NEARLY_DONE = 0.9
#: Whoever found nothing to ask for so long asks the source for what others were to take.
IDLE_S = 1.0
#: A piece that has been on its way for so long may be asked for once more, of somebody else.
LATE_S = 2.0
#: How many pieces are looked at for the rarest.
_LOOKED_AT = 256


class Kind(enum.Enum):
    """What a peer is to us."""

    #: It had all of it before; what it gives twice is wasted.
    SOURCE = "source"
    #: It fetches the same content, or has just fetched it.
    RECEIVER = "receiver"


class Known(msgspec.Struct):
    """A peer as it is known now."""

    kind: Kind
    pieces: set[int]
    whole: bool = False
    heard_at: float = 0.0
    #: In a row, without a sound block in between.
    failures: int = 0
    away_until: float = 0.0
    asked: int = 0
    idle_since: float | None = None


class Swarm:
    """What is lacking here, who has it, and who is being asked for it."""

    def __init__(self, me: str, count: int, lacking: Iterable[int], seed: int = 0) -> None:
        self._me = me
        self._count = count
        self._lacking = set(lacking)
        self._peers: dict[str, Known] = {}
        #: Pieces being asked for: since when, and of whom.
        self._asked: dict[int, dict[str, float]] = {}
        #: How long a piece usually takes.
        self._usual_s = 0.0
        self._random = random.Random(f"{me} {seed}")

    @property
    def done(self) -> bool:
        """Whether nothing is lacking any more."""
        return not self._lacking

    def joins(self, node: str, kind: Kind, now: float) -> None:
        """A peer is expected to take part."""
        if node not in self._peers and (node != self._me or kind is Kind.SOURCE):
            whole = kind is Kind.SOURCE
            self._peers[node] = Known(kind, set(), whole=whole, heard_at=now)

    def heard(self, node: str, pieces: set[int], whole: bool, now: float) -> None:
        """A peer says what it has."""
        self.joins(node, Kind.RECEIVER, now)
        known = self._peers.get(node)
        if known is not None:
            known.pieces, known.whole = pieces, known.whole or whole
            known.heard_at = now

    def got(self, piece: int, now: float) -> None:
        """A piece is here."""
        if piece in self._lacking:
            self._lacking.discard(piece)
            took_s = now - min(self._asked.get(piece, {"": now}).values())
            self._usual_s += (took_s - self._usual_s) / 8

    def next(self, node: str, now: float) -> int | None:
        """The piece to ask of a peer now; None if there is none. It counts as asked for."""
        known = self._peers.get(node)
        if known is None or known.away_until > now or self.done:
            return None
        piece = self._choose(node, known, now)
        if piece is None:
            known.idle_since = now if known.idle_since is None else known.idle_since
            return None
        known.idle_since = None
        known.asked += 1
        self._asked.setdefault(piece, {})[node] = now
        return piece

    def extend(self, node: str, piece: int, now: float) -> bool:
        """Whether a peer may be asked for this piece too, right behind one it is asked for."""
        known = self._peers[node]
        if piece not in self._lacking or piece in self._asked or not self._has(known, piece):
            return False
        if known.kind is Kind.SOURCE and self._receivers(now):
            return False
        self._asked.setdefault(piece, {})[node] = now
        return True

    def settled(self, node: str, piece: int) -> None:
        """A peer is no longer asked for a piece, whatever came of it."""
        asked = self._asked.get(piece, {})
        asked.pop(node, None)
        if not asked:
            self._asked.pop(piece, None)

    def sound(self, node: str) -> None:
        """Something came from a peer that was right."""
        self._peers[node].failures = 0

    def failed(
        self, node: str, now: float, *, for_good: bool = False, silent: bool = False
    ) -> None:
        """A peer did not give what it was asked for, or said nothing for too long."""
        known = self._peers[node]
        known.failures += MOST_FAILURES if silent and known.kind is Kind.RECEIVER else 1
        if for_good:
            known.away_until = float("inf")
        elif known.failures >= MOST_FAILURES:
            # A source is not heard again: who failed so often has failed this attempt.
            source = known.kind is Kind.SOURCE
            known.away_until = float("inf") if source else now + AWAY_S
            known.failures = 0
            known.pieces = set()
            known.whole = known.whole and source

    def lost(self, node: str, piece: int) -> None:
        """A peer does not have a piece it was thought to have."""
        known = self._peers[node]
        known.pieces.discard(piece)
        known.whole = False

    def hopeful(self, now: float) -> bool:
        """Whether anybody may still give what is lacking."""
        for known in self._peers.values():
            if known.kind is Kind.SOURCE and known.away_until <= now:
                return True
            if known.kind is Kind.RECEIVER and self._lives(known, now):
                return True
        return False

    def _choose(self, node: str, known: Known, now: float) -> int | None:
        if known.kind is Kind.SOURCE:
            return self._from_source(node, known, now)
        free = [p for p in self._wanted(known) if p not in self._asked]
        return self._rarest(free) if free else self._late(node, known, now)

    def _from_source(self, node: str, known: Known, now: float) -> int | None:
        receivers = self._receivers(now)
        free = [p for p in self._wanted(known) if p not in self._asked]
        if not receivers:
            return min(free) if free else self._late(node, known, now)
        order = sorted([*receivers, self._me])
        mine = order.index(self._me)
        owned = [p for p in free if p % len(order) == mine]
        if owned:
            return self._rarest(owned)
        nearly = len(self._lacking) <= (1 - NEARLY_DONE) * self._count
        idle = known.idle_since is not None and now - known.idle_since > IDLE_S
        if nearly or idle:
            # Nobody has it yet, or nobody gives it.
            nowhere = [p for p in free if not self._copies(p)]
            if nowhere or not idle:
                return self._rarest(nowhere)
            return self._rarest(free)
        return None

    def _late(self, node: str, known: Known, now: float) -> int | None:
        """A piece that somebody else was asked for long ago."""
        late = [
            piece
            for piece in self._wanted(known)
            if node not in self._asked.get(piece, {node: 0.0})
            and len(self._asked[piece]) == 1
            and now - max(self._asked[piece].values()) > max(LATE_S, 3 * self._usual_s)
        ]
        return self._random.choice(late) if late else None

    def _wanted(self, known: Known) -> set[int]:
        return self._lacking if known.whole else self._lacking & known.pieces

    def _has(self, known: Known, piece: int) -> bool:
        return known.whole or piece in known.pieces

    def _rarest(self, pieces: list[int]) -> int | None:
        if not pieces:
            return None
        some = pieces
        if len(pieces) > _LOOKED_AT:
            some = self._random.sample(pieces, _LOOKED_AT)
        # Of the rarest any: all who look at the same peers would take the same one.
        return min(some, key=lambda piece: (self._copies(piece), self._random.random()))

    def _copies(self, piece: int) -> int:
        """How many receivers have it."""
        return sum(
            self._has(known, piece) for known in self._peers.values() if known.kind is Kind.RECEIVER
        )

    def _receivers(self, now: float) -> list[str]:
        """Who else fetches, as far as is known."""
        return [
            node
            for node, known in self._peers.items()
            if known.kind is Kind.RECEIVER and self._lives(known, now)
        ]

    def _lives(self, known: Known, now: float) -> bool:
        return known.away_until <= now and (known.whole or now - known.heard_at <= SILENT_S)
