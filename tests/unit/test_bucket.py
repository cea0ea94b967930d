"""What a node stores: objects first, one manifest for many, and no success before it is named."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection
from pathlib import Path

import pytest

from adapters.errors import Interrupted, Unreachable
from adapters.s3.layout import Manifest
from adapters.s3.transport import STALE_S, S3Transport
from adapters.throttle import Throttle
from adapters.transport import Progress, Request
from dataplane.agent import bucket
from dataplane.agent.bucket import Backups
from streams.values import DataEntry, Endpoint
from tests.spec import T0, games_of

ENTRIES = [games_of(f"gpu-{number}") for number in range(8)]


class Objects(S3Transport):
    """A transport that stores without a network, and remembers."""

    def __init__(self) -> None:
        super().__init__("b")
        self.stored_now: set[str] = set()

    async def push(
        self, request: Request, file: Path, throttle: Throttle, progress: Progress
    ) -> int:
        """It is stored."""
        self.stored_now.add(request.entry.checksum)
        return request.entry.size_bytes


class Manifests:
    """A bucket whose manifest takes its time; it checks that all it names is stored."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.written: list[set[str]] = []
        self.may_go_on = asyncio.Event()
        self.failure: Interrupted | None = None

    async def write_manifest(
        self, node: str, manifest: Manifest, pushed: Collection[str]
    ) -> Manifest:
        """Take note of what is named."""
        named = {stored.entry.checksum for stored in manifest.entries}
        assert named <= self._objects.stored_now
        assert pushed == {stored.key for stored in manifest.entries}
        self.written.append(named)
        await self.may_go_on.wait()
        if self.failure is not None:
            raise self.failure
        return manifest


def made() -> tuple[Backups, Manifests]:
    """What a node stores, and the manifests of it."""
    objects = Objects()
    backups, manifests = Backups("gpu-1", objects, clock=lambda: T0), Manifests(objects)
    backups.bucket = manifests  # type: ignore[assignment]
    return backups, manifests


async def push(backups: Backups, entry: DataEntry) -> int:
    """One push."""
    place = Endpoint(node="x")
    request = Request(transfer="t", entry=entry, source=place, target=place)
    return await backups.push(request, Path("unread"), Throttle(), lambda *_: None)


async def all_waiting(backups: Backups, manifests: Manifests) -> list[asyncio.Task[int]]:
    """All entries are pushed at once; the first manifest is being written, the rest waits."""
    tasks = [asyncio.create_task(push(backups, entry)) for entry in ENTRIES]
    while not manifests.written or len(backups._unnamed) < len(ENTRIES) - 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return tasks


async def test_p10_no_push_succeeds_before_its_entry_is_named() -> None:
    """Its object is there, the manifest is not: it goes on waiting."""
    backups, manifests = made()
    tasks = await all_waiting(backups, manifests)
    assert not any(task.done() for task in tasks)
    manifests.may_go_on.set()
    assert sum(await asyncio.gather(*tasks)) == sum(entry.size_bytes for entry in ENTRIES)


async def test_one_manifest_names_all_that_was_stored_while_the_last_one_was_written() -> None:
    """Eight pushes, two manifests; each entry is in one of them."""
    backups, manifests = made()
    tasks = await all_waiting(backups, manifests)
    manifests.may_go_on.set()
    await asyncio.gather(*tasks)
    assert [len(named) for named in manifests.written] == [1, len(ENTRIES) - 1]
    assert set.union(*manifests.written) == {entry.checksum for entry in ENTRIES}


async def test_a_manifest_that_is_not_written_fails_all_that_it_was_to_name() -> None:
    """And nobody else: the next push writes its own."""
    backups, manifests = made()
    tasks = await all_waiting(backups, manifests)
    manifests.failure = Interrupted("the bucket is away")
    manifests.may_go_on.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Interrupted) for result in results)
    manifests.failure = None
    assert await push(backups, ENTRIES[0]) == ENTRIES[0].size_bytes


async def test_a_push_that_is_cancelled_while_it_names_leaves_the_others_to_themselves() -> None:
    """Whoever waits next writes the manifest, with what the cancelled one had stored."""
    backups, manifests = made()
    first, *others = await all_waiting(backups, manifests)
    first.cancel()
    manifests.may_go_on.set()
    await asyncio.gather(*others)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert manifests.written[-1] == {entry.checksum for entry in ENTRIES}


async def test_stale_uploads_are_given_up_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some become stale while the agent runs; a bucket that is away at one time is not at all."""
    monkeypatch.setattr(bucket, "TIDY_S", 0)
    backups, _ = made()
    looks, thrice = itertools.count(1), asyncio.Event()

    async def abort_stale(older_than_s: float = STALE_S) -> int:
        if next(looks) == 3:
            thrice.set()
        raise Unreachable("the bucket is away")

    monkeypatch.setattr(backups.transport, "abort_stale", abort_stale)
    tidying = asyncio.create_task(backups.tidy())
    await asyncio.wait_for(thrice.wait(), 5.0)
    tidying.cancel()
