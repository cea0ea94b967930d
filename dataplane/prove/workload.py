"""What the cluster is given to do besides self-play: promotions, orphans, deletions, nodes that
vanish.

Every id is kept that the log has acknowledged: none of them may be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import zipfile
from functools import partial
from pathlib import Path

from dataplane.demo import gamedb, hex
from dataplane.prove.cluster import CONFIG_KEYS, ProveCluster
from dataplane.prove.scene import Scene, Watcher
from streams import events
from streams.codec import chain_of_trigger, fact_id, node_fact
from streams.events import Event
from streams.log import Log, LogError
from streams.values import DataType

_GAP_S = 1.5
#: From one start of a training to the next: a few times what `prestage_s` is set to.
_RHYTHM_S = 10.0
#: How long to wait for NODE_DRAINED after a chain that emptied a node has ended.
_DRAIN_S = 15.0
_MODEL_BYTES = 150_000


class Workload:
    """Says triggers on behalf of the nodes, after having written what they speak of."""

    def __init__(self, cluster: ProveCluster, watcher: Watcher, log: Log, seed: int) -> None:
        self._cluster = cluster
        self._watcher = watcher
        self._scene = watcher.scene
        self._log = log
        self._rng = random.Random(f"workload {seed}")
        self._number = 0
        self._copies: list[tuple[str, str]] = []
        #: Ids that the log has acknowledged.
        self.acknowledged: list[str] = []

    async def run(self) -> None:
        """Say one trigger after the other, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._at_random())
            group.create_task(self._in_rhythm())
            group.create_task(self._on_spot())

    async def _in_rhythm(self) -> None:
        """One trainer trains so steadily that data is brought ahead of it."""
        node, config_key = self._cluster.trainers[0], CONFIG_KEYS[0]
        for number in itertools.count():
            await asyncio.sleep(_RHYTHM_S)
            event = events.TrainingStarted(config_key=config_key, node=node)
            await self._say(node, event, fact_id("workload in rhythm", number))

    async def _on_spot(self) -> None:
        """Rented nodes come, find games, are drained, and are wiped as soon as that is said."""
        for number in itertools.count(1):
            name = f"spot-{number}"
            await self._cluster.join_spot(name)
            await self._watcher.until(partial(_has_joined, name), math.inf)
            path = f"games/found_{CONFIG_KEYS[0]}.db"
            file = self._cluster.layout.data(name) / path
            await asyncio.to_thread(_write_games, file, CONFIG_KEYS[0], name, number)
            found = events.OrphanGamesDetected(
                node=name, config_key=CONFIG_KEYS[0], orphan_count=3, paths=(path,)
            )
            await self._say(name, found, fact_id("workload found", name))
            await self._drain(name)
            await self._cluster.wipe(name)

    async def _drain(self, name: str) -> None:
        """Say that a node is to go until NODE_DRAINED is said of it."""

        def is_drained(scene: Scene) -> bool:
            return name in scene.drained

        for attempt in itertools.count(1):
            id = fact_id("workload rent", name, attempt)
            await self._say(name, events.NodeTerminating(node=name, reason="rented no longer"), id)
            chain = chain_of_trigger(id)
            # Its chain may fail under fire. While it is open, nothing is gained by saying it again.
            while not (drained := await self._watcher.until(is_drained, _DRAIN_S)):
                if chain not in self._scene.open:
                    break
            if drained:
                return

    async def _at_random(self) -> None:
        makers = (
            self._promote,
            self._orphan,
            self._complete,
            self._delete,
            self._terminate,
            self._train,
            self._delete,
            self._need,
        )
        while True:
            await asyncio.sleep(_GAP_S * self._rng.uniform(0.5, 1.5))
            self._number += 1
            maker = makers[self._number % len(makers)]
            # Read here: another thread must not read what the log changes meanwhile.
            self._copies = sorted(c for c in self._scene.copies if c[0] in self._cluster.roles)
            node, event = await asyncio.to_thread(maker)
            await self._say(node, event, fact_id("workload", self._number))

    async def _say(self, node: str, event: Event, id: str) -> None:
        # Whether the log has what it did not acknowledge is open: it is asked nothing of it.
        with contextlib.suppress(LogError):
            await self._log.publish(node_fact(event, node, id))
            self.acknowledged.append(id)

    def _config(self) -> str:
        return self._rng.choice(CONFIG_KEYS)

    def _promote(self) -> tuple[str, Event]:
        """A trainer writes a model, and it wins."""
        node, config_key = self._rng.choice(self._cluster.trainers), self._config()
        path = f"models/canonical_{config_key}.pth"
        self._write_model(node, path)
        return node, events.ModelPromoted(config_key=config_key, node=node, model_path=path)

    def _complete(self) -> tuple[str, Event]:
        """A trainer has made a candidate, which is its own and must leave it."""
        node, config_key = self._rng.choice(self._cluster.trainers), self._config()
        path = f"models/candidate_{self._number}_{config_key}.pth"
        self._write_model(node, path)
        return node, events.TrainingCompleted(config_key=config_key, node=node, model_path=path)

    def _write_model(self, node: str, path: str) -> None:
        file = self._cluster.layout.data(node) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # the disk may be full: then it stays as it was
            fresh = file.with_name(f".{file.name}.new")
            with zipfile.ZipFile(fresh, "w") as archive:
                archive.writestr("data.pkl", self._rng.randbytes(_MODEL_BYTES))
            fresh.replace(file)

    def _orphan(self) -> tuple[str, Event]:
        """Games lie on a node that no chain ever took."""
        node, config_key = self._rng.choice(self._cluster.players), self._config()
        path = f"games/orphans_{self._number}_{config_key}.db"
        _write_games(self._cluster.layout.data(node) / path, config_key, node, self._number)
        return node, events.OrphanGamesDetected(
            node=node, config_key=config_key, orphan_count=3, paths=(path,)
        )

    def _terminate(self) -> tuple[str, Event]:
        """A node says that it is about to vanish; everything only it holds must leave."""
        node = self._rng.choice(self._cluster.players)
        return node, events.NodeTerminating(node=node, reason="said to prove what follows")

    def _delete(self) -> tuple[str, Event]:
        """Somebody wants room: whether a copy goes is for the rules to say."""
        if not self._copies:
            return self._train()
        node, path = self._rng.choice(self._copies)
        return node, events.DeletionRequested(
            path=path, node=node, reason="said to prove what follows", requester=node
        )

    def _train(self) -> tuple[str, Event]:
        """Anybody but who trains in a rhythm."""
        node = self._rng.choice(self._cluster.trainers[1:])
        return node, events.TrainingStarted(config_key=self._config(), node=node)

    def _need(self) -> tuple[str, Event]:
        node = self._rng.choice(self._cluster.trainers)
        kind = self._rng.choice((DataType.GAMES, DataType.MODELS))
        return node, events.DataNeeded(node=node, config_key=self._config(), data_type=kind)


def _has_joined(name: str, scene: Scene) -> bool:
    return name in scene.registered


def _write_games(file: Path, config_key: str, node: str, number: int) -> None:
    rng = random.Random(f"{node} {number}")
    with contextlib.closing(gamedb.open_database(file)) as db:
        for index in range(3):
            record = hex.play(hex.board_of(config_key), rng)
            game = gamedb.StoredGame(f"orphan-{number}-{index}", record, node, 0.0)
            gamedb.append_games(db, [game])
