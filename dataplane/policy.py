"""The numbers and names that decisions obey, with the defaults the cluster has today.

Pure data. Everything here comes from `DataPlaneConfig`; nothing here is read from a file.
"""

from __future__ import annotations

import fnmatch

from streams.codec import fact_id
from streams.identity import PathRules
from streams.values import DataEntry, Transport, Value

MEGABYTE = 1_000_000


class Policy(Value, frozen=True):
    """What planning, admission and chains obey."""

    path_rules: PathRules = PathRules()
    #: Names or globs of nodes that never receive.
    exclude_hosts: tuple[str, ...] = ()
    #: Above this a file is large: it takes the transports for large files.
    large_file_bytes: int = 100 * MEGABYTE
    #: Transports this installation has; chains of transports are cut down to them.
    transports: tuple[Transport, ...] = (Transport.HTTP_FETCH,)
    #: Transfers at once from or to one node, and in all.
    max_per_node: int = 5
    max_in_flight: int = 12
    bandwidth_mbps: float = 100.0
    max_retries: int = 3
    backoff_base_s: float = 2.0
    backoff_max_s: float = 30.0
    backoff_jitter: float = 0.1
    #: An attempt may take the base and so much a megabyte, but never more than the maximum.
    attempt_base_s: float = 60.0
    attempt_s_per_mb: float = 2.0
    attempt_max_s: float = 600.0
    #: How long after its time an executor's answer may still be on the way.
    attempt_grace_s: float = 10.0
    #: How long a node may take to say what it holds.
    answer_limit_s: float = 60.0
    #: A chain older than this is said to be overdue.
    chain_limit_s: float = 3600.0
    chain_events: bool = True

    def excludes(self, node: str) -> bool:
        """Whether a node is kept from receiving by name."""
        return any(fnmatch.fnmatchcase(node, glob) for glob in self.exclude_hosts)

    def attempt_timeout_s(self, entry: DataEntry) -> float:
        """How long one attempt at an entry may take."""
        wanted = self.attempt_base_s + self.attempt_s_per_mb * entry.size_bytes / MEGABYTE
        return min(wanted, self.attempt_max_s)

    def backoff_s(self, transfer: str, failures: int) -> float:
        """How long to wait after the n-th failure: doubling, capped, and spread by the id."""
        if failures == 0:
            return 0.0
        delay = min(self.backoff_base_s * 2.0 ** (failures - 1), self.backoff_max_s)
        spread = int(fact_id(transfer, failures)[:4], 16) / 0xFFFF
        return delay * (1 + self.backoff_jitter * (2 * spread - 1))
