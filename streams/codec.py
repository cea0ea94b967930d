"""Bytes to recorded facts and back: CloudEvents headers, JSON bodies, legacy names lifted.

`decode` never raises: what can't be understood comes back as a `Recorded` with a `problem`, so
that it can be said (EVENT_REJECTED) and never blocks what stands behind it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from streams import events
from streams.events import CHAIN_TRIGGERS, EVENT_TYPES, OWN_WORDS, Event
from streams.identity import escapes
from streams.subjects import Place, parse_subject, place_of, subject_for
from streams.values import ALL_CONFIGS, is_token

STREAM = "DATAPLANE"
#: The version of the payloads this code writes. A message without the header is version 0:
#: hand-made, or from one of the old emitters, and its field names are lifted.
CURRENT_VERSION = "1"
H_ID, H_TYPE, H_SOURCE, H_TIME = "ce-id", "ce-type", "ce-source", "ce-time"
H_CHAIN, H_CAUSE, H_VERSION, H_MSG_ID = (
    "ce-correlationid",
    "ce-causationid",
    "ce-dataversion",
    "Nats-Msg-Id",
)
#: W3C Trace Context: to which trace a fact belongs, and its own place in it.
H_TRACE = "traceparent"
#: A message's body may not be larger; lists are cut at `LIST_BYTES` a message.
MAX_MESSAGE_BYTES = 256 * 1024
LIST_BYTES = 200 * 1024


class Fact(msgspec.Struct, frozen=True, gc=False):
    """An event on its way into the log: payload, id, where it lives, what it belongs to."""

    event: Event
    subject: str
    id: str
    chain: str = ""
    cause: str = ""
    source: str = ""
    #: W3C trace context to say; "" says its place in the trace of its own chain.
    traceparent: str = ""


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """A message of the log, read back. `event` is None exactly if `problem` says why."""

    sequence: int
    #: Seconds since 1970 by the clock of the log.
    time: float
    subject: str
    id: str
    type: str
    #: The node, chain or executor under which it was said.
    owner: str
    config_key: str
    #: The chain it belongs to; "" for a fact of no chain. A trigger belongs to the one it opens.
    chain: str
    cause: str
    event: Event | None
    problem: str = ""
    #: W3C trace context as it was said; "" where none was, or none that is one.
    traceparent: str = ""


def fact_id(*parts: object) -> str:
    """A deterministic id from cause and content: the same decision twice is one message."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def chain_of_trigger(event_id: str) -> str:
    """The chain a trigger opens: its own id where that can stand in a subject, else its digest."""
    return event_id if is_token(event_id) else fact_id("chain", event_id)


def trace_of(chain: str) -> str:
    """The trace that all facts of a chain share, 32 hex digits; of a fact's id if it has none."""
    return fact_id("trace", chain)


def span_of(id: str) -> str:
    """The span that begins with a fact, or is all of it: 16 hex digits from its id."""
    return fact_id("span", id)[:16]


def traceparent_of(event: Event, id: str, chain: str) -> str:
    """The trace context of a fact of ours. It follows from the others and changes no id."""
    opens = type(event) in CHAIN_TRIGGERS
    trace = trace_of(chain_of_trigger(id) if opens else chain or id)
    return f"00-{trace}-{span_of(id)}-01"


def trace_joined(recorded: Recorded) -> str:
    """The trace that a fact was said in where it is not its chain's own; else ""."""
    trace = recorded.traceparent[3:35]
    return "" if trace == trace_of(recorded.chain or recorded.id) else trace


def in_trace(fact: Fact, trace: str) -> Fact:
    """A fact of ours as a part of somebody else's trace; as it was where `trace` is ""."""
    if not trace:
        return fact
    return msgspec.structs.replace(fact, traceparent=f"00-{trace}-{span_of(fact.id)}-01")


def check_traceparent(text: str) -> None:
    """Raises ValueError unless it is a W3C trace context."""
    if not _TRACEPARENT.fullmatch(text):
        raise ValueError(
            f"traceparent {text!r} is no W3C trace context, like 00-<32 hex>-<16 hex>-01"
        )


