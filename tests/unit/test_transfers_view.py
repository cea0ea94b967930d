"""Transfers: what waits in which order, what is under way, what is shared, what came too late."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from msgspec.structs import replace

from dataplane.coordinator.bridge import _moved_on
from projections.transfers import CopyRow, TransferRow, TransferState, transfer_id
from streams import events
from streams.codec import fact_id
from streams.values import DataEntry, DataType, SyncPlan, SyncPriority, Transport
from tests.spec import (
    T0,
    Said,
    Story,
    after,
    answers,
    assigned,
    copied,
    decided,
    entry,
    failed,
    games_of,
    given,
    holds,
    model,
    opens,
    played,
    player,
    said_what_is_owed,
    succeeded,
    succeeded_with,
    trainer,
)
from tests.unit.histories import Step, histories, lived

GAMES = games_of("gpu-1", version=3)
PENDING, ASSIGNED = TransferState.PENDING, TransferState.ASSIGNED
SUCCEEDED, SUPERSEDED = TransferState.SUCCEEDED, TransferState.SUPERSEDED


def planned(
    chain: str, *entries: DataEntry, targets: tuple[str, ...] = ("train-1",), **more: Any
) -> Said:
    """A chain plans these entries for these targets."""
    plan = SyncPlan(
        source_node="gpu-1",
        target_nodes=targets,
        entries=entries,
        transport_preference=(Transport.HTTP_FETCH,),
        **more,
    )
    return decided(chain, events.SyncPlanned(config_key="hex8_2p", plans=(plan,)))


def ended(chain: str, *, well: bool = True) -> Said:
    """A chain ends."""
    cls = events.DataSyncCompleted if well else events.DataSyncFailed
    return decided(chain, cls(config_key="hex8_2p", source_node="gpu-1"))


def the(story: Story, what: DataEntry = GAMES, target: str = "train-1") -> TransferRow:
    """A transfer that must be known."""
    row = story.view.transfer(transfer_id(what, target))
    assert row is not None
    return row


def waiting(story: Story) -> list[str]:
    """What waits to be assigned, by the last part of its path, in order."""
    return [row.entry.path.rpartition("/")[2] for row in story.view.pending()]


def order(what: DataEntry, attempt: int = 1, target: str = "train-1") -> events.TransferAssigned:
    """A transfer is assigned."""
    return events.TransferAssigned(
        transfer=transfer_id(what, target),
        executor=target,
        source="gpu-1",
        target=target,
        entry=what,
        transports=(Transport.HTTP_FETCH,),
        attempt=attempt,
        timeout_s=60.0,
        bandwidth_mbps=50.0,
    )


def failure(what: DataEntry, attempt: int = 1, moved: int = 0) -> events.TransferFailed:
    """An attempt failed."""
    return events.TransferFailed(
        transfer=transfer_id(what, "train-1"),
        node="train-1",
        source="gpu-1",
        target="train-1",
        entry=what,
        attempt=attempt,
        error="no byte came",
        error_class="Stalled",
        bytes_transferred=moved,
    )


def success(what: DataEntry, target: str = "train-1", moved: int = 0) -> events.TransferSucceeded:
    """A transfer succeeded."""
    return succeeded_with(what, target, transfer=transfer_id(what, target), moved=moved)


# The queue


def test_plan_makes_one_transfer_for_each_entry_and_target() -> None:
    """A row says all that admission needs to know."""
    story = given(after(2), planned("c1", GAMES, targets=("train-1", "train-2"), reason="why"))
    assert {(row.target, row.state) for row in story.view.pending()} == {
        ("train-1", PENDING),
        ("train-2", PENDING),
    }
    row = the(story)
    assert (row.entry, row.source, row.reason) == (GAMES, "gpu-1", "why")
    assert (row.chains, row.attempt, row.failures) == (("c1",), 0, ())
    assert (row.queued_sequence, row.queued_at) == (1, T0 + 2)
    assert [one.id for one in story.view.transfers_of("c1")] == sorted(
        transfer_id(GAMES, target) for target in ("train-1", "train-2")
    )


def test_queue_is_in_order_of_priority_then_deadline_then_age() -> None:
    """What trains now goes first, then what is due first, then what waited longest."""
    low, high = SyncPriority.LOW, SyncPriority.HIGH
    story = given(
        planned("c1", entry("old")),
        planned("c2", entry("low"), priority=low, deadline=1.0),
        planned("c3", entry("late"), deadline=2_000_000_000.0),
        planned("c4", entry("soon"), deadline=1_000_000_000.5),
        planned("c5", entry("sooner"), deadline=1_000_000_000.25),
        planned("c6", entry("high"), priority=high),
        planned("c7", entry("critical"), priority=SyncPriority.CRITICAL),
        planned("c8", entry("background"), priority=SyncPriority.BACKGROUND),
        planned("c9", entry("young")),
    )
    assert waiting(story) == [
        "critical",
        "high",
        "sooner",
        "soon",
        "late",
        "old",
        "young",
        "low",
        "background",
    ]


def test_deadline_before_1970_is_the_most_urgent_one() -> None:
    """A deadline somebody computed wrongly breaks no order."""
    story = given(planned("c1", entry("b"), deadline=1.0), planned("c2", entry("a"), deadline=-9.0))
    assert waiting(story) == ["a", "b"]


# Shared by chains


def test_two_chains_that_need_the_same_bytes_share_one_transfer() -> None:
    """The row keeps its place, and waits for both."""
    story = given(planned("c1", GAMES), planned("c2", GAMES))
    assert the(story).chains == ("c1", "c2")
    assert the(story).queued_sequence == 1
    assert len(list(story.view.pending())) == 1
    assert story.view.transfers_of("c1") == story.view.transfers_of("c2") == [the(story)]


def test_shared_transfer_is_as_urgent_as_the_most_urgent_chain() -> None:
    """Highest priority, earliest deadline, whoever came first."""
    story = given(
        planned("c1", entry("other"), priority=SyncPriority.HIGH),
        planned("c2", GAMES, deadline=50.0),
        planned("c3", GAMES, priority=SyncPriority.CRITICAL, deadline=90.0),
        planned("c4", GAMES, priority=SyncPriority.LOW, deadline=20.0),
    )
    assert (the(story).priority, the(story).deadline) == (SyncPriority.CRITICAL, 20.0)
    assert waiting(story) == ["hex8_2p.db", "other"]
    assert story.view.counts()["transfers_pending"] == 2


@pytest.mark.parametrize("urgent", range(len(SyncPriority)))
@pytest.mark.parametrize("lax", range(len(SyncPriority)))
def test_shared_transfer_has_the_more_urgent_of_any_two_priorities(urgent: int, lax: int) -> None:
    """By what they mean, not by how they are spelled, whichever came first."""
    first, second = list(SyncPriority)[urgent], list(SyncPriority)[lax]
    story = given(planned("c1", GAMES, priority=first), planned("c2", GAMES, priority=second))
    assert the(story).priority is list(SyncPriority)[min(urgent, lax)]


def test_id_of_a_transfer_is_what_every_release_makes_of_its_content_and_place() -> None:
    """It is in the log: another id would be another transfer of bytes that are on their way."""
    expected = fact_id("transfer", GAMES.path, GAMES.checksum, "train-1")
    assert transfer_id(GAMES, "train-1") == expected


def test_transfer_stays_until_the_last_chain_that_waits_for_it_has_ended() -> None:
    """One chain's end takes nothing from another (P1)."""
    story = given(planned("c1", GAMES), planned("c2", GAMES), ended("c1", well=False))
    assert the(story).chains == ("c2",)
    assert waiting(story) == ["hex8_2p.db"]
    assert story.view.transfers_of("c1") == []
    story.tell(ended("c2"))
    assert story.view.transfer(transfer_id(GAMES, "train-1")) is None
    assert waiting(story) == []


