"""The wire: what goes out comes back, what is made by hand is lifted, nonsense is never raised."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from streams import events
from streams.codec import (
    H_CAUSE,
    H_CHAIN,
    H_ID,
    H_MSG_ID,
    H_TRACE,
    H_VERSION,
    LIST_BYTES,
    MAX_MESSAGE_BYTES,
    Fact,
    Recorded,
    chain_fact,
    chain_of_trigger,
    decode,
    encode,
    fact_id,
    node_fact,
    span_of,
    split_entries,
    trace_of,
    unknown_fields,
)
from streams.events import CHAIN_TRIGGERS, EVENT_TYPES, FILE_TRIGGERS, Event
from streams.subjects import Place, place_of, subject_for
from streams.values import DataType, NodeDescription, SyncPriority
from tests.spec import T0, as_fact, checksum, entry, games_of, played
from tests.unit.histories import any_event, said

SELFPLAY = "dp.node.gpu-7.SELFPLAY_COMPLETE.hex8_2p"
CURRENT = {H_VERSION: "1"}


def hand_made(subject: str, payload: Any = None, **headers: str) -> Recorded:
    """A message as a script might publish it."""
    body = b"" if payload is None else json.dumps(payload).encode()
    return decode(41, T0, subject, headers, body)


def understood(subject: str, payload: Any = None, **headers: str) -> Any:
    """The event of a message that must be understood."""
    recorded = hand_made(subject, payload, **headers)
    assert recorded.problem == ""
    return recorded.event


def problem(subject: str, payload: Any = None, **headers: str) -> str:
    """Why a message was not understood."""
    recorded = hand_made(subject, payload, **headers)
    assert recorded.event is None
    return recorded.problem


# There and back


@pytest.mark.parametrize("cls", EVENT_TYPES.values(), ids=EVENT_TYPES)
@settings(max_examples=15, deadline=None)
@sampled(data=st.data())
def test_every_event_survives_the_wire(cls: type[Event], data: st.DataObject) -> None:
    """Payload, id, chain, cause, owner and configuration come back as they went."""
    event = data.draw(any_event(cls))
    fact = as_fact(said(event), 7)
    headers, body = encode(fact, T0)
    back = decode(7, T0, fact.subject, headers, body)
    assert back.problem == ""
    assert back.event == event
    assert (back.sequence, back.time, back.subject) == (7, T0, fact.subject)
    assert (back.id, back.cause, back.type) == (fact.id, fact.cause, events.type_name(event))
    assert fact.subject == subject_for(event, back.owner)
    assert back.config_key == events.config_key_of(event)
    assert back.chain == (fact.id if isinstance(event, CHAIN_TRIGGERS) else "c1")


def test_every_event_has_one_name_and_one_place() -> None:
    """A type that had two would be two facts; what a node says opens every chain."""
    assert len(set(EVENT_TYPES.values())) == len(EVENT_TYPES)
    assert all(re.fullmatch(r"[A-Z0-9_]{1,64}", name) for name in EVENT_TYPES)
    assert {place_of(cls) for cls in CHAIN_TRIGGERS} == {Place.NODE}


def test_envelope_is_that_of_cloudevents() -> None:
    """Any CloudEvents reader understands it; `Nats-Msg-Id` is the id."""
    fact = node_fact(played("gpu-7"), "gpu-7", "id-1", chain="c1", cause="cause-1")
    headers, body = encode(fact, 1_700_000_000.25)
    assert headers == {
        "Nats-Msg-Id": "id-1",
        "ce-specversion": "1.0",
        "ce-id": "id-1",
        "ce-type": "SELFPLAY_COMPLETE",
        "ce-source": "gpu-7",
        "ce-time": "2023-11-14T22:13:20.250+00:00",
        "ce-dataversion": "1",
        "ce-correlationid": "c1",
        "ce-causationid": "cause-1",
        "traceparent": f"00-{trace_of('id-1')}-{span_of('id-1')}-01",
    }
    assert json.loads(body) == {
        "config_key": "hex8_2p",
        "source_node": "gpu-7",
        "games_count": 500,
    }


def test_fact_of_no_chain_and_no_cause_has_no_headers_for_them() -> None:
    """An empty header would be an empty chain."""
    headers, _ = encode(node_fact(played("gpu-7"), "gpu-7", "id-1"), T0)
    assert H_CHAIN not in headers
    assert H_CAUSE not in headers


def test_all_facts_of_a_chain_are_of_one_trace_each_with_a_span_of_its_own() -> None:
    """Whichever process says them; what belongs to no chain is a trace alone."""
    opening = node_fact(played("gpu-7"), "gpu-7", "id-1", chain="another")
    answer = node_fact(
        events.FilesObserved(node="gpu-7"), "gpu-7", "id-2", chain=chain_of_trigger("id-1")
    )
    alone = node_fact(events.FilesObserved(node="gpu-7"), "gpu-7", "id-3")
    said = [encode(fact, T0)[0][H_TRACE].split("-") for fact in (opening, answer, alone)]
    assert said[0][1] == said[1][1] == trace_of("id-1")
    assert said[2][1] == trace_of("id-3") != said[0][1]
    assert [one[2] for one in said] == [span_of(id) for id in ("id-1", "id-2", "id-3")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
    ],
)
def test_trace_context_that_is_none_is_passed_over(text: str) -> None:
    """The event counts all the same."""
    recorded = hand_made(SELFPLAY, {"games": 1}, traceparent=text)
    assert (recorded.problem, recorded.traceparent) == ("", "")


def test_trace_context_of_another_program_is_kept_and_changes_nothing_else() -> None:
    """A client that traces passes its own."""
    theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with_it = hand_made(SELFPLAY, {"games": 1}, traceparent=theirs)
    assert with_it.traceparent == theirs
    assert msgspec.structs.replace(with_it, traceparent="") == hand_made(SELFPLAY, {"games": 1})


def test_time_of_a_fact_is_that_of_the_log() -> None:
    """Whoever published may have a wrong clock."""
    fact = node_fact(played("gpu-7"), "gpu-7", "id-1")
    headers, body = encode(fact, 0.0)
    assert decode(1, T0, fact.subject, headers, body).time == T0


# What does not go out


def observed(**changes: Any) -> Event:
    """An observation of one file that is not what it should be."""
    return events.FilesObserved(
        node="gpu-7", entries=(msgspec.structs.replace(games_of("gpu-7"), **changes),)
    )


def test_fact_that_is_too_large_is_refused_before_it_is_sent() -> None:
    """With its size and the limit, in the publisher's own process."""
    event = events.FilesRemoved(node="gpu-7", paths=("x" * MAX_MESSAGE_BYTES,))
    with pytest.raises(ValueError, match=r"FILES_REMOVED is \d+ bytes, more than 262144"):
        encode(node_fact(event, "gpu-7", "id"), T0)


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (observed(size_bytes=-1), "size_bytes"),
        (observed(checksum="md5:1"), "checksum"),
        (events.DataNeeded(node="gpu-7", config_key="hex8_2p", data_type="video"), "data_type"),  # type: ignore[arg-type]
        (played("gpu-7", -1), "games_count"),
        (msgspec.structs.replace(played("gpu-7"), duration_seconds="long"), "duration_seconds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_p14_publisher_is_told_which_field_is_wrong(event: Event, field: str) -> None:
    """A struct can be made with anything in it; it can't be sent."""
    with pytest.raises(ValueError, match=rf"{events.type_name(event)}: .*\$.*{field}"):
        encode(node_fact(event, "gpu-7", "id"), T0)


# Legacy names


GAME_COUNTS = (
    *("games_count", "games_played", "games_generated", "game_count", "new_games", "num_games"),
    "games",
)


@pytest.mark.parametrize("name", GAME_COUNTS)
def test_p14_game_count_is_understood_by_each_of_its_names(name: str) -> None:
    """One fact had many field names; all old emitters are heard."""
    assert understood(SELFPLAY, {name: 500}) == played("gpu-7", 500)


@pytest.mark.parametrize("name", [*GAME_COUNTS, "orphan_count", "count"])
def test_p14_orphan_count_is_understood_by_all_nine_names(name: str) -> None:
    """Each emitter had its own word for how many games nobody took."""
    event = understood("dp.node.gpu-7.ORPHAN_GAMES_DETECTED.hex8_2p", {name: 7})
    assert event.orphan_count == 7


@pytest.mark.parametrize(
    "name", ["node", "source_node", "host", "node_name", "node_id", "source", "hostname"]
)
def test_p14_node_is_understood_by_each_of_its_names(name: str) -> None:
    """Also where it repeats what the subject says."""
    assert understood(SELFPLAY, {name: "gpu-7", "games": 1}) == played("gpu-7", 1)
    said_by_boss = understood("dp.node.boss.HOST_ONLINE", {name: "gpu-7"})
    assert said_by_boss.node == ("boss" if name == "source_node" else "gpu-7")


@pytest.mark.parametrize(
    ("type_name", "payload", "field", "value"),
    [
        ("SELFPLAY_COMPLETE", {"config": "hex8_2p", "games": 1}, "config_key", "hex8_2p"),
        ("MODEL_PROMOTED", {"config": "hex8_2p", "model": "m.pth"}, "model_path", "m.pth"),
        ("MODEL_PROMOTED", {"config": "hex8_2p", "path": "m.pth"}, "model_path", "m.pth"),
        ("ORPHAN_GAMES_DETECTED", {"config": "hex8_2p", "count": 7}, "orphan_count", 7),
        ("ORPHAN_GAMES_DETECTED", {"config": "hex8_2p", "games_count": 7}, "orphan_count", 7),
        (
            "DATA_SYNC_REQUESTED",
            {"config": "hex8_2p", "data_type": "GAMES", "targets": ["a"]},
            "target_nodes",
            ("a",),
        ),
        (
            "DATA_SYNC_REQUESTED",
            {"config": "hex8_2p", "data_type": "games", "nodes": ["a"], "priority": "HIGH"},
            "priority",
            SyncPriority.HIGH,
        ),
        ("DATA_NEEDED", {"config": "hex8_2p", "data_type": "NPZ"}, "data_type", DataType.NPZ),
    ],
)
def test_p14_other_legacy_names_are_understood(
    type_name: str, payload: dict[str, Any], field: str, value: object
) -> None:
    """Names and upper-case values of today's emitters."""
    assert getattr(understood(f"dp.node.gpu-7.{type_name}", payload), field) == value


def test_current_name_outranks_a_legacy_one() -> None:
    """Who says both means the one we write."""
    assert understood(SELFPLAY, {"games": 1, "games_count": 500}).games_count == 500


def test_message_of_the_current_version_is_not_lifted() -> None:
    """A publisher that says which version it writes is held to it."""
    legacy = {"config_key": "hex8_2p", "source_node": "gpu-7", "games": 1}
    assert "`games_count`" in problem(SELFPLAY, legacy, **CURRENT)
    assert understood(SELFPLAY, legacy) == played("gpu-7", 1)


def test_unknown_fields_are_tolerated() -> None:
    """Emitters may say more than we understand, in any version."""
    more = {"games_count": 1, "gpu_temperature": 70}
    assert understood(SELFPLAY, more) == played("gpu-7", 1)
    whole = {"config_key": "hex8_2p", "source_node": "gpu-7", **more}
    assert understood(SELFPLAY, whole, **CURRENT) == played("gpu-7", 1)


# By hand


def test_hand_made_message_needs_no_header() -> None:
    """Id from the sequence; node, type and configuration from the subject; a chain of its own."""
    recorded = hand_made(SELFPLAY, {"games_count": 500})
    assert recorded == Recorded(
        sequence=41,
        time=T0,
        subject=SELFPLAY,
        id="DATAPLANE-41",
        type="SELFPLAY_COMPLETE",
        owner="gpu-7",
        config_key="hex8_2p",
        chain="DATAPLANE-41",
        cause="",
        event=played("gpu-7", 500),
    )


def test_hand_made_message_needs_no_body_where_the_subject_says_it_all() -> None:
    """`nats pub dp.node.gpu-7.NODE_TERMINATING ''` is enough."""
    assert understood("dp.node.gpu-7.NODE_TERMINATING") == events.NodeTerminating(node="gpu-7")
    assert understood("dp.node.gpu-7.HOST_OFFLINE.all") == events.HostOffline(node="gpu-7")


def test_configuration_may_stand_in_the_payload_alone() -> None:
    """The last token of the subject may be absent, or `all`."""
    for subject in ("dp.node.gpu-7.SELFPLAY_COMPLETE", "dp.node.gpu-7.SELFPLAY_COMPLETE.all"):
        recorded = hand_made(subject, {"games": 1, "config": "hex8_4p"})
        assert recorded.event == played("gpu-7", 1, "hex8_4p")
        assert recorded.config_key == "hex8_4p"


def test_id_of_the_publisher_is_kept_under_either_header() -> None:
    """CloudEvents' own before the bus's."""
    both = {H_ID: "ce", H_MSG_ID: "nats"}
    assert hand_made(SELFPLAY, {"games": 1}, **both).id == "ce"
    assert hand_made(SELFPLAY, {"games": 1}, **{H_MSG_ID: "nats"}).id == "nats"


def test_trigger_belongs_to_the_chain_it_opens_whatever_it_claims() -> None:
    """Nobody can slip a trigger into another chain."""
    claimed = hand_made(SELFPLAY, {"games": 1}, **{H_ID: "mine", H_CHAIN: "yours"})
    assert claimed.chain == "mine"


def test_decision_belongs_to_the_chain_of_its_subject_whatever_it_claims() -> None:
    """The subject is what permissions and guards are about."""
    said_ = {"config_key": "hex8_2p", "source_node": "gpu-7"}
    claimed = hand_made("dp.chain.c1.DATA_SYNC_COMPLETED.hex8_2p", said_, **{H_CHAIN: "c2"})
    assert claimed.chain == "c1"


@pytest.mark.parametrize("strange", ["", "a.b", "a b", "*", ">", "x" * 65, "é", "a\n"])
def test_chain_of_a_trigger_can_always_stand_in_a_subject(strange: str) -> None:
    """Any id is a legal id, and the chain of the same id is always the same."""
    chain = chain_of_trigger(strange)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", chain)
    assert chain_of_trigger(strange) == chain
    assert chain_of_trigger("good-id") == "good-id"


# Contradictions


@pytest.mark.parametrize(
    "cls", [cls for cls, field in FILE_TRIGGERS.items() if field], ids=events.type_name
)
def test_node_can_not_speak_of_the_files_of_another(cls: type[Event]) -> None:
    """The reason names both, and the field."""
    payload = {
        "config_key": "hex8_2p",
        "games_count": 1,
        "orphan_count": 1,
        "model_path": "m",
        FILE_TRIGGERS[cls]: "gpu-8",
    }
    text = problem(f"dp.node.gpu-7.{events.type_name(cls)}.hex8_2p", payload)
    assert "'gpu-8' contradicts subject node 'gpu-7'" in text
    assert f"$.{FILE_TRIGGERS[cls]}" in text


@pytest.mark.parametrize(
    "event",
    [
        events.FilesObserved(node="gpu-8"),
        events.FilesRemoved(node="gpu-8", paths=("a",)),
        events.FileQuarantined(node="gpu-8", path="a", checksum="b", reason="c"),
        events.NodeRegistered(description=NodeDescription(name="gpu-8")),
        events.TransferSucceeded(
            transfer="t", node="gpu-8", source="a", target="gpu-8", entry=entry("a"), attempt=1
        ),
    ],
    ids=events.type_name,
)
def test_node_can_not_say_what_another_holds_or_did(event: Event) -> None:
    """Under its own prefix it has permission, not the right to speak for others."""
    subject = f"dp.node.gpu-7.{events.type_name(event)}.all"
    assert "contradicts subject node 'gpu-7'" in problem(subject, msgspec.to_builtins(event))


@pytest.mark.parametrize("path", ["../x.db", "/etc/passwd", "games/../../x.db", "a//b.db", "a\\b"])
def test_p19_no_node_holds_what_lies_outside_its_data_directory(path: str) -> None:
    """P19: it would be planned for others, who could never get it; the reason names which it is."""
    there = games_of("gpu-7")
    away = msgspec.structs.replace(there, path=path)
    observed = msgspec.to_builtins(events.FilesObserved(node="gpu-7", entries=(there, away)))
    text = problem("dp.node.gpu-7.FILES_OBSERVED.all", observed)
    assert "is no path below a data directory - at `$.entries[1].path`" in text


def test_what_is_said_of_others_may_be_said_by_anybody() -> None:
    """Somebody has to say that a node can't be reached, or ask on behalf of one."""
    assert understood("dp.node.boss.HOST_OFFLINE.all", {"node": "gpu-7"}).node == "gpu-7"
    wanted = {"node": "gpu-7", "data_type": "games"}
    assert understood("dp.node.boss.DATA_NEEDED.hex8_2p", wanted).node == "gpu-7"


def test_subject_and_payload_must_name_one_configuration() -> None:
    """Whoever filters by subject must get what he asked for."""
    text = problem(SELFPLAY, {"games": 1, "config_key": "hex8_4p"})
    assert "'hex8_4p' contradicts subject config key 'hex8_2p'" in text
    assert "$.config_key" in text


def test_observation_of_several_configurations_stands_under_all() -> None:
    """Under one of them it would be a contradiction only if it spoke of another one alone."""
    other = games_of("gpu-7", config_key="hex8_4p")
    both = events.FilesObserved(node="gpu-7", entries=(games_of("gpu-7"), other))
    assert subject_for(both, "gpu-7") == "dp.node.gpu-7.FILES_OBSERVED.all"
    only = msgspec.to_builtins(events.FilesObserved(node="gpu-7", entries=(other,)))
    assert "contradicts" in problem("dp.node.gpu-7.FILES_OBSERVED.hex8_2p", only)


# Places


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (name, place)
        for name, cls in EVENT_TYPES.items()
        for place in Place
        if place_of(cls) != place
    ],
)
def test_p14_fact_under_another_prefix_is_rejected(name: str, place: Place) -> None:
    """A node can't forge a decision or an order, nor a chain a word of a node."""
    text = problem(f"dp.{place}.gpu-7.{name}.hex8_2p", {})
    belongs = place_of(EVENT_TYPES[name])
    assert text == f"{name}: belongs under dp.{belongs}, not under dp.{place}"


