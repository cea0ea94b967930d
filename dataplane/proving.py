"""Fresh proof of a replica: who is asked reads the file again, now, and says what it is.

For the bucket, whose bytes nobody fetches for it, a coordinator asks what it keeps of the object.
It is what deletion, draining and scrubbing stand on. A proof is never remembered here and never
taken from what the catalog says; whoever can't be asked has proven nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from streams.foreign import Unreadable, from_json
from streams.log import Answering, Bus, LogError
from streams.values import Count, DataEntry, Proof

#: How long an answer may take: this, and so many bytes a second to read.
ANSWER_S = 15.0
READ_BYTES_PER_S = 20_000_000
#: How long a node may take to look through all its files.
LOOK_S = 60.0
#: The queue in which coordinators answer for the bucket.
_PROVERS = "provers"
#: Reads a replica again; `adapters.files.inventory.Inventory.prove` for a node's own.
Prover = Callable[[str, str], Awaitable[Proof]]


class ProofRequest(msgspec.Struct, frozen=True):
    """Which content is asked for, under which logical path."""

    path: str
    checksum: str


def prove_subject(node: str) -> str:
    """Where a place is asked to prove what it holds."""
    return f"dp.rpc.{node}.prove"


async def answer_proofs(bus: Bus, node: str, prover: Prover, *, shared: bool = False) -> Answering:
    """Answer for `node`, until the result is closed; if `shared`, one of many answers each time."""

    async def answer(subject: str, body: bytes) -> bytes:
        asked = from_json(body, ProofRequest)
        return msgspec.json.encode(await prover(asked.path, asked.checksum))

    queue = _PROVERS if shared else ""
    return await bus.answer(prove_subject(node), answer, queue=queue)


async def prove(bus: Bus, node: str, entry: DataEntry) -> Proof:
    """Whether `node` holds an entry, read just now. Who does not answer has not proven it."""
    body = msgspec.json.encode(ProofRequest(entry.path, entry.checksum))
    timeout_s = ANSWER_S + entry.size_bytes / READ_BYTES_PER_S
    try:
        answer = await bus.request(prove_subject(node), body, timeout_s)
        return from_json(answer, Proof)
    except (LogError, Unreadable) as error:
        return Proof(node=node, proven=False, reason=f"{node} could not be asked: {error}")


class Untold(msgspec.Struct, frozen=True):
    """What a node would say of its files if it spoke now."""

    #: Files that have come, changed or gone since it last said what it holds.
    files: Count = 0
    #: What it could not read, and why.
    problems: tuple[str, ...] = ()


def untold_subject(node: str) -> str:
    """Where a node is asked whether it has told of all it holds."""
    return f"dp.rpc.{node}.untold"


async def answer_untold(bus: Bus, node: str, look: Callable[[], Awaitable[Untold]]) -> Answering:
    """Answer for `node`, until the result is closed. It looks each time, and says no fact."""

    async def answer(subject: str, body: bytes) -> bytes:
        return msgspec.json.encode(await look())

    return await bus.answer(untold_subject(node), answer)


async def untold(bus: Bus, node: str) -> str:
    """Why it is not known what `node` holds at this moment; "" if it has told of all."""
    try:
        found = from_json(await bus.request(untold_subject(node), b"", LOOK_S), Untold)
    except (LogError, Unreadable) as error:
        return f"{node} gave no answer: what it holds now is not known ({error})"
    if found.problems:
        return f"{node} could not read everything: {'; '.join(found.problems)}"
    if found.files:
        return f"{found.files} files of {node} have changed since it said what it holds; ask again"
    return ""


async def prove_all(bus: Bus, nodes: Iterable[str], entry: DataEntry) -> list[Proof]:
    """Ask several places at once; their proofs in the same order."""
    return list(await asyncio.gather(*(prove(bus, node, entry) for node in nodes)))
