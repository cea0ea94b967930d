"""On how many servers a replicated log stands: what whoever stops a server must know before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from streams.consuming import list_consumers
from streams.log import Standing
from streams.quorum import is_heard
from streams.topology import NODES_BUCKET, is_reader
from streams.wire import Wire, api

HEARTBEATS = f"KV_{NODES_BUCKET}"


async def standing_of(wire: Wire, log: str, others: Sequence[str]) -> Standing:
    """One try of asking where the log, the `others` and the log's durable consumers stand.

    A consumer moves to another server after its stream did, one by one. Raises NoAnswer.
    """
    info = await api(wire, f"STREAM.INFO.{log}")
    wanted: int = info["config"]["num_replicas"]
    room = info["state"]["bytes"], max(0, info["config"].get("max_bytes", 0))
    heartbeats = await api(wire, f"STREAM.INFO.{HEARTBEATS}")
    quiet_s = _quiet_s(heartbeats)
    if wanted == 1:
        return Standing(1, {}, (), *room, quiet_s=quiet_s)
    parts = {log: info, HEARTBEATS: heartbeats}
    for stream in others:
        if stream in parts:
            continue
        parts[stream] = await api(wire, f"STREAM.INFO.{stream}")
    consumers, silent = await list_consumers(wire, log)
    for consumer in consumers:
        if "durable_name" in consumer["config"]:
            parts[consumer["name"]] = consumer
    have = {name: _have_it(part.get("cluster") or {}) for name, part in parts.items()}
    have |= {name: 0 for name in silent if not is_reader(name)}
    behind = {name for part in parts.values() for name in _behind(part.get("cluster") or {})}
    short = {name: count for name, count in have.items() if count < wanted}
    return Standing(wanted, short, tuple(sorted(behind)), *room, quiet_s=quiet_s)


def _quiet_s(bucket: Mapping[str, Any]) -> float:
    """How long a bucket that holds something has stored nothing, by the clock of its server."""
    if not bucket["state"]["messages"] or not bucket.get("ts"):
        return 0.0
    now, last = map(datetime.fromisoformat, (bucket["ts"], bucket["state"]["last_ts"]))
    return max(0.0, (now - last).total_seconds())


def _have_it(where: Mapping[str, Any]) -> int:
    """Servers that could go on with it alone: its leader and those that are up to date."""
    replicas = where.get("replicas") or []
    return bool(where.get("leader")) + sum(map(_in_step, replicas))


def _behind(where: Mapping[str, Any]) -> list[str]:
    return [one["name"] for one in where.get("replicas") or [] if not _in_step(one)]


def _in_step(replica: Mapping[str, Any]) -> bool:
    """A server that went away is called current for 10 s more."""
    return bool(replica["current"]) and is_heard(replica)
