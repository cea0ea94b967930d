"""Admission: what may start now, and what must wait for what."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from dataplane.admission import MOST_AT_ONCE, MOST_LOOKED_AT, admit, shares_of, unanswered
from dataplane.policy import MEGABYTE, Policy
from projections.chains import ChainStatus
from projections.cluster import ClusterView
from projections.links import LinkRow
from projections.nodes import NodeRow
from projections.transfers import Failure, TransferRow, TransferState, transfer_id
from streams import events
from streams.codec import Fact
from streams.subjects import matches
from streams.values import (
    SMALL_BYTES,
    DataEntry,
    Endpoint,
    NodeDescription,
    Role,
    SyncPriority,
    Trait,
    Transport,
)
from tests.spec import (
    T0,
    after,
    answers,
    assigned,
    copied,
    entry,
    failed,
    games_of,
    given,
    holds,
    node,
    opens,
    played,
    player,
    policy_of,
    said_what_is_owed,
    succeeded,
    trainer,
)

BACKGROUND, NORMAL = SyncPriority.BACKGROUND, SyncPriority.NORMAL
HIGH, CRITICAL = SyncPriority.HIGH, SyncPriority.CRITICAL


class Known:
    """What is known of nodes and holders, as a test wants it."""

    def __init__(
        self,
        rows: Sequence[TransferRow] = (),
        *,
        nodes: dict[str, dict[str, Any]] | None = None,
        holders: Sequence[str] = (),
        served: dict[str, int] | None = None,
    ) -> None:
        self._served = served or {}
        self._rows = rows
        self._nodes = nodes or {}
        self._holders = holders

    def node(self, name: str) -> NodeRow | None:
        if name not in self._nodes:
            return None
        return NodeRow(NodeDescription(name=name, **self._nodes[name]), T0)

    def nodes(self) -> Sequence[NodeRow]:
        return [row for name in self._nodes if (row := self.node(name))]

    def link(self, node: str, transport: Transport | None = None) -> LinkRow | None:
        return None

    def sources(self, transfer: TransferRow) -> Sequence[str]:
        return self._holders

    def served(self, config_key: str) -> int:
        return self._served.get(config_key, 0)

    def newer_versions(self, transfer: TransferRow) -> Sequence[TransferRow]:
        return [
            row
            for row in self._rows
            if (row.target, row.entry.path) == (transfer.target, transfer.entry.path)
            and row.entry.version > transfer.entry.version
        ]


def row(
    target: str = "train-1",
    source: str = "gpu-1",
    *,
    name: str = "a",
    version: int = 1,
    failures: Sequence[Failure] = (),
    what: DataEntry | None = None,
    size_bytes: int = MEGABYTE,
    **more: Any,
) -> TransferRow:
    """A pending transfer that one chain waits for."""
    if what is None:
        named = f"games/{source}/{name}.db"
        what = entry(named, f"version {version}", version=version, size_bytes=size_bytes)
    given: dict[str, Any] = {
        "id": transfer_id(what, target),
        "entry": what,
        "source": source,
        "target": target,
        "state": TransferState.PENDING,
        "priority": NORMAL,
        "transports": (Transport.HTTP_FETCH,),
        "reason": "",
        "deadline": None,
        "chains": ("c1",),
        "queued_sequence": 7,
        "queued_at": T0,
        "attempt": len(failures),
        "failures": tuple(failures),
    }
    return TransferRow(**{**given, **more})


def failure(
    error_class: str = "Stalled", *, source: str = "gpu-1", time: float = T0, retryable: bool = True
) -> Failure:
    """An attempt that failed."""
    return Failure(time, "no byte came", error_class, retryable, source)


def chosen(
    pending: Sequence[TransferRow],
    in_flight: Sequence[TransferRow] = (),
    known: Known | None = None,
    *,
    now: float = T0,
    **tables: Any,
) -> list[events.TransferAssigned]:
    """What starts now."""
    admission = admit(pending, in_flight, known or Known(), policy_of(**tables), now)
    return [fact.event for fact in admission.assignments]  # type: ignore[misc]


def many(count: int, **more: Any) -> list[TransferRow]:
    """Transfers between as many nodes as there are transfers."""
    return [row(f"to-{n}", f"from-{n}", **more) for n in range(count)]


# Caps


def test_p12_no_more_than_the_cluster_takes_start_at_once() -> None:
    """A hundred pending transfers between a hundred nodes are twelve at a time."""
    assert len(chosen(many(100))) == 12
    assert len(chosen(many(100), many(8))) == 4
    assert chosen(many(100), many(12)) == []


def test_p12_no_more_than_a_target_takes_start_at_once() -> None:
    """One trainer is never stacked with transfers from everywhere."""
    pending = [row("train-1", f"gpu-{n}") for n in range(20)]
    assert len(chosen(pending)) == 5
    assert len(chosen(pending[3:], pending[:3])) == 2


def test_p12_no_more_than_a_source_gives_start_at_once() -> None:
    """A broadcast does not open a hundred connections to the node that has the model."""
    assert len(chosen([row(f"gpu-{n}", "train-1") for n in range(20)])) == 5


def test_p12_one_round_is_bounded_however_high_the_caps_are() -> None:
    """One append carries no more assignments than it may."""
    pending = many(2 * MOST_AT_ONCE)
    assert len(chosen(pending, bandwidth={"max_total": 10_000})) == MOST_AT_ONCE


def test_full_target_does_not_keep_others_waiting() -> None:
    """What can't start now is passed over, not waited for."""
    pending = [row("train-1", f"gpu-{n}") for n in range(8)] + [row("train-2", "gpu-x")]
    assert [order.target for order in chosen(pending)] == ["train-1"] * 5 + ["train-2"]


