"""Chains: opened by a trigger, moved on by facts of their own, ended once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from msgspec.structs import replace

from projections.chains import ChainStatus, place_of
from streams import events
from streams.codec import chain_of_trigger
from streams.events import Event
from streams.values import DataType, Held, Refusal, SyncPlan
from tests.spec import (
    T0,
    Said,
    Story,
    after,
    answers,
    as_fact,
    assigned,
    decided,
    games_of,
    given,
    holds,
    opens,
    played,
    player,
    ran,
    raw,
    said_what_is_owed,
    succeeded,
    trainer,
)
from tests.unit.histories import Step, histories, lived

GAMES = games_of("gpu-1")
WAITING, READY = ChainStatus.WAITING_FOR_FILES, ChainStatus.READY
MOVING, COMPLETED = ChainStatus.MOVING, ChainStatus.COMPLETED


def end(chain: str, cls: type[Event] = events.DataSyncCompleted, **more: Any) -> Said:
    """A chain ends."""
    return decided(chain, cls(config_key="hex8_2p", source_node="gpu-1", **more))


def ids(rows: Any) -> list[str]:
    """Chains by id."""
    return [row.id for row in rows]


# Opened


@pytest.mark.parametrize(
    ("trigger", "node", "status"),
    [
        (played("gpu-1"), "gpu-1", WAITING),
        (events.TrainingStarted(config_key="hex8_2p", node="train-1"), "train-1", READY),
        (
            events.TrainingCompleted(config_key="hex8_2p", node="train-1", model_path="m"),
            "train-1",
            WAITING,
        ),
        (
            events.ModelPromoted(config_key="hex8_2p", node="train-1", model_path="m"),
            "train-1",
            WAITING,
        ),
        (
            events.OrphanGamesDetected(config_key="hex8_2p", node="gpu-1", orphan_count=1),
            "gpu-1",
            WAITING,
        ),
        (
            events.DataNeeded(config_key="hex8_2p", node="train-1", data_type=DataType.NPZ),
            "train-1",
            READY,
        ),
        (
            events.DataSyncRequested(
                config_key="hex8_2p",
                data_type=DataType.NPZ,
                target_nodes=("train-1",),
                requester="exporter",
            ),
            "exporter",
            READY,
        ),
        (events.NodeTerminating(node="gpu-1"), "gpu-1", WAITING),
    ],
    ids=lambda value: events.type_name(value) if isinstance(value, Event) else str(value),
)
def test_trigger_opens_a_chain(trigger: Event, node: str, status: ChainStatus) -> None:
    """Those that speak of a node's files wait for its answer, the others are ready at once."""
    story = given(after(3), opens("c1", trigger))
    row = story.chain("c1")
    assert (row.trigger, row.node, row.status) == (events.type_name(trigger), node, status)
    assert (row.trigger_id, row.opened_sequence, row.opened_at) == ("c1", 1, T0 + 3)
    assert row.event() == trigger
    assert row.open


@pytest.mark.parametrize(
    "event",
    [
        events.HostOffline(node="gpu-1"),
        events.HostOnline(node="gpu-1"),
        events.NodeRecovered(node="gpu-1"),
        events.NodeDrainCancelled(node="gpu-1"),
        holds("gpu-1", GAMES),
        player("gpu-1"),
    ],
    ids=events.type_name,
)
def test_what_only_tells_of_a_node_opens_no_chain(event: Event) -> None:
    """Not every fact asks for something to be done."""
    assert ids(given(event).view.open_chains()) == []


def test_hand_made_trigger_opens_a_chain_named_by_its_sequence() -> None:
    """Without any header: node and configuration from the subject, id from the log."""
    story = given(raw("dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p", b'{"games_count":500}'))
    row = story.chain("DATAPLANE-1")
    assert (row.node, row.config_key) == ("gpu-7", "hex8_2p")
    assert row.event() == played("gpu-7", 500)


def test_trigger_whose_id_is_no_token_opens_a_chain_named_by_its_digest() -> None:
    """Any id is a legal id; not every one can stand in a subject."""
    strange = "urn:uuid:4 . > *"
    story = given(Said(played(), id=strange))
    (row,) = story.view.open_chains()
    assert row.id == chain_of_trigger(strange) != strange
    assert row.trigger_id == strange


