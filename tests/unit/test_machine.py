"""How much memory a machine has left, and when that is worth telling."""

from __future__ import annotations

from msgspec.structs import replace

from dataplane.agent.machine import memory_bytes, memory_moved
from streams.values import NodeDescription

TOLD = NodeDescription(
    name="gpu-1",
    memory_total_bytes=1_000,
    memory_free_bytes=500,
)


def test_memory_of_this_machine_is_known() -> None:
    """More in all than is free, and both are there."""
    total, free = memory_bytes()
    assert free is not None and 0 < free <= total


def test_small_changes_are_not_worth_a_fact_and_large_ones_are() -> None:
    """K6: planning sees memory that moved by a sixth, not every byte of it."""
    assert not memory_moved(TOLD, TOLD)
    assert not memory_moved(TOLD, replace(TOLD, memory_free_bytes=400))
    assert memory_moved(TOLD, replace(TOLD, memory_free_bytes=300))
    assert memory_moved(NodeDescription(name="gpu-1"), TOLD)
