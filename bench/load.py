"""Load: a real coordinator and bus under a steady stream of facts; lag and memory over time.

Agents talk over connections of their own (`bench.talking`). How far the views are is read from the
views themselves, as any reader sees them; all else comes from the log and the kernel afterwards.
"""

from __future__ import annotations

import asyncio
import bisect
import os
import time
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path

import msgspec

from bench.cluster import Cluster
from bench.measuring import MEGABYTE, process, workplace
from bench.report import Report, begin, percentile
from bench.talking import Talked, talk
from projections.fold import TABLES, checkpoint
from projections.store import StoreReader
from streams import events
from streams.jetstream import JetStreamLog

#: Facts a second, seconds, agents: by default, and with ``--big``.
RATE, SECONDS, AGENTS = 50.0, 20.0, 10
BIG_RATE, BIG_SECONDS, BIG_AGENTS = 200.0, 1200.0, 50
TRAINERS = 2
#: Trigger, answer, plan, start, two assignments, two results, end, announcement.
FACTS_A_CHAIN = 10
_LOOK_S, _WEIGH_S = 0.01, 1.0


class Seen(msgspec.Struct):
    """What was seen from outside while it ran."""

    #: When the views were first seen at a sequence: both grow.
    sequences: list[int] = []
    times: list[float] = []
    #: Anonymous memory by second, in bytes: of the coordinator, of the bus.
    weighed_at: list[float] = []
    coordinator_bytes: list[int] = []
    bus_bytes: list[int] = []
    #: CPU that each has used since it began to be watched, seconds.
    coordinator_cpu_s: float = 0.0
    bus_cpu_s: float = 0.0


class Told(msgspec.Struct):
    """What the log says afterwards."""

    first_at: float = 0.0
    last_at: float = 0.0
    facts: int = 0
    lags_s: list[float] = []
    chains_s: list[float] = []
    failed: int = 0
    unended: int = 0


def run(rate: float, seconds: float, agents: int, seed: int, base: Path | None) -> Report:
    """Say so many facts a second for so long, by so many agents."""
    players = max(1, agents - TRAINERS)
    report = begin(
        "load", seed, facts_per_s=rate, seconds=seconds, players=players, trainers=TRAINERS
    )
    with workplace(base) as place:
        seen, told, talked = asyncio.run(_measure(place, rate, seconds, players, seed))
    _tell(report, seen, told, talked)
    return report


def _tell(report: Report, seen: Seen, told: Told, talked: Talked) -> None:
    span = max(told.last_at - told.first_at, 1e-9)
    report.parameters |= {
        "facts": told.facts,
        "chains": len(told.chains_s),
        "chains_failed": told.failed,
        "chains_not_ended": told.unended,
        "transfers": talked.transfers,
        "latest_trigger_s": round(talked.late_s, 3),
    }
    report.add("facts in the log", [told.facts / span], "facts/s")
    for percent in (50, 99, 100):
        name = f"lag of the views p{percent}" if percent < 100 else "lag of the views, most"
        report.add(name, [1000 * percentile(told.lags_s, percent)], "ms")
    for percent in (50, 99):
        took = [1000 * percentile(told.chains_s, percent)] if told.chains_s else []
        if took:
            report.add(f"a chain p{percent}", took, "ms")
    for who, cpu_s in (("coordinator", seen.coordinator_cpu_s), ("bus", seen.bus_cpu_s)):
        report.add(f"CPU of one fact: {who}", [1e3 * cpu_s / told.facts], "ms")
    for who, sizes in (("coordinator", seen.coordinator_bytes), ("bus", seen.bus_bytes)):
        megabytes = [size / MEGABYTE for size in _by_minute(seen.weighed_at, sizes)]
        report.add(f"anonymous memory of the {who}, by minute", megabytes, "MB")
        half = len(sizes) // 2
        slope = _slope(seen.weighed_at[half:], sizes[half:]) * 60 / 1000
        report.parameters[f"{who}_growth_kb_per_minute"] = round(slope, 1)
    report.notes += [
        "Lag is from the log's time of a fact to the first moment at which a reader of the views "
        f"sees it, looking every {1000 * _LOOK_S:.0f} ms.",
        "On a machine that is busy with other things the CPU of one fact says more than lag does.",
        "Growth is the slope of the second half, least squares. The bus grows with every chain by "
        "design: it remembers each chain's few subjects.",
    ]


