"""Who carries out a transfer: the table of who can reach whom, what failed, and what is shut."""

from __future__ import annotations

from typing import Any

import pytest

from dataplane.execution import Way, choose
from dataplane.policy import Policy
from projections.links import LinkRow, Outcome
from projections.nodes import NodeRow
from projections.transfers import Failure, TransferRow, TransferState
from streams.values import (
    S3_NODE,
    Endpoint,
    NodeDescription,
    Role,
    SyncPriority,
    Trait,
    Transport,
)
from tests.spec import T0, games_of, policy_of

P2P, HTTP, RSYNC, BASE64, S3 = (
    Transport.P2P_GOSSIP,
    Transport.HTTP_FETCH,
    Transport.RSYNC,
    Transport.BASE64_SSH,
    Transport.S3,
)
OPEN, SSH, BOTH, NAT, DEAF, AWAY = "open", "ssh", "both", "nat", "deaf", "away"


class Cluster:
    """Nodes that can be reached by HTTP, by SSH only, by both, not at all, and how well that went.

    One that is away has a machine with an SSH server, and no agent; of one that is deaf nothing
    answers, though it says where its SSH server is.
    """

    #: Who can't connect to whom, though others can.
    walls: tuple[tuple[str, str], ...] = ()

    def __init__(self, *links: LinkRow, **kinds: str) -> None:
        self._links = links
        self._kinds = kinds

    def node(self, name: str) -> NodeRow | None:
        """A node of a kind; None if there is none."""
        kind = self._kinds.get(name)
        if kind is None:
            return None
        endpoint = Endpoint(
            node=name,
            http_url=f"http://{name}",
            reachable=False if kind in (SSH, DEAF, AWAY) else None,
            not_from=tuple(one for one, other in self.walls if other == name),
            ssh_host=name if kind in (SSH, BOTH, DEAF, AWAY) else "",
            ssh_reachable=False if kind == DEAF else None,
            ssh_not_from=tuple(one for one, other in self.walls if other == name),
        )
        traits = (Trait.NAT_BLOCKED,) if kind == NAT else ()
        roles = (Role.STORAGE,) if name.startswith("store") else ()
        about = NodeDescription(name=name, roles=roles, traits=traits, endpoint=endpoint)
        return NodeRow(about, T0, online=kind != AWAY)

    def nodes(self) -> list[NodeRow]:
        """All of them, by name."""
        return [row for name in sorted(self._kinds) if (row := self.node(name))]

    def link(self, node: str, transport: Transport | None = None) -> LinkRow | None:
        """What was given of it."""
        found = (row for row in self._links if (row.node, row.transport) == (node, transport))
        return next(found, None)


def transfer(
    *failures: Failure, target: str = "t", transports: Any = (HTTP, BASE64)
) -> TransferRow:
    """One entry from `a` to `t`."""
    return TransferRow(
        id="x",
        entry=games_of("a"),
        source="a",
        target=target,
        state=TransferState.PENDING,
        priority=SyncPriority.NORMAL,
        transports=transports,
        reason="",
        deadline=None,
        chains=("c",),
        queued_sequence=1,
        queued_at=T0,
        failures=failures,
    )


def failure(error_class: str, source: str = "a", executor: str = "t") -> Failure:
    """An attempt that failed."""
    return Failure(T0, "no", error_class, True, source, 0, executor)


def shut(node: str, transport: Transport | None = None, error: str = "Stalled") -> LinkRow:
    """A link that failed three times just now."""
    return LinkRow(node, transport, recent=(Outcome(T0, error),) * 3)


def way(row: TransferRow, cluster: Cluster, *holders: str, policy: Policy | None = None) -> Way:
    """The way that is chosen a second later."""
    return choose(row, holders or ("a",), cluster, policy or Policy(), T0 + 1)


def who(found: Way) -> tuple[str, str]:
    """Executor and source of a way."""
    return found.executor, found.source


LARGE, URGENT, SMALL = (RSYNC, HTTP, BASE64), (RSYNC, BASE64), (P2P, HTTP, BASE64)


@pytest.mark.parametrize(
    ("a", "chain", "transports"),
    [
        (BOTH, LARGE, LARGE),
        (BOTH, URGENT, URGENT),
        (BOTH, SMALL, SMALL),
        (SSH, LARGE, (RSYNC, BASE64)),
        (OPEN, LARGE, (P2P, HTTP)),
        (OPEN, URGENT, (P2P, HTTP)),
        (OPEN, SMALL, (P2P, HTTP)),
    ],
)
def test_k12_where_there_is_no_ssh_what_does_the_same_by_http_stands_in(
    a: str, chain: tuple[Transport, ...], transports: tuple[Transport, ...]
) -> None:
    """Where there is, the chain is as it was planned."""
    assert way(transfer(transports=chain), Cluster(a=a, t=NAT)).transports == transports


def test_k12_after_a_failure_what_stands_in_is_tried_at_last() -> None:
    """An SSH server may be there and let nobody in."""
    again = transfer(failure("Refused"), transports=URGENT)
    assert way(again, Cluster(a=BOTH, t=NAT)).transports == (RSYNC, BASE64, P2P, HTTP)
    assert way(again, Cluster(a=SSH, t=NAT)).transports == (RSYNC, BASE64)


