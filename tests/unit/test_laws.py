"""The promises as laws: each is broken by a log that breaks it, and by no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from dataplane import laws
from dataplane.demo.disks import checksum_of, gone
from streams import events
from streams.codec import Recorded, chain_of_trigger, decode, encode, fact_id, node_fact
from streams.values import DataEntry, Held, Proof, SyncPlan, SyncPriority, TargetOutcome
from tests.spec import T0, decided, entry, games_of, given, opens, played, player, ran, trainer

GAMES = games_of("gpu-1")


@pytest.fixture
def facts() -> list[Recorded]:
    """A chain from its trigger to its announcement."""
    return list(given(trainer(), player(), ran("c1", played(), GAMES)).facts)


def assigned(transfer: str, source: str, target: str, **more: object) -> events.TransferAssigned:
    """An order."""
    return events.TransferAssigned(
        transfer=transfer,
        executor=target,
        source=source,
        target=target,
        entry=GAMES,
        transports=(),
        **more,  # type: ignore[arg-type]
    )


def recorded(*said: events.Event) -> list[Recorded]:
    """A log of these, a second apart, each said by a node or for a chain ``c``."""
    found = []
    for number, event in enumerate(said, start=1):
        owner = getattr(event, "executor", None) or getattr(event, "node", None) or "c"
        fact = node_fact(event, owner, fact_id("law", number))
        headers, body = encode(fact, T0 + number)
        found.append(decode(number, T0 + number, fact.subject, headers, body))
    return found


def test_good_log_breaks_no_law(facts: list[Recorded]) -> None:
    """Nor the configured ones."""
    acknowledged = [fact.id for fact in facts]
    more = (
        laws.late_chains_are_named(1.0, 0.0),
        laws.budgets_are_kept(1, 1),
        laws.deletions_leave_enough(2),
        laws.nothing_acknowledged_is_lost(acknowledged),
    )
    assert laws.broken(facts, (*laws.ALWAYS, *more)) == []


@pytest.mark.parametrize("type_name", ["DATA_SYNC_COMPLETED", "NEW_GAMES_AVAILABLE"])
def test_what_is_said_twice_for_a_chain_is_found(facts: list[Recorded], type_name: str) -> None:
    """Under another id, so that only the law can know."""
    (one,) = (fact for fact in facts if fact.type == type_name)
    problems = laws.broken([*facts, replace(one, id="again")], laws.ALWAYS)
    assert len(problems) == 1 and "2 times" in problems[0]


@pytest.mark.parametrize("type_name", ["DATA_SYNC_COMPLETED", "NEW_GAMES_AVAILABLE"])
def test_what_is_never_said_for_a_chain_is_found(facts: list[Recorded], type_name: str) -> None:
    """A chain without an end, an announcement that was owed."""
    rest = [fact for fact in facts if fact.type != type_name]
    assert laws.broken(rest, laws.ALWAYS)


@pytest.mark.parametrize(
    ("missing", "announced", "broken"),
    [("s3", 1, 0), ("s3", 0, 1), ("train-1", 1, 0), ("train-1", 0, 0), ("train-1", 2, 1)],
)
def test_games_are_announced_though_the_bucket_lacks_them(
    facts: list[Recorded], missing: str, announced: int, broken: int
) -> None:
    """Who trains has them: it is owed then; and never twice."""
    (end,) = (fact for fact in facts if fact.type == "DATA_SYNC_COMPLETED")
    (said,) = (fact for fact in facts if fact.type == "NEW_GAMES_AVAILABLE")
    lacks = TargetOutcome(missing, GAMES.path, GAMES.checksum, error="it is away")
    failed = events.DataSyncFailed(config_key="hex8_2p", source_node="gpu-1", failed=(lacks,))
    rest = [fact for fact in facts if fact not in (end, said)]
    story = [*rest, replace(end, event=failed)]
    story += [replace(said, id=f"said-{number}") for number in range(announced)]
    assert len(list(laws.every_announcement_is_made_once(story))) == broken


def test_chain_that_is_late_and_not_named_is_found() -> None:
    """After its limit and the slack; CHAIN_OVERDUE makes it right."""
    law = laws.late_chains_are_named(10.0, 5.0)
    story = given(opens("c1", played()))
    opened = next(iter(story.facts))
    late = replace(opened, sequence=99, id="later", time=opened.time + 16.0, chain="", event=None)
    assert len(list(law([opened, late]))) == 1
    overdue = events.ChainOverdue(config_key="hex8_2p", age_seconds=11.0, waiting_for="x")
    said = list(story.tell(decided("c1", overdue)).facts)
    assert list(law([*said, late])) == []


def test_budget_that_is_exceeded_is_found() -> None:
    """In all, and at one node; a critical transfer finds one slot more."""
    two = recorded(assigned("t1", "a", "b"), assigned("t2", "c", "d"))
    assert list(laws.budgets_are_kept(2, 1)(two)) == []
    assert len(list(laws.budgets_are_kept(1, 1)(two))) == 1
    shared = recorded(assigned("t1", "a", "b"), assigned("t2", "a", "d"))
    assert len(list(laws.budgets_are_kept(2, 1)(shared))) == 1
    stored = recorded(assigned("t1", "a", "s3"), assigned("t2", "b", "s3"))
    assert list(laws.budgets_are_kept(2, 1)(stored)) == []
    urgent = assigned("t2", "a", "d", priority=SyncPriority.CRITICAL)
    assert list(laws.budgets_are_kept(1, 1)(recorded(assigned("t1", "a", "b"), urgent))) == []


@pytest.mark.parametrize(("rate", "broken"), [(80.0, 0), (80.1, 1), (0.0, 1)])
def test_order_with_more_than_a_node_has_is_found(rate: float, broken: int) -> None:
    """Or with no rate at all, which would be any; where nothing is limited, any is right."""
    order = recorded(assigned("t1", "a", "b", bandwidth_mbps=rate))
    assert len(list(laws.orders_are_limited(10.0, 50.0)(order))) == broken
    assert len(list(laws.orders_are_limited(50.0, 10.0)(order))) == broken
    assert list(laws.orders_are_limited(0.0, 0.0)(order)) == []


@pytest.mark.parametrize("later", [0, 1], ids=["older order", "order for a later version"])
def test_order_for_what_another_transfer_has_brought_takes_no_slot(later: int) -> None:
    """An order that was thought lost brings its entry late; only what is later is still to move."""
    brought = replace(GAMES, version=5)
    late = events.TransferSucceeded(
        transfer="t0", node="b", source="a", target="b", entry=brought, attempt=1
    )
    wanted = replace(GAMES, version=4 + 2 * later, checksum="sha256:" + "0" * 64)
    order = replace(assigned("t1", "a", "b"), entry=wanted)
    after = replace(assigned("t2", "a", "b"), entry=games_of("gpu-2"))
    problems = list(laws.budgets_are_kept(1, 1)(recorded(order, late, after)))
    assert bool(problems) is bool(later), problems


def test_deletion_without_enough_proofs_is_found() -> None:
    """Proven copies elsewhere count, the deleted one and unproven ones do not."""
    law = laws.deletions_leave_enough(2)

    def deletion(*proofs: Proof) -> list[Recorded]:
        same = {"path": GAMES.path, "checksum": GAMES.checksum, "node": "n1", "request": "r"}
        granted = events.DeletionGranted(proofs=proofs, **same)
        done = events.DeletionDone(deleted=True, **same)
        return recorded(granted, done)

    proven = [Proof(node=f"n{number}", proven=True) for number in range(1, 5)]
    assert list(law(deletion(*proven[1:]))) == []
    assert len(list(law(deletion(proven[0], proven[1])))) == 1
    assert len(list(law(deletion(proven[1], Proof(node="n3", proven=False))))) == 1


def brought(target: str, what: DataEntry = GAMES) -> events.TransferSucceeded:
    """A copy has come."""
    return events.TransferSucceeded(
        transfer="t", node=target, source="gpu-1", target=target, entry=what, attempt=1
    )


@pytest.mark.parametrize(
    ("then", "broken"),
    [
        ([], 1),
        ([brought("n1")], 0),
        ([events.FilesObserved(node="n1", entries=(GAMES,))], 0),
        ([events.FilesRemoved(node="n2", paths=(GAMES.path,))], 0),
        ([events.FilesRemoved(node="n2", paths=(GAMES.path,)), brought("n3")], 1),
        ([brought("n1"), events.FilesRemoved(node="n1", paths=(GAMES.path,))], 0),
    ],
    ids=["stays so", "comes again", "written anew", "nobody has it", "others have it", "then goes"],
)
def test_damaged_copy_that_is_never_repaired_is_found(
    then: list[events.Event], broken: int
) -> None:
    """As long as anybody holds what is damaged here."""
    damaged = events.FileQuarantined(
        node="n1", path=GAMES.path, checksum=GAMES.checksum, reason="rotten"
    )
    facts = recorded(brought("n2"), brought("n1"), damaged, *then)
    assert len(list(laws.damage_is_repaired(facts))) == broken
    # What was found wrong on its way was never there.
    on_its_way = recorded(brought("n2"), damaged, *then)
    assert list(laws.damage_is_repaired(on_its_way)) == []


@pytest.mark.parametrize(
    ("then", "broken"),
    [
        ([], 1),
        ([brought("n2")], 0),
        ([brought("n3")], 1),
        ([brought("n2"), events.FilesRemoved(node="n2", paths=(GAMES.path,))], 1),
        ([brought("n2", replace(GAMES, checksum="sha256:" + "1" * 64))], 1),
        ([brought("n2", replace(GAMES, checksum="sha256:" + "1" * 64, version=9))], 0),
    ],
    ids=["nowhere", "elsewhere", "wiped too", "not to the end", "something else", "a later one"],
)
def test_what_was_lost_with_a_node_that_was_wiped_is_found(
    then: list[events.Event], broken: int
) -> None:
    """What it held when it was said to be drained must be elsewhere to the end."""
    has = events.FilesObserved(node="gpu-1", entries=(GAMES,))
    drained = events.NodeDrained(node="gpu-1", entries=1)
    law = laws.nothing_is_lost_with(["gpu-1", "n3"])
    others = [events.NodeDrained(node="n3")]
    assert len(list(law(recorded(*others, has, drained, *then)))) == broken
    assert list(laws.nothing_is_lost_with([])(recorded(has, drained, *then))) == []


def test_node_that_was_wiped_before_it_was_drained_is_found() -> None:
    """Nobody may take the word of a node for what was never said."""
    has = events.FilesObserved(node="gpu-1", entries=(GAMES,))
    (problem,) = laws.nothing_is_lost_with(["gpu-1"])(recorded(has, brought("n2")))
    assert problem == "gpu-1 was wiped, and NODE_DRAINED was never said of it"


def test_node_that_stays_and_is_said_to_be_drained_is_found() -> None:
    """Unless it was to go once more; what was said before is overtaken."""
    goes, stays = events.NodeTerminating(node="gpu-1"), events.NodeDrainCancelled(node="gpu-1")
    drained, law = events.NodeDrained(node="gpu-1"), laws.no_node_that_stays_is_drained
    assert list(law(recorded(goes, drained, stays, goes, drained))) == []
    (problem,) = law(recorded(goes, stays, drained))
    assert problem == "gpu-1 stays since 2, and at 3 it was said to be drained"
    assert len(list(law(recorded(goes, events.NodeRecovered(node="gpu-1"), drained)))) == 1


def ahead(*said: events.Event) -> list[Recorded]:
    """A log of these, where all that is assigned and brought is ahead of a training."""
    return [
        replace(one, chain="sweep-prestage-x")
        if isinstance(one.event, events.TransferAssigned | events.TransferSucceeded)
        else one
        for one in recorded(*said)
    ]


def test_data_ahead_that_takes_more_than_may_be_spared_is_found() -> None:
    """At a node and in all; what somebody has asked for by then does not count."""
    low = {"priority": SyncPriority.BACKGROUND}
    one = assigned("t1", "gpu-1", "train-1", **low)
    other = replace(one, transfer="t2", entry=entry("other.db"))
    law = laws.what_is_ahead_leaves_slots(0.5, 4, 2)
    assert ["2 ran ahead at gpu-1" in p for p in law(ahead(one, other))] == [True, False]
    assert ["2 ran ahead" in p for p in law(ahead(one, other))] == [True, True]
    assert list(laws.what_is_ahead_leaves_slots(0.5, 4, 4)(ahead(one, other))) == []
    # Two small ones share a slot.
    shared = laws.what_is_ahead_leaves_slots(0.5, 4, 2, small_per_slot=2)
    assert list(shared(ahead(one, other))) == []
    third = replace(one, transfer="t3", entry=entry("third.db"))
    assert ["1.5 ran ahead" in p for p in shared(ahead(one, other, third))] == [True, True]
    assert list(law(recorded(one, other))) == []
    wants = SyncPlan(source_node="gpu-1", target_nodes=("train-1",), entries=(GAMES,))
    asked = events.SyncPlanned(config_key="hex8_2p", plans=(wants,))
    assert list(law(ahead(asked, one, other))) == list(law(ahead(one, asked, other))) == []
    spare = events.SyncPlanned(config_key="hex8_2p", plans=(replace(wants, spare_only=True),))
    assert len(list(law(ahead(spare, one, other)))) == 2
    (problem,) = law(ahead(assigned("t1", "gpu-1", "train-1")))
    assert "assigned as normal" in problem


def test_what_a_start_finds_of_what_was_brought_ahead_is_counted_once() -> None:
    """By the log alone: what the views count must not be more."""
    order = assigned("t", "gpu-1", "train-1")
    came = events.TransferSucceeded(
        transfer="t",
        node="train-1",
        source="gpu-1",
        target="train-1",
        entry=GAMES,
        attempt=1,
        bytes_transferred=7,
    )
    start = events.TrainingStarted(config_key="hex8_2p", node="train-1")
    held = Held(target="train-1", path=GAMES.path, checksum=GAMES.checksum)
    plan = events.SyncPlanned(config_key="hex8_2p", held=(held,))
    facts = ahead(order, came, start, plan, plan)
    assert laws.copies_ahead(facts) == (7, 0)
    story = [*facts[:3], *(replace(one, chain=facts[2].chain) for one in facts[3:])]
    assert laws.copies_ahead(story) == (7, 7)


def test_deletion_that_nobody_hears_of_or_that_is_done_twice_is_found() -> None:
    """Refused or done is an end; of two that are done one is too many."""
    asked = events.DeletionRequested(path=GAMES.path, node="n1")
    request = chain_of_trigger(recorded(asked)[0].id)
    same = {"path": GAMES.path, "node": "n1", "request": request}
    done = events.DeletionDone(deleted=True, checksum=GAMES.checksum, **same)
    kept = events.DeletionRefused(rule="unproven", reason="rotten", **same)

    def problems(*said: events.Event) -> list[str]:
        return list(laws.every_deletion_ends_once(recorded(asked, *said)))

    assert problems(done) == problems(kept) == []
    assert ["has not ended" in one for one in problems()] == [True]
    assert ["2 times" in one for one in problems(done, done)] == [True]


def test_copy_that_was_deleted_and_still_lies_there_is_found(tmp_path: Path) -> None:
    """Unless it was brought again; what else lies there under its name is none."""
    file = tmp_path / "n2" / GAMES.path
    file.parent.mkdir(parents=True)
    file.write_bytes(b"games")
    lies = replace(GAMES, checksum=checksum_of(file))
    same = {"path": lies.path, "node": "n2", "request": "r", "checksum": lies.checksum}
    done = recorded(events.DeletionDone(deleted=True, **same))
    again = recorded(events.DeletionDone(deleted=True, **same), assigned("t", "n1", "n2"))
    removed = events.FilesRemoved(node="n2", paths=(lies.path,))
    late = events.DeletionDone(deleted=True, **same)
    came = brought("n2", lies)
    assert len(gone(recorded(came, removed, late), tmp_path.joinpath)) == 1
    assert gone(recorded(came, removed, came, late), tmp_path.joinpath) == [], "it came again"
    assert len(gone(done, tmp_path.joinpath)) == 1
    assert gone(again, tmp_path.joinpath) == []
    file.write_bytes(b"more games")
    assert gone(done, tmp_path.joinpath) == []


@pytest.mark.parametrize(("games", "left_out", "broken"), [(15, 1, 0), (16, 1, 1), (15, 0, 1)])
def test_games_in_files_that_were_left_out_are_no_overstatement(
    games: int, left_out: int, broken: int
) -> None:
    """No more than the fullest that are not named may hold."""
    found = tuple(entry(f"{n}.db", games=n) for n in (10, 5, 3))
    announced = events.NewGamesAvailable(
        config_key="hex8_2p",
        game_count=games,
        source_node="gpu-1",
        paths=(found[0].path,),
        left_out=left_out,
    )
    completed = events.DataSyncCompleted(
        config_key="hex8_2p",
        source_node="gpu-1",
        targets=(TargetOutcome(target="t", path=found[0].path, checksum=found[0].checksum),),
        games_synced=games,
        left_out=left_out,
    )
    facts = recorded(events.FilesObserved(node="gpu-1", entries=found), announced, completed)
    assert len(laws.broken(facts, [laws.no_games_are_overstated])) == 2 * broken


def test_acknowledged_event_that_is_not_there_is_found(facts: list[Recorded]) -> None:
    """By its id."""
    law = laws.nothing_acknowledged_is_lost([facts[0].id, "gone"])
    assert list(law(facts)) == ["event gone was acknowledged and is not in the log"]
