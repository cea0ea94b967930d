"""Subjects: who may say what where, and which filter covers which fact."""

from __future__ import annotations

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from streams import events
from streams.events import EVENT_TYPES
from streams.subjects import (
    LOG_SUBJECTS,
    PROGRESS_SUBJECTS,
    Place,
    Subject,
    about_filter,
    chain_filter,
    matches,
    node_filter,
    parse_subject,
    place_of,
    subject_for,
    type_filter,
)
from streams.values import Transport
from tests.spec import entry, played

TOKENS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
#: What no node may say: decisions, and orders.
DECISIONS = (
    *("SYNC_PLANNED", "DATA_SYNC_STARTED", "DATA_SYNC_COMPLETED", "DATA_SYNC_FAILED"),
    *("NEW_GAMES_AVAILABLE", "MODEL_DISTRIBUTION_COMPLETE", "S3_BACKUP_COMPLETED", "NODE_DRAINED"),
    *("SELFPLAY_NEEDED", "REPLICATION_ALERT", "DEADLINE_AT_RISK", "CHAIN_OVERDUE"),
    "EVENT_REJECTED",
    "FILE_CONFLICT",
    "DELETION_RESERVED",
    "DELETION_GRANTED",
    "DELETION_REFUSED",
    "DELETION_DONE",
    "EVENT_SET_ASIDE",
    "EVENT_RETRIED",
)


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_every_type_lives_under_the_prefix_of_who_may_say_it(name: str) -> None:
    """A node's permission is one prefix, and no decision is under it."""
    expected = Place.CHAIN if name in DECISIONS else Place.NODE
    if name == "TRANSFER_ASSIGNED":
        expected = Place.TASK
    assert place_of(EVENT_TYPES[name]) is expected


@settings(max_examples=100, deadline=None)
@sampled(place=st.sampled_from(Place), owner=TOKENS, type_name=TOKENS, config_key=TOKENS)
def test_subject_survives_being_taken_apart(
    place: Place, owner: str, type_name: str, config_key: str
) -> None:
    """What is put together is what was said."""
    subject = Subject(place, owner, type_name, config_key)
    assert parse_subject(str(subject)) == subject


def test_subject_of_a_fact_says_place_owner_type_and_configuration() -> None:
    """As written in the design, for each of the three places."""
    order = events.TransferAssigned(
        transfer="t",
        executor="train-1",
        source="gpu-7",
        target="train-1",
        entry=entry("a"),
        transports=(Transport.HTTP_FETCH,),
    )
    overdue = events.ChainOverdue(config_key="hex8_2p", age_seconds=1.0, waiting_for="x")
    assert subject_for(played("gpu-7"), "gpu-7") == "dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p"
    assert subject_for(overdue, "c1") == "dp.chain.c1.CHAIN_OVERDUE.hex8_2p"
    assert subject_for(order, "train-1") == "dp.task.train-1.TRANSFER_ASSIGNED.hex8_2p"
    offline = events.HostOffline(node="gpu-7")
    assert subject_for(offline, "boss") == "dp.node.boss.HOST_OFFLINE.all"


@pytest.mark.parametrize("owner", ["", "a.b", "a b", "*", ">", "é", "x" * 65, "a\n"])
def test_owner_that_can_not_stand_in_a_subject_is_refused_by_name(owner: str) -> None:
    """Otherwise a node's name could widen its permission."""
    with pytest.raises(ValueError, match=r"owner .* is not 1 to 64 characters"):
        subject_for(played(), owner)


