"""Planning and sweeping over a large catalog, beside the same questions asked of SQLite.

A catalog of many nodes and entries is folded from facts; then, in a fresh process: one event after
the other is planned, the survey of all copies runs in the background of an event loop that is
watched for how long it stands still, a round of admission looks at a long queue, and the overview
and a page of what has too few copies are made.

What is claimed of memory is the process's own (``RssAnon``): it can't be taken from it. The views
are mapped from a file; the kernel maps what lies around each page that is read, as long as memory
is free, and takes all of it back without writing anything when it is not. So the mapped pages
(``RssFile``) are said beside it, and are no claim.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import msgspec

from bench.measuring import MEGABYTE, in_process, peak_bytes, workplace
from bench.report import Report, begin, percentile
from dataplane.admission import admit
from dataplane.browsing import EntryFilter, entry_page
from dataplane.config import DataPlaneConfig
from dataplane.coordinator.bridge import EventBridge
from dataplane.coordinator.dispatch import Known
from dataplane.coordinator.sweeping import Sweeper
from dataplane.daemon import leave_to_the_end
from dataplane.planner import SyncPlanner
from dataplane.policy import Policy
from dataplane.queries import AskOverview, Reading, glance
from projections.cluster import ClusterView
from projections.fold import TABLES, fold
from projections.projector import Projector
from projections.store import Store
from streams import events
from streams.codec import Fact, Recorded, encode, fact_id
from streams.log import Guard, Log, Receipt
from streams.subjects import subject_for
from streams.values import (
    BOARDS,
    DataEntry,
    DataType,
    NodeDescription,
    Role,
    SyncPlan,
    SyncPriority,
    Transport,
)

ENTRIES, BIG_ENTRIES = 50_000, 1_000_000
NODES, BIG_NODES = 100, 1_000
PLANNED = 300
#: Transfers that wait while a round of admission is measured, of all entries.
_QUEUED_SHARE = 0.1
_TRAINERS = ("train-1", "train-2")
_CONFIGS = [f"{board}_{players}p" for board in BOARDS for players in (2, 3, 4)]
_PAGE = 400
_T0 = 1_700_000_000.0
#: One in so many entries has a copy too few.
_SHORT = 100


class Found(msgspec.Struct):
    """What one process measured, in seconds and bytes."""

    plan_s: list[float] = []
    #: The same in processor time: what it would be if the machine had nothing else to do.
    plan_cpu_s: list[float] = []
    sqlite_plan_s: list[float] = []
    survey_s: float = 0.0
    sqlite_survey_s: float = 0.0
    longest_block_s: float = 0.0
    longest_block_cpu_s: float = 0.0
    short: int = 0
    sqlite_short: int = 0
    admit_s: list[float] = []
    queued: int = 0
    #: What the page shows at a glance, and one page of entries with too few copies.
    glance_s: list[float] = []
    glance_bytes: int = 0
    page_s: list[float] = []
    #: Planning what a whole configuration needs: one long decision.
    start_s: list[float] = []
    start_entries: int = 0
    #: The same by the bridge, to a node that lacks almost all of it, until all of it is said.
    decide_s: float = 0.0
    decide_block_s: float = 0.0
    decide_block_cpu_s: float = 0.0
    decided_entries: int = 0
    anonymous_bytes: int = 0
    mapped_by_planning_bytes: int = 0
    mapped_bytes: int = 0


def run(entries: int, nodes: int, seed: int, base: Path | None) -> Report:
    """Build the catalog once, then measure it in a process of its own."""
    report = begin("plan", seed, entries=entries, nodes=nodes)
    with workplace(base) as place:
        built = in_process(build, place, entries, nodes, seed)
        found = in_process(measure, place, entries, nodes, seed)
    beside = "the same question to SQLite"
    for percent in (50, 99):
        ours = percentile(found.plan_s, percent) * 1e3
        theirs = percentile(found.sqlite_plan_s, percent) * 1e3
        report.add(f"planning one event, p{percent}", [ours], "ms", ours / theirs, beside)
    cpu = percentile(found.plan_cpu_s, 99) * 1e3
    report.add("the same in processor time, p99, on a machine with other work", [cpu], "ms")
    report.add(
        "a survey of all copies, in the background",
        [found.survey_s],
        "s",
        found.survey_s / found.sqlite_survey_s,
        f"{beside}, in the foreground",
    )
    report.add("the event loop's longest block meanwhile", [found.longest_block_s * 1e3], "ms")
    block = [found.longest_block_cpu_s * 1e3]
    report.add("the same in processor time, on a machine with other work", block, "ms")
    ours = percentile(found.admit_s, 99) * 1e3
    report.add(f"a round of admission, {found.queued} waiting, p99", [ours], "ms")
    glance = [seconds * 1e3 for seconds in found.glance_s]
    report.add("the overview of all", glance, "ms")
    report.add("the same as a message", [found.glance_bytes / MEGABYTE], "MB")
    page = [seconds * 1e3 for seconds in found.page_s]
    report.add("a page of what has too few copies", page, "ms")
    what = f"planning a training run of {found.start_entries} current entries"
    report.add(what, [seconds * 1e3 for seconds in found.start_s], "ms")
    what = f"deciding and saying what {found.decided_entries} entries need that a node lacks"
    report.add(what, [found.decide_s], "s")
    block = [found.decide_block_s * 1e3]
    report.add("the event loop's longest block while that is decided", block, "ms")
    block = [found.decide_block_cpu_s * 1e3]
    report.add("the same in processor time of the loop's thread", block, "ms")
    report.add("memory of its own", [found.anonymous_bytes / MEGABYTE], "MB")
    mapped = f"pages of the views mapped after {PLANNED} plans"
    report.add(mapped, [found.mapped_by_planning_bytes / MEGABYTE], "MB")
    report.add("mapped in the end, reclaimable", [found.mapped_bytes / MEGABYTE], "MB")
    report.add("building the catalog, copies folded", [built], "copies/s")
    report.notes.append(
        "Claimed is the memory of its own. What is mapped of the views is the kernel's to take back"
        " at any time without writing anything; what is read again then comes from the disk."
    )
    report.notes.append(
        f"{found.short} entries have too few copies; SQLite counts {found.sqlite_short}."
    )
    return report


# The catalog


def build(place: Path, count: int, nodes: int, seed: int) -> float:
    """Fold the catalog into a store, and put the same into SQLite; copies folded a second."""
    store = Store.open(place / "views", TABLES, durable=False)
    sequence, began, copies = 0, time.perf_counter(), 0
    for page in _pages(_facts(count, nodes, seed)):
        batch = []
        for event, owner in page:
            sequence += 1
            batch.append(_recorded(sequence, event, owner))
            copies += len(getattr(event, "entries", ()))
        store.write(lambda tx, batch=batch: fold(tx, batch, "bench"))  # type: ignore[misc]
    rate = copies / (time.perf_counter() - began)
    store.sync()
    store.close()
    _fill_sqlite(place / "peer.sqlite", count, nodes)
    return rate


def _facts(count: int, nodes: int, seed: int) -> Iterator[tuple[events.Event, str]]:
    for name in _names(nodes):
        role = Role.TRAINING if name in _TRAINERS else Role.SELFPLAY
        description = NodeDescription(name=name, roles=(role,))
        yield events.NodeRegistered(description=description), name
    for start in range(0, count, _PAGE):
        numbers = range(start, min(start + _PAGE, count))
        by_node: dict[str, list[DataEntry]] = {}
        for number in numbers:
            by_node.setdefault(_producer(number, nodes), []).append(_entry(number, nodes))
        for name, some in by_node.items():
            yield events.FilesObserved(node=name, entries=tuple(some)), name
        for trainer in _TRAINERS:
            held = tuple(
                _entry(number, nodes) for number in numbers if _has(trainer, number, count, nodes)
            )
            yield events.FilesObserved(node=trainer, entries=held), trainer
    yield from _queue(int(count * _QUEUED_SHARE), nodes, random.Random(seed))
    cold = _producer(0, nodes)
    yield events.TrainingStarted(config_key=_CONFIGS[0], node=cold), cold


def _queue(count: int, nodes: int, rng: random.Random) -> Iterator[tuple[events.Event, str]]:
    """Plans of transfers that all wait, of every class and configuration."""
    for start in range(0, count, _PAGE):
        chain = f"bench-{start}"
        entries = tuple(_entry(10**9 + start + n, nodes) for n in range(min(_PAGE, count - start)))
        plan = SyncPlan(
            source_node=_producer(start, nodes),
            target_nodes=(_producer(start + 1, nodes),),
            entries=entries,
            priority=rng.choice(tuple(SyncPriority)),
            transport_preference=(Transport.HTTP_FETCH,),
        )
        yield events.SyncPlanned(config_key="all", plans=(plan,)), chain


def _names(nodes: int) -> list[str]:
    return [*_TRAINERS, *(f"gpu-{number}" for number in range(nodes - len(_TRAINERS)))]


def _producer(number: int, nodes: int) -> str:
    return f"gpu-{number % (nodes - len(_TRAINERS))}"


def _config(number: int, nodes: int) -> str:
    return _CONFIGS[number // nodes % len(_CONFIGS)]


def _has(trainer: str, number: int, count: int, nodes: int) -> bool:
    """The newest are on their producers alone; one in a hundred lacks one more copy."""
    if number >= count - nodes * 2:
        return False
    return trainer == _TRAINERS[0] or number % _SHORT != 0


def _entry(number: int, nodes: int) -> DataEntry:
    config_key = _config(number, nodes)
    return DataEntry(
        path=f"games/{_producer(number, nodes)}/{config_key}-{number}.jsonl",
        data_type=DataType.GAMES,
        config_key=config_key,
        size_bytes=1_000_000,
        checksum=f"sha256:{fact_id(number)}{fact_id(number)}",
        games=50,
    )


def _recorded(sequence: int, event: events.Event, owner: str) -> Recorded:
    subject = subject_for(event, owner)
    id = f"b{sequence}"
    chain = owner if isinstance(event, events.SyncPlanned) else ""
    if isinstance(event, events.TrainingStarted):
        chain = id
    config_key = events.config_key_of(event)
    name = events.type_name(event)
    return Recorded(sequence, _T0, subject, id, name, owner, config_key, chain, "", event)


def _pages(
    facts: Iterator[tuple[events.Event, str]],
) -> Iterator[list[tuple[events.Event, str]]]:
    page: list[tuple[events.Event, str]] = []
    for fact in facts:
        page.append(fact)
        if len(page) >= _PAGE:
            yield page
            page = []
    yield page


def _fill_sqlite(file: Path, count: int, nodes: int) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE current (id INTEGER PRIMARY KEY, path TEXT, producer TEXT, config TEXT,"
            " checksum TEXT, size INTEGER, games INTEGER);"
            "CREATE TABLE holders (id INTEGER, node TEXT, PRIMARY KEY (id, node)) WITHOUT ROWID;"
        )
        for start in range(0, count, 10_000):
            numbers = range(start, min(start + 10_000, count))
            rows, holders = [], []
            for number in numbers:
                e, producer = _entry(number, nodes), _producer(number, nodes)
                rows.append(
                    (number, e.path, producer, e.config_key, e.checksum, e.size_bytes, e.games)
                )
                holders.append((number, producer))
                holders += [(number, t) for t in _TRAINERS if _has(t, number, count, nodes)]
            db.executemany("INSERT INTO current VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            db.executemany("INSERT INTO holders VALUES (?, ?)", holders)
        db.execute("CREATE INDEX by_producer ON current (producer, config)")
        db.commit()


# Measuring


class _Views:
    """Views that nobody folds any more, as a sweeper and a bridge read them."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def wait_for(self, sequence: int) -> None:
        """What is said is not folded."""