def test_long_queue_of_one_node_does_not_starve_the_others() -> None:
    """Thousands of files for a full trainer stand before one file for an idle one."""
    pending = [row("train-1", name=f"{n}") for n in range(MOST_LOOKED_AT)] + [row("train-2", "x")]
    assert "train-2" in {order.target for order in chosen(pending)}


def test_order_of_the_queue_is_kept() -> None:
    """With one slot left it is the first pending one that gets it."""
    pending = many(3)
    (order,) = chosen(pending, bandwidth={"max_total": 1})
    assert order.transfer == pending[0].id


SMALL = policy_of(bandwidth={"max_per_node": 2, "max_total": 4, "small_per_slot": 3})


@settings(max_examples=80, deadline=None)
@sampled(data=st.data())
def test_p12_caps_are_never_exceeded(data: st.DataObject) -> None:
    """Whatever comes and ends, caps hold, but for one CRITICAL more a node and in all.

    Three small ones take no more than one that is not small.
    """
    nodes = [f"n{n}" for n in range(5)]
    pending: list[TransferRow] = []
    flight: list[TransferRow] = []
    for n in range(data.draw(st.integers(1, 6))):
        fresh = data.draw(
            st.lists(
                st.builds(
                    lambda target, source, name, priority, version, size: row(
                        target,
                        source,
                        name=name,
                        priority=priority,
                        version=version,
                        size_bytes=size,
                    ),
                    st.sampled_from(nodes),
                    st.sampled_from(nodes),
                    st.sampled_from("abc"),
                    st.sampled_from(SyncPriority),
                    st.just(n),
                    st.sampled_from([0, SMALL_BYTES, SMALL_BYTES + 1]),
                ),
                max_size=6,
                unique_by=lambda one: one.id,
            )
        )
        pending = sorted([*pending, *fresh], key=lambda one: one.priority.rank)
        admission = admit(pending, flight, Known(pending), SMALL, T0)
        started = {fact.event.transfer: fact.event.source for fact in admission.assignments}  # type: ignore[attr-defined]
        flight += [one for one in pending if one.id in started]
        pending = [one for one in pending if one.id not in started]
        check_caps(flight, SMALL)
        done = data.draw(
            st.sets(st.sampled_from(flight).map(lambda one: one.id)) if flight else st.just(set())
        )
        flight = [one for one in flight if one.id not in done]