def node_fact(
    event: Event, node: str, id: str, *, chain: str = "", cause: str = "", traceparent: str = ""
) -> Fact:
    """A fact said by, or about, a node."""
    return Fact(event, subject_for(event, node), id, chain, cause, node, traceparent)


def chain_fact(event: Event, chain: str, cause: str, *distinct: object) -> Fact:
    """A decision for a chain. `distinct` tells apart facts of one type in the same chain."""
    type_name = events.type_name(event)
    return Fact(
        event,
        subject_for(event, chain),
        fact_id(chain, type_name, *distinct),
        chain,
        cause,
        "coordinator",
    )


def fact_about(event: Event, node: str, chain: str, cause: str) -> Fact:
    """A decision about a node, once for a chain: see `streams.events.ABOUT_NODES`."""
    decided = chain_fact(event, chain, cause)
    return msgspec.structs.replace(decided, subject=subject_for(event, node))


def encode(fact: Fact, now: float) -> tuple[dict[str, str], bytes]:
    """Headers and body of a fact. Raises ValueError if it is too large or not well formed."""
    body = msgspec.json.encode(fact.event)
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(
            f"{events.type_name(fact.event)} is {len(body)} bytes, more than {MAX_MESSAGE_BYTES}"
        )
    try:
        _DECODERS[events.type_name(fact.event)].decode(body)
    except msgspec.ValidationError as error:
        raise ValueError(f"{events.type_name(fact.event)}: {error}") from None
    headers = {
        H_MSG_ID: fact.id,
        "ce-specversion": "1.0",
        H_ID: fact.id,
        H_TYPE: events.type_name(fact.event),
        H_SOURCE: fact.source or "unknown",
        H_TIME: datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        H_VERSION: CURRENT_VERSION,
        H_TRACE: fact.traceparent or traceparent_of(fact.event, fact.id, fact.chain),
    }
    if fact.chain:
        headers[H_CHAIN] = fact.chain
    if fact.cause:
        headers[H_CAUSE] = fact.cause
    return headers, body


def decode(
    sequence: int, time: float, subject: str, headers: Mapping[str, str] | None, body: bytes
) -> Recorded:
    """A message of the log as a fact; one that can't be understood carries a `problem`."""
    headers = headers or {}
    id = headers.get(H_ID) or headers.get(H_MSG_ID) or f"{STREAM}-{sequence}"
    chain, cause = headers.get(H_CHAIN, ""), headers.get(H_CAUSE, "")
    if not is_token(chain):
        # Of no chain that could exist; it must not become a key.
        chain = ""
    try:
        place, owner, type_name, config_key = parse_subject(subject)
    except ValueError as error:
        return Recorded(
            sequence, time, subject, id, "", "", ALL_CONFIGS, chain, cause, None, str(error)
        )
    try:
        event = _decode_event(place, owner, type_name, config_key, headers, body)
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        problem = f"{type_name}: {error}"
        return Recorded(
            sequence, time, subject, id, type_name, owner, config_key, chain, cause, None, problem
        )
    if type(event) in CHAIN_TRIGGERS:
        chain = chain_of_trigger(id)
    elif place is Place.CHAIN and not (chain and isinstance(event, events.ABOUT_NODES)):
        chain = owner
    if config_key == ALL_CONFIGS:
        config_key = events.config_key_of(event)
    trace = headers.get(H_TRACE, "")
    if not _TRACEPARENT.fullmatch(trace):
        trace = ""
    return Recorded(
        sequence, time, subject, id, type_name, owner, config_key, chain, cause, event, "", trace
    )


#: Version, trace, span and flags; later versions may say more behind them. Nothing is all zeros.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]{0,200})?"
)


def _decode_event(
    place: Place,
    owner: str,
    type_name: str,
    config_key: str,
    headers: Mapping[str, str],
    body: bytes,
) -> Event:
    decoder = _DECODERS.get(type_name)
    if decoder is None:
        raise ValueError("unknown event type")
    cls = EVENT_TYPES[type_name]
    if place_of(cls) is not place:
        raise ValueError(f"belongs under dp.{place_of(cls)}, not under dp.{place}")
    if headers.get(H_VERSION) == CURRENT_VERSION:
        event = decoder.decode(body)
    else:
        event = lift(cls, owner, config_key, body)
    _agree(event, cls, owner, config_key)
    return event


