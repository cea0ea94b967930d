"""What may be deleted: never what is not proven elsewhere, whoever decides what in which order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from dataplane.deletion import Keep, Witnesses, copies_chain, done, reserve, settle, witnesses
from dataplane.policy import NodeRule, Policy
from projections.deletions import DeletionRow, DeletionState
from streams import events
from streams.codec import Fact
from streams.values import DataEntry, Proof, Trait
from tests.spec import (
    Said,
    Story,
    answers,
    assigned,
    copied,
    games_of,
    given,
    holds,
    model,
    node,
    npz,
    opens,
    played,
    player,
    said_what_is_owed,
    succeeded_with,
    trainer,
)

GAMES = games_of("gpu-1")
#: A player's games on three more nodes.
COPIED = (
    player("gpu-1"),
    *(trainer(f"train-{n}") for n in (1, 2, 3)),
    holds("gpu-1", GAMES),
    *(copied(GAMES.path, f"train-{n}") for n in (1, 2, 3)),
)


def asks(target: str, path: str = GAMES.path, *, id: str = "d1", **more: Any) -> Said:
    """Somebody asks for a copy to be deleted."""
    return Said(events.DeletionRequested(path=path, node=target, **more), by="boss", id=id)


def proof(name: str, entry: DataEntry, *, proven: bool = True) -> Proof:
    """What a node says of its copy."""
    checksum = entry.checksum if proven else ""
    return Proof(node=name, proven=proven, checksum=checksum, reason="" if proven else "rotten")


def reserved(story: Story, id: str = "d1") -> events.Event:
    """The first decision on a request, told to the story."""
    row = story.view.deletion(id)
    assert row is not None
    fact = reserve(row, story.view, story.policy)
    story.tell(fact)
    return fact.event


def settled(story: Story, *proven: str, id: str = "d1") -> events.Event:
    """The second decision, where of those who are asked these prove their copy."""
    row = story.view.deletion(id)
    assert row is not None
    asked = witnesses(row, story.view, story.policy)
    assert isinstance(asked, Witnesses), asked
    proofs = [proof(name, asked.entry, proven=name in proven) for name in asked.nodes]
    fact = settle(row, asked, proofs, story.view, story.policy)
    story.tell(fact)
    return fact.event


# The rules


def test_a_copy_goes_when_enough_others_are_proven() -> None:
    """K22: reserved, proven by two, granted, done."""
    story = given(*COPIED, asks("gpu-1"))
    assert isinstance(reserved(story), events.DeletionReserved)
    granted = settled(story, "train-1", "train-3")
    assert isinstance(granted, events.DeletionGranted)
    assert [one.node for one in granted.proofs] == ["train-1", "train-3"]
    row = story.view.deletion("d1")
    assert row is not None
    story.tell(done(row, deleted=True, freed_bytes=1000, reason=""))
    ended = story.view.deletion("d1")
    assert ended is not None
    assert (ended.state, ended.freed_bytes) == (DeletionState.DELETED, 1000)
    assert not list(story.view.open_deletions())
    assert story.view.deletion_of(GAMES.path, GAMES.checksum) is None


def test_copies_that_are_only_believed_are_no_proof() -> None:
    """K22: the catalog knows three more, one of them can prove it."""
    story = given(*COPIED, asks("gpu-1"))
    reserved(story)
    refused = settled(story, "train-2")
    assert isinstance(refused, events.DeletionRefused)
    assert refused.rule == "unproven"
    assert "1 of 2 copies elsewhere are proven" in refused.reason
    assert "train-1: rotten" in refused.reason


def test_p8_a_source_is_not_deleted_because_some_copy_arrived() -> None:
    """One of three targets has it: that is one copy elsewhere, and nobody is even asked."""
    story = given(
        player("gpu-1"),
        trainer("train-1"),
        trainer("train-2"),
        holds("gpu-1", GAMES),
        copied(GAMES.path, "train-1"),
        asks("gpu-1"),
    )
    refused = reserved(story)
    assert isinstance(refused, events.DeletionRefused)
    assert refused.rule == "too-few-copies"
    assert "only train-1 has one" in refused.reason


@pytest.mark.parametrize(
    "entry",
    [
        npz(),
        model(),
        model(name="sub/canonical_square8_2p.pth"),
        model(name="candidate_7.pth"),
        msgspec.structs.replace(GAMES, path="metadata/unified_elo.db"),
        msgspec.structs.replace(GAMES, path="m/model_registry.db"),
        msgspec.structs.replace(GAMES, path="backups/gpu-1/hex8_2p.db"),
        msgspec.structs.replace(GAMES, path="x/coordination/state.db"),
        msgspec.structs.replace(GAMES, path="npz/hex8_2p.NPZ"),
        msgspec.structs.replace(GAMES, path="models/Canonical_hex8_2p.pth"),
        msgspec.structs.replace(GAMES, path="models/gpu-1/candidate_7/weights.bin"),
        msgspec.structs.replace(GAMES, path="metadata/gpu-1/Elo.sqlite3"),
    ],
    ids=lambda entry: entry.path,
)
def test_k22_some_things_are_never_deleted(entry: DataEntry) -> None:
    """However many copies there are."""
    story = given(
        *(trainer(f"train-{n}") for n in range(5)),
        *(holds(f"train-{n}", entry) for n in range(5)),
        asks("train-0", entry.path),
    )
    refused = reserved(story)
    assert isinstance(refused, events.DeletionRefused)
    assert refused.rule in ("never-deleted", "merged")


def test_copies_that_may_vanish_or_share_the_disk_do_not_count() -> None:
    """K8: on an ephemeral node, one that is to go, the same NFS mount; two on one mount are one."""
    story = given(
        player("gpu-1", nfs_group="pool"),
        trainer("train-1", nfs_group="pool"),
        trainer("train-2", nfs_group="other"),
        trainer("train-3", nfs_group="other"),
        node("spot", traits=[Trait.EPHEMERAL]),
        trainer("going"),
        holds("gpu-1", GAMES),
        *(copied(GAMES.path, name) for name in ("train-1", "train-2", "train-3", "spot", "going")),
        events.NodeTerminating(node="going"),
        asks("gpu-1"),
    )
    refused = reserved(story)
    assert isinstance(refused, events.DeletionRefused)
    assert refused.rule == "too-few-copies"
    assert "only train-2, train-3 has" in refused.reason


def test_the_policy_says_which_nodes_may_vanish() -> None:
    """K8: there is one definition of ephemeral, and the policy may extend it by name."""
    story = given(
        player("gpu-1"),
        trainer("train-1"),
        trainer("rented-2"),
        holds("gpu-1", GAMES),
        *(copied(GAMES.path, name) for name in ("train-1", "rented-2")),
        asks("gpu-1"),
    )
    row = story.view.deletion("d1")
    assert row is not None
    policy = Policy(nodes={"rented-*": NodeRule(traits=(Trait.EPHEMERAL,))})
    refused = reserve(row, story.view, policy).event
    assert isinstance(refused, events.DeletionRefused)
    assert "only train-1 has" in refused.reason
    assert isinstance(reserve(row, story.view, Policy()).event, events.DeletionReserved)


def test_the_bucket_counts_as_a_place() -> None:
    """A proven object and one more copy are two."""
    story = given(*COPIED[:2], holds("gpu-1", GAMES), copied(GAMES.path, "train-1"))
    story.tell(succeeded_with(GAMES, "s3", source="gpu-1"), asks("gpu-1"))
    reserved(story)
    assert isinstance(settled(story, "train-1", "s3"), events.DeletionGranted)


def test_p22_an_old_version_goes_by_the_copies_of_the_new_one() -> None:
    """What must be proven elsewhere is the content that counts."""
    newer = games_of("gpu-1", "second")
    story = given(*COPIED, holds("gpu-1", newer), asks("train-1"))
    refused = reserved(story)
    assert isinstance(refused, events.DeletionRefused)
    assert refused.rule == "too-few-copies"
    story.tell(copied(GAMES.path, "train-2"), asks("train-1", id="d2"))
    assert isinstance(reserved(story, "d2"), events.DeletionReserved)
    granted = settled(story, "gpu-1", "train-2", id="d2")
    assert isinstance(granted, events.DeletionGranted)
    assert {one.checksum for one in granted.proofs} == {newer.checksum}


def test_a_content_that_never_counted_is_nobodys_copy() -> None:
    """A conflicting file is the only one of its content: it stays."""
    other = model("other", name="hex8_2p_best.pth")
    mine = model("mine", name="hex8_2p_best.pth")
    story = given(
        *COPIED[:4],
        holds("train-1", mine),
        copied(mine.path, "train-2"),
        copied(mine.path, "train-3"),
        holds("gpu-1", other),
        asks("gpu-1", mine.path),
    )
    refused = reserved(story)
    assert isinstance(refused, events.DeletionRefused)
    assert refused.rule == "conflict"


def test_what_is_under_way_stays() -> None:
    """Neither the source of a running transfer goes, nor what is about to come."""
    story = given(
        *COPIED,
        trainer("train-4"),
        opens("c1", played("gpu-1")),
        answers("c1", "gpu-1", GAMES),
        said_what_is_owed,
        assigned,
        asks("gpu-1"),
    )
    refused = reserved(story)
    assert isinstance(refused, events.DeletionRefused)
    assert refused.rule == "in-use"


def test_another_content_than_was_meant_stays() -> None:
    """Who names a checksum means that one."""
    story = given(*COPIED, asks("gpu-1", checksum=games_of("gpu-1", "old").checksum))
    refused = reserved(story)
    assert isinstance(refused, events.DeletionRefused)
    assert refused.rule == "another-content"


def test_one_copy_of_an_entry_is_deleted_at_a_time() -> None:
    """The second is refused at once, and may be asked for again when the first has ended."""
    story = given(*COPIED, asks("gpu-1"), asks("train-1", id="d2"))
    reserved(story)
    refused = reserved(story, "d2")
    assert isinstance(refused, events.DeletionRefused)
    assert refused.rule == "another-deletion"


def test_a_refusal_is_not_said_between_a_grant_and_its_end() -> None:
    """A node obeys a grant only while it is the last word on the entry's copies."""
    story = given(*COPIED, asks("gpu-1"), asks("train-1", id="d2"))
    reserved(story)
    settled(story, "train-2", "train-3")
    chain = copies_chain(GAMES.path, GAMES.checksum)
    grant = story.view.last_sequence_of(chain)
    assert isinstance(reserved(story, "d2"), events.DeletionRefused)
    assert story.view.last_sequence_of(chain) == grant


