"""What sweeps find: too few copies, what the bucket lacks, orphans, and full disks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from dataplane.coordinator.sweeping import Sweeper
from dataplane.planner import Known
from dataplane.policy import S3, Policy, Replication
from dataplane.sweeps import (
    MOST_BACKED_UP,
    Survey,
    cleanup,
    repairs_allowed,
    tier_of,
    too_full_bytes,
)
from projections.projector import Projector
from projections.sweeps import SweepRow
from projections.view import digest_key
from streams import events
from streams.codec import Fact
from streams.log import Receipt
from streams.memory import MemoryLog
from streams.values import DataType, DiskTier, Role, SweepKind, Trait
from tests.conftest import eventually
from tests.spec import (
    T0,
    Said,
    Story,
    after,
    answers,
    as_fact,
    copied,
    decided,
    entry,
    games_of,
    given,
    holds,
    model,
    node,
    opens,
    played,
    player,
    said_what_is_owed,
    succeeded_with,
    trainer,
)

GAMES = games_of("gpu-1", games=50)
STORES = tuple(node(f"store-{n}", Role.STORAGE) for n in (1, 2, 3, 4))
MINUTE = 60.0


def surveyed(
    story: Story, policy: Policy | None = None, before: dict[bytes, float] | None = None
) -> Survey:
    """One look at every path."""
    policy = policy or story.policy
    known = Known(policy, story.view, story.now)

    def lasting(nodes: Sequence[str], sealed_with: str) -> tuple[int, int]:
        there = known.lasting(nodes, sealed_with=sealed_with)
        return len(there), len(known.lasting(nodes, offline=True, sealed_with=sealed_with))

    survey = Survey(policy, lasting, story.now, before, sealing=True)
    for key, row in story.view.standing():
        survey.look(key, row, story.view)
    return survey


def severities(survey: Survey) -> dict[str, str]:
    """By path, what is to be said of its copies."""
    return {alert.path: alert.severity for alert in survey.alerts}


# How paths stand


def test_how_a_path_stands_follows_its_copies() -> None:
    """Arrivals, losses and new versions; only the version that counts is counted."""
    story = given(player("gpu-1"), *STORES, holds("gpu-1", GAMES))
    story.tell(copied(GAMES.path, "store-1"), after(60), copied(GAMES.path, "store-2"))
    [(_, row)] = story.view.standing()
    assert (row.nodes, row.since) == (("gpu-1", "store-1", "store-2"), T0)
    story.tell(events.FilesRemoved(node="store-1", paths=(GAMES.path,)))
    [(_, row)] = story.view.standing()
    assert (row.nodes, row.since) == (("gpu-1", "store-2"), T0 + 60)
    story.tell(after(60), holds("gpu-1", games_of("gpu-1", "second")))
    [(_, row)] = last = list(story.view.standing())
    assert (row.nodes, row.since) == (("gpu-1",), T0 + 120)
    story.tell(after(60), events.FilesRemoved(node="store-2", paths=(GAMES.path,)))
    assert list(story.view.standing()) == last, "that was a copy of what counts no more"


def test_only_games_wait_for_a_chain_and_only_the_version_it_took_does_no_more() -> None:
    """What it planned of a version that was replaced meanwhile takes nothing of the new one."""
    story = given(player("gpu-1"), trainer(), opens("c1", played("gpu-1")))
    story.tell(answers("c1", "gpu-1", GAMES))
    plan = story.owes("c1")["c1"]
    story.tell(after(60), holds("gpu-1", games_of("gpu-1", "second", games=60), model()))
    story.tell(*plan)

    def untaken() -> dict[int, float]:
        rows = [row for _, row in story.view.standing()]
        assert all(row.nodes == ("gpu-1",) for row in rows)
        return {story.view.entry(row.entry).games or 0: row.untaken_since for row in rows}

    assert untaken() == {60: T0, 0: 0.0}
    story.tell(opens("c2", played("gpu-1")), answers("c2", "gpu-1"), said_what_is_owed)
    assert untaken() == {60: 0.0, 0: 0.0}


def test_an_old_content_that_counts_again_keeps_its_holders() -> None:
    """Who has it still has it."""
    story = given(player("gpu-1"), *STORES, holds("gpu-1", GAMES), copied(GAMES.path, "store-1"))
    story.tell(holds("gpu-1", games_of("gpu-1", "second")), holds("gpu-1", GAMES))
    [(_, row)] = story.view.standing()
    assert row.nodes == ("gpu-1", "store-1")


# How sweeps stand


def due(kind: SweepKind, cycle: int, *paths: str, found: int = 0) -> Said:
    """A sweep found this."""
    event = events.SweepDue(kind=kind, cycle=cycle, paths=paths, found=found or len(paths))
    return opens(f"sweep-{kind}-{cycle}", event, by="boss")


def ended(kind: SweepKind, cycle: int, end: events.Event) -> Said:
    """The chain of a sweep ended."""
    return decided(f"sweep-{kind}-{cycle}", end)


DONE = events.DataSyncCompleted(config_key="all", source_node="")
LOST = events.DataSyncFailed(config_key="all", source_node="")


def test_a_sweep_is_due_until_one_of_its_kind_completes() -> None:
    """From the first that was due on; one that completes late leaves what became due after it."""
    kind = SweepKind.S3
    story = given(player("gpu-1"), due(kind, 1, "a", "b", found=7))

    def stands() -> SweepRow:
        row = story.view.last_sweep(kind)
        assert row is not None
        return row

    first = SweepRow(kind, 1, "sweep-s3-1", T0, named=2, found=7, unmet_since=T0)
    assert stands() == first
    story.tell(after(10), due(kind, 2, "a"))
    second = SweepRow(kind, 2, "sweep-s3-2", T0 + 10, named=1, found=1, unmet_since=T0)
    assert stands() == second
    story.tell(after(10), ended(kind, 1, DONE))
    second = replace(second, completed_at=T0 + 20, unmet_since=T0 + 10)
    assert stands() == second
    story.tell(after(10), ended(kind, 2, LOST))
    second = replace(second, ended_at=T0 + 30)
    assert stands() == second
    story.tell(ended(kind, 2, DONE), ended(kind, 1, DONE))
    assert stands() == second, "each has one end"
    for cycle in (1, 2):
        again = events.SweepDue(kind=kind, cycle=cycle, paths=("c",), found=1)
        story.tell(opens(f"again-{cycle}", again))
    assert stands() == second, "each cycle has one sweep"
    story.tell(after(10), due(kind, 3, "a"), decided("of-somebody", DONE))
    third = SweepRow(
        kind,
        3,
        "sweep-s3-3",
        T0 + 40,
        named=1,
        found=1,
        completed_at=T0 + 20,
        unmet_since=T0 + 10,
    )
    assert stands() == third
    story.tell(after(10), ended(kind, 3, DONE))
    done = replace(third, ended_at=T0 + 50, completed_at=T0 + 50, unmet_since=0.0)
    assert stands() == done
    story.tell(due(SweepKind.REPLICATION, 9, "a"))
    assert stands() == done
    assert story.view.last_sweep(SweepKind.REPLICATION) is not None


def test_repairs_are_remembered_for_an_hour() -> None:
    """How many were asked for, and when each path was last; what goes to the bucket is none."""
    kind = SweepKind.REPLICATION
    story = given(player("gpu-1"), due(kind, 1, "a", "b"), due(SweepKind.S3, 1, "s"))
    assert story.view.last_sweep(SweepKind.S3) is not None
    story.tell(after(1_800), due(kind, 2, "a"), after(1_800), due(kind, 3, "c"))

    def repaired() -> dict[str, float]:
        times = {path: story.view.repaired_at(digest_key(path)) for path in "abcds"}
        return {path: time - T0 for path, time in times.items() if time}

    assert repaired() == {"a": 1_800, "b": 0, "c": 3_600}
    assert [story.view.repairs_since(T0 + n) for n in (0, 1, 1_801, 3_601)] == [4, 2, 1, 0]
    story.tell(after(1), due(kind, 4, "d"))
    assert repaired() == {"a": 1_800, "c": 3_600, "d": 3_601}
    assert story.view.repairs_since(0.0) == 3


# Too few copies


def test_what_has_too_few_copies_is_repaired_and_said_in_time() -> None:
    """K8: a repair after a minute, a warning after 15, critical after 60, each said once."""
    story = given(player("gpu-1"), *STORES, holds("gpu-1", GAMES), copied(GAMES.path, "store-1"))
    assert surveyed(story).repairs(5) == []
    assert surveyed(story).oldest == ("", 0.0)
    story.tell(after(MINUTE))
    survey = surveyed(story)
    assert (survey.short, survey.repairs(5), survey.alerts) == (1, [GAMES.path], [])
    story.tell(after(15 * MINUTE))
    [alert] = surveyed(story).alerts
    assert (alert.severity, alert.copies, alert.wanted) == ("warning", 2, 3)
    assert surveyed(story).oldest == (GAMES.path, T0)
    story.tell(decided("alert-x", alert))
    assert not surveyed(story).alerts
    story.tell(after(45 * MINUTE))
    assert severities(surveyed(story)) == {GAMES.path: "critical"}


def test_a_single_copy_of_many_games_is_said_at_once() -> None:
    """K8: from 100 games."""
    many = games_of("gpu-2", games=100)
    story = given(player("gpu-1"), player("gpu-2"), holds("gpu-1", GAMES), holds("gpu-2", many))
    story.tell(after(MINUTE))
    assert severities(surveyed(story)) == {many.path: "single-copy"}


def test_copies_on_one_mount_or_on_ephemeral_nodes_are_not_enough() -> None:
    """K8: an NFS group counts once, what may vanish does not count."""
    story = given(
        player("gpu-1"),
        node("nfs-1", Role.STORAGE, nfs_group="pool"),
        node("nfs-2", Role.STORAGE, nfs_group="pool"),
        node("spot", traits=[Trait.EPHEMERAL]),
        holds("gpu-1", GAMES),
        *(copied(GAMES.path, name) for name in ("nfs-1", "nfs-2", "spot")),
        after(20 * MINUTE),
    )
    [alert] = surveyed(story).alerts
    assert alert.copies == 2


def test_a_node_that_is_away_for_a_moment_makes_nothing_short() -> None:
    """Its copies count until it has been seen away for as long as a warning takes."""
    story = given(player("gpu-1"), *STORES, holds("gpu-1", GAMES))
    story.tell(copied(GAMES.path, "store-1"), copied(GAMES.path, "store-2"), after(9_000))
    story.tell(Said(events.HostOffline(node="store-2", reason="rebooting"), by="boss"))
    first = surveyed(story)
    assert (first.short, first.repairs(5), first.alerts) == (1, [], [])
    story.tell(after(15 * MINUTE))
    later = surveyed(story, before=first.short_since)
    assert later.repairs(5) == [GAMES.path]
    assert severities(later) == {GAMES.path: "warning"}


def test_the_fewest_copies_are_repaired_first_and_no_more_than_are_allowed() -> None:
    """K8: 5 at once, 500 an hour."""
    story = given(player("gpu-1"), *STORES)
    for number in range(8):
        some = entry(f"models/m{number}.pth", data_type=DataType.MODELS)
        story.tell(holds("gpu-1", some), after(1))
        if number != 5:
            story.tell(copied(some.path, "store-1"))
    story.tell(after(MINUTE))
    survey = surveyed(story)
    assert survey.repairs(2) == ["models/m5.pth", "models/m0.pth"]
    assert len(survey.repairs(99)) == 5
    assert repairs_allowed(2, 0, Replication()) == 3
    assert repairs_allowed(0, 498, Replication()) == 2
    assert repairs_allowed(9, 600, Replication()) == 0


def test_a_repair_is_left_alone_for_a_while() -> None:
    """K8: 600 s cooldown per item."""
    story = given(player("gpu-1"), holds("gpu-1", GAMES), after(MINUTE))
    due = events.SweepDue(kind=SweepKind.REPLICATION, cycle=1, paths=(GAMES.path,), found=1)
    story.tell(Said(due, by="boss", id="sweep-replication-1"))
    assert story.view.repairs_since(T0) == 1
    assert surveyed(story).repairs(5) == []
    story.tell(after(599))
    assert surveyed(story).repairs(5) == []
    story.tell(after(1))
    assert surveyed(story).repairs(5) == [GAMES.path]


def test_a_repair_is_a_chain_with_one_end_and_spares_ephemeral_nodes() -> None:
    """K8: planned by the policy's rule, from a holder to nodes that last."""
    story = given(
        player("gpu-1"),
        node("spot", Role.STORAGE, traits=[Trait.EPHEMERAL]),
        *STORES[:2],
        holds("gpu-1", GAMES),
    )
    due = events.SweepDue(kind=SweepKind.REPLICATION, cycle=1, paths=(GAMES.path,), found=1)
    story.tell(opens("sweep-replication-1", due, by="boss"), said_what_is_owed)
    chain = story.chain("sweep-replication-1")
    assert {need.target for need in chain.needs} == {"store-1", "store-2"}
    assert {held.target for held in chain.held} == {"gpu-1"}


