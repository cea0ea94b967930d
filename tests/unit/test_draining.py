"""Whether a node may go: by the catalog first, then only by what was read again elsewhere."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from dataplane.api import Published
from dataplane.draining import (
    Drain,
    Seconds,
    begun,
    cancel,
    done_at,
    estimate,
    not_to_go,
    rate_from,
    reason_of,
)
from dataplane.planner import Known
from dataplane.policy import Policy
from dataplane.proving import Untold, answer_proofs, answer_untold, untold
from dataplane.safety import Holding, Left, holding, lasting_without, not_safe, unproven, unsafe
from projections.cluster import ClusterView
from streams import events
from streams.memory import MemoryBus
from streams.values import DataEntry, Proof, Role, Trait, Transport, TransportResult
from tests.spec import (
    Said,
    Story,
    Tellable,
    answers,
    assigned,
    copied,
    entry,
    games_of,
    given,
    holds,
    node,
    opens,
    played,
    player,
    said_what_is_owed,
    succeeded,
    succeeded_with,
    trainer,
)

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


def elsewhere(*nodes: str) -> Callable[[DataEntry], list[str]]:
    """Where an entry is besides some nodes, wherever that is."""
    return lambda entry: [place for place in entry.locations if place not in nodes]


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
    assert not_safe_on(story, "gpu-1", 1) == {FIRST.path: ()}
    assert not_safe_on(story, "gpu-1", 2) == {FIRST.path: (), SECOND.path: ("gpu-2",)}
    assert not_safe_on(story, "t1", 1) == {FIRST.path: ()}


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        (node("other"), True),
        (node("other", traits=[Trait.EPHEMERAL]), False),
        (node("other", nfs_group="rack"), False),
    ],
    ids=["lasting", "may vanish itself", "sees the same disk"],
)
def test_k8_only_copies_that_last_keep_a_content_safe(
    other: events.NodeRegistered, counts: bool
) -> None:
    """K5, K8: a copy on a spot node, or on the mount of the node that goes, is none."""
    story = given(player("gpu-1", nfs_group="rack"), other, holds("gpu-1", FIRST))
    story.tell(copied(FIRST.path, "other"))
    assert not_safe_on(story, "gpu-1", 1) == ({} if counts else {FIRST.path: ()})
    story.tell(events.HostOffline(node="other", reason="away"))
    assert not_safe_on(story, "gpu-1", 1) == {FIRST.path: ()}


def not_safe_on(story: Story, node: str, copies: int) -> dict[str, tuple[str, ...]]:
    """Paths that are not safe without a node, and where else they are."""
    view = story.view
    counts = lasting_without(Known(Policy(), view, story.now), node)
    left = unsafe(node, view.catalog.entries(node=node), counts, copies)
    return {one.path: one.elsewhere for one in left}


def being_deleted(node: str, entry: DataEntry, *, granted: bool) -> list[Tellable]:
    """A copy is to be deleted: that is reserved, or granted."""
    same: Any = {"path": entry.path, "checksum": entry.checksum, "node": node, "request": "del"}
    asked = events.DeletionRequested(path=entry.path, node=node, requester="ops")
    steps: list[Tellable] = [
        Said(asked, by="ops", id="del"),
        Said(events.DeletionReserved(**same), chain="copies"),
    ]
    return [*steps, *([Said(events.DeletionGranted(**same), chain="copies")] if granted else [])]


@pytest.mark.parametrize("granted", [False, True], ids=["reserved", "granted"])
def test_k8_a_copy_that_is_being_deleted_keeps_nothing_safe(granted: bool) -> None:
    """Nor does one on its mount: it is the same file. Once it is kept after all it counts again."""
    story = given(
        player("gpu-1"),
        node("a", nfs_group="rack"),
        node("b", nfs_group="rack"),
        holds("gpu-1", FIRST),
    )
    story.tell(copied(FIRST.path, "a"), copied(FIRST.path, "b"))
    assert not_safe_on(story, "gpu-1", 1) == {}
    story.tell(*being_deleted("b", FIRST, granted=granted))
    assert not_safe_on(story, "gpu-1", 1) == {FIRST.path: ()}
    refused = events.DeletionRefused(path=FIRST.path, node="b", request="del", rule="x", reason="y")
    story.tell(Said(refused, chain="copies"))
    assert not_safe_on(story, "gpu-1", 1) == {}


def test_k8_of_two_that_go_neither_relies_on_a_copy_that_is_being_deleted() -> None:
    """Else all three would be gone: the one that is deleted, and both that were told they may."""
    story = given(trainer("a"), trainer("b"), trainer("c"), holds("a", FIRST))
    story.tell(copied(FIRST.path, "b"), copied(FIRST.path, "c"))
    story.tell(*being_deleted("a", FIRST, granted=True))
    story.tell(opens("cb", events.NodeTerminating(node="b")))
    story.tell(opens("cc", events.NodeTerminating(node="c")))
    for name in ("b", "c"):
        assert not_safe_on(story, name, 1) == {FIRST.path: ()}


MEANWHILE: dict[str, list[Tellable]] = {
    "it is to be deleted there": being_deleted("vault", FIRST, granted=False),
    "its holder is to go": [Said(events.NodeTerminating(node="vault"), by="vault", id="c2")],
    "the node got something new": [holds("gpu-1", SECOND)],
}


@pytest.mark.parametrize("what", [None, *MEANWHILE])
async def test_k9_what_happens_while_a_copy_is_read_counts(what: str | None) -> None:
    """A large file takes minutes to read: whoever has proven it may have lost it by the end."""
    story = given(player("gpu-1"), node("vault"), holds("gpu-1", FIRST))
    story.tell(copied(FIRST.path, "vault"))

    async def prover(path: str, checksum: str) -> Proof:
        story.tell(*(MEANWHILE[what] if what else []))
        return Proof(node="vault", proven=True, checksum=checksum)

    async def read() -> Holding:
        view = story.view
        return holding(Known(Policy(), view, story.now), view, "gpu-1")

    bus = MemoryBus()
    answering = await answer_proofs(bus, "vault", prover)
    found, left = await not_safe(bus, read, 1)
    await answering.close()
    if what is None:
        assert (left, found.elsewhere(FIRST)) == ([], ("vault",))
    elif "new" in what:
        assert [(one.path, one.why) for one in left] == [
            (SECOND.path, "gpu-1 has got it since it was asked what it holds")
        ]
    else:
        assert [(one.path, one.proven) for one in left] == [(FIRST.path, 0)]
        assert left[0].why.startswith("vault proved it, and has been told to delete it or to go")


def test_k8_what_is_on_its_way_to_a_node_counts_as_held_there() -> None:
    """It may have arrived, and who has it lost it since: so it must be proven elsewhere as well."""
    story = given(trainer(), player("gpu-1"), opens("c1", played()), answers("c1", "gpu-1", FIRST))
    story.tell(said_what_is_owed)

    def found() -> Holding:
        return holding(Known(Policy(), story.view, story.now), story.view, "train-1")

    assert found().held == []
    story.tell(assigned)
    [coming] = found().held
    assert (coming.path, coming.checksum) == (FIRST.path, FIRST.checksum)
    assert found().elsewhere(coming) == ("gpu-1",)
    story.tell(events.FilesRemoved(node="gpu-1", paths=(FIRST.path,)))
    [left] = unsafe("train-1", found().held, found().elsewhere, 1)
    assert (left.path, left.elsewhere) == (FIRST.path, ())
    story.tell(succeeded())
    assert [one.checksum for one in found().held] == [FIRST.checksum]


def test_of_a_chain_that_has_given_up_nobody_is_told_when_it_will_be_done() -> None:
    """As long as it is open that is said; then why nothing moves any more."""
    story = given(
        player("gpu-1"),
        holds("gpu-1", FIRST),
        opens("c1", events.NodeTerminating(node="gpu-1")),
    )
    view = story.view
    left = unsafe("gpu-1", view.catalog.entries(node="gpu-1"), elsewhere("gpu-1"), 1)
    [row] = view.open_chains()
    assert done_at(row, 5.0, 100.0) == 105.0
    assert reason_of(row, left, 1, 1) == "1 of 1 files are not safe elsewhere"
    story.tell(answers("c1", "gpu-1", FIRST), said_what_is_owed)
    [row] = story.view.ended_chains()
    assert done_at(row, 5.0, 100.0) is None
    assert "nothing moves: 1 entry will have 0 of 3" in reason_of(row, left, 1, 1)


def leaves(chain: str, deadline: float | None = None, node: str = "gpu-1") -> Said:
    """A node is to go."""
    return opens(chain, events.NodeTerminating(node=node, deadline=deadline))


def begun_by(story: Story, deadline: float | None) -> tuple[str, float | None] | None:
    """What empties gpu-1, as a drain with a deadline finds it."""
    return begun(story.view.open_chains(), "gpu-1", deadline)


def test_a_drain_is_begun_once_and_again_for_an_earlier_deadline() -> None:
    """A later one is kept by the earlier; with none, what was said before counts."""
    story = given(player("gpu-1"), leaves("other", node="gpu-2"), opens("c0", played("gpu-1")))
    assert begun_by(story, None) is None
    story.tell(leaves("c1"))
    assert begun_by(story, None) == ("c1", None)
    assert begun_by(story, 900.0) is None
    story.tell(leaves("c2", 900.0))
    assert begun_by(story, 899.0) is None
    assert begun_by(story, None) == begun_by(story, 900.0) == begun_by(story, 901.0)
    assert begun_by(story, None) == ("c2", 900.0)


def test_a_drain_that_was_taken_back_is_begun_anew() -> None:
    """The chain that is still open then is on its way to its end."""
    story = given(player("gpu-1"), leaves("c1"), events.NodeDrainCancelled(node="gpu-1"))
    assert begun_by(story, None) is None
    assert begun_by(story.tell(leaves("c2")), None) == ("c2", None)


def test_an_earlier_deadline_reaches_what_is_planned_already() -> None:
    """What waits for the first chain is due by the second one's time."""
    story = given(
        node("vault", Role.STORAGE), player("gpu-1"), leaves("c1"), answers("c1", "gpu-1", FIRST)
    )
    story.tell(said_what_is_owed)
    assert [row.deadline for row in story.view.pending()] == [None]
    story.tell(leaves("c2", 900.0), answers("c2", "gpu-1"), said_what_is_owed)
    assert [(row.target, row.deadline) for row in story.view.pending()] == [("vault", 900.0)]


