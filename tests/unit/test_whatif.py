"""Another policy over a recorded log: the planner that decides is the one that would decide."""

from __future__ import annotations

import msgspec

from dataplane.audit.whatif import Moves, what_if
from dataplane.policy import Exclusion, Policy
from streams import events
from streams.values import Transport, TransportResult
from tests.kept import archive, stored
from tests.spec import (
    T0,
    Story,
    after,
    answers,
    assigned,
    games_of,
    given,
    holds,
    opens,
    played,
    player,
    policy_of,
    ran,
    result,
    said_what_is_owed,
    trainer,
    tried,
)

GAMES, MORE = games_of("gpu-1", "first", games=30), games_of("gpu-1", "second", games=60)


def told() -> Story:
    """Two chains, each to the two training nodes there are."""
    return given(
        trainer("train-1"),
        trainer("train-2"),
        player("gpu-1"),
        ran("c1", played("gpu-1"), GAMES),
        after(60.0),
        ran("c2", played("gpu-1"), MORE),
    )


async def test_the_same_policy_changes_nothing_and_is_what_was_recorded() -> None:
    """The recorded decisions are those of the planner: it takes each of them again as it was."""
    story = told()
    log, _ = archive(stored(story.facts))
    outcome = await what_if(log, story.policy, story.policy)
    assert (outcome.decisions, outcome.as_recorded, outcome.changed) == (2, 2, [])
    assert outcome.today == outcome.other
    assert (outcome.today.copies, outcome.today.bytes) == (
        4,
        2 * (GAMES.size_bytes + MORE.size_bytes),
    )


async def test_an_excluded_node_gets_nothing_and_what_that_breaks_is_counted() -> None:
    """Each chain without that copy, its bytes, and the contents that fall below the minimum."""
    story = told()
    log, _ = archive(stored(story.facts))
    other = msgspec.structs.replace(Policy(), exclusion=Exclusion(exclude_hosts=("train-2",)))
    outcome = await what_if(log, story.policy, other)
    assert [(c.chain, c.added) for c in outcome.changed] == [("c1", ()), ("c2", ())]
    assert outcome.changed[0].dropped == (f"{GAMES.path} to train-2",)
    assert outcome.changed[0].dropped_bytes == GAMES.size_bytes
    assert (outcome.today.below_minimum, outcome.other.below_minimum) == (0, 2)
    assert outcome.other.copies == outcome.today.copies - 2


async def test_only_decisions_behind_a_point_are_taken_again() -> None:
    """What came before is folded, not asked."""
    story = told()
    log, _ = archive(stored(story.facts))
    middle = next(fact.sequence for fact in story.facts if fact.chain == "c2") - 1
    outcome = await what_if(log, story.policy, story.policy, since=middle)
    assert outcome.decisions == 1
    nothing = await what_if(log, story.policy, story.policy, since=len(story.facts))
    assert (nothing.decisions, nothing.today) == (0, Moves())


async def test_what_is_brought_ahead_is_decided_anew_like_anything_else() -> None:
    """A policy without the rule would have brought nothing; today's brings what was recorded."""
    expected = events.TrainingExpected(
        config_key="hex8_2p",
        node="train-1",
        expected_at=T0 + 600,
        until=T0 + 1200,
        paths=(GAMES.path,),
    )
    begins = opens("sweep-prestage-1", expected, by="boss")
    story = given(
        trainer("train-1"), player("gpu-1"), holds("gpu-1", GAMES), begins, said_what_is_owed
    )
    log, _ = archive(stored(story.facts))
    without = policy_of(placement={"rules": {"prestage": {"enabled": False}}})
    outcome = await what_if(log, story.policy, without)
    assert (outcome.decisions, outcome.as_recorded) == (1, 1)
    [changed] = outcome.changed
    assert (changed.trigger, changed.node) == ("TRAINING_EXPECTED", "train-1")
    assert (changed.added, changed.dropped) == ((), (f"{GAMES.path} to train-1",))


