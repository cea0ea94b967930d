"""A sealed copy in the bucket: of use to who has the key, and a proof only while one has it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from dataplane.deletion import Witnesses, reserve, settle, witnesses
from dataplane.draining import bucket_said, reason_of
from dataplane.execution import choose
from dataplane.planner import Known, SyncPlanner
from dataplane.proving import answer_proofs
from dataplane.safety import lasting_without, unproven, unsafe
from dataplane.sweeps import Survey
from projections.transfers import TransferRow, TransferState
from streams import events
from streams.memory import MemoryBus
from streams.values import S3_NODE, DataEntry, Proof, Role, SyncPriority, Trait, Transport
from tests.spec import (
    Said,
    Story,
    answers,
    copied,
    games_of,
    given,
    holds,
    node,
    opens,
    player,
    policy_of,
    said_what_is_owed,
    succeeded_with,
    trainer,
)

KEY, OTHER = "00000000000000aa", "00000000000000bb"
GAMES = games_of("gpu-1")
POLICY = policy_of(s3={"enabled": True}, replication={"minimum": 2})


def backed_up(key: str = KEY, what: DataEntry = GAMES) -> events.TransferSucceeded:
    """`gpu-1` has stored it, sealed with a key or plain."""
    return succeeded_with(msgspec.structs.replace(what, sealed_with=key), S3_NODE, source="gpu-1")


def story(*more: events.Event, key: str = KEY) -> Story:
    """A player with a key, whose games are in the bucket, sealed with it."""
    return given(
        player("gpu-1", seal_key=KEY), *more, holds("gpu-1", GAMES), backed_up(key), policy=POLICY
    )


def in_bucket(told: Story) -> DataEntry:
    """The games as the catalog has them."""
    found = told.view.catalog.get(GAMES.path)
    assert found is not None
    return found


# What is known of it


def test_the_catalog_knows_what_opens_the_copy_in_the_bucket() -> None:
    """By the word of who stored it; once anybody has stored it plain, it needs no key."""
    told = story()
    assert in_bucket(told).sealed_with == KEY
    told.tell(copied(GAMES.path, "train-1"))
    assert in_bucket(told).sealed_with == KEY
    told.tell(backed_up(OTHER))
    assert in_bucket(told).sealed_with == OTHER
    told.tell(backed_up(""))
    assert in_bucket(told).sealed_with == ""
    told.tell(backed_up(KEY))
    assert in_bucket(told).sealed_with == ""


def test_what_a_bucket_says_again_in_a_new_log_says_its_key() -> None:
    """The catalog is brought back from manifests alone."""
    sealed = msgspec.structs.replace(GAMES, sealed_with=KEY)
    assert in_bucket(given(holds(S3_NODE, sealed))).sealed_with == KEY


# Who is sent there


@pytest.mark.parametrize(("key", "may"), [(KEY, True), (OTHER, False), ("", False)])
def test_the_bucket_is_no_source_for_who_has_not_the_key(key: str, may: bool) -> None:
    """He would be refused each time, and the bucket would be blamed."""
    told = story(trainer("train-1", seal_key=key))
    target = told.view.node("train-1")
    assert target is not None
    planner = SyncPlanner(POLICY, told.view)
    holders = ["gpu-1", S3_NODE]
    ranked = planner.rank_sources(holders, target, in_bucket(told))
    assert ranked == ["gpu-1", *([S3_NODE] if may else [])]
    plain = planner.rank_sources(holders, target, msgspec.structs.replace(GAMES))
    assert plain == holders


@pytest.mark.parametrize(
    ("sender", "target", "executor"),
    [(KEY, KEY, "gpu-1"), ("", KEY, "gpu-1"), (KEY, OTHER, "train-1"), (KEY, "", "train-1")],
)
def test_the_bucket_relays_only_what_its_target_can_open(
    sender: str, target: str, executor: str
) -> None:
    """Both are blocked: else the target is to try all the same, and says why it can't."""
    blocked = (Trait.NAT_BLOCKED,)
    told = given(
        player("gpu-1", seal_key=sender, traits=blocked),
        trainer("train-1", seal_key=target, traits=blocked),
        holds("gpu-1", GAMES),
    )
    row = TransferRow(
        id="x",
        entry=GAMES,
        source="gpu-1",
        target="train-1",
        state=TransferState.PENDING,
        priority=SyncPriority.NORMAL,
        transports=(Transport.HTTP_FETCH,),
        reason="",
        deadline=None,
        chains=("c",),
        queued_sequence=1,
        queued_at=told.now,
    )
    assert choose(row, ["gpu-1"], told.view, POLICY, told.now).executor == executor


# What it counts for


#: Another node, and whether a copy that needs the key is safe with it.
KEEPERS = [
    (node("hub", Role.STORAGE, seal_key=KEY), True),
    (node("hub", Role.STORAGE, seal_key=OTHER), False),
    (node("hub", Role.STORAGE), False),
    (node("hub", Role.STORAGE, seal_key=KEY, traits=[Trait.EPHEMERAL]), False),
]


