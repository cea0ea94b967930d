"""Whether the data plane does its work: judged by progress, never by mere liveness.

Degraded is not healthy. Pure: readings and the time come in, a verdict goes out.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dataplane.policy import Disk
from projections.cluster import ClusterView
from projections.nodes import NodeRow

#: A projection further behind than this many facts is not keeping up.
LAG_LIMIT = 1_000
#: A loop that has not turned for this long stands still.
STALL_LIMIT_S = 30.0
#: A chain that has been open for this long is worth an operator's look.
OLD_CHAIN_S = 900.0
#: A disk as full as this is to be written to no more (K21).
STOP_PRODUCTION_FROM = Disk().stop_production_from


class HealthCheckResult(msgspec.Struct, frozen=True):
    """The verdict, in the words its users know."""

    healthy: bool
    #: ``healthy``, ``degraded`` or ``unhealthy``.
    status: str
    message: str
    details: dict[str, Any]


class CoordinatorHealth(msgspec.Struct, frozen=True):
    """How a coordinator does, short enough for a heartbeat."""

    status: str
    message: str
    lag: int
    problems: tuple[str, ...] = ()


def coordinator_health(
    view: ClusterView,
    *,
    last_sequence: int,
    now: float,
    stalled_s: float,
    troubles: tuple[str, ...] = (),
) -> CoordinatorHealth:
    """Judge a coordinator by how far its views are, its oldest chain and its loops."""
    lag = max(0, last_sequence - view.checkpoint.sequence)
    problems = view_problems(view, now)
    if lag > LAG_LIMIT:
        problems.append(f"views are {lag} facts behind the log")
    if stalled_s > STALL_LIMIT_S:
        problems.append(f"nothing was dispatched for {stalled_s:.0f} s")
    problems += troubles
    status = "degraded" if problems else "healthy"
    return CoordinatorHealth(status, "; ".join(problems) or "all well", lag, tuple(problems))


def view_problems(view: ClusterView, now: float) -> list[str]:
    """What the views themselves show to be wrong."""
    problems = []
    oldest = next(view.open_chains(), None)
    if oldest is not None and now - oldest.opened_at > OLD_CHAIN_S:
        age = now - oldest.opened_at
        problems.append(f"chain {oldest.id} has been {oldest.status} for {age:.0f} s")
    unsaid = len(view.rejections_unsaid())
    if unsaid:
        problems.append(f"{unsaid} messages could not be understood and were not yet reported")
    problems += [problem for row in view.nodes() if row.online and (problem := _full_disk(row))]
    return problems


def _full_disk(row: NodeRow) -> str:
    """What a node with a full disk should do (K21); "" if it is not that full."""
    disk = row.description
    if not disk.disk_total_bytes:
        return ""
    used = 1 - disk.disk_free_bytes / disk.disk_total_bytes
    if used < STOP_PRODUCTION_FROM:
        return ""
    return f"{row.name}'s disk is {used:.0%} full: production there is to stop"


def cluster_health(
    view: ClusterView,
    *,
    now: float,
    last_sequence: int | None,
    present: dict[str, dict[str, Any]] | None,
) -> HealthCheckResult:
    """The whole data plane's health. None where the bus, and so the answer, is out of reach."""
    counts = view.counts()
    point = view.checkpoint
    problems = view_problems(view, now)
    fatal = []
    lag = None
    if last_sequence is None:
        fatal.append("the bus can't be reached")
    else:
        lag = max(0, last_sequence - point.sequence)
        if lag > LAG_LIMIT:
            problems.append(f"views are {lag} facts behind the log")
    coordinators = [k for k in present or {} if k.startswith("coordinator.")]
    if present is not None and not coordinators:
        fatal.append("no coordinator is there")
    missing = [
        row.name
        for row in view.nodes()
        if row.online and present is not None and f"agent.{row.name}" not in present
    ]
    if missing:
        problems.append(f"no heartbeat from {', '.join(missing)}")
    status = "unhealthy" if fatal else "degraded" if problems else "healthy"
    return HealthCheckResult(
        healthy=status == "healthy",
        status=status,
        message="; ".join([*fatal, *problems]) or "all well",
        details={
            "catalog": {
                "paths": counts["paths"],
                "entries": counts["entries"],
                "replicas": counts["replicas"],
                "sequence": point.sequence,
                "lag": lag,
            },
            "planner": {"open_chains": counts["chains_open"], "ended": counts["chains_ended"]},
            "transport": {
                "pending": counts["transfers_pending"],
                "in_flight": counts["transfers_in_flight"],
            },
            "event_bridge": {"rejected": counts["rejected"], "coordinators": coordinators},
            "pending_syncs": counts["transfers_pending"] + counts["transfers_in_flight"],
            "total_syncs": view.totals().transfers,
            "total_bytes": view.totals().bytes,
        },
    )
