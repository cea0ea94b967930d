"""The verdict on a run, from the log and the files on the nodes' disks alone.

It asks no view and no process what it believes, and reads the files with nothing but hashlib and
sqlite3: what is audited must not audit itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec

from streams import events
from streams.codec import Recorded
from streams.events import CHAIN_TRIGGERS
from streams.identity import PathRules
from streams.log import Log
from streams.values import DataEntry, Role


class ChainAudit(msgspec.Struct):
    """One chain as the log tells it."""

    id: str
    trigger: str
    config_key: str
    node: str
    triggered_at: float
    completed: int = 0
    failed: int = 0
    announced: int = 0
    #: Whether its plan owes NEW_GAMES_AVAILABLE.
    announces: bool = False
    #: From the trigger to NEW_GAMES_AVAILABLE, by the log's clock.
    latency_s: float | None = None


class CopyAudit(msgspec.Struct):
    """The newest version of a file that a node received, as it lies on that node's disk."""

    target: str
    path: str
    checksum: str
    size_bytes: int
    games: int | None
    #: What is wrong with it; "" if it is the same byte for byte, sound, and counted right.
    problem: str = ""


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
    chains: list[ChainAudit]
    copies: list[CopyAudit]

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return not self.problems


async def audit(log: Log, data_dir: Callable[[str], Path], expected_chains: int) -> Audit:
    """Read the whole log and every received file; nobody may write to them meanwhile.

    `data_dir` says where a node keeps its data.
    """
    return await audit_facts(await _read_all(log), data_dir, expected_chains)


async def audit_facts(
    facts: Sequence[Recorded], data_dir: Callable[[str], Path], expected_chains: int
) -> Audit:
    """`audit` of facts that are read already, from the log's first to its last."""
    chains = _chains(facts)
    copies = [
        await asyncio.to_thread(_examined, copy, data_dir(copy.target)) for copy in _copies(facts)
    ]
    unproven, proven = _outcomes(facts)
    problems = [
        *_log_problems(facts),
        *_chain_problems(chains, expected_chains),
        *unproven,
        *_overstated(facts),
        *(f"{copy.path} on {copy.target}: {copy.problem}" for copy in copies if copy.problem),
        *_absent_games(facts, copies),
    ]
    return Audit(problems, _totals(facts, chains, copies, proven), chains, copies)


async def _read_all(log: Log) -> list[Recorded]:
    state = await log.state()
    facts: list[Recorded] = []
    if state.last_sequence:
        async with aclosing(log.read(until=state.last_sequence)) as batches:
            async for batch in batches:
                facts += batch
    return facts


# The log


def _log_problems(facts: Sequence[Recorded]) -> Iterator[str]:
    for recorded in facts:
        if recorded.event is None:
            yield f"message {recorded.sequence} can't be understood: {recorded.problem}"
    for id, count in _repeated_ids(facts).items():
        yield f"event {id} is in the log {count} times"


def _repeated_ids(facts: Sequence[Recorded]) -> dict[str, int]:
    counts = Counter(recorded.id for recorded in facts)
    return {id: count for id, count in counts.items() if count > 1}


def _chains(facts: Sequence[Recorded]) -> list[ChainAudit]:
    chains: dict[str, ChainAudit] = {}
    for recorded in facts:
        event, chain = recorded.event, chains.get(recorded.chain)
        if isinstance(event, CHAIN_TRIGGERS):
            if chain is None:
                chains[recorded.chain] = ChainAudit(
                    id=recorded.chain,
                    trigger=recorded.type,
                    config_key=recorded.config_key,
                    node=recorded.owner,
                    triggered_at=recorded.time,
                )
        elif chain is not None:
            _count(chain, recorded)
    return list(chains.values())


def _count(chain: ChainAudit, recorded: Recorded) -> None:
    event = recorded.event
    if isinstance(event, events.SyncPlanned):
        chain.announces = chain.announces or bool(event.announces)
    elif isinstance(event, events.DataSyncCompleted):
        chain.completed += 1
    elif isinstance(event, events.DataSyncFailed):
        chain.failed += 1
    elif isinstance(event, events.NewGamesAvailable):
        chain.announced += 1
        if chain.latency_s is None and chain.trigger == "SELFPLAY_COMPLETE":
            chain.latency_s = round(recorded.time - chain.triggered_at, 6)


