"""Many small orders at once: one question, one landing, one append; and each still for itself."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from adapters.errors import Interrupted, Refused, TransportError
from adapters.files.group import Group
from adapters.files.inventory import Inventory
from adapters.files.landing import Landing
from adapters.throttle import Throttle
from adapters.transport import Progress, Request, Take
from dataplane.agent.company import Company, Waiting
from dataplane.agent.saying import Saying
from dataplane.agent.transfers import TransportManager
from dataplane.outbox import Outbox
from streams import events
from streams.codec import Fact, node_fact
from streams.log import Guard, LogUnavailable, Receipt
from streams.memory import MemoryLog
from streams.values import DataEntry, DataType, Endpoint, Transport

P2P, HTTP = Transport.P2P_GOSSIP, Transport.HTTP_FETCH


def content(number: int) -> bytes:
    """What a file of this number holds."""
    return b"%d" % number * 1000


def entry(number: int) -> DataEntry:
    """A small entry of its own path."""
    return DataEntry(
        path=f"data/{number}.bin",
        data_type=DataType.METADATA,
        config_key="all",
        size_bytes=len(content(number)),
        checksum="sha256:" + hashlib.sha256(content(number)).hexdigest(),
        version=7,
    )


def order(number: int, *transports: Transport) -> events.TransferAssigned:
    """An order of one small entry."""
    return events.TransferAssigned(
        transfer=f"t{number}",
        executor="train-1",
        source="gpu-7",
        target="train-1",
        entry=entry(number),
        transports=transports or (P2P,),
        timeout_s=30.0,
        attempt=1,
    )


class Many:
    """A transport of many at once, which holds all contents but those it is told to lack."""

    name = P2P

    def __init__(self, *, lacks: Sequence[int] = (), fails: Exception | None = None) -> None:
        self.asked: list[int] = []
        self.asking: asyncio.Queue[int] = asyncio.Queue()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self._lacks, self._fails = lacks, fails

    async def fetch(
        self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
    ) -> int:
        """Nobody asks for one."""
        raise AssertionError

    async def fetch_many(
        self, requests: Sequence[Request], take: Take
    ) -> Sequence[TransportError | None]:
        """Hand over what is there, in reverse, once it may go on."""
        self.asked.append(len(requests))
        self.asking.put_nowait(len(requests))
        await self.goes_on.wait()
        if self._fails is not None:
            raise self._fails
        failed: list[TransportError | None] = [None] * len(requests)
        for index, request in reversed(list(enumerate(requests))):
            number = int(request.transfer[1:])
            if number in self._lacks:
                failed[index] = Interrupted("gone")
            else:
                await asyncio.to_thread(take, [(index, memoryview(content(number)))])
        return failed

    async def close(self) -> None:
        """Nothing is open."""


class One:
    """A transport of one at a time."""

    name = HTTP

    async def fetch(
        self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
    ) -> int:
        """Give all of it."""
        data = content(int(request.transfer[1:]))
        await landing.write(data)
        return len(data)

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
async def inventory(tmp_path: Path) -> AsyncIterator[Inventory]:
    """The inventory of the target."""
    inventory = Inventory(tmp_path, "train-1")
    await inventory.held()
    yield inventory
    await inventory.close()


def manager(root: Path, inventory: Inventory, many: Many) -> TransportManager:
    """A manager on the target with both transports."""
    return TransportManager("train-1", root, inventory, {P2P: many, HTTP: One()})


async def test_p5_what_later_versions_overtook_on_the_way_does_not_appear(
    tmp_path: Path, inventory: Inventory
) -> None:
    """An agent that was paused brings a group beside the orders that were given since."""
    many = Many()
    many.goes_on.clear()
    carrying = manager(tmp_path, inventory, many)
    late = [asyncio.create_task(carrying.transfer(order(number))) for number in (1, 2)]
    await many.asking.get()
    newer = replace(entry(3), path=entry(1).path, version=9)
    await carrying.transfer(replace(order(3, HTTP), entry=newer))
    many.goes_on.set()
    overtaken, fine = await asyncio.gather(*late)
    assert isinstance(overtaken, events.TransferFailed)
    assert (overtaken.error_class, overtaken.retryable) == ("Superseded", False)
    assert isinstance(fine, events.TransferSucceeded)
    assert (tmp_path / newer.path).read_bytes() == content(3)


async def test_orders_of_one_moment_are_one_question_and_one_landing(
    tmp_path: Path, inventory: Inventory
) -> None:
    """Each has its own result; the inventory knows them as received, also after a restart."""
    many = Many()
    carrying = manager(tmp_path, inventory, many)
    results = await asyncio.gather(*(carrying.transfer(order(n)) for n in range(50)))
    assert many.asked == [50]
    for number, result in enumerate(results):
        assert isinstance(result, events.TransferSucceeded)
        assert result.bytes_transferred == len(content(number))
        assert (tmp_path / f"data/{number}.bin").read_bytes() == content(number)
    await inventory.close()
    again = Inventory(tmp_path, "train-1")
    assert {one.path for one in await again.held()} == {f"data/{n}.bin" for n in range(50)}
    assert await again.arrived(["data/7.bin"]) == [entry(7)]
    await again.close()


async def test_one_that_fails_goes_on_by_the_next_transport_and_the_others_are_done(
    tmp_path: Path, inventory: Inventory
) -> None:
    """The facts say which came by which."""
    carrying = manager(tmp_path, inventory, Many(lacks=[3]))
    results = await asyncio.gather(*(carrying.transfer(order(n, P2P, HTTP)) for n in range(6)))
    ways = [[(one.transport_used, one.success) for one in result.results] for result in results]
    assert ways.pop(3) == [(P2P, False), (HTTP, True)]
    assert ways == [[(P2P, True)]] * 5
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        f"{number}.bin" for number in range(6)
    ]


async def test_who_comes_while_a_group_is_on_its_way_goes_with_the_next(
    tmp_path: Path, inventory: Inventory
) -> None:
    """Two groups at once; nobody makes them wait, and nobody waits for company."""
    many = Many()
    many.goes_on.clear()
    carrying = manager(tmp_path, inventory, many)
    running: list[asyncio.Task[object]] = []

    async def come(*numbers: int) -> None:
        running.extend(asyncio.create_task(carrying.transfer(order(n))) for n in numbers)
        await asyncio.sleep(0)

    await come(0)
    assert await many.asking.get() == 1
    await come(1, 2)
    assert await many.asking.get() == 2
    await come(3)
    await come(4, 5)
    many.goes_on.set()
    results = await asyncio.gather(*running)
    assert all(isinstance(result, events.TransferSucceeded) for result in results)
    assert many.asked == [1, 2, 3]


@pytest.mark.parametrize(("transport", "sizes"), [(P2P, [500, 100]), (Transport.RSYNC, [600])])
async def test_more_go_together_where_each_group_costs_a_connection(
    transport: Transport, sizes: list[int]
) -> None:
    """rsync begins one for each; a question over HTTP is cheap."""
    company, carried = Company[None, int](), list[int]()

    async def carry(some: Sequence[Waiting[None, int]]) -> None:
        carried.append(len(some))
        for one in some:
            one.done(0)

    where = Endpoint(node="gpu-7")
    requests = [Request(f"t{n}", entry(n), source=where, target=where) for n in range(600)]
    await asyncio.gather(*(company.join(transport, "gpu-7", carry, r, None) for r in requests))
    assert carried == sizes


async def test_who_waits_no_longer_leaves_what_landed_known(
    tmp_path: Path, inventory: Inventory
) -> None:
    """Its time was up while the group was on its way: the file is there, known as received."""
    many = Many()
    many.goes_on.clear()
    carrying = manager(tmp_path, inventory, many)
    first, second = (asyncio.create_task(carrying.transfer(order(n))) for n in range(2))
    assert await many.asking.get() == 2
    first.cancel()
    many.goes_on.set()
    assert isinstance(await second, events.TransferSucceeded)
    assert await inventory.arrived(["data/0.bin"]) == [entry(0)]


async def test_p4_what_appears_was_expected_before_and_what_it_moved_was_noted(
    tmp_path: Path, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies right after the names were given takes none of it for its own, and still
    says what moved.
    """

    class Died(Exception):
        pass

    def dies(group: Group) -> None:
        commit(group)
        raise Died

    commit = Group.commit
    monkeypatch.setattr(Group, "commit", dies)
    died = await asyncio.gather(
        *(manager(tmp_path, inventory, Many()).transfer(order(n)) for n in range(5)),
        return_exceptions=True,
    )
    assert not any(isinstance(one, events.TransferSucceeded) for one in died)
    await inventory.close()
    monkeypatch.undo()
    again = Inventory(tmp_path, "train-1")
    paths = [f"data/{number}.bin" for number in range(5)]
    await again.arrived(paths)
    assert not any(again.keeps_own(path) for path in paths)
    carrying = manager(tmp_path, again, many := Many())
    results = await asyncio.gather(*(carrying.transfer(order(n)) for n in range(5)))
    assert many.asked == []
    moved = [one.bytes_transferred for one in results]
    assert moved == [len(content(number)) for number in range(5)]
    await again.close()


