"""The routing table: which trigger moves what, from where, to whom, how urgently.

To change where data goes, change it here; the planner only reads this table.
"""

from __future__ import annotations

import enum

from streams import events
from streams.values import DataType, Role, SyncPriority, Trait, Transport, Value


class From(enum.StrEnum):
    """Whose copy is the source."""

    #: The node the trigger speaks of, and only what it is the authority of.
    SPEAKER = "the node that says so"
    HOLDER = "the best holder"


class To(enum.StrEnum):
    """Who is to get it."""

    TRAINING = "training nodes"
    GPU = "GPU nodes"
    STORAGE = "coordinator and storage nodes"
    SPEAKER = "the node that asks"
    NAMED = "the nodes it names"


class Route(Value, frozen=True):
    """One row of the table."""

    data_types: tuple[DataType, ...]
    source: From
    target: To
    priority: SyncPriority
    reason: str
    #: Skips the slow starts of peer-to-peer: what is urgent goes by the direct ways.
    urgent: bool = False
    #: Whether the bucket gets it, too, where there is one.
    backup: bool = False


_ALL = tuple(DataType)
ROUTES: dict[type[events.Event], Route] = {
    events.SelfplayComplete: Route(
        data_types=(DataType.GAMES,),
        source=From.SPEAKER,
        target=To.TRAINING,
        priority=SyncPriority.NORMAL,
        reason="self-play games for the training nodes",
        backup=True,
    ),
    events.TrainingStarted: Route(
        data_types=(DataType.GAMES, DataType.NPZ),
        source=From.HOLDER,
        target=To.SPEAKER,
        priority=SyncPriority.HIGH,
        reason="a training run needs its data",
    ),
    events.TrainingCompleted: Route(
        data_types=(DataType.MODELS, DataType.CHECKPOINT),
        source=From.SPEAKER,
        target=To.STORAGE,
        priority=SyncPriority.HIGH,
        reason="candidate and checkpoint leave the trainer",
        backup=True,
    ),
    events.ModelPromoted: Route(
        data_types=(DataType.MODELS,),
        source=From.SPEAKER,
        target=To.GPU,
        priority=SyncPriority.HIGH,
        reason="a promoted model for every GPU node",
        backup=True,
    ),
    events.OrphanGamesDetected: Route(
        data_types=(DataType.GAMES,),
        source=From.SPEAKER,
        target=To.STORAGE,
        priority=SyncPriority.CRITICAL,
        reason="orphaned games to safety",
        urgent=True,
        backup=True,
    ),
    events.DataNeeded: Route(
        data_types=_ALL,
        source=From.HOLDER,
        target=To.SPEAKER,
        priority=SyncPriority.HIGH,
        reason="a node asked for data",
    ),
    events.DataSyncRequested: Route(
        data_types=_ALL,
        source=From.HOLDER,
        target=To.NAMED,
        priority=SyncPriority.NORMAL,
        reason="a sync was requested",
    ),
    events.NodeTerminating: Route(
        data_types=_ALL,
        source=From.SPEAKER,
        target=To.STORAGE,
        priority=SyncPriority.CRITICAL,
        reason="a node is about to vanish",
        urgent=True,
        backup=True,
    ),
}

#: Which nodes a kind of target means, by role or trait.
TARGET_ROLES: dict[To, tuple[Role, ...]] = {
    To.TRAINING: (Role.TRAINING,),
    To.STORAGE: (Role.COORDINATOR, Role.STORAGE),
}
TARGET_TRAITS: dict[To, Trait] = {To.GPU: Trait.GPU}

#: Where data belongs for good, without a trigger: what ``dataplane missing`` looks for.
BELONGS: dict[To, tuple[DataType, ...]] = {
    To.TRAINING: (DataType.GAMES, DataType.NPZ),
    To.GPU: (DataType.MODELS,),
}

TRANSPORT_CHAINS: dict[str, tuple[Transport, ...]] = {
    "small_file": (Transport.P2P_GOSSIP, Transport.HTTP_FETCH, Transport.BASE64_SSH),
    "large_file": (Transport.RSYNC, Transport.HTTP_FETCH, Transport.BASE64_SSH),
    "s3_backup": (Transport.S3, Transport.RSYNC),
    "ephemeral_urgent": (Transport.RSYNC, Transport.BASE64_SSH, Transport.HTTP_FETCH),
}
