"""What sweeps have found and asked for: cycles, repairs, alerts. So that nothing is asked twice."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from msgspec.structs import replace

from projections.store import Reader, Writer
from projections.view import Handler, Row, digest_key, moment, unpacker
from streams import events
from streams.codec import Recorded
from streams.values import SweepKind

#: Repairs are remembered for so long: that bounds how many were made in an hour.
REMEMBERED_S = 3600.0


class SweepRow(Row, frozen=True):
    """The last sweep of a kind that found work."""

    kind: SweepKind
    cycle: int
    chain: str
    due_at: float
    #: How many it named, of how many there were.
    named: int = 0
    found: int = 0
    ended_at: float = 0.0
    #: When one of its kind was last completed.
    completed_at: float = 0.0
    #: When the first of its kind was due that none has completed since; 0.0 if all is done.
    unmet_since: float = 0.0


class AlertRow(Row, frozen=True):
    """What was last said of the copies of a path."""

    severity: str
    at: float


_SWEEP, _ALERT = unpacker(SweepRow), unpacker(AlertRow)


class SweepsView:
    """Folds sweeps, the ends of their chains, and alerts."""

    name = "sweeps"
    version = 2
    tables = ("sweeps", "sweep_chains", "repaired", "repairs", "alerts")

    def __init__(self) -> None:
        self.folds: dict[type[events.Event], Handler] = {
            events.SweepDue: self._due,
            events.DataSyncCompleted: self._end,
            events.DataSyncFailed: self._end,
            events.ReplicationAlert: self._alert,
        }

    def _due(self, tx: Writer, event: events.SweepDue, recorded: Recorded) -> None:
        before = last_sweep(tx, event.kind)
        if before is not None and event.cycle <= before.cycle:
            return
        row = SweepRow(
            event.kind,
            event.cycle,
            recorded.chain,
            recorded.time,
            len(event.paths),
            event.found,
            completed_at=before.completed_at if before else 0.0,
            unmet_since=(before.unmet_since if before else 0.0) or recorded.time,
        )
        tx.put("sweeps", event.kind.encode(), row)
        tx.put("sweep_chains", recorded.chain.encode(), event.kind.encode())
        if event.kind is SweepKind.REPLICATION:
            self._repair(tx, event.paths, recorded.time)

    @staticmethod
    def _repair(tx: Writer, paths: tuple[str, ...], time: float) -> None:
        for path in paths:
            key = digest_key(path)
            tx.put("repaired", key, moment(time))
            tx.put("repairs", moment(time) + key)
        for old, _ in list(tx.scan("repairs")):
            if old >= moment(time - REMEMBERED_S):
                break
            tx.delete("repairs", old)
            if tx.get("repaired", old[8:]) == old[:8]:
                tx.delete("repaired", old[8:])

    @staticmethod
    def _end(tx: Writer, event: events.Event, recorded: Recorded) -> None:
        kind = tx.get("sweep_chains", recorded.chain.encode()) if recorded.chain else None
        if kind is None:
            return
        tx.delete("sweep_chains", recorded.chain.encode())
        row = last_sweep(tx, SweepKind(kind.decode()))
        if row is None:
            return
        if isinstance(event, events.DataSyncCompleted):
            # An earlier one that completes late says nothing of what became due after it.
            unmet = 0.0 if row.chain == recorded.chain else row.due_at
            row = replace(row, completed_at=recorded.time, unmet_since=unmet)
        if row.chain == recorded.chain:
            row = replace(row, ended_at=recorded.time)
        tx.put("sweeps", kind, row)

    @staticmethod
    def _alert(tx: Writer, event: events.ReplicationAlert, recorded: Recorded) -> None:
        tx.put("alerts", digest_key(event.path), AlertRow(event.severity, recorded.time))


def last_sweep(reader: Reader, kind: SweepKind) -> SweepRow | None:
    """The last sweep of a kind that found work."""
    return reader.row("sweeps", kind.encode(), _SWEEP)


def last_alert(reader: Reader, path: str) -> AlertRow | None:
    """What was last said of the copies of a path."""
    return reader.row("alerts", digest_key(path), _ALERT)


def repaired_at(reader: Reader, path_key: bytes) -> float:
    """When a repair of a path was last asked for, within the last hour; 0.0 if never."""
    found = reader.get("repaired", path_key)
    return 0.0 if found is None else float(struct.unpack(">d", found)[0])


def repairs_since(reader: Reader, time: float) -> int:
    """How many repairs were asked for since then, within the last hour."""
    return sum(1 for _ in _since(reader, time))


def _since(reader: Reader, time: float) -> Iterator[bytes]:
    return (key for key, _ in reader.scan("repairs", start=moment(time)))
