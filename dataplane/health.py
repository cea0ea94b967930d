"""Whether the data plane does its work: judged by progress, never by mere liveness.

Degraded is not healthy. Pure: readings and the time come in, a verdict goes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, takewhile
from typing import Any

import msgspec

from dataplane.policy import Policy
from dataplane.words import counted, span
from projections.chains import ChainRow, ChainStatus
from projections.cluster import ClusterView
from projections.links import BreakerRule, BreakerState, breaker
from projections.nodes import NodeRow
from streams.log import ConsumerState, Standing
from streams.permissions import node_durables
from streams.values import ALL_CONFIGS, SweepKind

#: A projection further behind than this many facts is not keeping up.
LAG_LIMIT = 1_000
#: A loop that has not turned for this long stands still.
STALL_LIMIT_S = 30.0
#: A chain that has been open for this long is worth an operator's look.
OLD_CHAIN_S = 900.0
#: Chains fail one after another where, of those that ended in so many seconds, at least so many
#: failed, and this share of them. As many ends are looked at as the page shows alerts of.
FAILING_S, FAILING_LEAST, FAILING_FROM = 900.0, 3, 0.2
ENDED_LOOKED_AT = 200
#: Somebody's heart beats every five seconds.
QUIET_S = 20.0
#: A log that has so much of what it may have is an operator's business.
LOG_FULL_FROM = 0.9
#: An archive that missed so many of its cycles is behind.
ARCHIVE_CYCLES = 3


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
    policy: Policy,
    troubles: tuple[str, ...] = (),
) -> CoordinatorHealth:
    """Judge a coordinator by how far its views are, its oldest chain and its loops."""
    lag = max(0, last_sequence - view.checkpoint.sequence)
    problems = [text for _, text in _named_problems(view, now, policy)]
    if lag > LAG_LIMIT:
        problems.append(f"views are {lag} facts behind the log")
    if stalled_s > STALL_LIMIT_S:
        problems.append(f"nothing was dispatched for {stalled_s:.0f} s")
    problems += troubles
    status = "degraded" if problems else "healthy"
    return CoordinatorHealth(status, "; ".join(problems) or "all well", lag, tuple(problems))


def _named_problems(view: ClusterView, now: float, policy: Policy) -> list[tuple[str, str]]:
    """What the views themselves show to be wrong, by name and in words."""
    problems = []
    oldest = next((row for row in view.open_chains() if not row.ahead), None)
    if oldest is not None and now - oldest.opened_at > OLD_CHAIN_S:
        age = now - oldest.opened_at
        text = f"chain {oldest.id} has been {oldest.status} for {age:.0f} s"
        problems.append(("chain-old", text))
    unsaid = view.count_rejections_unsaid()
    if unsaid:
        text = counted(unsaid, "message", "messages")
        text += " could not be understood, not yet reported"
        problems.append(("unreported", text))
    full = [_full_disk(row, policy) for row in view.nodes() if row.online]
    return problems + [("disk-full", text) for text in full if text]


def _failing_chains(view: ClusterView, now: float) -> str:
    """What to say while chains end, and end badly: that they all end is no progress (P18); else "".

    What was only brought ahead may fail, and a node that stays after all ends what was to empty it.
    """
    newest = islice(view.ended_chains(), ENDED_LOOKED_AT)
    lately = takewhile(lambda row: now - row.ended_at < FAILING_S, newest)
    ended = [row for row in lately if not row.ahead and not row.cancelled_at]
    failed = [row for row in ended if row.status is ChainStatus.FAILED]
    if len(failed) < FAILING_LEAST or len(failed) < FAILING_FROM * len(ended):
        return ""
    text = f"{len(failed)} of the last {len(ended)} chains failed within {span(FAILING_S)}"
    return f"{text}: {named_chain(failed[0])}: {failed[0].reason}"


def named_chain(row: ChainRow) -> str:
    """What began a chain and of what: where that is of no configuration, of which node."""
    return f"{row.trigger} of {row.node if row.config_key == ALL_CONFIGS else row.config_key}"


def _full_disk(row: NodeRow, policy: Policy) -> str:
    """What a node with a full disk should do (K21); "" if it is not that full."""
    disk = row.description
    if not disk.disk_total_bytes:
        return ""
    used = 1 - disk.disk_free_bytes / disk.disk_total_bytes
    if used < policy.disk.stop_production_from:
        return ""
    return f"{row.name}'s disk is {used:.0%} full: production there is to stop"


def _late_backup(view: ClusterView, now: float, policy: Policy) -> str:
    """What to say once the bucket's backup has missed too many cycles (K19); else ""."""
    last = view.last_sweep(SweepKind.S3)
    if not policy.s3.enabled or last is None or not last.unmet_since:
        return ""
    waited, cycle = now - last.unmet_since, policy.schedule.s3_cycle_s
    # While something waits it is due again each cycle: what is not, came there in another way.
    again = last.due_at + cycle + 2 * policy.schedule.replication_s
    if waited < policy.s3.missed_cycles * cycle or (last.ended_at and now > again):
        return ""
    return f"the bucket's backup is late: due for {waited:.0f} s, where a cycle is {cycle:.0f} s"