def _agree(event: Event, cls: type[Event], owner: str, config_key: str) -> None:
    """A node speaks of its own files only, which are where files can be, and payload and subject
    name one configuration.
    """
    field = OWN_WORDS.get(cls)
    named = owner if field is None else getattr(event, field)
    if isinstance(event, events.NodeRegistered):
        field, named = "description.name", event.description.name
    if named != owner:
        raise ValueError(f"{named!r} contradicts subject node {owner!r} - at `$.{field}`")
    if isinstance(event, events.FilesObserved):
        for index, entry in enumerate(event.entries):
            if escapes(entry.path):
                raise ValueError(
                    f"{entry.path!r} is no path below a data directory - "
                    f"at `$.entries[{index}].path`"
                )
    said = events.config_key_of(event)
    if config_key != ALL_CONFIGS and said not in (config_key, ALL_CONFIGS):
        raise ValueError(
            f"{said!r} contradicts subject config key {config_key!r} - at `$.config_key`"
        )


# One fact had nine field names for its game count. Version 0 accepts them all.
_GAMES = ("games_played", "games_generated", "game_count", "new_games", "num_games", "games")
_NODES = ("node", "host", "node_name", "node_id", "source", "hostname")
_ALIASES: dict[str, tuple[str, ...]] = {
    "config_key": ("config",),
    "node": _NODES,
    "source_node": _NODES,
    "games_count": _GAMES,
    "orphan_count": ("games_count", "count", *_GAMES),
    "model_path": ("model", "path"),
    "target_nodes": ("targets", "nodes"),
}


def unknown_fields(cls: type[Event], names: Iterable[str]) -> list[str]:
    """Those of `names` that mean nothing to an event, under today's names and those of old."""
    fields = {field.name for field in msgspec.structs.fields(cls)}
    known = fields.union(*(_ALIASES.get(field, ()) for field in fields))
    return sorted(set(names) - known)


def lift(cls: type[Event], owner: str, config_key: str, body: bytes) -> Event:
    """Version 0 to the current one: legacy names, and what only the subject says.

    Raises ValueError (also as ValidationError and DecodeError) with the path of the field.
    """
    raw = msgspec.json.decode(body) if body.strip() else {}
    if not isinstance(raw, dict):
        raise ValueError(f"expected a JSON object, got {type(raw).__name__}")
    fields = {field.name for field in msgspec.structs.fields(cls)}
    lifted = cast(dict[str, Any], raw)
    for name in fields - lifted.keys():
        for alias in _ALIASES.get(name, ()):
            if alias in lifted:
                lifted[name] = lifted[alias]
                break
    if config_key != ALL_CONFIGS and "config_key" in fields:
        lifted.setdefault("config_key", config_key)
    for name in ("node", "source_node"):
        if name in fields and place_of(cls) is Place.NODE:
            lifted.setdefault(name, owner)
    for name in ("data_type", "priority"):
        if isinstance(lifted.get(name), str):
            lifted[name] = lifted[name].lower()
    return msgspec.convert(lifted, cls)


_DECODERS: dict[str, msgspec.json.Decoder[Event]] = {
    name: cast("msgspec.json.Decoder[Event]", msgspec.json.Decoder(cls))
    for name, cls in EVENT_TYPES.items()
}


def split_entries(entries: tuple[Any, ...], limit: int = LIST_BYTES) -> list[tuple[Any, ...]]:
    """Cut a list so that each part encodes to at most `limit` bytes; always at least one part."""
    parts: list[tuple[Any, ...]] = []
    current: list[Any] = []
    size = 0
    for entry in entries:
        length = len(msgspec.json.encode(entry)) + 1
        if current and size + length > limit:
            parts.append(tuple(current))
            current, size = [], 0
        current.append(entry)
        size += length
    return [*parts, tuple(current)]
