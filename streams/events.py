"""Every fact of the data plane, one class each; its wire name is in `EVENT_TYPES`.

It must never refuse what has happened: only shapes are checked here. Events outlive the code that
wrote them, so a field is never renamed or given another meaning; it may be added with a default.

Time, id, chain and cause of a fact are not part of its payload, they are its envelope (`codec`).
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from streams.values import (
    ALL_CONFIGS,
    Checksum,
    Count,
    DataEntry,
    DataType,
    DiskTier,
    Endpoint,
    Held,
    NodeDescription,
    Proof,
    Refusal,
    SweepKind,
    SyncPlan,
    SyncPriority,
    TargetOutcome,
    Token,
    Transport,
    TransportResult,
    Value,
)


class Event(Value, frozen=True):
    """Base of all events."""


# Triggers: what is said from outside. Each opens a chain.


class SelfplayComplete(Event, frozen=True):
    """A node has finished playing; its games wait to be moved to the training nodes."""

    config_key: Token
    source_node: Token
    #: Games the player says it played; what really arrived is counted in the files.
    games_count: Count
    #: The file they are in, relative to the node's data directory; "" if the node knows best.
    path: str = ""
    duration_seconds: float | None = None
    engine: str = ""


class TrainingStarted(Event, frozen=True):
    """A node begins to train; it needs the newest data of this configuration."""

    config_key: Token
    node: Token
    job_id: str = ""
    #: Which kinds it needs; empty means games and NPZ.
    data_types: tuple[DataType, ...] = ()
    #: Seconds since 1970.
    deadline: float | None = None


class TrainingCompleted(Event, frozen=True):
    """A training run ended; candidate and checkpoint must leave the trainer."""

    config_key: Token
    node: Token
    model_path: str
    checkpoint_path: str = ""
    success: bool = True
    metrics: dict[str, float] = {}


class ModelPromoted(Event, frozen=True):
    """A model won its promotion; every GPU node must get it."""

    config_key: Token
    node: Token
    model_path: str
    model_id: str = ""
    elo: float | None = None


class OrphanGamesDetected(Event, frozen=True):
    """A node holds games that no chain ever took."""

    node: Token
    config_key: Token
    orphan_count: Count
    paths: tuple[str, ...] = ()


class DataNeeded(Event, frozen=True):
    """A node asks for data of a kind; the best holder is to send it."""

    node: Token
    config_key: Token
    data_type: DataType
    min_samples: Count | None = None
    deadline: float | None = None
    #: Only these files; empty means all of the kind.
    paths: tuple[str, ...] = ()


class DataSyncRequested(Event, frozen=True):
    """Somebody asks for data on named nodes; what `request_sync()` publishes."""

    data_type: DataType
    config_key: Token
    target_nodes: tuple[Token, ...]
    priority: SyncPriority = SyncPriority.NORMAL
    deadline: float | None = None
    requester: str = ""


class NodeTerminating(Event, frozen=True):
    """A node is about to vanish; what only it holds must leave first.

    From then on nobody counts on its copies: until it is said that it stays, or for a day.
    """

    node: Token
    deadline: float | None = None
    reason: str = ""


class SweepDue(Event, frozen=True):
    """A sweep found work; its id is made of kind and cycle, so that it is done once a cycle."""

    kind: SweepKind
    #: Which one since 1970, counted by the sweep's interval.
    cycle: Count
    #: Current paths it found; what is planned is decided on these alone, as they are then.
    paths: tuple[str, ...] = ()
    #: How many there were in all.
    found: Count = 0


class TrainingExpected(Event, frozen=True):
    """By its history a node will begin to train soon: what it lacks may be there before it does.

    Its id is made of node, configuration and cycle, so that it is said once a cycle.
    """

    config_key: Token
    node: Token
    #: Seconds since 1970 when it is expected to begin, and until when that still counts as met.
    expected_at: float
    until: float
    #: What it is expected by: so long after it began, or ended, the last time.
    rhythm_s: float = 0.0
    after_end: bool = False
    #: How regular that was, from 0 to 1.
    confidence: float = 0.0
    #: Which kinds it needed the last time; empty means games and NPZ.
    data_types: tuple[DataType, ...] = ()
    #: Current paths that it lacks; what is planned is decided on these alone, as they are then.
    paths: tuple[str, ...] = ()
    #: How many it lacks in all.
    found: Count = 0
    #: Which one since 1970, counted by the sweep's interval.
    cycle: Count = 0


class DeletionRequested(Event, frozen=True):
    """A copy is to be deleted from a node, if what remains elsewhere can be proven."""

    path: str
    #: From which node.
    node: Token
    #: Only if the node holds exactly this; "" for whatever it holds.
    checksum: str = ""
    reason: str = ""
    requester: str = ""


class NodeDrainCancelled(Event, frozen=True):
    """A node that was to go stays after all: what it holds counts again."""

    node: Token
    reason: str = ""


class HostOnline(Event, frozen=True):
    """A node can be reached again. One that is to go is to go all the same."""

    node: Token
    reason: str = ""


class HostOffline(Event, frozen=True):
    """A node can't be reached; planning takes it out."""

    node: Token
    reason: str = ""