def test_trigger_that_comes_again_opens_no_second_chain() -> None:
    """Under another subject, and so not recognised by the fold: the chain is there already."""
    story = given(opens("c1", played()), opens("c1", played(config_key="hex8_3p")))
    assert ids(story.view.open_chains()) == ["c1"]
    assert story.chain("c1").config_key == "hex8_2p"
    story.tell(answers("c1", "gpu-1"), opens("c1", played(config_key="hex8_4p")))
    assert story.chain("c1").status is READY


# Moved on


def test_chain_goes_from_trigger_to_completion() -> None:
    """Each status, and when it was reached."""
    story = given(trainer(), player(), opens("c1", played()))
    statuses = [story.chain("c1").status]
    for fact in (answers("c1", "gpu-1", GAMES), said_what_is_owed, assigned, succeeded()):
        story.tell(after(1), fact)
        statuses.append(story.chain("c1").status)
    story.tell(after(1), said_what_is_owed)
    row = story.chain("c1")
    assert [*statuses, row.status] == [WAITING, READY, MOVING, MOVING, MOVING, COMPLETED]
    assert (row.answered_at, row.planned_at) == (T0 + 1, T0 + 2)
    assert row.announced_at == row.ended_at == row.progress_at == T0 + 5
    assert (row.games_synced, row.bytes_transferred) == (500, 1_000)
    assert row.reason == "every target holds every byte"
    assert not row.open


def test_plan_that_comes_in_parts_is_whole_with_its_last_one() -> None:
    """Needs, holdings and refusals of all parts add up."""

    def part(name: str, *, last: bool) -> Said:
        entry = games_of(name)
        plan = SyncPlan(source_node=name, target_nodes=("a", "b"), entries=(entry,))
        refusal = Refusal(rule=name, reason="why")
        return decided(
            "c1",
            events.SyncPlanned(
                config_key="hex8_2p", plans=(plan,), refusals=(refusal,), last_part=last
            ),
        )

    story = given(opens("c1", played()), answers("c1", "gpu-1"), part("x", last=False))
    assert story.chain("c1").status is READY
    story.tell(part("y", last=True))
    row = story.chain("c1")
    assert row.status is MOVING
    assert [(need.target, need.path) for need in row.needs] == [
        ("a", "games/x/hex8_2p.db"),
        ("b", "games/x/hex8_2p.db"),
        ("a", "games/y/hex8_2p.db"),
        ("b", "games/y/hex8_2p.db"),
    ]
    assert [refusal.rule for refusal in row.refusals] == ["x", "y"]


def test_chain_counts_from_its_first_plan_whatever_is_planned_again() -> None:
    """When and where that was said, and from whom; parts and copies are those of all plans."""
    held = (Held(target="train-2", path=GAMES.path, checksum=GAMES.checksum),)
    moves = SyncPlan(source_node="gpu-1", target_nodes=("train-1",), entries=(GAMES,))
    first = events.SyncPlanned(
        config_key="hex8_2p", source_node="gpu-1", plans=(moves,), last_part=False
    )
    rest = events.SyncPlanned(config_key="hex8_2p", source_node="gpu-1", held=held)
    other = games_of("gpu-1", "other")
    anew = events.SyncPlanned(
        config_key="hex8_2p",
        source_node="gpu-2",
        plans=(SyncPlan(source_node="gpu-2", target_nodes=("train-1",), entries=(other,)),),
    )
    story = given(opens("c1", played()), answers("c1", "gpu-1", GAMES))
    story.tell(after(2), decided("c1", first), after(2), decided("c1", rest))
    row = story.chain("c1")
    assert (row.planned_sequence, row.planned_at, row.source_node) == (3, T0 + 4, "gpu-1")
    assert (row.parts, row.copies) == (2, 2)
    row = story.tell(after(2), decided("c1", anew)).chain("c1")
    assert (row.planned_sequence, row.planned_at, row.source_node) == (3, T0 + 4, "gpu-1")
    assert (row.parts, row.copies) == (3, 3)


def test_chain_joins_the_trace_that_its_trigger_was_said_in() -> None:
    """Unless that is its own; what nobody opened has none."""
    trace = "ab" * 16
    own, joined = as_fact(opens("c1", played()), 1), as_fact(opens("c2", played("gpu-2")), 2)
    story = given(own, replace(joined, traceparent=f"00-{trace}-{'cd' * 8}-01"))
    assert [story.view.joined_trace(id) for id in ("c1", "c2", "c3")] == ["", trace, ""]


def test_what_the_node_could_not_read_is_kept_with_the_chain() -> None:
    """P2: a problem of the answer is not swallowed on the way to the end."""
    problem = "games/hex8_2p.db is being written"
    story = given(opens("c1", played()), answers("c1", "gpu-1", problems=(problem,)))
    (refusal,) = story.chain("c1").refusals
    assert (refusal.rule, refusal.reason) == ("unreadable", problem)