def _by_minute(times: list[float], values: list[int]) -> list[float]:
    """The means of minutes, or of quarters of what is shorter than four."""
    span = max(times[-1] - times[0], 1e-9)
    parts = max(4, round(span / 60))
    groups: list[list[int]] = [[] for _ in range(parts)]
    for at, value in zip(times, values, strict=True):
        groups[min(parts - 1, int((at - times[0]) / span * parts))].append(value)
    return [sum(group) / len(group) for group in groups if group]


def _slope(times: list[float], values: list[int]) -> float:
    """Least squares: values a second."""
    middle_t, middle_v = sum(times) / len(times), sum(values) / len(values)
    above = sum((t - middle_t) * (v - middle_v) for t, v in zip(times, values, strict=True))
    below = sum((t - middle_t) ** 2 for t in times)
    return above / below if below else 0.0


async def _measure(
    place: Path, rate: float, seconds: float, players: int, seed: int
) -> tuple[Seen, Told, Talked]:
    async with Cluster(place / "cluster", 0, 0) as cluster:
        begun = await cluster.end()
        with process() as agents:
            chains_per_s = rate / FACTS_A_CHAIN
            talking: Future[Talked] = agents.submit(
                talk, cluster.url, players, TRAINERS, chains_per_s, seconds, seed
            )
            seen = await _watch(cluster, talking)
        talked = talking.result()
        told = await _read(cluster.log, begun, seen)
    return seen, told, talked


async def _watch(cluster: Cluster, talking: Future[Talked]) -> Seen:
    """Look and weigh until the agents are done."""
    seen, next_weighing = Seen(), 0.0
    pids = cluster.coordinator_pid, cluster.bus_pid
    before = [_cpu_s(pid) for pid in pids]
    reader = StoreReader(cluster.views, TABLES)
    try:
        while not talking.done():
            with reader.read() as views:
                sequence, now = checkpoint(views).sequence, time.time()
            if not seen.sequences or sequence > seen.sequences[-1]:
                seen.sequences.append(sequence)
                seen.times.append(now)
            if now >= next_weighing:
                next_weighing = now + _WEIGH_S
                seen.weighed_at.append(now)
                seen.coordinator_bytes.append(_anonymous_bytes(cluster.coordinator_pid))
                seen.bus_bytes.append(_anonymous_bytes(cluster.bus_pid))
            await asyncio.sleep(_LOOK_S)
    finally:
        reader.close()
    now_used = [_cpu_s(pid) for pid in pids]
    seen.coordinator_cpu_s, seen.bus_cpu_s = (
        after - earlier for after, earlier in zip(now_used, before, strict=True)
    )
    return seen


async def _read(log: JetStreamLog, begun: int, seen: Seen) -> Told:
    """Compare the log with what was seen."""
    told, opened, until = Told(), dict[str, float](), seen.sequences[-1]
    async with aclosing(log.read(after=begun, until=until)) as batches:
        async for batch in batches:
            for fact in batch:
                place = bisect.bisect_left(seen.sequences, fact.sequence)
                told.lags_s.append(max(0.0, seen.times[place] - fact.time))
                if isinstance(fact.event, events.SelfplayComplete):
                    opened[fact.id] = fact.time
                    told.first_at = told.first_at or fact.time
                    told.last_at = fact.time
                elif fact.chain not in opened:
                    continue  # nobody played for it: a sweep's
                elif isinstance(fact.event, events.NewGamesAvailable):
                    told.chains_s.append(fact.time - opened.pop(fact.chain))
                elif isinstance(fact.event, events.DataSyncFailed):
                    told.failed += 1
                    del opened[fact.chain]
    told.facts, told.unended = len(told.lags_s), len(opened)
    return told


def _anonymous_bytes(pid: int) -> int:
    """What a process holds that no file is behind: the views are a file and don't count."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _cpu_s(pid: int) -> float:
    """What a process has used so far, by its kernel's count."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
