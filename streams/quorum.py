"""Whether the server that answers for a stream speaks for the cluster, or is cut off from it.

A leader that is cut off goes on answering with what it had, for as long as 20 s, while the others
choose another leader and write on. They choose one 4 s after they last heard it at the soonest; so
who has heard from most of them within less is still the only one. Measured with nats-server 2.15.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Servers tell each other every second that they are there.
HEARD_WITHIN_S = 3.0
_NANOS = 1_000_000_000


def is_heard(replica: Mapping[str, Any]) -> bool:
    """Whether the leader has heard lately from a server, as it shows it in ``cluster.replicas``."""
    silent_ns: int = replica.get("active", 0)
    return 0 < silent_ns <= HEARD_WITHIN_S * _NANOS


def speaks_for(info: Mapping[str, Any]) -> bool:
    """Whether what a stream's or a consumer's INFO says holds for all servers.

    It does not where no leader is known, or where the leader has not heard from most of them.
    """
    cluster = info.get("cluster")
    if not cluster:
        return True
    replicas = cluster.get("replicas") or []
    heard = 1 + sum(map(is_heard, replicas))
    return bool(cluster.get("leader")) and 2 * heard > 1 + len(replicas)
