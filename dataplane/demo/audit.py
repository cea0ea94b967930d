"""The verdict on a run, from the log and the files on the nodes' disks alone.

It asks no view and no process what it believes, and reads the files with nothing but hashlib and
sqlite3: what is audited must not audit itself.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec

from dataplane import laws
from dataplane.demo.disks import CopyAudit, copies, examined
from dataplane.laws import ChainStory
from streams import events
from streams.codec import Recorded
from streams.identity import PathRules
from streams.log import Log
from streams.values import S3_NODE, Role

#: What is wrong with a copy in the bucket, by path and digest; "" if nothing is.
InBucket = Callable[[str, str], str]


class Totals(msgspec.Struct, frozen=True):
    """The run in numbers."""

    chains_started: int
    chains_completed: int
    chains_failed: int
    chains_open: int
    announced: int
    #: Seconds from SELFPLAY_COMPLETE to NEW_GAMES_AVAILABLE; None if nothing was announced.
    latency_p50_s: float | None
    latency_p99_s: float | None
    transfers: int
    bytes_moved: int
    #: Outcomes of completed chains whose digest was proven by the log.
    outcomes_proven: int
    #: Copies on disks that were hashed and found identical.
    digests_checked: int
    duplicates: int
    facts: int


class Audit(msgspec.Struct, frozen=True):
    """What was found. `problems` is empty exactly if every promise was kept."""

    problems: list[str]
    totals: Totals
    chains: list[ChainStory]
    copies: list[CopyAudit]

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return not self.problems


async def audit(
    log: Log,
    data_dir: Callable[[str], Path],
    expected_chains: int,
    bucket: InBucket | None = None,
) -> Audit:
    """Read the whole log and every received file; nobody may write to them meanwhile.

    `data_dir` says where a node keeps its data, `bucket` what is wrong with a copy there.
    """
    return await audit_facts(await read_all(log), data_dir, expected_chains, bucket)


async def audit_facts(
    facts: Sequence[Recorded],
    data_dir: Callable[[str], Path],
    expected_chains: int,
    bucket: InBucket | None = None,
) -> Audit:
    """`audit` of facts that are read already, from the log's first to its last."""
    chains = laws.chains(facts)
    found = []
    for copy in copies(facts, stored=bucket is not None):
        if copy.target != S3_NODE:
            found.append(await asyncio.to_thread(examined, copy, data_dir(copy.target)))
        elif bucket is not None:
            found.append(await asyncio.to_thread(_examined_in, copy, bucket))
    problems = [
        *laws.broken(facts, laws.ALWAYS),
        *_chain_problems(chains, expected_chains),
        *(f"{copy.path} on {copy.target}: {copy.problem}" for copy in found if copy.problem),
        *_absent_games(facts, found),
    ]
    return Audit(problems, _totals(facts, chains, found), chains, found)


def _examined_in(copy: CopyAudit, bucket: InBucket) -> CopyAudit:
    """A copy in the bucket, with what is wrong with it. Blocks; belongs in a thread."""
    if not copy.problem:
        copy.problem = bucket(copy.path, copy.checksum)
    return copy


async def read_all(log: Log) -> list[Recorded]:
    """Every fact of the log as it is now."""
    state = await log.state()
    facts: list[Recorded] = []
    if state.last_sequence:
        async with aclosing(log.read(until=state.last_sequence)) as batches:
            async for batch in batches:
                facts += batch
    return facts


def _chain_problems(chains: Sequence[ChainStory], expected: int) -> Iterator[str]:
    if len(chains) != expected:
        yield f"{len(chains)} chains were started, not {expected}"
    for chain in chains:
        if chain.failed:
            yield f"{chain.name} has failed"


def _totals(
    facts: Sequence[Recorded],
    chains: Sequence[ChainStory],
    copies: Sequence[CopyAudit],
) -> Totals:
    results = [
        event
        for recorded in facts
        if isinstance(event := recorded.event, events.TransferSucceeded | events.TransferFailed)
    ]
    latencies = sorted(chain.latency_s for chain in chains if chain.latency_s is not None)
    surplus = sum(
        max(0, chain.completed + chain.failed - 1) + max(0, chain.announced - 1) for chain in chains
    )
    return Totals(
        chains_started=len(chains),
        chains_completed=sum(chain.completed > 0 for chain in chains),
        chains_failed=sum(chain.failed > 0 for chain in chains),
        chains_open=sum(chain.completed + chain.failed == 0 for chain in chains),
        announced=sum(chain.announced for chain in chains),
        latency_p50_s=quantile(latencies, 0.50),
        latency_p99_s=quantile(latencies, 0.99),
        transfers=sum(isinstance(event, events.TransferSucceeded) for event in results),
        bytes_moved=sum(event.bytes_transferred for event in results),
        outcomes_proven=sum(known for _, _, known in laws.outcomes(facts)),
        digests_checked=sum(not copy.problem for copy in copies),
        duplicates=sum(count - 1 for count in laws.repeated_ids(facts).values()) + surplus,
        facts=len(facts),
    )


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest of ordered values that `share` of all do not exceed; None if there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _absent_games(facts: Sequence[Recorded], copies: Sequence[CopyAudit]) -> Iterator[str]:
    """Games that players announced and that some training node does not hold."""
    played: dict[tuple[str, str], int] = defaultdict(int)
    trainers: set[str] = set()
    seen: set[str] = set()
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.NodeRegistered) and Role.TRAINING in event.description.roles:
            trainers.add(event.description.name)
        elif isinstance(event, events.SelfplayComplete) and recorded.id not in seen:
            seen.add(recorded.id)
            local = event.path or f"games/{event.config_key}.db"
            played[PathRules().logical(local, event.source_node), event.config_key] += (
                event.games_count
            )
    arrived = {(copy.target, copy.path): copy.games or 0 for copy in copies}
    for (path, config_key), count in sorted(played.items()):
        for target in sorted(trainers):
            have = arrived.get((target, path), 0)
            if have < count:
                yield f"{target} holds {have} games of {path}, {count} of {config_key} were played"
