"""Heartbeats that stay away, and what is said of it."""

from __future__ import annotations

from dataplane.liveness import verdicts
from projections.nodes import NodeRow
from streams import events
from streams.codec import Fact
from streams.values import NodeDescription


def row(name: str, *, online: bool = True, reason: str = "") -> NodeRow:
    """A node as the views have it."""
    return NodeRow(NodeDescription(name=name), 0.0, online, reason, 10.0)


def said(
    *nodes: NodeRow, present: set[str], silent: dict[str, float], now: float = 1000.0
) -> list[Fact]:
    """The verdicts with a limit of 300 s."""
    return verdicts(nodes, present, silent, limit_s=300.0, now=now, teller="coord")


def test_k6_node_without_a_heartbeat_for_the_limit_is_taken_out() -> None:
    """300 s of silence: HOST_OFFLINE with the reason; a second before: nothing."""
    (fact,) = said(row("gpu-7"), present=set(), silent={"gpu-7": 700.0})
    assert fact.event == events.HostOffline(node="gpu-7", reason="no heartbeat for 300 s")
    assert not said(row("gpu-7"), present=set(), silent={"gpu-7": 701.0})


def test_node_that_is_heard_again_is_put_back() -> None:
    """Its heartbeat is back: HOST_ONLINE."""
    silent = row("gpu-7", online=False, reason="no heartbeat for 300 s")
    (fact,) = said(silent, present={"gpu-7"}, silent={})
    assert isinstance(fact.event, events.HostOnline)


def test_node_that_somebody_took_out_is_not_put_back_by_its_heartbeat() -> None:
    """HOST_OFFLINE for maintenance stands until somebody takes it back."""
    assert not said(row("gpu-7", online=False, reason="maintenance"), present={"gpu-7"}, silent={})


def test_two_tellers_say_it_once() -> None:
    """The id comes from what was known, not from who says it or when."""
    one = said(row("gpu-7"), present=set(), silent={"gpu-7": 0.0}, now=1000.0)
    two = said(row("gpu-7"), present=set(), silent={"gpu-7": 300.0}, now=1003.0)
    assert one[0].id == two[0].id