def check_caps(flight: Sequence[TransferRow], policy: Policy) -> None:
    """No cap is exceeded, and no place is written twice at once."""

    def slots(row: TransferRow) -> Fraction:
        small = row.entry.size_bytes <= SMALL_BYTES
        return Fraction(1, policy.bandwidth.small_per_slot if small else 1)

    def busiest(rows: Sequence[TransferRow]) -> Fraction:
        ends = [end for one in rows for end in (one.target, one.source)]
        return max((busy(rows, end) for end in ends), default=Fraction())

    def busy(rows: Sequence[TransferRow], end: str) -> Fraction:
        return sum((slots(one) for one in rows if end in (one.target, one.source)), Fraction())

    lesser = [one for one in flight if one.priority is not CRITICAL]
    elsewhere = [one for one in flight if one.source != one.target]
    assert sum(map(slots, flight)) <= policy.bandwidth.max_total + 1
    assert sum(map(slots, lesser)) <= policy.bandwidth.max_total
    assert busiest(elsewhere) <= policy.bandwidth.max_per_node + 1
    assert busiest([one for one in elsewhere if one in lesser]) <= policy.bandwidth.max_per_node
    places = [(one.target, one.entry.path) for one in flight]
    assert len(places) == len(set(places))


# Small files


def test_small_ones_share_slots() -> None:
    """Five slots of a node take hundreds of them, and no more."""
    many = [row(name=f"s{n}", size_bytes=20_000) for n in range(700)]
    flight: list[TransferRow] = []
    for _ in range(5):
        admission = admit(many, flight, Known(many), Policy(), T0)
        started = {fact.event.transfer for fact in admission.assignments}  # type: ignore[attr-defined]
        flight += [one for one in many if one.id in started]
        many = [one for one in many if one.id not in started]
    bandwidth = Policy().bandwidth
    assert len(flight) == bandwidth.max_per_node * bandwidth.small_per_slot


@pytest.mark.parametrize("target", ["train-1", "train-2"])
def test_small_ones_never_keep_a_large_one_waiting_for_ever(target: str) -> None:
    """What comes first and needs a whole slot, of its target or its source, is left the parts that
    come free.
    """
    policy = policy_of(bandwidth={"max_per_node": 2, "max_total": 9, "small_per_slot": 4})
    flight = [row(name=f"f{n}", size_bytes=1_000) for n in range(8)]
    large = row(target, name="large", queued_sequence=1)
    rounds = 0
    while large not in flight:
        # One of them ends, and another one comes, again and again.
        flight.pop(0)
        small = [row(name=f"s{rounds}-{n}", size_bytes=1_000) for n in range(3)]
        pending = [large, *small]
        started = {
            fact.event.transfer  # type: ignore[attr-defined]
            for fact in admit(pending, flight, Known(pending), policy, T0).assignments
        }
        flight += [one for one in pending if one.id in started]
        rounds += 1
        assert rounds < 8


def test_small_ones_that_travel_together_are_assigned_one_rate() -> None:
    """However many there are, they claim of the bandwidth what the slots they fill may have."""
    policy = policy_of(bandwidth={"sync_mbps": 100, "host_mb_s": 1_000, "small_per_slot": 10})
    pending = [row(name=f"s{n}", size_bytes=1_000) for n in range(25)]
    found = admit(pending, [], Known(pending), policy, T0).assignments
    assert [fact.event.bandwidth_mbps for fact in found] == [100.0] * 25  # type: ignore[attr-defined]
    flight = [
        msgspec.structs.replace(one, executor="train-1", state=TransferState.ASSIGNED)
        for one in pending
    ]
    large = msgspec.structs.replace(row(name="large"), executor="train-1")
    shares = shares_of([*flight, large], policy, Known().node)
    assert [(one.most, one.weight) for one in shares] == [(300.0, 3.0), (100.0, 1.0)]


def test_critical_small_ones_are_not_held_up_by_a_large_one() -> None:
    """Parts that are kept for a whole slot are not kept from CRITICAL work."""
    policy = policy_of(bandwidth={"max_per_node": 2, "small_per_slot": 4})
    flight = [row(name=f"f{n}", size_bytes=1_000) for n in range(5)]
    pending = [row(name="urgent", size_bytes=1_000, priority=CRITICAL), row(name="large")]
    found = admit(pending, flight, Known(pending), policy, T0).assignments
    assert [fact.event.transfer for fact in found] == [pending[0].id]  # type: ignore[attr-defined]