async def test_what_ends_the_question_is_everybodys_failure(
    tmp_path: Path, inventory: Inventory
) -> None:
    """A refusal fails each of them, and so does what nobody expected."""
    refused = manager(tmp_path, inventory, Many(fails=Refused("no")))
    results = await asyncio.gather(*(refused.transfer(order(n)) for n in range(3)))
    assert [getattr(result, "error_class", "") for result in results] == ["Refused"] * 3
    surprised = manager(tmp_path, inventory, Many(fails=ZeroDivisionError()))
    results = await asyncio.gather(*(surprised.transfer(order(n)) for n in range(3)))
    assert [getattr(result, "error_class", "") for result in results] == ["Unforeseen"] * 3


async def test_a_file_of_the_nodes_own_is_not_replaced_by_one_of_a_group(
    tmp_path: Path, inventory: Inventory
) -> None:
    """What is refused before its transport is asked is not in the question."""
    (tmp_path / "elo.db").write_bytes(b"only ever merged")
    merged = replace(order(0), entry=replace(entry(0), path="elo.db"))
    many = Many()
    carrying = manager(tmp_path, inventory, many)
    results = await asyncio.gather(*map(carrying.transfer, (merged, order(1), order(2))))
    assert many.asked == [2]
    assert [type(result).__name__ for result in results] == [
        "TransferFailed",
        "TransferSucceeded",
        "TransferSucceeded",
    ]


