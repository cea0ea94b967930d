"""What a chain owes: each status, each limit, and that asking again never does harm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given as sampled
from hypothesis import settings

from dataplane.chain import (
    ENDED_IN_TIME_S,
    ERROR_CHARACTERS,
    MOST_VERSIONS,
    _that_fit,
    owed,
    set_aside,
)
from dataplane.coordinator.bridge import _moved_on
from dataplane.policy import Policy
from projections.chains import ChainStatus
from projections.transfers import TransferRow
from streams import events
from streams.codec import MAX_MESSAGE_BYTES, Fact, encode, fact_id
from streams.events import Event
from streams.values import (
    MOST_COUNTED,
    DataEntry,
    DataType,
    Held,
    Refusal,
    Role,
    SyncPlan,
    TargetOutcome,
    Trait,
    Transport,
)
from tests.spec import (
    T0,
    Raw,
    Story,
    after,
    answers,
    asked,
    assigned,
    checksum,
    copied,
    decided,
    entry,
    failed,
    games_of,
    given,
    holds,
    model,
    node,
    npz,
    opens,
    played,
    player,
    policy_of,
    ran,
    said_what_is_owed,
    says,
    succeeded,
    succeeded_with,
    trainer,
)
from tests.unit.histories import Step, histories, lived

GAMES = games_of("gpu-1")
OPENED = (trainer("train-1"), player("gpu-1"), opens("c1", played("gpu-1")))
READY = (*OPENED, answers("c1", "gpu-1", GAMES))
MOVING = (*READY, said_what_is_owed, assigned)
TWO_TARGETS = (trainer("train-2"), *MOVING)
NO_RETRIES = policy_of(retries={"max_retries": 0})
ROOMY = policy_of(bandwidth={"max_total": 1_000, "max_per_node": 1_000})

SyncPlanned, DataSyncStarted = events.SyncPlanned, events.DataSyncStarted
DataSyncCompleted, DataSyncFailed = events.DataSyncCompleted, events.DataSyncFailed
NewGamesAvailable, ChainOverdue = events.NewGamesAvailable, events.ChainOverdue


# Waiting for the node to say what it holds


def test_chain_waits_for_the_node_to_say_what_it_holds() -> None:
    """A trigger that speaks of files owes nothing before their node has answered."""
    given(*OPENED).when(asked("c1", after=59)).then_nothing()


def test_unanswered_observation_ends_the_chain_as_failed() -> None:
    """P1: a node that never answers does not keep the chain open; the end names it."""
    given(*OPENED).when(asked("c1", after=60)).then(
        says(
            DataSyncFailed,
            reason="gpu-1 gave no answer within 60 s",
            source_node="gpu-1",
            duration_seconds=60.0,
        )
    )


def test_a_node_that_says_that_it_is_reading_is_waited_for() -> None:
    """A database of 89 GB takes longer than the limit: it counts from the node's last word."""
    story = given(*OPENED, after(50), answers("c1", "gpu-1", last_part=False))
    story.when(asked("c1", after=59)).then_nothing()
    story.when(asked("c1", after=60)).then(
        says(DataSyncFailed, reason="gpu-1 gave no answer within 60 s")
    )


def test_what_another_node_reads_prolongs_nothing() -> None:
    """Only the node the trigger speaks of is waited for."""
    story = given(*OPENED, after(50), answers("c1", "gpu-2", last_part=False))
    story.when(asked("c1", after=10)).then(says(DataSyncFailed))


def test_part_of_an_answer_is_no_answer() -> None:
    """A large answer comes in parts, and the plan waits for the last one."""
    story = given(*OPENED, answers("c1", "gpu-1", GAMES, last_part=False))
    story.when(asked("c1")).then_nothing()
    story.tell(answers("c1", "gpu-1", last_part=True))
    story.when(asked("c1")).then(says(SyncPlanned), says(DataSyncStarted))


def test_answer_of_another_node_is_no_answer() -> None:
    """Only the node the trigger speaks of can say what it holds."""
    given(*OPENED, answers("c1", "gpu-2", games_of("gpu-2"))).when(asked("c1")).then_nothing()


def test_answer_for_another_chain_is_no_answer() -> None:
    """What a node reports by itself, or for another trigger, does not open this plan."""
    given(*OPENED, holds("gpu-1", GAMES)).when(asked("c1")).then_nothing()


def test_late_answer_does_not_reopen_a_failed_chain() -> None:
    """An end is an end: the next trigger finds the files in the catalog."""
    story = given(*OPENED, after(60), said_what_is_owed, answers("c1", "gpu-1", GAMES))
    assert story.chain("c1").status is ChainStatus.FAILED
    story.when(asked("c1")).then_nothing()


@pytest.mark.parametrize(
    "trigger",
    [
        events.TrainingStarted(config_key="hex8_2p", node="train-1"),
        events.DataNeeded(node="train-1", config_key="hex8_2p", data_type=DataType.GAMES),
        events.DataSyncRequested(
            data_type=DataType.GAMES, config_key="hex8_2p", target_nodes=("train-1",)
        ),
    ],
    ids=events.type_name,
)
def test_trigger_that_asks_for_data_waits_for_nobody(trigger: Event) -> None:
    """What is known of the holders is enough: the plan is owed at once."""
    story = given(trainer(), player(), holds("gpu-1", GAMES), opens("c1", trigger))
    story.when(asked("c1")).then(says(SyncPlanned), says(DataSyncStarted))


# Planning


def test_plan_and_start_are_owed_together() -> None:
    """What starts to move is counted in files and their bytes, each file once (P15)."""
    given(trainer("train-2"), *READY).when(asked("c1")).then(
        says(SyncPlanned, source_node="gpu-1", announces=(GAMES.path,), last_part=True),
        says(DataSyncStarted, targets=("train-1", "train-2"), entries=1, size_bytes=1_000),
    )


def test_p2_chain_without_a_plan_fails_with_the_reason() -> None:
    """Nothing to move and nothing in place is a failure that says why, in words."""
    story = given(trainer(), player(), opens("c1", played()), answers("c1", "gpu-1"))
    outcome = story.when(asked("c1"))
    outcome.then(
        says(SyncPlanned, plans=()),
        says(DataSyncFailed, reason="gpu-1 holds no hex8_2p games", arrived=(), failed=()),
    )


def test_p2_reason_names_every_rule_that_refused_a_target() -> None:
    """An operator reads in the end itself why nobody could receive."""
    story = given(
        trainer("train-1", traits=[Trait.SKIP_SYNC_RECEIVE]),
        trainer("train-2"),
        events.HostOffline(node="train-2", reason="ping lost"),
        player(),
        opens("c1", played()),
        answers("c1", "gpu-1", GAMES),
    )
    (planned, end) = story.when(asked("c1")).events
    assert isinstance(planned, SyncPlanned) and isinstance(end, DataSyncFailed)
    assert "train-1 has skip_sync_receive" in end.reason
    assert "train-2 is offline: ping lost" in end.reason
    assert {refusal.rule for refusal in end.refusals} == {
        "skip-sync-receive",
        "offline",
        "no-target",
    }


def test_data_that_nobody_has_must_be_played() -> None:
    """DATA_NEEDED without a holder asks for self-play, and the chain ends."""
    needed = events.DataNeeded(
        node="train-1", config_key="hex8_2p", data_type=DataType.GAMES, min_samples=50
    )
    given(trainer(), opens("c1", needed)).when(asked("c1")).then(
        says(SyncPlanned),
        says(
            events.SelfplayNeeded,
            config_key="hex8_2p",
            node="train-1",
            data_type=DataType.GAMES,
            min_samples=50,
        ),
        says(DataSyncFailed, reason="nobody holds hex8_2p games"),
    )


