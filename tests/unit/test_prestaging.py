"""Data ahead of trainings: when a start is expected, what is brought for it, what it was worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.admission import admit
from dataplane.budget import share_of
from dataplane.coordinator.sweeping import Sweeper
from dataplane.explain import Asked, explain, speaks_of_path
from dataplane.health import cluster_health
from dataplane.ordering import AGE_S
from dataplane.policy import GIGABYTE, Policy
from dataplane.policy.reading import PolicyError
from dataplane.policy.telling import sentences
from dataplane.prestaging import MOST_AHEAD, Lacking, due, spare_bytes
from dataplane.slots import Slots
from projections.chains import ChainStatus
from projections.projector import Projector
from projections.trainings import EXPECTED_CHAIN, TrainingRow, expected
from projections.transfers import TransferRow, TransferState
from streams import events
from streams.memory import MemoryLog
from streams.values import DataType, Role, SyncPriority, Trait
from tests.spec import (
    T0,
    Said,
    Story,
    Tellable,
    after,
    as_fact,
    asked,
    assigned,
    copied,
    entry,
    games_of,
    given,
    holds,
    node,
    npz,
    opens,
    player,
    policy_of,
    said_what_is_owed,
    says,
    succeeded,
    trainer,
)
from tests.unit.histories import lived
from tests.unit.test_admission import Known
from tests.unit.test_admission import row as waiting_row
from tests.unit.triggers import completed, requested, started

HOUR = 3600.0
SPARE = {"priority": SyncPriority.BACKGROUND, "spare_only": True}
NPZ = npz(size_bytes=1_000_000)
GAMES = games_of("gpu-1")
#: A holder of a training set and of games, and a trainer that lacks both.
CLUSTER = (player(), holds("gpu-1", NPZ, GAMES), trainer())
CHAIN = f"{EXPECTED_CHAIN}1"
HOLDER = Known(holders=["gpu-1"])


def run(every: float = HOUR, takes: float = 600.0, *, first: bool = False) -> list[Tellable]:
    """A training run that begins so long after the last one began."""
    wait = [] if first else [after(every - takes)]
    return [*wait, started(), after(takes), completed("models/x.pth")]


def runs(count: int, every: float = HOUR) -> list[Tellable]:
    """Runs that begin one after the other, evenly; the last one has begun, and ended."""
    told: list[Tellable] = run(every, first=True)
    for _ in range(count - 1):
        told += run(every)
    return told


def expects(
    *paths: str, name: str = "train-1", until: float = T0 + 2 * HOUR, **more: Any
) -> events.TrainingExpected:
    """A start that is expected in half an hour, with what is to be there before."""
    return events.TrainingExpected(
        config_key="hex8_2p",
        node=name,
        expected_at=T0 + HOUR / 2,
        until=until,
        rhythm_s=HOUR,
        confidence=0.8,
        paths=paths or (NPZ.path, GAMES.path),
        **more,
    )


def begins(*paths: str, chain: str = CHAIN, **more: Any) -> Said:
    """A chain that brings data ahead."""
    return opens(chain, expects(*paths, **more), by="boss")


def row(*starts: float, pauses: Sequence[float] = (), ended_at: float = 0.0) -> TrainingRow:
    """What a node's trainings were like."""
    return TrainingRow("train-1", "hex8_2p", tuple(starts), tuple(pauses), ended_at)


def spare(name: str = "a", **more: Any) -> TransferRow:
    """A transfer that only takes what is spare."""
    return waiting_row(name=name, **{**SPARE, **more})


# When a start is expected


@pytest.mark.parametrize(
    ("starts", "confidence"),
    [
        ([0.0], None),
        ([0, HOUR], 1 / 2),
        ([0, HOUR, 2 * HOUR], 2 / 3),
        ([0, HOUR, 2 * HOUR, 3 * HOUR], 3 / 4),
        ([0, HOUR, 2 * HOUR + 800, 3 * HOUR], 3 / 4),
        ([0, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR], 3 / 5),
        ([0, 10, 5000, 5010, 90_000], 0.0),
    ],
)
def test_a_rhythm_is_trusted_by_how_often_it_was_kept(
    starts: list[float], confidence: float | None
) -> None:
    """The median gap, a quarter more or less; one more that is counted as uneven."""
    found = expected(row(*starts), starts[-1] + 1)
    assert (found and found.rhythm.confidence) == (
        None if confidence is None else pytest.approx(confidence)
    )


