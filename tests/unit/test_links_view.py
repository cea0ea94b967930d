"""The links: what attempts came to, how fast they were, and which breakers that opens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from projections.links import LINK_FAILURES, Breaker, BreakerState, LinkRow, breaker
from streams import events
from streams.events import Event
from streams.values import S3_NODE, Transport, TransportResult
from tests.spec import T0, Story, after, games_of, given, player

HTTP, RSYNC, S3 = Transport.HTTP_FETCH, Transport.RSYNC, Transport.S3
ENTRY = games_of("gpu-1")
MEGABYTE = 1_000_000


def tried(
    transport: Transport = HTTP,
    error: str = "",
    *,
    moved: int = 0,
    seconds: float = 1.0,
    remote: str = "",
) -> TransportResult:
    """One try over one transport."""
    return TransportResult(
        success=not error,
        transport_used=transport,
        bytes_transferred=moved,
        duration_seconds=seconds,
        error=error or None,
        error_class=error,
        remote=remote,
    )


def attempt(
    *results: TransportResult, node: str = "train-1", source: str = "gpu-1", target: str = "train-1"
) -> Event:
    """An attempt with these results, as its executor `node` says it."""
    cls = events.TransferSucceeded if results[-1].success else events.TransferFailed
    failure = {} if results[-1].success else {"error": "no", "error_class": results[-1].error_class}
    return cls(
        transfer="t",
        node=node,
        source=source,
        target=target,
        entry=ENTRY,
        attempt=1,
        results=results,
        **failure,
    )


def the(story: Story, node: str = "gpu-1", transport: Transport | None = HTTP) -> LinkRow:
    """A link that must be known."""
    row = story.view.link(node, transport)
    assert row is not None
    return row


def state(story: Story, node: str = "gpu-1", transport: Transport | None = HTTP) -> BreakerState:
    """What a breaker says at the story's present."""
    return breaker(story.view.link(node, transport), story.now).state


def repeated(times: int, event: Event) -> Callable[[Story], Iterable[Event]]:
    """The same thing happens so many times."""
    return lambda _: [event] * times


FAILS = attempt(tried(HTTP, "Stalled"))
WORKS = attempt(tried(HTTP))


def test_each_try_counts_for_the_source_by_its_transport_and_the_attempt_for_the_node() -> None:
    """The first transport failed, the second brought it: one failure, one success, a good node."""
    story = given(attempt(tried(HTTP, "Refused", moved=5), tried(RSYNC, moved=7)))
    assert [(row.node, row.transport) for row in story.view.links()] == [
        ("gpu-1", None),
        ("gpu-1", HTTP),
        ("gpu-1", RSYNC),
    ]
    counts = [
        (the(story, transport=t).successes, the(story, transport=t).failures)
        for t in (None, HTTP, RSYNC)
    ]
    assert counts == [(1, 0), (0, 1), (1, 0)]
    assert (the(story).last_error, the(story).last_error_at, the(story).bytes) == ("Refused", T0, 5)


def test_a_push_counts_for_its_target() -> None:
    """Who pushed learns something about where he pushed to."""
    story = given(attempt(tried(HTTP), node="gpu-1"))
    assert story.view.link("train-1", HTTP) is not None
    assert story.view.link("gpu-1", HTTP) is None


def test_a_relay_counts_for_each_end_it_spoke_with() -> None:
    """Fetched here, pushed there: the results say which try was with whom."""
    tries = (tried(HTTP, remote="gpu-1"), tried(S3, "Unreachable", remote=S3_NODE))
    story = given(attempt(*tries, node="hub"))
    assert (the(story).failures, the(story, S3_NODE, S3).failures) == (0, 1)


@pytest.mark.parametrize("error", sorted(LINK_FAILURES))
def test_failures_of_the_way_are_counted(error: str) -> None:
    """They say something about the link."""
    assert the(given(attempt(tried(HTTP, error)))).failures == 1


@pytest.mark.parametrize(
    "error", ["CheckFailed", "Superseded", "DiskFull", "EntryMissing", "InUse", "Regression"]
)
def test_failures_for_other_reasons_are_not(error: str) -> None:
    """A full disk at the target says nothing about the source."""
    assert given(attempt(tried(HTTP, error))).view.links() == []