# Nonsense


@pytest.mark.parametrize(
    ("subject", "payload", "text"),
    [
        (SELFPLAY, {}, "`games_count`"),
        (SELFPLAY, {"games_count": -1}, "$.games_count"),
        (SELFPLAY, {"games_count": "many"}, "$.games_count"),
        (SELFPLAY, {"games_count": 1.5}, "$.games_count"),
        (SELFPLAY, {"games_count": 2**63}, "$.games_count"),
        (SELFPLAY, [], "expected a JSON object, got list"),
        (SELFPLAY, "text", "expected a JSON object, got str"),
        ("dp.node.gpu-7.SELFPLAY_DONE.hex8_2p", {}, "SELFPLAY_DONE: unknown event type"),
        ("dp.node.gpu-7.DATA_NEEDED.hex8_2p", {"data_type": "video"}, "$.data_type"),
        ("dp.node.gpu-7.DATA_SYNC_REQUESTED.hex8_2p", {"data_type": "games"}, "`target_nodes`"),
        ("dp.node.gpu 7.SELFPLAY_COMPLETE.hex8_2p", {}, "'gpu 7'"),
        ("dp.node", {}, "is not dp.<place>.<owner>.<TYPE>.<config_key>"),
        ("dp.progress.x.y.z", {}, "begins with none of dp.node.>, dp.chain.>, dp.task.>"),
        ("elsewhere.node.x.y.z", {}, "is not dp.<place>"),
    ],
)
def test_p14_rejection_names_what_is_wrong(subject: str, payload: Any, text: str) -> None:
    """An emitter's author reads it and knows which field to mend."""
    assert text in problem(subject, payload)


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b'{"games_count":1,"path":"\\ud800"}', b"1e999"]
)
def test_p14_body_that_is_no_json_is_rejected(body: bytes) -> None:
    """With the event's type, so that it can be found."""
    recorded = decode(1, T0, SELFPLAY, None, body)
    assert recorded.event is None
    assert recorded.problem.startswith("SELFPLAY_COMPLETE: ")
    assert (recorded.owner, recorded.config_key) == ("gpu-7", "hex8_2p")


