"""When each node trained which configuration, and what became of data that was brought ahead of it.

A node that trains in a steady rhythm, from start to start or from the end of a run to the next
start, will probably do so again: `expected` reads that off the past, as a function of the row and
the time. Bytes that a transfer brought ahead are a hit once a TRAINING_STARTED finds them in place,
and wasted when the time for that is over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

import msgspec
from msgspec.structs import replace

from projections.catalog import entry_key
from projections.chains import trigger_of
from projections.store import Reader, Writer
from projections.transfers import get_transfer
from projections.view import Handler, Row, digest_key, moment, text_key, unpacker
from streams import events
from streams.codec import Recorded
from streams.values import DataType, added

#: So many starts, and pauses before them, are remembered of a node and configuration.
REMEMBERED = 8
#: What is this much of a rhythm too early or late is still in it.
TOLERANCE = 0.25
#: How the names of chains begin that bring data ahead.
EXPECTED_CHAIN = "sweep-prestage-"
_STARTED = events.type_name(events.TrainingStarted)


class TrainingRow(Row, frozen=True):
    """Table ``trainings``: what a node's training of one configuration was like."""

    node: str
    config_key: str
    #: Seconds since 1970, by the log, of the last runs' starts.
    starts: tuple[float, ...] = ()
    #: Seconds from the end of a run to the next start.
    pauses: tuple[float, ...] = ()
    #: When the last run ended; 0.0 while it goes on.
    ended_at: float = 0.0
    job_id: str = ""
    #: Which kinds it needed the last time.
    data_types: tuple[DataType, ...] = ()
    #: When data was last to be brought ahead of it.
    asked_at: float = 0.0
    #: Bytes that were brought ahead, of which a start found some, and others came for nothing.
    staged_bytes: int = 0
    hit_bytes: int = 0
    wasted_bytes: int = 0


class AheadRow(Row, frozen=True):
    """Table ``ahead``: a chain that brings data ahead, by its id."""

    node: str
    config_key: str
    until: float


class StagedRow(Row, frozen=True):
    """Table ``staged``: a copy that was brought ahead and that no start has found yet."""

    node: str
    config_key: str
    entry: bytes
    #: That moved for it.
    moved_bytes: int
    until: float
    chain: str


class Rhythm(msgspec.Struct, frozen=True):
    """How steadily a node trains."""

    seconds: float
    #: From 0 to 1.
    confidence: float
    #: Whether it counts from the end of a run, else from its start.
    after_end: bool = False


class Expected(msgspec.Struct, frozen=True):
    """A start that is to be expected."""

    node: str
    config_key: str
    at: float
    rhythm: Rhythm