def test_same_plan_twice_in_one_chain_is_one_wait() -> None:
    """Parts of a plan may name an entry twice."""
    story = given(planned("c1", GAMES), planned("c1", GAMES), ended("c1"))
    assert story.view.transfer(transfer_id(GAMES, "train-1")) is None


def test_transfer_to_another_target_or_of_another_content_is_another_one() -> None:
    """A transfer's id says what it achieves."""
    ids = {
        transfer_id(GAMES, "train-1"),
        transfer_id(GAMES, "train-2"),
        transfer_id(games_of("gpu-1", "second"), "train-1"),
        transfer_id(games_of("gpu-2"), "train-1"),
    }
    assert len(ids) == 4
    assert transfer_id(games_of("gpu-1", version=9), "train-1") in ids


# Under way


def test_assigned_transfer_is_under_way_and_no_longer_waits() -> None:
    """Who carries it out, from whom, since when, for how long."""
    story = given(planned("c1", GAMES), after(4), order(GAMES))
    row = the(story)
    assert (row.state, row.executor, row.source) == (ASSIGNED, "train-1", "gpu-1")
    assert (row.attempt, row.assigned_at, row.timeout_s) == (1, T0 + 4, 60.0)
    assert (waiting(story), story.view.in_flight()) == ([], [row])
    assert story.view.last_assigned_sequence() == 2


