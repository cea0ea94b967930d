"""Writing to JetStream: one fact by its id, or several as an atomic batch under guards.

Every try may be repeated, also when it is unknown whether the last one was heard: an id is stored
once within the stream's window, and what is guarded is stored once for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from streams.codec import Fact, Recorded, encode
from streams.log import DuplicateFact, Guard, Receipt, SequenceConflict
from streams.stored import Stored
from streams.subjects import matches
from streams.wire import (
    DUPLICATE_IN_BATCH,
    MESSAGE_NOT_FOUND,
    WRONG_LAST_SEQUENCE,
    ApiError,
    Message,
    Wire,
    accepted,
    api,
    gotten,
    persist,
)

MAX_BATCH = 1000
_WINDOW = 512
#: The server takes 50 unfinished batches a stream, from all clients together.
_BATCHES = 16

_GUARD_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
_GUARD_SUBJECTS = "Nats-Expected-Last-Subject-Sequence-Subject"


class Appender:
    """The writing half of a JetStream log; `history` reads a subject from start to end."""

    def __init__(
        self,
        wire: Wire,
        stream: str,
        history: Callable[[str], AsyncGenerator[list[Recorded], None]],
        *,
        try_s: float,
        deadline_s: float,
    ) -> None:
        self._wire, self._stream, self._history = wire, stream, history
        self._try_s, self._deadline_s = try_s, deadline_s
        self._window = asyncio.Semaphore(_WINDOW)
        self._batches = asyncio.Semaphore(_BATCHES)

    async def publish(self, fact: Fact) -> Receipt:
        """Store one fact, once by its id."""
        message = _message(fact, time.time(), {})
        async with self._window:
            return await persist(lambda: self._offer([message]), self._deadline_s)

    async def append(self, facts: Sequence[Fact], guards: Sequence[Guard]) -> Receipt:
        """Store all or none; see `Log.append`."""
        guarding = place_guards(facts, guards)
        now = time.time()
        messages = [
            _message(fact, now, headers) for fact, headers in zip(facts, guarding, strict=True)
        ]
        try:
            if len(messages) == 1:
                return await self._append_one(messages)
            async with self._batches:
                return await persist(
                    lambda: self._offer(batched(messages, self._wire.token())), self._deadline_s
                )
        except (SequenceConflict, DuplicateFact) as refusal:
            return await self._settle(facts, guards, refusal)

    async def _append_one(self, messages: list[Message]) -> Receipt:
        """Without a batch: one is staged on disk however small it is, at four times the price."""
        async with self._window:
            receipt = await persist(lambda: self._offer(messages), self._deadline_s)
        if receipt.duplicate:
            raise DuplicateFact(f"{messages[0].subject}: in the log already, by id")
        return receipt

    async def _offer(self, messages: Sequence[Message]) -> Receipt:
        """One try. Raises NoAnswer if its outcome is unknown."""
        answer = await self._wire.ask(*messages, timeout_s=self._try_s)
        try:
            said = accepted(answer.body)
        except ApiError as error:
            if error.code == WRONG_LAST_SEQUENCE:
                raise SequenceConflict(f"{messages[0].subject}: {error}") from error
            if error.code == DUPLICATE_IN_BATCH:
                raise DuplicateFact(f"{messages[0].subject}: {error}") from error
            raise
        return Receipt(said["seq"], bool(said.get("duplicate")))

    async def _settle(
        self, facts: Sequence[Fact], guards: Sequence[Guard], refusal: Exception
    ) -> Receipt:
        """What a refusal means: an earlier try of ours was heard, or somebody else was there."""
        start = await self._start_of(facts, guards)
        if start is not None and await self._holds(facts, start):
            return Receipt(start + len(facts) - 1, duplicate=True)
        if isinstance(refusal, DuplicateFact):
            for guard in guards:
                last = await self._find({"last_by_subj": guard.subjects})
                if (last.sequence if last else 0) != guard.last_sequence:
                    raise SequenceConflict(f"{guard.subjects}: {refusal}") from refusal
        raise refusal

    async def _start_of(self, facts: Sequence[Fact], guards: Sequence[Guard]) -> int | None:
        """Where our facts begin, if it was they who broke the first guard, or by the first's id."""
        if guards:
            guard = guards[0]
            index = covered(facts, guard)[0]
            after = {"seq": guard.last_sequence + 1, "next_by_subj": guard.subjects}
            found = await self._find(after)
            return found.sequence - index if found and found.id == facts[index].id else None
        last = await self._find({"last_by_subj": facts[-1].subject})
        if last is not None and last.id == facts[-1].id:
            return last.sequence - len(facts) + 1
        async for batch in self._history(facts[0].subject):
            for fact in batch:
                if fact.id == facts[0].id:
                    return fact.sequence
        return None

    async def _holds(self, facts: Sequence[Fact], start: int) -> bool:
        for offset, fact in enumerate(facts):
            stored = await self._find({"seq": start + offset})
            if stored is None or stored.id != fact.id:
                return False
        return True

    async def _find(self, request: Mapping[str, object]) -> Recorded | None:
        found = await find(self._wire, self._stream, request, self._deadline_s)
        return None if found is None else found.recorded()


async def find(
    wire: Wire, stream: str, request: Mapping[str, object], deadline_s: float
) -> Stored | None:
    """A message by sequence or subject, from the leader: a replica may be behind."""
    try:
        said = await persist(lambda: api(wire, f"STREAM.MSG.GET.{stream}", request), deadline_s)
    except ApiError as error:
        if error.code == MESSAGE_NOT_FOUND:
            return None
        raise
    return gotten(said["message"])


def covered(facts: Sequence[Fact], guard: Guard) -> list[int]:
    """Which of the facts fall under a guard. Raises ValueError if none does."""
    indexes = [index for index, fact in enumerate(facts) if matches(fact.subject, guard.subjects)]
    if not indexes:
        raise ValueError(f"the guard on {guard.subjects} covers none of the facts")
    return indexes


def place_guards(facts: Sequence[Fact], guards: Sequence[Guard]) -> list[dict[str, str]]:
    """The headers of each fact: a guard stands at the first it covers, where it is checked.

    Raises ValueError where that can't be: no facts or too many, a guard that covers none of them,
    two guards at one fact, an id that comes twice.
    """
    if not 0 < len(facts) <= MAX_BATCH:
        raise ValueError(f"an append takes 1 to {MAX_BATCH} facts, not {len(facts)}")
    if len({fact.id for fact in facts}) < len(facts):
        raise ValueError("two facts of one append have the same id")
    headers: list[dict[str, str]] = [{} for _ in facts]
    for guard in guards:
        first = headers[covered(facts, guard)[0]]
        if first:
            raise ValueError(f"{guard.subjects} and {first[_GUARD_SUBJECTS]} guard the same fact")
        first[_GUARD_SEQUENCE] = str(guard.last_sequence)
        first[_GUARD_SUBJECTS] = guard.subjects
    return headers


def _message(fact: Fact, now: float, more: Mapping[str, str]) -> Message:
    headers, body = encode(fact, now)
    return Message(fact.subject, body, {**headers, **more})


def batched(messages: Sequence[Message], batch: str) -> list[Message]:
    """The messages as one atomic batch; a new name each try, as a half-heard one is dead."""
    numbered = []
    for number, message in enumerate(messages, 1):
        headers = {
            **(message.headers or {}),
            "Nats-Batch-Id": batch,
            "Nats-Batch-Sequence": str(number),
        }
        if number == len(messages):
            headers["Nats-Batch-Commit"] = "1"
        numbered.append(message._replace(headers=headers))
    return numbered