def cluster_health(
    view: ClusterView,
    *,
    now: float,
    last_sequence: int | None,
    present: dict[str, dict[str, Any]] | None,
    consumers: Mapping[str, ConsumerState] | None = None,
    standing: Standing | None = None,
    unknown: str = "",
    not_ours: str = "",
    policy: Policy = Policy(),  # noqa: B008 - immutable
) -> HealthCheckResult:
    """The whole data plane's health. None where the bus, and so the answer, is out of reach.

    `not_ours` is why these views can't be those of this log; "" if they can.
    """
    found = _Findings()
    point = view.checkpoint
    lag = None if last_sequence is None else max(0, last_sequence - point.sequence)
    if lag is None:
        found.fatal("bus-away", "the bus can't be reached")
    elif not_ours:
        found.fatal("other-views", not_ours)
    elif lag > LAG_LIMIT:
        found.problem("views-behind", f"views are {lag} facts behind the log")
    for reason, text in _named_problems(view, now, policy):
        found.problem(reason, text)
    if failing := _failing_chains(view, now):
        found.problem("chains-failing", failing)
    if late := _late_backup(view, now, policy):
        found.problem("backup-late", late)
    _judge_presence(found, view, present)
    short = _short(found, view, present or {}, now, policy)
    archive = _archive(found, present or {}, now, last_sequence)
    disks = _disks(view, present or {}, policy)
    breakers = _open_breakers(view, now, policy)
    away = {
        durable for row in view.nodes() if not row.online for durable in node_durables(row.name)
    }
    for name, state in (consumers or {}).items():
        # What waits for a node that is away, perhaps for good, is the business of its chains.
        if state.waiting > LAG_LIMIT and name not in away:
            found.problem("consumer-behind", f"{state.waiting} facts wait for {name}")
    if unknown:
        found.problem("unknown", unknown)
    for text in standing_problems(standing):
        found.problem("servers", text)
    return found.result(
        _details(view, now, lag, present or {})
        | {
            "disks": disks,
            "breakers": breakers,
            "under_replicated": short,
            "archive": archive,
            "s3": _backup(view, now, policy),
            "consumers": {
                name: msgspec.to_builtins(state)
                for name, state in (consumers or {}).items()
                if state.waiting or state.unacknowledged
            },
            "servers": None if standing is None else msgspec.to_builtins(standing),
        }
    )


def nobody_tells(why: str) -> HealthCheckResult:
    """The verdict where there are neither views nor anybody who has some."""
    parts: dict[str, Any] = {
        part: {} for part in ("catalog", "planner", "transport", "event_bridge")
    }
    counts = dict.fromkeys(("pending_syncs", "total_syncs", "total_bytes"), 0)
    details = parts | counts | {"reasons": ["nobody-tells"], "alerts": []}
    return HealthCheckResult(False, "unhealthy", why, details)


class _Findings:
    """Problems by name, and the verdict they make."""

    def __init__(self) -> None:
        self._fatal: list[str] = []
        self._problems: list[str] = []
        self._reasons: list[str] = []

    def fatal(self, reason: str, text: str) -> None:
        """Nothing works while this is so."""
        self._fatal.append(text)
        self._reasons.append(reason)

    def problem(self, reason: str, text: str) -> None:
        """It works, but not as it should."""
        self._problems.append(text)
        self._reasons.append(reason)

    def result(self, details: dict[str, Any]) -> HealthCheckResult:
        """The verdict: degraded is not healthy."""
        status = "unhealthy" if self._fatal else "degraded" if self._problems else "healthy"
        return HealthCheckResult(
            healthy=status == "healthy",
            status=status,
            message="; ".join([*self._fatal, *self._problems]) or "all well",
            details={**details, "reasons": sorted(set(self._reasons))},
        )


