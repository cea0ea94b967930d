"""Who goes first: class, age, deadline and turns; nothing starves, and no cap gives way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from dataplane.admission import Admission, admit, why_waiting
from dataplane.ordering import AGE_S, STARVED_S, at_risk, seconds_needed, urgency
from dataplane.policy import MEGABYTE, Bandwidth, Policy
from dataplane.slots import Slots
from dataplane.waiting import transfer_lines
from projections.links import LinkRow, Rates, size_class
from projections.transfers import Failure, TransferRow, TransferState
from streams import events
from streams.values import SyncPriority, Transport
from tests.spec import (
    T0,
    answers,
    entry,
    games_of,
    given,
    opens,
    played,
    player,
    said_what_is_owed,
    trainer,
)
from tests.unit.test_admission import Known, row

BACKGROUND, NORMAL = SyncPriority.BACKGROUND, SyncPriority.NORMAL
HIGH, CRITICAL = SyncPriority.HIGH, SyncPriority.CRITICAL


class Measured(Known):
    """Nodes whose links have been measured."""

    def __init__(self, bytes_per_s: float = 0.0, **more: Any) -> None:
        super().__init__(**more)
        self._rate = bytes_per_s

    def link(self, node: str, transport: Transport | None = None) -> LinkRow | None:
        if not self._rate:
            return None
        half_octave = int(self._rate * self._rate).bit_length() - 1
        rates = tuple(Rates(size, ((half_octave, 10),)) for size in range(6))
        return LinkRow(node, transport, rates=rates)


def wanted(name: str, config_key: str = "hex8_2p", size_mb: int = 1, **more: Any) -> TransferRow:
    """A transfer of a configuration and size."""
    one = row(name=name, **more)
    entry = msgspec.structs.replace(one.entry, config_key=config_key, size_bytes=size_mb * MEGABYTE)
    return msgspec.structs.replace(one, entry=entry)


def started(admission: Admission) -> list[str]:
    """What was assigned, in order, by its file's name."""
    orders = [fact.event for fact in admission.assignments]
    return [
        o.entry.path.rpartition("/")[2].removesuffix(".db")
        for o in orders
        if isinstance(o, events.TransferAssigned)
    ]


# Age


def test_waiting_raises_class_by_class_up_to_just_below_critical() -> None:
    """K10: CRITICAL is never passed by age alone."""
    waits = wanted("a", priority=BACKGROUND)
    assert [urgency(waits, T0 + n * AGE_S) for n in range(5)] == [4.0, 3.0, 2.0, 1.0, 0.5]
    assert urgency(wanted("b", priority=CRITICAL), T0 + 9_999) == 0.0


def flood(count: int, now: float) -> list[TransferRow]:
    """Fresh CRITICAL work, each with a deadline."""
    return [
        wanted(f"c{n}", priority=CRITICAL, queued_at=now, deadline=now + 60, target=f"t-{n}")
        for n in range(count)
    ]


def test_who_waited_for_too_long_goes_first_once_critical_work_has_everything() -> None:
    """One at a time: CRITICAL keeps all other slots."""
    old = [wanted(f"old{n}", priority=BACKGROUND, target=f"t-{n}") for n in range(3)]
    now = T0 + STARVED_S
    admission = admit(flood(50, now), [], Known(), Policy(), now, oldest=old)
    assert started(admission)[0] == "old0"
    lesser = [name for name in started(admission) if name.startswith("old")]
    assert len(lesser) == 1
    early = admit(flood(50, now), [], Known(), Policy(), now - 1, oldest=old)
    assert not [name for name in started(early) if name.startswith("old")]