class NodeRecovered(Event, frozen=True):
    """A node is healthy again, with the policy it had before; it stays, if it was to go."""

    node: Token
    reason: str = ""


# Facts of ours: what nodes found and did.


class NodeRegistered(Event, frozen=True):
    """A node joined, or its description changed."""

    description: NodeDescription
    #: True where a node that is there only tells what changed, such as its free disk: whether it
    #: is planned for stays as it is.
    changed: bool = False
    #: What tells its machine from others, by its installation and by its boot, neither as the
    #: machine itself calls it; "" where that can't be told.
    machine: str = ""
    boot: str = ""


class FilesObserved(Event, frozen=True):
    """What a node found in its data directories; also the answer to a trigger about them."""

    node: Token
    entries: tuple[DataEntry, ...] = ()
    #: A large answer comes in parts, and a slow one begins with empty parts that say no more than
    #: that it is still being read; only the last one completes it.
    last_part: bool = True
    #: What the node could not read and why, for people.
    problems: tuple[str, ...] = ()


class FilesRemoved(Event, frozen=True):
    """Files that a node held are gone from it."""

    node: Token
    paths: tuple[str, ...]


class FileQuarantined(Event, frozen=True):
    """A file failed its check on arrival, or rotted later, and was set aside."""

    node: Token
    path: str
    checksum: str
    reason: str


class FileConflict(Event, frozen=True):
    """A node keeps a content of its own under a path, against the one that counts; both stay."""

    node: Token
    path: str
    #: What it keeps.
    checksum: str
    reason: str


class NodeStopped(Event, frozen=True):
    """A node's agent was told to end, and has pushed to the bucket what it still could."""

    node: Token
    #: Entries that it stored, and that a manifest names now.
    stored: Count = 0
    stored_bytes: Count = 0
    #: Entries that belong into the bucket, and that it neither stored nor found there.
    left: Count = 0
    left_bytes: Count = 0
    #: Some of those, by path.
    left_paths: tuple[str, ...] = ()
    #: Why some were left; "" if none was.
    reason: str = ""


class GamesMerged(Event, frozen=True):
    """Complete games of a database were merged into another one of this node (K20)."""

    node: Token
    config_key: Token
    #: The database they are in now, and the one they came from, with its content.
    path: str
    source: str
    checksum: Checksum
    games_added: Count
    #: Of the source's other games: those that were there, and those that are not complete.
    games_there: Count = 0
    games_left: Count = 0


class DiskTierChanged(Event, frozen=True):
    """A node's disk became fuller or emptier than a limit; self-play listens to it, too."""

    node: Token
    tier: DiskTier
    #: What it was before.
    before: DiskTier = DiskTier.NORMAL
    #: From 0 to 1.
    used: float = 0.0
    free_bytes: Count = 0
    total_bytes: Count = 0


