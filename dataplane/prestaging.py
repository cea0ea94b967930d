"""Which data may be brought to a node before it trains, as pure decisions.

A start must be near and sure enough, and only so much is asked for as what is spare can bring by
then, the newest first. It must never ask for more than there is room for below the disk's first
limit (K21): nothing is deleted, and nothing waits, for data that nobody has asked for yet.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence

from dataplane.policy import Policy
from projections.nodes import NodeRow
from projections.trainings import EXPECTED_CHAIN, Expected, TrainingRow, expected
from projections.transfers import TransferRow
from streams import events
from streams.codec import fact_id, split_entries
from streams.values import DataEntry, DataType

#: Named in one trigger at most; what is left is found again.
MOST_AHEAD = 500
_BYTES_OF_A_MEGABIT = 125_000
#: What a training run needs that does not say it.
_USUAL = (DataType.GAMES, DataType.NPZ)


def due(trainings: Iterable[TrainingRow], policy: Policy, now: float) -> list[Expected]:
    """Starts that are worth bringing data ahead of now, the soonest first."""
    rule, found = policy.prestage, []
    if not rule.enabled:
        return []
    for row in trainings:
        start = expected(row, now)
        if start is None or start.rhythm.confidence < rule.min_confidence:
            continue
        # Faster than that, the sweep would always come too late.
        slow_enough = start.at - row.starts[-1] >= 2 * policy.schedule.prestage_s
        near = start.at - now <= rule.horizon_s
        if slow_enough and near and now - row.asked_at >= rule.cooldown_s:
            found.append(start)
    return sorted(found, key=lambda start: (start.at, start.node, start.config_key))


def kinds_of(row: TrainingRow) -> tuple[DataType, ...]:
    """Which kinds a run will need, by what the last one did."""
    return row.data_types or _USUAL


class Lacking:
    """What a node lacks of a configuration: all is counted, the newest are kept."""

    def __init__(self) -> None:
        self.found = 0
        self._newest: list[tuple[float, str, int]] = []

    def note(self, entries: Iterable[DataEntry]) -> None:
        """Take note of entries that the node does not hold."""
        for entry in entries:
            self.found += 1
            item = (entry.mtime, entry.path, entry.size_bytes)
            if len(self._newest) < MOST_AHEAD:
                heapq.heappush(self._newest, item)
            else:
                heapq.heappushpop(self._newest, item)

    def that_fit(self, bytes_spare: float) -> Iterator[str]:
        """Paths of the newest that fit together."""
        left = bytes_spare
        for _, path, size_bytes in sorted(self._newest, reverse=True):
            if size_bytes <= left:
                left -= size_bytes
                yield path


def spare_bytes(
    start: Expected,
    target: NodeRow,
    in_flight: Sequence[TransferRow],
    policy: Policy,
    now: float,
) -> float:
    """What may be brought to a node by its start with what nothing else uses now (K14, K21)."""
    bandwidth, disk = policy.bandwidth, target.description
    used = sum(row.bandwidth_mbps for row in in_flight)
    here = sum(row.bandwidth_mbps for row in in_flight if start.node in (row.source, row.target))
    mbps = min(
        _left(bandwidth.total_mb_s * 8, used),
        _left(bandwidth.host_mb_s * 8, here),
        _left(float(disk.bandwidth_limit_mbps), here),
    )
    by_rate = mbps * policy.prestage.max_share * max(0.0, start.at - now) * _BYTES_OF_A_MEGABIT
    if not disk.disk_total_bytes:
        return by_rate
    may_use = policy.disk.stop_background_from * disk.disk_total_bytes
    room = disk.disk_free_bytes - (disk.disk_total_bytes - may_use)
    return min(by_rate, max(0.0, room / policy.disk.reserve_factor))


def trigger(
    start: Expected,
    row: TrainingRow,
    lacking: Lacking,
    paths: Sequence[str],
    policy: Policy,
    now: float,
) -> tuple[events.TrainingExpected, str]:
    """TRAINING_EXPECTED and its id: of two coordinators that look in one cycle, one is heard."""
    cycle = int(now // policy.schedule.prestage_s)
    event = events.TrainingExpected(
        config_key=start.config_key,
        node=start.node,
        expected_at=start.at,
        until=start.at + policy.prestage.horizon_s,
        rhythm_s=start.rhythm.seconds,
        after_end=start.rhythm.after_end,
        confidence=start.rhythm.confidence,
        data_types=row.data_types,
        paths=split_entries(tuple(paths))[0],
        found=lacking.found,
        cycle=cycle,
    )
    return event, f"{EXPECTED_CHAIN}{fact_id(start.node, start.config_key)[:16]}-{cycle}"


def _left(limit_mbps: float, used_mbps: float) -> float:
    """What is left of a limit, where 0 is none."""
    return max(0.0, limit_mbps - used_mbps) if limit_mbps > 0 else math.inf
