"""The fold: every fact once and in order, the same views however the log is cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from projections.fold import VIEWS, WANTED_VERSIONS, SequenceGap, checkpoint
from streams import events
from streams.codec import Fact, Recorded, decode
from streams.events import Event
from streams.subjects import chain_filter, matches, type_filter
from streams.values import MOST_COUNTED, Transport, TransportResult
from tests.spec import (
    CREATED,
    T0,
    Said,
    Story,
    after,
    answers,
    assigned,
    decided,
    games_of,
    given,
    holds,
    opens,
    played,
    player,
    raw,
    said_what_is_owed,
    succeeded,
    trainer,
)
from tests.unit.histories import Step, any_event, histories, lived, said

LONG = "x" * 600


def refolded(*batches: Sequence[Recorded]) -> Story:
    """A story folded from facts of another one, batch by batch."""
    story = Story()
    for batch in batches:
        story.tell_again(*batch)
    return story


# Any cut, any redelivery, any time


@settings(max_examples=60, deadline=None)
@sampled(steps=histories(), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_views_are_the_same_however_the_log_is_cut(steps: list[Step], cuts: list[int]) -> None:
    """Live, fact by fact, in odd batches or all at once: the digests agree."""
    live = lived(steps)
    edges = sorted({0, len(live.facts), *(cut % (len(live.facts) + 1) for cut in cuts)})
    odd = [live.facts[start:end] for start, end in pairwise(edges)]
    assert refolded(*odd).digests() == refolded(live.facts).digests() == live.digests()


@settings(max_examples=60, deadline=None)
@sampled(steps=histories(), data=st.data())
def test_facts_at_or_before_the_checkpoint_are_passed_over(
    steps: list[Step], data: st.DataObject
) -> None:
    """What comes a second time with its old sequence, alone or before new facts, does nothing."""
    live = lived(steps)
    story, done = Story(), 0
    while done < len(live.facts):
        back = data.draw(st.integers(0, done), label="back to")
        end = data.draw(st.integers(done + 1, len(live.facts)), label="on to")
        story.tell_again(*live.facts[back:end])
        story.tell_again(*live.facts[back:end])
        done = end
    assert story.digests() == live.digests()
    assert story.view.checkpoint == live.view.checkpoint


@settings(max_examples=40, deadline=None)
@sampled(steps=histories(), left_out=st.integers(0, 200))
def test_gap_stops_the_fold_and_stores_nothing(steps: list[Step], left_out: int) -> None:
    """A log that leaves out a message makes no view: neither its facts nor its checkpoint stay."""
    facts = lived(steps).facts
    gap = left_out % (len(facts) - 1)
    before = refolded(facts[:gap])
    digests = before.digests()
    with pytest.raises(SequenceGap, match=f"expected sequence {gap + 1}, the log gave {gap + 2}"):
        before.tell_again(*facts[gap + 1 :])
    assert before.digests() == digests
    assert before.view.checkpoint.sequence == gap


def test_log_that_does_not_begin_at_its_beginning_is_a_gap() -> None:
    """Views of a log whose first facts are gone would be wrong."""
    facts = given(trainer(), player()).facts
    with pytest.raises(SequenceGap):
        refolded(facts[1:])


# The checkpoint


def test_checkpoint_is_how_far_the_views_are_and_of_which_log() -> None:
    """Sequence, id and time of the last fact, the log's birth, and who wrote the tables."""
    point = given(trainer(), after(5), opens("c1", played())).view.checkpoint
    assert (point.created, point.sequence, point.event_id) == (CREATED, 2, "c1")
    assert (point.time, point.versions, point.duplicates) == (T0 + 5, WANTED_VERSIONS, 0)


def test_checkpoint_of_an_empty_store_is_before_the_first_fact() -> None:
    """Nothing was folded, by code of these versions."""
    story = given()
    with story.store.read() as reader:
        assert checkpoint(reader).sequence == 0
        assert checkpoint(reader).versions == WANTED_VERSIONS


def test_every_view_has_a_name_and_tables_of_its_own() -> None:
    """Two views that wrote one table could not be rebuilt apart."""
    tables = [table for view in VIEWS for table in view.tables]
    assert len(tables) == len(set(tables))
    assert len({view.name for view in VIEWS}) == len(VIEWS)


# The same fact under another sequence


def test_fact_published_twice_under_one_id_counts_once() -> None:
    """The log's own window may be over: the second one is counted as a duplicate and ignored."""
    once = Said(events.HostOffline(node="gpu-1", reason="first"), id="same")
    again = Said(events.HostOffline(node="gpu-1", reason="second"), id="same")
    story = given(player("gpu-1"), once, again)
    row = story.view.node("gpu-1")
    assert row is not None and row.reason == "first"
    assert story.view.checkpoint.duplicates == 1
    assert story.view.checkpoint.sequence == 3


