"""How well each node could be reached lately: outcomes, rates, and breakers read from them.

A link is a node and a transport; a node has a row of its own besides, whatever the transport. A
row only remembers what attempts came to. Whether that makes a breaker open is `breaker`, a pure
function of the row and the time. A failure that says nothing about the way, such as a full disk or
an unsound file, is not counted; one that made headway is, but no breaker opens by it, nor closes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from projections.headway import made_headway
from projections.store import Reader, Writer
from projections.view import Handler, Row, text_key, unpacker
from streams import events
from streams.codec import Recorded
from streams.values import Transport, TransportResult, added

#: Classes of errors that say something about the way to a node.
LINK_FAILURES = frozenset(
    {"Unreachable", "Refused", "Stalled", "Interrupted", "TimedOut", "DigestMismatch"}
)
CORRUPTION = "DigestMismatch"
UNANSWERED = "Unreachable"
#: How many of the newest outcomes a row remembers.
REMEMBERED = 24
#: Rates are kept by how much was moved: small files are slow for other reasons than large ones.
SIZE_CLASSES_BYTES = (64 << 10, 1 << 20, 8 << 20, 64 << 20, 512 << 20)
#: Rates of one size class at most; at this many, old ones count half.
RATES_KEPT = 64


class BreakerState(enum.StrEnum):
    """What a breaker says to the next attempt."""

    CLOSED = "closed"
    #: Do not try, unless there is no other way.
    OPEN = "open"
    #: Try, and see.
    HALF_OPEN = "half-open"


class BreakerRule(Row, frozen=True):
    """When a breaker opens, for how long, and what closes it."""

    failures: int
    open_s: float
    successes: int = 2


LINK_RULE = BreakerRule(failures=3, open_s=60.0)
NODE_RULE = BreakerRule(failures=3, open_s=300.0)


class Breaker(Row, frozen=True):
    """A breaker at one moment."""

    state: BreakerState
    #: Seconds since 1970 until which it stays open; 0.0 while it is closed.
    until: float = 0.0


class Outcome(Row, frozen=True):
    """What one attempt over a link came to."""

    time: float
    #: The class of its error; "" for a success.
    error_class: str = ""


class Rates(Row, frozen=True):
    """How fast bytes moved, as counts of half octaves, ascending."""

    size_class: int
    counts: tuple[tuple[int, int], ...] = ()


class LinkRow(Row, frozen=True):
    """A node by one transport, or with None by all of them."""

    node: str
    transport: Transport | None
    successes: int = 0
    failures: int = 0
    bytes: int = 0
    #: The newest outcomes, oldest first, but for failures that made headway; forgotten when the
    #: node joins anew.
    recent: tuple[Outcome, ...] = ()
    last_error: str = ""
    last_error_class: str = ""
    last_error_at: float = 0.0
    rates: tuple[Rates, ...] = ()

    def rate(self, size_bytes: int, quantile: float = 0.5) -> float | None:
        """Bytes a second that so many of the moves of such a size did not reach.

        By the nearest size that was ever moved; None if none was.
        """
        if not self.rates:
            return None
        wanted = size_class(size_bytes)
        nearest = min(self.rates, key=lambda r: (abs(r.size_class - wanted), r.size_class))
        place = int(quantile * sum(count for _, count in nearest.counts))
        slowest_first = [key for key, count in nearest.counts for _ in range(count)]
        return float(2.0 ** (slowest_first[min(place, len(slowest_first) - 1)] / 2))

    def corrupted_since(self, time: float) -> bool:
        """Whether bytes came over it wrong after a time."""
        return any(one.error_class == CORRUPTION and one.time > time for one in self.recent)

    def unanswered_since(self, time: float) -> bool:
        """Whether nobody answered there the last time it was tried, and that not before a time."""
        last = self.recent[-1] if self.recent else None
        return last is not None and last.error_class == UNANSWERED and last.time >= time


_LINK = unpacker(LinkRow)


def breaker(row: LinkRow | None, now: float, rule: BreakerRule | None = None) -> Breaker:
    """What a row's outcomes make of its breaker at `now`.

    So many failures in a row open it from the last of them on. After its time it is half open: a
    failure opens it again, so many successes in a row close it. A success always counts, also one
    that somebody had while it was open because he had no other way.
    """
    if row is None:
        return Breaker(BreakerState.CLOSED)
    rule = rule or (NODE_RULE if row.transport is None else LINK_RULE)
    tripped, failures, successes, last = False, 0, 0, 0.0
    for outcome in row.recent:
        if outcome.error_class:
            failures, successes, last = failures + 1, 0, outcome.time
            tripped = tripped or failures >= rule.failures
        else:
            failures, successes = 0, successes + 1
            tripped = tripped and successes < rule.successes
    if not tripped:
        return Breaker(BreakerState.CLOSED)
    until = last + rule.open_s
    return Breaker(BreakerState.OPEN if now < until else BreakerState.HALF_OPEN, until)


def size_class(size_bytes: int) -> int:
    """Which class of sizes so many bytes are in, from 0 for the smallest."""
    return sum(size_bytes >= limit for limit in SIZE_CLASSES_BYTES)


class LinksView:
    """Folds the results of attempts. A node that joins anew, or is back, gets a new chance."""

    name = "links"
    version = 3
    tables = ("links",)

    def __init__(self) -> None:
        self.folds: dict[type[events.Event], Handler] = {
            events.TransferSucceeded: self._attempted,
            events.TransferFailed: self._attempted,
            events.NodeRegistered: self._joined,
            events.NodeRecovered: self._returned,
            events.HostOnline: self._returned,
        }

    def _attempted(
        self,
        tx: Writer,
        event: events.TransferSucceeded | events.TransferFailed,
        recorded: Recorded,
    ) -> None:
        size = event.entry.size_bytes
        for node, transport, result in outcomes(event):
            _count(tx, node, transport, result, size, recorded.time)

    def _joined(self, tx: Writer, event: events.NodeRegistered, _: Recorded) -> None:
        if not event.changed:
            _forgive(tx, event.description.name)

    def _returned(
        self, tx: Writer, event: events.NodeRecovered | events.HostOnline, _: Recorded
    ) -> None:
        _forgive(tx, event.node)


def outcomes(
    event: events.TransferSucceeded | events.TransferFailed,
) -> Iterator[tuple[str, Transport | None, TransportResult]]:
    """What an attempt says of links: node, transport or None for the node as a whole, result."""
    by_node: dict[str, list[TransportResult]] = {}
    for result in event.results:
        if result.success or result.error_class in LINK_FAILURES:
            by_node.setdefault(result.remote or _remote(event), []).append(result)
    for node, results in by_node.items():
        for result in results:
            yield node, result.transport_used, result
        # One attempt is one outcome of the node: any way that worked is a success, and it is no
        # failure where one of them made headway.
        size = event.entry.size_bytes
        best = [one for one in results if one.success or made_headway(one, size)]
        yield node, None, next((one for one in best if one.success), (best or results[-1:])[0])


def get_link(reader: Reader, node: str, transport: Transport | None = None) -> LinkRow | None:
    """What is known of a node by one transport, or by all; None if it was never tried."""
    return reader.row("links", _key(node, transport), _LINK)


def all_links(reader: Reader) -> Iterator[LinkRow]:
    """All rows by node: that of the node first, then its transports."""
    for _, value in reader.scan("links"):
        yield _LINK.decode(value)


def _remote(event: events.TransferSucceeded | events.TransferFailed) -> str:
    """The other end of an attempt, where its results don't say it."""
    return event.target if event.node == event.source else event.source


