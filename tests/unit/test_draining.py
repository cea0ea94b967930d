"""Whether a node may go: by the catalog first, then only by what was read again elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from dataplane.draining import unproven, unsafe
from dataplane.proving import answer_proofs
from streams.memory import MemoryBus
from streams.values import DataEntry, Proof
from tests.spec import games_of, given, holds, player, trainer

FIRST, SECOND = games_of("gpu-1", "first"), games_of("gpu-2", "second")


@asynccontextmanager
async def places(**sound: bool) -> AsyncIterator[MemoryBus]:
    """A bus on which these places answer that what they hold is sound, or is not."""
    bus, answering = MemoryBus(), []
    for place, proven in sound.items():

        async def prover(path: str, checksum: str, node: str = place, yes: bool = proven) -> Proof:
            return Proof(node=node, proven=yes, reason="" if yes else "it reads otherwise")

        answering.append(await answer_proofs(bus, place, prover))
    yield bus
    for one in answering:
        await one.close()


def held_at(entry: DataEntry, *where: str) -> DataEntry:
    """An entry as the catalog shows it."""
    return msgspec.structs.replace(entry, locations=where)


def test_what_too_few_others_hold_is_not_safe() -> None:
    """A content counts by path and digest, and the node's own copy does not count (P4)."""
    story = given(
        trainer("t1"),
        player("gpu-1"),
        player("gpu-2"),
        holds("gpu-1", FIRST),
        holds("gpu-2", SECOND),
        holds("gpu-1", SECOND),
        holds("t1", games_of("gpu-1", "an older version")),
    )
    assert [left.path for left in unsafe(story.view, "gpu-1", 1)] == [FIRST.path]
    assert [left.path for left in unsafe(story.view, "gpu-1", 2)] == [FIRST.path, SECOND.path]
    assert unsafe(story.view, "t1", 1)[0].elsewhere == ()


async def test_only_what_was_just_read_elsewhere_is_proven() -> None:
    """A rotten copy and a silent place prove nothing; another sound copy does (K22)."""
    async with places(good=True, rotten=False) as bus:
        both = held_at(FIRST, "gpu-1", "good", "rotten")
        assert await unproven(bus, [both], "gpu-1", 1) == []
        [left] = await unproven(bus, [both], "gpu-1", 2)
        assert (left.proven, left.elsewhere) == (1, ("good", "rotten"))
        assert "rotten: it reads otherwise" in left.why
        [left] = await unproven(bus, [held_at(SECOND, "gpu-1", "silent")], "gpu-1", 1)
        assert "silent could not be asked" in left.why
