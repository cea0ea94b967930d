"""A node whose disk is not there, is full or can't be written: it says nothing of that which is not
so, and gives away what it can.
"""

from __future__ import annotations

import contextlib
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


@pytest.mark.parametrize("directory", ["data", "state"])
async def test_p18_an_agent_begins_on_a_full_disk(
    tmp_path: Path, disk: DisksOf, directory: str
) -> None:
    """Also for the first time: what it would keep there is a help, and no need."""
    (tmp_path / "gpu-1/data/models").mkdir(parents=True)
    (tmp_path / "gpu-1" / directory).mkdir(exist_ok=True)
    disk(tmp_path / "gpu-1" / directory)
    put_model(tmp_path / "gpu-1/data/models")
    filler = tmp_path / "gpu-1" / directory / "filler.tmp"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1))
    async with LocalCluster(tmp_path, manifest_refresh_interval=1) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-1", Role.SELFPLAY)
        await model_told(cluster)


async def test_p18_an_agent_begins_on_a_disk_that_can_not_be_written(
    tmp_path: Path, disk: DisksOf
) -> None:
    """As one becomes that fails: just then what is on it must leave."""
    data = tmp_path / "gpu-1/data"
    disk(data)
    async with LocalCluster(tmp_path, manifest_refresh_interval=1) as cluster:
        cluster.coordinator()
        cluster.agent("gpu-1", Role.SELFPLAY)
        await cluster.joined("coord", "gpu-1")
        assert cluster.stop("gpu-1") == 0
        put_model(data / "models")
        make_read_only(data)
        cluster.agent("gpu-1", Role.SELFPLAY)
        await model_told(cluster)


def make_read_only(place: Path) -> None:
    """Let nobody write there any more."""
    subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)


def put_model(directory: Path) -> None:
    """A file that can be read where it is."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "canonical_hex8_2p.pth").write_bytes(b"\x80model")


async def model_told(cluster: LocalCluster) -> None:
    """Wait until the node has said what is there."""

    async def told() -> bool:
        facts = await cluster.facts(events.FilesObserved)
        found = [f.event.entries for f in facts if isinstance(f.event, events.FilesObserved)]
        return any(e.path == "models/canonical_hex8_2p.pth" for entries in found for e in entries)

    await until(told, f"the model to be told of: {cluster.said('gpu-1')}")