def standing_problems(standing: Standing | None) -> Iterator[str]:
    """What an operator must know before he stops a server; nothing where nobody has asked."""
    if standing is None:
        return
    if standing.problem:
        yield f"on how many servers the log stands is not known: {standing.problem}"
    if standing.short:
        part, count = min(standing.short.items(), key=lambda item: item[1])
        more = f", and {len(standing.short) - 1} more" if len(standing.short) > 1 else ""
        who = f" ({', '.join(standing.behind)} behind or away)" if standing.behind else ""
        text = f"{part}{more} on {count} of {standing.replicas} servers{who}"
        yield f"{text}: stop no other server until that is over"
    if standing.quiet_s > QUIET_S:
        yield (
            f"the bus has stored no heartbeat for {standing.quiet_s:.0f} s: if anybody runs, its "
            "disk is full or fails: make room, then restart the server"
        )
    if standing.limit_bytes and standing.size_bytes >= LOG_FULL_FROM * standing.limit_bytes:
        share = standing.size_bytes / standing.limit_bytes
        yield f"the log has {share:.0%} of its max_bytes: raise it, or bound the log's age"


def _judge_presence(
    found: _Findings, view: ClusterView, present: dict[str, dict[str, Any]] | None
) -> None:
    if present is None:
        return
    coordinators = {k: beat for k, beat in present.items() if k.startswith("coordinator.")}
    if not coordinators:
        found.fatal("no-coordinator", "no coordinator is there")
    elif not any(beat.get("leads", True) for beat in coordinators.values()):
        found.problem("no-leader", "no coordinator leads")
    for name, beat in coordinators.items():
        if beat.get("set_back"):
            count = counted(beat["set_back"], "chain", "chains")
            text = f"{count} could not be decided by {name}, which tries again"
            found.problem("undecided", ": ".join([text, *beat.get("undecided", ())]))
        for text in beat.get("troubles", ()):
            found.problem("coordinator-unwell", f"{name}: {text}")
    for name, beat in present.items():
        if name.startswith("agent.") and beat.get("problem"):
            found.problem("agent-unwell", f"{name.removeprefix('agent.')}: {beat['problem']}")
    missing = [
        row.name for row in view.nodes() if row.online and f"agent.{row.name}" not in present
    ]
    if missing:
        found.problem("no-heartbeat", f"no heartbeat from {', '.join(missing)}")