def test_what_stands_in_is_installed_and_can_send_where_it_has_to() -> None:
    """Nobody sends by p2p; and what this installation does not have is never chosen."""
    urgent = transfer(transports=URGENT)
    assert way(urgent, Cluster(a=NAT, t=OPEN)).transports == (HTTP,)
    few = policy_of(transports={"installed": ["rsync", "base64", "http"]})
    assert way(urgent, Cluster(a=OPEN, t=NAT), policy=few).transports == (HTTP,)


@pytest.mark.parametrize(
    ("a", "t", "executor", "transports"),
    [
        (OPEN, OPEN, "t", (HTTP,)),
        (OPEN, NAT, "t", (HTTP,)),
        (SSH, NAT, "t", (BASE64,)),
        (NAT, SSH, "a", (BASE64,)),
    ],
)
def test_the_target_fetches_if_it_can_else_the_holder_pushes(
    a: str, t: str, executor: str, transports: tuple[Transport, ...]
) -> None:
    """By those transports whose other end can be reached."""
    found = way(transfer(), Cluster(a=a, t=t))
    assert (found.executor, found.source, found.transports) == (executor, "a", transports)


def test_another_holder_that_can_be_reached_is_better_than_a_push() -> None:
    """The planned source can't be reached by the target, another holder can."""
    assert who(way(transfer(), Cluster(a=NAT, b=OPEN, t=SSH), "a", "b")) == ("t", "b")


@pytest.mark.parametrize("a", [OPEN, NAT])
def test_nothing_is_sent_to_a_machine_whose_agent_is_away(a: str) -> None:
    """A file that no agent expects would be taken for the node's own: not even over SSH or a hub.

    From such a machine it is fetched all the same.
    """
    policy = policy_of(s3={"enabled": True})
    assert who(way(transfer(), Cluster(a=a, t=AWAY, hub=OPEN), policy=policy)) == ("t", "a")
    assert way(transfer(), Cluster(a=AWAY, t=OPEN)).transports == (BASE64,)


@pytest.mark.parametrize(
    ("walls", "executor", "transports"),
    [
        ([("b", "a")], "t", (HTTP,)),
        ([("t", "a")], "a", (HTTP,)),
        ([("a", "t")], "t", (HTTP,)),
        ([("t", "a"), ("a", "t")], "store", (HTTP,)),
        ([("t", "a"), ("a", "t"), ("a", "store")], "hub", (HTTP,)),
        ([("t", "a"), ("a", "t"), ("t", "store")], "hub", (HTTP,)),
    ],
)
def test_who_can_not_connect_to_a_node_is_not_sent_there(
    walls: list[tuple[str, str]], executor: str, transports: tuple[Transport, ...]
) -> None:
    """Though others can: the other end does it, or a third that both reach."""
    cluster = Cluster(a=OPEN, t=OPEN, store=OPEN, hub=OPEN)
    cluster.walls = tuple(walls)
    found = way(transfer(), cluster)
    assert (found.executor, found.transports) == (executor, transports)


def test_ssh_server_that_does_not_answer_is_no_way() -> None:
    """Found out as for the file server; nor is one that this node alone can't reach."""
    assert who(way(transfer(), Cluster(a=SSH, t=OPEN))) == ("t", "a")
    assert who(way(transfer(), Cluster(a=DEAF, t=OPEN))) == ("a", "a")
    cluster = Cluster(a=SSH, t=OPEN)
    cluster.walls = (("t", "a"),)
    assert who(way(transfer(), cluster)) == ("a", "a")


def test_a_third_node_relays_between_two_that_nobody_reaches() -> None:
    """One that stores, before others; never one that is offline or blocked itself."""
    cluster = Cluster(a=NAT, t=NAT, hub=OPEN, store=OPEN, wall=NAT)
    assert who(way(transfer(), cluster)) == ("store", "a")
    assert who(way(transfer(), Cluster(a=NAT, t=NAT, hub=OPEN, wall=NAT))) == ("hub", "a")


def test_the_bucket_relays_where_no_node_can() -> None:
    """The holder pushes there, the target fetches from there; only where there is a bucket."""
    cluster = Cluster(a=NAT, t=NAT)
    with_bucket = policy_of(s3={"enabled": True, "bucket": "b"})
    found = way(transfer(), cluster, policy=with_bucket)
    assert (found.executor, found.source, found.transports) == ("a", "a", (S3,))
    assert who(way(transfer(), cluster)) == ("t", "a"), "nobody can: the target's failure says so"


@pytest.mark.parametrize("error", ["DiskFull", "DiskFailed"])
def test_a_relay_whose_disk_is_full_is_replaced_by_another_or_the_bucket(error: str) -> None:
    """A target's disk is full whoever sends; a third node's is in nobody else's way."""
    with_bucket = policy_of(s3={"enabled": True, "bucket": "b"})
    row = transfer(failure(error, executor="store"))
    two = Cluster(a=NAT, t=NAT, hub=OPEN, store=OPEN)
    assert who(way(row, two, policy=with_bucket)) == ("hub", "a")
    found = way(row, Cluster(a=NAT, t=NAT, store=OPEN), policy=with_bucket)
    assert (found.executor, found.transports) == ("a", (S3,))