def test_failed_attempt_puts_the_transfer_back_into_its_place() -> None:
    """What it cost and why is remembered, and the queue's order is not lost."""
    story = given(planned("c1", GAMES), planned("c2", entry("younger")))
    story.tell(order(GAMES), after(3), failure(GAMES, moved=70))
    row = the(story)
    assert (row.state, row.bytes_transferred) == (PENDING, 70)
    assert [(f.time, f.error_class, f.source) for f in row.failures] == [
        (T0 + 3, "Stalled", "gpu-1")
    ]
    assert waiting(story) == ["hex8_2p.db", "younger"]
    assert story.view.in_flight() == []


def test_success_after_failures_counts_all_bytes_that_moved() -> None:
    """P15: bytes of failed attempts moved too; games are those of the copy."""
    story = given(planned("c1", GAMES), order(GAMES), failure(GAMES, moved=70), order(GAMES, 2))
    story.tell(after(9), success(GAMES, moved=930))
    row = the(story)
    assert (row.state, row.bytes_transferred, row.games) == (SUCCEEDED, 1_000, 500)
    assert (row.arrived_checksum, row.ended_at) == (GAMES.checksum, T0 + 9)
    assert (waiting(story), story.view.in_flight()) == ([], [])


def test_totals_count_transfers_bytes_and_failures_since_the_log_began() -> None:
    """Also those nobody waited for: bytes that moved have moved."""
    story = given(planned("c1", GAMES), order(GAMES), failure(GAMES, moved=70), order(GAMES, 2))
    story.tell(success(GAMES, moved=930), succeeded_with(entry("stray"), "gpu-9", moved=5))
    totals = story.view.totals()
    assert (totals.transfers, totals.bytes, totals.failures) == (2, 1_005, 1)


def test_each_failure_names_who_tried_and_all_bytes_of_all_attempts_are_kept() -> None:
    """Two executors in turn: what each of them lost is told apart, what both moved is summed."""
    story = given(planned("c1", GAMES), order(GAMES), failure(GAMES, moved=70))
    second = replace(order(GAMES, 2), executor="gpu-1")
    story.tell(second, failure(GAMES, attempt=2, moved=30))
    row = the(story)
    assert [one.executor for one in row.failures] == ["train-1", "gpu-1"]
    assert row.bytes_transferred == 100


def test_last_proven_copy_of_each_configuration_is_known() -> None:
    """When it arrived, what it was and where: the newest, whoever had asked for it."""
    other = entry("games/gpu-1/square8_2p.db", config_key="square8_2p")
    story = given(planned("c1", GAMES, other), order(GAMES), success(GAMES), success(other))
    assert story.view.last_copies() == {
        "hex8_2p": CopyRow(T0, GAMES.path, "train-1"),
        "square8_2p": CopyRow(T0, other.path, "train-1"),
    }
    story.tell(after(7), success(GAMES, "train-2"))
    assert story.view.last_copies()["hex8_2p"] == CopyRow(T0 + 7, GAMES.path, "train-2")


# Too late, twice, unknown


def test_result_of_an_earlier_attempt_does_not_end_a_later_one() -> None:
    """An executor that was given up may still say that it failed."""
    story = given(planned("c1", GAMES), order(GAMES), failure(GAMES), order(GAMES, 2))
    story.tell(failure(GAMES, attempt=1))
    assert (the(story).state, len(the(story).failures)) == (ASSIGNED, 1)


def test_failure_told_twice_counts_once() -> None:
    """By the coordinator that gave up, and by the executor that came back."""
    story = given(planned("c1", GAMES), order(GAMES), failure(GAMES), failure(GAMES))
    assert (the(story).state, len(the(story).failures)) == (PENDING, 1)


def test_late_success_meets_a_transfer_that_was_given_up() -> None:
    """The bytes are there: nothing has to move again."""
    story = given(planned("c1", GAMES), order(GAMES), failure(GAMES), success(GAMES))
    assert the(story).state is SUCCEEDED
    assert waiting(story) == []


def test_failure_after_success_is_ignored() -> None:
    """What has arrived stays arrived."""
    story = given(planned("c1", GAMES), order(GAMES), success(GAMES), failure(GAMES))
    assert the(story).state is SUCCEEDED


