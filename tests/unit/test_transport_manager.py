"""One transfer through its chain of transports, with transports that fail in every way."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from msgspec import structs

from adapters.errors import EntryMissing, Interrupted, TransportError, Unreachable
from adapters.files.blocks import MalformedMap
from adapters.files.inventory import Inventory
from adapters.files.landing import Landing
from adapters.p2p.pages import MalformedPages
from adapters.s3.layout import ManifestUnreadable
from adapters.s3.sealing import SealBroken
from adapters.throttle import Throttle
from adapters.transport import Progress, Request
from dataplane.agent.receipts import Receipts
from dataplane.agent.transfers import TransportManager
from projections.links import LINK_FAILURES, outcomes
from streams import events
from streams.log import LogUnavailable
from streams.values import DataEntry, DataType, Transport
from tests.held import Held


def _checksum(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


CONTENT = bytes(range(256)) * 1000
ENTRY = DataEntry(
    path="models/hex8_2p.onnx",
    data_type=DataType.MODELS,
    config_key="hex8_2p",
    size_bytes=len(CONTENT),
    checksum=_checksum(CONTENT),
    version=7,
)
#: A later version of the same.
NEWER = structs.replace(ENTRY, version=9, size_bytes=3, checksum=_checksum(b"new"))
P2P, HTTP, RSYNC = Transport.P2P_GOSSIP, Transport.HTTP_FETCH, Transport.RSYNC


class Faulty:
    """A transport that gives some bytes and then does what it was told to."""

    def __init__(
        self,
        name: Transport,
        *,
        content: bytes = CONTENT,
        stop_after: int | None = None,
        then: Callable[[], Exception] | None = None,
        hangs: bool = False,
    ) -> None:
        self.name = name
        self.calls = 0
        self.offsets: list[int] = []
        self._content, self._stop, self._then, self._hangs = content, stop_after, then, hangs

    async def fetch(
        self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
    ) -> int:
        """Give what it has from the landing's offset on, then fail, hang or return."""
        self.calls += 1
        self.offsets.append(landing.offset)
        data = self._content[landing.offset : self._stop]
        await landing.write(data)
        progress(landing.offset, request.entry.size_bytes)
        if self._hangs:
            await asyncio.Event().wait()
        if self._then is not None:
            raise self._then()
        return len(data)

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    """The inventory of the target."""
    inventory = Inventory(tmp_path, "train-1")
    yield inventory
    await inventory.close()


def manager(root: Path, inventory: Inventory, *transports: Faulty) -> TransportManager:
    """A manager on the target with these transports."""
    return TransportManager("train-1", root, inventory, {t.name: t for t in transports})


def order(*transports: Transport, **changes: object) -> events.TransferAssigned:
    """An assignment over a chain of transports."""
    fields: dict[str, object] = {"timeout_s": 30.0, "attempt": 1, "entry": ENTRY, **changes}
    return events.TransferAssigned(
        transfer="t1",
        executor="train-1",
        source="gpu-7",
        target="train-1",
        transports=transports,
        **fields,  # type: ignore[arg-type]
    )


async def test_next_transport_goes_on_where_the_first_broke_off(
    tmp_path: Path, inventory: Inventory
) -> None:
    """The first transport dies half-way; the second brings the rest, and the facts say so."""
    first = Faulty(P2P, stop_after=100_000, then=lambda: Interrupted("cut"))
    second = Faulty(HTTP)
    done = await manager(tmp_path, inventory, first, second).transfer(order(P2P, HTTP))
    assert isinstance(done, events.TransferSucceeded)
    assert second.offsets == [100_000]
    assert [(r.transport_used, r.success, r.bytes_transferred) for r in done.results] == [
        (P2P, False, 100_000),
        (HTTP, True, len(CONTENT) - 100_000),
    ]
    assert done.results[0].error_class == "Interrupted"
    assert done.bytes_transferred == len(CONTENT)
    assert (tmp_path / ENTRY.path).read_bytes() == CONTENT


async def test_a_surprise_in_one_transport_leaves_the_others(
    tmp_path: Path, inventory: Inventory
) -> None:
    """Where it was is said of the try; the file comes by another way."""
    odd = Faulty(P2P, stop_after=100_000, then=lambda: KeyError("pieces"))
    done = await manager(tmp_path, inventory, odd, Faulty(HTTP)).transfer(order(P2P, HTTP))
    assert isinstance(done, events.TransferSucceeded)
    assert [(r.success, r.error_class) for r in done.results] == [(False, "KeyError"), (True, "")]


