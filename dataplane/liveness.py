"""Who is no longer there: heartbeats that stay away take a node out of planning, and back in.

What is said is a fact like any other (HOST_OFFLINE, HOST_ONLINE); the heartbeats themselves are
none. A node that somebody took out for another reason is not put back by its heartbeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from projections.nodes import NodeRow
from streams import events
from streams.codec import Fact, fact_id, node_fact

#: What this says of a node it takes out; only such a node is put back by a heartbeat.
SILENT = "no heartbeat"


def verdicts(
    nodes: Iterable[NodeRow],
    present: Set[str],
    silent_since: Mapping[str, float],
    *,
    limit_s: float,
    now: float,
    teller: str,
) -> list[Fact]:
    """Nodes to take out or to put back; said by `teller`.

    `present` are nodes whose heartbeat is there now, `silent_since` when each other one was first
    missed, in seconds since 1970. The ids come from the node's last change, so that several
    tellers say it once.
    """
    facts = []
    for node in nodes:
        missed_at = silent_since.get(node.name, now)
        if node.online and node.name not in present and now - missed_at >= limit_s:
            reason = f"{SILENT} for {limit_s:g} s"
            event: events.Event = events.HostOffline(node=node.name, reason=reason)
        elif not node.online and node.reason.startswith(SILENT) and node.name in present:
            event = events.HostOnline(node=node.name, reason="its heartbeat is back")
        else:
            continue
        id = fact_id("liveness", events.type_name(event), node.name, node.since)
        facts.append(node_fact(event, teller, id))
    return facts
