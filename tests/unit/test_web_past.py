"""Moments of the past on the page: each folded once, few of them kept, and nothing left behind."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest

from dataplane.config import DataPlaneConfig
from dataplane.queries import AskNodes
from dataplane.web import past as past_module
from dataplane.web.past import NotHeld, Past
from streams.codec import Recorded
from streams.memory import MemoryLog
from tests.spec import as_fact, player


class Counting(MemoryLog):
    """Counts how often it is read to be folded."""

    def __init__(self) -> None:
        super().__init__(lambda: 1_000.0)
        self.readings = 0

    def read(
        self, *, after: int = 0, until: int | None = None, subjects: Sequence[str] = ()
    ) -> AsyncGenerator[list[Recorded], None]:
        """As any log."""
        self.readings += 1
        return super().read(after=after, until=until, subjects=subjects)


async def joined(count: int) -> Counting:
    """A log in which so many nodes join, one by one."""
    log = Counting()
    for number in range(1, count + 1):
        await log.publish(as_fact(player(f"gpu-{number}"), number))
    return log


async def nodes_at(past: Past, sequence: int) -> int:
    """How many there were."""
    async with past.known(sequence) as then:
        return len(await then.answer("nodes", AskNodes()))


def left(config: DataPlaneConfig) -> int:
    """Directories of moments."""
    return len(list((config.state_dir / "past").glob("*")))


@pytest.fixture
def config(tmp_path: Path) -> DataPlaneConfig:
    """Of a coordinator."""
    return DataPlaneConfig(state_dir=tmp_path)


async def test_a_moment_is_folded_once_however_many_pages_of_it_are_asked_for(
    config: DataPlaneConfig,
) -> None:
    """Also by who comes back to it from another one."""
    log = await joined(3)
    past = Past(log, config)
    asked = [await nodes_at(past, at) for at in (2, 2, 1, 2)]
    assert (asked, log.readings) == ([2, 2, 1, 2], 2)
    assert (await past.glance(2)).totals.nodes == 2
    assert log.readings == 2
    with pytest.raises(NotHeld):
        await nodes_at(past, 9)
    await past.close()


async def test_few_moments_are_kept_and_none_in_the_end(config: DataPlaneConfig) -> None:
    """The one that was not looked at for longest goes first; what a killed process left, too."""
    (config.state_dir / "past" / "dataplane-past-left").mkdir(parents=True)
    count = past_module.MOMENTS_KEPT + 2
    log = await joined(count)
    past = Past(log, config)
    assert left(config) == 0
    for at in range(1, count + 1):
        assert await nodes_at(past, at) == at
        assert await nodes_at(past, 1) == 1
        assert left(config) == min(at, past_module.MOMENTS_KEPT)
    assert log.readings == count
    await past.close()
    assert not (config.state_dir / "past").exists()


async def test_moments_take_no_more_of_the_disk_than_they_may(
    config: DataPlaneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that alone is too large is shown all the same, and not kept."""
    monkeypatch.setattr(past_module, "MOMENTS_KEPT_BYTES", 1)
    past = Past(await joined(2), config)
    assert [await nodes_at(past, at) for at in (1, 2, 1)] == [1, 2, 1]
    assert left(config) == 0
    await past.close()