class SyncPlanned(Event, frozen=True):
    """What a chain will move, what is in place already, and what is not moved by which rule."""

    config_key: Token
    source_node: str = ""
    plans: tuple[SyncPlan, ...] = ()
    held: tuple[Held, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    #: Paths whose games were never announced before: completion is to be followed by
    #: NEW_GAMES_AVAILABLE for them.
    announces: tuple[str, ...] = ()
    #: A large plan comes in parts, appended together; only the last one completes it.
    last_part: bool = True
    #: The catalog the decision was taken on: its last folded sequence.
    as_of_sequence: Count = 0


class TransferAssigned(Event, frozen=True):
    """One entry, one target, one executor: go and do it."""

    transfer: Token
    executor: Token
    source: Token
    target: Token
    entry: DataEntry
    transports: tuple[Transport, ...]
    #: How source and target can be reached.
    source_at: Endpoint = Endpoint(node="")
    target_at: Endpoint = Endpoint(node="")
    #: Who else holds the same content or is getting it now: bytes may come from them as well.
    peers: tuple[Endpoint, ...] = ()
    #: Mbit/s this transfer may use; 0 means unlimited.
    bandwidth_mbps: float = 0.0
    priority: SyncPriority = SyncPriority.NORMAL
    deadline: float | None = None
    #: Counts from 1.
    attempt: Annotated[int, Meta(ge=1)] = 1
    #: How long the executor may take before the attempt counts as unanswered.
    timeout_s: float = 600.0
    #: For how many seconds `bandwidth_mbps` is granted without being renewed; 0 means for as long
    #: as it takes.
    grant_s: float = 0.0


class TransferSucceeded(Event, frozen=True):
    """The target holds every byte, proven by digest, under the final name."""

    transfer: Token
    node: Token
    source: Token
    target: Token
    entry: DataEntry
    attempt: Annotated[int, Meta(ge=1)]
    #: One for each transport tried, the successful one last; empty if it was there already.
    results: tuple[TransportResult, ...] = ()
    bytes_transferred: Count = 0
    duration_seconds: float = 0.0
    #: Counted in the copy.
    games: Count | None = None


class TransferFailed(Event, frozen=True):
    """An attempt ended without the bytes in place."""

    transfer: Token
    node: Token
    source: Token
    target: Token
    entry: DataEntry
    attempt: Annotated[int, Meta(ge=1)]
    error: str
    error_class: str
    results: tuple[TransportResult, ...] = ()
    bytes_transferred: Count = 0
    duration_seconds: float = 0.0
    #: False where the same attempt would fail again however often it is made.
    retryable: bool = True


class DataSyncStarted(Event, frozen=True):
    """Bytes of this chain are about to move."""

    config_key: Token
    source_node: str
    targets: tuple[str, ...]
    entries: Count
    size_bytes: Count


class DataSyncCompleted(Event, frozen=True):
    """Every target holds every byte this chain owed, proven by digest."""

    config_key: Token
    source_node: str
    targets: tuple[TargetOutcome, ...] = ()
    #: Outcomes that did not fit; each is a TRANSFER_SUCCEEDED in the log.
    left_out: Count = 0
    #: Games counted in the arrived files, each file once.
    games_synced: Count = 0
    #: Bytes that really moved for this chain's transfers.
    bytes_transferred: Count = 0
    duration_seconds: float = 0.0
    reason: str = ""


class DataSyncFailed(Event, frozen=True):
    """The chain ended with something missing: what arrived, what did not, and why, per target."""

    config_key: Token
    source_node: str
    arrived: tuple[TargetOutcome, ...] = ()
    failed: tuple[TargetOutcome, ...] = ()
    left_out: Count = 0
    refusals: tuple[Refusal, ...] = ()
    games_synced: Count = 0
    bytes_transferred: Count = 0
    duration_seconds: float = 0.0
    reason: str = ""


class NewGamesAvailable(Event, frozen=True):
    """Games are on the training nodes that were never announced before: exporters may start."""

    config_key: Token
    game_count: Count
    source_node: str
    targets: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    #: Paths that did not fit; their games are counted.
    left_out: Count = 0


class ModelDistributionComplete(Event, frozen=True):
    """A promoted model is on the quorum of GPU nodes."""

    config_key: Token
    model_path: str
    checksum: Checksum
    targets: tuple[str, ...] = ()


class S3BackupCompleted(Event, frozen=True):
    """Entries are in the bucket, and the manifest that names them is too."""

    bucket: str
    manifest_key: str
    entries: Count
    size_bytes: Count
    config_key: Token = ALL_CONFIGS


class NodeDrained(Event, frozen=True):
    """Nothing is left on a node that is not safe elsewhere: all of it was just proven there."""

    node: Token
    entries: Count = 0
    size_bytes: Count = 0


class DeletionReserved(Event, frozen=True):
    """A copy is about to be deleted; no other copy of its entry may be until this has ended."""

    path: str
    checksum: Checksum
    node: Token
    #: Id of the DELETION_REQUESTED.
    request: Token
    reason: str = ""
    requester: str = ""


class DeletionGranted(Event, frozen=True):
    """The copies that remain were proven just now: the node may delete its own."""

    path: str
    checksum: Checksum
    node: Token
    request: Token
    #: Copies elsewhere of the content that counts under the path.
    proofs: tuple[Proof, ...] = ()


class DeletionRefused(Event, frozen=True):
    """A copy stays, and by which rule."""

    path: str
    node: Token
    request: Token
    rule: str
    reason: str
    #: What the node holds; "" if it holds nothing there.
    checksum: str = ""
    proofs: tuple[Proof, ...] = ()


class DeletionDone(Event, frozen=True):
    """What the node made of a granted deletion: its last word on it."""

    path: str
    checksum: Checksum
    node: Token
    request: Token
    deleted: bool
    freed_bytes: Count = 0
    #: Why it was not deleted after all; "" if it was.
    reason: str = ""


class SelfplayNeeded(Event, frozen=True):
    """Data was asked for that nobody has: somebody must play it."""

    config_key: Token
    node: Token
    data_type: DataType
    min_samples: Count | None = None


class ReplicationAlert(Event, frozen=True):
    """An entry has had fewer copies than it should for too long."""

    path: str
    checksum: Checksum
    copies: Count
    wanted: Count
    severity: str
    config_key: Token = ALL_CONFIGS


class DeadlineAtRisk(Event, frozen=True):
    """A transfer will probably miss its deadline."""

    transfer: Token
    target: Token
    deadline: float
    estimate: float
    config_key: Token = ALL_CONFIGS


class ChainOverdue(Event, frozen=True):
    """A chain is older than its limit and has not ended; it goes on."""

    config_key: Token
    age_seconds: float
    waiting_for: str


class EventRejected(Event, frozen=True):
    """A message in the log could not be understood; the original stays where it is."""

    sequence: Count
    subject: str
    #: What is wrong, with the path of the field.
    reason: str


class EventSetAside(Event, frozen=True):
    """A chain that could not be decided, however often it was tried; it ends as failed."""

    #: Where its trigger stands in the log, and its wire name.
    sequence: Count
    trigger: str
    #: What went wrong the last time.
    reason: str
    tries: Count
    config_key: Token = ALL_CONFIGS


class LogRolledBack(Event, frozen=True):
    """The log lost its end: a backup was restored, or a disk lost what it had acknowledged."""

    node: Token
    #: How far this node's views were, and where the log ended when that was seen.
    views_at: Count
    log_at: Count
    reason: str


class LogShortened(Event, frozen=True):
    """The beginning of the log was removed from the bus; the archive holds it, proven just before.

    No open chain needed it.
    """

    #: The coordinator that did it.
    node: Token
    #: Where the log begins now.
    first_sequence: Count
    #: How many messages went.
    removed: Count
    #: Consumers of nodes that had not read all of it. Their chains have ended without them.
    passed_over: tuple[str, ...] = ()


class EventRetried(Event, frozen=True):
    """What was rejected or set aside was said anew, and opens a chain of its own."""

    #: Where the original stands in the log.
    sequence: Count
    #: The id under which it was said anew.
    event_id: str


EVENT_TYPES: dict[str, type[Event]] = {
    "SELFPLAY_COMPLETE": SelfplayComplete,
    "TRAINING_STARTED": TrainingStarted,
    "TRAINING_COMPLETED": TrainingCompleted,
    "MODEL_PROMOTED": ModelPromoted,
    "ORPHAN_GAMES_DETECTED": OrphanGamesDetected,
    "DATA_NEEDED": DataNeeded,
    "DATA_SYNC_REQUESTED": DataSyncRequested,
    "NODE_TERMINATING": NodeTerminating,
    "SWEEP_DUE": SweepDue,
    "TRAINING_EXPECTED": TrainingExpected,
    "DELETION_REQUESTED": DeletionRequested,
    "NODE_DRAIN_CANCELLED": NodeDrainCancelled,
    "HOST_ONLINE": HostOnline,
    "HOST_OFFLINE": HostOffline,
    "NODE_RECOVERED": NodeRecovered,
    "NODE_REGISTERED": NodeRegistered,
    "FILES_OBSERVED": FilesObserved,
    "FILES_REMOVED": FilesRemoved,
    "FILE_QUARANTINED": FileQuarantined,
    "FILE_CONFLICT": FileConflict,
    "GAMES_MERGED": GamesMerged,
    "DISK_TIER_CHANGED": DiskTierChanged,
    "NODE_STOPPED": NodeStopped,
    "SYNC_PLANNED": SyncPlanned,
    "TRANSFER_ASSIGNED": TransferAssigned,
    "TRANSFER_SUCCEEDED": TransferSucceeded,
    "TRANSFER_FAILED": TransferFailed,
    "DATA_SYNC_STARTED": DataSyncStarted,
    "DATA_SYNC_COMPLETED": DataSyncCompleted,
    "DATA_SYNC_FAILED": DataSyncFailed,
    "NEW_GAMES_AVAILABLE": NewGamesAvailable,
    "MODEL_DISTRIBUTION_COMPLETE": ModelDistributionComplete,
    "S3_BACKUP_COMPLETED": S3BackupCompleted,
    "NODE_DRAINED": NodeDrained,
    "DELETION_RESERVED": DeletionReserved,
    "DELETION_GRANTED": DeletionGranted,
    "DELETION_REFUSED": DeletionRefused,
    "DELETION_DONE": DeletionDone,
    "SELFPLAY_NEEDED": SelfplayNeeded,
    "REPLICATION_ALERT": ReplicationAlert,
    "DEADLINE_AT_RISK": DeadlineAtRisk,
    "CHAIN_OVERDUE": ChainOverdue,
    "EVENT_REJECTED": EventRejected,
    "EVENT_SET_ASIDE": EventSetAside,
    "EVENT_RETRIED": EventRetried,
    "LOG_ROLLED_BACK": LogRolledBack,
    "LOG_SHORTENED": LogShortened,
}
TYPE_NAMES: dict[type[Event], str] = {cls: name for name, cls in EVENT_TYPES.items()}

#: Triggers that speak of files of one node: its agent must answer before a plan is made.
FILE_TRIGGERS: dict[type[Event], str] = {
    SelfplayComplete: "source_node",
    TrainingCompleted: "node",
    ModelPromoted: "node",
    OrphanGamesDetected: "node",
    NodeTerminating: "node",
}
#: What a node may only say of itself: the field that must name the node it is said under.
OWN_WORDS: dict[type[Event], str] = {
    **FILE_TRIGGERS,
    NodeDrainCancelled: "node",
    FilesObserved: "node",
    FilesRemoved: "node",
    FileQuarantined: "node",
    GamesMerged: "node",
    LogRolledBack: "node",
    LogShortened: "node",
    DiskTierChanged: "node",
    NodeStopped: "node",
    TransferSucceeded: "node",
    TransferFailed: "node",
}
#: Decided about a node, and said under its name, so that one guard covers this and all that the
#: node says or is told; of which chain it is then stands beside it.
ABOUT_NODES: tuple[type[Event], ...] = (NodeDrained,)
#: Triggers that open a chain. HOST_* and NODE_RECOVERED only change what is known of a node.
CHAIN_TRIGGERS: tuple[type[Event], ...] = (
    *FILE_TRIGGERS,
    TrainingStarted,
    DataNeeded,
    DataSyncRequested,
    SweepDue,
    TrainingExpected,
)


def type_name(event: Event | type[Event]) -> str:
    """The wire name of an event, such as ``SELFPLAY_COMPLETE``."""
    return TYPE_NAMES[event if isinstance(event, type) else type(event)]


def config_key_of(event: Event) -> str:
    """The configuration an event speaks of; `ALL_CONFIGS` where it speaks of none or of many."""
    if isinstance(event, TransferAssigned | TransferSucceeded | TransferFailed):
        return event.entry.config_key
    if isinstance(event, FilesObserved):
        keys = {entry.config_key for entry in event.entries}
        return keys.pop() if len(keys) == 1 else ALL_CONFIGS
    return getattr(event, "config_key", ALL_CONFIGS)


def speaker_of(event: Event) -> str | None:
    """The node an event speaks of or for, where its payload says so."""
    if isinstance(event, NodeRegistered):
        return event.description.name
    if isinstance(event, DataSyncRequested | DeletionRequested):
        return event.requester or None
    name: str | None = getattr(event, "source_node", None) or getattr(event, "node", None)
    return name


def json_schemas() -> tuple[dict[str, Any], dict[str, Any]]:
    """JSON Schemas of all events by wire name, and the shared components they refer to."""
    classes = list(EVENT_TYPES.values())
    refs, components = msgspec.json.schema_components(
        classes, ref_template="#/components/schemas/{name}"
    )
    return dict(zip(EVENT_TYPES, refs, strict=True)), dict(components)
