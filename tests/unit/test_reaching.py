"""What a node finds out of its own addresses by letting others try them."""

from __future__ import annotations

import pytest

from dataplane.agent import reaching
from dataplane.agent.reaching import ASKED, Reached, Reaching
from streams.log import Bus
from streams.memory import MemoryBus

WEB, SSH = "http://10.0.0.7:8770", "ssh://10.0.0.7:22"


class Others:
    """Agents that are there, and what each of them says of an address; None is no answer."""

    def __init__(self, **says: bool | None) -> None:
        self.says = says
        self.asked: list[tuple[str, str]] = []

    async def present(self, bus: Bus) -> dict[str, dict[str, object]]:
        """All of them, the node itself, and somebody who is no agent."""
        return {f"agent.{name}": {} for name in (*self.says, "me")} | {"coordinator.c": {}}

    async def try_address(self, bus: Bus, node: str, url: str) -> bool | None:
        """What it was made to say."""
        self.asked.append((node, url))
        return self.says[node]


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Others:
    """Two that reach everything."""
    others = Others(a=True, b=True)
    monkeypatch.setattr(reaching, "present", others.present)
    monkeypatch.setattr(reaching, "try_address", others.try_address)
    return others


async def test_address_that_everybody_reaches_is_no_news(others: Others) -> None:
    """It is what everybody takes for granted; each address is tried, by each of the others."""
    found = Reaching(MemoryBus(), "me")
    assert not await found.look([WEB, SSH])
    assert found.of(WEB) == found.of(SSH) == Reached(True)
    assert sorted(others.asked) == [("a", WEB), ("a", SSH), ("b", WEB), ("b", SSH)]
    assert found.settled


async def test_address_that_nobody_reaches_is_said_at_once(others: Others) -> None:
    """Also that somebody does again."""
    found = Reaching(MemoryBus(), "me")
    others.says.update(a=False, b=False)
    assert await found.look([WEB])
    assert found.of(WEB) == Reached(False)
    assert not await found.look([WEB])
    others.says.update(a=True)
    assert await found.look([WEB])
    assert found.of(WEB).answers


async def test_who_alone_can_not_reach_it_is_named_once_he_failed_twice(others: Others) -> None:
    """One that was busy for a moment did not mean it; one that gets through again is believed."""
    found = Reaching(MemoryBus(), "me")
    others.says.update(b=False)
    assert not await found.look([WEB])
    assert found.of(WEB) == Reached(True) and not found.settled
    assert await found.look([WEB])
    assert found.of(WEB) == Reached(True, ("b",)) and found.settled
    others.says.update(b=True)
    assert await found.look([WEB])
    assert found.of(WEB) == Reached(True)


async def test_who_can_not_be_asked_changes_nothing(others: Others) -> None:
    """Nobody is there: what was known stays, and it is tried again soon."""
    found = Reaching(MemoryBus(), "me")
    others.says.update(a=False, b=False)
    await found.look([WEB])
    others.says.update(a=None, b=None)
    assert not await found.look([WEB])
    assert found.of(WEB) == Reached(False) and not found.settled


async def test_in_a_large_cluster_the_same_few_are_asked_each_time(others: Others) -> None:
    """Who is named would change with each look otherwise."""
    others.says.update({f"gpu-{number}": True for number in range(3 * ASKED)})
    found = Reaching(MemoryBus(), "me")
    await found.look([WEB])
    first = set(others.asked)
    others.asked.clear()
    await found.look([WEB])
    assert set(others.asked) == first and len(first) == ASKED
