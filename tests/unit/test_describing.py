"""What an agent says of its node, from its configuration."""

from __future__ import annotations

from pathlib import Path

from dataplane.agent.agent import Agent
from dataplane.config import DataPlaneConfig
from streams.memory import MemoryBus, MemoryLog


def test_k14_a_node_says_the_limit_of_its_own(tmp_path: Path) -> None:
    """Who hands out rates knows it from there alone."""
    values = {"data_dir": str(tmp_path), "state_dir": str(tmp_path), "bandwidth_limit_mbps": 16}
    config = DataPlaneConfig.from_values({"node": "gpu-7", **values})
    assert Agent(MemoryLog(), MemoryBus(), config).describe().bandwidth_limit_mbps == 16