def test_data_that_somebody_has_is_not_asked_to_be_played() -> None:
    """Neither where it moves nor where it is in place already."""
    needed = events.DataNeeded(node="train-1", config_key="hex8_2p", data_type=DataType.GAMES)
    story = given(trainer(), player(), holds("gpu-1", GAMES), opens("c1", needed))
    story.when(asked("c1")).then(says(SyncPlanned), says(DataSyncStarted))
    story.tell(copied(GAMES.path, "train-1"))
    story.when(asked("c1")).then(
        says(SyncPlanned), says(DataSyncCompleted), says(NewGamesAvailable)
    )


def test_plan_is_asked_for_once_and_only_where_it_is_due() -> None:
    """A planned chain is not planned a second time, whatever has changed since."""
    story = given(*MOVING, trainer("train-9"), holds("gpu-1", games_of("gpu-1", "second")))
    story.when(asked("c1")).then_nothing()


def test_large_plan_is_cut_so_that_each_part_fits_into_a_message() -> None:
    """Thousands of files are one decision in several messages; only the last completes it."""
    many = tuple(entry(f"games/gpu-1/{n:05}_hex8_2p.db", games=10) for n in range(4_000))
    story = given(trainer("train-1"), trainer("train-2"), player(), opens("c1", played()))
    for start in range(0, len(many), 500):
        story.tell(holds("gpu-1", *many[start : start + 500]))
    story.tell(answers("c1", "gpu-1"))
    facts = story.owes("c1")["c1"]
    parts = [fact.event for fact in facts if isinstance(fact.event, SyncPlanned)]
    assert len(parts) > 2
    assert [part.last_part for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len({fact.id for fact in facts}) == len(facts)
    for fact in facts:
        encode(fact, T0)
    story.tell(*facts[: len(parts) - 1])
    assert story.chain("c1").status is ChainStatus.READY
    story.tell(*facts[len(parts) - 1 :])
    assert story.chain("c1").status is ChainStatus.MOVING
    assert len(story.chain("c1").needs) == 8_000


def test_whatever_a_large_plan_says_is_said_in_exactly_one_of_its_parts() -> None:
    """Also what was in place, what was refused and what is to be announced."""
    numbers = [f"{'d' * 90}/{n:05}.db" for n in range(3_000)]
    decision = SyncPlanned(
        config_key="hex8_2p",
        source_node="gpu-1",
        held=tuple(Held(target="train-1", path=one, checksum=GAMES.checksum) for one in numbers),
        refusals=tuple(Refusal(rule="r", reason="why", path=one) for one in numbers),
        announces=tuple(numbers),
    )
    story = given(*READY)
    row = story.chain("c1")
    facts = owed(row, {}, lambda *_: decision, story.policy, story.now)
    parts = [fact.event for fact in facts if isinstance(fact.event, SyncPlanned)]
    assert len(parts) > 3
    assert [held for part in parts for held in part.held] == [*decision.held]
    assert [refusal for part in parts for refusal in part.refusals] == [*decision.refusals]
    assert [path for part in parts for path in part.announces] == [*decision.announces]
    assert {(part.config_key, part.source_node) for part in parts} == {("hex8_2p", "gpu-1")}
    assert [part.last_part for part in parts] == [False] * (len(parts) - 1) + [True]


MORE = entry("games/gpu-1/more_hex8_2p.db")


@pytest.mark.parametrize("anew", [(), (GAMES,), (GAMES, MORE)], ids=["none", "same", "more"])
def test_what_was_said_before_a_decider_died_stands_and_the_rest_is_said_once(
    anew: tuple[DataEntry, ...],
) -> None:
    """Who decides again may see that what was to move is in place, or that more is to move: what
    was said is not said a second time.
    """
    refusals = tuple(
        Refusal(rule="r", reason="why", path=f"{'d' * 90}/{n:05}.db") for n in range(3_000)
    )
    moves = SyncPlan(
        source_node="gpu-1",
        target_nodes=("train-1",),
        entries=(GAMES,),
        transport_preference=(Transport.HTTP_FETCH,),
    )
    news = (GAMES.path, "games/gpu-1/other.db")
    first = SyncPlanned(
        **{"config_key": "hex8_2p", "source_node": "gpu-1", "refusals": refusals},
        **{"plans": (moves,), "announces": news},
    )
    held = (
        Held(target="train-1", path=GAMES.path, checksum=GAMES.checksum),
        Held(target="train-2", path=GAMES.path, checksum=GAMES.checksum),
    )
    story, died = given(*READY), 2

    def asked_for(decision: SyncPlanned) -> list[Fact]:
        facts = owed(story.chain("c1"), {}, lambda *_: decision, story.policy, story.now)
        return [fact for fact in facts if isinstance(fact.event, SyncPlanned)]

    said = asked_for(first)[:died]
    story.tell(*said)
    plans = (msgspec.structs.replace(moves, entries=anew),) if anew else ()
    rest = asked_for(msgspec.structs.replace(first, plans=plans, held=held))
    assert rest and len(set(ids([*said, *rest]))) == died + len(rest)
    parts: list[Any] = [fact.event for fact in (*said, *rest)]
    planned = [one for part in parts for plan in part.plans for one in plan.entries]
    assert planned == [GAMES, *anew[1:]]
    assert [one.target for part in parts for one in part.held] == ["train-2"]
    assert sorted(one.path for part in parts for one in part.refusals) == [r.path for r in refusals]
    assert [path for part in parts for path in part.announces] == [*news]
    assert [part.last_part for part in parts] == [False] * (len(parts) - 1) + [True]


# Moving


def test_chain_waits_while_a_transfer_is_open() -> None:
    """Neither waiting nor assigned nor failed once is an end."""
    given(*READY, said_what_is_owed).when(asked("c1")).then_nothing()
    given(*MOVING).when(asked("c1")).then_nothing()
    given(*MOVING, failed()).when(asked("c1")).then_nothing()


def test_chain_completes_when_the_target_holds_every_byte() -> None:
    """The end names target, digest, games and bytes; the announcement goes with it."""
    given(*MOVING, after(5), succeeded()).when(asked("c1")).then(
        says(
            DataSyncCompleted,
            config_key="hex8_2p",
            source_node="gpu-1",
            targets=(
                TargetOutcome(
                    target="train-1",
                    path=GAMES.path,
                    checksum=GAMES.checksum,
                    size_bytes=1_000,
                    games=500,
                    bytes_transferred=1_000,
                ),
            ),
            games_synced=500,
            bytes_transferred=1_000,
            duration_seconds=5.0,
        ),
        says(
            NewGamesAvailable,
            config_key="hex8_2p",
            game_count=500,
            source_node="gpu-1",
            targets=("train-1",),
            paths=(GAMES.path,),
        ),
    )


def test_p3_completion_is_per_target() -> None:
    """One target of two is not completion: the chain waits for the other."""
    story = given(*TWO_TARGETS, succeeded("train-1"))
    story.when(asked("c1")).then_nothing()
    story.tell(succeeded("train-2")).when(asked("c1")).then(
        says(DataSyncCompleted, games_synced=500, bytes_transferred=2_000),
        says(NewGamesAvailable, game_count=500, targets=("train-1", "train-2")),
    )


def test_p3_completion_is_per_file() -> None:
    """One file of two is not completion either."""
    second = entry("games/gpu-1/b_hex8_2p.db", games=17)
    story = given(*OPENED, answers("c1", "gpu-1", GAMES, second), said_what_is_owed, assigned)
    story.tell(succeeded(path=second.path)).when(asked("c1")).then_nothing()
    story.tell(succeeded()).when(asked("c1")).then(
        says(DataSyncCompleted, games_synced=517), says(NewGamesAvailable, game_count=517)
    )


def test_p3_one_missing_copy_makes_the_whole_chain_fail() -> None:
    """The end says what arrived, what did not, and why, per target; nothing is announced."""
    story = given(*TWO_TARGETS, policy=NO_RETRIES)
    story.tell(succeeded("train-1"), failed("train-2", error_class="Refused"))
    (end,) = story.when(asked("c1")).events
    assert isinstance(end, DataSyncFailed)
    assert [outcome.target for outcome in end.arrived] == ["train-1"]
    assert [(o.target, o.error) for o in end.failed] == [("train-2", "Refused: no byte came")]
    assert end.reason == "1 of 2 copies are missing on train-2"
    assert (end.games_synced, end.bytes_transferred) == (500, 1_000)


def test_p3_named_target_that_was_refused_is_not_completed() -> None:
    """Who names two nodes and gets one of them served must not read COMPLETED."""
    wanted = events.DataSyncRequested(
        data_type=DataType.GAMES, config_key="hex8_2p", target_nodes=("train-1", "ghost")
    )
    story = given(trainer(), player(), holds("gpu-1", GAMES), opens("c1", wanted))
    story.tell(said_what_is_owed, assigned, succeeded())
    story.when(asked("c1")).then(says(DataSyncFailed))


def test_p3_entry_without_a_source_is_not_completed() -> None:
    """COMPLETED says that every target holds every byte: an unreachable file contradicts it."""
    wanted = events.TrainingStarted(config_key="hex8_2p", node="train-1")
    story = given(trainer(), player(), holds("train-1", games_of("train-1")))
    story.tell(holds("gpu-1", npz()), events.HostOffline(node="gpu-1"), opens("c1", wanted))
    (_, end) = story.when(asked("c1")).events
    assert isinstance(end, DataSyncFailed)


def test_p2_file_the_node_could_not_read_is_not_completed() -> None:
    """A new database that is locked must not read 'every target held every byte'."""
    story = given(trainer(), player(), ran("c1", played(), GAMES), opens("c2", played()))
    story.tell(answers("c2", "gpu-1", problems=("games/hex8_2p.db is being written",)))
    (_, end) = story.when(asked("c2")).events
    assert isinstance(end, DataSyncFailed)


def test_later_version_that_arrived_meets_the_need() -> None:
    """A chain whose file was overtaken completes with the digest that is really there."""
    second = games_of("gpu-1", "second", games=600)
    story = given(*READY, said_what_is_owed, opens("c2", played()))
    story.tell(answers("c2", "gpu-1", second), said_what_is_owed, assigned, succeeded())
    story.when(asked("c1")).then(
        says(
            DataSyncCompleted,
            games_synced=600,
            bytes_transferred=0,
            targets=(
                TargetOutcome(
                    target="train-1",
                    path=GAMES.path,
                    checksum=second.checksum,
                    size_bytes=1_000,
                    games=600,
                ),
            ),
        ),
        says(NewGamesAvailable, game_count=600),
    )


def test_transfer_is_given_up_after_its_last_retry() -> None:
    """The first failure and each retry are attempts; the end tells how many there were."""
    story = given(*MOVING).under(retries={"max_retries": 2})
    for _ in range(2):
        story.tell(failed())
        story.when(asked("c1")).then_nothing()
        story.tell(after(60), assigned)
    story.tell(failed())
    (end,) = story.when(asked("c1")).events
    assert isinstance(end, DataSyncFailed)
    assert end.failed[0].error == "Stalled: no byte came (attempt 3)"


def test_failure_that_would_repeat_itself_is_not_retried() -> None:
    """An attempt that would fail again however often it is made ends the transfer at once."""
    story = given(*MOVING, failed(error_class="PathEscapes", retryable=False))
    story.when(asked("c1")).then(says(DataSyncFailed))


def test_unanswered_attempt_ends_the_chain_and_names_the_executor() -> None:
    """P1: a target that stays away for good does not keep the chain open."""
    story = given(*MOVING, after(75), lambda story: story.gives_up())
    (end,) = story.when(asked("c1")).events
    assert isinstance(end, DataSyncFailed)
    assert end.reason == "1 of 1 copies are missing on train-1"
    assert end.failed[0].error.startswith("Unanswered: train-1 gave no result within")


def test_late_success_after_the_end_changes_no_end() -> None:
    """The node comes back and carries it out: the catalog knows, the chain stays as it ended."""
    story = given(*MOVING)
    row = story.under_way()[0]
    story.tell(after(75), lambda story: story.gives_up(), said_what_is_owed)
    late = events.TransferSucceeded(
        transfer=row.id,
        node="train-1",
        source="gpu-1",
        target="train-1",
        entry=row.entry,
        attempt=1,
    )
    story.tell(late)
    assert story.chain("c1").status is ChainStatus.FAILED
    assert story.view.catalog.holders(GAMES.path, GAMES.checksum) == ("gpu-1", "train-1")
    story.when(asked("c1")).then_nothing()


# The clock


def test_chain_that_is_overdue_says_so_once_and_goes_on() -> None:
    """Past its limit a chain says what it waits for; it still completes later."""
    story = given(*MOVING)
    story.when(asked("c1", after=3_599)).then_nothing()
    story.when(asked("c1", after=1)).then(
        says(ChainOverdue, age_seconds=3600.0, waiting_for=f"{GAMES.path} on train-1")
    )
    story.tell(said_what_is_owed)
    story.when(asked("c1", after=10_000)).then_nothing()
    story.tell(succeeded()).when(asked("c1")).then(says(DataSyncCompleted), says(NewGamesAvailable))


def test_chain_that_waits_for_an_answer_can_be_overdue() -> None:
    """Where nodes are given long to answer, the chain's own limit still counts."""
    story = given(*OPENED).under(chains={"answer_limit_s": 9_000.0})
    story.when(asked("c1", after=3_600)).then(
        says(ChainOverdue, waiting_for="gpu-1 to say what it holds")
    )


def test_chain_that_ends_late_says_that_it_was_overdue() -> None:
    """No coordinator was there to say it in time: it is said together with the end, once."""
    story = given(*MOVING, succeeded())
    late = story.when(asked("c1", after=3_600 + ENDED_IN_TIME_S))
    late.then(
        says(ChainOverdue, age_seconds=3_630.0, waiting_for="a coordinator to end it"),
        says(DataSyncCompleted),
        says(NewGamesAvailable),
    )
    row, transfers = story.chain("c1"), {one.id: one for one in story.view.transfers_of("c1")}
    at = story.now + 3_600 + ENDED_IN_TIME_S
    facts = owed(row, transfers, lambda *_: SyncPlanned(), story.policy, at, "because")
    assert {fact.cause for fact in facts} == {"because"}
    said_before = given(*MOVING, after(3_600), said_what_is_owed, succeeded())
    said_before.when(asked("c1", after=9_000)).then(
        says(DataSyncCompleted), says(NewGamesAvailable)
    )


def test_clock_that_ran_back_makes_no_negative_duration() -> None:
    """The log's clock and ours may differ: a duration is never below zero."""
    outcome = given(*MOVING, succeeded()).when(asked("c1", after=-100))
    outcome.then(says(DataSyncCompleted, duration_seconds=0.0), says(NewGamesAvailable))


def test_durations_and_ages_are_as_exact_as_they_are_useful() -> None:
    """A chain's end to the microsecond, also below a second; an overdue one's age to the ms."""
    story = given(*MOVING, policy=NO_RETRIES)
    age = story.now - T0
    story.when(asked("c1", after=3_600.1234567 - age)).then(
        says(ChainOverdue, age_seconds=3600.123)
    )
    quick = given(*MOVING, failed(error_class="Refused"), policy=NO_RETRIES)
    quick.when(asked("c1", after=0.1234567 - (quick.now - T0))).then(
        says(DataSyncFailed, duration_seconds=0.123457)
    )
    whole = given(*MOVING, succeeded())
    whole.when(asked("c1", after=0.1234567 - (whole.now - T0))).then(
        says(DataSyncCompleted, duration_seconds=0.123457), says(NewGamesAvailable)
    )
    early = given(*MOVING, failed(error_class="Refused"), policy=NO_RETRIES)
    early.when(asked("c1", after=-100)).then(says(DataSyncFailed, duration_seconds=0.0))


# Announcements


def test_p15_games_are_counted_in_files_not_in_triggers() -> None:
    """The trigger boasts of 9,999 games, the file holds 500."""
    story = given(trainer(), player(), opens("c1", played(games=9_999)))
    story.tell(answers("c1", "gpu-1", GAMES), said_what_is_owed, assigned, succeeded())
    story.when(asked("c1")).then(
        says(DataSyncCompleted, games_synced=500), says(NewGamesAvailable, game_count=500)
    )


def test_p15_games_are_counted_in_the_copy_not_in_the_source() -> None:
    """What the target read from its own copy outranks what the source had said."""
    story = given(*MOVING)
    (row,) = story.under_way()
    story.tell(
        events.TransferSucceeded(
            transfer=row.id,
            node="train-1",
            source="gpu-1",
            target="train-1",
            entry=row.entry,
            attempt=1,
            games=499,
            bytes_transferred=10,
        )
    )
    story.when(asked("c1")).then(
        says(DataSyncCompleted, games_synced=499, bytes_transferred=10),
        says(NewGamesAvailable, game_count=499),
    )


def test_p15_nothing_new_moves_no_byte_and_announces_nothing() -> None:
    """A second trigger for the same games completes with 0 bytes and no NEW_GAMES_AVAILABLE."""
    story = given(trainer(), player(), ran("c1", played(), GAMES), opens("c2", played()))
    story.tell(answers("c2", "gpu-1"))
    story.when(asked("c2")).then(
        says(SyncPlanned, plans=(), announces=()),
        says(DataSyncCompleted, bytes_transferred=0, games_synced=0),
    )


def test_games_in_place_that_were_never_announced_are_announced() -> None:
    """They came by a transfer of no chain: exporters must still hear of them, once."""
    story = given(*READY, copied(GAMES.path, "train-1"))
    story.when(asked("c1")).then(
        says(SyncPlanned),
        says(DataSyncCompleted, bytes_transferred=0, games_synced=0),
        says(NewGamesAvailable, game_count=500, targets=("train-1",)),
    )


def test_p15_games_that_were_announced_are_not_counted_as_new() -> None:
    """500 games were announced; 17 more in another file are 17 new games, not 517."""
    second = entry("games/gpu-1/b_hex8_2p.db", games=17)
    story = given(trainer(), player(), ran("c1", played(), GAMES))
    story.tell(opens("c2", played()), answers("c2", "gpu-1", second), said_what_is_owed)
    story.tell(assigned, succeeded())
    story.when(asked("c2")).then(
        says(DataSyncCompleted, games_synced=17),
        says(NewGamesAvailable, game_count=17, paths=(second.path,)),
    )


def test_models_are_not_announced_as_games() -> None:
    """A promotion completes without NEW_GAMES_AVAILABLE."""
    promoted = events.ModelPromoted(config_key="hex8_2p", node="train-1", model_path=model().path)
    story = given(trainer(), node("gpu-1", Role.SELFPLAY, traits=[Trait.GPU]))
    story.tell(opens("c1", promoted), answers("c1", "train-1", model()), said_what_is_owed)
    story.tell(assigned, succeeded()).when(asked("c1")).then(
        says(events.ModelDistributionComplete), says(DataSyncCompleted, games_synced=0)
    )


def test_announcements_can_be_switched_off() -> None:
    """Without `chain_events` a chain ends with its completion alone."""
    story = given(*MOVING, succeeded()).under(chains={"announce": False})
    story.when(asked("c1")).then(says(DataSyncCompleted))


def test_announcement_an_older_program_left_out_is_still_owed() -> None:
    """An end that was written alone is followed by NEW_GAMES_AVAILABLE when asked again."""
    story = given(*MOVING, succeeded())
    (completed, announced) = story.owes("c1")["c1"]
    story.tell(completed)
    story.when(asked("c1")).then(says(NewGamesAvailable, game_count=500, targets=("train-1",)))
    assert story.owes("c1")["c1"][0].id == announced.id


def test_announcement_that_was_left_out_names_what_moved_and_what_was_in_place() -> None:
    """Asked again it is the same message: neither half of the games is forgotten."""
    second = entry("games/gpu-1/b_hex8_2p.db", games=17)
    story = given(*OPENED, holds("gpu-1", second), copied(second.path, "train-1"))
    story.tell(answers("c1", "gpu-1", GAMES), said_what_is_owed, assigned, succeeded())
    (completed, announced) = story.owes("c1")["c1"]
    story.tell(completed)
    assert [fact.event for fact in story.owes("c1")["c1"]] == [announced.event]


# What has ended owes nothing


@pytest.mark.parametrize("end", [succeeded(), failed(retryable=False)], ids=["done", "failed"])
def test_ended_chain_owes_nothing(end: Callable[..., Any]) -> None:
    """However often and however late it is asked."""
    story = given(*MOVING, end, said_what_is_owed)
    assert not story.chain("c1").open
    story.when(asked("c1", after=100_000)).then_nothing()


def test_failure_says_how_many_copies_are_missing_and_where() -> None:
    """In words, each place once, by name."""
    story = given(*TWO_TARGETS, said_what_is_owed, assigned, policy=NO_RETRIES)
    story.tell(failed())
    story.when(asked("c1")).then(
        says(DataSyncFailed, reason="2 of 2 copies are missing on train-1, train-2")
    )


def test_copy_that_failed_is_told_with_its_size_what_came_and_how_often_it_was_tried() -> None:
    """How often only where it was more than once."""
    once = given(*MOVING, failed(moved=100, retryable=False))
    twice = given(*MOVING, failed(), after(60), assigned, failed())
    twice.under(retries={"max_retries": 1})
    for story, tries, came in ((once, "", 100), (twice, " (attempt 2)", 0)):
        [fact] = story.owes("c1")["c1"]
        assert isinstance(fact.event, DataSyncFailed)
        [missing] = fact.event.failed
        assert (missing.size_bytes, missing.bytes_transferred) == (GAMES.size_bytes, came)
        assert missing.error == f"Stalled: no byte came{tries}"


def test_completion_says_whether_anything_had_to_move() -> None:
    """In words."""
    story = given(*MOVING, succeeded()).when(asked("c1"))
    assert "every target holds every byte" in [getattr(e, "reason", "") for e in story.events]
    story = given(trainer(), player(), ran("c0", played(), GAMES), opens("c1", played()))
    story.tell(answers("c1", "gpu-1", GAMES))
    reasons = [getattr(event, "reason", "") for event in story.when(asked("c1")).events]
    assert "nothing had to move: every target held every byte" in reasons


def test_games_of_one_path_count_once_and_as_the_fullest_copy_has_them() -> None:
    """Whichever target is told of last."""
    for found in ((600, 500), (500, 600), (600, None)):
        story = given(trainer("train-2"), *READY, said_what_is_owed, assigned)
        for target, games in zip(("train-1", "train-2"), found, strict=True):
            [row] = story.under_way(target)
            one = msgspec.structs.replace(row.entry, games=games)
            story.tell(succeeded_with(one, target, transfer=row.id))
        story.when(asked("c1")).then(
            says(DataSyncCompleted, games_synced=600), says(NewGamesAvailable, game_count=600)
        )


def test_a_single_game_is_worth_its_announcement() -> None:
    """Only none is no news."""
    one = msgspec.structs.replace(GAMES, games=1)
    story = given(trainer(), player(), policy=policy_of(quality={"min_games": 0}))
    story.tell(opens("c1", played(games=1)), answers("c1", "gpu-1", one), said_what_is_owed)
    story.tell(assigned, succeeded()).when(asked("c1")).then(
        says(DataSyncCompleted), says(NewGamesAvailable, game_count=1)
    )


@pytest.mark.parametrize(
    ("lengths", "limit", "named"),
    [
        ([10, 10, 10], 1_000, 3),
        ([10, 10, 10], 26, 2),
        ([10, 10, 10], 25, 1),
        ([10], 12, 1),
        ([10], 11, 0),
        ([10, 1], 11, 0),
    ],
)
def test_as_many_are_named_as_fit_into_a_message(
    lengths: list[int], limit: int, named: int
) -> None:
    """Each takes its quotes and a comma; one that is too large by itself is not named either."""
    items = ["x" * length for length in lengths]
    assert _that_fit(items, limit) == tuple(items[:named])


# Set aside


@pytest.mark.parametrize("length", [20, 5_000], ids=["short", "endless"])
def test_chain_that_can_not_be_decided_is_set_aside_and_ends_as_failed(length: int) -> None:
    """P1: it asks nothing but the row; both facts say why, at no greater length than is of use."""
    story, problem = given(*READY, after(7)), "p" * length
    row, why = story.chain("c1"), "p" * min(length, ERROR_CHARACTERS)
    aside, end = set_aside(row, 5, problem, Policy(), story.now, "asked-because")
    assert aside.event == events.EventSetAside(
        sequence=row.opened_sequence,
        trigger="SELFPLAY_COMPLETE",
        reason=why,
        tries=5,
        config_key="hex8_2p",
    )
    assert aside.id == fact_id("c1", "EVENT_SET_ASIDE")
    assert end.event == DataSyncFailed(
        config_key="hex8_2p",
        source_node="gpu-1",
        reason=f"set aside after 5 tries: {why}",
        duration_seconds=7.0,
    )
    assert end.id == fact_id("c1", "DATA_SYNC_FAILED", "end")
    assert {(fact.chain, fact.cause) for fact in (aside, end)} == {("c1", "asked-because")}
    story.tell(aside, end)
    assert story.chain("c1").status is ChainStatus.FAILED


def test_chain_that_is_set_aside_long_after_its_limit_is_said_to_be_overdue_too() -> None:
    """Nobody could say so before: who can't decide a chain can't say that it waits."""
    story = given(*READY, after(3_630))
    overdue, _, end = facts = set_aside(story.chain("c1"), 5, "broken", Policy(), story.now, "c")
    assert {fact.cause for fact in facts} == {"c"}
    assert overdue.event == ChainOverdue(
        config_key="hex8_2p", age_seconds=3_630.0, waiting_for="somebody who can decide it"
    )
    assert isinstance(end.event, DataSyncFailed)


# P1: every trigger ends


def promises(name: str) -> list[Event]:
    """One trigger of each kind, of one node."""
    return [
        played(name),
        events.TrainingStarted(config_key="hex8_2p", node=name),
        events.TrainingCompleted(config_key="hex8_2p", node=name, model_path=model().path),
        events.ModelPromoted(config_key="hex8_2p", node=name, model_path=model().path),
        events.OrphanGamesDetected(node=name, config_key="hex8_2p", orphan_count=1),
        events.DataNeeded(node=name, config_key="hex8_2p", data_type=DataType.NPZ),
        events.DataSyncRequested(
            data_type=DataType.GAMES, config_key="hex8_2p", target_nodes=("train-1", "vault")
        ),
        events.NodeTerminating(node=name),
    ]


CLUSTER = (
    trainer("train-1"),
    node("gpu-1", Role.SELFPLAY, traits=[Trait.GPU]),
    node("vault", Role.STORAGE),
    holds("vault", npz(), games_of("vault")),
)
FATES: dict[str, Callable[..., Any]] = {
    "succeed": succeeded(),
    "fail for good": failed(retryable=False),
    "fail until given up": failed(),
    "are never answered": lambda story: [after(2_000), *story.gives_up()],
}


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("answered", [True, False], ids=["answered", "unanswered"])
@pytest.mark.parametrize("trigger", promises("gpu-1"), ids=events.type_name)
def test_p1_every_trigger_ends_exactly_once(trigger: Event, answered: bool, fate: str) -> None:
    """Whatever its transfers come to, a chain says one end, and asks for nothing more."""
    story = given(*CLUSTER, opens("c1", trigger))
    if answered:
        story.tell(answers("c1", "gpu-1", GAMES, npz("mine"), model()))
    for _ in range(10):
        story.tell(said_what_is_owed, assigned, FATES[fate], after(60))
    said = Counter(type(fact.event) for fact in story.facts)
    assert said[DataSyncCompleted] + said[DataSyncFailed] == 1
    assert said[NewGamesAvailable] <= 1
    assert not story.chain("c1").open
    assert list(story.view.pending()) == []


def test_p1_end_of_a_chain_with_hundreds_of_failures_fits_into_a_message() -> None:
    """An end that can't be written would be decided, and refused, for ever."""
    many = [entry(f"games/gpu-1/{'d' * 200}/{n:04}_hex8_2p.db", games=10) for n in range(300)]
    story = given(*OPENED, policy=ROOMY)
    story.tell(*(holds("gpu-1", *many[n : n + 100]) for n in range(0, 300, 100)))
    story.tell(answers("c1", "gpu-1"), said_what_is_owed, assigned, assigned)
    for row in story.under_way():
        story.tell(
            events.TransferFailed(
                transfer=row.id,
                node=row.target,
                source=row.source,
                target=row.target,
                entry=row.entry,
                attempt=1,
                error="e" * 2_000,
                error_class="Refused",
                retryable=False,
            )
        )
    (fact,) = story.owes("c1")["c1"]
    assert isinstance(fact.event, DataSyncFailed)
    _, body = encode(fact, T0)
    assert len(body) <= MAX_MESSAGE_BYTES
    named = len(fact.event.arrived) + len(fact.event.failed)
    assert named > 0
    assert named + fact.event.left_out == 300


def test_p1_failure_with_hundreds_of_arrivals_counts_all_it_leaves_out() -> None:
    """What is named and what is not are all there is; and none is counted twice."""
    many = [entry(f"games/gpu-1/{'d' * 200}/{n:04}_hex8_2p.db", games=10) for n in range(300)]
    story = given(*OPENED, policy=ROOMY)
    story.tell(*(holds("gpu-1", *many[n : n + 100]) for n in range(0, 300, 100)))
    story.tell(answers("c1", "gpu-1"), said_what_is_owed, assigned, assigned)
    for number, row in enumerate(story.under_way()):
        story.tell(_result(row, fails=number % 2 == 0))
    (fact,) = story.owes("c1")["c1"]
    assert isinstance(fact.event, DataSyncFailed)
    assert fact.event.arrived and fact.event.failed and fact.event.left_out > 0
    named = len(fact.event.arrived) + len(fact.event.failed)
    assert named + fact.event.left_out == 300


def _result(row: TransferRow, *, fails: bool) -> Event:
    """What came of a transfer that is under way."""
    at = {"transfer": row.id, "node": row.target, "source": row.source, "target": row.target}
    if not fails:
        return events.TransferSucceeded(**at, entry=row.entry, attempt=1, games=10)
    error = {"error": "e" * 2_000, "error_class": "Refused", "retryable": False}
    return events.TransferFailed(**at, **error, entry=row.entry, attempt=1)  # type: ignore[arg-type]


def test_one_endless_error_does_not_hide_which_target_failed() -> None:
    """An error is cut, the outcome it belongs to is named all the same."""
    story = given(*MOVING, policy=NO_RETRIES)
    (row,) = story.under_way()
    story.tell(
        events.TransferFailed(
            transfer=row.id,
            node=row.target,
            source=row.source,
            target=row.target,
            entry=row.entry,
            attempt=1,
            error="e" * 150_000,
            error_class="Refused",
        )
    )
    (end,) = story.when(asked("c1")).events
    assert isinstance(end, DataSyncFailed)
    assert [outcome.target for outcome in end.failed] == ["train-1"]
    assert end.left_out == 0


def test_p1_end_of_a_chain_with_hundreds_of_arrivals_fits_into_a_message() -> None:
    """Long paths on many targets must not make a completion, or its news, too large to say."""
    many = [entry(f"games/gpu-1/{'d' * 1_500}/{n:03}_hex8_2p.db", games=10) for n in range(300)]
    story = given(*OPENED, policy=ROOMY)
    story.tell(*(holds("gpu-1", *many[n : n + 100]) for n in range(0, 300, 100)))
    story.tell(answers("c1", "gpu-1"), said_what_is_owed, assigned, assigned, succeeded())
    (end, news) = story.owes("c1")["c1"]
    for fact in (end, news):
        encode(fact, T0)
    assert isinstance(end.event, DataSyncCompleted) and isinstance(news.event, NewGamesAvailable)
    assert (end.event.games_synced, news.event.game_count) == (3_000, 3_000)
    assert len(end.event.targets) + end.event.left_out == 300
    assert len(news.event.paths) + news.event.left_out == 300
    assert news.event.left_out > 0


def test_news_names_every_path_that_fits_however_many_there_are() -> None:
    """Outcomes are cut at a number of them, plain paths only where a message ends."""
    many = [entry(f"games/gpu-1/{n:03}_hex8_2p.db", games=10) for n in range(450)]
    story = given(*OPENED, policy=ROOMY)
    story.tell(*(holds("gpu-1", *many[n : n + 150]) for n in range(0, 450, 150)))
    story.tell(answers("c1", "gpu-1"), said_what_is_owed)
    while next(story.view.pending(), None) is not None:
        story.tell(assigned, succeeded())
    end, news = (fact.event for fact in story.owes("c1")["c1"])
    assert isinstance(end, DataSyncCompleted) and isinstance(news, NewGamesAvailable)
    assert len(end.targets) + end.left_out == 450 and end.left_out > 0
    assert (news.paths, news.left_out) == (tuple(one.path for one in many), 0)


def test_p1_sums_of_the_largest_counts_can_be_said() -> None:
    """Two files of the largest size are a start and an end that a message holds."""
    huge = [entry(f"games/gpu-1/{n}.db", size_bytes=MOST_COUNTED, games=MOST_COUNTED) for n in "ab"]
    story = given(*OPENED, answers("c1", "gpu-1", *huge), policy=ROOMY)
    planned, start = story.when(asked("c1")).events
    assert isinstance(planned, SyncPlanned) and isinstance(start, DataSyncStarted)
    assert start.size_bytes == MOST_COUNTED
    story.tell(said_what_is_owed, assigned, succeeded())
    facts = story.owes("c1")["c1"]
    for fact in facts:
        encode(fact, T0)
    end, news = (fact.event for fact in facts)
    assert isinstance(end, DataSyncCompleted) and isinstance(news, NewGamesAvailable)
    assert (end.bytes_transferred, end.games_synced) == (MOST_COUNTED, MOST_COUNTED)
    assert news.game_count == MOST_COUNTED


def test_p1_refusal_of_a_trigger_that_names_thousands_of_paths_fits_into_a_message() -> None:
    """The reason of a refusal repeats what was named, but never more than a message holds."""
    paths = tuple(f"games/{'d' * 90}/{n:05}.db" for n in range(2_000))
    orphans = events.OrphanGamesDetected(
        node="gpu-1", config_key="hex8_2p", orphan_count=2_000, paths=paths
    )
    story = given(player(), node("vault", Role.STORAGE), opens("c1", orphans))
    story.tell(answers("c1", "gpu-1"))
    for fact in story.owes("c1")["c1"]:
        encode(fact, T0)


# Asked again


def ids(facts: list[Fact]) -> list[str]:
    """What makes two facts the same message."""
    return [fact.id for fact in facts]


SECOND = games_of("gpu-1", "second", games=600)
LOST = (*MOVING, holds("gpu-1", SECOND), failed(error_class="EntryMissing"))


def test_what_a_source_holds_no_more_is_planned_again_as_what_has_taken_its_place() -> None:
    """P1: at once, not after all retries; the chain completes with the content that counts now."""
    story = given(*LOST)
    [again] = [fact.event for fact in story.owes("c1")["c1"]]
    assert isinstance(again, SyncPlanned)
    assert [(plan.target_nodes, plan.entries[0].checksum) for plan in again.plans] == [
        (("train-1",), SECOND.checksum)
    ]
    story.tell(said_what_is_owed, assigned)
    assert story.owes("c1") == {"c1": []}
    assert [one.entry.checksum for one in story.under_way()] == [SECOND.checksum]
    story.tell(succeeded(), said_what_is_owed)
    end = story.facts[-2].event
    assert isinstance(end, DataSyncCompleted)
    assert [(one.target, one.checksum) for one in end.targets] == [("train-1", SECOND.checksum)]
    assert end.games_synced == 600
    assert isinstance(story.facts[-1].event, NewGamesAvailable)


def test_k9_what_was_lost_is_not_planned_again_for_a_node_that_stays() -> None:
    """Nothing has to leave it any more: its chain ends."""
    story = given(player(), trainer(), opens("c1", events.NodeTerminating(node="gpu-1")))
    story.tell(answers("c1", "gpu-1", GAMES), said_what_is_owed, assigned)
    story.tell(holds("gpu-1", SECOND), failed(error_class="EntryMissing"))
    story.tell(events.NodeDrainCancelled(node="gpu-1"))
    story.when(asked("c1")).then(says(DataSyncFailed))


def test_only_what_was_lost_is_planned_again() -> None:
    """A target that has what was planned, or gets it now, is left alone."""
    story = given(trainer("train-2"), *READY, said_what_is_owed, assigned)
    story.tell(succeeded("train-2"), holds("gpu-1", SECOND), failed(error_class="EntryMissing"))
    story.tell(said_what_is_owed, assigned)
    assert [(one.target, one.entry.checksum) for one in story.under_way()] == [
        ("train-1", SECOND.checksum)
    ]
    story.tell(succeeded(), said_what_is_owed)
    end = next(one.event for one in story.facts[::-1] if isinstance(one.event, DataSyncCompleted))
    assert {(one.target, one.checksum) for one in end.targets} == {
        ("train-1", SECOND.checksum),
        ("train-2", GAMES.checksum),
    }


def test_files_that_are_under_way_are_not_planned_again_with_one_that_was_lost() -> None:
    """Of a plan of two files only the one whose content is gone is planned again."""
    other = entry("games/gpu-1/b_hex8_2p.db")
    story = given(*OPENED, answers("c1", "gpu-1", GAMES, other), said_what_is_owed, assigned)
    story.tell(holds("gpu-1", SECOND), failed(path=GAMES.path, error_class="EntryMissing"))
    (again,) = [fact.event for fact in story.owes("c1")["c1"]]
    assert isinstance(again, SyncPlanned)
    assert [one.checksum for plan in again.plans for one in plan.entries] == [SECOND.checksum]


@pytest.mark.parametrize(("target", "announces"), [("train-2", (GAMES.path,)), ("s3", ())])
def test_games_that_took_the_place_of_announced_ones_are_announced_once_nodes_get_them(
    target: str, announces: tuple[str, ...]
) -> None:
    """The first plan brought what everybody had heard of; what is on its way now nobody has.

    In the bucket nobody plays or trains: its copy alone is no news.
    """
    story = given(trainer("train-1"), player("gpu-1"), ran("c0", played("gpu-1"), GAMES))
    if target == "s3":
        story.under(s3={"enabled": True, "bucket": "b"})
    else:
        story.tell(trainer(target))
    story.tell(opens("c1", played("gpu-1")), answers("c1", "gpu-1"), said_what_is_owed, assigned)
    assert story.chain("c1").announces == ()
    story.tell(holds("gpu-1", SECOND), failed(target, error_class="EntryMissing"))
    (again,) = [fact.event for fact in story.owes("c1")["c1"]]
    assert isinstance(again, SyncPlanned)
    assert {plan.target_nodes for plan in again.plans} == {(target,)}
    assert (again.announces, again.source_node) == (announces, "gpu-1")


def test_what_is_fetched_from_another_holder_is_not_planned_again_meanwhile() -> None:
    """That its source had lost it is over once the next attempt has begun."""
    story = given(*MOVING, failed(error_class="EntryMissing"), after(60), assigned)
    story.tell(holds("gpu-1", SECOND))
    assert story.owes("c1") == {"c1": []}


def test_what_is_lost_and_has_no_later_version_is_tried_again_and_fails_in_the_end() -> None:
    """Another holder may have it; nobody else is planned for."""
    story = given(*MOVING, failed(error_class="EntryMissing"))
    assert story.owes("c1") == {"c1": []}
    for _ in range(story.policy.retries.max_retries):
        story.tell(after(60), assigned, failed(error_class="EntryMissing"))
    story.tell(said_what_is_owed)
    assert story.chain("c1").status is ChainStatus.FAILED


def test_p1_a_file_that_changes_faster_than_it_can_be_fetched_ends_its_chain() -> None:
    """After so many versions it is said that it failed, and why."""
    story = given(*MOVING)
    for number in range(MOST_VERSIONS):
        story.tell(holds("gpu-1", games_of("gpu-1", f"version {number}")))
        story.tell(failed(error_class="EntryMissing"), said_what_is_owed, after(60), assigned)
    assert len(story.chain("c1").needs) == MOST_VERSIONS
    for _ in range(story.policy.retries.max_retries + 1):
        story.tell(failed(error_class="EntryMissing"), said_what_is_owed, after(60), assigned)
    assert story.chain("c1").status is ChainStatus.FAILED
    assert "EntryMissing" in story.facts[-1].event.failed[0].error  # type: ignore[union-attr]


def test_what_was_lost_is_looked_at_although_more_is_under_way() -> None:
    """The chain is asked at the first such failure, however many transfers it waits for."""
    others = [entry(f"games/gpu-1/hex8_2p_{n}.db") for n in range(3)]
    story = given(*OPENED, answers("c1", "gpu-1", GAMES, *others), said_what_is_owed, assigned)
    story.tell(failed(path=GAMES.path, error_class="EntryMissing"))
    assert _moved_on(story.view, story.facts[-1], story.policy) == ["c1"]


def test_p11_pending_work_is_read_from_the_log_again() -> None:
    """A process that starts anew owes and hands out exactly what the one that died did."""
    facts = (*READY, said_what_is_owed, opens("c2", played()), answers("c2", "gpu-1"))
    before, restarted = given(*facts), Story().tell_again(*given(*facts).facts)
    assert ids(before.owes("c2")["c2"]) == ids(restarted.owes("c2")["c2"]) != []
    assert ids(list(before.admits().assignments)) == ids(list(restarted.admits().assignments))
    assert [row.id for row in before.view.pending()] == [r.id for r in restarted.view.pending()]
    assert list(before.view.pending()) != []


def test_two_chains_never_owe_the_same_fact() -> None:
    """Ids are the chain's own: deciding for many at once never doubles one."""
    story = given(trainer(), player(), *(opens(f"c{n}", played()) for n in range(3)))
    story.tell(*(answers(f"c{n}", "gpu-1", GAMES) for n in range(3)))
    owed = [fact for facts in story.owes().values() for fact in facts]
    assert len(owed) == 6
    assert len(set(ids(owed))) == 6


def test_facts_of_a_decision_name_their_chain_and_its_cause() -> None:
    """A chain can be read back as a tree of causes."""
    facts = given(*READY).owes("c1")["c1"]
    assert {(fact.chain, fact.cause) for fact in facts} == {("c1", "c1")}


PROMOTED = events.ModelPromoted(config_key="hex8_2p", node="train-1", model_path=model().path)
NEEDED = events.DataNeeded(node="train-1", config_key="hex8_2p", data_type=DataType.GAMES)


@pytest.mark.parametrize(
    "story",
    [
        lambda: given(*OPENED, after(60)),
        lambda: given(*OPENED, after(3_600)).under(chains={"answer_limit_s": 9_000.0}),
        lambda: given(*READY),
        lambda: given(*MOVING, after(3_600)),
        lambda: given(*MOVING, succeeded()),
        lambda: given(*LOST),
        lambda: given(*TWO_TARGETS, succeeded("train-1"), failed("train-2"), policy=NO_RETRIES),
        lambda: given(trainer(), opens("c1", PROMOTED), answers("c1", "train-1")),
        lambda: given(trainer(), opens("c1", NEEDED)),
        lambda: given(
            *(trainer(), node("gpu-1", Role.SELFPLAY, traits=[Trait.GPU]), opens("c1", PROMOTED)),
            *(answers("c1", "train-1", model()), said_what_is_owed, assigned, succeeded()),
        ),
        lambda: given(
            *(trainer(), player(), opens("c1", played("gpu-1")), answers("c1", "gpu-1", GAMES)),
            *(said_what_is_owed, assigned, succeeded("train-1"), succeeded("s3")),
            policy=policy_of(s3={"enabled": True, "bucket": "b"}),
        ),
        lambda: given(*MOVING, succeeded(), lambda story: story.owes("c1")["c1"][:1]),
    ],
)
def test_whatever_made_us_ask_is_the_cause_of_what_is_owed_then(
    story: Callable[[], Story],
) -> None:
    """An event that a chain waited for, not its trigger, is why a decision came when it did."""
    told = story()
    row = told.chain("c1")
    transfers = {one.id: one for one in told.view.transfers_of("c1")}
    facts = owed(row, transfers, told.plans, told.policy, told.now, "asked-because")
    assert facts
    assert {(fact.chain, fact.cause) for fact in facts} == {("c1", "asked-because")}


def test_refusals_that_block_are_the_reason_of_the_end_they_cause() -> None:
    """All of them, in the words of the planner; those that block nobody are none."""
    refusals = [
        Refusal(rule="disk", reason="train-1 is full", blocking=True),
        Refusal(rule="size", reason="too small"),
        Refusal(rule="disk", reason="train-2 is full", blocking=True),
    ]
    decision = SyncPlanned(config_key="hex8_2p", source_node="gpu-1", refusals=tuple(refusals))
    story = given(*READY)
    row = story.chain("c1")
    facts = owed(row, {}, lambda *_: decision, story.policy, story.now, "asked-because")
    assert [type(fact.event) for fact in facts] == [SyncPlanned, DataSyncFailed]
    end = facts[-1].event
    assert isinstance(end, DataSyncFailed)
    assert end.reason == "train-1 is full; train-2 is full"
    assert {fact.cause for fact in facts} == {"asked-because"}


@pytest.mark.parametrize("facts", [READY, LOST], ids=["first", "again"])
def test_planner_is_told_when_the_trigger_was_said(facts: tuple[Any, ...]) -> None:
    """However late a chain is asked: what a deadline counts from does not move."""
    story, told = given(*facts, after(50)), []

    def plan(trigger: Event, opened_at: float) -> SyncPlanned:
        told.append((trigger, opened_at))
        return story.plans(trigger, opened_at)

    row = story.chain("c1")
    transfers = {one.id: one for one in story.view.transfers_of("c1")}
    assert owed(row, transfers, plan, story.policy, story.now)
    assert told == [(played("gpu-1"), row.opened_at)]


def test_plan_that_is_made_again_has_ids_of_its_own() -> None:
    """Each time another, or the second would be taken for the first and never be written."""
    story = given(*LOST)
    assert ids(story.owes("c1")["c1"]) == [fact_id("c1", "SYNC_PLANNED", "again", 1, 0)]
    third = games_of("gpu-1", "third", games=700)
    story.tell(said_what_is_owed, assigned, holds("gpu-1", third))
    story.tell(failed(error_class="EntryMissing"))
    assert ids(story.owes("c1")["c1"]) == [fact_id("c1", "SYNC_PLANNED", "again", 2, 0)]


@pytest.mark.parametrize(
    ("story", "types"),
    [
        (lambda: given(*OPENED, after(60)), {DataSyncFailed: ("end",)}),
        (lambda: given(*MOVING, after(3_600)), {ChainOverdue: ()}),
        (lambda: given(*MOVING, succeeded()), {DataSyncCompleted: ("end",), NewGamesAvailable: ()}),
        (
            lambda: given(*TWO_TARGETS, succeeded("train-1"), failed("train-2"), policy=NO_RETRIES),
            {DataSyncFailed: ("end",)},
        ),
    ],
)
def test_whatever_a_chain_owes_is_said_for_it_under_the_id_it_always_has(
    story: Callable[[], Story], types: dict[type[Event], tuple[str, ...]]
) -> None:
    """Its subject, its cause, and an id that another release of this would give it, too."""
    facts = story().owes("c1")["c1"]
    assert {type(fact.event) for fact in facts} == set(types)
    for fact in facts:
        name = events.type_name(fact.event)
        assert (fact.chain, fact.cause) == ("c1", "c1")
        assert fact.subject == f"dp.chain.c1.{name}.hex8_2p"
        assert fact.id == fact_id("c1", name, *types[type(fact.event)])


@settings(max_examples=60, deadline=None)
@sampled(steps=histories())
def test_asking_twice_gives_the_same_facts(steps: list[Step]) -> None:
    """Two coordinators, or one before and after a crash, say the same messages."""
    story = lived(steps)
    first = story.owes()
    assert story.owes() == first
    story.tell(after(1))
    later = story.owes()
    assert all(ids(later[chain]) == ids(facts) for chain, facts in first.items() if facts)


@settings(max_examples=60, deadline=None)
@sampled(steps=histories())
def test_what_was_said_is_not_owed_again(steps: list[Step]) -> None:
    """After its facts are folded a chain owes nothing, or what follows, never the same."""
    story = lived(steps)
    for _ in range(3):
        owed = {chain: facts for chain, facts in story.owes().items() if facts}
        for chain, facts in owed.items():
            story.tell(*facts)
            assert set(ids(story.owes(chain)[chain])).isdisjoint(ids(facts))
    assert all(facts == [] for facts in story.owes().values())


@settings(max_examples=60, deadline=None)
@sampled(steps=histories())
def test_every_fact_that_is_owed_can_be_written(steps: list[Step]) -> None:
    """What can't be encoded would be owed for ever."""
    for facts in lived(steps).owes().values():
        for fact in facts:
            encode(fact, T0)


@settings(max_examples=60, deadline=None)
@sampled(steps=histories())
def test_p1_every_history_can_be_brought_to_its_end(steps: list[Step]) -> None:
    """Whatever has happened, a round of answers and results later each trigger has its one end."""
    story = lived(steps).under(bandwidth={"max_per_node": 50, "max_total": 200})
    for _ in range(12):
        story.tell(after(700), said_what_is_owed, lambda story: story.gives_up())
        story.tell(assigned, succeeded())
    assert list(story.view.open_chains()) == []
    ends = Counter(
        fact.chain
        for fact in story.facts
        if isinstance(fact.event, DataSyncCompleted | DataSyncFailed)
    )
    opened = {row.id for row in story.view.ended_chains()}
    assert set(ends) == opened
    assert list(story.view.pending()) == [] == story.under_way()


@settings(max_examples=60, deadline=None)
@sampled(steps=histories())
def test_p3_completed_chain_named_only_what_its_targets_held(steps: list[Step]) -> None:
    """Every outcome of a completion is an arrival, or a holding, that the log can show."""
    story = lived(steps)
    shown = {
        (fact.event.target, fact.event.entry.checksum)
        for fact in story.facts
        if isinstance(fact.event, events.TransferSucceeded)
    }
    shown |= {
        (fact.event.node, found.checksum)
        for fact in story.facts
        if isinstance(fact.event, events.FilesObserved)
        for found in fact.event.entries
    }
    for fact in story.facts:
        if isinstance(fact.event, DataSyncCompleted):
            assert {(o.target, o.checksum) for o in fact.event.targets} <= shown


def test_guard_of_a_decision_is_the_last_fact_of_its_chain() -> None:
    """What was decided for a chain moves its guard, what nodes say of it does not."""
    story = given(*READY)
    assert story.view.last_sequence_of("c1") == 0
    story.tell(said_what_is_owed)
    assert story.view.last_sequence_of("c1") == len(story.facts)
    story.tell(assigned, succeeded())
    assert story.view.last_sequence_of("c1") == len(story.facts) - 2


@pytest.mark.parametrize(
    "message",
    [
        Raw("dp.chain.c1.SYNC_PLANNED.hex8_2p", b"[]"),
        Raw("dp.chain.c1.FROM_THE_FUTURE.hex8_2p", b"{}"),
    ],
    ids=["undecodable", "unknown type"],
)
def test_p1_message_nobody_understands_does_not_block_its_chain(message: Raw) -> None:
    """The guard is the log's last sequence under the chain, whether we could read it or not."""
    story = given(*READY, message)
    assert story.view.last_sequence_of("c1") == len(story.facts)


def test_p1_repeated_decision_does_not_block_its_chain() -> None:
    """A fact that came twice under one id is ignored, but it is the log's last one all the same."""
    story = given(*READY, said_what_is_owed)
    planned = story.facts[-2]
    assert planned.event is not None
    story.tell(Fact(planned.event, planned.subject, planned.id, "c1"))
    assert story.view.last_sequence_of("c1") == len(story.facts)


def test_decision_for_a_chain_nobody_opened_is_ignored() -> None:
    """`evolve` is total: a stray decision changes nothing and fails nothing."""
    stray = decided("nobody", DataSyncCompleted(config_key="hex8_2p", source_node="gpu-1"))
    assert given(stray).view.chain("nobody") is None


def test_outcomes_carry_digests_that_the_wire_takes() -> None:
    """A completion proves each target by a digest (P3)."""
    outcome = TargetOutcome(target="train-1", path="a", checksum=checksum("a"))
    assert msgspec.json.decode(msgspec.json.encode(outcome), type=TargetOutcome) == outcome
