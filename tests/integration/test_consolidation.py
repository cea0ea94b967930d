"""A storage node that merges what it receives, real processes: from self-play to one database."""

from __future__ import annotations

from pathlib import Path

from dataplane.demo import gamedb
from streams import events
from streams.codec import fact_id, node_fact
from streams.values import Role
from tests.integration.cluster import LocalCluster, until

INTO = "games/canonical_hex8_2p.db"


async def test_k20_games_that_arrive_are_merged_into_one_database_and_said(tmp_path: Path) -> None:
    """Two players' games reach the vault, which says what it merged and holds the result."""
    async with LocalCluster(tmp_path, policy__quality__complete_from_moves__hex8_2p=1) as cluster:
        cluster.coordinator()
        for name in ("gpu-1", "gpu-2"):
            cluster.agent(name, Role.SELFPLAY)
            cluster.play(name, 5)
        cluster.agent(
            "vault", Role.TRAINING, DATAPLANE_CONSOLIDATE_TO=INTO.replace("hex8_2p", "{config}")
        )
        await cluster.joined("coord", "gpu-1", "gpu-2", "vault")
        for name in ("gpu-1", "gpu-2"):
            played = events.SelfplayComplete(config_key="hex8_2p", source_node=name, games_count=5)
            await cluster.log.publish(node_fact(played, name, fact_id("played", name)))

        async def both_said() -> bool:
            said = [one.event for one in await cluster.facts(events.GamesMerged)]
            return {e.source for e in said if isinstance(e, events.GamesMerged)} == {
                "games/gpu-1/hex8_2p.db",
                "games/gpu-2/hex8_2p.db",
            }

        await until(both_said, "the games to be merged")
        assert gamedb.count_games(tmp_path / "vault/data" / INTO) == 10

        async def observed() -> bool:
            said = [one.event for one in await cluster.facts(events.FilesObserved)]
            return any(
                entry.path == INTO and entry.games == 10
                for event in said
                if isinstance(event, events.FilesObserved)
                for entry in event.entries
            )

        await until(observed, "the consolidated database to be known")