def test_what_the_bucket_holds_is_fetched_from_there_by_its_transport() -> None:
    """The last holder to be asked, but before any relay."""
    found = way(transfer(), Cluster(a=NAT, t=NAT, hub=OPEN), "a", S3_NODE)
    assert (found.executor, found.source, found.transports) == ("t", S3_NODE, (S3,))
    assert who(way(transfer(), Cluster(a=OPEN, t=NAT), "a", S3_NODE)) == ("t", "a")


def test_the_bucket_is_pushed_to_by_a_holder() -> None:
    """Whichever transports were planned; another holder after one that failed."""
    row = transfer(target=S3_NODE)
    found = way(row, Cluster(a=NAT, b=OPEN), "a", "b")
    assert (found.executor, found.source, found.transports) == ("a", "a", (S3,))
    again = transfer(failure("EntryMissing", executor="a"), target=S3_NODE)
    assert who(way(again, Cluster(a=NAT, b=OPEN), "a", "b")) == ("b", "b")


@pytest.mark.parametrize("error", ["EntryMissing", "Unreachable", "Stalled", "Interrupted"])
def test_a_source_that_failed_is_replaced_by_another_holder(error: str) -> None:
    """And asked again once the other has failed as often."""
    cluster = Cluster(a=OPEN, b=OPEN, t=OPEN)
    assert who(way(transfer(failure(error)), cluster, "a", "b")) == ("t", "b")
    both = transfer(failure(error), failure(error, source="b"))
    assert way(both, cluster, "a", "b").source == "a"


def test_a_failure_of_the_target_is_nobody_elses() -> None:
    """A full disk is full whoever sends."""
    cluster = Cluster(a=OPEN, b=OPEN, t=OPEN)
    assert who(way(transfer(failure("DiskFull")), cluster, "a", "b")) == ("t", "a")


def test_after_an_unreachable_source_the_only_holder_pushes() -> None:
    """Somebody thought it could be reached, and it can't: the other end opens the connection."""
    cluster = Cluster(a=SSH, t=SSH)
    assert who(way(transfer(), cluster)) == ("t", "a")
    assert who(way(transfer(failure("Unreachable")), cluster)) == ("a", "a")
    assert who(way(transfer(failure("Stalled")), cluster)) == ("t", "a")


def test_k15_a_shut_node_is_asked_last_and_a_shut_transport_not_at_all() -> None:
    """As long as there is another one."""
    cluster = Cluster(shut("a"), a=OPEN, b=OPEN, t=OPEN)
    assert who(way(transfer(), cluster, "a", "b")) == ("t", "b")
    assert who(way(transfer(), cluster, "a")) == ("a", "a"), "the other way round"
    assert who(way(transfer(), Cluster(shut("a"), a=OPEN, t=NAT))) == ("t", "a")
    both = transfer(transports=(RSYNC, BASE64))
    assert way(both, Cluster(shut("a", RSYNC), a=SSH, t=NAT)).transports == (BASE64,)
    only = Cluster(shut("a", RSYNC), shut("a", BASE64), a=SSH, t=NAT)
    assert way(both, only).transports == (RSYNC, BASE64)


def test_k15_breakers_follow_the_policy() -> None:
    """A node that may fail five times is not shut after three."""
    patient = policy_of(breakers={"node_failures": 5})
    cluster = Cluster(shut("a"), a=OPEN, b=OPEN, t=OPEN)
    assert who(way(transfer(), cluster, "a", "b", policy=patient)) == ("t", "a")


def test_k12_a_transport_that_corrupted_files_goes_last() -> None:
    """By its own history, or by the policy's word."""
    row = transfer(transports=(RSYNC, BASE64))
    bad = LinkRow("a", RSYNC, recent=(Outcome(T0, "DigestMismatch"), Outcome(T0)))
    assert way(row, Cluster(bad, a=SSH, t=NAT)).transports == (BASE64, RSYNC)
    marked = policy_of(transports={"tried_last": {"t*": ["rsync"]}})
    assert way(row, Cluster(a=SSH, t=NAT), policy=marked).transports == (BASE64, RSYNC)


def test_k13_a_transport_that_nobody_answered_is_not_tried_first_again() -> None:
    """Not by this transfer, until somebody was answered there."""
    chain = (RSYNC, BASE64)
    gone = Cluster(LinkRow("a", RSYNC, recent=(Outcome(T0, "Unreachable"),)), a=SSH, t=NAT)
    assert way(transfer(transports=chain), gone).transports == (RSYNC, BASE64)
    again = transfer(failure("Interrupted"), transports=chain)
    assert way(again, gone).transports == (BASE64, RSYNC)
    outcomes = (Outcome(T0, "Unreachable"), Outcome(T0 + 0.5))
    back = Cluster(LinkRow("a", RSYNC, recent=outcomes), a=SSH, t=NAT)
    assert way(again, back).transports == (RSYNC, BASE64)
