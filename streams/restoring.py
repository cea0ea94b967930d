"""Putting an archived log back onto an empty bus: the same messages under the same sequences.

It makes the stream itself, and takes only a bus that holds nothing of a log. What it was half
through with when it died it goes on with. It must never write behind what somebody else has
written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from streams import topology
from streams.appending import batched
from streams.codec import STREAM
from streams.connection import Connection
from streams.consuming import list_consumers
from streams.log import LogError, LogUnavailable
from streams.segments import ConsumerInfo
from streams.stored import Stored, as_restored, msg_id
from streams.wire import (
    CONSUMER_EXISTS,
    STREAM_NOT_FOUND,
    WRONG_LAST_SEQUENCE,
    ApiError,
    Message,
    NoAnswer,
    accepted,
    api,
    create_consumer,
    persist,
)

#: So much is given to the server as one atomic batch.
_MOST_MESSAGES, _MOST_BYTES = 500, 4 << 20
_TRY_S, _DEADLINE_S = 10.0, 60.0
_MSG_ID = "Nats-Msg-Id"


class NotEmpty(LogError):
    """The bus holds messages of a log already; a restore would mix two."""


class Restoring(msgspec.Struct, frozen=True):
    """Which messages a restore brings."""

    #: The log they are of; see `LogState.origin`.
    origin: str
    first: int
    last: int
    #: When the last one was stored, nanoseconds since 1970.
    last_time_ns: int


async def restore(
    wire: Connection,
    what: Restoring,
    messages: Callable[[int], AsyncIterator[list[Stored]]],
    consumers: Sequence[ConsumerInfo],
    *,
    replicas: int = 1,
    bounded: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Store the messages under their own sequences; the first one that was stored now.

    `messages` gives those behind a sequence. The durable consumers stand where they stood, so
    that what was acknowledged does not come again. Raises `NotEmpty`, and LogError where somebody
    else writes meanwhile; then nothing more is stored.
    """
    made = topology.log_stream(replicas=replicas, bounded=bounded)
    done = await persist(partial(_begin, wire, what, made), _DEADLINE_S)
    start, known = done + 1, _Known(what.last_time_ns)
    async for group in messages(done):
        for part in _parts(group):
            await _store(wire, part, done, known)
            done = part[-1].sequence
            progress(done)
    for consumer in consumers:
        await persist(partial(_put_consumer, wire, consumer, what), _DEADLINE_S)
    return start


async def _begin(wire: Connection, what: Restoring, made: topology.Config) -> int:
    """The stream, new or half filled by an earlier try; the sequence that was stored last."""
    said = {
        topology.RESTORED_SEQUENCE: str(what.last),
        topology.RESTORED_FROM: what.origin,
    }
    metadata = {**made.get("metadata", {}), **said}
    wanted = {**made, "first_seq": what.first, "metadata": metadata}
    try:
        info = await api(wire, f"STREAM.INFO.{STREAM}")
    except ApiError as error:
        if error.code != STREAM_NOT_FOUND:
            raise
        await api(wire, f"STREAM.CREATE.{STREAM}", wanted)
        return what.first - 1
    there: Mapping[str, str] = info["config"].get("metadata") or {}
    last: int = info["state"]["last_seq"]
    if all(there.get(name) == value for name, value in said.items()) and last <= what.last:
        return max(last, what.first - 1)
    if info["state"]["messages"] or last:
        raise NotEmpty(
            f"the stream {STREAM} holds {info['state']['messages']} messages up to {last}; a log "
            "is restored onto an empty bus only"
        )
    await api(wire, f"STREAM.DELETE.{STREAM}")
    await api(wire, f"STREAM.CREATE.{STREAM}", wanted)
    return what.first - 1


class _Known:
    """Which ids the bus is to know again: those of its window, each once."""

    def __init__(self, last_time_ns: int) -> None:
        self._since_ns = last_time_ns - round(topology.DUPLICATE_WINDOW_S * 1e9)
        self._ids: set[str] = set()

    def id_of(self, message: Stored) -> dict[str, str]:
        id = msg_id(message)
        if not id or message.time_ns < self._since_ns or id in self._ids:
            return {}
        self._ids.add(id)
        return {_MSG_ID: id}


def _parts(messages: list[Stored]) -> list[list[Stored]]:
    parts: list[list[Stored]] = []
    size = 0
    for message in messages:
        if not parts or len(parts[-1]) == _MOST_MESSAGES or size > _MOST_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(message)
        size += len(message.body)
    return parts


async def _store(wire: Connection, part: list[Stored], after: int, known: _Known) -> None:
    """One atomic batch, exactly behind `after`; a try whose answer was lost is recognised."""
    if part[0].sequence != after + 1:
        raise LogError(f"{part[0].sequence} can't be stored behind {after}: something is missing")
    plain = [Message(m.subject, m.body, {**as_restored(m), **known.id_of(m)}) for m in part]
    guard = {**(plain[0].headers or {}), "Nats-Expected-Last-Sequence": str(after)}
    plain[0] = plain[0]._replace(headers=guard)

    async def once() -> int:
        sent = batched(plain, wire.token()) if len(plain) > 1 else plain
        try:
            answer = await wire.ask(*sent, timeout_s=_TRY_S)
            sequence: int = accepted(answer.body)["seq"]
            return sequence
        except ApiError as error:
            if error.code == WRONG_LAST_SEQUENCE and await _holds(wire, part):
                return part[-1].sequence
            raise LogError(f"message {part[0].sequence} can't be restored: {error}") from error

    stored = await persist(once, _DEADLINE_S)
    if stored != part[-1].sequence:
        raise LogError(f"{part[-1].sequence} was stored at {stored}: somebody else writes here")


async def _holds(wire: Connection, part: list[Stored]) -> bool:
    info = await api(wire, f"STREAM.INFO.{STREAM}")
    return bool(info["state"]["last_seq"] == part[-1].sequence)


async def _put_consumer(wire: Connection, consumer: ConsumerInfo, what: Restoring) -> None:
    """A durable consumer as it was, that goes on behind what was acknowledged."""
    names = ("filter_subjects", "filter_subject", "ack_wait", "max_ack_pending")
    config: dict[str, Any] = {
        **{name: consumer.config[name] for name in names if name in consumer.config},
        "name": consumer.name,
        "durable_name": consumer.name,
        "ack_policy": "explicit",
        "max_deliver": -1,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": max(min(consumer.acknowledged, what.last) + 1, 1),
        "replay_policy": "instant",
    }
    try:
        await create_consumer(wire, STREAM, config)
    except ApiError as error:
        if error.code not in CONSUMER_EXISTS:
            raise LogUnavailable(f"consumer {consumer.name}: {error}") from error


async def durable_consumers(wire: Connection) -> list[ConsumerInfo]:
    """The durable consumers of the log, and how far each has acknowledged everything."""
    found = await persist(partial(_all_consumers, wire), _DEADLINE_S)
    return [
        ConsumerInfo(
            one["name"],
            one["ack_floor"]["stream_seq"],
            one["config"],
            one["num_pending"] + one["num_ack_pending"],
        )
        for one in found
        if one["config"].get("durable_name")
    ]


async def _all_consumers(wire: Connection) -> list[dict[str, Any]]:
    """None that lasts is left out: how far it is decides what may be removed from the log."""
    found, silent = await list_consumers(wire, STREAM)
    if lasting := [name for name in silent if not topology.is_reader(name)]:
        raise NoAnswer(f"consumers that nobody answers for: {', '.join(lasting)}")
    return found