def test_a_refusal_that_comes_after_the_reservation_changes_nothing() -> None:
    """Two coordinators decided on the same request, and the log took the reservation first."""
    story = given(*COPIED, asks("gpu-1"))
    row = story.view.deletion("d1")
    assert row is not None
    reserved(story)
    story.tell(reserve(row, given(player("gpu-1")).view, story.policy))
    still = story.view.deletion("d1")
    assert still is not None
    assert still.state is DeletionState.RESERVED


def test_a_new_version_between_the_steps_refuses() -> None:
    """What was proven is not what counts any more."""
    story = given(*COPIED, asks("train-1"))
    reserved(story)
    row = story.view.deletion("d1")
    assert row is not None
    asked = witnesses(row, story.view, story.policy)
    assert isinstance(asked, Witnesses)
    proofs = [proof(name, asked.entry) for name in asked.nodes]
    newer = games_of("gpu-1", "second")
    story.tell(holds("gpu-1", newer), holds("train-2", newer), holds("train-3", newer))
    fact = settle(row, asked, proofs, story.view, story.policy)
    assert isinstance(fact.event, events.DeletionRefused)
    assert fact.event.rule == "changed"


def test_every_decision_is_said_where_it_is_guarded() -> None:
    """One subject for all decisions on the copies of one entry."""
    story = given(*COPIED, asks("gpu-1"))
    reserved(story)
    settled(story, "train-1", "train-2")
    chain = copies_chain(GAMES.path, GAMES.checksum)
    assert story.view.last_sequence_of(chain) == len(story.facts)


