"""What sweeps look for, as pure decisions on one path at a time.

A survey goes once over how every path stands and notes what has too few copies, what the bucket
lacks, and games that no chain took. It only finds; what is planned for what it found is decided by
the planner, on the views as they are then. It must never name more than may be repaired at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import msgspec

from dataplane.deletion import protected
from dataplane.planner import Known
from dataplane.policy import Policy, Replication
from projections.standing import StandingRow
from projections.sweeps import AlertRow
from streams import events
from streams.codec import split_entries
from streams.identity import Ownership
from streams.values import S3_NODE, DataEntry, DataType, DiskTier, added

#: Said in one sweep at most, and named in one trigger.
MOST_ALERTS = 100
MOST_BACKED_UP = 500
MOST_ORPHANS = 200
MOST_DELETIONS = 50
#: Paths of which it is remembered since when they are short.
MOST_REMEMBERED = 100_000
#: What is short of copies for less is still on its way by its own chain.
REPAIR_AFTER_S = 60.0
#: Games are orphans when so many cycles of looking for them found no chain that took them.
ORPHAN_CYCLES = 3
#: A disk is emptied a little further than where cleaning up began.
CLEAN_BELOW = 0.05
#: A disk must be so much emptier than a limit before it counts as below it again.
HYSTERESIS = 0.02
SEVERITIES = ("", "warning", "single-copy", "critical")


class Short(msgspec.Struct, frozen=True, order=True):
    """A path with too few lasting copies; the fewest and oldest come first."""

    copies: int
    since: float
    path: str
    path_key: bytes


class KnownAtSurvey(Protocol):
    """What a survey asks of the views of paths that it notes."""

    def entry(self, key: bytes) -> DataEntry | None:
        """An entry by its key."""

    def repaired_at(self, path_key: bytes) -> float:
        """When a repair was last asked for."""

    def last_alert(self, path: str) -> AlertRow | None:
        """What was last said of the copies of a path."""


class Survey:
    """One walk over all paths. `look` at each, then read what was found.

    `lasting` counts copies that are there, and those that will be when their nodes are back, of
    which the bucket's is sealed with a key, or with none; `sealing` says whether any may be.
    `short_since` says of paths that were short the last time since when; it is carried from one
    survey to the next.
    """

    def __init__(
        self,
        policy: Policy,
        lasting: Callable[[Sequence[str], str], tuple[int, int]],
        now: float,
        short_since: dict[bytes, float] | None = None,
        *,
        sealing: bool = False,
    ) -> None:
        self._policy = policy
        self._lasting = lasting
        self._now = now
        self._sealing = sealing
        self._counted: dict[tuple[tuple[str, ...], str], tuple[int, int]] = {}
        self._before = short_since or {}
        self._worst: list[tuple[float, float, Short]] = []
        self._orphans_after = ORPHAN_CYCLES * policy.schedule.orphans_s
        self.short_since: dict[bytes, float] = {}
        self.looked_at = 0
        self.short = 0
        #: What has been short of copies for longest, and since when; ("", 0.0) if nothing is.
        self.oldest: tuple[str, float] = ("", 0.0)
        self.unbacked = 0
        self.backups: list[str] = []
        self.alerts: list[events.ReplicationAlert] = []
        self.orphans: list[DataEntry] = []

    def look(self, path_key: bytes, row: StandingRow, known: KnownAtSurvey) -> None:
        """Note what is to be noted of one path."""
        self.looked_at += 1
        entry = known.entry(row.entry) if self._sealing and S3_NODE in row.nodes else None
        held = (row.nodes, entry.sealed_with if entry is not None else "")
        counted = self._counted.get(held)
        if counted is None:
            counted = self._counted[held] = self._lasting(*held)
        if counted[0] < self._policy.replication.minimum and row.nodes:
            self._note_short(path_key, row, counted, known)
        if self._policy.s3.enabled and S3_NODE not in row.nodes and row.nodes:
            self._note_unbacked(row, known)
        if row.untaken_since and self._now - row.untaken_since >= self._orphans_after:
            self._note_orphan(row, known)

    def repairs(self, allowed: int) -> list[str]:
        """The paths that most need a copy, at most so many."""
        worst = sorted(short for _, _, short in self._worst)
        return [short.path for short in worst[:allowed]]

    def _note_short(
        self, path_key: bytes, row: StandingRow, counted: tuple[int, int], known: KnownAtSurvey
    ) -> None:
        rule, (copies, in_all) = self._policy.replication, counted
        only_away = in_all >= rule.minimum
        # A node that is away for a moment makes nothing short that was well for a year.
        since = self._before.get(path_key, self._now if only_away else row.since)
        self.short += 1
        if len(self.short_since) < MOST_REMEMBERED:
            self.short_since[path_key] = since
        soon = min(REPAIR_AFTER_S, rule.warn_after_s)
        if self._now - since < (rule.warn_after_s if only_away else soon):
            return
        entry = known.entry(row.entry)
        if entry is None or self._policy.paths.ownership(entry.path) is Ownership.MERGED:
            return
        if not self.oldest[0] or since < self.oldest[1]:
            self.oldest = (entry.path, since)
        severity = severity_of(entry, copies, self._now - since, rule)
        if severity and len(self.alerts) < MOST_ALERTS:
            said = known.last_alert(entry.path)
            if said is None or said.at < since or _rank(severity) > _rank(said.severity):
                self.alerts.append(_alert(entry, copies, severity, rule))
        repaired = known.repaired_at(path_key)
        if self._now - repaired < rule.cooldown_s:
            return
        short = Short(copies, since, entry.path, path_key)
        # The heap's first is the least urgent: most copies, shortest time.
        item = (-float(copies), -since, short)
        if len(self._worst) < rule.max_repairs_at_once:
            heapq.heappush(self._worst, item)
        elif item[:2] > self._worst[0][:2]:
            heapq.heapreplace(self._worst, item)

    def _note_unbacked(self, row: StandingRow, known: KnownAtSurvey) -> None:
        if len(self.backups) >= MOST_BACKED_UP:
            self.unbacked += 1
            return
        entry = known.entry(row.entry)
        if entry is not None and goes_to_bucket(entry, self._policy):
            self.unbacked += 1
            self.backups.append(entry.path)

    def _note_orphan(self, row: StandingRow, known: KnownAtSurvey) -> None:
        if len(self.orphans) >= MOST_ORPHANS:
            return
        entry = known.entry(row.entry)
        if entry is None or entry.primary_location not in entry.locations:
            return
        if (entry.games or 0) >= self._policy.quality.min_games:
            self.orphans.append(entry)


def severity_of(entry: DataEntry, copies: int, age_s: float, rule: Replication) -> str:
    """How bad it is that an entry has too few copies; "" if it is not to be said yet (K8)."""
    if age_s >= rule.critical_after_s:
        return "critical"
    if copies <= 1 and (entry.games or 0) >= rule.single_copy_alert_games:
        return "single-copy"
    return "warning" if age_s >= rule.warn_after_s else ""


def goes_to_bucket(entry: DataEntry, policy: Policy) -> bool:
    """Whether the bucket's cycle takes an entry (K19)."""
    if entry.data_type is DataType.GAMES and (entry.games or 0) < policy.s3.min_games:
        return False
    return policy.s3.takes(entry)


