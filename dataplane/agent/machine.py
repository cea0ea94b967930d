"""How much memory this machine has left, and whether that has changed enough to be told."""

from __future__ import annotations

from pathlib import Path

from streams.values import NodeDescription

_MEMINFO = Path("/proc/meminfo")
#: A change of the free memory by this share of it all is worth a fact.
WORTH_SAYING = 0.15


def memory_bytes() -> tuple[int, int | None]:
    """Memory in all, and what programs could still get; (0, None) where the machine can't tell."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return 0, None
    found = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    try:
        return int(found["MemTotal"][0]) * 1024, int(found["MemAvailable"][0]) * 1024
    except (KeyError, IndexError, ValueError):
        return 0, None


def memory_moved(told: NodeDescription, now: NodeDescription) -> bool:
    """Whether the free memory that a node told is too old to plan by (K6)."""
    moved = abs((now.memory_free_bytes or 0) - (told.memory_free_bytes or 0))
    return moved > WORTH_SAYING * now.memory_total_bytes