def test_assignment_of_what_is_not_pending_changes_nothing() -> None:
    """An order for what is under way, or has arrived."""
    story = given(planned("c1", GAMES), order(GAMES), order(GAMES, 2))
    assert the(story).attempt == 1
    story.tell(success(GAMES), order(GAMES, 2))
    assert the(story).state is SUCCEEDED


def test_order_whose_chain_ended_while_it_was_decided_takes_a_slot_until_its_result() -> None:
    """Its executor knows nothing of that, and moves the bytes."""
    story = given(planned("c1", GAMES), ended("c1", well=False), order(GAMES))
    [row] = story.view.in_flight()
    assert (row.chains, row.executor, row.attempt) == ((), "train-1", 1)
    story.tell(success(GAMES))
    assert story.view.in_flight() == []
    assert story.view.transfer(transfer_id(GAMES, "train-1")) is None


def test_transfer_under_way_outlives_its_chain_until_its_result() -> None:
    """It still takes a slot; after its result it is forgotten."""
    story = given(planned("c1", GAMES), order(GAMES), ended("c1", well=False))
    assert [row.chains for row in story.view.in_flight()] == [()]
    story.tell(failure(GAMES))
    assert (story.view.in_flight(), waiting(story)) == ([], [])
    assert story.view.transfer(transfer_id(GAMES, "train-1")) is None


def test_chain_that_joins_a_transfer_under_way_waits_for_its_result() -> None:
    """Its bytes are on the way already."""
    story = given(planned("c1", GAMES), order(GAMES), ended("c1", well=False), planned("c2", GAMES))
    assert (the(story).state, the(story).chains) == (ASSIGNED, ("c2",))
    story.tell(success(GAMES))
    assert the(story).state is SUCCEEDED


# Already there, again, or overtaken


def test_bytes_that_arrived_between_decision_and_record_need_not_move() -> None:
    """Two chains decided on the same views; the first one's transfer was faster."""
    story = given(holds("gpu-1", GAMES), copied(GAMES.path, "train-1"), planned("c1", GAMES))
    row = the(story)
    assert (row.state, row.arrived_checksum, row.games) == (SUCCEEDED, GAMES.checksum, 500)
    assert waiting(story) == []


def test_what_was_lost_after_it_arrived_moves_again() -> None:
    """A new plan for a file that is gone from the target is a new transfer, with a new queueing."""
    story = given(planned("c1", GAMES), order(GAMES), success(GAMES))
    story.tell(events.FilesRemoved(node="train-1", paths=(GAMES.path,)), planned("c2", GAMES))
    row = the(story)
    assert (row.state, row.attempt, row.chains) == (PENDING, 0, ("c1", "c2"))
    assert row.queued_sequence == 5


def test_later_version_that_arrives_makes_older_transfers_needless() -> None:
    """P5: the older one would be refused by the target, so nobody moves it."""
    newer = games_of("gpu-1", "second", games=600, version=8)
    story = given(planned("c1", GAMES), planned("c2", newer), order(newer))
    assert story.view.newer_versions(the(story)) == [the(story, newer)]
    assert story.view.newer_versions(the(story, newer)) == []
    story.tell(after(5), success(newer))
    row = the(story)
    assert (row.state, row.arrived_checksum, row.games) == (SUPERSEDED, newer.checksum, 600)
    assert (row.bytes_transferred, row.ended_at) == (0, T0 + 5)
    assert waiting(story) == []
    assert story.view.superseded_at("train-1", GAMES.path) == [row]


def test_later_version_supersedes_what_is_under_way_too() -> None:
    """Its slot comes free; its own result, when it comes, changes nothing for the worse."""
    newer = games_of("gpu-1", "second", version=8)
    story = given(planned("c1", GAMES), order(GAMES), planned("c2", newer), success(newer))
    assert the(story).state is SUPERSEDED
    assert story.view.in_flight() == []
    story.tell(failure(GAMES))
    assert the(story).state is SUPERSEDED


