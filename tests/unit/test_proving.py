"""Fresh proof over the bus: an answer by who was asked, or no proof at all."""

from __future__ import annotations

from dataplane.proving import answer_proofs, prove, prove_all
from streams.memory import MemoryBus
from streams.values import Proof
from tests.spec import entry, model

MODEL = model()


async def right(path: str, checksum: str) -> Proof:
    """A node that has all it is asked for."""
    return Proof(node="gpu-1", proven=True, checksum=checksum, size_bytes=1)


async def test_who_is_asked_answers_for_itself() -> None:
    """The request carries path and digest, the answer is the node's own."""
    bus, asked = MemoryBus(), []

    async def prover(path: str, checksum: str) -> Proof:
        asked.append((path, checksum))
        return await right(path, checksum)

    answering = await answer_proofs(bus, "gpu-1", prover)
    assert (await prove(bus, "gpu-1", MODEL)).proven
    assert asked == [(MODEL.path, MODEL.checksum)]
    await answering.close()


async def test_silence_proves_nothing() -> None:
    """Who can't be asked is said to hold nothing, with the reason; the others' proofs count."""
    bus = MemoryBus()
    await answer_proofs(bus, "gpu-1", right)
    there, silent = await prove_all(bus, ["gpu-1", "gpu-2"], MODEL)
    assert there.proven
    assert (silent.node, silent.proven) == ("gpu-2", False)
    assert "nobody answers" in silent.reason


async def test_an_answer_that_is_none_proves_nothing() -> None:
    """What can't be understood is no proof."""
    bus = MemoryBus()

    async def babble(subject: str, body: bytes) -> bytes:
        return b"yes"

    await bus.answer("dp.rpc.gpu-1.prove", babble)
    assert not (await prove(bus, "gpu-1", entry("x.npz"))).proven
