"""What this machine is and has: its marks, and how much memory is left, told when that changes."""

from __future__ import annotations

from pathlib import Path

from streams.codec import fact_id
from streams.values import NodeDescription

_MEMINFO = Path("/proc/meminfo")
_INSTALLATION, _BOOT = Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id")
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


def marks() -> tuple[str, str]:
    """What tells this machine from others by its installation, and by its boot; "" where it can't.

    Nobody can tell from them what the machine itself is called by: that is a secret of its own.
    """
    return _mark("installation", _INSTALLATION), _mark("boot", _BOOT)


def _mark(kind: str, file: Path) -> str:
    try:
        said = file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    # What is made once, at the first boot, says until then that it is not made.
    return fact_id("mark", kind, said) if said and said != "uninitialized" else ""


def memory_moved(told: NodeDescription, now: NodeDescription) -> bool:
    """Whether the free memory that a node told is too old to plan by (K6)."""
    moved = abs((now.memory_free_bytes or 0) - (told.memory_free_bytes or 0))
    return moved > WORTH_SAYING * now.memory_total_bytes
