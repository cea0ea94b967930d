"""What transfers had moved when their files were about to appear, until their results are said.

The notes outlive a killed process, not a power failure: then the bytes count as not moved.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from streams.foreign import Unreadable, from_json


class Receipts:
    """Notes in a directory, one file for those that appear together. Used by one process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._moved: dict[str, int] | None = None
        self._file_of: dict[str, Path] = {}
        self._left: dict[Path, set[str]] = {}

    def write(self, moved: Mapping[str, int]) -> None:
        """So many bytes were moved for each transfer; their files appear next. Raises OSError."""
        known = self._known()
        self._directory.mkdir(parents=True, exist_ok=True)
        file = self._directory / os.urandom(12).hex()
        file.write_bytes(msgspec.json.encode(moved))
        self._note(file, moved, known)

    def read(self, transfer: str) -> int:
        """What was noted; nothing moved if nothing was."""
        return self._known().get(transfer, 0)

    def remove(self, transfer: str) -> None:
        """The note is needed no more; one that can't go does no harm."""
        self._known().pop(transfer, None)
        file = self._file_of.pop(transfer, None)
        if file is None:
            return
        self._left[file].discard(transfer)
        if not self._left[file]:
            del self._left[file]
            with contextlib.suppress(OSError):
                file.unlink()

    def _note(self, file: Path, moved: Mapping[str, int], known: dict[str, int]) -> None:
        for transfer, nbytes in moved.items():
            self.remove(transfer)
            known[transfer] = nbytes
            self._file_of[transfer] = file
        self._left[file] = set(moved)

    def _known(self) -> dict[str, int]:
        """All notes; those of a process before this one are read once."""
        if self._moved is None:
            self._moved = {}
            for file in sorted(self._directory.glob("*")):
                with contextlib.suppress(OSError, Unreadable):
                    moved = from_json(file.read_bytes(), dict[str, int])
                    self._note(file, moved, self._moved)
        return self._moved