class Cluster:
    """Transfers that each take one turn, under any flood of others."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.now = T0
        self.pending: dict[str, TransferRow] = {}
        self.running: list[TransferRow] = []
        self.done: set[str] = set()
        self.served: Counter[str] = Counter()

    def turn(self, arrivals: Iterable[TransferRow]) -> None:
        """What runs ends, what arrives queues, and what may start does."""
        self.done |= {one.id for one in self.running}
        self.running = []
        self.now += 60.0
        for one in arrivals:
            self.pending[one.id] = msgspec.structs.replace(one, queued_at=self.now)
        by_age = sorted(self.pending.values(), key=lambda one: one.queued_at)
        in_order = sorted(by_age, key=lambda one: one.priority.rank)
        known = Known(served=dict(self.served))
        admission = admit(in_order, [], known, self.policy, self.now, oldest=by_age)
        for fact in admission.assignments:
            assert isinstance(fact.event, events.TransferAssigned)
            one = self.pending.pop(fact.event.transfer)
            self.served[one.entry.config_key] += one.entry.size_bytes
            self.running.append(msgspec.structs.replace(one, state=TransferState.ASSIGNED))
        self.check()

    def check(self) -> None:
        """P12: no cap is ever exceeded."""
        by_node: Counter[str] = Counter()
        for one in self.running:
            by_node.update((one.source, one.target))
        critical = any(one.priority is CRITICAL for one in self.running)
        limits = self.policy.bandwidth
        assert len(self.running) <= limits.max_total + critical
        assert all(count <= limits.max_per_node + critical for count in by_node.values())


@settings(max_examples=15, deadline=None)
@sampled(
    kinds=st.lists(
        st.tuples(st.sampled_from(SyncPriority), st.integers(0, 5), st.integers(0, 3)),
        min_size=1,
        max_size=12,
    )
)
def test_every_pending_transfer_is_eventually_admitted(
    kinds: list[tuple[SyncPriority, int, int]],
) -> None:
    """Under a flood of CRITICAL work that never ends, everything else still gets its turn."""
    cluster = Cluster(Policy(bandwidth=Bandwidth(max_total=4, max_per_node=2)))
    mine = [
        wanted(
            f"m{n}",
            f"hex8_{config + 2 if config < 3 else 2}p",
            priority=priority,
            target=f"t-{target}",
            source=f"s-{n}",
        )
        for n, (priority, config, target) in enumerate(kinds)
    ]
    cluster.turn(mine)
    for number in range(400):
        fresh = [
            wanted(
                f"f{number}-{n}", "square8_2p", priority=CRITICAL, target=f"t-{n}", source=f"s-{n}"
            )
            for n in range(4)
        ]
        cluster.turn(fresh)
        if {one.id for one in mine} <= cluster.done:
            return
    left = [one.entry.path for one in mine if one.id not in cluster.done]
    raise AssertionError(f"{left} never started")


def test_a_storm_of_a_thousand_plans_pushes_no_node_over_its_limits() -> None:
    """P12: 12 in all, 5 a node; the storm is worked off turn by turn."""
    cluster = Cluster(Policy())
    storm = [
        wanted(f"s{n}", target=f"t-{n % 40}", source=f"g-{n % 7}", size_mb=n % 50 + 1)
        for n in range(1_000)
    ]
    cluster.turn(storm)
    turns = 1
    while cluster.pending:
        before = len(cluster.pending)
        cluster.turn([])
        turns += 1
        assert len(cluster.pending) < before
    assert turns <= 1_000 / 12 * 1.5


# Turns


def test_the_configuration_that_was_served_least_goes_next() -> None:
    """Bytes, not files: what is taken counts at once."""
    rows = [wanted(f"a{n}", "hex8_2p", 10, target=f"t-{n}", source=f"s-{n}") for n in range(4)]
    rows += [wanted(f"b{n}", "square8_2p", 40, target=f"u-{n}", source=f"v-{n}") for n in range(4)]
    order = started(admit(rows, [], Known(), Policy(), T0))
    assert order == ["a0", "b0", "a1", "a2", "a3", "b1", "b2", "b3"]
    served = {"hex8_2p": 500 * MEGABYTE}
    order = started(admit(rows, [], Known(served=served), Policy(), T0))
    assert order[:4] == ["b0", "b1", "b2", "b3"]


def test_the_log_remembers_what_each_configuration_was_given() -> None:
    """All of it adds up, and each hour that passes halves it."""
    story = given(player("gpu-1"), trainer(), opens("c1", played("gpu-1")))
    more = entry("games/gpu-1/more_hex8_2p.db", games=10, size_bytes=500)
    story.tell(answers("c1", "gpu-1", games_of("gpu-1", size_bytes=1_000), more), said_what_is_owed)
    assert story.view.served("hex8_2p", story.now) == 0
    story.tell(lambda story: story.admits().assignments)
    assert story.view.served("hex8_2p", story.now) == 1_500
    assert story.view.served("hex8_2p", story.now + 7_200) == 375


def test_queues_of_all_configurations_and_targets_are_seen() -> None:
    """By priority; each configuration in turn; a full target's queue is left unread."""
    story = given(player("gpu-1"), player("gpu-2"), trainer("train-1"), trainer("train-2"))
    for number in range(3):
        for config in ("hex8_2p", "square8_2p"):
            games = games_of(f"gpu-{number % 2 + 1}", str(number), config_key=config)
            chain = f"{config}-{number}"
            speaker = f"gpu-{number % 2 + 1}"
            story.tell(opens(chain, played(speaker, config_key=config)))
            story.tell(answers(chain, speaker, games), said_what_is_owed)
    in_order = [one.id for one in story.view.pending()]
    fairly = list(story.view.pending_fairly())
    assert sorted(one.id for one in fairly) == sorted(in_order)
    configs = [one.entry.config_key for one in fairly]
    assert configs[:4] == ["hex8_2p", "square8_2p"] * 2
    left = {one.target for one in story.view.pending_fairly({"train-1"})}
    assert left == {"train-2"}
    by_age = list(story.view.pending_by_age())
    assert [one.queued_sequence for one in by_age] == sorted(one.queued_sequence for one in fairly)
    run = events.TrainingStarted(config_key="square8_2p", node="train-2")
    story.tell(opens("run", run), answers("run", "train-2"), said_what_is_owed)
    ranks = [one.priority.rank for one in story.view.pending_fairly()]
    assert ranks == sorted(ranks) and len(set(ranks)) == 2


