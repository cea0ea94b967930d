"""Chains: from SELFPLAY_COMPLETE to NEW_GAMES_AVAILABLE, over real processes and real databases.

First one chain after the other, each with new games in a database of some size; then as many
small ones at once as there are configurations. Beside both: the appends they cost, alone.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from bench.appends import Append, alone, alone_at_once, appends
from bench.cluster import Cluster
from bench.measuring import MEGABYTE, workplace
from bench.playing import Database
from bench.report import Report, begin, median, percentile
from streams import events
from streams.codec import node_fact
from streams.values import BOARDS

#: Chains one after the other, and rounds of small ones at once: by default, and with ``--big``.
CHAINS, BIG_CHAINS = 20, 200
ROUNDS, BIG_ROUNDS = 5, 25
CONFIG_KEYS = tuple(f"{board}_{players}p" for board in BOARDS for players in (2, 3, 4))
_PADDING_KB = 50
_NEW_GAMES = 2
#: The stages of a chain, each up to the last fact of this type.
_STAGES: dict[str, type[events.Event]] = {
    "snapshot and digest at the source": events.FilesObserved,
    "plan": events.SyncPlanned,
    "assignment": events.TransferAssigned,
    "moving and proving": events.TransferSucceeded,
    "end": events.NewGamesAvailable,
}
#: Not counted: the first ones find cold caches and connections.
_WARM_UP = 2


class Chain(msgspec.Struct, frozen=True):
    """One chain that was announced: by the log's clock, and where in the log that is."""

    id: str
    opened_at: float
    announced_at: float
    sequence: int


class Found(msgspec.Struct):
    """What one cluster showed."""

    targets: int
    database_bytes: int
    latencies_s: list[float]
    #: How long each stage of those chains took.
    stages_s: dict[str, list[float]]
    #: The appends of each of those chains, one after the other, alone.
    appends_s: list[float]
    appends_a_chain: float
    chains_per_s: float
    #: The appends of all those chains, as many at once as the log allows, alone.
    limit_per_s: float
    appends_a_small_chain: float
    facts_a_small_append: float
    small_database_bytes: int


def run(
    chains: int, rounds: int, database_mb: float, targets: list[int], seed: int, base: Path | None
) -> Report:
    """Measure with each of these numbers of training nodes, one cluster after the other."""
    parameters: dict[str, Any] = {"chains": chains, "rounds": rounds, "database_mb": database_mb}
    report = begin("chain", seed, targets=targets, configurations=len(CONFIG_KEYS), **parameters)
    for count in targets:
        with workplace(base) as place:
            found = asyncio.run(_measure(place, count, chains, rounds, database_mb, seed))
        _tell(report, found)
    report.notes += [
        "Latency is by the log's clock, from the trigger to NEW_GAMES_AVAILABLE. An append is one "
        "atomic batch or one publication, synced to disk by the server before it is acknowledged.",
        "Beside it stand the very same facts in the same appends, replayed unguarded into an "
        "empty log of a new server: one after the other for latency, all at once for throughput.",
    ]
    return report


def _tell(report: Report, found: Found) -> None:
    to = f"{found.targets} target{'s' * (found.targets > 1)}"
    size = f"{found.database_bytes / MEGABYTE:.1f} MB"
    milliseconds = [1000 * s for s in found.latencies_s]
    limit = [1000 * s for s in found.appends_s]
    ratio = median(milliseconds) / median(limit)
    beside = f"its {found.appends_a_chain:.1f} appends alone"
    report.add(f"latency p50, {size}, {to}", milliseconds, "ms", ratio, beside)
    report.add(f"latency p99, {size}, {to}", [percentile(milliseconds, 99)], "ms")
    report.add(f"latency max, {size}, {to}", [max(milliseconds)], "ms")
    for stage, seconds in found.stages_s.items():
        report.add(f"of it: {stage}, {to}", [1000 * s for s in seconds], "ms")
    report.add(f"appends alone, one after the other, {to}", limit, "ms")
    small = f"{found.small_database_bytes / 1000:.0f} kB"
    name = f"chains at once, {small}, {to}"
    of = found.chains_per_s / found.limit_per_s
    report.add(name, [found.chains_per_s], "chains/s", of, "their appends alone, at once")
    report.add(f"appends alone, at once, {to}", [found.limit_per_s], "chains/s")
    report.add(f"appends of a chain at once, {to}", [found.appends_a_small_chain], "appends")
    report.add(f"facts of such an append, {to}", [found.facts_a_small_append], "facts")


