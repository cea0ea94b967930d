"""What became of it: the log and the disks, held against the promises."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from dataplane import laws
from dataplane.audit.replay import verify
from dataplane.demo.audit import quantile, read_all
from dataplane.demo.disks import CopyAudit, copies, examined, gone
from dataplane.policy import Policy
from dataplane.prove.adversary import Deed, Flip
from dataplane.prove.cluster import COORDINATORS, VITAL, Kill, ProveCluster
from dataplane.prove.whys import Whys, ask_why
from projections.store import StoreError
from streams import events
from streams.codec import Recorded
from streams.log import Log, ReadingLog
from streams.values import S3_NODE

#: After its limit, how long it may take until a sweep, of a leader that is not being killed just
#: then, has said that a chain is overdue.
_OVERDUE_SLACK_S = 45.0
#: In a run of so many kills each kind of `VITAL` process must have been hit at work.
ENOUGH_KILLS = 12
#: Killed so often, a process of any kind must have been at work once.
OFTEN = 10
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
    #: Transfers that succeeded: fetched, pushed, relayed, or stored in the bucket.
    ways: dict[str, int]
    #: Nodes that nobody could reach.
    blocked: list[str]
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
    #: The node whose disk could be filled; "" where this process may mount none.
    small_disk: str
    #: Nodes that were killed for good and wiped, once NODE_DRAINED had been said of them.
    wiped: list[str]
    #: Processes that ended though nobody told them to, and how: what was out of reach, or an error.
    ended_by_themselves: list[str]
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


class Seen(msgspec.Struct):
    """What a run knows besides the log and the disks."""

    seed: int
    #: Ids that a publisher was told are in the log.
    acknowledged: Sequence[str] = ()
    deeds: Sequence[Deed] = ()
    flips: Sequence[Flip] = ()
    #: Why the cluster was judged before it had come to rest; "" if it had.
    restless: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """`problems` is empty exactly if every promise was kept."""

    problems: list[str]
    figures: Figures
    #: Those of the problems that only this run could see: neither its log nor its views show them.
    seen_only: list[str] = []

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return not self.problems


def run_laws(
    acknowledged: Sequence[str], wiped: Sequence[str], policy: Policy
) -> tuple[laws.Law, ...]:
    """All laws, with the limits that the processes were given."""
    bandwidth = policy.bandwidth
    slots = bandwidth.max_total, bandwidth.max_per_node, bandwidth.small_per_slot
    return (
        *laws.ALWAYS,
        laws.late_chains_are_named(policy.chains.limit_s, _OVERDUE_SLACK_S),
        laws.budgets_are_kept(*slots),
        laws.orders_are_limited(bandwidth.host_mb_s, bandwidth.total_mb_s),
        laws.what_is_ahead_leaves_slots(policy.prestage.max_share, *slots),
        laws.attempts_are_counted(policy.retries.max_retries),
        laws.deletions_leave_enough(policy.disk.min_verified_copies),
        laws.damage_is_repaired,
        laws.nothing_is_lost_with(wiped),
        laws.nothing_acknowledged_is_lost(acknowledged),
    )


async def judge(log: Log, cluster: ProveCluster, seen: Seen) -> Verdict:
    """The verdict. Nobody may write any more."""
    facts, policy = await read_all(log), cluster.policy()
    found = await asyncio.to_thread(_examined, facts, cluster)
    whys = await asyncio.to_thread(ask_why, facts, policy, seen.seed)
    seen_only = [
        *(f"{copy.path} on {copy.target}: {copy.problem}" for copy in found if copy.problem),
        *gone(facts, cluster.layout.data),
        *without_proof(cluster.kills),
        *(f"by itself {ending}" for ending in cluster.endings if ending.at_fault),
        *([seen.restless] if seen.restless else ()),
    ]
    problems = [
        *laws.broken(facts, run_laws(seen.acknowledged, cluster.wiped, policy)),
        *await view_problems(log, [cluster.layout.state(name) / "views" for name in COORDINATORS]),
        *why_problems(whys),
        *seen_only,
    ]
    return Verdict(problems, _figures(facts, found, whys, cluster, seen), seen_only)


def without_proof(kills: Sequence[Kill]) -> Iterator[str]:
    """Why these kills prove too little: what must be hit at work was not."""
    at_work = Counter(kill.kind for kill in kills if kill.during)
    if not at_work:
        yield "no kill has hit anything at work: this run proves nothing"
        return
    often = {kind for kind, count in Counter(kill.kind for kill in kills).items() if count >= OFTEN}
    demanded = [*VITAL, *sorted(often - {*VITAL, "player"})] if len(kills) >= ENOUGH_KILLS else []
    for kind in demanded:
        if not at_work[kind]:
            yield f"of {len(kills)} kills none has hit a {kind} at work: of it this proves nothing"


def _examined(facts: Sequence[Recorded], cluster: ProveCluster) -> list[CopyAudit]:
    """Every copy that the log says somebody received, held against what lies there. Blocks."""
    problem_with = cluster.bucket.examination() if cluster.bucket else None
    found = []
    for copy in copies(facts, stored=problem_with is not None):
        if copy.target in cluster.wiped:
            continue
        if copy.target != S3_NODE:
            examined(copy, cluster.layout.data(copy.target))
        elif problem_with is not None:
            copy.problem = copy.problem or problem_with(copy.path, copy.checksum)
        found.append(copy)
    return found


async def view_problems(log: ReadingLog, places: Sequence[Path]) -> list[str]:
    """What is in no fold of the log though it lies in views, or the other way round."""
    problems = []
    for place in places:
        try:
            views = await verify(log, place)
        except (StoreError, ValueError) as error:
            problems.append(f"the views in {place} can't be held against the log: {error}")
            continue
        if not views.same:
            problems.append(f"the views in {place} are not the fold of the log: {views.different}")
    return problems


def why_problems(whys: Whys) -> Iterator[str]:
    """Questions that had no answer."""
    for one in whys.unknown:
        yield f"why has no answer: {one}"


def _figures(
    facts: Sequence[Recorded],
    found: Sequence[CopyAudit],
    whys: Whys,
    cluster: ProveCluster,
    seen: Seen,
) -> Figures:
    chains, kills = laws.chains(facts), cluster.kills
    latencies = sorted(chain.latency_s for chain in chains if chain.latency_s is not None)
    doubled = sum(max(0, chain.ends - 1) + max(0, chain.announced - 1) for chain in chains)
    there = {recorded.id for recorded in facts}
    reported, repaired = _flips_seen(facts, seen.flips)
    told = [one.event for one in facts]
    kept = [one for one in told if isinstance(one, events.DeletionRefused)]
    ahead_bytes, ahead_found_bytes = laws.copies_ahead(facts)
    return Figures(
        chains=len(chains),
        completed=sum(chain.completed > 0 for chain in chains),
        failed=sum(chain.failed > 0 for chain in chains),
        lost=sum(chain.ends == 0 for chain in chains) + len(set(seen.acknowledged) - there),
        doubled=doubled + sum(count - 1 for count in laws.repeated_ids(facts).values()),
        wrong_bytes=sum(bool(copy.problem) for copy in found),
        facts=len(facts),
        ways=dict(Counter(_way(one) for one in told if isinstance(one, events.TransferSucceeded))),
        blocked=sorted(cluster.blocked),
        announced=sum(chain.announced for chain in chains),
        overdue=sum(chain.overdue for chain in chains),
        latency_p50_s=quantile(latencies, 0.50),
        latency_p99_s=quantile(latencies, 0.99),
        kills=len(kills),
        kills_at_work=sum(bool(kill.during) for kill in kills),
        kills_by_kind=dict(Counter(kill.kind for kill in kills)),
        kills_by_place=dict(sorted(Counter(_place(kill) for kill in kills).items())),
        small_disk=cluster.small_disk,
        wiped=[*cluster.wiped],
        deeds=dict(sorted(Counter(deed.kind for deed in seen.deeds).items())),
        ended_by_themselves=[str(ending) for ending in cluster.endings],
        acknowledged=len(set(seen.acknowledged)),
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
        flips=len(seen.flips),
        flips_reported=reported,
        flips_repaired=repaired,
        flips_replaced=len(seen.flips) - reported,
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


def _way(event: events.TransferSucceeded) -> str:
    """How a file came to where it is, by who carried it out."""
    if event.target == S3_NODE:
        return "stored"
    return {event.target: "fetched", event.source: "pushed"}.get(event.node, "relayed")


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