@pytest.mark.parametrize("headers", [{}, CURRENT], ids=["by hand", "current"])
def test_p1_deeply_nested_body_is_rejected_and_raises_nothing(headers: dict[str, str]) -> None:
    """A few kilobytes of brackets must not stop whoever reads the log."""
    assert decode(1, T0, SELFPLAY, headers, b'{"x":' + b"[" * 50_000).event is None


@pytest.mark.parametrize(
    ("type_name", "field"),
    [("SELFPLAY_COMPLETE", "config_key"), ("DATA_SYNC_REQUESTED", "targets")],
)
def test_p1_token_with_a_newline_at_its_end_is_no_token(type_name: str, field: str) -> None:
    """It would be accepted, and no fact of its chain could ever be given a subject."""
    payload = {"config_key": "hex8_2p", "games": 1, "data_type": "games", "targets": ["a"]}
    payload[field] = ["a\n"] if field == "targets" else "hex8_2p\n"
    assert hand_made(f"dp.node.gpu-7.{type_name}", payload).event is None


@settings(max_examples=300, deadline=None)
@sampled(
    subject=st.one_of(
        st.text(max_size=60),
        st.tuples(
            st.sampled_from(["dp", "x"]),
            st.sampled_from([*Place, "x"]),
            st.sampled_from(["gpu-7", "", "*", "a b"]),
            st.sampled_from([*EVENT_TYPES, "X", ""]),
            st.sampled_from(["hex8_2p", "all", ">", ""]),
        ).map(".".join),
    ),
    headers=st.dictionaries(
        st.one_of(
            st.sampled_from([H_ID, H_MSG_ID, H_CHAIN, H_CAUSE, H_VERSION, H_TRACE]), st.text()
        ),
        st.one_of(st.just("1"), st.text()),
        max_size=4,
    ),
    body=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.one_of(
                        st.sampled_from(["node", "config_key", "entries", "games", "priority"]),
                        st.text(),
                    ),
                    inner,
                    max_size=4,
                ),
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
def test_decode_never_raises(subject: str, headers: dict[str, str], body: bytes) -> None:
    """Whatever stands in the log, it is either a fact or a problem, and never both."""
    recorded = decode(3, T0, subject, headers, body)
    assert (recorded.event is None) == bool(recorded.problem)
    assert (recorded.sequence, recorded.time, recorded.subject) == (3, T0, subject)
    assert recorded.id
    if isinstance(recorded.event, CHAIN_TRIGGERS):
        assert recorded.chain == chain_of_trigger(recorded.id)