def test_the_next_start_is_a_usual_gap_after_the_last_one() -> None:
    """By the log's times, as they were folded."""
    story = given(trainer(), *runs(4))
    [known] = story.view.trainings()
    assert (known.node, known.config_key, len(known.starts)) == ("train-1", "hex8_2p", 4)
    assert known.pauses == (3000.0, 3000.0, 3000.0)
    found = expected(known, story.now)
    assert found is not None
    assert found.at == T0 + 4 * HOUR
    assert found.rhythm.seconds == HOUR


def test_runs_of_uneven_length_are_expected_from_their_end() -> None:
    """The steadier of both rhythms counts: here the pause after a run."""
    ended = 10_000.0
    uneven = row(0, 1000, 4000, 9000, pauses=(300, 310, 290), ended_at=ended)
    found = expected(uneven, ended + 10)
    assert found is not None and found.rhythm.after_end
    assert found.at == ended + 300
    under_way = row(0, 1000, 4000, 9000, pauses=(300, 310, 290))
    again = expected(under_way, ended)
    assert again is None or not again.rhythm.after_end, "while it runs nobody knows its end"


def test_a_start_that_stayed_away_is_expected_no_more() -> None:
    """A quarter of the rhythm later the rhythm has ended."""
    steady = row(0, HOUR, 2 * HOUR)
    assert expected(steady, 3 * HOUR + 900) is not None
    assert expected(steady, 3 * HOUR + 901) is None


def test_one_job_said_twice_is_one_start() -> None:
    """Redelivery and several processes of one job make no rhythm."""
    again = events.TrainingStarted(config_key="hex8_2p", node="train-1", job_id="j1")
    story = given(trainer(), again, after(60), Said(again, id="another"))
    [known] = story.view.trainings()
    assert known.starts == (T0,)


@pytest.mark.parametrize(
    ("tables", "minutes", "is_due"),
    [
        ({}, 31, True),
        ({}, 29, False),
        ({"prestage": {"enabled": False}}, 31, False),
        ({"prestage": {"min_confidence": 0.8}}, 31, False),
        ({"prestage": {"horizon_s": 1000.0}}, 31, False),
        ({"schedule": {"prestage_s": HOUR}}, 31, False),
    ],
)
def test_data_is_due_within_the_horizon_of_a_start_that_is_sure_enough(
    tables: dict[str, Any], minutes: float, is_due: bool
) -> None:
    """Confidence 3/4; half an hour ahead; never of starts that follow each other too fast."""
    known = row(0, HOUR, 2 * HOUR, 3 * HOUR)
    assert bool(due([known], policy_of(**tables), 3 * HOUR + 60 * minutes)) == is_due


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_confidence", 1.5),
        ("horizon_s", 0),
        ("max_share", -1),
        ("cooldown_s", "soon"),
        ("enabled", "maybe"),
        ("horizon", 60),
    ],
)
def test_a_bad_setting_is_named_with_what_it_may_be(field: str, value: Any) -> None:
    """Policy as data: the error names the field."""
    with pytest.raises(PolicyError, match=rf"policy\.prestage.*{field}"):
        policy_of(prestage={field: value})
    with pytest.raises(PolicyError, match=r"policy\.schedule\.prestage_s"):
        policy_of(schedule={"prestage_s": 0})


def test_the_policy_says_in_words_when_and_how() -> None:
    """`policy explain` tells the rule, its share and its conditions."""
    text = "\n".join(sentences(Policy(), "TRAINING_EXPECTED"))
    assert "to the node that is to train" in text
    assert "25% of slots and rates" in text and "confidence from 0.7" in text
    off = policy_of(prestage={"enabled": False})
    assert "policy.prestage.enabled is false" in "\n".join(sentences(off, "TRAINING_EXPECTED"))


# What is planned for it


