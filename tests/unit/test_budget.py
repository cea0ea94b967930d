"""The bandwidth budget: no limit is ever exceeded, and nothing lies idle."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from dataplane.budget import (
    FLOOR_MBPS,
    GRANT_S,
    Grant,
    Grants,
    Limits,
    Share,
    changes,
    divide,
    first_rate,
    limits_of,
    share_of,
)
from dataplane.policy import Bandwidth, Policy
from projections.nodes import NodeRow
from projections.transfers import TransferRow, TransferState
from streams.values import NodeDescription, SyncPriority
from tests.spec import T0, entry

NODES = ("a", "b", "c", "d")
CLUSTER = 100.0
NODE = 50.0
LIMITS = Limits(CLUSTER, lambda name: NODE)


def share(id: str, *nodes: str, most: float = math.inf, weight: float = 1.0) -> Share:
    """A transfer that wants some."""
    return Share(id, nodes, most, weight)


SHARES = st.lists(
    st.builds(
        Share,
        id=st.uuids().map(str),
        nodes=st.lists(st.sampled_from(NODES), min_size=1, max_size=2, unique=True).map(tuple),
        most=st.one_of(st.floats(1.0, 200.0), st.just(math.inf)),
        weight=st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0]),
    ),
    max_size=30,
)


def used(rates: dict[str, float], shares: list[Share]) -> Counter[str]:
    """What is used of each node, and of the cluster under ""."""
    total: Counter[str] = Counter()
    for one in shares:
        for name in ("", *one.nodes):
            total[name] += rates[one.id]  # type: ignore[assignment]
    return total


@settings(max_examples=100, deadline=None)
@sampled(shares=SHARES)
def test_no_division_exceeds_a_limit_or_wastes_what_is_wanted(shares: list[Share]) -> None:
    """K14: cluster, nodes and each one's own; who gets less than his own is at some limit."""
    rates = divide(shares, LIMITS)
    total = used(rates, shares)
    assert total[""] <= CLUSTER + 1e-6
    assert all(total[name] <= NODE + 1e-6 for name in NODES)
    for one in shares:
        assert rates[one.id] <= one.most + 1e-6
        if rates[one.id] < one.most - 1e-6:
            at_limit = total[""] >= CLUSTER - 1e-6
            assert at_limit or any(total[name] >= NODE - 1e-6 for name in one.nodes)


def test_classes_get_by_weight_and_what_one_cannot_use_the_others_get() -> None:
    """Background and critical on one node: a ninth and eight."""
    both = [share("bg", "a", weight=0.25), share("crit", "a", weight=2.0)]
    rates = divide(both, LIMITS)
    assert rates["crit"] / rates["bg"] == pytest.approx(8.0)
    assert sum(rates.values()) == pytest.approx(NODE)
    capped = divide([both[0], share("crit", "a", weight=2.0, most=10.0)], LIMITS)
    assert (capped["crit"], capped["bg"]) == (pytest.approx(10.0), pytest.approx(40.0))


def test_without_limits_nothing_is_limited() -> None:
    """0 says so, as everywhere."""
    free = limits_of(Bandwidth(host_mb_s=0, total_mb_s=0), lambda name: None)
    assert divide([share("x", "a")], free) == {"x": 0.0}


def row(priority: SyncPriority = SyncPriority.NORMAL) -> TransferRow:
    """A transfer between two nodes."""
    return TransferRow(
        id="t",
        entry=entry("games/x.db"),
        source="vast-7",
        target="train-1",
        state=TransferState.PENDING,
        priority=priority,
        transports=(),
        reason="",
        deadline=None,
        chains=("c",),
        queued_sequence=1,
        queued_at=T0,
    )


def known(**nodes: NodeDescription):  # type: ignore[no-untyped-def]
    """Nodes by name."""
    return lambda name: NodeRow(nodes[name], T0) if name in nodes else None


@pytest.mark.parametrize(
    ("provider", "priority", "most"),
    [
        ("", SyncPriority.NORMAL, 50.0),
        ("", SyncPriority.BACKGROUND, 12.5),
        ("hetzner-fsn", SyncPriority.NORMAL, 30.0),
        ("hetzner-fsn", SyncPriority.CRITICAL, 60.0),
        ("other", SyncPriority.NORMAL, 50.0),
    ],
)
def test_k14_a_transfer_claims_by_provider_and_class(
    provider: str, priority: SyncPriority, most: float
) -> None:
    """vast-* 50 by name, hetzner-* 30 by provider; times the class."""
    node = known(**{"vast-7": NodeDescription(name="vast-7", provider=provider)})
    assert share_of(row(priority), "vast-7", Policy(), node).most == pytest.approx(most)