def test_merged_databases_are_nobodys_copy() -> None:
    """P21: no repair would ever bring one."""
    elo = entry("unified_elo.db", data_type=DataType.METADATA, config_key="all")
    story = given(player("gpu-1"), holds("gpu-1", elo), after(9_000))
    survey = surveyed(story)
    assert (survey.repairs(5), survey.alerts) == ([], [])


# The bucket


def test_what_the_bucket_lacks_is_named_until_it_has_it() -> None:
    """K19: games from 100 on, models by their names."""
    policy = Policy(s3=S3(enabled=True, bucket="b"))
    many = games_of("gpu-1", games=100, config_key="square8_2p")
    story = given(player("gpu-1"), holds("gpu-1", GAMES, many, model(), model(name="other.pth")))
    survey = surveyed(story, policy)
    assert sorted(survey.backups) == [many.path, model().path]
    story.tell(succeeded_with(many, "s3", source="gpu-1"))
    assert surveyed(story, policy).backups == [model().path]
    assert surveyed(story).backups == [], "there is no bucket"


# Orphans


def test_games_that_no_chain_took_are_orphans_after_a_while() -> None:
    """P17: said once they have been there for three cycles, though their file grows meanwhile."""
    story = given(player("gpu-1"), trainer(), holds("gpu-1", GAMES), after(890))
    story.tell(holds("gpu-1", games_of("gpu-1", "second", games=60)))
    assert not surveyed(story).orphans
    story.tell(after(10))
    [orphan] = surveyed(story).orphans
    assert (orphan.games, orphan.primary_location) == (60, "gpu-1")