class Staging(msgspec.Struct, frozen=True):
    """What bringing data ahead was worth, in bytes since the log began."""

    staged_bytes: int = 0
    hit_bytes: int = 0
    wasted_bytes: int = 0
    #: Brought, and still to be found by a start.
    waiting_bytes: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Hits among what was decided either way; None before anything was."""
        decided = self.hit_bytes + self.wasted_bytes
        return self.hit_bytes / decided if decided else None


_TRAINING, _AHEAD, _STAGED = unpacker(TrainingRow), unpacker(AheadRow), unpacker(StagedRow)


class TrainingsView:
    """Folds starts and ends of runs, and what was brought ahead of them."""

    name = "trainings"
    version = 1
    tables = ("trainings", "ahead", "staged", "staged_until")

    def __init__(self) -> None:
        self.folds: dict[type[events.Event], Handler] = {
            events.TrainingStarted: self._start,
            events.TrainingCompleted: self._complete,
            events.TrainingExpected: self._expect,
            events.TransferSucceeded: self._arrive,
            events.SyncPlanned: self._find,
        }

    @staticmethod
    def _start(tx: Writer, event: events.TrainingStarted, recorded: Recorded) -> None:
        row = _training(tx, event.node, event.config_key)
        if event.job_id and event.job_id == row.job_id:
            # The same run, said once more.
            return
        pauses = row.pauses
        if row.ended_at:
            pauses = (*pauses, recorded.time - row.ended_at)[-REMEMBERED:]
        _store(
            tx,
            replace(
                row,
                starts=(*row.starts, recorded.time)[-REMEMBERED:],
                pauses=pauses,
                ended_at=0.0,
                job_id=event.job_id,
                data_types=event.data_types,
            ),
        )

    @staticmethod
    def _complete(tx: Writer, event: events.TrainingCompleted, recorded: Recorded) -> None:
        row = _training(tx, event.node, event.config_key)
        if row.starts and not row.ended_at:
            _store(tx, replace(row, ended_at=recorded.time))

    @staticmethod
    def _expect(tx: Writer, event: events.TrainingExpected, recorded: Recorded) -> None:
        _expire(tx, recorded.time)
        row = _training(tx, event.node, event.config_key)
        _store(tx, replace(row, asked_at=recorded.time))
        chain = recorded.chain.encode()
        tx.put("ahead", chain, AheadRow(event.node, event.config_key, event.until))
        tx.put("staged_until", moment(event.until) + b"a" + chain)

    @staticmethod
    def _arrive(tx: Writer, event: events.TransferSucceeded, recorded: Recorded) -> None:
        """A copy came ahead, if it was assigned for that and nobody else waits for it by now."""
        if not recorded.chain.startswith(EXPECTED_CHAIN) or not event.bytes_transferred:
            return
        transfer = get_transfer(tx, event.transfer)
        if transfer is not None and not transfer.spare_only:
            return
        moved, entry = event.bytes_transferred, event.entry
        ahead = tx.row("ahead", recorded.chain.encode(), _AHEAD)
        row = _training(tx, event.target, entry.config_key)
        row = replace(row, staged_bytes=added(row.staged_bytes, moved))
        if ahead is None:
            _store(tx, replace(row, wasted_bytes=added(row.wasted_bytes, moved)))
            return
        _store(tx, row)
        key = _place(event.target, entry.path)
        _drop(tx, key, wasted=True)
        what = entry_key(entry.path, entry.checksum)
        staged = StagedRow(event.target, entry.config_key, what, moved, ahead.until, recorded.chain)
        tx.put("staged", key, staged)
        tx.put("staged_until", moment(ahead.until) + b"s" + key)

    @staticmethod
    def _find(tx: Writer, event: events.SyncPlanned, recorded: Recorded) -> None:
        """What a start finds in place because it was brought ahead is a hit."""
        if not event.held or trigger_of(tx, recorded.chain) != _STARTED:
            return
        _expire(tx, recorded.time)
        for held in event.held:
            key = _place(held.target, held.path)
            staged = tx.row("staged", key, _STAGED)
            if staged is not None and staged.entry == entry_key(held.path, held.checksum):
                _drop(tx, key, wasted=False)


def expected(row: TrainingRow, now: float) -> Expected | None:
    """The next start by the steadier of both rhythms; None if there is none, or it stayed away."""
    if not row.starts:
        return None
    gaps = [later - earlier for earlier, later in zip(row.starts, row.starts[1:], strict=False)]
    found = []
    if (steady := _rhythm(gaps, after_end=False)) is not None:
        found.append((row.starts[-1] + steady.seconds, steady))
    if row.ended_at and (steady := _rhythm(row.pauses, after_end=True)) is not None:
        found.append((row.ended_at + steady.seconds, steady))
    found = [(at, steady) for at, steady in found if now <= at + TOLERANCE * steady.seconds]
    if not found:
        return None
    at, steady = max(found, key=lambda one: one[1].confidence)
    return Expected(row.node, row.config_key, at, steady)


def all_trainings(reader: Reader) -> Iterator[TrainingRow]:
    """Each node and configuration that was ever trained, by name."""
    for _, value in reader.scan("trainings"):
        yield _TRAINING.decode(value)


def staged_copy(reader: Reader, node: str, path: str) -> StagedRow | None:
    """A copy that was brought ahead and that no start has found yet."""
    return reader.row("staged", _place(node, path), _STAGED)


def staging(reader: Reader, now: float) -> Staging:
    """What bringing data ahead was worth up to now."""
    rows = list(all_trainings(reader))
    copies = [_STAGED.decode(value) for _, value in reader.scan("staged")]
    late = [copy.moved_bytes for copy in copies if copy.until < now]
    return Staging(
        staged_bytes=added(*(row.staged_bytes for row in rows)),
        hit_bytes=added(*(row.hit_bytes for row in rows)),
        wasted_bytes=added(*(row.wasted_bytes for row in rows), *late),
        waiting_bytes=added(*(copy.moved_bytes for copy in copies if copy.until >= now)),
    )


def _rhythm(gaps: Sequence[float], *, after_end: bool) -> Rhythm | None:
    """The usual gap, and how far to trust it: few gaps, or uneven ones, are no rhythm yet."""
    usual = median(gaps) if gaps else 0.0
    if usual <= 0.0:
        return None
    even = sum(abs(gap - usual) <= TOLERANCE * usual for gap in gaps)
    # One more is counted as uneven: of one gap nobody knows whether it is a rhythm.
    return Rhythm(usual, even / (len(gaps) + 1), after_end)


def _training(reader: Reader, node: str, config_key: str) -> TrainingRow:
    row = reader.row("trainings", text_key(node, config_key), _TRAINING)
    return row or TrainingRow(node, config_key)


def _store(tx: Writer, row: TrainingRow) -> None:
    tx.put("trainings", text_key(row.node, row.config_key), row)


def _place(node: str, path: str) -> bytes:
    return text_key(node) + digest_key(path)


def _drop(tx: Writer, key: bytes, *, wasted: bool) -> None:
    """A copy is brought ahead no more: a start has found it, or it came for nothing."""
    staged = tx.row("staged", key, _STAGED)
    if staged is None:
        return
    tx.delete("staged", key)
    tx.delete("staged_until", moment(staged.until) + b"s" + key)
    row = _training(tx, staged.node, staged.config_key)
    if wasted:
        row = replace(row, wasted_bytes=added(row.wasted_bytes, staged.moved_bytes))
    else:
        row = replace(row, hit_bytes=added(row.hit_bytes, staged.moved_bytes))
    _store(tx, row)


def _expire(tx: Writer, time: float) -> None:
    """What should have been found by now came for nothing."""
    over = []
    for key, _ in tx.scan("staged_until"):
        if key[:8] >= moment(time):
            break
        over.append(key)
    for key in over:
        if key[8:9] == b"a":
            tx.delete("ahead", key[9:])
            tx.delete("staged_until", key)
        else:
            _drop(tx, key[9:], wasted=True)
