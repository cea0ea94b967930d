"""Which piece is asked of whom: the source gives each about once, and nobody is waited for."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.p2p.swarm import (
    AWAY_S,
    IDLE_S,
    LATE_S,
    LONGEST_RUN_BYTES,
    LOST_S,
    MOST_FAILURES,
    QUIET_S,
    RUN_S,
    SHORTEST_RUN_BYTES,
    SILENT_S,
    Kind,
    Swarm,
    bits,
    next_run_bytes,
)

SOURCE = "source"


def swarm(me: str = "b", count: int = 12, others: tuple[str, ...] = ()) -> Swarm:
    """One that lacks everything."""
    made = Swarm(me, count, range(count))
    made.joins(SOURCE, Kind.SOURCE, 0.0)
    for other in others:
        made.joins(other, Kind.RECEIVER, 0.0)
    return made


def asked(made: Swarm, node: str, now: float = 0.0) -> list[int]:
    """All that is asked of a peer one after the other, as if nothing came."""
    found = []
    while (piece := made.next(node, now)) is not None:
        found.append(piece)
    return found


def test_alone_all_is_asked_of_the_source_in_order() -> None:
    """So that the digest of the whole keeps up with what comes."""
    assert asked(swarm(count=5), SOURCE) == [0, 1, 2, 3, 4]


def test_p12_each_receiver_asks_the_source_for_its_own_share() -> None:
    """Three of them: every piece is asked of the source once, by one of them."""
    names = ("a", "b", "c")
    shares = [asked(swarm(me, 12, tuple(n for n in names if n != me)), SOURCE) for me in names]
    assert sorted(piece for share in shares for piece in share) == list(range(12))
    assert [len(share) for share in shares] == [4, 4, 4]


def test_rarest_piece_of_a_peer_goes_first() -> None:
    """What few have may be gone soon, and is what others will ask us for."""
    made = swarm(others=("a", "c"))
    made.heard("a", bits([2, 5]), False, 0.0)
    made.heard("c", bits([5]), False, 0.0)
    assert made.next("a", 0.0) == 2


def test_piece_under_way_is_not_asked_for_twice_at_once() -> None:
    """Of two who have it one is asked."""
    made = swarm(others=("a", "c"))
    made.heard("a", bits([5]), False, 0.0)
    made.heard("c", bits([5]), False, 0.0)
    assert made.next("a", 0.0) == 5
    assert made.next("c", 0.0) is None


def test_late_piece_is_asked_of_somebody_else_too() -> None:
    """A slow peer does not hold up the end."""
    made = swarm(others=("a", "c"))
    made.heard("a", bits([5]), False, 0.0)
    made.heard("c", bits([5]), False, LATE_S)
    assert made.next("a", 0.0) == 5
    assert made.next("c", LATE_S + 0.1) == 5


def test_nearly_done_others_shares_are_asked_of_the_source() -> None:
    """Only what nobody has yet."""
    made = swarm(count=20, others=("a",))
    for piece in range(18):
        made.got(piece, 0.0)
    made.heard("a", bits([18]), False, 0.0)
    assert asked(made, SOURCE) == [19]


def test_share_of_a_receiver_that_fell_silent_is_taken_over() -> None:
    """Nobody else would bring it."""
    made = swarm("b", 4, ("a",))
    assert sorted(asked(made, SOURCE)) == [1, 3]
    assert sorted(asked(made, SOURCE, SILENT_S + 0.1)) == [0, 2]


def test_who_idles_asks_the_source_for_what_others_were_to_bring() -> None:
    """A receiver that is alive and slow does not hold up the others for ever."""
    made = swarm("b", 40, ("a",))
    assert len(asked(made, SOURCE)) == 20
    made.heard("a", 0, False, IDLE_S)
    assert made.next(SOURCE, IDLE_S + 0.1) is not None


def test_who_does_without_a_slow_receiver_goes_on_so() -> None:
    """One that has a hundredth of the speed would else be waited for between any two pieces."""
    made = swarm("b", 40, ("a",))
    assert len(asked(made, SOURCE)) == 20
    made.heard("a", bits([0, 2]), False, IDLE_S)
    assert len(asked(made, SOURCE, IDLE_S + 0.1)) == 18, "what nobody has"
    assert len(asked(made, SOURCE, 2 * IDLE_S)) == 0
    assert len(asked(made, SOURCE, 2 * IDLE_S + 0.2)) == 1, "what he has, one after the other"


def test_source_that_failed_three_times_has_failed_the_attempt() -> None:
    """Trying again is decided elsewhere."""
    made = swarm()
    for _ in range(3):
        assert made.hopeful(1.0)
        made.failed(SOURCE, 1.0)
    assert not made.hopeful(1e9)
    assert made.next(SOURCE, 1e9) is None


def test_sound_block_forgives_failures() -> None:
    """A link that is cut every few megabytes still brings everything."""
    made = swarm()
    for _ in range(10):
        made.failed(SOURCE, 1.0)
        made.sound(SOURCE)
    assert made.next(SOURCE, 1.0) == 0


@pytest.mark.parametrize(("silent", "failures"), [(True, 1), (False, 3)])
def test_receiver_that_fails_is_left_alone_for_a_while(silent: bool, failures: int) -> None:
    """At once if it is silent: that costs seconds each time."""
    made = swarm(others=("a",))
    made.heard("a", bits([5]), False, 0.0)
    for _ in range(failures):
        assert made.next("a", 1.0) == 5
        made.settled("a", 5)
        made.failed("a", 1.0, silent=silent)
    assert made.next("a", 2.0) is None
    made.heard("a", bits([5]), False, 1.0 + AWAY_S)
    assert made.next("a", 1.1 + AWAY_S) == 5


def test_receiver_that_has_nothing_of_what_it_says_is_left_alone() -> None:
    """Not at once, for it may be about to rename the file; then its share is the source's again."""
    made, now = swarm(others=("a",)), 0.0
    for _ in range(MOST_FAILURES):
        made.heard("a", 0, True, now)
        piece = made.next("a", now)
        assert piece is not None
        made.settled("a", piece)
        made.lost("a", piece, now)
        assert made.next("a", now) is None
        now += LOST_S
    made.heard("a", 0, True, now)
    assert made.next("a", now) is None
    assert len(asked(made, SOURCE, now)) == 12


