"""Which piece to ask of whom, where many nodes fetch one content at once.

The source is to give each piece once: of n receivers, the k-th takes from it every n-th piece, and
all else from those who have it, the rarest first. Sets of pieces are whole numbers with a bit for
each, the lowest first. Pure: it is told what happens and when, asks nobody and waits for nothing.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable, Iterator
from functools import lru_cache

import msgspec

#: How long a receiver that says nothing is counted on.
SILENT_S = 3.0
#: Where nobody has what is lacking and no source is left: how long it is waited for a receiver to
#: get any of it from elsewhere. None has anything new for so long because none gets anything.
QUIET_S = 6.0
#: How long a peer that failed too often is left alone.
AWAY_S = 10.0
#: How long one that lacks what it says it has is left alone.
LOST_S = 0.2
MOST_FAILURES = 3
#: From here on pieces of others are taken from the source too, lest the last ones be waited for.
NEARLY_DONE = 0.9
#: Whoever found nothing to ask for so long asks the source for what others were to take.
IDLE_S = 1.0
#: A piece that has been on its way for so long may be asked for once more, of somebody else.
LATE_S = 2.0
#: Asked for at once where nobody else fetches the same; else it is one piece. The longest suits a
#: link that brings it within `RUN_S` and breaks off nothing.
SHORTEST_RUN_BYTES, LONGEST_RUN_BYTES = 2 << 20, 16 << 20
RUN_S = 0.25
#: The rarest is looked for among the first of what a peer could give, so many pieces for each peer:
#: the digest of the whole follows close behind what comes. With few, a slow peer slows all.
_LOOKED_AT = 8


class Kind(enum.Enum):
    """What a peer is to us."""

    #: It had all of it before; what it gives twice is wasted.
    SOURCE = "source"
    #: It fetches the same content, or has just fetched it.
    RECEIVER = "receiver"


class Known(msgspec.Struct):
    """A peer as it is known now."""

    kind: Kind
    pieces: int = 0
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
        self._lacking = bits(lacking)
        self._all = (1 << count) - 1
        self._peers: dict[str, Known] = {}
        #: How many receivers have each piece.
        self._copies = [0] * count
        #: Pieces being asked for: since when, and of whom.
        self._asked: dict[int, dict[str, float]] = {}
        self._asked_bits = 0
        #: How long a piece usually takes.
        self._usual_s = 0.0
        #: When somebody last joined or had something new.
        self._news_at = 0.0
        self._random = random.Random(f"{me} {seed}")

    @property
    def done(self) -> bool:
        """Whether nothing is lacking any more."""
        return not self._lacking

    @property
    def nearly_done(self) -> bool:
        """Whether so little is lacking that nobody waits for others any more."""
        return self._lacking.bit_count() <= (1 - NEARLY_DONE) * self._count

    @property
    def here(self) -> int:
        """The pieces that are here."""
        return self._all & ~self._lacking

    def joins(self, node: str, kind: Kind, now: float) -> None:
        """A peer is expected to take part."""
        if node not in self._peers and (node != self._me or kind is Kind.SOURCE):
            whole = kind is Kind.SOURCE
            self._peers[node] = Known(kind, whole=whole, heard_at=now)
            self._news_at = now

    def heard(self, node: str, pieces: int, whole: bool, now: float) -> bool:
        """A peer says what it has; whether something of it is lacking here."""
        self.joins(node, Kind.RECEIVER, now)
        known = self._peers.get(node)
        if known is None:
            return False
        before = self._pieces(known)
        self._has_now(known, pieces & self._all, known.whole or whole)
        known.heard_at = now
        if self._pieces(known) & ~before:
            self._news_at = now
        return bool(self._wanted(known))

    def got(self, piece: int, now: float) -> None:
        """A piece is here."""
        if self._lacking >> piece & 1:
            self._lacking ^= 1 << piece
            took_s = now - min(self._asked.get(piece, {"": now}).values())
            self._usual_s += (took_s - self._usual_s) / 8

    def lacks(self, piece: int) -> bool:
        """Whether a piece is not here yet."""
        return bool(self._lacking >> piece & 1)

    def next(self, node: str, now: float) -> int | None:
        """The piece to ask of a peer now; None if there is none. It counts as asked for."""
        known = self._peers.get(node)
        if known is None or known.away_until > now or self.done:
            return None
        piece = self._choose(node, known, now)
        if piece is None:
            known.idle_since = now if known.idle_since is None else known.idle_since
            return None
        known.asked += 1
        self._ask(node, piece, now)
        return piece

    def extend(self, node: str, piece: int, now: float) -> bool:
        """Whether a peer may be asked for this piece too, right behind one it is asked for."""
        known = self._peers[node]
        if piece in self._asked or not self._wanted(known) >> piece & 1:
            return False
        if known.kind is Kind.SOURCE and self._receivers(now):
            return False
        self._ask(node, piece, now)
        return True

    def settled(self, node: str, piece: int) -> None:
        """A peer is no longer asked for a piece, whatever came of it."""
        asked = self._asked.get(piece, {})
        asked.pop(node, None)
        if not asked and self._asked.pop(piece, None) is not None:
            self._asked_bits ^= 1 << piece

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
            self._has_now(known, 0, known.whole and source)

    def lost(self, node: str, piece: int, now: float) -> None:
        """A peer does not have a piece that it says it has. It may be about to rename the file;
        who has nothing of what he says would be asked for all of it.
        """
        known = self._peers[node]
        self._has_now(known, self._pieces(known) & ~(1 << piece), False)
        known.away_until = now + LOST_S
        self.failed(node, now)

    def hopeful(self, now: float) -> bool:
        """Whether anybody may still give what is lacking."""
        quiet = now - self._news_at > max(QUIET_S, 3 * self._usual_s)
        for known in self._peers.values():
            if known.kind is Kind.SOURCE and known.away_until <= now:
                return True
            lives = known.kind is Kind.RECEIVER and self._lives(known, now)
            if lives and (self._wanted(known) or not quiet):
                return True
        return False

    def _choose(self, node: str, known: Known, now: float) -> int | None:
        if known.kind is Kind.SOURCE:
            return self._from_source(node, known, now)
        free = self._wanted(known) & ~self._asked_bits
        return self._rarest(free) if free else self._late(node, known, now)

    def _from_source(self, node: str, known: Known, now: float) -> int | None:
        receivers = self._receivers(now)
        free = self._wanted(known) & ~self._asked_bits
        if not receivers:
            return _lowest(free) if free else self._late(node, known, now)
        order = sorted([*receivers, self._me])
        owned = free & every(len(order), order.index(self._me), self._count)
        if owned:
            # All take theirs in order, so what is there of the whole has few gaps everywhere.
            known.idle_since = None
            return _lowest(owned)
        idle = known.idle_since is not None and now - known.idle_since > IDLE_S
        if not idle and not self.nearly_done:
            return None
        nowhere = bits(piece for piece in numbers(free) if not self._copies[piece])
        if idle and nowhere.bit_count() <= len(receivers):
            # They may be on their way to each, or be given yet: one, and then it is waited again.
            known.idle_since = now
            return self._rarest(nowhere or free)
        # Who does without those that were to bring all this goes on so: they may be slower by far.
        return self._rarest(nowhere)

    def _late(self, node: str, known: Known, now: float) -> int | None:
        """A piece that somebody else was asked for long ago."""
        patience_s, wanted = max(LATE_S, 3 * self._usual_s), self._wanted(known)
        late = [
            piece
            for piece, asked in self._asked.items()
            if wanted >> piece & 1
            and node not in asked
            and len(asked) == 1
            and now - max(asked.values()) > patience_s
        ]
        return self._random.choice(late) if late else None

    def _ask(self, node: str, piece: int, now: float) -> None:
        self._asked.setdefault(piece, {})[node] = now
        self._asked_bits |= 1 << piece

    def _has_now(self, known: Known, pieces: int, whole: bool) -> None:
        """Count anew what a peer has."""
        before = self._pieces(known)
        known.pieces, known.whole = pieces, whole
        after = self._pieces(known)
        if known.kind is Kind.RECEIVER:
            for piece in numbers(before ^ after):
                self._copies[piece] += 1 if after >> piece & 1 else -1

    def _pieces(self, known: Known) -> int:
        return self._all if known.whole else known.pieces

    def _wanted(self, known: Known) -> int:
        return self._lacking & self._pieces(known)

    def _rarest(self, pieces: int) -> int | None:
        if not pieces:
            return None
        first = _lowest(pieces)
        window = (1 << _LOOKED_AT * len(self._peers)) - 1
        some = [first + piece for piece in numbers(pieces >> first & window)]
        fewest = min(self._copies[piece] for piece in some)
        # Of the rarest any: all who look at the same peers would take the same one.
        return self._random.choice([piece for piece in some if self._copies[piece] == fewest])

    def _receivers(self, now: float) -> list[str]:
        """Who else fetches, as far as is known."""
        return [
            node
            for node, known in self._peers.items()
            if known.kind is Kind.RECEIVER and self._lives(known, now)
        ]

    def _lives(self, known: Known, now: float) -> bool:
        return known.away_until <= now and (known.whole or now - known.heard_at <= SILENT_S)


def next_run_bytes(run_bytes: int, took_s: float | None) -> int:
    """How much to ask for at once after a run that took so long, or (None) did not come whole.

    Each question costs both ends as much as a megabyte does. But an answer that is cut off is asked
    for again, and a long one keeps those waiting who begin to fetch the same.
    """
    if took_s is None:
        return SHORTEST_RUN_BYTES
    if took_s > RUN_S:
        return max(run_bytes // 2, SHORTEST_RUN_BYTES)
    return min(run_bytes * 2, LONGEST_RUN_BYTES)


def bits(pieces: Iterable[int]) -> int:
    """A set of pieces."""
    found = bytearray()
    for piece in pieces:
        found.extend(bytes(max(0, (piece >> 3) + 1 - len(found))))
        found[piece >> 3] |= 1 << (piece & 7)
    return int.from_bytes(found, "little")


def numbers(pieces: int) -> Iterator[int]:
    """The pieces of a set, the lowest first."""
    # Taking bits from a long number one by one would copy it as often.
    for at, byte in enumerate(pieces.to_bytes(-(-pieces.bit_length() // 8), "little")):
        while byte:
            low = byte & -byte
            byte ^= low
            yield 8 * at + low.bit_length() - 1


@lru_cache(maxsize=64)
def every(step: int, first: int, count: int) -> int:
    """The pieces `first`, `first + step` and so on, below `count`."""
    return bits(range(first, count, step))


def _lowest(pieces: int) -> int:
    return (pieces & -pieces).bit_length() - 1
