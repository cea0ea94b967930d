"""The nodes: what they said of themselves, and whether planning counts on them."""

from __future__ import annotations

import pytest

from projections.nodes import NodeRow
from streams import events
from streams.events import Event
from streams.values import Role, Trait
from tests.spec import T0, Story, after, given, node, opens, played, player, trainer


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


def test_host_event_of_a_node_nobody_knows_is_ignored() -> None:
    """Without a description there is nothing to plan with."""
    story = given(events.HostOffline(node="ghost"), events.NodeRecovered(node="ghost"))
    assert story.view.nodes() == []


def test_nodes_are_listed_by_name() -> None:
    """Decisions that go through all nodes go in the same order everywhere."""
    story = given(player("b"), player("c"), player("a"), opens("c1", played("z")))
    assert [row.name for row in story.view.nodes()] == ["a", "b", "c"]
