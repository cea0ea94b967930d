"""Another machine in the place of one that was to go, with a real agent and a real bus."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.agent.machine import marks
from dataplane.agent.succession import REASON
from streams import events
from streams.codec import node_fact
from streams.values import NodeDescription, Role
from tests.integration.cluster import LocalCluster, until
from tests.spec import games_of


async def test_another_machine_under_the_name_of_one_that_went_stays(tmp_path: Path) -> None:
    """What the other held is said to be gone, then that the name stays, and then who joined."""
    if not all(marks()):
        pytest.skip("this machine has nothing that tells it from others")
    description = NodeDescription(name="gpu-7", roles=(Role.SELFPLAY,))
    before = (
        events.NodeRegistered(description, False, "another installation", "another boot"),
        events.FilesObserved(node="gpu-7", entries=(games_of("gpu-7"),)),
        events.NodeTerminating(node="gpu-7"),
    )
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        await cluster.joined("coord")
        for number, event in enumerate(before):
            await cluster.log.publish(node_fact(event, "gpu-7", f"before-{number}"))
        cluster.agent("gpu-7", Role.SELFPLAY)
        kinds = (events.FilesRemoved, events.NodeDrainCancelled, events.NodeRegistered)

        async def joined() -> bool:
            return len(await cluster.facts(events.NodeRegistered)) > 1

        await until(joined, "the other machine to join")
        said = [fact for fact in await cluster.facts(*kinds) if fact.id != "before-0"]
        assert [fact.type for fact in said] == [
            "FILES_REMOVED",
            "NODE_DRAIN_CANCELLED",
            "NODE_REGISTERED",
        ]
        removed, stays, joins = (fact.event for fact in said)
        assert isinstance(removed, events.FilesRemoved)
        assert removed.paths == (games_of("gpu-7").path,)
        assert stays == events.NodeDrainCancelled(node="gpu-7", reason=REASON)
        assert isinstance(joins, events.NodeRegistered)
        assert (joins.machine, joins.boot) == marks()
