"""Whether a node may go: by the catalog first, then only by what was read again elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from dataplane.draining import done_at, reason_of
from dataplane.planner import Known
from dataplane.policy import Policy
from dataplane.proving import answer_proofs
from dataplane.safety import Holding, holding, lasting_without, not_safe, unproven, unsafe
from streams import events
from streams.memory import MemoryBus
from streams.values import DataEntry, Proof, Trait
from tests.spec import (
    Said,
    Story,
    Tellable,
    answers,
    copied,
    games_of,
    given,
    holds,
    node,
    opens,
    player,
    said_what_is_owed,
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
    assert "nothing moves: 1 entries will have 0 of 3" in reason_of(row, left, 1, 1)


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