def test_games_that_a_chain_took_are_no_orphans() -> None:
    """Planned or found in place; a later file of the node must be taken anew."""
    story = given(player("gpu-1"), trainer(), opens("c1", played("gpu-1")))
    story.tell(answers("c1", "gpu-1", GAMES), said_what_is_owed, after(9_000))
    assert not surveyed(story).orphans
    story.tell(holds("gpu-1", games_of("gpu-1", "second")), after(899))
    assert not surveyed(story).orphans
    story.tell(after(1))
    assert surveyed(story).orphans


def test_p17_a_copy_made_for_safety_takes_no_games() -> None:
    """A repair brings them to nobody who waits for them: they are orphans still."""
    story = given(player("gpu-1"), *STORES[:2], holds("gpu-1", GAMES))
    due = events.SweepDue(kind=SweepKind.REPLICATION, cycle=1, paths=(GAMES.path,), found=1)
    story.tell(opens("sweep-replication-1", due, by="boss"), said_what_is_owed, after(9_000))
    assert surveyed(story).orphans


# Disks


@pytest.mark.parametrize(
    ("used", "tier"),
    [
        (0.69, DiskTier.NORMAL),
        (0.70, DiskTier.NO_BACKGROUND),
        (0.85, DiskTier.CLEANUP),
        (0.93, DiskTier.STOP_PRODUCTION),
        (0.96, DiskTier.CRITICAL),
    ],
)
def test_k21_tiers(used: float, tier: DiskTier) -> None:
    """70, 85, 93 and 96 %; and back only when it is clearly below."""
    assert tier_of(used, DiskTier.NORMAL, Policy()) is tier
    if tier is not DiskTier.NORMAL:
        assert tier_of(used - 0.01, tier, Policy()) is tier
        assert tier_of(used - 0.021, tier, Policy()).rank < tier.rank