def left_over(*sizes: int) -> list[Left]:
    """So many bytes are not safe elsewhere."""
    return [Left(f"games/{n}.db", "sha256:0", size, (), 0, "") for n, size in enumerate(sizes)]


def moved(size_bytes: int, seconds: float) -> events.TransferSucceeded:
    """A file has left gpu-1 in so many seconds."""
    result = TransportResult(
        success=True,
        transport_used=Transport.HTTP_FETCH,
        bytes_transferred=size_bytes,
        duration_seconds=seconds,
        remote="gpu-1",
    )
    file = entry("games/gpu-1/before.db", size_bytes=size_bytes)
    return msgspec.structs.replace(
        succeeded_with(file, "vault", source="gpu-1", moved=size_bytes), results=(result,)
    )


def test_how_long_a_drain_takes_is_what_is_left_by_the_rate_of_late() -> None:
    """16 MiB at 1 MiB/s by the log, and half as long again: done in 24 s, or begun 24 s before."""
    mib = 1 << 20
    story = given(node("vault"), player("gpu-1"), leaves("c1"))
    assert rate_from(story.view, "gpu-1", 8 * mib) == 0.0
    rate = rate_from(story.tell(moved(8 * mib, 8.0)).view, "gpu-1", 8 * mib)
    assert rate == mib
    [row] = story.view.open_chains()
    left = left_over(12 * mib, 4 * mib)
    assert estimate(row, left, rate, 1_100.0, 1_000.0) == Seconds(16 * mib, 1_024.0, 1_076.0)
    assert estimate(row, left, rate, None, 1_000.0) == Seconds(16 * mib, 1_024.0, None)
    assert estimate(row, [], rate, 1_100.0, 1_000.0) == Seconds(0, None, 1_100.0)