# Ids


def test_ids_come_from_cause_and_content() -> None:
    """The same decision twice is one message; another chain, type or part is another."""
    end = events.DataSyncCompleted(config_key="hex8_2p", source_node="gpu-7")
    failed = events.DataSyncFailed(config_key="hex8_2p", source_node="gpu-7")
    assert chain_fact(end, "c1", "cause").id == chain_fact(end, "c1", "another cause").id
    ids = {
        chain_fact(end, "c1", "").id,
        chain_fact(end, "c2", "").id,
        chain_fact(failed, "c1", "").id,
        chain_fact(end, "c1", "", 0).id,
        chain_fact(end, "c1", "", 1).id,
    }
    assert len(ids) == 5


def test_parts_of_an_id_do_not_run_together() -> None:
    """`a` and `bc` are not `ab` and `c`."""
    assert fact_id("a", "bc") != fact_id("ab", "c") != fact_id("abc")
    assert fact_id("a", 1) == fact_id("a", "1")
    assert re.fullmatch(r"[0-9a-f]{32}", fact_id("a"))


# Cut lists


@settings(max_examples=100, deadline=None)
@sampled(items=st.lists(st.text(max_size=30), max_size=30).map(tuple), limit=st.integers(1, 120))
def test_list_is_cut_into_parts_that_fit_and_add_up(items: tuple[str, ...], limit: int) -> None:
    """Nothing is lost, nothing changes place, and only what is too large alone exceeds."""
    parts = split_entries(items, limit)
    assert tuple(item for part in parts for item in part) == items
    assert len(parts) >= 1
    for part in parts:
        assert part or not items
        size = sum(len(msgspec.json.encode(item)) + 1 for item in part)
        assert size <= limit or len(part) == 1