def test_each_of_a_long_queue_is_seen_once_and_in_order() -> None:
    """It is read a few at a time: nothing is left out between them, and nothing comes twice."""
    many = [entry(f"games/gpu-1/{n:03}_hex8_2p.db", games=10) for n in range(30)]
    story = given(player("gpu-1"), trainer("train-1"), opens("c1", played("gpu-1")))
    story.tell(answers("c1", "gpu-1", *many), said_what_is_owed)
    ids = sorted({one.id for one in story.view.pending()})
    assert len(ids) == len(many)
    assert [one.id for one in story.view.pending()] == ids
    assert [one.id for one in story.view.pending_fairly()] == ids


# Deadlines


def test_an_estimate_is_the_logs_own_and_pessimistic() -> None:
    """Size by the rate of such sizes; a transfer's own limit counts; without a measure, none."""
    one = wanted("a", size_mb=100)
    assert seconds_needed(one, Measured().link, Policy()) is None
    slow = seconds_needed(one, Measured(MEGABYTE).link, Policy())
    assert slow == pytest.approx(100.0, rel=0.5)
    fast = seconds_needed(one, Measured(1_000 * MEGABYTE).link, Policy())
    assert fast == pytest.approx(8.0), "100 Mbit/s a sync"
    assert size_class(one.entry.size_bytes) == 4


def test_a_deadline_that_can_be_kept_goes_before_one_that_cannot() -> None:
    """Earliest first among those that can."""
    rows = [
        wanted("hopeless", size_mb=1_000, deadline=T0 + 5, priority=HIGH),
        wanted("later", size_mb=1, deadline=T0 + 900, priority=HIGH),
        wanted("sooner", size_mb=1, deadline=T0 + 300, priority=HIGH),
        wanted("whenever", size_mb=1, priority=HIGH),
    ]
    admission = admit(rows, [], Measured(10 * MEGABYTE), Policy(), T0)
    assert started(admission) == ["sooner", "later", "whenever", "hopeless"]


def test_a_deadline_at_risk_is_said_before_it_is_missed() -> None:
    """With the estimate, for the chain that waits; a safe one is not mentioned."""
    rows = [
        wanted("tight", size_mb=1_000, deadline=T0 + 60, priority=HIGH),
        wanted("safe", size_mb=1, deadline=T0 + 60, priority=HIGH),
    ]
    (fact,) = admit(rows, [], Measured(10 * MEGABYTE), Policy(), T0).risks.values()
    assert isinstance(fact.event, events.DeadlineAtRisk)
    assert (fact.event.transfer, fact.event.deadline) == (rows[0].id, T0 + 60)
    assert fact.event.estimate > T0 + 60
    assert fact.chain == "c1"
    assert not at_risk(rows[1], T0 + 10, T0)


