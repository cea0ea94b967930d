"""The nodes: what they said of themselves, and whether planning counts on them."""

from __future__ import annotations

import msgspec
import pytest

from projections.nodes import LEAVING_S, NodeRow
from streams import events
from streams.events import Event
from streams.values import Role, Trait
from tests.spec import (
    T0,
    Story,
    after,
    entry,
    given,
    node,
    opens,
    played,
    player,
    succeeded_with,
    trainer,
)


def the(story: Story, name: str = "gpu-1") -> NodeRow:
    """A node that must be known."""
    row = story.view.node(name)
    assert row is not None
    return row


def test_node_is_known_by_its_own_word_from_its_registration_on() -> None:
    """Roles, traits and the time it joined."""
    story = given(after(5), node("gpu-1", Role.SELFPLAY, traits=[Trait.EPHEMERAL], provider="vast"))
    row = the(story)
    assert (row.name, row.online, row.registered_at) == ("gpu-1", True, T0 + 5)
    assert (row.description.roles, row.description.traits) == (
        (Role.SELFPLAY,),
        (Trait.EPHEMERAL,),
    )


def test_registering_again_replaces_the_description() -> None:
    """The newest word counts, and there is one row a node."""
    story = given(player("gpu-1"), trainer("gpu-1"))
    assert the(story).description.roles == (Role.TRAINING,)
    assert [row.name for row in story.view.nodes()] == ["gpu-1"]


def test_k11_offline_node_keeps_its_own_policy() -> None:
    """Being taken out, and coming back, never changes what a node said of itself."""
    joined = node("gpu-1", Role.SELFPLAY, traits=[Trait.SKIP_SYNC_RECEIVE])
    story = given(joined, after(3), events.HostOffline(node="gpu-1", reason="ping lost"))
    row = the(story)
    assert (row.online, row.reason, row.since) == (False, "ping lost", T0 + 3)
    assert row.description == joined.description
    story.tell(after(4), events.NodeRecovered(node="gpu-1", reason="back"))
    row = the(story)
    assert (row.online, row.reason, row.since) == (True, "back", T0 + 7)
    assert row.description == joined.description
    assert row.registered_at == T0


@pytest.mark.parametrize(
    "back", [events.HostOnline(node="gpu-1"), events.NodeRecovered(node="gpu-1"), player("gpu-1")]
)
def test_node_comes_back_by_any_word_that_it_is_there(back: Event) -> None:
    """HOST_ONLINE, NODE_RECOVERED and its own registration all end an absence."""
    assert the(given(player("gpu-1"), events.HostOffline(node="gpu-1"), back)).online


@pytest.mark.parametrize(
    "stays", [events.NodeDrainCancelled(node="gpu-1"), events.NodeRecovered(node="gpu-1")]
)
def test_node_that_is_to_go_is_leaving_for_a_day_or_until_it_is_said_to_stay(stays: Event) -> None:
    """Its absence does not end that; only such a word, or a day, does."""
    story = given(player("gpu-1"), after(3), events.NodeTerminating(node="gpu-1"))
    assert the(story).is_leaving(T0 + 3)
    assert not the(story).is_leaving(T0 + 3 + LEAVING_S)
    story.tell(events.HostOffline(node="gpu-1"))
    assert the(story).is_leaving(T0 + 4)
    story.tell(stays)
    assert not the(story).is_leaving(T0 + 4)


@pytest.mark.parametrize("back", [events.HostOnline(node="gpu-1"), player("gpu-1")])
def test_node_that_is_to_go_is_so_however_it_comes_back_by_itself(back: Event) -> None:
    """A short silence, or an agent that died and begins again, keeps no machine from its end."""
    story = given(player("gpu-1"), events.NodeTerminating(node="gpu-1"), after(3), back)
    assert the(story).is_leaving(T0 + 3)
    story.tell(events.HostOffline(node="gpu-1"), back)
    assert (the(story).online, the(story).is_leaving(T0 + 3)) == (True, True)


def test_node_that_is_away_stays_out_of_planning_though_it_no_longer_goes() -> None:
    """That it stays says nothing of whether it is there; of a node nobody knows it says nothing."""
    story = given(player("gpu-1"), events.NodeTerminating(node="gpu-1"))
    story.tell(events.HostOffline(node="gpu-1", reason="its disk is broken"))
    story.tell(events.NodeDrainCancelled(node="gpu-1"), events.NodeDrainCancelled(node="ghost"))
    assert (the(story).online, the(story).reason) == (False, "its disk is broken")
    assert story.view.node("ghost") is None


def test_host_event_of_a_node_nobody_knows_is_ignored() -> None:
    """Without a description there is nothing to plan with."""
    story = given(events.HostOffline(node="ghost"), events.NodeRecovered(node="ghost"))
    assert story.view.nodes() == []


def test_nodes_are_listed_by_name() -> None:
    """Decisions that go through all nodes go in the same order everywhere."""
    story = given(player("b"), player("c"), player("a"), opens("c1", played("z")))
    assert [row.name for row in story.view.nodes()] == ["a", "b", "c"]


# What it trains, and what arrives


def starts(key: str = "hex8_2p") -> Event:
    """A training starts on the node."""
    return events.TrainingStarted(config_key=key, node="gpu-1")


def ends(key: str = "hex8_2p") -> Event:
    """A training has ended on the node."""
    return events.TrainingCompleted(config_key=key, node="gpu-1", model_path="models/m.pth")


def test_node_trains_what_was_started_and_not_completed() -> None:
    """Each configuration once, however often it starts; of a node nobody knows nothing is kept."""
    story = given(starts(), player("gpu-1"), starts("a_2p"), starts("b_2p"), starts("a_2p"))
    assert the(story).training == ("b_2p", "a_2p")
    story.tell(ends("b_2p"), ends("c_2p"))
    assert the(story).training == ("a_2p",)
    assert given(starts()).view.node("gpu-1") is None


def test_node_remembers_when_bytes_last_arrived() -> None:
    """A copy that was there already is no arrival, nor is one on a node nobody knows."""
    story = given(player("gpu-1"))
    assert the(story).received_at == 0.0
    story.tell(after(3), succeeded_with(entry("x"), "gpu-1", moved=7))
    story.tell(after(3), succeeded_with(entry("y"), "gpu-1", moved=0))
    assert the(story).received_at == T0 + 3
    assert given(succeeded_with(entry("x"), "gpu-9", moved=7)).view.node("gpu-9") is None


@pytest.mark.parametrize(("changed", "since"), [(True, T0 + 1), (False, T0 + 9)])
def test_description_that_changed_is_no_return_and_a_registration_is(
    changed: bool, since: float
) -> None:
    """Either way the newest description counts, and what it trains and received stays known."""
    story = given(player("gpu-1"), starts(), succeeded_with(entry("x"), "gpu-1", moved=7))
    story.tell(after(1), events.HostOffline(node="gpu-1", reason="ping lost"), after(8))
    again = msgspec.structs.replace(trainer("gpu-1"), changed=changed)
    story.tell(again)
    row = the(story)
    assert row.description == again.description
    assert (row.online, row.reason) == ((False, "ping lost") if changed else (True, ""))
    assert (row.since, row.registered_at) == (since, T0 + 9)
    assert (row.training, row.received_at) == (("hex8_2p",), T0)