async def _measure(
    place: Path, targets: int, chains: int, rounds: int, database_mb: float, seed: int
) -> Found:
    async with Cluster(place / "cluster", 1, targets) as cluster:
        with ExitStack() as stack:
            node = cluster.players[0]

            def database(config_key: str) -> Database:
                file = cluster.data(node) / "games" / f"{config_key}.db"
                return stack.enter_context(closing(Database(file, node, config_key, seed)))

            big = database(CONFIG_KEYS[0])
            big.grow_to(round(database_mb * MEGABYTE), _PADDING_KB)
            await _in_turn(cluster, big, _WARM_UP)
            begun = await cluster.end()
            timed = await _in_turn(cluster, big, chains)
            size, middle = big.size_bytes, timed[-1].sequence
            small = [database(config_key) for config_key in CONFIG_KEYS[1:]]
            await asyncio.gather(*(_in_turn(cluster, one, 1) for one in small))
            start = await cluster.end()
            turns = await asyncio.gather(*(_in_turn(cluster, one, rounds) for one in small))
            together = [chain for turn in turns for chain in turn]
            last, small_size = await cluster.end(), small[0].size_bytes
        one_by_one = await appends(cluster.log, begun, middle)
        at_once = await appends(cluster.log, start, last)
    edges = [begun, *(chain.sequence for chain in timed)]
    seconds = max(c.announced_at for c in together) - min(c.opened_at for c in together)
    return Found(
        targets=targets,
        database_bytes=size,
        latencies_s=[chain.announced_at - chain.opened_at for chain in timed],
        stages_s=_stages(one_by_one, timed),
        appends_s=_by_chain(one_by_one, await alone(one_by_one, place / "alone"), edges),
        appends_a_chain=len(one_by_one) / chains,
        chains_per_s=len(together) / seconds,
        limit_per_s=len(together) / await alone_at_once(at_once, place / "at-once"),
        appends_a_small_chain=len(at_once) / len(together),
        facts_a_small_append=sum(len(append.facts) for append in at_once) / len(at_once),
        small_database_bytes=small_size,
    )


async def _in_turn(cluster: Cluster, database: Database, chains: int) -> list[Chain]:
    """New games, a trigger, and wait until they are announced; so many times."""
    return [await _chain(cluster, database) for _ in range(chains)]


async def _chain(cluster: Cluster, database: Database) -> Chain:
    database.play(_NEW_GAMES)
    event = events.SelfplayComplete(
        config_key=database.config_key,
        source_node=database.node,
        games_count=_NEW_GAMES,
        path=f"games/{database.config_key}.db",
    )
    id = uuid.uuid4().hex
    receipt = await cluster.log.publish(node_fact(event, database.node, id))
    end = await cluster.announced(id)
    trigger = await cluster.log.get(receipt.sequence)
    assert trigger is not None
    return Chain(id, trigger.time, end.time, end.sequence)


def _stages(made: list[Append], chains: list[Chain]) -> dict[str, list[float]]:
    """How long the stages of each chain took, by the log's clock."""
    reached = {(f.chain, type(f.event)): a.time for a in made for f in a.facts}
    found: dict[str, list[float]] = {stage: [] for stage in _STAGES}
    for chain in chains:
        before = chain.opened_at
        for stage, last in _STAGES.items():
            now = reached.get((chain.id, last), before)
            found[stage].append(now - before)
            before = now
    return found


def _by_chain(made: list[Append], seconds: list[float], edges: list[int]) -> list[float]:
    """What the appends of each chain took; `edges` are the sequences at which chains end."""
    return [
        sum(
            took
            for append, took in zip(made, seconds, strict=True)
            if first < append.sequence <= last
        )
        for first, last in pairwise(edges)
    ]
