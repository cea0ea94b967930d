"""What should happen: decisions, and the daemon that carries them out.

Everything a user needs can be imported from here. Decisions are pure functions of views, policy
and time; around them stands a thin shell of loops that can be killed anywhere.

Read in this order. The pure middle: `policy` (what decisions obey), `planner` (what goes where),
`chain` with `duties` (what is still owed), `admission` with `ordering`, `slots` and `budget` (what
starts now), `execution` (who does it, by which way), `sweeps`, `prestaging`, `deletion`,
`liveness`. The shell: `coordinator` and `agent`, each a chapter of its own, `proving` and
`presence` between them, `daemon` around them. What users touch: `config`, `api`, `blocking`,
`following`, `outbox`, `turns`, `catalog`, `cli`. What tells them: `queries` with `rows`,
`questions`, `browsing` and `words`, `typos`, `explain` with `evidence`, `waiting`, `health`,
`overview`, `motion`, `metrics`, `tracing`, `web`. What looks back or keeps order: `audit`,
`draining`, `retry`, `restoring`, `keys`. What is promised is `laws`; `prove` and `demo` hold it to
them.
"""

# What checks types takes it for true; to import the name would load a dozen modules.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataplane.agent.transfers import TransportManager
    from dataplane.api import (
        DataPlane,
        Published,
        Received,
        SyncHandle,
        SyncResult,
        get_data_plane,
        request_sync,
    )
    from dataplane.catalog import Catalog
    from dataplane.config import ConfigError, DataPlaneConfig
    from dataplane.daemon import Part, UnifiedDataPlaneDaemon
    from dataplane.health import HealthCheckResult
    from dataplane.outbox import NotKept
    from dataplane.planner import CommandRejected, SyncPlanner
    from projections.catalog import DataCatalog
    from projections.store import StoreMissing
    from streams.events import (
        ChainOverdue,
        DataNeeded,
        DataSyncCompleted,
        DataSyncFailed,
        DataSyncRequested,
        DataSyncStarted,
        DeadlineAtRisk,
        DeletionDone,
        DeletionGranted,
        DeletionRefused,
        DeletionRequested,
        DeletionReserved,
        DiskTierChanged,
        Event,
        EventRejected,
        EventRetried,
        EventSetAside,
        FileConflict,
        FileQuarantined,
        FilesObserved,
        FilesRemoved,
        GamesMerged,
        HostOffline,
        HostOnline,
        LogRolledBack,
        LogShortened,
        ModelDistributionComplete,
        ModelPromoted,
        NewGamesAvailable,
        NodeDrainCancelled,
        NodeDrained,
        NodeRecovered,
        NodeRegistered,
        NodeStopped,
        NodeTerminating,
        OrphanGamesDetected,
        ReplicationAlert,
        S3BackupCompleted,
        SelfplayComplete,
        SelfplayNeeded,
        SweepDue,
        SyncPlanned,
        TrainingCompleted,
        TrainingExpected,
        TrainingStarted,
        TransferAssigned,
        TransferFailed,
        TransferSucceeded,
    )
    from streams.log import LogUnavailable, PermissionDenied
    from streams.values import (
        DataEntry,
        DataType,
        DiskTier,
        Role,
        SweepKind,
        SyncPlan,
        SyncPriority,
        Trait,
        Transport,
        TransportResult,
    )

__all__ = [
    "Catalog",
    "ChainOverdue",
    "CommandRejected",
    "ConfigError",
    "DataCatalog",
    "DataEntry",
    "DataNeeded",
    "DataPlane",
    "DataPlaneConfig",
    "DataSyncCompleted",
    "DataSyncFailed",
    "DataSyncRequested",
    "DataSyncStarted",
    "DataType",
    "DeadlineAtRisk",
    "DeletionDone",
    "DeletionGranted",
    "DeletionRefused",
    "DeletionRequested",
    "DeletionReserved",
    "DiskTier",
    "DiskTierChanged",
    "Event",
    "EventRejected",
    "EventRetried",
    "EventSetAside",
    "FileConflict",
    "FileQuarantined",
    "FilesObserved",
    "FilesRemoved",
    "GamesMerged",
    "HealthCheckResult",
    "HostOffline",
    "HostOnline",
    "LogRolledBack",
    "LogShortened",
    "LogUnavailable",
    "ModelDistributionComplete",
    "ModelPromoted",
    "NewGamesAvailable",
    "NodeDrainCancelled",
    "NodeDrained",
    "NodeRecovered",
    "NodeRegistered",
    "NodeStopped",
    "NodeTerminating",
    "NotKept",
    "OrphanGamesDetected",
    "Part",
    "PermissionDenied",
    "Published",
    "Received",
    "ReplicationAlert",
    "Role",
    "S3BackupCompleted",
    "SelfplayComplete",
    "SelfplayNeeded",
    "StoreMissing",
    "SweepDue",
    "SweepKind",
    "SyncHandle",
    "SyncPlan",
    "SyncPlanned",
    "SyncPlanner",
    "SyncPriority",
    "SyncResult",
    "TrainingCompleted",
    "TrainingExpected",
    "TrainingStarted",
    "Trait",
    "TransferAssigned",
    "TransferFailed",
    "TransferSucceeded",
    "Transport",
    "TransportManager",
    "TransportResult",
    "UnifiedDataPlaneDaemon",
    "get_data_plane",
    "request_sync",
]


#: Each name is loaded when it is first asked for: who only publishes needs no transports and no
#: daemon, and a command can see to it that Ctrl-C ends it before it has loaded anything.
_PLACES: dict[str, str] = {
    **dict.fromkeys(
        (
            "DataPlane",
            "Published",
            "Received",
            "SyncHandle",
            "SyncResult",
            "get_data_plane",
            "request_sync",
        ),
        "dataplane.api",
    ),
    "Catalog": "dataplane.catalog",
    "CommandRejected": "dataplane.planner",
    "ConfigError": "dataplane.config",
    "DataCatalog": "projections.catalog",
    "DataPlaneConfig": "dataplane.config",
    "HealthCheckResult": "dataplane.health",
    "LogUnavailable": "streams.log",
    "NotKept": "dataplane.outbox",
    "Part": "dataplane.daemon",
    "PermissionDenied": "streams.log",
    "StoreMissing": "projections.store",
    "SyncPlanner": "dataplane.planner",
    "TransportManager": "dataplane.agent.transfers",
    "UnifiedDataPlaneDaemon": "dataplane.daemon",
    **dict.fromkeys(
        (
            "DataEntry",
            "DataType",
            "DiskTier",
            "Role",
            "SweepKind",
            "SyncPlan",
            "SyncPriority",
            "Trait",
            "Transport",
            "TransportResult",
        ),
        "streams.values",
    ),
}
_EVENTS = "streams.events"


def __getattr__(name: str) -> object:
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_PLACES.get(name, _EVENTS)), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
