"""Relays: each lets its own target fetch, and what nobody goes on with leaves the disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from adapters.files.inventory import Inventory
from adapters.http.receiving import Receiver
from dataplane.agent import asking, relaying
from dataplane.agent.attempt import Attempt, Outcome
from dataplane.agent.parts import Parts
from dataplane.agent.relaying import Relaying
from dataplane.coordinator.granting import GrantKeeper
from streams import events
from streams.log import Bus
from streams.memory import MemoryBus
from streams.values import DataEntry, DataType, Endpoint, Transport

CONTENT = b"weights" * 100
ENTRY = DataEntry(
    path="models/hex8_2p.onnx",
    data_type=DataType.MODELS,
    config_key="hex8_2p",
    size_bytes=len(CONTENT),
    checksum="sha256:" + hashlib.sha256(CONTENT).hexdigest(),
)


class Targets:
    """What targets do when they are told to fetch: nothing until they may."""

    def __init__(self) -> None:
        self.asked = asyncio.Semaphore(0)
        self.may_end = {"t1": asyncio.Event(), "t2": asyncio.Event()}

    async def do_part(
        self, bus: Bus, node: str, order: events.TransferAssigned, claim: str
    ) -> Outcome:
        """Fetch as soon as it may be."""
        self.asked.release()
        await self.may_end[order.transfer].wait()
        return Attempt(node, order).succeeded(None)


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> Targets:
    """They are asked in place of real agents."""
    targets = Targets()
    monkeypatch.setattr(asking, "do_part", targets.do_part)
    return targets


@pytest.fixture
def relays(tmp_path: Path) -> Relaying:
    """A node in the middle, to which holders have already pushed two transfers of one content."""
    for transfer in ("t1", "t2"):
        put(tmp_path, transfer)
    receiver = Receiver("mid", tmp_path, Inventory(tmp_path, "mid"))
    bus = MemoryBus()
    parts = Parts(bus, GrantKeeper(bus, "mid", lambda claim, mbps: None))
    return Relaying("mid", tmp_path, parts, receiver)


def put(root: Path, transfer: str) -> Path:
    """What a holder has pushed for a transfer; its place."""
    place = root / ".dataplane/relay" / transfer
    (place / ENTRY.path).parent.mkdir(parents=True)
    (place / ENTRY.path).write_bytes(CONTENT)
    return place


def order(transfer: str) -> events.TransferAssigned:
    """An entry that goes from one to another through the middle."""
    return events.TransferAssigned(
        transfer=transfer,
        executor="mid",
        source="gpu-7",
        target=f"train-{transfer}",
        transports=(Transport.HTTP_FETCH,),
        timeout_s=30.0,
        attempt=1,
        entry=ENTRY,
    )


def passed_on(relays: Relaying, transfer: str) -> asyncio.Task[events.TransferSucceeded]:
    """A relay, under way."""
    one = order(transfer)
    return asyncio.create_task(relays.pass_on(one, Attempt("mid", one), Endpoint(node="mid")))


async def test_relay_that_ends_leaves_another_of_the_same_content_to_be_fetched(
    relays: Relaying, targets: Targets
) -> None:
    """Its target would be told that the content is not here."""
    first, second = passed_on(relays, "t1"), passed_on(relays, "t2")
    for _ in range(2):
        await targets.asked.acquire()
    targets.may_end["t1"].set()
    await first
    found = relays.locate(ENTRY.checksum)
    assert found is not None and found.read_bytes() == CONTENT
    targets.may_end["t2"].set()
    await second
    assert relays.locate(ENTRY.checksum) is None


async def test_what_nobody_goes_on_with_leaves_the_disk_while_the_agent_runs(
    relays: Relaying, targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that is under way stays, however long ago it began."""
    under_way = passed_on(relays, "t1")
    await targets.asked.acquire()
    place = tmp_path / ".dataplane/relay"
    monkeypatch.setattr(relaying, "SWEEP_S", 0.01)
    running = asyncio.create_task(relays.run())
    for transfer in ("t1", "t2"):
        os.utime(place / transfer, (0, 0))
    failed = put(tmp_path, "t3")
    os.utime(failed, (0, 0))
    async with asyncio.timeout(30):
        while (place / "t2").exists() or failed.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    relays.sweep()
    assert (place / "t1").exists()
    running.cancel()
    targets.may_end["t1"].set()
    await under_way
