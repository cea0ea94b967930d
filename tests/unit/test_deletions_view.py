"""Deletions: what was asked for, what became of it, when, and in whose words it stays."""

from __future__ import annotations

import pytest

from projections.deletions import DeletionRow, DeletionState, turned_down
from streams import events
from streams.codec import fact_id
from tests.spec import T0, Said, Story, after, games_of, given

GAMES = games_of("gpu-1")
AT = {"path": GAMES.path, "node": "gpu-1", "request": "r1"}
ASKED = Said(
    events.DeletionRequested(path=GAMES.path, node="gpu-1", reason="room", requester="boss"),
    by="gpu-1",
    id="r1",
)


def decided(event: events.Event, chain: str = "entry-1") -> Said:
    """The coordinator's word on it."""
    return Said(event, chain=chain)


RESERVED = decided(events.DeletionReserved(**AT, checksum=GAMES.checksum))
GRANTED = decided(events.DeletionGranted(**AT, checksum=GAMES.checksum))


def refused(chain: str = "entry-1") -> Said:
    """It stays, by a rule."""
    event = events.DeletionRefused(**AT, rule="minimum", reason="two copies are left")
    return decided(event, chain)


def done(deleted: bool) -> Said:
    """The node's last word."""
    event = events.DeletionDone(
        **AT,
        checksum=GAMES.checksum,
        deleted=deleted,
        freed_bytes=1_000 * deleted,
        reason="" if deleted else "it is open",
    )
    return decided(event)


def the(story: Story) -> DeletionRow:
    """The deletion."""
    row = story.view.deletion("r1")
    assert row is not None
    return row


def test_each_step_of_a_deletion_has_its_time() -> None:
    """From asked for to deleted; what is held is known from the reservation on."""
    story = given(ASKED)
    row = the(story)
    assert (row.state, row.checksum, row.requested_at) == (DeletionState.REQUESTED, "", T0)
    assert (row.reason, row.requester) == ("room", "boss")
    story.tell(after(1), RESERVED, after(1), GRANTED)
    row = the(story)
    assert (row.state, row.checksum) == (DeletionState.GRANTED, GAMES.checksum)
    assert (row.reserved_at, row.granted_at) == (T0 + 1, T0 + 2)
    story.tell(after(1), done(True))
    row = the(story)
    assert (row.state, row.ended_at, row.freed_bytes) == (DeletionState.DELETED, T0 + 3, 1_000)
    assert (row.rule, row.refusal) == ("", "")


@pytest.mark.parametrize(
    ("end", "rule", "words"),
    [(refused(), "minimum", "two copies are left"), (done(False), "node", "it is open")],
    ids=["by a rule", "by the node"],
)
def test_copy_that_stays_is_kept_by_a_rule_or_by_its_node(end: Said, rule: str, words: str) -> None:
    """Who asked can read why; what comes later changes nothing."""
    story = given(ASKED, RESERVED, GRANTED, after(5), end)
    row = the(story)
    assert (row.state, row.ended_at, row.freed_bytes) == (DeletionState.KEPT, T0 + 5, 0)
    assert (row.rule, row.refusal) == (rule, words)
    story.tell(after(5), done(True))
    assert the(story) == row


def test_request_that_is_turned_down_at_once_is_kept_unless_it_was_reserved_before() -> None:
    """Of two who decided at once the reservation counts."""
    early = turned_down("r1")
    assert early == f"kept-{fact_id('r1')}"
    assert the(given(ASKED, refused(early))).state is DeletionState.KEPT
    assert the(given(ASKED, RESERVED, refused(early))).state is DeletionState.RESERVED


def test_word_on_a_deletion_nobody_asked_for_is_no_deletion() -> None:
    """There is no row to change."""
    assert given(RESERVED).view.deletion("r1") is None


def test_copy_that_its_node_deleted_by_the_grant_is_noted_once() -> None:
    """Not one that went for another reason, before or after; nor what another node says."""
    story = given(ASKED, RESERVED, after(1), GRANTED)
    grant = the(story).grant
    assert grant == story.facts[-1].id
    event = events.FilesRemoved(node="gpu-1", paths=("games/other.db", GAMES.path))
    gone = Said(event, by="gpu-1", cause=grant)
    lost = Said(event, by="gpu-1")
    elsewhere = Said(events.FilesRemoved(node="gpu-2", paths=event.paths), by="gpu-2", cause=grant)
    story.tell(lost, elsewhere)
    assert the(story).removed_at == 0.0
    story.tell(after(1), gone, after(1), gone)
    assert (the(story).state, the(story).removed_at) == (DeletionState.GRANTED, T0 + 2)
    story.tell(done(True), after(1), gone)
    assert (the(story).state, the(story).removed_at) == (DeletionState.DELETED, T0 + 2)
