"""The numbers that decisions obey, one struct for each concern, with the cluster's defaults.

Pure data: units stand in the names, shares are between 0 and 1. Each field is one line of a
``[policy.<concern>]`` table.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta, field

from streams.codec import fact_id
from streams.identity import glob_matches
from streams.values import DataEntry, DataType, SyncPriority, Transport, Value

MEGABYTE = 1_000_000
GIGABYTE = 1_000_000_000
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
AtLeastOne = Annotated[int, Meta(ge=1)]
#: Names with ``/`` between them.
Prefix = Annotated[str, Meta(pattern=r"^([A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*)?$")]
Whole = Annotated[int, Meta(ge=0)]


class Concern(Value, frozen=True, forbid_unknown_fields=True):
    """Base of the parts of a policy."""


def matches_any(name: str, globs: Iterable[str]) -> bool:
    """Whether a name falls under one of these globs; case counts."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


class Exclusion(Concern, frozen=True):
    """Who never receives (K5)."""

    #: Names or globs of nodes.
    exclude_hosts: tuple[str, ...] = ()
    #: A node that only coordinates and has no external storage is sent nothing it did not ask for.
    coordinator_needs_storage: bool = True

    def excludes(self, node: str) -> bool:
        """Whether a node is kept from receiving by name."""
        return matches_any(node, self.exclude_hosts)


class Replication(Concern, frozen=True):
    """How many copies there must be, and how fast missing ones are made (K8)."""

    minimum: AtLeastOne = 3
    #: Under-replicated for so long: a warning, then a critical alert.
    warn_after_s: NotNegative = 900.0
    critical_after_s: NotNegative = 3600.0
    #: A single copy of so many games is an alert at once.
    single_copy_alert_games: Whole = 100
    max_repairs_at_once: AtLeastOne = 5
    max_repairs_per_hour: AtLeastOne = 500
    #: An entry whose repair ended is left alone for so long.
    cooldown_s: NotNegative = 600.0


class Bandwidth(Concern, frozen=True):
    """What may be under way at once, and how fast (K14). 0 means unlimited, for rates."""

    #: Mbit/s of one transfer.
    sync_mbps: NotNegative = 100.0
    #: MB/s from or to one node, and in the whole cluster.
    host_mb_s: NotNegative = 50.0
    total_mb_s: NotNegative = 300.0
    #: Mbit/s of one transfer from or to nodes whose provider, or else name, matches the glob.
    provider_mbps: dict[str, NotNegative] = field(
        default_factory=lambda: {"vast-*": 50.0, "hetzner-*": 30.0}
    )
    #: What each class of work gets of a transfer's rate.
    class_weights: dict[SyncPriority, Positive] = field(
        default_factory=lambda: {
            SyncPriority.BACKGROUND: 0.25,
            SyncPriority.LOW: 0.5,
            SyncPriority.NORMAL: 1.0,
            SyncPriority.HIGH: 1.5,
            SyncPriority.CRITICAL: 2.0,
        }
    )
    #: Transfers at once from or to one node, and in all. CRITICAL work finds one slot more.
    max_per_node: AtLeastOne = 5
    max_total: AtLeastOne = 12
    #: Small files (`SMALL_BYTES`) that take one slot together: they travel together, too.
    small_per_slot: AtLeastOne = 100


class Disk(Concern, frozen=True):
    """How full a disk may be, as shares of its size, and what is never deleted (K21, K22)."""

    #: From here on a node receives no background data.
    stop_background_from: Share = 0.70
    cleanup_from: Share = 0.85
    stop_production_from: Share = 0.93
    critical_from: Share = 0.96
    #: What is set aside before a transfer starts, as a multiple of its size.
    reserve_factor: Annotated[float, Meta(ge=1)] = 1.10
    #: Logical paths that no cleaner may touch.
    never_delete: tuple[str, ...] = (
        "**/canonical_*",
        "**/canonical_*/**",
        "**/*elo*.db",
        "**/*elo*.sqlite*",
        "**/*registry*.db",
        "**/*registry*.sqlite*",
        "**/*.npz",
        "**/candidate_*",
        "**/candidate_*/**",
        "**/*backup*",
        "**/*backup*/**",
        "**/coordination/**",
    )
    #: Freshly proven copies elsewhere without which nothing is deleted.
    min_verified_copies: AtLeastOne = 2