# Training-critical data


def test_p13_critical_transfer_finds_a_slot_in_a_full_cluster() -> None:
    """K10: backpressure of lesser work never delays what training waits for."""
    full = many(12, priority=BACKGROUND)
    urgent = row("train-1", "gpu-1", priority=CRITICAL)
    assert [order.transfer for order in chosen([urgent], full)] == [urgent.id]


def test_p13_critical_transfer_finds_a_slot_on_full_nodes() -> None:
    """Neither a busy source nor a busy target keeps it waiting."""
    full = [row("train-1", "gpu-1", name=f"{n}", priority=HIGH) for n in range(5)]
    urgent = row("train-1", "gpu-1", name="urgent", priority=CRITICAL)
    assert [order.transfer for order in chosen([urgent], full)] == [urgent.id]


def test_critical_transfers_have_one_slot_more_and_not_any_number() -> None:
    """P12 holds for urgent work too: the second one waits for a slot to come free."""
    full = many(12, priority=BACKGROUND)
    urgent = [row(f"train-{n}", priority=CRITICAL, name=f"{n}") for n in range(3)]
    assert len(chosen(urgent, full)) == 1
    assert len(chosen(urgent[1:], [*full[1:], urgent[0]])) == 1


def test_lesser_work_does_not_take_the_slot_of_critical_work() -> None:
    """Only CRITICAL goes beyond the cap."""
    assert chosen([row(priority=HIGH)], many(12)) == []
    assert len(chosen([row(priority=CRITICAL), row("train-2", priority=HIGH)], many(12))) == 1


# Backoff


def test_failed_transfer_waits_before_it_starts_again() -> None:
    """K13: 2 s, doubling, at most 30 s, a tenth of it spread."""
    for failures, wait in ((1, 2.0), (2, 4.0), (3, 8.0), (4, 16.0), (5, 30.0), (9, 30.0)):
        waiting = row(failures=[failure()] * failures)
        early = admit(
            [waiting], [], Known(), policy_of(retries={"max_retries": 99}), T0 + 0.89 * wait
        )
        assert early.assignments == ()
        assert early.next_at == pytest.approx(T0 + wait, abs=0.1 * wait)
        assert len(chosen([waiting], now=T0 + 1.11 * wait, retries={"max_retries": 99})) == 1


def test_first_of_several_backoffs_is_when_to_ask_again() -> None:
    """Nothing is forgotten and nothing is polled: the earliest end of a wait is named."""
    waiting = [row("a", failures=[failure(time=T0 + 5)]), row("b", failures=[failure()])]
    admission = admit(waiting, [], Known(), policy_of(retries={"backoff_jitter": 0.0}), T0 + 1)
    assert admission.next_at == T0 + 2.0
    assert admit(many(1), [], Known(), Policy(), T0).next_at is None


def test_backoff_is_spread_by_the_transfer_and_the_same_each_time() -> None:
    """Many that failed together do not come back together, and a restart changes nothing."""
    retries = Policy().retries
    waits = [retries.backoff_s(f"transfer-{n}", 3) for n in range(50)]
    assert len(set(waits)) > 40
    assert waits == [retries.backoff_s(f"transfer-{n}", 3) for n in range(50)]
    assert 8.0 * 0.9 <= min(waits) < max(waits) <= 8.0 * 1.1


def test_waiting_transfer_does_not_keep_a_slot() -> None:
    """While one backs off another goes."""
    pending = [row("a", failures=[failure()]), row("b")]
    assert [order.target for order in chosen(pending, bandwidth={"max_total": 1})] == ["b"]


def test_exhausted_transfer_is_not_tried_again() -> None:
    """After its last retry, or a failure that would repeat itself, it only waits for its end."""
    out = row(failures=[failure()] * 4)
    assert chosen([out], now=T0 + 1_000) == []
    assert len(chosen([out], now=T0 + 1_000, retries={"max_retries": 4})) == 1
    for_good = row(failures=[failure("PathEscapes", retryable=False)])
    assert chosen([for_good], now=T0 + 1_000) == []


