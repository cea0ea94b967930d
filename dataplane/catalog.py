"""The catalog as users ask it: one call, one reading of the views on this machine.

Works while no daemon runs. It reads; what changes the catalog are events.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from dataplane.config import DataPlaneConfig
from dataplane.planner import SyncPlanner
from projections.cluster import ClusterView
from projections.fold import TABLES, WANTED_VERSIONS
from projections.store import Reader, StoreError, StoreReader
from streams.values import S3_NODE, DataEntry, DataType

_POLL_S = 0.005


class Views(Protocol):
    """Something that views can be read from."""

    def read(self) -> contextlib.AbstractContextManager[Reader]:
        """A short reading."""

    def close(self) -> None:
        """Let go of it."""


class Catalog:
    """Where the cluster's data is. Raises `StoreMissing` where no coordinator has ever run."""

    def __init__(self, config: DataPlaneConfig, views: Views | None = None) -> None:
        """`views` are those of this machine, or others, such as those of a time that has passed."""
        self._reader: Views = views or StoreReader(config.views_dir, TABLES)
        self._policy = config.policy()

    @contextlib.contextmanager
    def view(self) -> Iterator[ClusterView]:
        """All views at one moment; keep it short. Raises `StoreError` if other code folded them."""
        with self._reader.read() as reader:
            view = ClusterView(reader)
            if view.checkpoint.versions != WANTED_VERSIONS:
                raise StoreError(
                    "the views here were written by another version of dataplane: "
                    "a coordinator of this one folds them anew when it starts"
                )
            yield view

    def get(self, path: str, *, min_sequence: int = 0, timeout_s: float = 10.0) -> DataEntry | None:
        """The current version of a path and who holds it; None if it is unknown.

        With `min_sequence` it first waits, blocking, until the views have seen that sequence; on
        an event loop await `seen` instead. Raises TimeoutError.
        """
        deadline = time.monotonic() + timeout_s
        while min_sequence > self.sequence():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the views are at {self.sequence()}, not yet at {min_sequence}")
            time.sleep(_POLL_S)
        with self.view() as view:
            return view.catalog.get(path)

    async def seen(self, sequence: int, timeout_s: float = 10.0) -> None:
        """Wait until the views have seen a sequence. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            # Another process writes the views: there is nothing to be woken by.
            while self.sequence() < sequence:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)

    def sequence(self) -> int:
        """Up to where the views have folded the log."""
        with self.view() as view:
            return view.checkpoint.sequence

    def where(self, path: str) -> list[DataEntry]:
        """All contents under a path with their holders, newest first."""
        with self.view() as view:
            return view.catalog.versions(path)

    def entries(
        self, *, node: str = "", config_key: str = "", data_type: DataType | None = None
    ) -> list[DataEntry]:
        """Entries on a node, of a configuration, of a type, or all of them, by path."""
        with self.view() as view:
            found = view.catalog.entries(node=node, config_key=config_key, data_type=data_type)
            return sorted(found, key=lambda entry: entry.path)

    def get_replication_factor(self, path: str) -> int:
        """How many nodes hold the current version of a path."""
        with self.view() as view:
            return view.catalog.get_replication_factor(path)

    def get_missing_on_node(
        self, node_id: str, data_type: DataType | None = None
    ) -> list[DataEntry]:
        """Entries that by the routing table belong on a node and are not there, by path."""
        with self.view() as view:
            planner = SyncPlanner(self._policy, view, time.time())
            return view.catalog.get_missing_on_node(
                node_id,
                data_type,
                kinds=planner.kinds_for(node_id),
                wanted=lambda entry: planner.belongs(entry, node_id),
            )

    def missing_everywhere(self) -> list[tuple[str, DataEntry]]:
        """What each node lacks that belongs there: (node, entry)."""
        with self.view() as view:
            names = [node.name for node in view.nodes() if node.online]
        return [(name, entry) for name in names for entry in self.get_missing_on_node(name)]

    def not_in_bucket(self) -> list[DataEntry]:
        """Entries that count, are of a kind that is backed up, and are not in the bucket."""
        takes = self._policy.s3.takes
        with self.view() as view:
            return view.catalog.get_missing_on_node(S3_NODE, wanted=takes)

    def close(self) -> None:
        """Let go of the views."""
        self._reader.close()