class Quality(Concern, frozen=True):
    """Which games are worth moving (K3), and which are whole (K4)."""

    #: A database with fewer games is not synced yet where there are others to sync.
    min_games: Whole = 10
    #: Fewer sampled games than these always pass.
    judged_from_games: Whole = 5
    #: Mean quality of the newest games, as their node found it, from which they are worth moving.
    min_mean: Share = 0.5
    #: From how many moves a game of a configuration counts as complete; and of any other one.
    complete_from_moves: dict[str, Whole] = field(
        default_factory=lambda: {
            **{f"{board}_{n}p": 10 * n for board in ("hex8", "square8") for n in (2, 3, 4)},
            "square19_2p": 50,
            "square19_3p": 80,
            "square19_4p": 100,
            "hexagonal_2p": 50,
            "hexagonal_3p": 80,
            "hexagonal_4p": 100,
        }
    )
    complete_from_moves_else: Whole = 5

    def complete_from(self, config_key: str) -> int:
        """From how many moves a game counts as complete (K4)."""
        return self.complete_from_moves.get(config_key, self.complete_from_moves_else)


class Schedule(Concern, frozen=True):
    """How often what nobody triggers is looked at, in seconds (K2, K19)."""

    #: Reports of changed files that nothing asked for are at least this far apart.
    event_gap_s: NotNegative = 2.0
    replication_s: Positive = 60.0
    manifest_refresh_s: Positive = 60.0
    s3_cycle_s: Positive = 3600.0
    orphans_s: Positive = 300.0
    reconcile_s: Positive = 3600.0
    cleanup_s: Positive = 300.0
    #: Trainings that follow each other faster than twice in so long are nothing to be ahead of.
    prestage_s: Positive = 60.0


class Prestage(Concern, frozen=True):
    """What may be brought to a node before it trains, where its history says when it will."""

    enabled: bool = True
    #: How regular a node's trainings must have been: of four alike gaps, 4/5.
    min_confidence: Share = 0.7
    #: How long before the expected start it begins, and how long after it a start still counts.
    horizon_s: Positive = 1800.0
    #: Of the slots and rates of ``bandwidth``, as much as this work may hold at once.
    max_share: Share = 0.25
    #: For one node and configuration at most once in so long.
    cooldown_s: NotNegative = 600.0


class S3(Concern, frozen=True):
    """What goes to the bucket (K19)."""

    enabled: bool = False
    bucket: str = ""
    #: What all keys in it begin with.
    prefix: Prefix = ""
    storage_class: str = "STANDARD_IA"
    #: Games are backed up from so many in a file on.
    min_games: Whole = 100
    #: Logical paths that are backed up without being named, by type.
    kinds: dict[DataType, tuple[str, ...]] = field(
        default_factory=lambda: {
            DataType.GAMES: ("games/**", "**/canonical_*", "**/*tournament*", "**/*gauntlet*"),
            DataType.MODELS: ("**/canonical_*", "**/candidate_*", "**/*_best*"),
            DataType.CHECKPOINT: (),
            DataType.NPZ: (),
            DataType.METADATA: ("**",),
        }
    )
    #: Not healthy once what waits for the bucket has waited for so many cycles.
    missed_cycles: AtLeastOne = 2

    def takes(self, entry: DataEntry) -> bool:
        """Whether an entry is of a kind that is backed up."""
        globs = self.kinds.get(entry.data_type, ())
        return any(glob_matches(glob, entry.path) for glob in globs)