# In any order


class Race:
    """Nodes with copies, and deciders that act on readings as old as they like."""

    def __init__(self, names: list[str], *, guarded: bool = True) -> None:
        self.holders = set(names)
        self.guarded = guarded
        self.story = given(*(player(name) for name in names), holds(names[0], GAMES))
        for name in names[1:]:
            self.story.tell(copied(GAMES.path, name))
        self.chain = copies_chain(GAMES.path, GAMES.checksum)
        self.in_hand: list[tuple[Fact, int]] = []
        self.orders: list[tuple[str, str]] = []
        self.gone: list[str] = []
        self.requests = 0
        self.fewest = len(names)

    def last(self) -> int:
        """What guards a decision."""
        return self.story.view.last_sequence_of(self.chain)

    def ask(self, name: str) -> None:
        """A deletion is requested."""
        self.requests += 1
        self.story.tell(asks(name, id=f"d{self.requests}"))

    def decide(self, pick: int) -> None:
        """Somebody decides on some deletion as it is now, and keeps that in hand."""
        rows = list(self.story.view.open_deletions())
        if not rows:
            return
        row = rows[pick % len(rows)]
        if row.state is DeletionState.REQUESTED:
            fact = reserve(row, self.story.view, self.story.policy)
        elif row.state is DeletionState.RESERVED:
            fact = self.prove(row)
        else:
            self.order(row)
            fact = done(row, deleted=False, freed_bytes=0, reason="withdrawn")
        self.in_hand.append((fact, self.last()))

    def prove(self, row: DeletionRow) -> Fact:
        """The others are asked, and tell the truth of this moment."""
        asked = witnesses(row, self.story.view, self.story.policy)
        if isinstance(asked, Keep):
            asked = Witnesses(GAMES, ())
        proofs = [proof(n, asked.entry, proven=n in self.holders) for n in asked.nodes]
        return settle(row, asked, proofs, self.story.view, self.story.policy)

    def order(self, row: DeletionRow) -> None:
        """The node is told to delete; it may hear that much later."""
        grant = self.story.facts[self.last() - 1].id
        self.orders.append((row.node, grant))

    def append(self, pick: int) -> None:
        """A decision reaches the log, which refuses it where its guard does not hold."""
        if not self.in_hand:
            return
        fact, guard = self.in_hand.pop(pick % len(self.in_hand))
        known = {recorded.id for recorded in self.story.facts}
        if fact.id not in known and (guard == self.last() or not self.guarded):
            self.story.tell(fact)

    def obey(self, pick: int) -> None:
        """A node hears of an order, and deletes if its grant still is the last word."""
        if not self.orders:
            return
        name, grant = self.orders.pop(pick % len(self.orders))
        if self.story.facts[self.last() - 1].id == grant or not self.guarded:
            self.holders.discard(name)
            self.gone.append(name)
            self.fewest = min(self.fewest, len(self.holders))

    def say(self, pick: int) -> None:
        """The log hears that a copy is gone."""
        if self.gone:
            name = self.gone.pop(pick % len(self.gone))
            self.story.tell(events.FilesRemoved(node=name, paths=(GAMES.path,)))

    def finish(self) -> None:
        """Everything that is open goes its way to the end."""
        for _ in range(30):
            self.decide(0)
            self.obey(0)
            self.append(0)
            self.say(0)


