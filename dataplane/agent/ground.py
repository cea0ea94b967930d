"""Whether the data directory still is on the disk that it was on.

Where an agent begins before its disk is mounted, all that it held would seem to be lost, and what
comes to make up for that would fill the wrong disk. It never says what is on a disk.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

_NAME = "data_disk"


class NotMounted(OSError):
    """The data directory is where only the mount point of its disk should be."""


class _Ground(msgspec.Struct, frozen=True):
    """What was the case when an agent began."""

    data_dir: str
    #: Whether it was on another disk than what this node keeps of itself.
    apart: bool


def stand_on(data_dir: Path, state_dir: Path) -> None:
    """Remember whether the data directory, which need not be there yet, has a disk of its own.

    Raises NotMounted where it had one and now has none. Blocks.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    place = data_dir.resolve()
    now = _Ground(str(place), _device(place) != state_dir.stat().st_dev)
    file = state_dir / _NAME
    before = _read(file)
    if before == now:
        return
    if before is not None and before.data_dir == now.data_dir and before.apart:
        raise NotMounted(
            f"{data_dir} is not on the disk that it was on: is it mounted? "
            f"If it is to be here from now on, remove {file}"
        )
    fresh = file.with_name(file.name + ".new")
    # A full disk keeps no agent from beginning; the next one remembers.
    with contextlib.suppress(OSError):
        fresh.write_bytes(msgspec.json.encode(now))
        fresh.replace(file)


def _device(place: Path) -> int:
    """The disk that a directory is on, or would be made on."""
    there = next(one for one in (place, *place.parents) if one.exists())
    return there.stat().st_dev


def _read(file: Path) -> _Ground | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Ground)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
