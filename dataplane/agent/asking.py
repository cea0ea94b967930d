"""What agents ask each other over the bus: to let a file in, to do a part, to try an address.

An answer is a word between two processes and no fact; what came of it is said by whoever was
assigned the transfer. Who does not answer can't be reached.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec

from adapters.errors import TransportError, Unreachable
from adapters.http.receiving import Receiver, error_of
from dataplane.agent.attempt import Outcome
from streams import events
from streams.foreign import Unreadable, from_json
from streams.log import Answering, Bus, LogError
from streams.values import DataEntry

logger = logging.getLogger(__name__)

_ANSWER_S = 10.0
#: A receiver digests what was gathered: so many bytes a second at least.
_DIGESTED_BYTES_PER_S = 20e6
_DIAL_S = 5.0


class _Handover(msgspec.Struct, frozen=True):
    """May this entry come; or, with `land`, it has been gathered."""

    entry: DataEntry
    transfer: str
    land: bool


class _Handed(msgspec.Struct, frozen=True):
    """Whether it is here; else, with an error, why it may not be."""

    here: bool = False
    error: str = ""
    error_class: str = ""


class _Part(msgspec.Struct, frozen=True):
    """Carry out a part of a transfer, which has what is granted to the whole."""

    order: events.TransferAssigned
    #: What the whole is called in grants.
    claim: str


class _Done(msgspec.Struct, frozen=True):
    """What came of a part that was asked for: one of the two."""

    succeeded: events.TransferSucceeded | None = None
    failed: events.TransferFailed | None = None


def _subject(node: str, what: str) -> str:
    return f"dp.rpc.{node}.{what}"


# A file that is pushed by a transport that knows nothing of agents


async def ready(bus: Bus, node: str, entry: DataEntry, transfer: str) -> bool:
    """Let a target's agent expect an entry, so that it is never taken for the node's own.

    True if it is there already. Raises the `TransportError` that the target says.
    """
    return await _handed(bus, node, _Handover(entry, transfer, land=False), _ANSWER_S)


async def land(bus: Bus, node: str, entry: DataEntry, transfer: str) -> None:
    """Let a target's agent prove and name what was gathered there. Raises what it says."""
    patience_s = _ANSWER_S + entry.size_bytes / _DIGESTED_BYTES_PER_S
    await _handed(bus, node, _Handover(entry, transfer, land=True), patience_s)


async def answer_handovers(bus: Bus, receiver: Receiver) -> Answering:
    """Let files in for a receiver's node, until the result is closed."""

    async def answer(subject: str, body: bytes) -> bytes:
        asked = from_json(body, _Handover)
        try:
            here = await receiver.ready(asked.entry)
            if not here and asked.land:
                await receiver.land(asked.entry, asked.transfer)
                here = True
        except TransportError as error:
            return msgspec.json.encode(_Handed(False, str(error), type(error).__name__))
        return msgspec.json.encode(_Handed(here))

    return await bus.answer(_subject(receiver.node, "receive"), answer)


async def _handed(bus: Bus, node: str, handover: _Handover, timeout_s: float) -> bool:
    try:
        body = msgspec.json.encode(handover)
        answer = await bus.request(_subject(node, "receive"), body, timeout_s)
        handed = from_json(answer, _Handed)
    except (LogError, Unreadable) as error:
        raise Unreachable(f"the agent of {node} does not answer: {error}") from error
    if handed.error_class:
        raise error_of(handed.error_class, handed.error)
    return handed.here


# A part of a transfer that only another node can do


async def do_part(bus: Bus, node: str, order: events.TransferAssigned, claim: str) -> Outcome:
    """Let another node's agent carry out a part of a transfer, and wait for what comes of it.

    `claim` is what the whole is called in grants. Raises `Unreachable` if it does not answer
    soon after the order's time.
    """
    try:
        body = msgspec.json.encode(_Part(order, claim))
        answer = await bus.request(_subject(node, "part"), body, order.timeout_s + _ANSWER_S)
        done = from_json(answer, _Done)
    except (LogError, Unreadable) as error:
        raise Unreachable(f"{node} did not do its part: {error}") from error
    outcome = done.succeeded or done.failed
    if outcome is None:
        raise Unreachable(f"{node} did not say what came of its part")
    return outcome


async def answer_parts(
    bus: Bus, node: str, carry_out: Callable[[events.TransferAssigned, str], Awaitable[Outcome]]
) -> Answering:
    """Do parts that others ask for, until the result is closed. Asked twice, done once.

    `carry_out` gets the part, and what its whole is called in grants.
    """
    under_way: dict[tuple[str, str], asyncio.Task[Outcome]] = {}

    async def answer(subject: str, body: bytes) -> bytes:
        part = from_json(body, _Part)
        key = (part.order.transfer, part.order.target)
        task = under_way.get(key)
        if task is None:
            task = asyncio.ensure_future(carry_out(part.order, part.claim))
            under_way[key] = task
            task.add_done_callback(lambda _: under_way.pop(key, None))
        outcome = await asyncio.shield(task)
        if isinstance(outcome, events.TransferSucceeded):
            return msgspec.json.encode(_Done(succeeded=outcome))
        return msgspec.json.encode(_Done(failed=outcome))

    return await bus.answer(_subject(node, "part"), answer)


# Whether an address answers


async def try_address(bus: Bus, node: str, url: str) -> bool | None:
    """Whether `node` can open a connection to `url`; None if it could not be asked."""
    with suppress(LogError, Unreadable):
        answer = await bus.request(_subject(node, "probe"), url.encode(), _DIAL_S + 2.0)
        return from_json(answer, bool)
    return None


async def answer_probes(bus: Bus, node: str) -> Answering:
    """Try addresses for others, until the result is closed."""

    async def answer(subject: str, body: bytes) -> bytes:
        return msgspec.json.encode(await _dials(body.decode()))

    return await bus.answer(_subject(node, "probe"), answer)


async def _dials(url: str) -> bool:
    where = urlsplit(url)
    port = where.port or (443 if where.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_DIAL_S):
            _, writer = await asyncio.open_connection(where.hostname or "", port)
    except (OSError, TimeoutError, ValueError):
        return False
    writer.close()
    return True