NAMES = [f"gpu-{n}" for n in range(1, 6)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "decide", "decide", "append", "append", "obey", "say"]),
        st.integers(0, 7),
    ),
    min_size=10,
    max_size=60,
)


def run(race: Race, steps: list[tuple[str, int]]) -> int:
    """Take these steps; the fewest copies there ever were."""
    for what, pick in steps:
        act: Callable[[int], None] = {
            "ask": lambda n: race.ask(NAMES[n % len(NAMES)]),
            "decide": race.decide,
            "append": race.append,
            "obey": race.obey,
            "say": race.say,
        }[what]
        act(pick)
    race.finish()
    return race.fewest


@settings(max_examples=60, deadline=None)
@sampled(steps=STEPS)
def test_p8_no_order_of_facts_leaves_fewer_copies_than_the_minimum(
    steps: list[tuple[str, int]],
) -> None:
    """K22: decisions on old readings, late orders, late news of what is gone: two remain."""
    assert run(Race(NAMES), steps) >= 2


@pytest.mark.parametrize(("guarded", "left"), [(True, 2), (False, 1)])
def test_an_order_that_comes_late_is_not_obeyed(guarded: bool, left: int) -> None:
    """Its grant was withdrawn and another copy went; a node that did not ask would leave one."""
    race = Race(NAMES[:3], guarded=guarded)
    race.ask(NAMES[0])
    for _ in range(3):
        race.decide(0)
        race.append(0)
    assert race.orders, "the node was told to delete, and has not heard it yet"
    assert not list(race.story.view.open_deletions()), "nobody waits for it any more"
    race.ask(NAMES[1])
    for _ in range(2):
        race.decide(0)
        race.append(0)
    race.decide(0)
    race.obey(1)
    race.obey(0)
    assert race.fewest == left
