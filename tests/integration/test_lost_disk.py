"""A node whose disk is not there: nothing on it is taken for lost, and nothing is put elsewhere."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streams import events
from streams.values import Role
from tests.integration.cluster import LocalCluster, until

DisksOf = Callable[[Path], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DisksOf]:
    """Mounts a disk, always the same one, in a directory."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    own, places = tmp_path / "disk", set[Path]()
    own.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(own)], check=True)

    def mount(place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(own), str(place)], check=True)
        places.add(place)

    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["umount", "--lazy", str(own)], check=True)


def unmount(place: Path) -> None:
    """Take a disk away, whoever is at it."""
    subprocess.run(["umount", "--lazy", str(place)], check=True)


async def test_an_agent_does_not_begin_before_its_disk_is_there(
    tmp_path: Path, disk: DisksOf
) -> None:
    """All it held would seem to be lost. With the disk all is as it was, and nothing is said."""
    async with LocalCluster(tmp_path, manifest_refresh_interval=1) as cluster:
        data = tmp_path / "gpu-1/data"
        disk(data)
        cluster.play("gpu-1", 3)
        cluster.coordinator()
        cluster.agent("gpu-1", Role.SELFPLAY)
        await cluster.joined("coord", "gpu-1")

        async def observed() -> bool:
            return any(fact.event.entries for fact in await cluster.facts(events.FilesObserved))

        await until(observed, "the games to be told")
        assert cluster.stop("gpu-1") == 0
        unmount(data)
        assert cluster.agent("gpu-1", Role.SELFPLAY).wait(60) == 3
        assert "is it mounted?" in cluster.said("gpu-1")
        assert list(data.iterdir()) == []
        disk(data)
        cluster.agent("gpu-1", Role.SELFPLAY)
        await cluster.joined("gpu-1")
        assert not await cluster.facts(events.FilesRemoved)
