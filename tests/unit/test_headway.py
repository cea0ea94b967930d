"""Attempts that fail but bring their file on: they are not counted, whatever the file's size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from dataplane import laws
from dataplane.chain import exhausted
from dataplane.policy import Policy
from projections.headway import SHARE_BYTES, is_headway
from projections.links import BreakerState, breaker
from projections.transfers import MOST_FAILURES, TransferRow
from streams import events
from streams.values import DataEntry, SyncPlan, TargetOutcome, Transport
from tests.spec import (
    Story,
    after,
    answers,
    assigned,
    decided,
    failed,
    games_of,
    given,
    opens,
    played,
    player,
    said_what_is_owed,
    succeeded,
    trainer,
)

MB = 1_000_000
GB = 1_000 * MB


def wanted(size_bytes: int, *, policy: Policy = Policy()) -> Story:  # noqa: B008 - immutable
    """A file of this size is about to be sent to the only trainer."""
    games: DataEntry = games_of("gpu-1", size_bytes=size_bytes)
    story = given(trainer(), player(), policy=policy)
    return story.tell(opens("c1", played()), answers("c1", "gpu-1", games), said_what_is_owed)


def row(story: Story) -> TransferRow:
    """The only transfer."""
    (found,) = story.view.transfers_of("c1")
    return found


def tries(story: Story, most: int, *come: Callable[[Story], Iterable[Any]], s: float = 40) -> int:
    """Attempts one after the other, each coming to this, until the chain ends; how many."""
    for number in range(most):
        story.tell(assigned)
        if not story.under_way():
            return number
        story.tell(after(1.0), *come, said_what_is_owed, after(s))
        if not story.chain("c1").open:
            return number + 1
    return most


def reason(story: Story) -> str:
    """How the chain ended."""
    (end,) = (f.event for f in story.facts if isinstance(f.event, events.DataSyncFailed))
    return end.failed[0].error


def test_a_real_share_is_a_mebibyte_or_a_hundredth_of_the_file() -> None:
    """A byte is none, unless the file has hardly more."""
    assert is_headway(SHARE_BYTES, 89 * GB) and not is_headway(SHARE_BYTES - 1, 89 * GB)
    assert is_headway(100, 10_000) and not is_headway(99, 10_000)
    assert is_headway(1, 20) and not is_headway(0, 20) and not is_headway(0, 0)


def test_89_gb_arrive_in_attempts_that_all_end_by_their_time() -> None:
    """By the defaults: 600 s at 100 Mbit/s are 7.5 GB, and each attempt goes on from there."""
    story = wanted(89 * GB)
    left = 89 * GB
    while True:
        story.tell(assigned)
        (flying,) = story.under_way()
        assert (flying.timeout_s, flying.bandwidth_mbps) == (600.0, 100.0)
        moved = int(flying.bandwidth_mbps / 8 * MB * flying.timeout_s)
        if moved >= left:
            break
        left -= moved
        story.tell(after(600), failed(error_class="TimedOut", moved=moved), said_what_is_owed)
        # As long as after a first failure, however many there were.
        story.tell(after(2.2))
    story.tell(after(left * 8 / 1e8), succeeded(moved=left), said_what_is_owed)
    assert row_of_end(story, events.DataSyncCompleted).bytes_transferred == 89 * GB
    assert flying.attempt == 12


def row_of_end(story: Story, kind: type[Any]) -> Any:
    """The end, which must be of this type."""
    (end,) = (f.event for f in story.facts if isinstance(f.event, kind))
    return end


@pytest.mark.parametrize("moved", [0, 1, SHARE_BYTES - 1])
def test_89_gb_of_which_nothing_or_next_to_nothing_comes_are_given_up(moved: int) -> None:
    """After four attempts, and the words say so."""
    story = wanted(89 * GB)
    assert tries(story, 100, failed(error_class="TimedOut", moved=moved)) == 4
    assert reason(story).endswith("(attempt 4)")


def test_attempts_in_vain_are_counted_from_the_last_headway_on() -> None:
    """Three in vain and one that brings something, again and again: it goes on."""
    story = wanted(64 * MB)
    for _ in range(5):
        assert tries(story, 3, failed()) == 3
        assert tries(story, 1, failed(error_class="Interrupted", moved=8 * MB)) == 1
    assert tries(story, 100, failed()) == 4
    assert reason(story).endswith("(attempt 24)")


def test_wrong_bytes_are_no_headway() -> None:
    """All of them came, and nothing is kept of them."""
    story = wanted(64 * MB)
    assert tries(story, 100, failed(error_class="DigestMismatch", moved=64 * MB)) == 4


def test_what_is_said_to_come_again_and_again_is_no_headway() -> None:
    """Who says that half of it came, for ever, is believed until it would be there thrice."""
    story = wanted(64 * MB)
    assert tries(story, 100, failed(error_class="Interrupted", moved=32 * MB)) == 6 + 4


def test_after_headway_it_is_tried_again_as_soon_as_after_a_first_failure() -> None:
    """However often that happened; in vain it takes longer each time."""
    story = wanted(64 * MB)
    assert tries(story, 3, failed(error_class="Interrupted", moved=8 * MB)) == 3
    story.tell(assigned, failed(error_class="Interrupted", moved=8 * MB), after(2.2))
    assert len(story.admits().assignments) == 1
    vain = wanted(64 * MB)
    assert tries(vain, 2, failed()) == 2
    vain.tell(assigned, failed(), after(2.2))
    assert not vain.admits().assignments


def test_cuts_that_let_something_pass_open_no_breaker_and_close_none() -> None:
    """They are counted, with their bytes; three in vain shut the way as ever."""
    story = wanted(64 * MB)
    assert tries(story, 5, failed(error_class="Interrupted", moved=8 * MB), s=3) == 5
    node, link = story.view.link("gpu-1"), story.view.link("gpu-1", Transport.RSYNC)
    known = [one for one in story.view.links() if one.failures]
    assert known and (node or link)
    for one in known:
        assert (one.failures, one.bytes, one.recent) == (5, 40 * MB, ())
        assert breaker(one, story.now).state is BreakerState.CLOSED
    # One byte an attempt is in vain.
    assert tries(story, 3, failed(error_class="Interrupted", moved=1), s=5) == 3
    assert all(breaker(one, story.now).state is BreakerState.OPEN for one in story.view.links())
    story.tell(assigned, failed(error_class="Interrupted", moved=8 * MB))
    assert all(breaker(one, story.now).state is BreakerState.OPEN for one in story.view.links())


def test_a_long_story_is_remembered_short() -> None:
    """A row does not grow with the cuts; the count of attempts stays true."""
    story = wanted(640 * MB)
    assert tries(story, 90, failed(error_class="Interrupted", moved=3 * MB)) == 90
    assert len(row(story).failures) == MOST_FAILURES
    assert sum(one.moved for one in row(story).failures) == 270 * MB
    assert tries(story, 100, failed()) == 4
    assert reason(story).endswith("(attempt 94)")


def test_many_failures_in_vain_are_all_remembered() -> None:
    """However many retries are allowed."""
    story = wanted(64 * MB).under(retries={"max_retries": MOST_FAILURES + 9})
    assert tries(story, 1_000, failed()) == MOST_FAILURES + 10


def test_what_a_new_chain_asks_for_is_counted_anew() -> None:
    """What came for the one before is no headway of the next."""
    story = wanted(64 * MB)
    tries(story, 2, failed())
    asked = story.facts[-1].sequence + 1
    assert row(story).fruitless_since(0) == 2 and row(story).fruitless_since(asked) == 0
    assert not exhausted(row(story), Policy(), asked)


# The law


def test_law_finds_what_is_given_up_too_early_and_what_is_tried_too_often() -> None:
    """By a log of other rules; by its own rules each log is sound."""
    law = laws.attempts_are_counted(3)
    cut = failed(error_class="Interrupted", moved=8 * MB)
    sound = wanted(64 * MB)
    assert tries(sound, 10, cut) == 10
    assert tries(sound, 10, failed()) == 4
    assert list(law(sound.facts)) == []
    hasty = wanted(64 * MB).under(retries={"max_retries": 1})
    assert tries(hasty, 100, failed()) == 2
    assert any("given up after 2" in problem for problem in law(hasty.facts))
    stubborn = wanted(64 * MB).under(retries={"max_retries": 5})
    assert tries(stubborn, 100, failed(error_class="Interrupted", moved=1)) == 6
    assert any("tried again after 4" in problem for problem in law(stubborn.facts))


def test_law_knows_for_which_chain_an_attempt_could_not_be_made_better() -> None:
    """Another that asks for the same before the first has ended has its own attempts."""
    law = laws.attempts_are_counted(3)
    games = games_of("gpu-1")
    plan = SyncPlan("gpu-1", ("train-1",), (games,))
    asks = events.SyncPlanned(plans=(plan,), config_key="hex8_2p")
    lacks = TargetOutcome("train-1", games.path, games.checksum, error="Unanswered: no result")
    ends = events.DataSyncFailed(config_key="hex8_2p", source_node="gpu-1", failed=(lacks,))
    story = wanted(games.size_bytes).tell(assigned, failed(retryable=False))
    story.tell(decided("c2", asks), decided("c1", ends))
    assert list(law(story.facts)) == []
    story.tell(decided("c2", ends))
    assert len(list(law(story.facts))) == 1