def repairs_allowed(under_way: int, last_hour: int, rule: Replication) -> int:
    """How many repairs may be asked for now (K8)."""
    at_once = rule.max_repairs_at_once - under_way
    return max(0, min(at_once, rule.max_repairs_per_hour - last_hour))


def orphans_said(orphans: Iterable[DataEntry]) -> Iterator[events.OrphanGamesDetected]:
    """ORPHAN_GAMES_DETECTED for each node and configuration that has some."""
    grouped: dict[tuple[str, str], list[DataEntry]] = {}
    for entry in orphans:
        grouped.setdefault((entry.primary_location, entry.config_key), []).append(entry)
    for (node, config_key), entries in sorted(grouped.items()):
        yield events.OrphanGamesDetected(
            node=node,
            config_key=config_key,
            orphan_count=added(*(entry.games or 0 for entry in entries)),
            # Those that don't fit are said the next time.
            paths=split_entries(tuple(sorted(entry.path for entry in entries)))[0],
        )


def tier_of(used: float, before: DiskTier, policy: Policy) -> DiskTier:
    """How full a disk is (K21); it falls back to a lower tier only when it is clearly below."""
    limits = (
        (DiskTier.CRITICAL, policy.disk.critical_from),
        (DiskTier.STOP_PRODUCTION, policy.disk.stop_production_from),
        (DiskTier.CLEANUP, policy.disk.cleanup_from),
        (DiskTier.NO_BACKGROUND, policy.disk.stop_background_from),
    )
    for tier, limit in limits:
        if used >= limit or (before.rank >= tier.rank and used >= limit - HYSTERESIS):
            return tier
    return DiskTier.NORMAL


def cleanup(
    held: Iterable[DataEntry],
    node: str,
    known: Known,
    wanted_bytes: int,
) -> list[DataEntry]:
    """What a node whose disk is too full should ask to delete: the oldest first (K21, K22).

    Only what would still have the minimum of copies elsewhere; whether it really has is proven
    before anything goes.
    """
    policy = known.policy
    least = max(policy.disk.min_verified_copies, policy.replication.minimum)
    chosen: list[DataEntry] = []
    freed = 0
    for entry in sorted(held, key=lambda entry: (entry.mtime, entry.path)):
        if freed >= wanted_bytes or len(chosen) >= MOST_DELETIONS:
            break
        if protected(entry.path, policy) is not None:
            continue
        if len(known.lasting(entry.locations, node, sealed_with=entry.sealed_with)) >= least:
            chosen.append(entry)
            freed += entry.size_bytes
    return chosen


def too_full_bytes(total: int, free: int, policy: Policy) -> int:
    """How many bytes a disk should lose; 0 if it is not to be cleaned up."""
    if not total or 1 - free / total < policy.disk.cleanup_from:
        return 0
    return int(total - free - (policy.disk.cleanup_from - CLEAN_BELOW) * total)


def _alert(
    entry: DataEntry, copies: int, severity: str, rule: Replication
) -> events.ReplicationAlert:
    return events.ReplicationAlert(
        path=entry.path,
        checksum=entry.checksum,
        copies=copies,
        wanted=rule.minimum,
        severity=severity,
        config_key=entry.config_key,
    )


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else 0