def test_transfer_that_no_chain_waits_for_is_not_started() -> None:
    """What nobody needs any more moves no byte."""
    assert chosen([row(chains=())]) == []


# Versions


def test_two_versions_never_move_to_one_place_at_once() -> None:
    """P6: neither both in one round, nor one beside what is in flight."""
    old, new = row(version=1), row(version=2)
    assert chosen([new], [old]) == []
    assert chosen([old], [new]) == []
    assert len(chosen([new, row(version=3)])) == 1


def test_newer_version_goes_before_the_older_one() -> None:
    """P5: whatever the queue's order, the older one waits for the newer, and is met by it."""
    old, new = row(version=1, priority=HIGH), row(version=2)
    (order,) = chosen([old, new], known=Known([old, new]))
    assert order.entry.version == 2


def test_older_version_goes_once_the_newer_one_is_given_up() -> None:
    """Something is better than nothing."""
    old, new = row(version=1), row(version=2, failures=[failure()] * 9)
    (order,) = chosen([old, new], known=Known([old, new]), now=T0 + 100)
    assert order.entry.version == 1


def test_same_path_on_another_target_is_another_place() -> None:
    """An old version on one node does not wait for a new one on another."""
    old, new = row("train-1", version=1), row("train-2", version=2)
    assert len(chosen([old, new], known=Known([old, new]))) == 2


# Which source


def test_planned_source_is_asked_first() -> None:
    """What the planner chose stands while it has not failed and still holds the entry."""
    known = Known(holders=("vault", "gpu-1"))
    assert [order.source for order in chosen([row()], known=known)] == ["gpu-1"]


@pytest.mark.parametrize(
    "error_class", ["EntryMissing", "Unreachable", "Refused", "Stalled", "Interrupted"]
)
def test_other_holder_is_asked_after_the_source_failed(error_class: str) -> None:
    """A source that is gone, silent or without the file is not asked again at once."""
    known = Known(holders=("gpu-1", "vault"))
    again = row(failures=[failure(error_class)])
    assert [order.source for order in chosen([again], known=known, now=T0 + 9)] == ["vault"]


def test_source_is_kept_where_the_target_was_at_fault() -> None:
    """A full disk at the target says nothing against the source."""
    known = Known(holders=("gpu-1", "vault"))
    again = row(failures=[failure("DiskFull")])
    assert [order.source for order in chosen([again], known=known, now=T0 + 9)] == ["gpu-1"]


def test_holders_take_turns_while_all_of_them_fail() -> None:
    """The one that has failed least often is asked."""
    known = Known(holders=("gpu-1", "vault"))
    tried = [failure("Stalled"), failure("Stalled", source="vault"), failure("Stalled")]
    (order,) = chosen([row(failures=tried)], known=known, now=T0 + 99)
    assert order.source == "vault"


def test_source_that_no_longer_holds_the_entry_is_asked_last() -> None:
    """The catalog knows by now who has it."""
    assert [o.source for o in chosen([row()], known=Known(holders=("vault",)))] == ["vault"]


def test_planned_source_is_asked_where_the_catalog_knows_no_other() -> None:
    """Better a try that fails, and says so, than a transfer that waits for ever (P1)."""
    again = row(failures=[failure("EntryMissing")])
    assert [order.source for order in chosen([again], now=T0 + 9)] == ["gpu-1"]


def test_k11_offline_holders_are_not_asked() -> None:
    """Through the views: the source went offline after the plan, another holder is online."""
    games = games_of("gpu-1")
    story = given(trainer("train-1"), player(), node("vault"), holds("gpu-1", games))
    story.tell(copied(games.path, "vault"), opens("c1", played()), answers("c1", "gpu-1"))
    story.tell(said_what_is_owed, events.HostOffline(node="gpu-1"))
    (fact,) = story.admits().assignments
    assert fact.event.source == "vault"  # type: ignore[attr-defined]


# The assignment