def test_configuration_that_can_not_stand_in_a_subject_is_refused_by_name() -> None:
    """The text says which token it was."""
    with pytest.raises(ValueError, match=r"config_key 'hex8\.2p' is not 1 to 64 characters"):
        subject_for(played(config_key="hex8.2p"), "gpu-7")


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ("", "is not dp.<place>.<owner>.<TYPE>.<config_key>"),
        ("dp.node.a", "is not dp.<place>"),
        ("dp.node.a.B.c.d", "is not dp.<place>"),
        ("xx.node.a.B.c", "is not dp.<place>"),
        ("dp.progress.a.B.c", "begins with none of dp.node.>, dp.chain.>, dp.task.>"),
        ("dp.NODE.a.B.c", "begins with none of"),
        ("dp.node..B.c", "token ''"),
        ("dp.node.a.*.c", r"token '\*'"),
        ("dp.node.a.B.c\n", r"token 'c\\n'"),
    ],
)
def test_subject_that_is_none_is_refused_with_the_reason(subject: str, text: str) -> None:
    """What is wrong, and where."""
    with pytest.raises(ValueError, match=text):
        parse_subject(subject)


def test_configuration_may_be_left_out_by_hand() -> None:
    """It then speaks of all of them."""
    assert parse_subject("dp.node.gpu-7.HOST_ONLINE").config_key == "all"


@pytest.mark.parametrize(
    ("subject", "pattern", "covered"),
    [
        ("dp.node.a.B.c", "dp.node.>", True),
        ("dp.node.a.B.c", "dp.node.a.B.c", True),
        ("dp.node.a.B.c", "dp.*.*.B.>", True),
        ("dp.node.a.B.c", "dp.*.*.B.*", True),
        ("dp.node.a.B.c", "dp.*.*.C.>", False),
        ("dp.node.a.B.c", "dp.node.a.B", False),
        ("dp.node.a.B", "dp.node.a.B.>", False),
        ("dp.node.a.B", "dp.node.a.B.*", False),
        ("dp.node", "dp.>", True),
        ("dp", "dp.>", False),
        ("dp", ">", True),
        ("dp.nodes.a", "dp.node.>", False),
    ],
)
def test_filter_covers_what_nats_says_it_covers(subject: str, pattern: str, covered: bool) -> None:
    """`*` is one token, `>` at least one."""
    assert matches(subject, pattern) is covered


@settings(max_examples=60, deadline=None)
@sampled(owner=TOKENS, other=TOKENS, config_key=TOKENS, cls=st.sampled_from(list(EVENT_TYPES)))
def test_filters_cover_exactly_their_facts(
    owner: str, other: str, config_key: str, cls: str
) -> None:
    """All facts of a chain and of no other; all facts of a type, or of a configuration."""
    event_class = EVENT_TYPES[cls]
    subject = str(Subject(place_of(event_class), owner, cls, config_key))
    assert matches(subject, type_filter(event_class))
    assert matches(subject, type_filter(event_class, config_key))
    assert matches(subject, type_filter(event_class, other)) is (other == config_key)
    said = f"dp.node.{owner}.{cls}.{config_key}"
    if place_of(event_class) is Place.NODE:
        assert matches(said, node_filter(owner, event_class))
        assert matches(said, node_filter(other, event_class)) is (other == owner)
    assert matches(subject, about_filter(owner))
    assert matches(subject, about_filter(other)) is (other == owner)
    decision = f"dp.chain.{owner}.SYNC_PLANNED.{config_key}"
    assert matches(decision, chain_filter(owner))
    assert matches(decision, chain_filter(other)) is (other == owner)


def test_log_keeps_every_fact_and_no_progress() -> None:
    """Progress is told many times a second, and is nobody's history."""
    for name, cls in EVENT_TYPES.items():
        subject = str(Subject(place_of(cls), "a", name, "all"))
        assert any(matches(subject, pattern) for pattern in LOG_SUBJECTS)
    assert matches("dp.progress.t1", PROGRESS_SUBJECTS)
    assert not any(matches("dp.progress.t1", pattern) for pattern in LOG_SUBJECTS)


def test_schema_names_every_event() -> None:
    """What is published is described, and what is described can be published."""
    refs, components = events.json_schemas()
    assert set(refs) == set(EVENT_TYPES)
    assert {ref["$ref"].rpartition("/")[2] for ref in refs.values()} <= set(components)