def test_id_used_under_another_subject_hides_nothing() -> None:
    """Nobody can make a fact of another node look seen by taking its id first."""
    story = given(
        player("gpu-1"),
        Said(events.HostOnline(node="gpu-1"), by="mallory", id="known"),
        Said(events.HostOffline(node="gpu-1"), by="gpu-1", id="known"),
    )
    row = story.view.node("gpu-1")
    assert row is not None and not row.online
    assert story.view.checkpoint.duplicates == 0


def test_hand_made_facts_without_an_id_are_never_duplicates() -> None:
    """Their ids are made of their sequence."""
    hand = raw("dp.node.gpu-1.SELFPLAY_COMPLETE.hex8_2p", b'{"games_count":1}')
    story = given(hand, hand)
    assert [row.id for row in story.view.open_chains()] == ["DATAPLANE-1", "DATAPLANE-2"]


def test_ids_are_forgotten_after_so_many_messages_whatever_those_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Duplicates, what nobody understands and what has no id make room for new ids as well."""
    monkeypatch.setattr("projections.fold.SEEN_LIMIT", 3)

    def fact(id: str) -> Said:
        return Said(events.HostOnline(node="gpu-1"), id=id)

    story = given(fact("a"), fact("b"), fact("a"))
    assert story.view.checkpoint.duplicates == 1
    story.tell(raw("dp.node.g.NONSENSE.all"), raw("dp.node.gpu-1.HOST_ONLINE.all"))
    with story.store.read() as reader:
        assert (reader.count("seen"), reader.count("seen_order")) == (0, 0)
    story.tell(fact("a"), fact("b"))
    assert story.view.checkpoint.duplicates == 1
    story.tell(fact("a"))
    assert story.view.checkpoint.duplicates == 2
    with story.store.read() as reader:
        assert (reader.count("seen"), reader.count("seen_order")) == (2, 2)


# Nothing stops the fold


@settings(max_examples=300, deadline=None)
@sampled(facts=st.lists(any_event(), min_size=1, max_size=5), chain=st.sampled_from(["c1", "c2"]))
def test_any_event_that_can_be_decoded_can_be_folded(facts: list[Event], chain: str) -> None:
    """`evolve` is total: what happened, happened; a fold that raises stops every projector."""
    story = given(opens("c1", played()), opens("c2", played()))
    story.tell(*(said(event, chain=chain) for event in facts))
    assert story.view.checkpoint.sequence == len(facts) + 2
    assert refolded(story.facts).digests() == story.digests()


@pytest.mark.parametrize("cls", events.EVENT_TYPES.values(), ids=events.EVENT_TYPES)
@settings(max_examples=5, deadline=None)
@sampled(data=st.data())
def test_p1_no_sum_of_counts_can_stop_the_fold(data: st.DataObject, cls: type[Event]) -> None:
    """Each number may be the largest there is; said over and over, they still add up to a row."""
    event = data.draw(any_event(cls))
    story = given(opens("c1", played()), *[said(event)] * 4)
    assert story.view.checkpoint.sequence == 5


def test_p1_transfers_of_the_largest_sizes_add_up_to_the_largest() -> None:
    """In the totals, on the link, in the row of the transfer, and in what was served."""
    huge = games_of("gpu-1", size_bytes=MOST_COUNTED)
    story = given(trainer(), player(), opens("c1", played()), answers("c1", "gpu-1", huge))
    story.tell(said_what_is_owed, assigned)
    [row] = story.under_way()
    result = TransportResult(
        success=False,
        transport_used=Transport.HTTP_FETCH,
        bytes_transferred=MOST_COUNTED,
        duration_seconds=1.0,
        error_class="Stalled",
    )
    for attempt in range(1, 4):
        order = {"transfer": row.id, "source": row.source, "target": row.target, "entry": huge}
        failure = events.TransferFailed(
            node=row.target,
            attempt=attempt,
            bytes_transferred=MOST_COUNTED,
            results=(result,),
            error="no byte came",
            error_class="Stalled",
            **order,
        )
        again = events.TransferAssigned(
            executor=row.target, attempt=attempt + 1, transports=row.transports, **order
        )
        story.tell(failure, again)
    story.tell(succeeded())
    view = story.view
    link, done = view.link("gpu-1", Transport.HTTP_FETCH), view.transfer(row.id)
    assert link is not None and done is not None
    assert (link.bytes, done.bytes_transferred) == (MOST_COUNTED, MOST_COUNTED)
    assert view.totals().bytes == MOST_COUNTED
    assert view.served("hex8_2p", T0) == MOST_COUNTED


@settings(max_examples=200, deadline=None)
@sampled(
    subject=st.one_of(
        st.text(max_size=40),
        st.lists(
            st.sampled_from(
                [
                    "dp",
                    "node",
                    "chain",
                    "task",
                    "c1",
                    "SYNC_PLANNED",
                    "TRANSFER_ASSIGNED",
                    "hex8_2p",
                    "é",
                    LONG,
                ]
            ),
            min_size=1,
            max_size=6,
        ).map(".".join),
    ),
    body=st.one_of(st.binary(max_size=40), st.sampled_from([b"{}", b"[]", b"null"])),
)
def test_any_message_can_be_folded(subject: str, body: bytes) -> None:
    """Whatever somebody publishes, the views go on behind it."""
    story = given(raw(subject, body))
    assert story.view.checkpoint.sequence == 1


POISON = {
    "a size no row can hold": (
        "dp.node.g.FILES_OBSERVED.hex8_2p",
        b'{"node":"g","entries":[{"path":"a","data_type":"games","config_key":"hex8_2p",'
        b'"size_bytes":%d,"checksum":"sha256:%s"}]}' % (2**70, b"a" * 64),
    ),
    "a sequence no key can hold": (
        "dp.chain.x.EVENT_REJECTED.all",
        b'{"sequence":%d,"subject":"a","reason":"b"}' % 2**70,
    ),
    "a target no key can hold": (
        "dp.chain.x.SYNC_PLANNED.all",
        b'{"config_key":"all","plans":[{"source_node":"g","target_nodes":["%s"],"entries":[{'
        b'"path":"a","data_type":"games","config_key":"all","size_bytes":1,"checksum":"sha256:%s"'
        b"}]}]}" % (LONG.encode(), b"a" * 64),
    ),
}


@pytest.mark.parametrize("name", POISON)
def test_p1_no_hand_made_message_can_stop_the_fold(name: str) -> None:
    """One message that decodes and can't be stored would stop every coordinator for ever."""
    subject, body = POISON[name]
    assert given(raw(subject, body)).view.checkpoint.sequence == 1