def test_assignment_says_all_that_its_executor_needs() -> None:
    """Where source and target are, what moves how, with which grant, until when, which time."""
    source_at = Endpoint(node="gpu-1", http_url="http://gpu-1:8770")
    nodes = {"gpu-1": {"endpoint": source_at}}
    pending = row(priority=HIGH, deadline=T0 + 50, failures=[failure()])
    (order,) = chosen([pending], known=Known(nodes=nodes), now=T0 + 9)
    assert order == events.TransferAssigned(
        transfer=pending.id,
        executor="train-1",
        source="gpu-1",
        target="train-1",
        entry=pending.entry,
        transports=(Transport.HTTP_FETCH,),
        source_at=source_at,
        target_at=Endpoint(node="train-1"),
        bandwidth_mbps=150.0,
        priority=HIGH,
        deadline=T0 + 50,
        attempt=2,
        timeout_s=62.0,
        grant_s=60.0,
    )


def test_assignment_names_who_else_gets_or_holds_the_content() -> None:
    """Co-targets first, then holders; the same digest counts, and who serves nothing does not."""
    names = ("gpu-1", "train-1", "train-2", "train-3", "vault")
    nodes = {n: {"endpoint": Endpoint(node=n, http_url=f"http://{n}")} for n in names}
    nodes["mute"] = {"endpoint": Endpoint(node="mute")}
    rows = [row("train-1"), row("train-2"), row("train-3", name="another")]
    orders = chosen(rows, known=Known(nodes=nodes, holders=("gpu-1", "vault", "mute")))
    others = {order.target: [peer.node for peer in order.peers] for order in orders}
    assert others["train-1"] == ["train-2", "vault"]
    assert others["train-2"] == ["train-1", "vault"]
    assert others["train-3"] == ["vault"]


def test_assignment_lives_under_its_executor_and_the_shared_guard() -> None:
    """One guard covers all assignments, so that no slot is filled twice."""
    admission = admit([row()], [], Known(), Policy(), T0)
    (fact,) = admission.assignments
    assert fact.subject == "dp.task.train-1.TRANSFER_ASSIGNED.hex8_2p"
    assert matches(fact.subject, "dp.task.*.TRANSFER_ASSIGNED.>")
    assert fact.chain == "c1"


def ids(*facts: Fact) -> list[str]:
    """Ids of facts."""
    return [fact.id for fact in facts]


def test_same_attempt_assigned_twice_is_one_message() -> None:
    """Ids come from transfer, queueing and attempt: a second coordinator doubles nothing."""

    def id_of(**more: Any) -> list[str]:
        now = more.pop("now", T0 + 99)
        return ids(*admit([row(**more)], [], Known(), Policy(), now).assignments)

    assert id_of() == id_of(now=T0 + 500, chains=("c1", "c2"))
    different = [id_of(), id_of(failures=[failure()]), id_of(queued_sequence=8), id_of(name="b")]
    assert len({id for (id,) in different}) == 4


@pytest.mark.parametrize(
    ("sync", "source", "target", "granted"),
    [(100, 0, 0, 100), (100, 50, 0, 50), (100, 50, 30, 30), (100, 500, 500, 100), (0, 0, 0, 400)],
)
def test_k14_grant_is_the_tightest_of_all_limits(
    sync: int, source: int, target: int, granted: int
) -> None:
    """A sync's default, both nodes' own limits, and what a host gives at most: 50 MB/s."""
    nodes = {
        "gpu-1": {"bandwidth_limit_mbps": source},
        "train-1": {"bandwidth_limit_mbps": target},
    }
    (order,) = chosen([row()], known=Known(nodes=nodes), bandwidth={"sync_mbps": sync})
    assert order.bandwidth_mbps == granted


def test_k13_attempt_may_take_longer_for_a_larger_file() -> None:
    """60 s and 2 s a megabyte, but never more than the most an attempt may take."""
    retries = policy_of(retries={"attempt_max_s": 1_800.0}).retries
    sizes = {1: 62.0, 100: 260.0, 89_000: 1_800.0}
    for size_mb, seconds in sizes.items():
        assert retries.attempt_timeout_s(entry("a", size_bytes=size_mb * MEGABYTE)) == seconds


# Executors that stay away