def test_second_answer_changes_nothing() -> None:
    """The agent may answer a redelivered trigger again."""
    story = given(opens("c1", played()), answers("c1", "gpu-1"), after(9))
    answered = story.chain("c1")
    story.tell(answers("c1", "gpu-1", GAMES, problems=("late",)))
    assert story.chain("c1") == answered


def test_overdue_chain_goes_on() -> None:
    """CHAIN_OVERDUE is noted, and is no end."""
    late = events.ChainOverdue(config_key="hex8_2p", age_seconds=4_000.0, waiting_for="gpu-1")
    story = given(opens("c1", played()), after(4_000), decided("c1", late))
    row = story.chain("c1")
    assert (row.overdue_at, row.status, row.open) == (T0 + 4_000, WAITING, True)


def test_facts_of_a_chain_nobody_opened_are_ignored() -> None:
    """`evolve` is total."""
    story = given(answers("c9", "gpu-1", GAMES), end("c9"), end("c8", events.DataSyncFailed))
    assert ids(story.view.open_chains()) == ids(story.view.ended_chains()) == []


# Ended


def test_open_chains_are_listed_oldest_first_and_ended_ones_newest_first() -> None:
    """What waits longest stands first; what ended last stands first."""
    story = given(*(opens(f"c{n}", played()) for n in range(5)))
    story.tell(end("c3"), end("c1", events.DataSyncFailed, reason="why"))
    assert ids(story.view.open_chains()) == ["c0", "c2", "c4"]
    assert ids(story.view.ended_chains()) == ["c1", "c3"]
    assert story.chain("c1").status is ChainStatus.FAILED
    assert story.chain("c1").reason == "why"
    assert story.view.counts()["chains_open"] == 3
    assert story.view.counts()["chains_ended"] == 2


def test_open_chains_can_be_gone_through_page_by_page() -> None:
    """The sweep goes on behind the last chain it saw, also if that one has ended meanwhile."""
    story = given(*(opens(f"c{n}", played()) for n in range(5)))
    second = place_of(list(story.view.open_chains())[1])
    assert ids(story.view.open_chains(second)) == ["c2", "c3", "c4"]
    story.tell(end("c1"), end("c2"))
    assert ids(story.view.open_chains(second)) == ["c3", "c4"]


def test_announcement_after_the_end_is_noted_and_ends_nothing_twice() -> None:
    """The ended chain stays where it stands."""
    story = given(opens("c1", played()), opens("c2", played()), end("c1"), end("c2"), after(7))
    news = events.NewGamesAvailable(config_key="hex8_2p", game_count=1, source_node="gpu-1")
    story.tell(decided("c1", news))
    assert story.chain("c1").announced_at == T0 + 7
    assert story.chain("c1").status is COMPLETED
    assert ids(story.view.ended_chains()) == ["c2", "c1"]


def test_p15_what_was_announced_is_remembered_by_content() -> None:
    """A later version of the same file is news again."""
    story = given(trainer(), player())
    assert not story.view.was_announced(GAMES)
    story.tell(ran("c1", played(), GAMES))
    assert story.view.was_announced(GAMES)
    assert not story.view.was_announced(games_of("gpu-1", "second"))
    assert not story.view.was_announced(games_of("gpu-2"))


def test_completion_without_an_announcement_announces_nothing() -> None:
    """Only NEW_GAMES_AVAILABLE itself counts as having been told."""
    story = given(trainer(), player()).under(chains={"announce": False})
    story.tell(ran("c1", played(), GAMES))
    assert not story.view.was_announced(GAMES)


@settings(max_examples=60, deadline=None)
@sampled(steps=histories())
def test_every_chain_is_open_or_ended_and_listed_once(steps: list[Step]) -> None:
    """Lists, rows and counts agree after any history."""
    view = lived(steps).view
    opened, ended = list(view.open_chains()), list(view.ended_chains())
    assert all(row.open for row in opened)
    assert all(not row.open for row in ended)
    listed = ids(opened) + ids(ended)
    assert len(listed) == len(set(listed))
    assert (len(opened), len(ended)) == (
        view.counts()["chains_open"],
        view.counts()["chains_ended"],
    )
    places = [place_of(row) for row in opened]
    assert places == sorted(places)