def _key(node: str, transport: Transport | None) -> bytes:
    return text_key(node) + (transport or "").encode()


def _count(
    tx: Writer,
    node: str,
    transport: Transport | None,
    result: TransportResult,
    size_bytes: int,
    time: float,
) -> None:
    row = get_link(tx, node, transport) or LinkRow(node, transport)
    recent = row.recent
    if not made_headway(result, size_bytes):
        recent = (*recent, Outcome(time, "" if result.success else result.error_class))
    row = replace(
        row,
        successes=row.successes + result.success,
        failures=row.failures + (not result.success),
        bytes=added(row.bytes, result.bytes_transferred),
        recent=recent[-REMEMBERED:],
        rates=_with_rate(row.rates, result),
    )
    if not result.success:
        row = replace(
            row,
            last_error=result.error or result.error_class,
            last_error_class=result.error_class,
            last_error_at=time,
        )
    tx.put("links", _key(node, transport), row)


def _with_rate(rates: Sequence[Rates], result: TransportResult) -> tuple[Rates, ...]:
    moved = result.bytes_transferred
    if not result.success or not moved or result.duration_seconds <= 0:
        return tuple(rates)
    which, rate = size_class(moved), int(moved / max(result.duration_seconds, 1e-6))
    by_class = {one.size_class: dict(one.counts) for one in rates}
    counts = by_class.setdefault(which, {})
    # Half octaves in whole numbers: every machine must fold the same bytes.
    half_octave = max(0, (rate * rate).bit_length() - 1)
    counts[half_octave] = counts.get(half_octave, 0) + 1
    if sum(counts.values()) >= RATES_KEPT:
        by_class[which] = {key: count // 2 for key, count in counts.items() if count > 1}
    return tuple(Rates(key, tuple(sorted(by_class[key].items()))) for key in sorted(by_class))


def _forgive(tx: Writer, node: str) -> None:
    for key, value in list(tx.scan("links", text_key(node))):
        row = _LINK.decode(value)
        if row.recent:
            tx.put("links", key, replace(row, recent=()))