def test_hopeless_once_source_and_receivers_are_gone() -> None:
    """Then the attempt ends, instead of waiting for ever."""
    made = swarm(others=("a",))
    made.failed(SOURCE, 0.0, for_good=True)
    assert made.hopeful(1.0)
    assert not made.hopeful(SILENT_S + 1.0)


def test_hopeless_once_nobody_has_what_is_lacking_nor_gets_anything() -> None:
    """All that are left say again and again that they have the same: waiting brings nothing."""
    made = swarm(count=4, others=("a",))
    made.got(0, 0.0)
    made.failed(SOURCE, 0.0, for_good=True)

    def hopeful(pieces: list[int], now: float) -> bool:
        made.heard("a", bits(pieces), False, now)
        return made.hopeful(now)

    assert hopeful([0], 1.0)
    assert not hopeful([0], 1.1 + QUIET_S)
    # Somebody gives it something: what is lacking here may come there, too.
    assert hopeful([0, 1], 2 + QUIET_S)
    assert hopeful([0, 1], 3 + 2 * QUIET_S), "what it has is to be had"
    made.got(1, 4 + 2 * QUIET_S)
    assert not hopeful([0, 1], 4 + 2 * QUIET_S)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.integers(20, 80), st.integers(0, 99))
def test_p12_everybody_gets_everything_and_the_source_gives_it_about_once(
    nodes: int, count: int, seed: int
) -> None:
    """In rounds: each asks every other for one piece, and then all hear what each has."""
    names = [f"n{number}" for number in range(nodes)]
    here = {name: set[int]() for name in names}
    swarms = {name: Swarm(name, count, range(count), seed) for name in names}
    for name, made in swarms.items():
        made.joins(SOURCE, Kind.SOURCE, 0.0)
        for other in names:
            made.joins(other, Kind.RECEIVER, 0.0)
        assert name not in made._peers
    given_by: Counter[str] = Counter()
    now = 0.0
    while not all(made.done for made in swarms.values()):
        now += 0.1
        assert now < 60.0
        moved = []
        for name, made in swarms.items():
            for other in (SOURCE, *names):
                piece = made.next(other, now) if other != name else None
                if piece is not None:
                    assert other == SOURCE or piece in here[other]
                    moved.append((name, other, piece))
        for name, other, piece in moved:
            swarms[name].got(piece, now)
            swarms[name].settled(other, piece)
            here[name].add(piece)
            given_by[other] += 1
        for name in names:
            for other, made in swarms.items():
                if other != name:
                    made.heard(name, bits(here[name]), len(here[name]) == count, now)
    assert all(pieces == set(range(count)) for pieces in here.values())
    assert given_by[SOURCE] <= 1.3 * count + nodes


def test_runs_grow_while_they_come_quickly_and_shrink_when_they_do_not() -> None:
    """Few questions on a good link; on one that is slow, nobody waits long for an answer to end."""
    quick = slow = SHORTEST_RUN_BYTES
    for _ in range(10):
        quick = next_run_bytes(quick, RUN_S / 2)
    assert quick == LONGEST_RUN_BYTES
    assert next_run_bytes(quick, RUN_S * 2) == LONGEST_RUN_BYTES // 2
    assert next_run_bytes(slow, RUN_S * 2) == SHORTEST_RUN_BYTES


def test_a_link_that_cuts_answers_off_is_asked_for_little() -> None:
    """What is asked for again is then little, too."""
    assert next_run_bytes(LONGEST_RUN_BYTES, None) == SHORTEST_RUN_BYTES