def test_unknown_chain_is_nothing() -> None:
    """A question about it is answered, not raised at."""
    story = Story()
    assert story.view.chain("c1") is None
    assert story.view.transfers_of("c1") == []
    assert story.view.last_sequence_of("c1") == 0


# What is found without reading a chain


def test_trigger_of_a_chain_is_known_by_its_wire_name() -> None:
    """Open or ended; of a chain nobody opened there is none."""
    story = given(trainer(), opens("c1", played("gpu-1")), end("c1"))
    assert story.view.trigger_of("c1") == "SELFPLAY_COMPLETE"
    assert story.view.trigger_of("c2") == ""


def test_chains_are_found_by_how_their_ids_begin() -> None:
    """In order, and none that only contains it."""
    story = given(*(opens(id, played()) for id in ("sweep-2", "c1", "sweep-1", "a-sweep-")))
    assert list(story.view.chain_ids("sweep-")) == ["sweep-1", "sweep-2"]


def test_open_chains_go_on_behind_a_place() -> None:
    """The oldest first, and from any of them on only the younger."""
    story = given(*(opens(id, played()) for id in ("c3", "c1", "c2")))
    assert ids(story.view.open_chains()) == ["c3", "c1", "c2"]
    first = place_of(story.chain("c3"))
    assert ids(story.view.open_chains(first)) == ["c1", "c2"]
    assert ids(story.view.open_chains(place_of(story.chain("c2")))) == []


def leaves(chain: str) -> Any:
    """A node says that it will go."""
    return opens(chain, events.NodeTerminating(node="gpu-1"))


def test_node_is_drained_once_the_chain_of_its_leaving_has_completed() -> None:
    """Until that is said; no other chain of the node, and no failed one, lets it go."""
    story = given(leaves("d1"), opens("c1", played("gpu-1")), end("c1"))
    assert ids(story.view.drains()) == []
    story.tell(end("d1"))
    assert ids(story.view.drains()) == ["d1"]
    story.tell(decided("d1", events.NodeDrained(node="gpu-1")))
    assert ids(story.view.drains()) == []
    failed = given(leaves("d1"), end("d1", events.DataSyncFailed, reason="why"))
    assert ids(failed.view.drains()) == []


STAYS = [events.NodeDrainCancelled(node="gpu-1"), events.NodeRecovered(node="gpu-1")]


@pytest.mark.parametrize("back", [leaves("d2"), *STAYS])
def test_what_emptied_a_node_is_overtaken_by_what_it_says_later(back: Any) -> None:
    """That it leaves anew, or stays: it may hold other files by now."""
    assert ids(given(leaves("d1"), end("d1"), back).view.drains()) == []


@pytest.mark.parametrize("stays", STAYS)
def test_chain_that_empties_a_node_that_stays_drains_nothing(stays: Event) -> None:
    """Those that are open then, and no later one; other nodes' and those that have ended stay."""
    others = [opens(name, events.NodeTerminating(node=name)) for name in ("gpu-11", "gpu-2")]
    story = given(leaves("d0"), end("d0", events.DataSyncFailed, reason="why"))
    story.tell(after(3), leaves("d1"), leaves("d2"), *others, opens("c1", played("gpu-1")), stays)
    story.tell(after(1), stays)
    names = ("d0", "d1", "d2", "gpu-11", "gpu-2", "c1")
    cancelled = {id: story.chain(id).cancelled_at for id in names}
    assert cancelled == dict.fromkeys(names, 0.0) | {"d1": T0 + 3, "d2": T0 + 3}
    story.tell(end("d1"), leaves("d3"), end("d2"))
    assert ids(story.view.drains()) == []
    story.tell(end("gpu-11"), end("gpu-2"), end("d3"))
    assert ids(story.view.drains()) == ["d3", "gpu-11", "gpu-2"]


def test_what_a_chain_said_of_quorum_and_bucket_is_kept_with_its_time() -> None:
    """It is open all the same."""
    story = given(opens("c1", played()), after(2))
    reached = events.ModelDistributionComplete(
        config_key="hex8_2p", model_path="m.pth", checksum=GAMES.checksum
    )
    story.tell(decided("c1", reached), after(2))
    stored = events.S3BackupCompleted(bucket="b", manifest_key="m", entries=1, size_bytes=1)
    story.tell(decided("c1", stored), after(2))
    row = story.chain("c1")
    assert given(opens("c1", played())).chain("c1").progress_at == T0
    assert (row.distributed_at, row.backed_up_at, row.open) == (T0 + 2, T0 + 4, True)
    assert (row.id, row.opened_at, row.progress_at) == ("c1", T0, T0 + 4)
