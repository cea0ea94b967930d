"""That a node stays is said one at a time with what is decided about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dataplane import laws
from dataplane.api import DataPlane
from dataplane.config import DataPlaneConfig
from dataplane.outbox import Outbox
from dataplane.turns import said
from streams import events
from streams.codec import Fact, Recorded, fact_about, node_fact
from streams.log import Guard, Receipt
from streams.memory import MemoryLog
from streams.subjects import about_filter
from tests.spec import as_fact, played

GOES = events.NodeTerminating(node="gpu-1")
STAYS = events.NodeDrainCancelled(node="gpu-1")
DRAINED = events.NodeDrained(node="gpu-1")


class Busy(MemoryLog):
    """A log into which something else comes just before something guarded, once."""

    def __init__(self, *meanwhile: Fact) -> None:
        super().__init__(lambda: 1_000.0)
        self.meanwhile = list(meanwhile)
        self.guards: list[Guard] = []

    async def append(self, facts: Sequence[Fact], guards: Sequence[Guard] = ()) -> Receipt:
        """As any log."""
        if self.meanwhile:
            await super().append([self.meanwhile.pop()])
        receipt = await super().append(facts, guards)
        self.guards += guards
        return receipt

    async def facts(self) -> list[Recorded]:
        """All of it."""
        end = (await self.state()).last_sequence
        return [fact async for batch in self.read(until=end) for fact in batch]


def stays(id: str = "stays") -> Fact:
    """It is said that gpu-1 stays."""
    return node_fact(STAYS, "gpu-1", id)


async def test_of_two_that_speak_of_a_node_at_once_the_later_sees_the_other() -> None:
    """It is drained, and then it stays; never the other way round."""
    log = Busy(fact_about(DRAINED, "gpu-1", "c1", "c1"))
    await log.publish(as_fact(GOES, 1))
    receipt = await said(log, stays())
    facts = await log.facts()
    assert [fact.type for fact in facts] == [
        "NODE_TERMINATING",
        "NODE_DRAINED",
        "NODE_DRAIN_CANCELLED",
    ]
    assert (facts[1].chain, facts[1].subject) == ("c1", "dp.chain.gpu-1.NODE_DRAINED.all")
    assert list(laws.no_node_that_stays_is_drained(facts)) == []
    assert log.guards == [Guard(about_filter("gpu-1"), 2)]
    # Said once more by its id, it is there already.
    assert await said(log, stays()) == Receipt(receipt.sequence, duplicate=True)


async def test_what_no_decision_must_pass_by_needs_no_turn() -> None:
    """It costs what it always did."""
    log = Busy()
    await said(log, as_fact(played("gpu-1"), 1))
    assert log.guards == []


@pytest.mark.parametrize("way", ["api", "outbox"])
async def test_whoever_says_it_says_it_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A program, and what waited in the outbox for the bus."""
    log = Busy()
    if way == "api":
        plane = DataPlane(DataPlaneConfig(state_dir=tmp_path, node="gpu-1"))

        async def known() -> MemoryLog:
            return log

        monkeypatch.setattr(plane, "log", known)
        await plane.publish(STAYS, id="stays")
    else:
        outbox = Outbox(tmp_path)
        outbox.put(stays())
        assert await outbox.drain(log) == 1
    assert log.guards == [Guard(about_filter("gpu-1"), 0)]
