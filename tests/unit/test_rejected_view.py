"""What could not be understood: kept, listed, and said once."""

from __future__ import annotations

from projections.rejected import RejectedRow
from streams import events
from tests.spec import T0, after, decided, given, opens, played, raw

BAD = raw("dp.node.gpu-1.SELFPLAY_COMPLETE.hex8_2p", b'{"games_count":-1}')


def rejected(sequence: int) -> events.EventRejected:
    """It was said that a message could not be understood."""
    return events.EventRejected(sequence=sequence, subject="any", reason="any")


def test_p14_message_nobody_understands_is_listed_with_its_field() -> None:
    """Where it stands in the log, and which field is wrong."""
    story = given(opens("c1", played()), after(5), BAD)
    (row,) = story.view.rejected()
    assert (row.sequence, row.time, row.said) == (2, T0 + 5, False)
    assert row.subject == "dp.node.gpu-1.SELFPLAY_COMPLETE.hex8_2p"
    assert "$.games_count" in row.reason
    assert story.view.rejections_unsaid() == [row]


def test_rejection_that_was_said_is_still_listed_but_not_owed() -> None:
    """EVENT_REJECTED is owed once for each message."""
    story = given(BAD, BAD, decided("rejected-1", rejected(1)))
    assert [(row.sequence, row.said) for row in story.view.rejected()] == [(2, False), (1, True)]
    assert [row.sequence for row in story.view.rejections_unsaid()] == [2]


def test_rejection_of_what_was_understood_is_ignored() -> None:
    """`evolve` is total: a stray EVENT_REJECTED lists nothing."""
    story = given(opens("c1", played()), decided("x", rejected(1)), decided("x", rejected(99)))
    assert list(story.view.rejected()) == []
    assert story.view.rejections_unsaid() == []


def test_rejected_message_changes_no_other_view() -> None:
    """What has no meaning means nothing to the others."""
    before = given(opens("c1", played()))
    digests = before.digests()
    after_it = before.tell(BAD).digests()
    assert {name for name in digests if digests[name] != after_it[name]} == {"rejected"}


def test_rows_outlive_the_event_that_said_them() -> None:
    """The list is for people: what was wrong stays readable."""
    story = given(BAD, decided("rejected-1", rejected(1)))
    (row,) = story.view.rejected()
    assert isinstance(row, RejectedRow) and row.said and row.reason


def test_trigger_that_was_set_aside_is_listed_until_it_is_said_anew() -> None:
    """With its chain, its reason and how often it was tried; then with its new id."""
    aside = events.EventSetAside(sequence=1, trigger="SELFPLAY_COMPLETE", reason="why", tries=5)
    story = given(opens("c1", played()), decided("c1", aside))
    row = story.view.rejected_at(1)
    assert row is not None
    assert (row.subject, row.chain, row.tries, row.reason) == ("SELFPLAY_COMPLETE", "c1", 5, "why")
    assert row.said and story.view.rejections_unsaid() == []
    story.tell(decided("rejected-1", events.EventRetried(sequence=1, event_id="new")))
    row = story.view.rejected_at(1)
    assert row is not None and row.retried_as == "new"
