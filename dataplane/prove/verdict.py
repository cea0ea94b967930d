"""What became of it: the log and the disks, held against the promises."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dataplane import laws
from dataplane.audit.replay import verify
from dataplane.demo.audit import quantile, read_all
from dataplane.demo.disks import CopyAudit, copies, examined, gone
from dataplane.policy import Policy
from dataplane.prove.adversary import Deed, Flip
from dataplane.prove.cluster import COORDINATORS, SETTINGS, Kill, ProveCluster
from dataplane.prove.whys import Whys, ask_why
from streams import events
from streams.codec import Recorded
from streams.log import Log
from streams.values import S3_NODE

#: After its limit, how long it may take until a sweep, of a leader that is not being killed just
#: then, has said that a chain is overdue.
_OVERDUE_SLACK_S = 45.0
#: What nats-server says of a store it can't read.
_DAMAGE = re.compile(r"Critical write error|Error recreating stream|corrupt")


class Figures(msgspec.Struct, frozen=True):
    """The run in numbers."""

    chains: int
    completed: int
    failed: int
    lost: int
    doubled: int
    wrong_bytes: int
    facts: int
    transfers: int
    announced: int
    overdue: int
    #: Seconds from SELFPLAY_COMPLETE to NEW_GAMES_AVAILABLE, all of it under fire.
    latency_p50_s: float | None
    latency_p99_s: float | None
    kills: int
    kills_at_work: int
    #: By kind of process, and by kind and place.
    kills_by_kind: dict[str, int]
    kills_by_place: dict[str, int]
    deeds: dict[str, int]
    restarts_by_themselves: int
    acknowledged: int
    copies_checked: int
    #: Whether there was a bucket, and how many of those copies lie in it.
    with_bucket: bool
    stored_checked: int
    deletions: int
    deleted: int
    #: Copies that stayed, by the rule that kept them.
    kept: dict[str, int]
    #: Bytes that were moved ahead of trainings, and of them those that a start found in place.
    ahead_bytes: int
    ahead_found_bytes: int
    #: Lines of the nats-servers' logs that speak of a store nobody can read.
    store_damage: int
    whys: Whys
    flips: int
    flips_reported: int
    #: Of those, how many were replaced by a good copy afterwards.
    flips_repaired: int
    #: Damaged copies that a newer version replaced before anybody read them.
    flips_replaced: int
    #: Why chains failed, and how many.
    failures: dict[str, int]


class Verdict(msgspec.Struct, frozen=True):
    """`problems` is empty exactly if every promise was kept."""

    problems: list[str]
    figures: Figures

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return not self.problems


def run_laws(acknowledged: Sequence[str], policy: Policy) -> tuple[laws.Law, ...]:
    """All laws, with the limits that the processes were given."""
    limit_s = float(str(SETTINGS["chain_limit_seconds"]))
    slots = (
        int(str(SETTINGS["max_in_flight"])),
        int(str(SETTINGS["max_concurrent_syncs"])),
        int(str(SETTINGS["policy__bandwidth__small_per_slot"])),
    )
    return (
        *laws.ALWAYS,
        laws.late_chains_are_named(limit_s, _OVERDUE_SLACK_S),
        laws.budgets_are_kept(*slots),
        laws.what_is_ahead_leaves_slots(policy.prestage.max_share, *slots),
        laws.deletions_leave_enough(policy.disk.min_verified_copies),
        laws.nothing_acknowledged_is_lost(acknowledged),
    )


async def judge(
    log: Log,
    cluster: ProveCluster,
    acknowledged: Sequence[str],
    deeds: Sequence[Deed],
    flips: Sequence[Flip],
    seed: int,
) -> tuple[Verdict, list[Recorded]]:
    """The verdict, and the facts it was taken from. Nobody may write any more."""
    facts, policy = await read_all(log), cluster.policy()
    found = await asyncio.to_thread(_examined, facts, cluster)
    whys = await asyncio.to_thread(ask_why, facts, policy, seed)
    problems = [
        *laws.broken(facts, run_laws(acknowledged, policy)),
        *(f"{copy.path} on {copy.target}: {copy.problem}" for copy in found if copy.problem),
        *gone(facts, cluster.layout.data),
        *await _view_problems(log, [cluster.layout.state(name) for name in COORDINATORS]),
        *(f"why has no answer: {one}" for one in whys.unknown),
    ]
    if not any(kill.during for kill in cluster.kills):
        problems.append("no kill has hit anything at work: this run proves nothing")
    figures = _figures(facts, found, whys, cluster, acknowledged, deeds, flips)
    return Verdict(problems, figures), facts


def _examined(facts: Sequence[Recorded], cluster: ProveCluster) -> list[CopyAudit]:
    """Every copy that the log says somebody received, held against what lies there. Blocks."""
    problem_with = cluster.bucket.examination() if cluster.bucket else None
    found = []
    for copy in copies(facts, stored=problem_with is not None):
        if copy.target != S3_NODE:
            examined(copy, cluster.layout.data(copy.target))
        elif problem_with is not None:
            copy.problem = copy.problem or problem_with(copy.path, copy.checksum)
        found.append(copy)
    return found


async def _view_problems(log: Log, states: Sequence[Path]) -> list[str]:
    problems = []
    for state in states:
        views = await verify(log, state / "views")
        if not views.same:
            problems.append(f"the views in {state} are not the fold of the log: {views.different}")
    return problems


def _figures(
    facts: Sequence[Recorded],
    found: Sequence[CopyAudit],
    whys: Whys,
    cluster: ProveCluster,
    acknowledged: Sequence[str],
    deeds: Sequence[Deed],
    flips: Sequence[Flip],
) -> Figures:
    chains, kills = laws.chains(facts), cluster.kills
    latencies = sorted(chain.latency_s for chain in chains if chain.latency_s is not None)
    doubled = sum(max(0, chain.ends - 1) + max(0, chain.announced - 1) for chain in chains)
    there = {recorded.id for recorded in facts}
    reported, repaired = _flips_seen(facts, flips)
    told = [one.event for one in facts]
    kept = [one for one in told if isinstance(one, events.DeletionRefused)]
    ahead_bytes, ahead_found_bytes = laws.copies_ahead(facts)
    return Figures(
        chains=len(chains),
        completed=sum(chain.completed > 0 for chain in chains),
        failed=sum(chain.failed > 0 for chain in chains),
        lost=sum(chain.ends == 0 for chain in chains) + len(set(acknowledged) - there),
        doubled=doubled + sum(count - 1 for count in laws.repeated_ids(facts).values()),
        wrong_bytes=sum(bool(copy.problem) for copy in found),
        facts=len(facts),
        transfers=sum(isinstance(one.event, events.TransferSucceeded) for one in facts),
        announced=sum(chain.announced for chain in chains),
        overdue=sum(chain.overdue for chain in chains),
        latency_p50_s=quantile(latencies, 0.50),
        latency_p99_s=quantile(latencies, 0.99),
        kills=len(kills),
        kills_at_work=sum(bool(kill.during) for kill in kills),
        kills_by_kind=dict(Counter(kill.kind for kill in kills)),
        kills_by_place=dict(sorted(Counter(_place(kill) for kill in kills).items())),
        deeds=dict(sorted(Counter(deed.kind for deed in deeds).items())),
        restarts_by_themselves=cluster.restarts,
        acknowledged=len(set(acknowledged)),
        copies_checked=len(found),
        with_bucket=cluster.bucket is not None,
        stored_checked=sum(copy.target == S3_NODE for copy in found),
        deletions=sum(isinstance(one, events.DeletionRequested) for one in told),
        deleted=sum(isinstance(one, events.DeletionDone) and one.deleted for one in told),
        kept=dict(sorted(Counter(one.rule for one in kept).items())),
        ahead_bytes=ahead_bytes,
        ahead_found_bytes=ahead_found_bytes,
        store_damage=_damage(cluster),
        whys=whys,
        flips=len(flips),
        flips_reported=reported,
        flips_repaired=repaired,
        flips_replaced=len(flips) - reported,
        failures=dict(Counter(_sort_of(chain.reason) for chain in chains if chain.failed)),
    )


def _flips_seen(facts: Sequence[Recorded], flips: Sequence[Flip]) -> tuple[int, int]:
    """How many damaged copies were reported as such, and how many of those came anew."""
    reported: set[tuple[str, str, str]] = set()
    repaired: set[tuple[str, str]] = set()
    waiting: set[tuple[str, str]] = set()
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.FileQuarantined):
            reported.add((event.node, event.path, event.checksum))
            waiting.add((event.node, event.path))
        elif isinstance(event, events.TransferSucceeded):
            place = event.target, event.entry.path
            if place in waiting:
                repaired.add(place)
    seen = [flip for flip in flips if (flip.node, flip.path, flip.checksum) in reported]
    return len(seen), sum((flip.node, flip.path) in repaired for flip in seen)


def _damage(cluster: ProveCluster) -> int:
    files = (cluster.layout.root / "logs").glob("nats-*.log")
    return sum(len(_DAMAGE.findall(file.read_text(errors="replace"))) for file in files)


def _place(kill: Kill) -> str:
    return kill.place if "." in kill.place else f"{kill.kind} {kill.place}"


def _sort_of(reason: str) -> str:
    """A reason without its names and numbers."""
    if "copies are missing" in reason:
        return "copies are missing"
    if "gave no answer" in reason:
        return "a node gave no answer"
    return reason[:80]