async def test_p18_a_surprise_is_a_failed_transfer(
    tmp_path: Path, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a transport or before one: an answer with a class of its own and its reason, retryable."""
    odd = Faulty(HTTP, stop_after=0, then=lambda: KeyError("pieces"))
    failed = await manager(tmp_path, inventory, odd).transfer(order(HTTP))
    assert isinstance(failed, events.TransferFailed)
    assert (failed.error_class, failed.error) == ("Unforeseen", "KeyError: 'pieces'")
    assert failed.retryable

    async def surprised(path: str) -> DataEntry:
        raise ExceptionGroup("two at once", [KeyError("rows"), ValueError("other")])

    monkeypatch.setattr(inventory, "arrived", surprised)
    failed = await manager(tmp_path, inventory, Faulty(HTTP)).transfer(order(HTTP))
    assert isinstance(failed, events.TransferFailed)
    assert (failed.error_class, failed.error) == ("Unforeseen", "KeyError: 'rows'")


async def test_a_bus_that_is_away_is_no_outcome_of_a_transfer(
    tmp_path: Path, inventory: Inventory
) -> None:
    """What was asked over it is asked again when the order comes again."""
    odd = Faulty(HTTP, stop_after=0, then=lambda: LogUnavailable("no server"))
    with pytest.raises(LogUnavailable):
        await manager(tmp_path, inventory, odd).transfer(order(HTTP))


async def test_p15_result_counts_bytes_that_moved_not_bytes_that_were_planned(
    tmp_path: Path, inventory: Inventory
) -> None:
    """A refused connection moved nothing; a second delivery of done work moves nothing again."""
    dead = Faulty(HTTP, stop_after=0, then=lambda: Unreachable("connection refused"))
    failed = await manager(tmp_path, inventory, dead).transfer(order(HTTP))
    assert isinstance(failed, events.TransferFailed)
    assert (failed.bytes_transferred, failed.error_class) == (0, "Unreachable")
    assert failed.retryable
    good = manager(tmp_path, inventory, Faulty(HTTP))
    first = await good.transfer(order(HTTP))
    good.said("t1")
    again = await good.transfer(order(HTTP, attempt=2))
    assert isinstance(first, events.TransferSucceeded)
    assert isinstance(again, events.TransferSucceeded)
    assert (first.bytes_transferred, again.bytes_transferred) == (len(CONTENT), 0)


async def test_p15_bytes_moved_are_known_after_a_crash_before_they_were_said(
    tmp_path: Path, inventory: Inventory
) -> None:
    """The result was never said: carried out again, it moves nothing and says what had moved."""
    await manager(tmp_path, inventory, Faulty(HTTP)).transfer(order(HTTP))
    second = Faulty(HTTP)
    again = await manager(tmp_path, inventory, second).transfer(order(HTTP))
    assert isinstance(again, events.TransferSucceeded)
    assert second.calls == 0
    assert again.bytes_transferred == len(CONTENT)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_disk_that_takes_no_receipt_fails_the_transfer_and_not_the_agent(
    tmp_path: Path, inventory: Inventory, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """It is an answer like any other: an order that ends the agent would come again for ever."""

    def refuse(receipts: Receipts, moved: dict[str, int]) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Receipts, "write", refuse)
    failed = await manager(tmp_path, inventory, Faulty(HTTP)).transfer(order(HTTP))
    assert isinstance(failed, events.TransferFailed)
    assert failed.error_class == ("DiskFull" if code == errno.ENOSPC else "DiskFailed")
    assert not (tmp_path / ENTRY.path).exists()


async def test_disk_that_takes_no_index_fails_the_transfer_and_not_the_agent(
    tmp_path: Path, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inventory's index is a database, which has its own word for a full disk."""

    async def refuse(entries: Mapping[str, DataEntry]) -> None:
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise full

    monkeypatch.setattr(inventory, "expect", refuse)
    failed = await manager(tmp_path, inventory, Faulty(HTTP)).transfer(order(HTTP))
    assert isinstance(failed, events.TransferFailed) and failed.error_class == "DiskFull"
    assert not (tmp_path / ENTRY.path).exists()


async def test_missing_entry_is_not_asked_of_the_same_source_by_another_way(
    tmp_path: Path, inventory: Inventory
) -> None:
    """The source does not have it: another transport to it would not help."""
    first = Faulty(P2P, stop_after=0, then=lambda: EntryMissing("gone"))
    second = Faulty(HTTP)
    failed = await manager(tmp_path, inventory, first, second).transfer(order(P2P, HTTP))
    assert isinstance(failed, events.TransferFailed)
    assert failed.error_class == "EntryMissing"
    assert second.calls == 0


async def test_wrong_bytes_never_get_the_final_name_and_the_next_transport_starts_anew(
    tmp_path: Path, inventory: Inventory
) -> None:
    """The digest decides: what one transport corrupted, another brings from the first byte."""
    corrupt = Faulty(P2P, content=b"\x00" * len(CONTENT))
    sound = Faulty(HTTP)
    done = await manager(tmp_path, inventory, corrupt, sound).transfer(order(P2P, HTTP))
    assert isinstance(done, events.TransferSucceeded), done
    assert done.results[0].error_class == "DigestMismatch"
    assert sound.offsets == [0]
    assert (tmp_path / ENTRY.path).read_bytes() == CONTENT


async def test_attempt_ends_at_its_time_and_keeps_what_came(
    tmp_path: Path, inventory: Inventory
) -> None:
    """A transport that hangs is cut off with TimedOut; the next attempt goes on from there."""
    hanging = Faulty(HTTP, stop_after=50_000, hangs=True)
    failed = await manager(tmp_path, inventory, hanging).transfer(order(HTTP, timeout_s=2.0))
    assert isinstance(failed, events.TransferFailed)
    assert (failed.error_class, failed.retryable) == ("TimedOut", True)
    good = Faulty(HTTP)
    done = await manager(tmp_path, inventory, good).transfer(order(HTTP, attempt=2))
    assert isinstance(done, events.TransferSucceeded)
    assert good.offsets == [50_000]


async def test_p5_older_version_never_replaces_a_newer_one(
    tmp_path: Path, inventory: Inventory
) -> None:
    """An assignment that was overtaken is refused: version 7 stays where 9 would be lost."""
    there = manager(tmp_path, inventory, Faulty(HTTP, content=b"new"))
    assert isinstance(await there.transfer(order(HTTP, entry=NEWER)), events.TransferSucceeded)
    refused = await manager(tmp_path, inventory, Faulty(HTTP)).transfer(order(HTTP))
    assert isinstance(refused, events.TransferFailed)
    assert (refused.error_class, refused.retryable) == ("Superseded", False)
    assert (tmp_path / ENTRY.path).read_bytes() == b"new"


async def test_p5_who_was_thought_dead_and_goes_on_does_not_undo_what_came_meanwhile(
    tmp_path: Path, inventory: Inventory
) -> None:
    """An agent that was paused for longer than its order's time wakes up beside the next order."""

    class Paused(Faulty):
        """While it fetches, a later version comes."""

        async def fetch(
            self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
        ) -> int:
            moved = await super().fetch(request, landing, throttle, progress)
            second = manager(tmp_path, inventory, Faulty(HTTP, content=b"new"))
            done = await second.transfer(order(HTTP, entry=NEWER, attempt=2))
            assert isinstance(done, events.TransferSucceeded)
            return moved

    late = await manager(tmp_path, inventory, Paused(HTTP)).transfer(order(HTTP))
    assert isinstance(late, events.TransferFailed)
    assert (late.error_class, late.retryable) == ("Superseded", False)
    assert (tmp_path / ENTRY.path).read_bytes() == b"new"


async def test_p5_a_later_version_that_comes_while_one_is_looked_into_is_not_undone(
    tmp_path: Path, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look into a large file takes longest, and the later version does not wait for it."""
    held = Held(monkeypatch, Landing, "_look_inside", lambda landing: landing.entry == ENTRY)
    older = manager(tmp_path, inventory, Faulty(HTTP)).transfer(order(HTTP))
    late = asyncio.create_task(older)
    await held.reached()
    second = manager(tmp_path, inventory, Faulty(HTTP, content=b"new"))
    done = await second.transfer(order(HTTP, entry=NEWER, attempt=2))
    assert isinstance(done, events.TransferSucceeded)
    held.let_go()
    refused = await late
    assert isinstance(refused, events.TransferFailed)
    assert (refused.error_class, refused.retryable) == ("Superseded", False)
    assert (tmp_path / ENTRY.path).read_bytes() == b"new"
    assert await inventory.arrived([ENTRY.path]) == [NEWER]


async def test_p4_copy_never_lands_on_a_file_of_the_nodes_own(
    tmp_path: Path, inventory: Inventory
) -> None:
    """train-1 kept games of gpu-8 before there was a data plane: its file stays as it is."""
    path = "games/gpu-8/hex8_2p.jsonl"
    own = tmp_path / path
    own.parent.mkdir(parents=True)
    own.write_text("what train-1 wrote")
    copy = structs.replace(ENTRY, path=path, data_type=DataType.GAMES)
    refused = await manager(tmp_path, inventory, Faulty(HTTP)).transfer(order(HTTP, entry=copy))
    assert isinstance(refused, events.TransferFailed)
    assert (refused.error_class, refused.retryable) == ("NeverReplaced", False)
    await inventory.scan()
    again = await manager(tmp_path, inventory, Faulty(HTTP)).transfer(order(HTTP, entry=copy))
    assert isinstance(again, events.TransferFailed)
    assert own.read_text() == "what train-1 wrote"


async def test_unknown_transports_are_passed_over_and_said(
    tmp_path: Path, inventory: Inventory
) -> None:
    """An assignment over transports this node lacks fails in words, at once."""
    failed = await manager(tmp_path, inventory, Faulty(HTTP)).transfer(order(RSYNC))
    assert isinstance(failed, events.TransferFailed)
    assert "rsync" in failed.error


async def test_progress_callback_is_told_bytes_done_and_in_all(
    tmp_path: Path, inventory: Inventory
) -> None:
    """Library users watch a transfer by (done, total)."""
    told: list[tuple[int, int]] = []
    moving = manager(tmp_path, inventory, Faulty(HTTP))
    await moving.transfer(order(HTTP), lambda done, total: told.append((done, total)))
    assert told[-1] == (len(CONTENT), len(CONTENT))


async def test_progress_never_goes_back_and_ends_with_all(
    tmp_path: Path, inventory: Inventory
) -> None:
    """What the next transport can't use comes again unseen; what is there already is all there."""

    class Anew(Faulty):
        """It can't use what came before."""

        async def fetch(
            self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
        ) -> int:
            await landing.reset()
            await landing.write(CONTENT[:1000])
            progress(landing.offset, len(CONTENT))
            return await super().fetch(request, landing, throttle, progress)

    told: list[tuple[int, int]] = []
    first = Faulty(P2P, stop_after=100_000, then=lambda: Interrupted("cut"))
    moving = manager(tmp_path, inventory, first, Anew(HTTP))
    await moving.transfer(order(P2P, HTTP), lambda *done: told.append(done))
    assert told == [(100_000, len(CONTENT)), (len(CONTENT), len(CONTENT))]
    told.clear()
    again = await moving.transfer(order(P2P, HTTP), lambda *done: told.append(done))
    assert isinstance(again, events.TransferSucceeded)
    assert told == [(len(CONTENT), len(CONTENT))]


async def test_progress_of_an_empty_file_is_told(tmp_path: Path, inventory: Inventory) -> None:
    """Nothing of nothing is all of it, whatever its transport tells."""

    class Silent(Faulty):
        """It has nothing to do, and tells nothing."""

        async def fetch(self, *_: object) -> int:
            return 0

    told: list[tuple[int, int]] = []
    empty = structs.replace(ENTRY, size_bytes=0, checksum=_checksum(b""), path="data/empty.txt")
    silent = Silent(RSYNC)
    done = await manager(tmp_path, inventory, silent).transfer(
        order(RSYNC, entry=empty), lambda *done: told.append(done)
    )
    assert isinstance(done, events.TransferSucceeded)
    assert told == [(0, 0)]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (MalformedMap, "Refused"),
        (MalformedPages, "Refused"),
        (SealBroken, "DigestMismatch"),
        (ManifestUnreadable, "ManifestUnreadable"),
    ],
)
async def test_k15_what_is_told_of_a_failure_is_what_breakers_and_choices_know(
    tmp_path: Path, inventory: Inventory, kind: type[TransportError], told: str
) -> None:
    """A transport may know more exactly what was wrong; others act on the family."""
    odd = Faulty(P2P, stop_after=0, then=lambda: kind("it is none"))
    failed = await manager(tmp_path, inventory, odd).transfer(order(P2P))
    assert isinstance(failed, events.TransferFailed)
    assert (failed.error_class, failed.error) == (told, "it is none")
    assert [result.error_class for result in failed.results] == [told]
    assert bool(list(outcomes(failed))) is (told in LINK_FAILURES)