def test_nobody_is_told_seconds_that_nobody_knows() -> None:
    """Without a rate there is no last moment, and without an open chain nothing will be done."""
    story = given(player("gpu-1"), leaves("c1"))
    [row] = story.view.open_chains()
    assert estimate(row, left_over(5), 0.0, 1_100.0, 1_000.0) == Seconds(5, None, None)
    assert estimate(None, left_over(5), 5.0, 1_100.0, 1_000.0) == Seconds(5, None, 1_098.5)


def test_of_a_node_that_is_not_to_go_nobody_is_told_that_it_may() -> None:
    """Its copies may be what another one's deletion, or drain, relies on."""
    assert not_to_go("gpu-1", 3, 1) == (
        "each of 3 files was just read in another place, but gpu-1 is not said to go: others may "
        "count on its copies until `dataplane drain gpu-1`"
    )


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (Untold(), ""),
        (Untold(files=2), "2 files of gpu-1 have changed since it said what it holds; ask again"),
        (
            Untold(files=2, problems=("x.db is being written",)),
            "gpu-1 could not read everything: x.db is being written",
        ),
    ],
)
async def test_a_node_is_asked_whether_it_has_told_of_all_it_holds(found: Untold, why: str) -> None:
    """What nobody has heard of is safe nowhere; whom nobody hears may hold anything."""
    bus = MemoryBus()
    assert "gpu-1 gave no answer: what it holds now is not known" in await untold(bus, "gpu-1")

    async def look() -> Untold:
        return found

    answering = await answer_untold(bus, "gpu-1", look)
    assert await untold(bus, "gpu-1") == why
    await answering.close()