# What guards decisions


@settings(max_examples=60, deadline=None)
@sampled(steps=histories())
def test_guards_are_the_last_sequences_the_log_itself_would_name(steps: list[Step]) -> None:
    """For each chain and for all assignments, over everything, understood or not."""
    story = lived(steps)

    def last(pattern: str) -> int:
        found = [fact.sequence for fact in story.facts if matches(fact.subject, pattern)]
        return max(found, default=0)

    for chain in {fact.owner for fact in story.facts if fact.subject.startswith("dp.chain.")}:
        assert story.view.last_sequence_of(chain) == last(chain_filter(chain))
    assert story.view.last_assigned_sequence() == last(type_filter(events.TransferAssigned))


@pytest.mark.parametrize(
    "subject",
    [
        "dp.chain.c1",
        "dp.task.a.b.TRANSFER_ASSIGNED.hex8_2p",
        "dp.task.a.TRANSFER_ASSIGNED",
        "dp.node.c1.TRANSFER_ASSIGNED.hex8_2p",
        f"dp.chain.{LONG}.SYNC_PLANNED.hex8_2p",
    ],
)
def test_message_beside_a_guarded_subject_is_no_guard(subject: str) -> None:
    """A guard that counts more than the log does would never hold again (P1)."""
    view = given(opens("c1", played()), raw(subject)).view
    assert view.last_sequence_of("c1") == 0
    assert view.last_assigned_sequence() == 0


@pytest.mark.parametrize("rest", ["NONSENSE.hex8_2p", "NONSENSE", "SYNC_PLANNED.a.b.c"])
def test_nonsense_under_a_guarded_subject_is_the_guard(rest: str) -> None:
    """The log counts it, so must we: else no decision and no assignment is ever taken again."""
    view = given(
        opens("c1", played()),
        raw(f"dp.chain.c1.{rest}"),
        raw("dp.task.gpu-1.TRANSFER_ASSIGNED.hex8_2p", b"[]"),
    ).view
    assert view.last_sequence_of("c1") == 2
    assert view.last_assigned_sequence() == 3


def test_fact_is_folded_by_all_views_in_one_step() -> None:
    """A view that is read after another has seen the same fact never contradicts it."""
    story = given(trainer(), player(), opens("c1", played()), answers("c1", "gpu-1"))
    end = events.DataSyncCompleted(config_key="hex8_2p", source_node="gpu-1")
    story.tell(holds("gpu-1", games_of("gpu-1")), decided("c1", end))
    view = story.view
    assert view.checkpoint.sequence == 6
    assert not story.chain("c1").open
    assert view.counts()["entries"] == 1


def test_recorded_fact_is_what_was_said() -> None:
    """The stories of these tests go through the wire and back."""
    story = given(opens("c1", played()))
    (recorded,) = story.facts
    assert (recorded.id, recorded.chain, recorded.owner) == ("c1", "c1", "gpu-1")
    assert isinstance(recorded, Recorded) and not isinstance(recorded, Fact)
    assert decode(1, T0, recorded.subject, None, b"").event is None
