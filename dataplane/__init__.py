"""What should happen: decisions, and the daemon that carries them out.

Everything a user needs can be imported from here. Decisions are pure functions of views, policy
and time; around them stands a thin shell of loops that can be killed anywhere.

Read in this order. The pure middle: `policy` (what decisions obey), `planner` (what goes where),
`chain` with `duties` (what is still owed), `admission` with `ordering`, `slots` and `budget` (what
starts now), `execution` (who does it, by which way), `sweeps`, `prestaging`, `deletion`,
`liveness`. The shell: `coordinator` and `agent`, each a chapter of its own, `proving` and
`presence` between them, `daemon` around them. What users touch: `config`, `api`, `blocking`,
`following`, `outbox`, `catalog`, `cli`. What tells them: `queries` with `rows`, `words`, `typos`,
`explain` with `evidence`, `waiting`, `health`, `overview`, `motion`, `metrics`, `tracing`, `web`.
What looks back or keeps order: `audit`, `draining`, `retry`, `restoring`, `keys`. What is promised
is `laws`; `prove` and `demo` hold it to them.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from dataplane.agent.transfers import TransportManager
    from dataplane.daemon import Part, UnifiedDataPlaneDaemon

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


#: Loaded when first named: a script that only publishes needs no transports and no daemon.
_HEAVY = {
    "Part": "dataplane.daemon",
    "TransportManager": "dataplane.agent.transfers",
    "UnifiedDataPlaneDaemon": "dataplane.daemon",
}


def __getattr__(name: str) -> Any:
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HEAVY[name]), name)