CASES = [
    (
        "games and training sets that it lacks, from the best holder",
        CLUSTER,
        expects(),
        (f"gpu-1 -> train-1: {NPZ.path}", f"gpu-1 -> train-1: {GAMES.path}"),
        {},
    ),
    (
        "only kinds that the last run asked for",
        CLUSTER,
        expects(data_types=(DataType.NPZ,)),
        (f"gpu-1 -> train-1: {NPZ.path}",),
        {},
    ),
    (
        "what is there already is held",
        (*CLUSTER, copied(NPZ.path, "train-1")),
        expects(NPZ.path),
        (f"train-1 holds {NPZ.path}",),
        {},
    ),
    (
        "K5: never to an excluded host, and nothing is blocked by that",
        CLUSTER,
        expects(NPZ.path),
        ("exclude-hosts: train-1", "no-target: all"),
        {"exclusion": {"exclude_hosts": ["train-*"]}},
    ),
    (
        "K5: never to a node that skips receiving",
        (player(), holds("gpu-1", NPZ), trainer(traits=[Trait.SKIP_SYNC_RECEIVE])),
        expects(NPZ.path),
        ("skip-sync-receive: train-1", "no-target: all"),
        {},
    ),
    (
        "K5: never to a coordinator without storage, which has not asked for it",
        (player(), holds("gpu-1", NPZ), node("boss", Role.COORDINATOR)),
        expects(NPZ.path, name="boss"),
        ("coordinator-without-storage: boss", "no-target: all"),
        {},
    ),
    (
        "K11: never to a node that is offline",
        (*CLUSTER, events.HostOffline(node="train-1", reason="ping lost")),
        expects(NPZ.path),
        ("offline: train-1", "no-target: all"),
        {},
    ),
    (
        "K21: never to a disk that takes no background data",
        (
            player(),
            holds("gpu-1", NPZ),
            trainer(disk_total_bytes=100 * GIGABYTE, disk_free_bytes=30 * GIGABYTE),
        ),
        expects(NPZ.path),
        ("disk-tier: train-1", "no-target: all"),
        {},
    ),
    (
        "K5: nothing moves within one mount",
        (
            player(nfs_group="rack"),
            holds("gpu-1", NPZ),
            trainer(nfs_group="rack"),
        ),
        expects(NPZ.path),
        ("same-nfs: train-1 npz/hex8_2p.npz", f"train-1 holds {NPZ.path}"),
        {},
    ),
    (
        "P5: a smaller training set replaces no larger one",
        (
            player(),
            holds("gpu-1", NPZ),
            trainer(),
            copied(NPZ.path, "train-1"),
            after(1),
            holds("gpu-1", npz("cut", size_bytes=700_000)),
        ),
        expects(NPZ.path),
        ("regression: train-1 npz/hex8_2p.npz",),
        {},
    ),
]