def slowly(bytes_a_second: int) -> TransportResult:
    """A try that worked at this rate."""
    return result(
        Transport.HTTP_FETCH, bytes_transferred=bytes_a_second * 10, duration_seconds=10.0
    )


async def test_a_deadline_that_the_recorded_rate_misses_is_counted() -> None:
    """100 s at the rate that the log has seen of that node: in time for 200 s, too late for 60."""
    first, second = (
        games_of("gpu-1", name, games=games, size_bytes=100_000)
        for name, games in (("first", 30), ("second", 60))
    )
    story = given(
        trainer("train-1"),
        player("gpu-1"),
        opens("c1", played("gpu-1")),
        answers("c1", "gpu-1", first),
        said_what_is_owed,
        assigned,
        tried("train-1", slowly(1_000)),
        said_what_is_owed,
        after(60.0),
        ran("c2", played("gpu-1"), second),
    )
    log, _ = archive(stored(story.facts))
    late = await what_if(log, story.policy, due_after(60.0))
    assert (late.decisions, late.today.deadlines_missed, late.other.deadlines_missed) == (2, 0, 1)
    in_time = await what_if(log, story.policy, due_after(200.0))
    assert in_time.other.deadlines_missed == 0


def due_after(seconds: float) -> Policy:
    """Games are due so long after their trigger."""
    return policy_of(placement={"rules": {"selfplay": {"deadline_s": seconds}}})


async def test_a_chain_that_a_policy_would_have_failed_is_counted_as_blocked() -> None:
    """Half as many games as are there already: today's policy takes them, a stricter one fails."""
    story = given(
        trainer("train-1"),
        trainer("train-2"),
        player("gpu-1"),
        ran("c1", played("gpu-1"), MORE),
        ran("c2", played("gpu-1"), GAMES),
        policy=losing(0.5),
    )
    log, _ = archive(stored(story.facts))
    outcome = await what_if(log, story.policy, losing(0.1))
    assert (outcome.today.blocked, outcome.other.blocked) == (0, 1)
    assert [(c.chain, c.added, len(c.dropped)) for c in outcome.changed] == [("c2", (), 2)]


def losing(share: float) -> Policy:
    """Games are replaced by a database that lacks at most this share of them."""
    return policy_of(placement={"regression": {"games": 1 - share}})


async def test_copies_that_a_policy_would_have_made_besides_are_named() -> None:
    """Recorded with one copy; the policy with two brings it to the second trainer as well."""
    one = policy_of(placement={"rules": {"selfplay": {"copies": 1}}})
    story = given(
        trainer("train-1"),
        trainer("train-2"),
        player("gpu-1"),
        ran("c1", played("gpu-1"), GAMES),
        policy=one,
    )
    log, _ = archive(stored(story.facts))
    outcome = await what_if(log, one, Policy())
    assert outcome.as_recorded == outcome.today.copies == 1
    [changed] = outcome.changed
    [other] = {"train-1", "train-2"} - {
        fact.event.target for fact in story.facts if isinstance(fact.event, events.TransferAssigned)
    }
    assert changed.added == (f"{GAMES.path} to {other}",)
    assert (changed.added_bytes, changed.dropped, changed.dropped_bytes) == (
        GAMES.size_bytes,
        (),
        0,
    )
    assert outcome.other.bytes == outcome.today.bytes + GAMES.size_bytes


async def test_what_finds_no_target_at_all_is_below_the_minimum_too() -> None:
    """A plan that names no file for want of a target leaves the files of the other plan alone."""
    story = told()
    log, _ = archive(stored(story.facts))
    nobody = msgspec.structs.replace(
        Policy(), exclusion=Exclusion(exclude_hosts=("train-1", "train-2"))
    )
    outcome = await what_if(log, story.policy, nobody)
    assert (outcome.other.copies, outcome.other.bytes) == (0, 0)
    assert (outcome.today.below_minimum, outcome.other.below_minimum) == (0, 2)