class Client:
    """A `DataPlane` on a story: what is said to it happens at once, and what it brings about."""

    def __init__(self, bus: MemoryBus, *, then: Sequence[Tellable] = ()) -> None:
        """`then` is what follows from the first thing that is said."""
        self.story = Story()
        # A drain asks what time it is.
        self.story.now = time.time()
        self.story.tell(node("vault", Role.STORAGE), player("gpu-1"), holds("gpu-1", FIRST))
        self.said: list[events.Event] = []
        self._then = then
        self._bus = bus
        self.config = SimpleNamespace(policy=Policy)

    @property
    def catalog(self) -> Any:
        """Made each time: a cycle would leave the story's store to be closed in any thread."""
        return SimpleNamespace(view=self._view, seen=self._seen)

    @contextmanager
    def _view(self) -> Iterator[ClusterView]:
        yield self.story.view

    async def _seen(self, sequence: int, timeout_s: float) -> None:
        assert sequence == len(self.story.facts)

    async def log(self) -> Any:
        """Its bus, and where its log ends."""

        async def state() -> Any:
            return SimpleNamespace(last_sequence=len(self.story.facts))

        return SimpleNamespace(bus=self._bus, state=state)

    async def publish(self, event: events.Event) -> Published:
        """Say it."""
        self.said.append(event)
        id = f"c{len(self.said)}"
        self.story.tell(Said(event, by="gpu-1", id=id), *self._then)
        return Published(id, id, len(self.story.facts))

    def drain(self) -> Drain:
        """The emptying of gpu-1."""
        return Drain(self, "gpu-1")  # type: ignore[arg-type]


async def test_who_asks_is_told_yes_only_of_a_node_that_goes_and_has_told_of_all() -> None:
    """Nothing is said by asking, whatever the answer; what it rests on stands beside it."""
    found = Untold(files=1)

    async def look() -> Untold:
        return found

    async with places(vault=True) as bus:
        client = Client(bus)
        silent = await client.drain().ask()
        assert silent.reason.startswith("gpu-1 gave no answer")
        assert [left.path for left in silent.left] == [FIRST.path]
        assert silent.bytes_left == FIRST.size_bytes
        assert silent.rests_on == (
            "the last word of gpu-1 on what it holds, and who else holds it by the log"
        )
        client.story.tell(copied(FIRST.path, "vault"))
        answering = await answer_untold(bus, "gpu-1", look)
        asked = await client.drain().ask()
        assert (asked.may_go, asked.bytes_left) == (False, 0)
        assert asked.reason.startswith("1 files of gpu-1 have changed")
        found = Untold()
        asked = await client.drain().ask()
        assert (asked.may_go, asked.left) == (False, ())
        assert asked.reason == not_to_go("gpu-1", 1, 1)
        client.story.tell(leaves("c9", 900.0))
        sure = await client.drain().ask()
        assert (sure.may_go, sure.chain, sure.deadline) == (True, "c9", 900.0)
        assert sure.rests_on == (
            "gpu-1 has just looked, and has told of all it holds, and others, who read it again "
            "just now"
        )
        await answering.close()
    assert client.said == []


async def test_what_is_taken_back_while_somebody_waits_for_it_is_not_begun_anew() -> None:
    """Bytes had moved, after which a node that goes is asked again what it holds."""
    stays = events.NodeDrainCancelled(node="gpu-1")
    emptied = [answers("c1", "gpu-1"), said_what_is_owed, assigned, succeeded(moved=7)]
    async with places(vault=True) as bus:
        client = Client(bus, then=[*emptied, stays, said_what_is_owed])
        verdict = await client.drain().wait(60.0)
    assert [events.type_name(event) for event in client.said] == ["NODE_TERMINATING"]
    assert verdict.reason == "gpu-1 stays after all: chain c1 empties it no more"
    assert not verdict.may_go


async def test_a_drain_is_taken_back_by_one_fact_if_there_is_any() -> None:
    """Said twice it would end what somebody has begun meanwhile."""
    client = Client(MemoryBus())
    plane: Any = client
    assert not (await cancel(plane, "gpu-1")).cancelled
    client.story.tell(leaves("c9"))
    assert (await cancel(plane, "gpu-1")).cancelled
    assert not (await cancel(plane, "gpu-1")).cancelled
    assert client.said == [events.NodeDrainCancelled(node="gpu-1", reason="drain --cancel")]


async def test_only_what_was_just_read_elsewhere_is_proven() -> None:
    """A rotten copy and a silent place prove nothing; another sound copy does (K22)."""
    others = elsewhere("gpu-1")
    async with places(good=True, rotten=False) as bus:
        both = held_at(FIRST, "gpu-1", "good", "rotten")
        assert await unproven(bus, [both], others, 1) == []
        [left] = await unproven(bus, [both], others, 2)
        assert (left.proven, left.elsewhere) == (1, ("good", "rotten"))
        assert "rotten: it reads otherwise" in left.why
        [left] = await unproven(bus, [held_at(SECOND, "gpu-1", "silent")], others, 1)
        assert "silent could not be asked" in left.why