# Room


def full_node(free: int, total: int = 1_000 * MEGABYTE, **more: Any) -> dict[str, dict[str, Any]]:
    """A target with so much room."""
    return {"train-1": {"disk_free_bytes": free, "disk_total_bytes": total, **more}}


def test_k21_a_disk_over_70_percent_gets_no_background_data() -> None:
    """Anything more urgent still comes; the figures are said."""
    known = Known(nodes=full_node(299 * MEGABYTE))
    rows = [wanted("bg", priority=BACKGROUND), wanted("normal")]
    assert started(admit(rows, [], known, Policy(), T0)) == ["normal"]
    wait = why_waiting(rows[0], Slots(Policy(), [], known.node), known, Policy(), T0)
    assert wait is not None
    assert (wait.rule, "70%" in wait.reason) == ("disk-tier", True)
    roomy = Known(nodes=full_node(301 * MEGABYTE))
    assert len(started(admit(rows, [], roomy, Policy(), T0))) == 2


def test_k21_room_is_set_aside_for_all_that_is_under_way() -> None:
    """Size and a tenth: three of 100 MB do not fit into 300 MB, CRITICAL or not."""
    known = Known(nodes=full_node(300 * MEGABYTE, 10**12))
    rows = [wanted(f"r{n}", size_mb=100, priority=CRITICAL) for n in range(3)]
    assert started(admit(rows, [], known, Policy(), T0)) == ["r0", "r1"]
    slots = Slots(Policy(), rows[:2], known.node)
    wait = slots.hold(rows[2])
    assert wait is not None
    assert wait.rule == "disk-space"
    assert wait.reason == "train-1 has 80.0 MB left, and it takes 110.0 MB"


def test_what_failed_attempts_left_on_the_disk_is_not_asked_for_again() -> None:
    """Or what filled a disk waits for room that it has itself."""
    known = Known(nodes=full_node(60 * MEGABYTE, 10**12))
    lacks = wanted("r0", size_mb=100)
    assert started(admit([lacks], [], known, Policy(), T0)) == []
    told = Failure(
        time=T0,
        error="full",
        error_class="DiskFull",
        retryable=True,
        source="gpu-1",
        moved=50 * MEGABYTE,
    )
    there = msgspec.structs.replace(lacks, failures=(told,))
    assert Slots(Policy(), [], known.node).hold(there) is None


def test_memory_is_set_aside_for_each_transfer() -> None:
    """P12: a node short of memory takes fewer at once."""
    nodes = {"train-1": {"memory_total_bytes": 10**9, "memory_free_bytes": 150 << 20}}
    rows = [wanted(f"r{n}") for n in range(4)]
    assert len(started(admit(rows, [], Known(nodes=nodes), Policy(), T0))) == 2


def test_every_wait_has_a_reason() -> None:
    """What `dataplane plans` shows."""
    known = Known()
    running = [wanted(f"r{n}", target="train-1", source=f"s-{n}") for n in range(5)]
    slots = Slots(Policy(), running, known.node)
    wait = why_waiting(wanted("x"), slots, known, Policy(), T0)
    assert wait is not None
    assert (wait.rule, wait.reason) == ("slot", "train-1 has 5 of 5 transfers")
    assert why_waiting(wanted("x", target="train-2"), slots, known, Policy(), T0) is None


def test_plans_say_why_each_transfer_waits_and_when_it_would_be_there() -> None:
    """Running ones first, then what waits; nothing is left without a word."""
    limits = Policy(bandwidth=Bandwidth(max_per_node=1, small_per_slot=1))
    story = given(player("gpu-1"), trainer(), policy=limits)
    for number in range(2):
        games = games_of("gpu-1", str(number), config_key=f"hex8_{number + 2}p")
        story.tell(opens(f"c{number}", played("gpu-1", config_key=games.config_key)))
        story.tell(answers(f"c{number}", "gpu-1", games), said_what_is_owed)
    story.tell(lambda story: story.admits().assignments)
    running, waiting = transfer_lines(story.view, story.policy, story.now)
    assert (running.state, running.waits_for) == ("assigned", "")
    assert waiting.waits_for == "slot: train-1 has 1 of 1 transfers"
    assert waiting.expected_at is None