@pytest.mark.parametrize("under_way", [False, True], ids=["waiting", "under way"])
def test_p4_what_a_target_has_written_itself_supersedes_what_was_to_come(under_way: bool) -> None:
    """It is later than whatever was decided before; another path or node changes nothing.

    What is under way has its slot until it has ended: its agent refuses it, and that is its result.
    """
    old, other = model(version=1), model("other", "canonical_other.pth", version=1)
    story = given(holds("gpu-1", old, other), planned("c1", old, other))
    if under_way:
        story.tell(order(old))
    story.tell(holds("train-2", model("own")))
    assert the(story, old).state is not SUPERSEDED
    mine = model("own")
    story.tell(holds("train-1", mine), after(3))
    if under_way:
        assert [row.entry for row in story.view.in_flight()] == [old]
        story.tell(failure(old))
        assert _moved_on(story.view, story.facts[-1], story.policy) == ["c1"]
    else:
        assert _moved_on(story.view, story.facts[-1], story.policy) == ["c1"]
    row = the(story, old)
    assert (row.state, row.arrived_checksum) == (SUPERSEDED, mine.checksum)
    assert the(story, other).state is PENDING
    assert story.view.in_flight() == []
    assert story.view.superseded_at("train-1") == [row]


def test_p4_what_a_target_wrote_before_supersedes_nothing() -> None:
    """Neither when it says so again, nor when an attempt fails; nor does a twin."""
    mine, later = model("own"), model("later", version=2)
    story = given(holds("train-1", mine), holds("gpu-1", later), planned("c1", later))
    story.tell(holds("train-1", mine))
    assert the(story, later).state is PENDING
    story.tell(order(later), failure(later))
    assert the(story, later).state is PENDING
    twin = model("twin", version=1)
    story.tell(planned("c2", twin), order(twin), failure(twin))
    assert the(story, twin).state is PENDING


def test_older_version_supersedes_nothing() -> None:
    """Nor does the same path on another target."""
    newer = games_of("gpu-1", "second", version=8)
    story = given(planned("c1", newer), planned("c2", GAMES), success(GAMES))
    assert the(story, newer).state is PENDING
    story.tell(success(games_of("gpu-1", "third", version=9), "train-2"))
    assert the(story, newer).state is PENDING


def test_version_of_the_same_age_supersedes_nothing() -> None:
    """Two contents that were claimed by one fact: neither is the older."""
    twin = games_of("gpu-1", "twin", version=GAMES.version)
    story = given(planned("c1", GAMES, twin), success(twin))
    assert the(story).state is PENDING


def test_superseded_transfer_is_forgotten_with_its_chain() -> None:
    """Nothing is left in any table."""
    newer = games_of("gpu-1", "second", version=8)
    story = given(planned("c1", GAMES), planned("c2", newer), success(newer))
    story.tell(ended("c1"), ended("c2"))
    assert story.view.superseded_at("train-1", GAMES.path) == []
    assert story.view.transfer(transfer_id(GAMES, "train-1")) is None


def test_new_chain_gives_a_transfer_that_was_given_up_new_attempts() -> None:
    """c1 still moves another file; c2 must not fail for what failed before it was asked."""
    large = entry("games/gpu-1/large_hex8_2p.db", games=10)
    story = given(trainer(), player(), opens("c1", played()), answers("c1", "gpu-1", GAMES, large))
    story.tell(said_what_is_owed, assigned, failed(path=GAMES.path, retryable=False))
    story.tell(opens("c2", played()), answers("c2", "gpu-1"), said_what_is_owed, assigned)
    assert {row.entry.path for row in story.under_way()} == {large.path, GAMES.path}


# Tables that agree


@settings(max_examples=80, deadline=None)
@sampled(steps=histories())
def test_every_transfer_is_in_exactly_the_tables_of_its_state(steps: list[Step]) -> None:
    """Queue, flight and chains agree with the rows, after any history."""
    story = lived(steps)
    view = story.view
    pending, flight = list(view.pending()), view.in_flight()
    assert all(row.state is PENDING and row.chains for row in pending)
    assert all(row.state is ASSIGNED for row in flight)
    assert len({row.id for row in pending}) == len(pending) == view.counts()["transfers_pending"]
    assert len(flight) == view.counts()["transfers_in_flight"]
    order_ = [(r.priority.rank, r.deadline or 1e300, r.queued_sequence, r.id) for r in pending]
    assert order_ == sorted(order_)
    for chain in view.open_chains():
        rows = {row.id: row for row in view.transfers_of(chain.id)}
        whole = view.whole_chain(chain.id)
        assert whole is not None
        assert set(rows) == {need.transfer for need in whole.needs}
        assert all(chain.id in row.chains for row in rows.values())
    for ended_chain in view.ended_chains():
        assert view.transfers_of(ended_chain.id) == []


def test_models_and_games_share_the_queue() -> None:
    """Types do not matter to the order."""
    story = given(planned("c1", entry("m", data_type=DataType.MODELS)), planned("c2", entry("g")))
    assert waiting(story) == ["m", "g"]
    story.tell(assigned, succeeded())
    assert waiting(story) == []
