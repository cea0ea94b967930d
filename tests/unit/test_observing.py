"""What an agent does by itself, besides saying what changed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.files import places
from adapters.files.inventory import Inventory
from adapters.files.places import OWN_DIRECTORY
from dataplane.agent.observing import Observer
from dataplane.config import DataPlaneConfig
from streams.memory import MemoryBus, MemoryLog
from tests.conftest import eventually


async def test_a_watching_agent_sweeps_up_what_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partial files and quarantine alike, or a disk would fill up with what nobody wants."""
    for limit in ("PARTIAL_MAX_AGE_S", "QUARANTINE_MAX_AGE_S"):
        monkeypatch.setattr(places, limit, -60.0)
    old = [tmp_path / OWN_DIRECTORY / name / "x.bin" for name in ("partial", "quarantine")]
    for file in old:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
    inventory = Inventory(tmp_path, "gpu-1", rescan_s=0.05)
    config = DataPlaneConfig(node="gpu-1", data_dir=tmp_path)
    observer = Observer(MemoryLog(), MemoryBus(), config, inventory)
    watching = asyncio.create_task(observer.watch())
    await eventually(lambda: not any(file.exists() for file in old))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await inventory.close()