@pytest.mark.parametrize(
    ("facts", "when", "then", "tables"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_what_is_brought_ahead(
    facts: tuple[Tellable, ...], when: Any, then: tuple[str, ...], tables: dict[str, Any]
) -> None:
    """Each case is a rule: given, expected start, what moves and what does not."""
    given(*facts).under(**tables).when(when).then(*then)


def test_it_goes_at_background_priority_without_a_deadline_and_only_with_what_is_spare() -> None:
    """It may hurry nobody, and warn of nothing."""
    [plan] = given(*CLUSTER).plans(expects(NPZ.path)).plans
    assert (plan.priority, plan.deadline) == (SyncPriority.BACKGROUND, None)
    assert plan.spare_only


# How it moves


def test_a_start_takes_over_what_is_on_its_way() -> None:
    """The same transfer becomes the run's: as urgent as that, and no longer only spare."""
    story = given(*CLUSTER, begins(NPZ.path), said_what_is_owed)
    [waiting] = story.view.pending()
    assert waiting.spare_only and waiting.priority is SyncPriority.BACKGROUND
    story.tell(opens("c2", started()), said_what_is_owed)
    taken = story.view.transfer(waiting.id)
    assert taken is not None and not taken.spare_only
    assert taken.priority is SyncPriority.HIGH
    story.tell(assigned, succeeded(), said_what_is_owed, assigned, succeeded(), said_what_is_owed)
    assert story.chain(CHAIN).status is ChainStatus.COMPLETED
    assert story.chain("c2").status is ChainStatus.COMPLETED


def test_k10_it_goes_behind_everything_however_long_it_has_waited() -> None:
    """It never ages, and fills no slot that others would take now."""
    ahead = spare("ahead", queued_at=T0 - 100 * AGE_S)
    other = waiting_row(name="other", priority=SyncPriority.BACKGROUND)
    policy = policy_of(bandwidth={"max_total": 1}, prestage={"max_share": 1.0})
    found = admit([ahead, other], [], HOLDER, policy, T0, oldest=[ahead, other])
    assert [one.event.transfer for one in found.assignments] == [other.id]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("share", "start"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_it_holds_only_its_share_of_the_slots(share: float, start: int) -> None:
    """The rest is left to others, be it in use or not."""
    policy = policy_of(
        bandwidth={"max_total": 8, "max_per_node": 100}, prestage={"max_share": share}
    )
    many = [spare(f"t{n}") for n in range(20)]
    found = admit(many, [], HOLDER, policy, T0)
    assert len(found.assignments) == start
    flying = [spare(f"f{n}", state=TransferState.ASSIGNED) for n in range(start)]
    assert not admit(many, flying, HOLDER, policy, T0).assignments


@pytest.mark.parametrize("side", ["target", "source"])
def test_it_holds_only_its_share_of_the_slots_at_each_end(side: str) -> None:
    """Half of four slots at a node, whether it receives from many or sends to many."""
    policy = policy_of(bandwidth={"max_total": 100, "max_per_node": 4}, prestage={"max_share": 0.5})
    other = "source" if side == "target" else "target"
    many = [waiting_row(**{**SPARE, side: "n0", other: f"n{n}"}) for n in range(1, 10)]
    assert len(admit(many, [], Known(), policy, T0).assignments) == 2


def test_a_node_of_few_slots_is_left_alone() -> None:
    """A quarter of three slots is none."""
    policy = policy_of(bandwidth={"max_per_node": 3})
    assert not admit([spare()], [], HOLDER, policy, T0).assignments


def test_k14_it_claims_no_more_than_its_share_of_the_rates() -> None:
    """Also where nothing limits a single sync."""
    policy = policy_of(bandwidth={"sync_mbps": 0, "host_mb_s": 50, "total_mb_s": 300})
    share = share_of(spare(), "gpu-1", policy, lambda name: None)
    assert share.most == pytest.approx(0.25 * 400)
    other = waiting_row(priority=SyncPriority.BACKGROUND)
    assert share_of(other, "gpu-1", policy, lambda name: None).most > 10_000


def test_what_comes_too_late_is_given_up_and_its_chain_has_one_end() -> None:
    """P1: no chain waits for ever for what nobody has asked for, and nobody is alarmed."""
    story = given(*CLUSTER, begins(NPZ.path, until=T0 + 2000), said_what_is_owed)
    story.tell(assigned, after(1999))
    story.when(asked(CHAIN)).then_nothing()
    assert cluster_health(story.view, now=story.now, last_sequence=None, present=None).details[
        "reasons"
    ] == ["bus-away"]
    outcome = story.when(asked(CHAIN, after=1.0))
    outcome.then(says(events.DataSyncFailed, config_key="hex8_2p"))
    story.tell(*outcome.facts)
    assert "given up" in outcome.facts[0].event.failed[0].error  # type: ignore[attr-defined]
    assert story.when(asked()).facts == []
    assert not list(story.view.pending())


def test_a_chain_is_given_up_before_it_is_overdue() -> None:
    """Its limit is the policy's for all chains, however far its horizon is."""
    story = given(*CLUSTER, begins(NPZ.path, until=T0 + 9e9), said_what_is_owed)
    story.when(asked(CHAIN, after=3600.0)).then(says(events.DataSyncFailed))


# What it was worth


def worth(story: Story) -> tuple[int, int, int, int]:
    """Bytes that were staged, found, wasted, and that wait to be found."""
    staging = story.view.staging(story.now)
    return (
        staging.staged_bytes,
        staging.hit_bytes,
        staging.wasted_bytes,
        staging.waiting_bytes,
    )


def staged(*paths: str, **more: Any) -> list[Tellable]:
    """A chain that has brought something ahead."""
    return [
        begins(*(paths or (NPZ.path,)), **more),
        said_what_is_owed,
        assigned,
        succeeded(),
        said_what_is_owed,
    ]


def test_what_a_start_finds_in_place_is_a_hit() -> None:
    """It would otherwise have had to move; found once."""
    story = given(*CLUSTER, *staged())
    assert worth(story) == (NPZ.size_bytes, 0, 0, NPZ.size_bytes)
    story.tell(after(60), opens("c2", started()), said_what_is_owed)
    assert worth(story) == (NPZ.size_bytes, NPZ.size_bytes, 0, 0)
    assert story.view.staging(story.now).hit_rate == 1.0
    story.tell(after(60), opens("c3", started()), said_what_is_owed)
    assert worth(story) == (NPZ.size_bytes, NPZ.size_bytes, 0, 0)


def test_what_no_start_finds_in_time_is_wasted() -> None:
    """Read by the clock at once, folded by the next fact; a start afterwards changes nothing."""
    story = given(*CLUSTER, *staged(), after(2 * HOUR + 1))
    assert worth(story) == (NPZ.size_bytes, 0, NPZ.size_bytes, 0)
    story.tell(opens("c2", started()), said_what_is_owed)
    assert worth(story) == (NPZ.size_bytes, 0, NPZ.size_bytes, 0)
    assert story.view.staging(story.now).hit_rate == 0.0


def test_what_was_replaced_before_the_start_is_wasted() -> None:
    """An old version helps nobody."""
    story = given(*CLUSTER, *staged(), after(1), holds("gpu-1", npz("newer", size_bytes=2_000_000)))
    story.tell(opens("c2", started()), said_what_is_owed, after(2 * HOUR))
    assert worth(story)[1:] == (0, NPZ.size_bytes, 0)


def test_another_version_that_came_by_itself_is_no_hit() -> None:
    """The start finds it in place, but that is not what was brought ahead."""
    newer = npz("newer", size_bytes=2_000_000)
    story = given(*CLUSTER, *staged(), after(1), holds("gpu-1", newer))
    story.tell(copied(NPZ.path, "train-1"), opens("c2", started()), said_what_is_owed)
    assert [held.checksum for held in story.chain("c2").held if held.path == NPZ.path]
    assert worth(story)[1] == 0


def test_what_the_start_of_another_node_or_another_trigger_finds_is_no_hit() -> None:
    """Only the run that it was brought for counts."""
    story = given(*CLUSTER, trainer("train-2"), *staged())
    story.tell(opens("c2", started("train-2")), said_what_is_owed)
    asks = requested("train-1", data_type=DataType.NPZ)
    story.tell(opens("c3", asks, by="somebody"), said_what_is_owed)
    assert [held.path for held in story.chain("c3").held] == [NPZ.path]
    assert worth(story)[1] == 0


def test_what_others_wait_for_by_then_was_not_brought_ahead() -> None:
    """The start came while it moved: neither hit nor waste."""
    story = given(*CLUSTER, begins(NPZ.path), said_what_is_owed, assigned)
    story.tell(opens("c2", started()), said_what_is_owed, succeeded(path=NPZ.path))
    assert worth(story) == (0, 0, 0, 0)


def test_what_arrives_after_it_was_given_up_is_wasted_unless_a_start_still_comes() -> None:
    """A transfer that was under way is not called back."""
    story = given(*CLUSTER, begins(NPZ.path, until=T0 + 100), said_what_is_owed, assigned)
    story.tell(after(100), said_what_is_owed, succeeded(), after(1))
    assert worth(story) == (NPZ.size_bytes, 0, NPZ.size_bytes, 0)


HISTORY_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "round", "decide", "assign", "result", "pass", "find", "lose"]),
        st.integers(0, 4),
        st.integers(0, 4),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@sampled(steps=HISTORY_STEPS, ends=st.lists(st.integers(1, 5000), min_size=1, max_size=4))
def test_every_byte_that_was_staged_is_a_hit_or_wasted_or_still_waits(
    steps: list[tuple[str, int, int]], ends: list[int]
) -> None:
    """Whatever happens between; and a refold says the same."""
    story = lived(steps)
    for number, seconds in enumerate(ends):
        chain = f"{EXPECTED_CHAIN}x{number}"
        paths = tuple(e.path for e in story.view.catalog.current(config_key="hex8_2p"))[:5]
        event = expects(*(paths or ("npz/hex8_2p.npz",)), name="n0", until=story.now + seconds)
        story.tell(opens(chain, event, by="n3"), said_what_is_owed, assigned, succeeded())
        story.tell(after(seconds / 2), opens(f"s{number}", started("n0")), said_what_is_owed)
        for now in (story.now, story.now + 10_000):
            worth = story.view.staging(now)
            assert worth.staged_bytes == (
                worth.hit_bytes + worth.wasted_bytes + worth.waiting_bytes
            )
    again = Story(story.policy)
    again._fold(story.facts)
    assert again.digests() == story.digests()


@settings(max_examples=60, deadline=None)
@sampled(
    steps=HISTORY_STEPS,
    share=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    name=st.sampled_from(["n0", "n1", "n4"]),
)
def test_spare_work_never_holds_more_than_its_share(
    steps: list[tuple[str, int, int]], share: float, name: str
) -> None:
    """Whatever else is under way, cluster and nodes; and never at an excluded target."""
    story = lived(steps).under(prestage={"max_share": share}, exclusion={"exclude_hosts": ["n1"]})
    paths = tuple(e.path for e in story.view.catalog.current(config_key="hex8_2p"))
    story.tell(opens(f"{EXPECTED_CHAIN}y", expects(*paths, name=name), by="n3"), said_what_is_owed)
    story.tell(assigned)
    bandwidth = story.policy.bandwidth
    flying = [one for one in story.under_way() if one.spare_only]
    slots = Slots(story.policy, flying)
    assert slots.used() <= share * bandwidth.max_total
    for one in ("n0", "n1", "n2", "n3", "n4"):
        assert slots.used(one) <= share * bandwidth.max_per_node
    assert all(one.target != "n1" for one in flying)


# How much, and which


def test_only_as_much_is_asked_for_as_what_is_spare_can_bring() -> None:
    """A quarter of what is left of the host's 50 MB/s, for ten minutes, and a disk below 70 %."""
    known = row(0, HOUR, 2 * HOUR)
    now = 3 * HOUR - 600
    start = expected(known, now)
    assert start is not None
    there = given(trainer()).view.node("train-1")
    assert there is not None
    assert spare_bytes(start, there, [], Policy(), now) == pytest.approx(50e6 * 0.25 * 600)
    flying = [waiting_row(state=TransferState.ASSIGNED, bandwidth_mbps=300.0)]
    assert spare_bytes(start, there, flying, Policy(), now) == pytest.approx(12.5e6 * 0.25 * 600)
    full = given(trainer(disk_total_bytes=10 * GIGABYTE, disk_free_bytes=4 * GIGABYTE)).view.node(
        "train-1"
    )
    assert full is not None
    assert spare_bytes(start, full, [], Policy(), now) == pytest.approx(1e9 / 1.1)
    none = policy_of(bandwidth={"total_mb_s": 0, "host_mb_s": 0})
    assert spare_bytes(start, there, [], none, now) == float("inf")


def test_the_newest_that_fit_are_named() -> None:
    """All are counted; one that is too large leaves room for others."""
    lacking = Lacking()
    for number in range(MOST_AHEAD + 5):
        some = entry(f"games/{number}.jsonl", size_bytes=10 if number % 2 else 1_000)
        lacking.note([replace(some, mtime=float(number))])
    assert lacking.found == MOST_AHEAD + 5
    newest = MOST_AHEAD + 4
    assert list(lacking.that_fit(30)) == [f"games/{newest - n}.jsonl" for n in (1, 3, 5)]


# The sweep


class Clock:
    """A time that can be put forward."""

    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> float:
        return self.now


async def looked(log: MemoryLog, place: Path, clock: Clock, policy: Policy = Policy()) -> None:  # noqa: B008 - immutable
    """A coordinator that has just begun looks once."""
    projector = Projector(log, place)
    await projector.start()
    await Sweeper(log, projector, policy, "boss", clock=clock).stager.stage_ahead()
    await projector.close()


async def said(log: MemoryLog) -> list[Any]:
    """What starts are expected."""
    found: list[Any] = []
    async for batch in log.read(until=(await log.state()).last_sequence):
        found += [one for one in batch if isinstance(one.event, events.TrainingExpected)]
    return found


async def a_log(clock: Clock, *facts: Tellable) -> MemoryLog:
    """A log in which these facts were said, each at its time."""
    log = MemoryLog(clock)
    for number, fact in enumerate(facts, 1):
        if isinstance(fact, type(after(0))):
            clock.now += fact.seconds
        else:
            await log.publish(as_fact(fact, number))  # type: ignore[arg-type]
    return log


async def test_two_coordinators_say_once_what_is_expected(tmp_path: Path) -> None:
    """One trigger a cycle, with what it is expected by; its chain is named by the cycle."""
    clock = Clock()
    log = await a_log(clock, *CLUSTER, *runs(4))
    clock.now += 2000.0
    await looked(log, tmp_path / "one", clock)
    await looked(log, tmp_path / "two", clock)
    [fact] = await said(log)
    event = fact.event
    assert fact.chain.startswith(EXPECTED_CHAIN)
    assert event.paths == (NPZ.path, GAMES.path)[:: 1 if NPZ.path > GAMES.path else -1]
    assert (event.node, event.found, event.confidence) == ("train-1", 2, 0.75)
    assert (event.expected_at, event.until) == (T0 + 4 * HOUR, T0 + 4 * HOUR + 1800)
    clock.now += 60
    await looked(log, tmp_path / "three", clock)
    assert len(await said(log)) == 1, "not again within the cooldown"


@pytest.mark.parametrize(
    "more",
    [
        [copied(NPZ.path, "train-1"), copied(GAMES.path, "train-1")],
        [events.HostOffline(node="train-1", reason="ping lost")],
    ],
    ids=["nothing is lacking", "nobody is there"],
)
async def test_nothing_is_said_where_nothing_would_move(
    tmp_path: Path, more: list[Tellable]
) -> None:
    """No chain is opened only to fail."""
    story = given(*CLUSTER, *more)
    clock = Clock()
    log = await a_log(clock, *CLUSTER)
    for number, fact in enumerate(story.facts[3:], 100):
        await log.publish(as_fact(Said(fact.event, by=fact.owner), number))  # type: ignore[arg-type]
    for number, told in enumerate(runs(4), 200):
        if isinstance(told, type(after(0))):
            clock.now += told.seconds
        else:
            await log.publish(as_fact(told, number))  # type: ignore[arg-type]
    clock.now += 2000.0
    await looked(log, tmp_path, clock)
    assert await said(log) == []


async def test_nothing_is_said_where_it_is_switched_off(tmp_path: Path) -> None:
    """`policy.prestage.enabled`."""
    clock = Clock()
    log = await a_log(clock, *CLUSTER, *runs(4))
    clock.now += 2000.0
    await looked(log, tmp_path, clock, policy_of(prestage={"enabled": False}))
    assert await said(log) == []


# Why


def test_why_tells_by_which_rhythm_a_copy_came_ahead() -> None:
    """The expected start is named, and whether it has come."""
    story = given(*CLUSTER, *staged())

    def why() -> str:
        told = [f for f in story.facts if f.event is not None and speaks_of_path(f.event, NPZ.path)]
        answer = explain(Asked(NPZ.path, "train-1", story.view, told, story.policy, story.now))
        assert answer.there
        return "\n".join(sentence.text for sentence in answer.sentences)

    text = why()
    assert "TRAINING_EXPECTED of train-1" in text
    assert "3600 s after the last one, with a confidence of 0.80" in text
    assert "has not done so yet" in text
    story.tell(opens("c2", started()), said_what_is_owed)
    assert "has not done so yet" not in why()


def test_why_not_yet_tells_that_it_only_takes_what_is_spare() -> None:
    """While it waits, the answer is not that it is stuck."""
    story = given(*CLUSTER, begins(NPZ.path), said_what_is_owed)
    told = [f for f in story.facts if f.event is not None and speaks_of_path(f.event, NPZ.path)]
    answer = explain(Asked(NPZ.path, "train-1", story.view, told, story.policy, story.now))
    assert not answer.there
    assert "waiting for slots and rates that nothing else asks for" in answer.answer


def test_health_tells_what_it_was_worth() -> None:
    """Hit rate and bytes are details of health."""
    story = given(*CLUSTER, *staged(), opens("c2", started()), said_what_is_owed)
    details = cluster_health(story.view, now=story.now, last_sequence=None, present=None).details
    assert details["prestage"] == {
        "staged_bytes": NPZ.size_bytes,
        "hit_bytes": NPZ.size_bytes,
        "wasted_bytes": 0,
        "waiting_bytes": 0,
        "hit_rate": 1.0,
    }