def test_parts_are_as_large_as_may_be() -> None:
    """A list is not cut more often than it must."""
    items = tuple("x" * 10 for _ in range(10))
    assert [len(part) for part in split_entries(items, 26)] == [2] * 5
    assert split_entries(items) == [items]
    assert split_entries(()) == [()]


def test_part_of_a_large_observation_fits_into_a_message() -> None:
    """`LIST_BYTES` leaves room for what stands around the list."""
    many = tuple(entry(f"games/{'d' * 100}/{n}.db") for n in range(3_000))
    parts = split_entries(many)
    assert len(parts) > 1
    for part in parts:
        event = events.FilesObserved(node="gpu-7", entries=part, last_part=False)
        encode(Fact(event, subject_for(event, "gpu-7"), "id"), T0)
    assert max(len(msgspec.json.encode(part)) for part in parts) <= LIST_BYTES + 1


def test_digest_is_a_word_for_a_content() -> None:
    """The digests of these tests are such as the wire takes."""
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", checksum("a"))
    assert checksum("a") != checksum("b")


def test_names_of_old_are_known_and_typing_errors_are_not() -> None:
    """P14: ``host`` still means the node; ``hots`` means nothing, and can be said so."""
    names = ["host", "games_played", "hots"]
    assert unknown_fields(events.SelfplayComplete, names) == ["hots"]