def test_a_full_disk_asks_for_what_is_safe_elsewhere_the_oldest_first() -> None:
    """K21, K22: never what is protected or has too few copies, and no more than is needed."""
    story = given(player("gpu-1"), *STORES)
    for number, (path, copies) in enumerate(
        [("a.jsonl", 3), ("b.jsonl", 2), ("c.npz", 4), ("d.jsonl", 3), ("e.jsonl", 4)]
    ):
        some = entry(f"games/gpu-1/{path}", size_bytes=100)
        story.tell(holds("gpu-1", msgspec.structs.replace(some, mtime=10.0 - number)))
        story.tell(*(copied(some.path, f"store-{n + 1}") for n in range(copies)))
    known = Known(Policy(), story.view, story.now)
    held = list(story.view.catalog.entries(node="gpu-1"))
    chosen = [one.path for one in cleanup(held, "gpu-1", known, 150)]
    assert chosen == ["games/gpu-1/e.jsonl", "games/gpu-1/d.jsonl"]
    assert too_full_bytes(1000, 160, Policy()) == 0
    assert too_full_bytes(1000, 100, Policy()) == 100
    assert too_full_bytes(0, 0, Policy()) == 0


# The loop


class Clock:
    """A time that can be put forward."""

    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> float:
        return self.now