@pytest.mark.parametrize(("hub", "safe"), KEEPERS)
def test_a_node_may_not_go_with_the_only_key(hub: events.NodeRegistered, safe: bool) -> None:
    """The bucket's copy would be of no use to anybody; what is plain there counts as ever."""
    told = story(hub)

    def left() -> list[str]:
        counts = lasting_without(Known(POLICY, told.view, told.now), "gpu-1")
        held = told.view.catalog.entries(node="gpu-1")
        return [one.why for one in unsafe("gpu-1", held, counts, 1)]

    assert bool(left()) is not safe
    assert all(f"only with the key {KEY}" in why for why in left())
    told.tell(backed_up(""))
    assert left() == []


@pytest.mark.parametrize(("hub", "safe"), KEEPERS)
def test_a_sweep_counts_it_only_while_another_has_the_key(
    hub: events.NodeRegistered, safe: bool
) -> None:
    """Two copies of which one is lost with the other are one."""
    told = story(hub)
    known = Known(POLICY, told.view, told.now)

    def lasting(nodes: Sequence[str], sealed_with: str) -> tuple[int, int]:
        there = known.lasting(nodes, sealed_with=sealed_with)
        return len(there), len(known.lasting(nodes, offline=True, sealed_with=sealed_with))

    survey = Survey(POLICY, lasting, told.now, sealing=True)
    for key, row in told.view.standing():
        survey.look(key, row, told.view)
    assert (survey.short == 0) is safe


async def test_a_proof_that_needs_a_key_nobody_spoke_of_is_none() -> None:
    """The catalog took it for plain, and counted it so."""
    bus = MemoryBus()

    async def prover(path: str, checksum: str) -> Proof:
        return Proof(node=S3_NODE, proven=True, checksum=checksum, sealed_with=KEY)

    answering = await answer_proofs(bus, S3_NODE, prover)
    plain = msgspec.structs.replace(GAMES, locations=("gpu-1", S3_NODE))
    [left] = await unproven(bus, [plain], lambda entry: [S3_NODE], 1)
    assert f"only with the key {KEY}" in left.why
    sealed = msgspec.structs.replace(plain, sealed_with=KEY)
    assert await unproven(bus, [sealed], lambda entry: [S3_NODE], 1) == []
    await answering.close()


def test_who_may_go_is_told_what_the_bucket_proves() -> None:
    """Nobody has read its bytes, and it opens to one key alone."""
    told = given(player("gpu-1"), holds("gpu-1", GAMES), opens("c1", played_out()))
    told.tell(answers("c1", "gpu-1", GAMES), said_what_is_owed)
    [row] = told.view.ended_chains()
    sealed = msgspec.structs.replace(GAMES, sealed_with=KEY)
    place = (GAMES.path, GAMES.checksum)
    said = reason_of(row, [], 1, 1, bucket_said([sealed], {place: ("hub", S3_NODE)}))
    assert "just read" not in said
    assert "just proven (of 1 s3 was asked, which says what it keeps of their digests" in said
    assert f"only with the key {KEY}" in said
    assert "just read in another place" in reason_of(
        row, [], 1, 1, bucket_said([GAMES], {place: ("hub",)})
    )


def played_out() -> events.NodeTerminating:
    """It is to go."""
    return events.NodeTerminating(node="gpu-1")


# What may be deleted for it


def test_a_copy_is_not_deleted_for_one_that_nobody_could_open() -> None:
    """K22: the node that deletes may have the key itself, as long as it stays."""
    asks = Said(events.DeletionRequested(path=GAMES.path, node="gpu-1"), by="boss", id="d1")

    def decided(*more: events.Event, key: str = KEY) -> events.Event:
        told = story(trainer("train-1"), *more, key=key)
        told.tell(copied(GAMES.path, "train-1"), asks)
        row = told.view.deletion("d1")
        assert row is not None
        return reserve(row, told.view, POLICY).event

    assert isinstance(decided(), events.DeletionReserved)
    refused = decided(key=OTHER)
    assert isinstance(refused, events.DeletionRefused)
    assert refused.rule == "too-few-copies"
    assert f"s3 has it only with the key {OTHER}" in refused.reason
    # Who has it is another holder: both would be lost with him.
    both = decided(trainer("train-1", seal_key=OTHER), key=OTHER)
    assert isinstance(both, events.DeletionRefused)
    assert isinstance(decided(node("hub", seal_key=OTHER), key=OTHER), events.DeletionReserved)


@pytest.mark.parametrize(("said", "granted"), [(KEY, True), ("", True), (OTHER, False)])
def test_a_deletion_is_not_granted_on_a_proof_that_needs_another_key(
    said: str, granted: bool
) -> None:
    """The bucket says itself what its object is sealed with."""
    told = story(trainer("train-1"))
    told.tell(copied(GAMES.path, "train-1"))
    told.tell(Said(events.DeletionRequested(path=GAMES.path, node="gpu-1"), by="boss", id="d1"))
    row = told.view.deletion("d1")
    assert row is not None
    told.tell(reserve(row, told.view, POLICY))
    row = told.view.deletion("d1")
    assert row is not None
    asked = witnesses(row, told.view, POLICY)
    assert isinstance(asked, Witnesses)
    proofs = [
        Proof(
            node=name,
            proven=True,
            checksum=GAMES.checksum,
            sealed_with=said if name == S3_NODE else "",
        )
        for name in asked.nodes
    ]
    decided = settle(row, asked, proofs, told.view, POLICY).event
    assert isinstance(decided, events.DeletionGranted) is granted