def test_a_nodes_own_limit_counts() -> None:
    """K14: 50 MB/s a host, or what it says itself."""
    node = known(slow=NodeDescription(name="slow", bandwidth_limit_mbps=20))
    limits = limits_of(Bandwidth(), node)
    assert (limits.node("slow"), limits.node("other"), limits.total) == (20.0, 400.0, 2400.0)


class Executors:
    """What those who move bytes really keep to; messages to them, and from them, may be lost."""

    def __init__(self) -> None:
        self.keep_to: dict[str, Grant] = {}

    def most(self, id: str, now: float) -> float:
        """What one may use now."""
        grant = self.keep_to.get(id)
        return grant.mbps if grant and grant.until > now else FLOOR_MBPS


@settings(max_examples=80, deadline=None)
@sampled(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["start", "end", "divide", "divide", "wait"]),
            st.sampled_from(NODES),
            st.sampled_from(NODES),
            st.sampled_from([0.25, 1.0, 2.0]),
            st.booleans(),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_grants_in_force_never_exceed_the_budget(
    steps: list[tuple[str, str, str, float, bool, bool]],
) -> None:
    """P12: whatever starts and ends, and whichever message or confirmation is lost."""
    now, grants, executors = T0, Grants(), Executors()
    running: dict[str, Share] = {}
    for number, (what, one, other, weight, heard, confirmed) in enumerate(steps):
        if what == "wait":
            now += 25.0 if heard else 61.0
        elif what == "start" and len(running) < 12:
            new = share(str(number), *dict.fromkeys((one, other)), weight=weight)
            rate = first_rate(new, list(running.values()), LIMITS, grants, now)
            grant = Grant(rate, now + GRANT_S)
            grants.adopt(new.id, grant)
            executors.keep_to[new.id] = grant
            running[new.id] = new
        elif what == "end" and running:
            running.pop(next(iter(running)))
            grants.forget_others(running)
        else:
            for id, rate in changes(list(running.values()), LIMITS, grants, now).items():
                grant = Grant(rate, now + GRANT_S)
                grants.told(id, grant)
                if heard:
                    executors.keep_to[id] = grant
                if heard and confirmed:
                    grants.confirmed(id, grant)
        rates = {id: executors.most(id, now) for id in running}
        floors = {id for id, rate in rates.items() if rate <= FLOOR_MBPS}
        total = used(
            {id: 0.0 if id in floors else rate for id, rate in rates.items()}, [*running.values()]
        )
        assert total[""] <= CLUSTER + 1e-6, "the cluster gives more than it has"
        assert all(total[name] <= NODE + 1e-6 for name in NODES), "a node gives more than it has"


def test_a_cut_makes_room_for_who_came_later() -> None:
    """One alone has all; a second gets its half once the first is cut."""
    grants, first, second = Grants(), share("1", "a"), share("2", "a")
    grants.adopt("1", Grant(first_rate(first, [], LIMITS, grants, T0), T0 + GRANT_S))
    assert grants.most("1", T0) == NODE
    rate = first_rate(second, [first], LIMITS, grants, T0)
    assert rate == FLOOR_MBPS
    grants.adopt("2", Grant(rate, T0 + GRANT_S))
    told = changes([first, second], LIMITS, grants, T0)
    assert told["1"] == pytest.approx(NODE / 2)
    assert "2" not in told, "what is not given back yet can't be given away"
    grants.told("1", Grant(told["1"], T0 + GRANT_S))
    grants.confirmed("1", Grant(told["1"], T0 + GRANT_S))
    told = changes([first, second], LIMITS, grants, T0)
    assert told == {"2": pytest.approx(NODE / 2)}


def test_an_executor_that_is_not_heard_of_falls_back_to_the_floor() -> None:
    """Then its share is free again."""
    grants, first, second = Grants(), share("1", "a"), share("2", "a")
    grants.adopt("1", Grant(NODE, T0 + GRANT_S))
    grants.adopt("2", Grant(FLOOR_MBPS, T0 + 9 * GRANT_S))
    assert changes([first, second], LIMITS, grants, T0)["1"] == pytest.approx(NODE / 2)
    later = changes([first, second], LIMITS, grants, T0 + GRANT_S + 1)
    assert later["2"] == pytest.approx(NODE / 2, rel=0.1)