async def swept(log: MemoryLog, projector: Projector, sweeper: Sweeper) -> None:
    """One sweep, on views that have seen all of the log."""
    await projector.catch_up(projector.store, (await log.state()).last_sequence)
    await sweeper.survey_and_say()


async def said(log: MemoryLog, *kinds: type[events.Event]) -> list[Any]:
    """Facts of some classes."""
    found: list[Any] = []
    async for batch in log.read(until=(await log.state()).last_sequence):
        found += [one.event for one in batch if isinstance(one.event, kinds)]
    return found


async def test_two_coordinators_say_what_they_found_once(
    tmp_path: Path, make_story: Callable[[], list[Any]]
) -> None:
    """One trigger a cycle, one alert a severity, one word of orphans an hour."""
    clock = Clock()
    log = MemoryLog(clock)
    for number, fact in enumerate(make_story(), 1):
        await log.publish(as_fact(fact, number))
    clock.now += 20 * MINUTE
    for name in ("one", "two"):
        projector = Projector(log, tmp_path / name)
        await projector.start()
        sweeper = Sweeper(log, projector, Policy(), "boss", clock=clock)
        await swept(log, projector, sweeper)
        await swept(log, projector, sweeper)
        await projector.close()
    [due] = await said(log, events.SweepDue)
    assert (due.kind, due.paths, due.found) == (SweepKind.REPLICATION, (GAMES.path,), 1)
    [alert] = await said(log, events.ReplicationAlert)
    assert (alert.path, alert.severity) == (GAMES.path, "warning")
    [orphans] = await said(log, events.OrphanGamesDetected)
    assert (orphans.node, orphans.orphan_count, orphans.paths) == ("gpu-1", 50, (GAMES.path,))


@pytest.fixture
def make_story() -> Callable[[], list[Any]]:
    """A player with games that nobody took and nobody else has."""
    return lambda: [player("gpu-1"), holds("gpu-1", GAMES)]


