"""Which file holds which content, and how long old snapshots of databases stay.

The newest snapshot of a database is never removed, and none that may still be asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

from adapters.files.index import Row, State, Superseded
from adapters.files.places import OWN_DIRECTORY
from adapters.files.reading import SNAPSHOTS
from adapters.files.walk import Print, print_of

#: How long a superseded snapshot stays at least, unless there are too many.
KEEP_S = 900.0
#: Superseded snapshots of one database; the oldest go first, or a busy one would fill the disk.
MOST_OLD = 4
#: A snapshot that was asked for this recently is being fetched.
IN_USE_S = 60.0
_PREFIX = f"{OWN_DIRECTORY}/{SNAPSHOTS}/"


class Contents:
    """Files by digest. `locate` may be called from any thread, all else from one at a time."""

    def __init__(self, root: Path, keep_s: float = KEEP_S) -> None:
        self._root = root
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._holders: dict[str, dict[str, Print]] = {}
        self._asked: dict[str, float] = {}
        self.superseded: dict[str, Superseded] = {}

    def locate(self, checksum: str) -> Path | None:
        """A file that was seen to hold this content and looks as it did then."""
        with self._lock:
            holders = list(self._holders.get(checksum, {}).items())
        for name, seen in holders:
            path = self._root / name
            try:
                if seen.same_file(path.stat()):
                    self._asked[name] = time.monotonic()
                    return path
            except OSError:
                continue
        return None

    def replace(self, old: Row | None, new: Row | None, now: float) -> None:
        """Take note that a file was `old` and is `new`."""
        with self._lock:
            if old and old.state is State.HERE:
                self._let_go(old, now)
            if new and new.state is State.HERE:
                self._holders.setdefault(new.entry.checksum, {})[new.holder] = new.holder_print
                self.superseded.pop(new.holder, None)

    def load(self, rows: Mapping[str, Row], superseded: list[Superseded], now: float) -> None:
        """Begin with what was remembered, and with snapshots that nobody remembers. Blocks."""
        for row in rows.values():
            self.replace(None, row, now)
        known = {row.holder for row in rows.values() if row.state is State.HERE}
        remembered = {one.name: one for one in superseded}
        for path in (self._root / _PREFIX).glob("*.db"):
            name = _PREFIX + path.name
            if name not in known:
                self.superseded[name] = remembered.get(name) or Superseded(name, "", now)
                self._holders.setdefault(_checksum(name), {})[name] = print_of(path)

    def sweep(self, rows: Mapping[str, Row], now: float) -> None:
        """Remove snapshots that are superseded long enough. Blocks; belongs in a thread."""
        needed = {row.holder for row in rows.values() if row.state is State.HERE}
        for name in needed:
            self.superseded.pop(name, None)
        for name in self._expendable(rows, now):
            (self._root / name).unlink(missing_ok=True)
            with self._lock:
                self.superseded.pop(name, None)
                self._drop(_checksum(name), name)
                self._asked.pop(name, None)

    def _expendable(self, rows: Mapping[str, Row], now: float) -> list[str]:
        found: list[str] = []
        newer: dict[str, int] = {}
        for one in sorted(self.superseded.values(), key=lambda one: one.since, reverse=True):
            newer[one.local] = newer.get(one.local, 0) + 1
            row = rows.get(one.local)
            unreported = row is not None and row.said != row.entry.checksum
            fetched = time.monotonic() - self._asked.get(one.name, -IN_USE_S) < IN_USE_S
            old = now - one.since >= self._keep_s or newer[one.local] > MOST_OLD
            if old and not unreported and not fetched:
                found.append(one.name)
        return found

    def _let_go(self, row: Row, now: float) -> None:
        if row.holder.startswith(_PREFIX):
            self.superseded[row.holder] = Superseded(row.holder, row.local, now)
        else:
            self._drop(row.entry.checksum, row.holder)

    def _drop(self, checksum: str, holder: str) -> None:
        holders = self._holders.get(checksum, {})
        holders.pop(holder, None)
        if not holders:
            self._holders.pop(checksum, None)


def _checksum(snapshot: str) -> str:
    return f"sha256:{Path(snapshot).stem}"
