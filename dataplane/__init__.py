"""What should happen: decisions, and the daemon that carries them out.

Everything a user needs can be imported from here. Decisions are pure functions of views, policy
and time; around them stands a thin shell of loops that can be killed anywhere. Read in this order:
the pure middle (`policy`, `routes`, `planner`, `chain`, `admission`, `liveness`), then the shell
(`bridge`, `dispatch`, `coordinator`, `transports`, `transfers`, `proving`, `agent`, `daemon`), then
what users touch (`config`, `api`, `blocking`, `catalog`, `rows`, `queries`, `replay`, `health`,
`cli`, `web`).
"""

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
from dataplane.planner import CommandRejected, SyncPlanner
from dataplane.transfers import TransportManager
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
    Event,
    EventRejected,
    FileConflict,
    FileQuarantined,
    FilesObserved,
    FilesRemoved,
    HostOffline,
    HostOnline,
    ModelDistributionComplete,
    ModelPromoted,
    NewGamesAvailable,
    NodeDrained,
    NodeRecovered,
    NodeRegistered,
    NodeTerminating,
    OrphanGamesDetected,
    ReplicationAlert,
    S3BackupCompleted,
    SelfplayComplete,
    SelfplayNeeded,
    SyncPlanned,
    TrainingCompleted,
    TrainingStarted,
    TransferAssigned,
    TransferFailed,
    TransferSucceeded,
)
from streams.log import LogUnavailable, PermissionDenied
from streams.values import (
    DataEntry,
    DataType,
    Role,
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
    "Event",
    "EventRejected",
    "FileConflict",
    "FileQuarantined",
    "FilesObserved",
    "FilesRemoved",
    "HealthCheckResult",
    "HostOffline",
    "HostOnline",
    "LogUnavailable",
    "ModelDistributionComplete",
    "ModelPromoted",
    "NewGamesAvailable",
    "NodeDrained",
    "NodeRecovered",
    "NodeRegistered",
    "NodeTerminating",
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
    "SyncHandle",
    "SyncPlan",
    "SyncPlanned",
    "SyncPlanner",
    "SyncPriority",
    "SyncResult",
    "TrainingCompleted",
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