class Sends:
    """A transport that pushes many at once; some are refused."""

    name = HTTP

    def __init__(self, *, refuses: Sequence[int] = ()) -> None:
        self.asked: list[list[bytes]] = []
        self._refuses = refuses

    async def fetch(
        self, request: Request, landing: Landing, throttle: Throttle, progress: Progress
    ) -> int:
        """Nobody fetches here."""
        raise AssertionError

    async def push(
        self, request: Request, file: Path, throttle: Throttle, progress: Progress
    ) -> int:
        """Nobody sends one alone."""
        raise AssertionError

    async def push_many(
        self, requests: Sequence[Request], files: Sequence[Path]
    ) -> Sequence[int | TransportError]:
        """They land, but those that are refused."""
        self.asked.append([file.read_bytes() for file in files])
        numbers = [int(request.transfer[1:]) for request in requests]
        return [
            Refused("no") if number in self._refuses else len(content(number)) for number in numbers
        ]

    async def close(self) -> None:
        """Nothing is open."""


async def test_what_is_sent_to_one_node_at_one_moment_goes_in_one_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own result: what is refused keeps no other from arriving."""
    (tmp_path / "data").mkdir()
    for number in range(20):
        (tmp_path / f"data/{number}.bin").write_bytes(content(number))
    mine, sends = Inventory(tmp_path, "gpu-7"), Sends(refuses=[3])
    files = {entry(number).checksum: tmp_path / f"data/{number}.bin" for number in range(20)}
    monkeypatch.setattr(mine, "locate", files.get)
    carrying = TransportManager("gpu-7", tmp_path, mine, {HTTP: sends})
    results = await asyncio.gather(*(carrying.transfer(order(n, HTTP)) for n in range(20)))
    assert sends.asked == [[content(number) for number in range(20)]]
    assert getattr(results.pop(3), "error_class", "") == "Refused"
    moved = [one.bytes_transferred for one in results if isinstance(one, events.TransferSucceeded)]
    assert moved == [len(content(number)) for number in range(20) if number != 3]
    await mine.close()


class Counting(MemoryLog):
    """A log that counts what it is asked, and may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.appends: list[int] = []
        self.publications = 0
        self.away = False

    async def append(self, facts: Sequence[Fact], guards: Sequence[Guard] = ()) -> Receipt:
        """As `Log.append`."""
        if self.away:
            raise LogUnavailable("away")
        self.appends.append(len(facts))
        return await super().append(facts, guards)

    async def publish(self, fact: Fact) -> Receipt:
        """As `Log.publish`."""
        if self.away:
            raise LogUnavailable("away")
        self.publications += 1
        return await super().publish(fact)


def result(number: int) -> Fact:
    """The result of a transfer."""
    event = events.TransferFailed(
        transfer=f"t{number}",
        node="train-1",
        source="gpu-7",
        target="train-1",
        entry=entry(number),
        attempt=1,
        error="gone",
        error_class="EntryMissing",
    )
    return node_fact(event, "train-1", f"result-{number}")


async def test_results_of_one_moment_are_said_in_one_append(tmp_path: Path) -> None:
    """Those ready later go with the next; one that comes twice is one fact."""
    log = Counting()
    saying = Saying(log, Outbox(tmp_path))
    await asyncio.gather(*(saying.say(result(n)) for n in (1, 2, 3, 3)))
    await saying.say(result(4))
    assert (log.appends, log.publications) == ([3], 1)
    assert (await log.state()).last_sequence == 4


async def test_one_that_was_said_before_keeps_no_other_unsaid(tmp_path: Path) -> None:
    """An append takes all or none: the others are said by themselves then."""
    log = Counting()
    await log.publish(result(2))
    saying = Saying(log, Outbox(tmp_path))
    await asyncio.gather(*(saying.say(result(n)) for n in (1, 2, 3)))
    assert (await log.state()).last_sequence == 3


async def test_what_the_log_could_not_be_told_is_stored_before_anybody_hears_of_it(
    tmp_path: Path,
) -> None:
    """Each caller has the error, and the outbox has each fact."""
    log = Counting()
    outbox = Outbox(tmp_path / "outbox")
    saying = Saying(log, outbox)
    log.away = True
    for numbers in ((1, 2, 3), (4,)):
        ends = await asyncio.gather(
            *(saying.say(result(n)) for n in numbers), return_exceptions=True
        )
        assert [type(end) for end in ends] == [LogUnavailable] * len(numbers)
    log.away = False
    assert await outbox.drain(log) == 4
    assert (await log.state()).last_sequence == 4