class Retries(Concern, frozen=True):
    """How attempts are repeated, and how long one may take (K13)."""

    #: Attempts after the first, or after the last one that brought a real share of the file: that
    #: is no failure, and the next one goes on from there.
    max_retries: Whole = 3
    backoff_base_s: NotNegative = 2.0
    backoff_factor: Annotated[float, Meta(ge=1)] = 2.0
    backoff_max_s: NotNegative = 30.0
    backoff_jitter: Share = 0.1
    connect_s: Positive = 30.0
    #: No byte for so long ends an attempt.
    stall_s: Positive = 30.0
    #: An attempt may take the base and so much a megabyte, but never more than the maximum.
    attempt_base_s: NotNegative = 60.0
    attempt_s_per_mb: NotNegative = 2.0
    attempt_max_s: Positive = 600.0
    #: How long after its time an executor's answer may still be on the way.
    attempt_grace_s: NotNegative = 10.0

    @property
    def grace_s(self) -> float:
        """How late an answer may be before the attempt counts as unanswered."""
        return min(self.attempt_grace_s, self.attempt_max_s)

    def attempt_timeout_s(self, entry: DataEntry) -> float:
        """How long one attempt at an entry may take."""
        wanted = self.attempt_base_s + self.attempt_s_per_mb * entry.size_bytes / MEGABYTE
        return min(wanted, self.attempt_max_s)

    def backoff_s(self, transfer: str, failures: int) -> float:
        """How long to wait after the n-th failure: growing, capped, and spread by the id."""
        if failures == 0:
            return 0.0
        delay = self.backoff_base_s * self.backoff_factor ** min(failures - 1, 60)
        spread = int(fact_id(transfer, failures)[:4], 16) / 0xFFFF
        return min(delay, self.backoff_max_s) * (1 + self.backoff_jitter * (2 * spread - 1))


class Breakers(Concern, frozen=True):
    """When past failures keep a transport or a node from being tried (K15)."""

    transport_failures: AtLeastOne = 3
    transport_open_s: Positive = 60.0
    #: Successes after which a breaker that was open is closed.
    half_open_successes: AtLeastOne = 2
    node_failures: AtLeastOne = 3
    node_open_s: Positive = 300.0


class Transports(Concern, frozen=True):
    """Which transports there are, and in which order they are tried (K12).

    Where an end has no SSH server, and after a failure, `execution` knows what stands in.
    """

    #: Those of this installation; chains are cut down to them.
    installed: tuple[Transport, ...] = tuple(Transport)
    #: Above this a file is large.
    large_file_mb: AtLeastOne = 100
    small_file: tuple[Transport, ...] = (
        Transport.P2P_GOSSIP,
        Transport.HTTP_FETCH,
        Transport.BASE64_SSH,
    )
    large_file: tuple[Transport, ...] = (
        Transport.RSYNC,
        Transport.HTTP_FETCH,
        Transport.BASE64_SSH,
    )
    #: What every target gets is spread among them, whatever its size.
    broadcast: tuple[Transport, ...] = (
        Transport.P2P_GOSSIP,
        Transport.RSYNC,
        Transport.HTTP_FETCH,
        Transport.BASE64_SSH,
    )
    s3_backup: tuple[Transport, ...] = (Transport.S3, Transport.RSYNC)
    ephemeral_urgent: tuple[Transport, ...] = (Transport.RSYNC, Transport.BASE64_SSH)
    #: By name or glob of a node: transports that corrupted files there and are tried last.
    tried_last: dict[str, tuple[Transport, ...]] = field(default_factory=dict)

    def is_large(self, entry: DataEntry) -> bool:
        """Whether an entry takes the transports for large files."""
        return entry.size_bytes > self.large_file_mb * MEGABYTE


class Chains(Concern, frozen=True):
    """How long chains may wait, and what their ends say."""

    #: How long a node may owe what it holds without a word that it is still reading.
    answer_limit_s: Positive = 60.0
    #: A chain older than this is said to be overdue.
    limit_s: Positive = 3600.0
    #: Whether completed chains are followed by NEW_GAMES_AVAILABLE.
    announce: bool = True