def _chain_problems(chains: Sequence[ChainAudit], expected: int) -> Iterator[str]:
    if len(chains) != expected:
        yield f"{len(chains)} chains were started, not {expected}"
    for chain in chains:
        name = f"chain {chain.id} ({chain.trigger} of {chain.config_key} on {chain.node})"
        ends = chain.completed + chain.failed
        if ends == 0:
            yield f"{name} has not ended"
        elif ends > 1:
            yield f"{name} has ended {ends} times"
        elif chain.failed:
            yield f"{name} has failed"
        due = int(chain.announces and chain.completed > 0)
        if chain.announced != due:
            yield f"{name} announced NEW_GAMES_AVAILABLE {chain.announced} times, not {due}"


def _outcomes(facts: Sequence[Recorded]) -> tuple[list[str], int]:
    """Outcomes that chains claim and nothing before them proves; and how many are proven."""
    held: set[tuple[str, str, str]] = set()
    problems, proven = [], 0
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.FilesObserved):
            held |= {(event.node, entry.path, entry.checksum) for entry in event.entries}
        elif isinstance(event, events.TransferSucceeded):
            held.add((event.target, event.entry.path, event.entry.checksum))
        elif isinstance(event, events.DataSyncCompleted):
            for outcome in event.targets:
                known = (outcome.target, outcome.path, outcome.checksum) in held
                proven += known
                if not known:
                    problems.append(
                        f"chain {recorded.chain} says that {outcome.target} holds {outcome.path} "
                        f"as {outcome.checksum}, and no transfer before it has proven that"
                    )
    return problems, proven


def _overstated(facts: Sequence[Recorded]) -> Iterator[str]:
    """Ends and announcements that speak of more games than any version of their files holds."""
    most: dict[str, int] = defaultdict(int)
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.FilesObserved):
            for entry in event.entries:
                most[entry.path] = max(most[entry.path], entry.games or 0)
            continue
        if isinstance(event, events.NewGamesAvailable):
            paths, said = set(event.paths), event.game_count
        elif isinstance(event, events.DataSyncCompleted):
            paths, said = {outcome.path for outcome in event.targets}, event.games_synced
        else:
            continue
        have = sum(most[path] for path in paths)
        if said > have:
            yield f"chain {recorded.chain} says {said} games in {recorded.type}, there are {have}"


def _totals(
    facts: Sequence[Recorded],
    chains: Sequence[ChainAudit],
    copies: Sequence[CopyAudit],
    proven: int,
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
        outcomes_proven=proven,
        digests_checked=sum(not copy.problem for copy in copies),
        duplicates=sum(count - 1 for count in _repeated_ids(facts).values()) + surplus,
        facts=len(facts),
    )


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest of ordered values that `share` of all do not exceed; None if there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


# The disks


def _copies(facts: Sequence[Recorded]) -> list[CopyAudit]:
    """What each target must hold now: the newest version of each path it ever received."""
    newest: dict[tuple[str, str], DataEntry] = {}
    catalogued: dict[tuple[str, str], DataEntry] = {}
    games: dict[tuple[str, str], int | None] = {}
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.FilesObserved):
            catalogued |= {(entry.path, entry.checksum): entry for entry in event.entries}
        elif isinstance(event, events.TransferSucceeded):
            place = event.target, event.entry.path
            before = newest.get(place)
            if before is None or event.entry.version >= before.version:
                newest[place], games[place] = event.entry, event.games
    copies = []
    for (target, path), entry in sorted(newest.items()):
        source = catalogued.get((path, entry.checksum))
        copy = CopyAudit(target, path, entry.checksum, entry.size_bytes, games[target, path])
        if source is None:
            copy.problem = f"{entry.checksum} is in no catalogue: nobody ever held it"
        elif (source.size_bytes, source.games) != (copy.size_bytes, copy.games):
            copy.problem = f"the log says {source.games} games at its source, {copy.games} here"
        copies.append(copy)
    return copies


def _examined(copy: CopyAudit, data_dir: Path) -> CopyAudit:
    """The same, with what is wrong with the file on the disk. Blocks; belongs in a thread."""
    if not copy.problem:
        local = data_dir / PathRules().local(copy.path, copy.target)
        try:
            copy.problem = _problem_with(local, copy)
        except OSError as error:
            copy.problem = f"can't be read: {error}"
        except sqlite3.Error as error:
            copy.problem = f"is no sound database: {error}"
    return copy


def _problem_with(local: Path, copy: CopyAudit) -> str:
    with local.open("rb") as file:
        checksum = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if checksum != copy.checksum:
        return f"the file on the disk is {checksum}, not {copy.checksum}"
    uri = f"{local.resolve().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
        sound = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
        counted = int(db.execute("SELECT count(*) FROM games").fetchone()[0])
    if sound != ["ok"]:
        return f"integrity_check: {'; '.join(sound[:3])}"
    if counted != copy.games:
        return f"{counted} games are in the file, {copy.games} in the log"
    return ""


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