def test_k15_three_failures_in_a_row_open_a_link_for_a_minute() -> None:
    """Two don't, a success between them begins anew, and the minute counts from the last."""
    assert state(given(repeated(2, FAILS))) is BreakerState.CLOSED
    assert state(given(repeated(2, FAILS), WORKS, repeated(2, FAILS))) is BreakerState.CLOSED
    story = given(FAILS, after(10), FAILS, after(10), FAILS)
    assert breaker(the(story), story.now) == Breaker(BreakerState.OPEN, T0 + 80)
    assert state(story.tell(after(59.9))) is BreakerState.OPEN
    assert state(story.tell(after(0.2))) is BreakerState.HALF_OPEN


def test_k15_half_open_needs_two_successes_to_close_and_one_failure_to_open() -> None:
    """One success leaves it half open."""
    story = given(repeated(3, FAILS), after(61), WORKS)
    assert state(story) is BreakerState.HALF_OPEN
    assert state(story.tell(WORKS)) is BreakerState.CLOSED
    again = given(repeated(3, FAILS), after(61), WORKS, FAILS)
    assert breaker(the(again), again.now) == Breaker(BreakerState.OPEN, T0 + 61 + 60)


def test_k15_a_node_that_fails_three_attempts_by_any_transport_is_shut_for_five_minutes() -> None:
    """No transport failed three times, the node did."""
    story = given(FAILS, attempt(tried(RSYNC, "Refused")), FAILS)
    assert (state(story), state(story, transport=None)) == (BreakerState.CLOSED, BreakerState.OPEN)
    assert state(story.tell(after(299)), transport=None) is BreakerState.OPEN
    assert state(story.tell(after(2)), transport=None) is BreakerState.HALF_OPEN


@pytest.mark.parametrize(
    "back",
    [player("gpu-1"), events.NodeRecovered(node="gpu-1"), events.HostOnline(node="gpu-1")],
)
def test_a_node_that_is_back_gets_a_new_chance(back: Event) -> None:
    """Its counts stay, its breakers close, and another node's stay as they are."""
    others = attempt(tried(HTTP, "Stalled"), source="gpu-10")
    story = given(repeated(3, FAILS), repeated(3, others), back)
    assert state(story) is state(story, transport=None) is BreakerState.CLOSED
    assert state(story, "gpu-10") is BreakerState.OPEN
    assert the(story).failures == 3


def test_a_long_history_of_failures_stays_open() -> None:
    """What is no longer remembered does not close a breaker."""
    story = given(repeated(60, FAILS))
    assert breaker(the(story), story.now) == Breaker(BreakerState.OPEN, T0 + 60)


def test_k12_corruption_is_remembered_for_its_link() -> None:
    """Only over the link where it happened, and only while it is among the newest outcomes."""
    bad = attempt(tried(HTTP, "DigestMismatch"), tried(RSYNC))
    story = given(bad, repeated(23, WORKS))
    assert the(story).corrupted_since(T0 - 1)
    assert not the(story).corrupted_since(T0)
    assert not the(story, transport=RSYNC).corrupted_since(0)
    assert not the(story.tell(WORKS)).corrupted_since(T0 - 1)


def test_rates_are_kept_by_size_and_told_as_quantiles() -> None:
    """Ten moves at 10 MB/s and two at 1 MB/s; a size nobody moved is told by the nearest."""
    fast = attempt(tried(HTTP, moved=2 * MEGABYTE, seconds=0.2))
    slow = attempt(tried(HTTP, moved=2 * MEGABYTE, seconds=2.0))
    story = given(repeated(10, fast), repeated(2, slow), attempt(tried(HTTP, moved=1000)))
    row = the(story)
    assert row.rate(2 * MEGABYTE) == pytest.approx(10 * MEGABYTE, rel=0.3)
    assert row.rate(2 * MEGABYTE, 0.1) == pytest.approx(MEGABYTE, rel=0.3)
    assert row.rate(900 * MEGABYTE) == row.rate(2 * MEGABYTE)
    assert row.rate(100) == pytest.approx(1000, rel=0.3)


def test_a_link_that_never_moved_anything_has_no_rate() -> None:
    """Neither failures nor moves of nothing tell a speed."""
    assert the(given(FAILS, WORKS)).rate(MEGABYTE) is None


def test_old_rates_fade() -> None:
    """A link that became slow is told slow before long."""
    fast = attempt(tried(HTTP, moved=2 * MEGABYTE, seconds=0.02))
    slow = attempt(tried(HTTP, moved=2 * MEGABYTE, seconds=2.0))
    row = the(given(repeated(500, fast), repeated(80, slow)))
    assert row.rate(2 * MEGABYTE) == pytest.approx(MEGABYTE, rel=0.3)