async def test_a_survey_sees_every_path_however_short_its_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page, each path once; more than a trigger names are counted."""
    monkeypatch.setattr("dataplane.coordinator.sweeping.PAGE_S", 0.0)
    log = MemoryLog()
    await log.publish(as_fact(player("gpu-1"), 1))
    many = [entry(f"games/gpu-1/{n}.jsonl", games=200) for n in range(MOST_BACKED_UP + 7)]
    for number, start in enumerate(range(0, len(many), 100)):
        await log.publish(as_fact(holds("gpu-1", *many[start : start + 100]), number + 2))
    projector = Projector(log, tmp_path)
    await projector.start()
    policy = Policy(s3=S3(enabled=True, bucket="b"))
    survey = await Sweeper(log, projector, policy, "boss").survey()
    await projector.close()
    assert survey.looked_at == len(many)
    assert (len(set(survey.backups)), survey.unbacked) == (MOST_BACKED_UP, len(many))


async def test_a_path_that_can_not_be_surveyed_keeps_nobody_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P18: it is counted and named for health, until it can be surveyed again."""
    real, poison = Survey.look, "games/gpu-1/2.jsonl"

    def look(self: Survey, key: bytes, row: Any, view: Any) -> None:
        if poison and view.entry(row.entry).path == poison:
            raise KeyError("no such board")
        real(self, key, row, view)

    monkeypatch.setattr(Survey, "look", look)
    log = MemoryLog()
    await log.publish(as_fact(player("gpu-1"), 1))
    many = [entry(f"games/gpu-1/{n}.jsonl", games=200) for n in range(5)]
    await log.publish(as_fact(holds("gpu-1", *many), 2))
    projector = Projector(log, tmp_path)
    await projector.start()
    sweeper = Sweeper(log, projector, Policy(), "boss")
    assert (await sweeper.survey()).looked_at == 4
    said = f"{poison} can't be surveyed: KeyError: 'no such board'"
    assert (sweeper.state.errors, sweeper.state.problem) == (1, said)
    poison = ""
    assert (await sweeper.survey()).looked_at == 5
    assert sweeper.state.problem == ""
    await projector.close()


async def test_a_sweep_that_stumbles_ends_no_coordinator(tmp_path: Path) -> None:
    """It is tried again at its time; the others go on meanwhile."""
    log = MemoryLog()
    projector = Projector(log, tmp_path)
    await projector.start()
    sweeper, tries = Sweeper(log, projector, Policy(), "boss"), 0

    async def stumbles() -> None:
        nonlocal tries
        tries += 1
        raise KeyError("no such disk")

    running = asyncio.create_task(sweeper._each(0.001, stumbles))
    await eventually(lambda: tries > 3)
    assert "stumbles does not finish: KeyError" in sweeper.state.problem
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await projector.close()


async def test_what_a_sweep_found_is_cut_where_a_message_ends(tmp_path: Path) -> None:
    """Long paths: as many are named as fit, and all are counted."""
    clock = Clock()
    log = MemoryLog(clock)
    await log.publish(as_fact(player("gpu-1"), 1))
    many = [entry(f"games/gpu-1/{'d' * 3_000}/{n:03}.jsonl", games=200) for n in range(150)]
    for number, start in enumerate(range(0, len(many), 50)):
        await log.publish(as_fact(holds("gpu-1", *many[start : start + 50]), number + 2))
    clock.now += 24 * 60 * MINUTE
    projector = Projector(log, tmp_path)
    await projector.start()
    policy = Policy(s3=S3(enabled=True, bucket="b"))
    sweeper = Sweeper(log, projector, policy, "boss", clock=clock)
    await swept(log, projector, sweeper)
    await projector.close()
    [due] = [one for one in await said(log, events.SweepDue) if one.kind is SweepKind.S3]
    assert 0 < len(due.paths) < due.found == len(many)
    [orphans] = await said(log, events.OrphanGamesDetected)
    assert 0 < len(orphans.paths) < len(many)
    assert orphans.orphan_count == 200 * len(many)
    assert sweeper.state.errors == 0


class WithoutAlerts(MemoryLog):
    """A log no message of which can hold an alert."""

    async def publish(self, fact: Fact) -> Receipt:
        if isinstance(fact.event, events.ReplicationAlert):
            raise ValueError("REPLICATION_ALERT is too large")
        return await super().publish(fact)


async def test_what_cannot_be_said_is_in_the_way_of_nothing_else(
    tmp_path: Path, make_story: Callable[[], list[Any]]
) -> None:
    """It is counted, and the rest of what the sweep found is said."""
    clock = Clock()
    log = WithoutAlerts(clock)
    for number, fact in enumerate(make_story(), 1):
        await log.publish(as_fact(fact, number))
    clock.now += 20 * MINUTE
    projector = Projector(log, tmp_path)
    await projector.start()
    sweeper = Sweeper(log, projector, Policy(), "boss", clock=clock)
    await swept(log, projector, sweeper)
    await projector.close()
    assert sweeper.state.errors == 1
    assert len(await said(log, events.SweepDue)) == 1