def test_unanswered_attempt_is_a_failure_after_its_time_and_its_grace() -> None:
    """It says who stayed away; before that time nobody gives up."""
    out = row(state=TransferState.ASSIGNED, attempt=1, executor="train-1", assigned_at=T0)
    out = msgspec.structs.replace(out, timeout_s=60.1065)
    assert unanswered([out], Known().node, Policy(), T0 + 70.1, "boss") == []
    (fact,) = unanswered([out], Known().node, Policy(), T0 + 70.2, "boss")
    assert fact.subject == "dp.node.boss.TRANSFER_FAILED.hex8_2p"
    said = fact.event
    assert isinstance(said, events.TransferFailed)
    assert (said.error_class, said.retryable, said.attempt) == ("Unanswered", False, 1)
    assert said.error == "train-1 gave no result within 60 s"


@pytest.mark.parametrize("executor", ["gpu-1", "relay-1"])
def test_who_pushes_or_relays_and_gives_no_result_in_time_is_replaced(executor: str) -> None:
    """An attempt's time is over before a node that died counts as offline."""
    out = row(state=TransferState.ASSIGNED, attempt=1, executor=executor, assigned_at=T0)
    (fact,) = unanswered([out], Known().node, Policy(), T0 + 1e6, "boss")
    assert isinstance(fact.event, events.TransferFailed)
    assert fact.event.retryable


@pytest.mark.parametrize(
    ("executor", "offline_at", "given_up"),
    [
        ("gpu-1", T0 + 1, True),
        ("relay-1", T0 + 1, True),
        ("train-1", T0 + 1, False),
        ("gpu-1", T0 - 1, False),
    ],
    ids=["pusher", "relay", "target that still beats", "was away before"],
)
def test_who_pushes_or_relays_and_goes_offline_is_not_waited_for(
    executor: str, offline_at: float, given_up: bool
) -> None:
    """It is tried again by others at once; a target can't be replaced."""
    out = row(state=TransferState.ASSIGNED, attempt=1, executor=executor, assigned_at=T0)
    out = msgspec.structs.replace(out, timeout_s=600.0)
    gone = NodeRow(NodeDescription(name=executor), T0, False, "taken out", offline_at)
    there = msgspec.structs.replace(gone, online=True)
    assert unanswered([out], lambda _: there, Policy(), T0 + 2, "boss") == []
    facts = unanswered([out], lambda _: gone, Policy(), T0 + 2, "boss")
    assert [fact.event.error for fact in facts] == [  # type: ignore[attr-defined]
        f"{executor} went offline: taken out"
    ] * given_up
    assert all(fact.event.retryable for fact in facts)  # type: ignore[attr-defined]


@pytest.mark.parametrize("offline_at", [T0 + 1, T0 - 1], ids=["since", "before"])
@pytest.mark.parametrize(
    ("reason", "silent"), [("no heartbeat for 300 s", ()), ("spot is gone", ("train-1",))]
)
def test_a_target_that_is_known_to_be_dead_is_not_waited_for(
    offline_at: float, reason: str, silent: tuple[str, ...]
) -> None:
    """P1: long before the attempt's time is over; also where others could reach its machine."""
    out = row(state=TransferState.ASSIGNED, attempt=1, executor="train-1", assigned_at=T0)
    out = msgspec.structs.replace(out, timeout_s=600.0, transports=(Transport.RSYNC,))
    endpoint = Endpoint(node="train-1", ssh_host="10.0.0.7")
    about = NodeDescription(name="train-1", endpoint=endpoint)
    gone = NodeRow(about, T0, False, reason, offline_at)
    (fact,) = unanswered([out], lambda _: gone, Policy(), T0 + 2, "boss", silent)
    assert isinstance(fact.event, events.TransferFailed)
    assert fact.event.error == f"train-1 is gone: {reason}"
    assert not fact.event.retryable
    back = msgspec.structs.replace(gone, online=True)
    assert unanswered([out], lambda _: back, Policy(), T0 + 2, "boss", silent) == []


def test_chain_whose_targets_are_dead_ends_without_waiting_for_each_of_them() -> None:
    """P1: what is still to be assigned to a dead node takes no attempt's time each."""
    games = [entry(f"games/gpu-1/hex8_2p_{n}.db") for n in range(20)]
    story = given(trainer(), player(), opens("c1", played()), answers("c1", "gpu-1", *games))
    story.tell(said_what_is_owed, events.HostOffline(node="train-1", reason="no heartbeat"))
    began = story.now
    for _ in range(20):
        story.tell(assigned, lambda story: story.gives_up(), said_what_is_owed)
    assert story.now == began
    assert story.chain("c1").status is ChainStatus.FAILED
    assert not story.under_way()


