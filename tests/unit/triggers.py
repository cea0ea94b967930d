"""Clusters, files and triggers that the specifications of the planner share."""

from __future__ import annotations

from typing import Any

from dataplane.policy import MEGABYTE
from streams import events
from streams.events import Event
from streams.values import DataType, Role, Trait
from tests.spec import entry, games_of, holds, node, player, trainer

TRAINERS = (trainer("train-1"), trainer("train-2"))
VAULT = node("vault", Role.STORAGE)
BOSS = node("boss", Role.COORDINATOR)
BOSS_WITH_DISK = node("boss", Role.COORDINATOR, traits=[Trait.EXTERNAL_STORAGE])
GPUS = (
    node("gpu-1", Role.SELFPLAY, traits=[Trait.GPU]),
    node("gpu-2", Role.SELFPLAY, traits=[Trait.GPU]),
)
GAMES = games_of("gpu-1")
GAMES_PATH = "games/gpu-1/hex8_2p.db"
CANDIDATE = entry(
    "models/train-1/candidate_hex8_2p.pth", data_type=DataType.MODELS, size_bytes=30 * MEGABYTE
)
CHECKPOINT = entry("checkpoints/train-1/last.pt", data_type=DataType.CHECKPOINT)
ELO = entry("metadata/elo_ratings.db", data_type=DataType.METADATA)


def started(name: str = "train-1", *data_types: DataType) -> Event:
    """A node begins to train."""
    return events.TrainingStarted(config_key="hex8_2p", node=name, data_types=data_types)


def expected(name: str = "train-1", *paths: str) -> Event:
    """A node will probably begin to train; it may lack these, or games and a training set."""
    return events.TrainingExpected(
        config_key="hex8_2p",
        node=name,
        expected_at=0.0,
        until=0.0,
        paths=paths or ("games/n1/hex8_2p.db", "npz/hex8_2p.npz"),
    )


def completed(model_path: str, checkpoint_path: str = "", name: str = "train-1") -> Event:
    """A training run ends."""
    return events.TrainingCompleted(
        config_key="hex8_2p", node=name, model_path=model_path, checkpoint_path=checkpoint_path
    )


def promoted(model_path: str = "models/canonical_hex8_2p.pth", name: str = "train-1") -> Event:
    """A model wins its promotion."""
    return events.ModelPromoted(config_key="hex8_2p", node=name, model_path=model_path)


def orphaned(*paths: str, name: str = "gpu-1") -> Event:
    """A node finds games that no chain took."""
    return events.OrphanGamesDetected(node=name, config_key="hex8_2p", orphan_count=7, paths=paths)


def needed(
    name: str = "train-1", data_type: DataType = DataType.GAMES, paths: tuple[str, ...] = ()
) -> Event:
    """A node asks for data."""
    return events.DataNeeded(node=name, config_key="hex8_2p", data_type=data_type, paths=paths)


def requested(*targets: str, data_type: DataType = DataType.GAMES, **more: Any) -> Event:
    """Somebody asks for data on named nodes."""
    return events.DataSyncRequested(
        data_type=data_type, config_key="hex8_2p", target_nodes=targets, **more
    )


def terminating(name: str = "gpu-1") -> Event:
    """A node is about to vanish."""
    return events.NodeTerminating(node=name)


def offline(name: str) -> Event:
    """A node can't be reached."""
    return events.HostOffline(node=name, reason="ping lost")


#: Two players with games of their own.
PLAYERS_WITH_GAMES = (
    *(player(name) for name in ("gpu-1", "gpu-2")),
    *(holds(name, games_of(name)) for name in ("gpu-1", "gpu-2")),
)