def _details(
    view: ClusterView, now: float, lag: int | None, present: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    counts, totals = view.counts(), view.totals()
    coordinators = [key for key in present if key.startswith("coordinator.")]
    oldest = next(view.open_chains(), None)
    return {
        "catalog": {
            "paths": counts["paths"],
            "entries": counts["entries"],
            "replicas": counts["replicas"],
            "sequence": view.checkpoint.sequence,
            "lag": lag,
        },
        "planner": {"open_chains": counts["chains_open"], "ended": counts["chains_ended"]},
        "transport": {
            "pending": counts["transfers_pending"],
            "in_flight": counts["transfers_in_flight"],
        },
        "event_bridge": {"rejected": counts["rejected"], "coordinators": coordinators},
        "oldest_chain": {}
        if oldest is None
        else {"id": oldest.id, "age_s": round(now - oldest.opened_at, 1), "status": oldest.status},
        "last_copies": {
            config_key: {"age_s": round(now - row.time, 1), "path": row.path, "on": row.target}
            for config_key, row in view.last_copies().items()
        },
        "leader": _leader(present),
        "views": {key: present[key].get("lag") for key in coordinators},
        "pending_syncs": counts["transfers_pending"] + counts["transfers_in_flight"],
        "total_syncs": totals.transfers,
        "total_bytes": totals.bytes,
        "prestage": _prestage(view, now),
    }


def _leader(present: Mapping[str, dict[str, Any]]) -> str:
    """Who leads: of several that said so, as one did that is dead or stands still, the last."""
    terms = {
        key: beat.get("term", 0)
        for key, beat in present.items()
        if key.startswith("coordinator.") and beat.get("leads")
    }
    return max(terms, key=terms.__getitem__, default="")


def _prestage(view: ClusterView, now: float) -> dict[str, Any]:
    """What bringing data ahead of trainings was worth."""
    staging = view.staging(now)
    rate = staging.hit_rate
    return {
        **msgspec.to_builtins(staging),
        "hit_rate": None if rate is None else round(rate, 3),
    }


def _short(
    found: _Findings,
    view: ClusterView,
    present: Mapping[str, dict[str, Any]],
    now: float,
    policy: Policy,
) -> dict[str, Any]:
    """What has too few copies, by the last survey of who leads; {} before there was one."""
    beats = _of_coordinators(present)
    surveys = (beat.get("sweeps", {}) for beat in beats if beat.get("leads"))
    last: dict[str, Any] = max(surveys, key=lambda survey: survey.get("last_at", 0.0), default={})
    if not last.get("last_at"):
        return {}
    path, since = last["oldest_short"], last["oldest_short_at"]
    age_s = round(now - since, 1) if path else 0.0
    # A cluster of two nodes can't keep three copies; that is no fault of an entry.
    enough = sum(row.online for row in view.nodes()) >= policy.replication.minimum
    if enough and age_s >= policy.replication.critical_after_s:
        text = f"{path} has had too few copies for {age_s:.0f} s, and {last['short'] - 1} more"
        found.problem("under-replicated", text)
    return {
        "paths": last["short"],
        "oldest": path,
        "oldest_age_s": age_s,
        "surveyed_age_s": round(now - last["last_at"], 1),
    }


def _of_coordinators(present: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [beat for key, beat in present.items() if key.startswith("coordinator.")]


def _archive(
    found: _Findings, present: Mapping[str, dict[str, Any]], now: float, last_sequence: int | None
) -> dict[str, Any]:
    """How far the archive is behind the log, as who keeps it says; {} where nobody does."""
    keepers = [beat for beat in _of_coordinators(present) if beat.get("archive")]
    if not keepers:
        return {}
    best = max(keepers, key=lambda beat: float(beat["archive"]["at"]))
    said = best["archive"]
    age_s = now - (said["at"] or best.get("started", now))
    if age_s > max(ARCHIVE_CYCLES * said["interval_s"], STALL_LIMIT_S):
        why = f": {said['problem']}" if said["problem"] else ""
        found.problem("archive-behind", f"the log was last archived {age_s:.0f} s ago{why}")
    if held := said["held"]:
        text = f"the log can't be shortened before {held['sequence']}: {held['reason']}"
        found.problem("log-held", text)
    lag = None if last_sequence is None else max(0, last_sequence - said["sequence"])
    return {
        "sequence": said["sequence"],
        "lag": lag,
        "age_s": round(age_s, 1),
        "problem": said["problem"],
    }


def _backup(view: ClusterView, now: float, policy: Policy) -> dict[str, Any]:
    """When the bucket last had all that belongs there, and since when something waits for it."""
    last = view.last_sweep(SweepKind.S3)
    if not policy.s3.enabled or last is None:
        return {}
    return {
        "complete_age_s": round(now - last.completed_at, 1) if last.completed_at else None,
        "waiting_s": round(now - last.unmet_since, 1) if last.unmet_since else 0.0,
    }


def _disks(
    view: ClusterView, present: Mapping[str, dict[str, Any]], policy: Policy
) -> dict[str, dict[str, Any]]:
    """How full each node's disk is, by its last heartbeat, and what follows from that (K21)."""
    rule = policy.disk
    tiers = (
        ("critical", rule.critical_from),
        ("stop production", rule.stop_production_from),
        ("clean up", rule.cleanup_from),
        ("no background data", rule.stop_background_from),
    )
    found: dict[str, dict[str, Any]] = {}
    for row in view.nodes():
        total = row.description.disk_total_bytes
        free = present.get(f"agent.{row.name}", {}).get("disk_free_bytes")
        if not total or not isinstance(free, int):
            continue
        used = 1.0 - free / total
        tier = next((name for name, share in tiers if used >= share), "free")
        found[row.name] = {"used": round(used, 3), "free_bytes": free, "tier": tier}
    return found


def _open_breakers(view: ClusterView, now: float, policy: Policy) -> list[str]:
    """Nodes and transports that are not tried now, because they failed lately (K15)."""
    rule = policy.breakers
    link = BreakerRule(rule.transport_failures, rule.transport_open_s, rule.half_open_successes)
    node = BreakerRule(rule.node_failures, rule.node_open_s, rule.half_open_successes)
    return [
        row.node if row.transport is None else f"{row.node} by {row.transport}"
        for row in view.links()
        if breaker(row, now, node if row.transport is None else link).state is BreakerState.OPEN
    ]