class _Sink:
    """A log that makes messages of facts, as every log does, and keeps none."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    async def append(self, facts: Sequence[Fact], guards: Sequence[Guard]) -> Receipt:
        for fact in facts:
            encode(fact, _T0)
        self.facts += facts
        await asyncio.sleep(0)
        return Receipt(len(self.facts))


def measure(place: Path, count: int, nodes: int, seed: int) -> Found:
    """Everything that is measured on the catalog at `place`."""
    store = Store.open(place / "views", TABLES, writable=False)
    # As in the daemon.
    sys.setswitchinterval(0.0005)
    leave_to_the_end()
    rng, found = random.Random(seed), Found()
    asked = [
        (f"gpu-{rng.randrange(nodes - len(_TRAINERS))}", rng.choice(_CONFIGS))
        for _ in range(PLANNED)
    ]
    with closing(sqlite3.connect(place / "peer.sqlite")) as db:
        for node, config in asked:
            cpu = time.thread_time()
            found.plan_s.append(_timed(lambda n=node, c=config: _plan(store, n, c)))  # type: ignore[misc]
            found.plan_cpu_s.append(time.thread_time() - cpu)
            found.sqlite_plan_s.append(_timed(lambda n=node, c=config: _ask(db, n, c)))  # type: ignore[misc]
        found.mapped_by_planning_bytes = _resident("RssFile")
        found.start_s = [_timed(lambda: _plan_start(store, found)) for _ in range(3)]
        asyncio.run(_survey(store, found))
        asyncio.run(_decide(store, found))
        began = time.perf_counter()
        too_few = "SELECT id, count(*) FROM holders GROUP BY id HAVING count(*) < 3"
        found.sqlite_short = len(db.execute(too_few).fetchall())
        found.sqlite_survey_s = time.perf_counter() - began
    for _ in range(20):
        found.admit_s.append(_timed(lambda: _admit(store, found)))
    found.anonymous_bytes, found.mapped_bytes = _resident("RssAnon"), _resident("RssFile")
    # Not by who plans, but by who looks on: after what he is said to take.
    for _ in range(20):
        found.glance_s.append(_timed(lambda: _look(store, found)))
        found.page_s.append(_timed(lambda: _browse(store)))
    store.close()
    return found


def _plan(store: Store, node: str, config_key: str) -> None:
    with store.read() as reader:
        event = events.SelfplayComplete(config_key=config_key, source_node=node, games_count=50)
        SyncPlanner(Policy(), ClusterView(reader), _T0).decide(event)


def _plan_start(store: Store, found: Found) -> None:
    """All that is current of a configuration, to a trainer that lacks some of it."""
    with store.read() as reader:
        event = events.TrainingStarted(config_key=_CONFIGS[0], node=_TRAINERS[1])
        planned = SyncPlanner(Policy(), ClusterView(reader), _T0).decide(event)
    moved = sum(len(plan.entries) for plan in planned.plans)
    found.start_entries = moved + len(planned.held)


def _known(view: ClusterView) -> Reading:
    last = view.checkpoint.sequence
    planner = SyncPlanner(Policy(), view, _T0)
    return Reading(view, planner, _T0, {}, last, DataPlaneConfig(), None)


def _look(store: Store, found: Found) -> None:
    with store.read() as reader:
        seen = glance(AskOverview(), _known(ClusterView(reader)))
    found.glance_bytes = len(msgspec.json.encode(seen))


def _browse(store: Store) -> None:
    with store.read() as reader:
        entry_page(_known(ClusterView(reader)), EntryFilter(fewer_than=3))


def _ask(db: sqlite3.Connection, node: str, config_key: str) -> None:
    """What that node has of a configuration, and which trainers lack it."""
    for trainer in _TRAINERS:
        db.execute(
            "SELECT path, checksum, size, games, EXISTS (SELECT 1 FROM holders WHERE"
            " holders.id = current.id AND node = ?) FROM current WHERE producer = ? AND config = ?",
            (trainer, node, config_key),
        ).fetchall()


async def _survey(store: Store, found: Found) -> None:
    """A survey, while the loop is watched."""
    sweeper = Sweeper(
        cast(Log, None), cast(Projector, _Views(store)), Policy(), "bench", clock=lambda: _T0 + 1e6
    )

    async def survey() -> None:
        found.short = (await sweeper.survey()).short

    found.survey_s, found.longest_block_s, found.longest_block_cpu_s = await _watched(survey)


async def _decide(store: Store, found: Found) -> None:
    """What the bridge owes a training run of a node that lacks almost everything."""
    sink = _Sink()
    bridge = EventBridge(cast(Log, sink), cast(Projector, _Views(store)), Policy())
    found.decide_s, found.decide_block_s, found.decide_block_cpu_s = await _watched(bridge.sweep)
    plans = [fact.event for fact in sink.facts if isinstance(fact.event, events.SyncPlanned)]
    found.decided_entries = sum(len(plan.entries) for event in plans for plan in event.plans)


async def _watched(work: Callable[[], Awaitable[None]]) -> tuple[float, float, float]:
    """How long it took, and the longest turn of the loop meanwhile, also in its processor time.

    The loop is watched by one who wants to turn every millisecond.
    """
    gc.collect()
    done, longest, longest_cpu = asyncio.Event(), 0.0, 0.0

    async def watch() -> None:
        nonlocal longest, longest_cpu
        last, cpu = time.perf_counter(), time.thread_time()
        while not done.is_set():
            await asyncio.sleep(0.001)
            now, used = time.perf_counter(), time.thread_time()
            longest = max(longest, now - last - 0.001)
            longest_cpu = max(longest_cpu, used - cpu)
            last, cpu = now, used

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    began = time.perf_counter()
    await work()
    took = time.perf_counter() - began
    done.set()
    await watching
    return took, longest, longest_cpu


def _admit(store: Store, found: Found) -> None:
    with store.read() as reader:
        view, full = ClusterView(reader), set[str]()
        known = Known(view, Policy(), _T0)
        found.queued = view.counts()["transfers_pending"]
        pending = view.pending_fairly(full)
        admit(pending, [], known, Policy(), _T0, full, oldest=view.pending_by_age())


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _resident(kind: str) -> int:
    """Memory of this process: ``RssAnon`` is its own, ``RssFile`` what it has mapped of files."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) * 1024
    return peak_bytes()