def test_transfer_of_a_pusher_that_went_offline_goes_on_from_another_holder() -> None:
    """P1: long before the attempt's time is over."""
    games, nat = games_of("gpu-1"), (Trait.NAT_BLOCKED,)
    story = given(trainer(), player(traits=nat), node("vault"), holds("gpu-1", games))
    story.tell(copied(games.path, "vault"), opens("c1", played()), answers("c1", "gpu-1"))
    story.tell(events.HostOffline(node="vault", reason="away"), said_what_is_owed, assigned)
    assert [one.executor for one in story.under_way()] == ["gpu-1"]
    story.tell(events.HostOnline(node="vault"), events.HostOffline(node="gpu-1", reason="dead"))
    story.tell(lambda story: story.gives_up(), after(5), assigned)
    assert [one.source for one in story.under_way()] == ["vault"]


def test_unanswered_attempt_is_told_once_by_its_id() -> None:
    """Every coordinator and every tick tells the same message."""
    out = row(state=TransferState.ASSIGNED, attempt=1, executor="train-1", assigned_at=T0)
    told = [unanswered([out], Known().node, Policy(), T0 + wait, "boss") for wait in (100, 200)]
    assert ids(*told[0]) == ids(*told[1])


def test_slot_of_an_unanswered_attempt_comes_free() -> None:
    """P1: nodes that vanish do not hold the cluster's slots for ever."""
    story = given(trainer("train-1"), trainer("train-2"), player()).under(
        bandwidth={"max_total": 1, "small_per_slot": 1}
    )
    story.tell(opens("c1", played()), answers("c1", "gpu-1", games_of("gpu-1")))
    story.tell(said_what_is_owed, assigned, assigned)
    assert len(story.under_way()) == 1
    story.tell(after(100), lambda story: story.gives_up(), assigned)
    assert [one.target for one in story.under_way()] == ["train-2"]
    story.tell(succeeded(), said_what_is_owed)
    assert not story.chain("c1").open


def test_retry_through_the_views_goes_to_another_holder() -> None:
    """What failed as a fact is what admission reads: EntryMissing at one, then the other."""
    games = games_of("gpu-1")
    story = given(trainer(), player(), node("vault"), holds("gpu-1", games))
    story.tell(copied(games.path, "vault"), opens("c1", played()), answers("c1", "gpu-1"))
    story.tell(said_what_is_owed, assigned)
    assert [one.source for one in story.under_way()] == ["gpu-1"]
    story.tell(failed(error_class="EntryMissing"), assigned)
    assert story.under_way() == []
    story.tell(after(3), assigned)
    assert [(one.source, one.attempt) for one in story.under_way()] == [("vault", 2)]


def test_round_reads_the_nodes_once_however_many_transfers_need_a_relay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thousand nodes read again for each transfer took most of a round."""
    reads = []
    real = ClusterView.nodes

    def nodes(self: ClusterView) -> list[NodeRow]:
        reads.append(1)
        return real(self)

    files = [entry(f"games/gpu-1/hex8_2p_{n}.db") for n in range(5)]
    hidden = [
        events.NodeRegistered(description=NodeDescription(name=name, roles=(Role.SELFPLAY,)))
        for name in ("train-1", "gpu-1")
    ]
    story = given(*hidden, player("relay-1"), holds("gpu-1", *files))
    story.under(bandwidth={"max_per_node": 10, "max_total": 10, "small_per_slot": 1})
    story.tell(opens("c1", events.TrainingStarted(config_key="hex8_2p", node="train-1")))
    story.tell(said_what_is_owed)
    monkeypatch.setattr(ClusterView, "nodes", nodes)
    orders = story.admits().assignments
    assert [one.event.executor for one in orders] == ["relay-1"] * 5  # type: ignore[attr-defined]
    assert len(reads) == 1
