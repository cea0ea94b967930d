"""The policy as a table: what is given, what happens, what moves, what is held, what is refused.

Each case cites the behaviour it keeps (K…) or forbids (P…). A line is a copy that is made
(``gpu-1 -> train-1: path``), one that is there (``train-1 holds path``), or a rule that refuses
(``rule: target path``). `HOW` says by which priority, transports and deadline copies are made.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, NamedTuple

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.planner import Known, SyncPlanner
from dataplane.planner.targets import target_score
from dataplane.policy import GIGABYTE, MEGABYTE
from streams import events
from streams.events import Event
from streams.values import S3_NODE, DataEntry, DataType, Role, SweepKind, Trait, Transport
from tests.spec import (
    T0,
    Story,
    Tellable,
    after,
    copied,
    entry,
    games_of,
    given,
    holds,
    lines_of,
    model,
    node,
    npz,
    opens,
    played,
    player,
    succeeded_with,
    trainer,
)
from tests.unit.test_planner import CLUSTERS, TRIGGERS
from tests.unit.triggers import (
    BOSS,
    BOSS_WITH_DISK,
    CANDIDATE,
    CHECKPOINT,
    ELO,
    GAMES,
    GAMES_PATH,
    GPUS,
    TRAINERS,
    VAULT,
    completed,
    offline,
    orphaned,
    promoted,
    requested,
    started,
    terminating,
)

S3 = {"s3": {"enabled": True, "bucket": "b"}}
MODEL = model()
MODEL_PATH = MODEL.path
SPOT = player(traits=[Trait.EPHEMERAL])
SHARED_GAMES = entry("games/canonical_hex8_2p.db", games=900)
CPU = node("cpu-1", Role.SELFPLAY)
TWICE = (player(), player("gpu-2"), holds("gpu-1", GAMES), copied(GAMES_PATH, "gpu-2"))
MORE_GAMES = partial(entry, "games/gpu-1/more_hex8_2p.db")
POOR_GAMES = entry("games/gpu-1/poor_hex8_2p.db", games=90, quality=0.1)


def swept(kind: SweepKind, *paths: str) -> Event:
    """A sweep has found these paths."""
    return events.SweepDue(kind=kind, cycle=1, paths=paths, found=len(paths))


def lacking(*paths: str) -> Event:
    """The replication sweep has found these paths."""
    return swept(SweepKind.REPLICATION, *(paths or (GAMES_PATH,)))


def gpu(name: str, **more: Any) -> events.NodeRegistered:
    """A GPU node that says what room it has."""
    return node(name, Role.SELFPLAY, traits=[Trait.GPU], **more)


def disk(free_gb: float, total_gb: float = 1_000) -> dict[str, int]:
    """What a node says of its disk."""
    return {
        "disk_free_bytes": int(free_gb * GIGABYTE),
        "disk_total_bytes": int(total_gb * GIGABYTE),
    }


def memory(free: float) -> dict[str, int]:
    """What a node says of its memory, as the share that is free."""
    return {"memory_total_bytes": 64 * GIGABYTE, "memory_free_bytes": int(64 * GIGABYTE * free)}


def rule(name: str, **fields: Any) -> dict[str, Any]:
    """A policy in which one rule is another."""
    return {"placement": {"rules": {name: fields}}}


class Case(NamedTuple):
    """One row of the specification."""

    rule: str
    given: tuple[Tellable, ...]
    when: Event
    then: tuple[str, ...]
    policy: dict[str, Any] = {}


CASES = [
    # K1: strategies
    Case(
        "K1: AUTO makes an ephemeral player write through to storage as well",
        (trainer(), VAULT, SPOT, holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}", f"gpu-1 -> vault: {GAMES_PATH}"),
    ),
    Case(
        "K1: AUTO makes an ephemeral player write through to the bucket as well",
        (trainer(), SPOT, holds("gpu-1", games_of("gpu-1", games=20))),
        played(),
        (
            f"gpu-1 -> train-1: {GAMES_PATH}",
            f"gpu-1 -> s3: {GAMES_PATH}",
            f"s3-min-games: s3 {GAMES_PATH}",
        ),
        S3,
    ),
    Case(
        "K1: AUTO makes a lasting player push where the rule says, and no further",
        (trainer(), VAULT, player(), holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "K1: AUTO makes the leader broadcast to those that are eligible",
        (
            trainer("train-1", **disk(60)),
            trainer("train-2", **disk(40)),
            BOSS,
            holds("boss", games_of("boss")),
        ),
        played("boss"),
        ("boss -> train-1: games/boss/hex8_2p.db", "broadcast-disk: train-2"),
    ),
    Case(
        "K1: PULL collects on the coordinator what the rule would have pushed to trainers",
        (trainer(), BOSS_WITH_DISK, player(), holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> boss: {GAMES_PATH}",),
        rule("selfplay", strategy="pull"),
    ),
    Case(
        "K1: HYBRID pushes for an ephemeral player as for any other",
        (trainer(), VAULT, SPOT, holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
        rule("selfplay", strategy="hybrid"),
    ),
    Case(
        "K1: BROADCAST holds nodes to what it asks of them, whoever speaks",
        (trainer(**disk(10)), player(), holds("gpu-1", GAMES)),
        played(),
        ("broadcast-disk: train-1", "no-target: all"),
        rule("selfplay", strategy="broadcast"),
    ),
    Case(
        "K1: a strategy of one's own is one more table",
        (trainer(), VAULT, player(), holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}", f"gpu-1 -> vault: {GAMES_PATH}"),
        {
            "placement": {
                "strategies": {"safe": {"also_to": ["storage"]}},
                "rules": {"selfplay": {"strategy": "safe"}},
            }
        },
    ),
    # K3: what is worth moving
    Case(
        "K3: a database of 9 games is not worth moving beside others",
        (
            trainer(),
            player(),
            holds("gpu-1", GAMES, entry("games/gpu-1/few_hex8_2p.db", games=9)),
        ),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}", "too-few-games: all games/gpu-1/few_hex8_2p.db"),
    ),
    Case(
        "K3: a database of 10 games is",
        (
            trainer(),
            player(),
            holds("gpu-1", GAMES, entry("games/gpu-1/few_hex8_2p.db", games=10)),
        ),
        played(),
        (
            f"gpu-1 -> train-1: {GAMES_PATH}",
            "gpu-1 -> train-1: games/gpu-1/few_hex8_2p.db",
        ),
    ),
    Case(
        "K3: who says that it has played, and has nothing else, is taken at its word",
        (trainer(), player(), holds("gpu-1", games_of("gpu-1", games=3))),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "K3: games that nobody counted pass",
        (trainer(), player(), holds("gpu-1", games_of("gpu-1", games=None))),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "K3: single JSONL files are no databases: they move from the first game on",
        (trainer(), player(), holds("gpu-1", entry("games/gpu-1/hex8_2p.jsonl", games=1))),
        played(),
        ("gpu-1 -> train-1: games/gpu-1/hex8_2p.jsonl",),
    ),
    Case(
        "K3: a mean quality of 0.49 is not worth moving",
        (trainer(), player(), holds("gpu-1", games_of("gpu-1", quality=0.49))),
        played(),
        (f"low-quality: all {GAMES_PATH}",),
    ),
    Case(
        "K3: a mean quality of 0.5 is",
        (trainer(), player(), holds("gpu-1", games_of("gpu-1", quality=0.5))),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "K3: fewer than 5 games always pass the quality gate",
        (trainer(), player(), holds("gpu-1", games_of("gpu-1", games=4, quality=0.1))),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "K3: 5 games are enough to be judged by",
        (trainer(), player(), holds("gpu-1", games_of("gpu-1", games=5, quality=0.1))),
        played(),
        (f"low-quality: all {GAMES_PATH}",),
    ),
    Case(
        "K3: a missing quality is no error",
        (trainer(), player(), holds("gpu-1", games_of("gpu-1", quality=None))),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "K3, P13: a training run is not kept waiting by the gate for what others play",
        (trainer(), player(), holds("gpu-1", GAMES, MORE_GAMES(games=3), POOR_GAMES)),
        started(),
        (
            f"gpu-1 -> train-1: {GAMES_PATH}",
            "gpu-1 -> train-1: games/gpu-1/more_hex8_2p.db",
            "gpu-1 -> train-1: games/gpu-1/poor_hex8_2p.db",
        ),
    ),
    Case(
        "K3, K9: orphans are saved however few and however good",
        (VAULT, player(), holds("gpu-1", GAMES, MORE_GAMES(games=1), POOR_GAMES)),
        orphaned(),
        (
            f"gpu-1 -> vault: {GAMES_PATH}",
            "gpu-1 -> vault: games/gpu-1/more_hex8_2p.db",
            "gpu-1 -> vault: games/gpu-1/poor_hex8_2p.db",
        ),
    ),
    # K5: who never receives
    Case(
        "K5: the policy may say of a node that it never receives, whatever it says itself",
        (*TRAINERS, player(), holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> train-2: {GAMES_PATH}", "skip-sync-receive: train-1"),
        {"nodes": {"train-1": {"traits": ["skip_sync_receive"]}}},
    ),
    Case(
        "K5: a coordinator that is called a storage node by the policy receives",
        (BOSS, player(), holds("gpu-1", GAMES)),
        orphaned(),
        (f"gpu-1 -> boss: {GAMES_PATH}",),
        {"nodes": {"boss": {"roles": ["coordinator", "storage"]}}},
    ),
    Case(
        "K5: the rule about coordinators can be lifted",
        (BOSS, player(), holds("gpu-1", GAMES)),
        orphaned(),
        (f"gpu-1 -> boss: {GAMES_PATH}",),
        {"exclusion": {"coordinator_needs_storage": False}},
    ),
    Case(
        "K5: of two trainers on one mount one gets the file, and the other sees it",
        (
            trainer("train-1", nfs_group="rack"),
            trainer("train-2", nfs_group="rack"),
            player(),
            holds("gpu-1", GAMES),
        ),
        played(),
        (
            f"gpu-1 -> train-1: {GAMES_PATH}",
            f"same-nfs: train-2 {GAMES_PATH}",
            f"train-2 holds {GAMES_PATH}",
        ),
    ),
    Case(
        "K5: of two trainers on one mount none sees a file that nobody can send",
        (
            trainer("train-1", nfs_group="rack"),
            trainer("train-2", nfs_group="rack"),
            player(),
            holds("gpu-1", GAMES),
            offline("gpu-1"),
        ),
        requested("train-1", "train-2"),
        (f"no-source: train-1 {GAMES_PATH}", f"no-source: train-2 {GAMES_PATH}"),
    ),
    Case(
        "K5: a node on the mount of any holder sees the file",
        (
            trainer(nfs_group="rack"),
            player(),
            node("nas", Role.STORAGE, nfs_group="rack"),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "a-node-that-never-registered"),
            copied(GAMES_PATH, "nas"),
        ),
        started(),
        (f"same-nfs: train-1 {GAMES_PATH}", f"train-1 holds {GAMES_PATH}"),
    ),
    Case(
        "K5: a node on the mount of a holder that is away sees what nobody else has",
        (
            trainer(nfs_group="rack"),
            player(nfs_group="rack"),
            holds("gpu-1", GAMES),
            offline("gpu-1"),
        ),
        started(),
        (f"same-nfs: train-1 {GAMES_PATH}", f"train-1 holds {GAMES_PATH}"),
    ),
    Case(
        "K5: a node on the mount of any holder gets no copy from who speaks either",
        (
            trainer(nfs_group="rack"),
            player(),
            node("nas", Role.STORAGE, nfs_group="rack"),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "nas"),
        ),
        played(),
        (f"same-nfs: train-1 {GAMES_PATH}", f"train-1 holds {GAMES_PATH}"),
    ),
    Case(
        "K5: the policy may say who shares a mount",
        (trainer(), player(), holds("gpu-1", GAMES)),
        played(),
        (f"same-nfs: train-1 {GAMES_PATH}", f"train-1 holds {GAMES_PATH}"),
        {"nodes": {"*-1": {"nfs_group": "rack"}}},
    ),
    # K6: broadcast
    Case(
        "K6: a GPU node with less than 50 GB free gets no broadcast",
        (trainer(), gpu("gpu-1", **disk(49.9)), gpu("gpu-2", **disk(50)), holds("train-1", MODEL)),
        promoted(),
        (f"train-1 -> gpu-2: {MODEL_PATH}", "broadcast-disk: gpu-1"),
    ),
    Case(
        "K6: a GPU node with less than 30 % of its memory free gets no broadcast",
        (
            trainer(),
            gpu("gpu-1", **memory(0.29)),
            gpu("gpu-2", **memory(0.30)),
            holds("train-1", MODEL),
        ),
        promoted(),
        (f"train-1 -> gpu-2: {MODEL_PATH}", "broadcast-memory: gpu-1"),
    ),
    Case(
        "K6: what a node has not said of itself is not held against it",
        (
            trainer(),
            gpu("gpu-1"),
            gpu("gpu-2", memory_total_bytes=64 * GIGABYTE),
            holds("train-1", MODEL),
        ),
        promoted(),
        (f"train-1 -> gpu-1: {MODEL_PATH}", f"train-1 -> gpu-2: {MODEL_PATH}"),
    ),
    Case(
        "K6: a node whose heartbeat stays away gets no broadcast",
        (
            trainer(),
            *GPUS,
            holds("train-1", MODEL),
            events.HostOffline(node="gpu-1", reason="no heartbeat for 300 s"),
        ),
        promoted(),
        (f"train-1 -> gpu-2: {MODEL_PATH}", "offline: gpu-1"),
    ),
    Case(
        "K6: a change of free disk is heard without taking the node out or in",
        (
            trainer(),
            gpu("gpu-1", **disk(90)),
            offline("gpu-1"),
            events.NodeRegistered(description=gpu("gpu-1", **disk(70)).description, changed=True),
            holds("train-1", MODEL),
        ),
        promoted(),
        ("offline: gpu-1", "no-target: all"),
    ),
    Case(
        "K6: the limits are the policy's",
        (trainer(), gpu("gpu-1", **disk(20)), holds("train-1", MODEL)),
        promoted(),
        (f"train-1 -> gpu-1: {MODEL_PATH}",),
        {"placement": {"broadcast": {"min_free_disk_gb": 10}}},
    ),
    Case(
        "K6: who asks by name is served however little room it has",
        (trainer(), gpu("gpu-1", **disk(1)), holds("train-1", MODEL)),
        requested("gpu-1", data_type=DataType.MODELS),
        (f"train-1 -> gpu-1: {MODEL_PATH}",),
    ),
    # K7: the best target and the best source
    Case(
        "K7: of two trainers the one that trains now goes first",
        (*TRAINERS, player(), holds("gpu-1", GAMES), opens("t", started("train-2"))),
        played(),
        (f"gpu-1 -> train-2: {GAMES_PATH}", f"enough-copies: all {GAMES_PATH}"),
        rule("selfplay", copies=1),
    ),
    Case(
        "K7: a training run that has completed counts no more",
        (
            *TRAINERS,
            player(),
            holds("gpu-1", GAMES),
            opens("t", started("train-2")),
            opens("u", completed("models/x.pth", name="train-2")),
        ),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}", f"enough-copies: all {GAMES_PATH}"),
        rule("selfplay", copies=1),
    ),
    Case(
        "K7: a priority host goes before its equals",
        (*TRAINERS, player(), holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> train-2: {GAMES_PATH}", f"enough-copies: all {GAMES_PATH}"),
        {
            "placement": {
                "rules": {"selfplay": {"copies": 1}},
                "scores": {"priority_hosts": ["*-2"]},
            }
        },
    ),
    Case(
        "K7: an ephemeral target goes behind its equals",
        (
            trainer("train-1", traits=[Trait.EPHEMERAL]),
            trainer("train-2"),
            player(),
            holds("gpu-1", GAMES),
        ),
        played(),
        (f"gpu-1 -> train-2: {GAMES_PATH}", f"enough-copies: all {GAMES_PATH}"),
        rule("selfplay", copies=1),
    ),
    Case(
        "K7: a node is ephemeral where the policy says so: there is one definition",
        (*TRAINERS, player(), holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> train-2: {GAMES_PATH}", f"enough-copies: all {GAMES_PATH}"),
        rule("selfplay", copies=1) | {"nodes": {"train-1": {"traits": ["ephemeral"]}}},
    ),
    Case(
        "K7: a disk less than half used goes before a full one",
        (
            trainer("train-1", **disk(200)),
            trainer("train-2", **disk(600)),
            player(),
            holds("gpu-1", GAMES),
        ),
        played(),
        (f"gpu-1 -> train-2: {GAMES_PATH}", f"enough-copies: all {GAMES_PATH}"),
        rule("selfplay", copies=1),
    ),
    Case(
        "K7: who never received goes before who just did",
        (
            *TRAINERS,
            player(),
            holds("gpu-1", GAMES),
            succeeded_with(npz(), "train-1", moved=1_000),
        ),
        played(),
        (f"gpu-1 -> train-2: {GAMES_PATH}", f"enough-copies: all {GAMES_PATH}"),
        rule("selfplay", copies=1),
    ),
    Case(
        "K7: who has received longest ago goes first",
        (
            *TRAINERS,
            player(),
            holds("gpu-1", GAMES),
            succeeded_with(npz(), "train-2", moved=1_000),
            after(7_200),
            succeeded_with(npz(), "train-1", moved=1_000),
        ),
        played(),
        (f"gpu-1 -> train-2: {GAMES_PATH}", f"enough-copies: all {GAMES_PATH}"),
        rule("selfplay", copies=1),
    ),
    Case(
        "K7: what a target holds already is one of the copies that are asked for",
        (*TRAINERS, player(), holds("gpu-1", GAMES), copied(GAMES_PATH, "train-2")),
        played(),
        (f"train-2 holds {GAMES_PATH}", f"enough-copies: all {GAMES_PATH}"),
        rule("selfplay", copies=1),
    ),
    Case(
        "K7: for models a training node goes before no other",
        (*TRAINERS, player(), holds("train-1", MODEL)),
        promoted(),
        (
            f"train-1 holds {MODEL_PATH}",
            f"train-1 -> gpu-1: {MODEL_PATH}",
            f"enough-copies: all {MODEL_PATH}",
        ),
        rule("promotion", to=["name:*"], copies=2, strategy="hybrid"),
    ),
    Case(
        "K7: a rule for all kinds serves training nodes first",
        (trainer(), player(), player("gpu-2"), holds("gpu-1", GAMES)),
        requested(),
        (
            f"gpu-1 holds {GAMES_PATH}",
            f"gpu-1 -> train-1: {GAMES_PATH}",
            f"enough-copies: all {GAMES_PATH}",
        ),
        rule("requested", to=["name:*"], copies=2),
    ),
    Case(
        "K7, P2: what one rule has settled for a node another leaves alone, and serves the others",
        (*TRAINERS, VAULT, player(), holds("gpu-1", GAMES), copied(GAMES_PATH, "train-1")),
        played(),
        (
            f"train-1 holds {GAMES_PATH}",
            f"gpu-1 -> train-2: {GAMES_PATH}",
            f"gpu-1 -> vault: {GAMES_PATH}",
        ),
        rule(
            "kept",
            on=["SELFPLAY_COMPLETE"],
            data=["games"],
            to=["training", "storage"],
        ),
    ),
    Case(
        "K7: the bucket is asked only where no node has it",
        (trainer(), player(), holds("gpu-1", GAMES), copied(GAMES_PATH, "s3")),
        started(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
        S3,
    ),
    Case(
        "K7: what only the bucket has comes from the bucket",
        (
            trainer(),
            player(),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "s3"),
            events.FilesRemoved(node="gpu-1", paths=(GAMES_PATH,)),
        ),
        started(),
        (f"s3 -> train-1: {GAMES_PATH}",),
        S3,
    ),
    # K8: replication
    Case(
        "K8: an entry with one copy gets two more, storage first",
        (VAULT, *TRAINERS, player(), holds("gpu-1", GAMES)),
        lacking(),
        (
            f"gpu-1 -> vault: {GAMES_PATH}",
            f"gpu-1 -> train-1: {GAMES_PATH}",
            f"gpu-1 holds {GAMES_PATH}",
            f"enough-copies: all {GAMES_PATH}",
        ),
    ),
    Case(
        "K8: an entry with three lasting copies gets none",
        (
            *TRAINERS,
            VAULT,
            player(),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "train-1"),
            copied(GAMES_PATH, "vault"),
        ),
        lacking(),
        (
            f"gpu-1 holds {GAMES_PATH}",
            f"train-1 holds {GAMES_PATH}",
            f"vault holds {GAMES_PATH}",
            f"enough-copies: all {GAMES_PATH}",
        ),
    ),
    Case(
        "K8: a copy on an ephemeral node does not count",
        (VAULT, *TRAINERS, SPOT, holds("gpu-1", GAMES)),
        lacking(),
        (
            f"gpu-1 -> vault: {GAMES_PATH}",
            f"gpu-1 -> train-1: {GAMES_PATH}",
            f"gpu-1 -> train-2: {GAMES_PATH}",
            "ephemeral-target: gpu-1",
        ),
    ),
    Case(
        "K8: repairs never go to ephemeral nodes",
        (
            trainer("train-1", traits=[Trait.EPHEMERAL]),
            player(),
            holds("gpu-1", GAMES),
        ),
        lacking(),
        (f"gpu-1 holds {GAMES_PATH}", "ephemeral-target: train-1", "fewer-than-minimum: all"),
    ),
    Case(
        "K8: a copy on a node that is to go does not count, and no repair goes there",
        (
            VAULT,
            *TRAINERS,
            player(),
            holds("gpu-1", GAMES),
            *map(terminating, ("gpu-1", "vault")),
        ),
        lacking(),
        (
            f"gpu-1 -> train-1: {GAMES_PATH}",
            f"gpu-1 -> train-2: {GAMES_PATH}",
            "leaving-target: gpu-1",
            "leaving-target: vault",
            "fewer-than-minimum: all",
        ),
    ),
    Case(
        "K8, K5: copies on one mount count once",
        (
            node("a", Role.STORAGE, nfs_group="rack"),
            node("b", Role.STORAGE, nfs_group="rack"),
            player(),
            VAULT,
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "a"),
            copied(GAMES_PATH, "b"),
        ),
        lacking(),
        (
            f"a -> vault: {GAMES_PATH}",
            f"a holds {GAMES_PATH}",
            f"b holds {GAMES_PATH}",
            f"gpu-1 holds {GAMES_PATH}",
        ),
    ),
    Case(
        "K8: copies on nodes that are away do not count",
        (
            node("attic", Role.STORAGE),
            *TRAINERS,
            player(),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "attic"),
            offline("attic"),
        ),
        lacking(),
        (
            f"gpu-1 -> train-1: {GAMES_PATH}",
            f"gpu-1 -> train-2: {GAMES_PATH}",
            f"gpu-1 holds {GAMES_PATH}",
            "offline: attic",
        ),
    ),
    Case(
        "K8: the minimum is the policy's",
        (VAULT, *TRAINERS, player(), holds("gpu-1", GAMES)),
        lacking(),
        (
            f"gpu-1 -> vault: {GAMES_PATH}",
            f"gpu-1 holds {GAMES_PATH}",
            f"enough-copies: all {GAMES_PATH}",
        ),
        {"replication": {"minimum": 2}},
    ),
    Case(
        "K8: a node of two kinds is one target, as the first of them",
        (
            node("attic", Role.STORAGE, Role.TRAINING),
            trainer(),
            player(),
            holds("gpu-1", GAMES),
        ),
        lacking(),
        (
            f"gpu-1 -> attic: {GAMES_PATH}",
            f"gpu-1 holds {GAMES_PATH}",
            f"enough-copies: all {GAMES_PATH}",
        ),
        {
            "replication": {"minimum": 2},
            "placement": {"scores": {"priority_hosts": ["train-1"]}},
        },
    ),
    Case(
        "K8: a rule that takes any holder's copy counts that of who speaks",
        (*TRAINERS, player(), holds("gpu-1", GAMES)),
        played(),
        (
            f"gpu-1 holds {GAMES_PATH}",
            f"gpu-1 -> train-1: {GAMES_PATH}",
            f"enough-copies: all {GAMES_PATH}",
        ),
        rule("selfplay", source="holder", only_endangered=True) | {"replication": {"minimum": 2}},
    ),
    Case(
        "K8, P21: what is merged is not repaired by copies",
        (VAULT, player(), holds("gpu-1", ELO)),
        lacking(ELO.path),
        (f"merged: vault {ELO.path}", f"gpu-1 holds {ELO.path}", "fewer-than-minimum: all"),
    ),
    Case(
        "K8, P2: a sweep whose findings are gone by then says so",
        (VAULT, player()),
        lacking(),
        ("nothing-held: all",),
    ),
    # K9: nodes that vanish
    Case(
        "K9: what has three lasting copies elsewhere does not leave a vanishing node",
        (
            VAULT,
            *TRAINERS,
            player(),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "vault"),
            copied(GAMES_PATH, "train-1"),
            copied(GAMES_PATH, "train-2"),
        ),
        terminating(),
        (
            f"vault holds {GAMES_PATH}",
            f"train-1 holds {GAMES_PATH}",
            f"train-2 holds {GAMES_PATH}",
        ),
    ),
    Case(
        "K9: what has one lasting copy elsewhere leaves until it has three",
        (VAULT, *TRAINERS, player(), holds("gpu-1", GAMES), copied(GAMES_PATH, "vault")),
        terminating(),
        (
            f"vault holds {GAMES_PATH}",
            f"gpu-1 -> train-1: {GAMES_PATH}",
            f"gpu-1 -> train-2: {GAMES_PATH}",
        ),
    ),
    Case(
        "K9: a lasting copy counts also where no rule would have made it",
        (VAULT, trainer(), *TWICE),
        terminating(),
        (
            f"gpu-2 holds {GAMES_PATH}",
            f"gpu-1 -> vault: {GAMES_PATH}",
            f"gpu-1 -> train-1: {GAMES_PATH}",
        ),
    ),
    Case(
        "K9: what one rule saves counts for the next",
        (VAULT, trainer(), *TWICE),
        terminating(),
        (
            f"gpu-2 holds {GAMES_PATH}",
            f"gpu-1 -> vault: {GAMES_PATH}",
            f"enough-copies: all {GAMES_PATH}",
        ),
        {
            "replication": {"minimum": 2},
            "placement": {
                "rules": {
                    "terminating": {"to": ["storage"]},
                    "trainers-too": {
                        "on": ["NODE_TERMINATING"],
                        "to": ["training"],
                        "only_endangered": True,
                    },
                }
            },
        },
    ),
    Case(
        "K9: a copy on the mount of a copy is none, so none is made there",
        (
            node("nas-1", Role.STORAGE, nfs_group="rack"),
            node("nas-2", Role.STORAGE, nfs_group="rack"),
            player(),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "nas-1"),
        ),
        terminating(),
        (
            f"nas-1 holds {GAMES_PATH}",
            f"same-nfs: nas-2 {GAMES_PATH}",
            f"nas-2 holds {GAMES_PATH}",
            "fewer-than-minimum: all",
        ),
    ),
    Case(
        "K9: what lies on a mount whose node is away is sent there all the same",
        (
            node("nas-1", Role.STORAGE, nfs_group="rack"),
            node("nas-2", Role.STORAGE, nfs_group="rack"),
            player(),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "nas-1"),
            offline("nas-1"),
        ),
        terminating(),
        (f"gpu-1 -> nas-2: {GAMES_PATH}", "offline: nas-1", "fewer-than-minimum: all"),
    ),
    Case(
        "K5, K9: nothing is sent within its own mount by who is said to be away",
        (
            node("nas", Role.STORAGE, nfs_group="rack"),
            player(nfs_group="rack"),
            holds("gpu-1", GAMES),
            offline("gpu-1"),
        ),
        terminating(),
        (f"same-nfs: nas {GAMES_PATH}", f"nas holds {GAMES_PATH}", "fewer-than-minimum: all"),
    ),
    Case(
        "K9: nothing leaves a vanishing node for itself",
        (node("vault", Role.STORAGE), trainer(), holds("vault", games_of("vault"))),
        terminating("vault"),
        ("vault -> train-1: games/vault/hex8_2p.db", "fewer-than-minimum: all"),
    ),
    Case(
        "K9, P21: a merged database that only a vanishing node has is refused aloud",
        (VAULT, player(), holds("gpu-1", ELO)),
        terminating(),
        (f"merged: vault {ELO.path}", "fewer-than-minimum: all"),
    ),
    Case(
        "K9, K5: a copy on the vanishing node's own mount is no copy elsewhere",
        (
            node("nas", Role.STORAGE, nfs_group="rack"),
            VAULT,
            player(nfs_group="rack"),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "nas"),
        ),
        terminating(),
        (f"nas holds {GAMES_PATH}", f"gpu-1 -> vault: {GAMES_PATH}", "fewer-than-minimum: all"),
    ),
    Case(
        "K9: a vanishing node with nowhere to send to is refused with the figures",
        (player(), holds("gpu-1", GAMES)),
        terminating(),
        ("no-target: all", "fewer-than-minimum: all"),
    ),
    # K19: the bucket
    Case(
        "K19: self-play is backed up from 100 games on",
        (trainer(), player(), holds("gpu-1", games_of("gpu-1", games=100))),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}", f"gpu-1 -> s3: {GAMES_PATH}"),
        S3,
    ),
    Case(
        "K19: 99 games wait for more",
        (trainer(), player(), holds("gpu-1", games_of("gpu-1", games=99))),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}", f"s3-min-games: s3 {GAMES_PATH}"),
        S3,
    ),
    Case(
        "K19: candidate and checkpoint are always backed up",
        (trainer(), VAULT, holds("train-1", CANDIDATE, CHECKPOINT)),
        completed(CANDIDATE.path, CHECKPOINT.path),
        (
            f"train-1 -> vault: {CANDIDATE.path}",
            f"train-1 -> vault: {CHECKPOINT.path}",
            f"train-1 -> s3: {CANDIDATE.path}",
            f"train-1 -> s3: {CHECKPOINT.path}",
        ),
        S3,
    ),
    Case(
        "K19, P16: a candidate leaves for the bucket where there is no storage node",
        (trainer(), holds("train-1", CANDIDATE)),
        completed(CANDIDATE.path),
        ("no-target: all", f"train-1 -> s3: {CANDIDATE.path}"),
        S3,
    ),
    Case(
        "K19: a promoted model is always backed up",
        (trainer(), GPUS[0], holds("train-1", MODEL)),
        promoted(),
        (f"train-1 -> gpu-1: {MODEL_PATH}", f"train-1 -> s3: {MODEL_PATH}"),
        S3,
    ),
    Case(
        "K19: the cycle backs up games, and models of the kinds that count",
        (trainer(), player(), holds("gpu-1", GAMES, MODEL, model(name="scratch.pth"))),
        swept(SweepKind.S3, GAMES_PATH, MODEL_PATH, "models/scratch.pth"),
        (
            f"gpu-1 -> s3: {GAMES_PATH}",
            f"gpu-1 -> s3: {MODEL_PATH}",
            "s3-kind: s3 models/scratch.pth",
        ),
        S3,
    ),
    Case(
        "K19, P21: metadata that no copy may replace is safe in the bucket, beside other versions",
        (VAULT, player(), holds("gpu-1", ELO)),
        swept(SweepKind.S3, ELO.path),
        (f"gpu-1 -> s3: {ELO.path}",),
        S3,
    ),
    Case(
        "K9, P21: a merged database that only a vanishing node has leaves it for the bucket",
        (VAULT, player(), holds("gpu-1", ELO)),
        terminating(),
        (f"merged: vault {ELO.path}", f"gpu-1 -> s3: {ELO.path}", "fewer-than-minimum: all"),
        S3,
    ),
    Case(
        "K19: the cycle takes any fresh holder, storage before the producer",
        (trainer(), player(), BOSS_WITH_DISK, holds("gpu-1", GAMES), copied(GAMES_PATH, "boss")),
        swept(SweepKind.S3, GAMES_PATH),
        (f"boss -> s3: {GAMES_PATH}",),
        S3,
    ),
    Case(
        "K19: what the bucket holds is not sent again",
        (trainer(), player(), holds("gpu-1", GAMES), copied(GAMES_PATH, "s3")),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}", f"s3 holds {GAMES_PATH}"),
        S3,
    ),
    Case(
        "K19: without a bucket nothing is planned for one, and nothing is missed",
        (trainer(), player(), holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "K19, P2: a request for the bucket where there is none is refused by name",
        (player(), holds("gpu-1", GAMES)),
        requested("s3"),
        ("unknown-node: s3", "no-target: all"),
    ),
    # P4, P5, P18, P21, P22: what is never replaced
    Case(
        "P5: a training set of less than 80 % of what it replaces is refused",
        (
            trainer(),
            player(),
            holds("gpu-1", npz(size_bytes=1_000)),
            copied(npz().path, "train-1"),
            holds("gpu-1", npz("new", size_bytes=799)),
        ),
        started("train-1", DataType.NPZ),
        (f"regression: train-1 {npz().path}",),
    ),
    Case(
        "P5: a training set of 80 % of it is not",
        (
            trainer(),
            player(),
            holds("gpu-1", npz(size_bytes=1_000)),
            copied(npz().path, "train-1"),
            holds("gpu-1", npz("new", size_bytes=800)),
        ),
        started("train-1", DataType.NPZ),
        (f"gpu-1 -> train-1: {npz().path}",),
    ),
    Case(
        "P5: a database that lost most of its games in a restart replaces nothing",
        (
            trainer(),
            player(),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "train-1"),
            holds("gpu-1", games_of("gpu-1", "reborn", games=12)),
        ),
        played(),
        (f"regression: train-1 {GAMES_PATH}",),
    ),
    Case(
        "P5: games that nobody counted hold nothing back, there or here",
        (
            *TRAINERS,
            player(),
            holds("gpu-1", games_of("gpu-1", games=None)),
            copied(GAMES_PATH, "train-1"),
            holds("gpu-1", games_of("gpu-1", "counted", games=7)),
            copied(GAMES_PATH, "train-2"),
            holds("gpu-1", games_of("gpu-1", "not counted", games=None)),
        ),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}", f"gpu-1 -> train-2: {GAMES_PATH}"),
    ),
    Case(
        "P5: games that are counted replace those that nobody counted",
        (
            trainer(),
            player(),
            holds("gpu-1", games_of("gpu-1", games=None)),
            copied(GAMES_PATH, "train-1"),
            holds("gpu-1", games_of("gpu-1", "counted", games=7)),
        ),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "P5: a model may shrink",
        (
            trainer(),
            GPUS[0],
            holds("train-1", model(size_bytes=1_000)),
            copied(MODEL_PATH, "gpu-1"),
            holds("train-1", model("pruned", size_bytes=10)),
        ),
        promoted(),
        (f"train-1 -> gpu-1: {MODEL_PATH}",),
    ),
    Case(
        "P5: who lacks it gets a shrunken set; who holds the larger keeps it",
        (
            *TRAINERS,
            player(),
            holds("gpu-1", npz(size_bytes=1_000)),
            copied(npz().path, "train-1"),
            holds("gpu-1", npz("new", size_bytes=10)),
        ),
        requested("train-1", "train-2", data_type=DataType.NPZ),
        (f"gpu-1 -> train-2: {npz().path}", f"regression: train-1 {npz().path}"),
    ),
    Case(
        "P4: a shared database of another node is a conflict where it differs",
        (
            trainer(),
            player(),
            holds("gpu-1", SHARED_GAMES),
            holds("train-1", entry("games/canonical_hex8_2p.db", "other", games=900)),
        ),
        started(),
        (f"conflict: train-1 {SHARED_GAMES.path}",),
    ),
    Case(
        "P21: the globs of merged files are the policy's",
        (trainer(), player(), holds("gpu-1", SHARED_GAMES)),
        started(),
        (f"merged: train-1 {SHARED_GAMES.path}",),
        {"paths": {"globs": [["**/canonical_*", "merged"]]}},
    ),
    Case(
        "P22: a file of the same size and another content moves",
        (
            trainer(),
            player(),
            holds("gpu-1", npz(size_bytes=1_000)),
            copied(npz().path, "train-1"),
            holds("gpu-1", npz("new", size_bytes=1_000)),
        ),
        started("train-1", DataType.NPZ),
        (f"gpu-1 -> train-1: {npz().path}",),
    ),
    # P2, P13, P16, P17: nothing is left out in silence
    Case(
        "P16: every candidate of a run that is named leaves, and a failed run's too",
        (trainer(), VAULT, holds("train-1", CANDIDATE)),
        events.TrainingCompleted(
            config_key="hex8_2p", node="train-1", model_path=CANDIDATE.path, success=False
        ),
        (f"train-1 -> vault: {CANDIDATE.path}",),
    ),
    Case(
        "P17: games in any directory the node reports are the player's games",
        (trainer(), player(), holds("gpu-1", entry("games/gpu-1/a/b/c/hex8_2p.db", games=10))),
        played(),
        ("gpu-1 -> train-1: games/gpu-1/a/b/c/hex8_2p.db",),
    ),
    Case(
        "P17: games without a configuration in their name move when all is asked for",
        (
            VAULT,
            player(),
            holds("gpu-1", entry("games/gpu-1/old.db", config_key="all", games=10)),
        ),
        terminating(),
        ("gpu-1 -> vault: games/gpu-1/old.db", "fewer-than-minimum: all"),
    ),
    Case(
        "P2: a trigger that no rule answers says so",
        (trainer(), player(), holds("gpu-1", GAMES)),
        played(),
        ("no-rule: all",),
        rule("selfplay", enabled=False),
    ),
    Case(
        "P2: less data than was asked for is said beside what moves",
        (trainer(), player(), holds("gpu-1", GAMES)),
        events.DataNeeded(
            node="train-1", config_key="hex8_2p", data_type=DataType.GAMES, min_samples=501
        ),
        (f"gpu-1 -> train-1: {GAMES_PATH}", "too-few-samples: all"),
    ),
    Case(
        "P2: as much as was asked for is enough",
        (trainer(), player(), holds("gpu-1", GAMES)),
        events.DataNeeded(
            node="train-1", config_key="hex8_2p", data_type=DataType.GAMES, min_samples=500
        ),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "P2: games that nobody counted are no samples",
        (trainer(), player(), holds("gpu-1", GAMES, MORE_GAMES(games=None))),
        events.DataNeeded(
            node="train-1", config_key="hex8_2p", data_type=DataType.GAMES, min_samples=501
        ),
        (
            f"gpu-1 -> train-1: {GAMES_PATH}",
            "gpu-1 -> train-1: games/gpu-1/more_hex8_2p.db",
            "too-few-samples: all",
        ),
    ),
    Case(
        "P2: a rule for named nodes reaches nobody where the trigger names none",
        (trainer(), player(), holds("gpu-1", GAMES)),
        played(),
        ("no-target: all",),
        rule("selfplay", to=["named"]),
    ),
    Case(
        "P2: a rule for the files of who speaks says so where nobody speaks",
        (trainer(), player(), holds("gpu-1", GAMES)),
        requested("train-1"),
        ("nothing-held: all",),
        rule("requested", source="speaker"),
    ),
    Case(
        "P2: so does a sweep, which nobody speaks",
        (VAULT, player(), holds("gpu-1", GAMES)),
        lacking(),
        ("nothing-held: all",),
        rule("replication", source="speaker"),
    ),
    Case(
        "P2: a rule that leaves out a configuration says that nothing is held for it",
        (trainer(), player(), holds("gpu-1", GAMES)),
        played(),
        ("nothing-held: all",),
        rule("selfplay", config_keys=["square8_*"]),
    ),
    Case(
        "P18: a node that is back gets all that was missed at the next trigger",
        (
            *TRAINERS,
            player(),
            holds("gpu-1", GAMES),
            offline("train-1"),
            copied(GAMES_PATH, "train-2"),
            events.HostOnline(node="train-1"),
        ),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}", f"train-2 holds {GAMES_PATH}"),
    ),
    Case(
        "K11: a node that is taken out by hand stays out when it only tells its disk",
        (
            trainer(),
            player(),
            holds("gpu-1", GAMES),
            offline("train-1"),
            events.NodeRegistered(description=trainer().description, changed=True),
        ),
        played(),
        ("offline: train-1", "no-target: all"),
    ),
    Case(
        "K11: a node that joins anew is planned for",
        (trainer(), player(), holds("gpu-1", GAMES), offline("train-1"), trainer()),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.rule) for case in CASES])
def test_policy_makes_this_plan(case: Case) -> None:
    """Exactly these entries move, these are held, and these rules refuse the rest."""
    given(*case.given).under(**case.policy).when(case.when).then(*case.then)


def test_table_is_a_specification() -> None:
    """Every case cites what it keeps or forbids, and none is there twice."""
    names = [case.rule for case in CASES]
    assert len(set(names)) == len(names)
    assert all(re.match(r"[KP]\d+", name) for name in names)


def how(story: Story, trigger: Event, target: str = "") -> list[str]:
    """Priority, transports and deadline of each plan, the first to go first."""
    return [
        f"{plan.priority} {' '.join(plan.transport_preference)}"
        + (f" by +{plan.deadline - T0:g}" if plan.deadline else "")
        for plan in story.plans(trigger, T0).plans
        if target in ("", *plan.target_nodes)
    ]


LARGE = games_of("gpu-1", size_bytes=101 * MEGABYTE)
HOW = [
    ("K12: small files by p2p", GAMES, played(), "normal p2p http base64", {}),
    ("K12: large files by rsync", LARGE, played(), "normal rsync http base64", {}),
    ("K12: a training run by rsync", GAMES, started(), "high rsync http base64", {}),
    ("K12: what is urgent by the direct ways", GAMES, orphaned(), "critical rsync base64", {}),
    ("K12: into the bucket by its own transport alone", GAMES, orphaned(), "critical s3", S3),
    (
        "K12: a transport that corrupts on a node is tried last",
        GAMES,
        played(),
        "normal http base64 p2p",
        {"transports": {"tried_last": {"train-*": ["p2p"]}}},
    ),
    (
        "K12: what counts as large is the policy's",
        LARGE,
        played(),
        "normal p2p http base64",
        {"transports": {"large_file_mb": 200}},
    ),
    (
        "P13: a rule's own deadline counts from the trigger",
        GAMES,
        started(),
        "high rsync http base64 by +90",
        rule("training-start", deadline_s=90),
    ),
    (
        "P13: the deadline a trigger names outranks the rule's",
        GAMES,
        events.TrainingStarted(config_key="hex8_2p", node="train-1", deadline=T0 + 7),
        "high rsync http base64 by +7",
        rule("training-start", deadline_s=90),
    ),
    (
        "K1: an ephemeral player's games are urgent",
        GAMES,
        played(),
        "high rsync base64",
        {"nodes": {"gpu-1": {"traits": ["ephemeral"]}}},
    ),
    (
        "K10: how urgent a rule is, is the policy's",
        GAMES,
        played(),
        "background p2p http base64",
        rule("selfplay", priority="background"),
    ),
]


@pytest.mark.parametrize(
    ("what", "trigger", "line", "tables"),
    [pytest.param(*row[1:], id=row[0]) for row in HOW],
)
def test_copies_are_made_this_way(
    what: DataEntry, trigger: Event, line: str, tables: dict[str, Any]
) -> None:
    """Priority, transports in order, and the deadline where there is one."""
    story = given(trainer(), VAULT, player(), holds("gpu-1", what)).under(**tables)
    safe = S3_NODE if tables is S3 else "vault"
    target = safe if isinstance(trigger, events.OrphanGamesDetected) else "train-1"
    assert how(story, trigger, target) == [line]


def test_k9_the_most_precious_leaves_first() -> None:
    """Only copies of what can't be made again, then of what can, then what has another copy."""
    story = given(VAULT, BOSS_WITH_DISK, player(), holds("gpu-1", GAMES, npz(), MODEL))
    story.tell(copied(MODEL_PATH, "vault"))
    # What lies on the mount of the node that leaves is no other copy.
    story.tell(node("nas", nfs_group="rack"), player(nfs_group="rack"), copied(GAMES_PATH, "nas"))
    plans = story.plans(terminating()).plans
    order = [(plan.priority.value, [entry.path for entry in plan.entries]) for plan in plans]
    assert order == [
        ("critical", [GAMES_PATH]),
        ("high", [npz().path]),
        ("normal", [MODEL_PATH]),
    ]


def test_k6_most_free_space_goes_first() -> None:
    """A broadcast names the roomiest node first, whichever kind the rule names first."""
    nodes = [gpu("gpu-1", **disk(60)), gpu("gpu-2", **disk(900)), gpu("gpu-3", **disk(300))]
    story = given(trainer(), trainer("train-2", **disk(100)), *nodes, holds("train-1", MODEL))
    (plan,) = story.plans(promoted()).plans
    assert plan.target_nodes == ("gpu-2", "gpu-3", "gpu-1")
    story.under(**rule("promotion", to=["training", "gpu"]))
    (plan,) = story.plans(promoted()).plans
    assert plan.target_nodes == ("gpu-2", "gpu-3", "train-2", "gpu-1")


TRAINS = opens("t", started("gpu-1"))
RECEIVES = succeeded_with(npz(), "gpu-1", moved=1_000)
SCORES = [
    ("any node that never received", (player(),), DataType.GAMES, 80, {}),
    ("a training node, for games", (trainer("gpu-1"),), DataType.GAMES, 110, {}),
    ("a training node, for training sets", (trainer("gpu-1"),), DataType.NPZ, 110, {}),
    ("a training node, for models", (trainer("gpu-1"),), DataType.MODELS, 80, {}),
    ("one that trains now", (player(), TRAINS), DataType.GAMES, 130, {}),
    ("a priority host", (player(),), DataType.GAMES, 100, {"priority_hosts": ["gpu-*"]}),
    ("an ephemeral node", (SPOT,), DataType.GAMES, 65, {}),
    ("a disk less than half used", (player(**disk(501)),), DataType.GAMES, 90, {}),
    ("a disk half used", (player(**disk(500)),), DataType.GAMES, 80, {}),
    ("a disk used to 70 %", (player(**disk(300)),), DataType.GAMES, 80, {}),
    ("a disk used above 70 %", (player(**disk(299)),), DataType.GAMES, 60, {}),
    ("one that has just received", (player(), RECEIVES), DataType.GAMES, 50, {}),
    ("two hours ago", (player(), RECEIVES, after(7_200)), DataType.GAMES, 52, {}),
    ("a day and a half ago", (player(), RECEIVES, after(129_600)), DataType.GAMES, 80, {}),
    (
        "two hours ago, where an hour counts more",
        (player(), RECEIVES, after(7_200)),
        DataType.GAMES,
        58,
        {"stale_per_hour": 4.0},
    ),
    (
        "all at once",
        (trainer("gpu-1", traits=[Trait.EPHEMERAL], **disk(200)), TRAINS),
        DataType.GAMES,
        125,
        {},
    ),
]


@pytest.mark.parametrize(
    ("facts", "data_type", "score", "scores"), [pytest.param(*row[1:], id=row[0]) for row in SCORES]
)
def test_k7_a_target_is_worth_this_much(
    facts: tuple[Tellable, ...], data_type: DataType, score: float, scores: dict[str, Any]
) -> None:
    """Who is served first: what a node does, has room for, and how long it has got nothing."""
    story = given(*facts).under(placement={"scores": scores})
    known = Known(story.policy, story.view, story.now)
    row = known.node("gpu-1")
    assert row is not None
    assert target_score(known, row, (data_type,)) == score


def test_k7_sources_are_asked_in_this_order() -> None:
    """Storage, then the target's provider, then what lasts; each counts beside the others."""
    spot, storage = Trait.EPHEMERAL, Trait.EXTERNAL_STORAGE
    story = given(
        trainer(provider="lambda"),
        node("i", traits=[storage], provider="lambda"),
        node("h", traits=[storage, spot], provider="lambda"),
        node("g", traits=[storage]),
        node("f", traits=[storage, spot]),
        node("e", provider="lambda"),
        node("d", traits=[spot], provider="lambda"),
        node("c"),
        node("b", traits=[spot]),
    ).under(**S3)
    target = story.view.node("train-1")
    assert target is not None
    holders = [S3_NODE, *"bcdefghi", "train-1", "never-seen"]
    ranked = SyncPlanner(story.policy, story.view).rank_sources(holders, target)
    assert ranked == [*"ihgfedcb", S3_NODE]


def test_k15_holder_whose_circuit_is_open_is_not_asked_while_there_is_another() -> None:
    """Three failures shut a node out as a source for 300 s; then it is asked again."""
    story = given(trainer(), player(), BOSS_WITH_DISK, holds("gpu-1", GAMES))
    story.tell(copied(GAMES_PATH, "boss"))
    story.when(started()).then(f"boss -> train-1: {GAMES_PATH}")
    story.tell(*(_unreachable("boss") for _ in range(3)))
    story.when(started()).then(f"gpu-1 -> train-1: {GAMES_PATH}")
    story.tell(after(301.0))
    story.when(started()).then(f"boss -> train-1: {GAMES_PATH}")


def test_k15_when_a_holder_is_asked_no_more_is_the_policys() -> None:
    """After how many failures, for how long, and how many successes make it good."""
    story = given(trainer(), player(), BOSS_WITH_DISK, holds("gpu-1", GAMES))
    story.tell(copied(GAMES_PATH, "boss"))
    story.under(breakers={"node_failures": 2, "node_open_s": 9.0, "half_open_successes": 3})
    story.tell(*(_unreachable("boss") for _ in range(2)))
    story.when(started()).then(f"gpu-1 -> train-1: {GAMES_PATH}")
    story.tell(_reached("boss"), _reached("boss"))
    story.when(started()).then(f"gpu-1 -> train-1: {GAMES_PATH}")
    story.tell(after(8.5))
    story.when(started()).then(f"gpu-1 -> train-1: {GAMES_PATH}")
    story.tell(after(1.0))
    story.when(started()).then(f"boss -> train-1: {GAMES_PATH}")


def _reached(source: str) -> Event:
    result = events.TransportResult(
        success=True,
        transport_used=Transport.HTTP_FETCH,
        bytes_transferred=1_000,
        duration_seconds=0.1,
    )
    return replace(succeeded_with(npz(), "train-1", source=source), results=(result,))


def _unreachable(source: str) -> Event:
    result = events.TransportResult(
        success=False,
        transport_used=Transport.HTTP_FETCH,
        bytes_transferred=0,
        duration_seconds=0.1,
        error="no route",
        error_class="Unreachable",
    )
    return events.TransferFailed(
        transfer="of-nobody",
        node="train-1",
        source=source,
        target="train-1",
        entry=GAMES,
        attempt=1,
        error="no route",
        error_class="Unreachable",
        results=(result,),
    )


# Whatever the cluster and the policy

POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "s3": st.just(S3["s3"]),
        "exclusion": st.just({"exclude_hosts": ["n1", "n3"]}),
        "nodes": st.just({"n2": {"traits": ["ephemeral"]}, "n3": {"roles": ["storage"]}}),
        "placement": st.sampled_from(
            [
                {"rules": {"selfplay": {"copies": 1}, "training-start": {"copies": 1}}},
                {"rules": {"requested": {"copies": 2}, "promotion": {"copies": 1}}},
                {"rules": {"requested": {"source": "speaker"}, "prestage": {"source": "speaker"}}},
                {"rules": {"replication": {"source": "speaker"}}},
                {"strategies": {"hybrid": {"also_to": ["storage", "s3"]}}},
            ]
        ),
        "replication": st.just({"minimum": 2}),
    },
)
ANY_TRIGGER = st.one_of(TRIGGERS, st.just(lacking("games/n0/hex8_2p.db", "npz/hex8_2p.npz")))


@settings(max_examples=120)
@sampled(facts=CLUSTERS, trigger=ANY_TRIGGER, tables=POLICIES)
def test_whatever_the_policy_the_planner_keeps_its_word(
    facts: list[Event], trigger: Event, tables: dict[str, Any]
) -> None:
    """No excluded target, no second copy of one thing, a reason for everything, each in words."""
    story = given(*facts).under(**tables)
    decision = story.plans(trigger)
    assert lines_of(decision)
    assert decision == story.plans(trigger), "planning is deterministic"
    copies = [
        (target, what.path)
        for plan in decision.plans
        for target in plan.target_nodes
        for what in plan.entries
    ]
    assert len(set(copies)) == len(copies)
    for target, _ in copies:
        row = story.view.node(target)
        assert target == S3_NODE or (row is not None and row.online)
        assert not story.policy.exclusion.excludes(target)
    for refusal in decision.refusals:
        assert refusal.rule and len(refusal.reason) > len(refusal.rule), refusal


@settings(max_examples=80)
@sampled(facts=CLUSTERS, copies=st.integers(1, 4), who=st.sampled_from(["n0", "n1"]))
def test_never_more_copies_than_the_rule_asks_for(
    facts: list[Event], copies: int, who: str
) -> None:
    """K7, K8: copies that are there count, and no more are made than lack."""
    story = given(*facts).under(
        replication={"minimum": copies}, **rule("selfplay", copies=copies, strategy="hybrid")
    )
    decision = story.plans(played(who))
    view = story.view
    for what in list(view.catalog.entries(node=who, data_type=DataType.GAMES)):
        made = _made(decision, what.path)
        trainers = {n.name for n in view.nodes() if Role.TRAINING in n.description.roles}
        kept = {h.target for h in decision.held if h.path == what.path} & trainers
        assert not made or len(made) + len(kept) <= copies
    decision = story.plans(lacking("games/n0/hex8_2p.db"))
    assert len(_made(decision, "games/n0/hex8_2p.db")) <= copies


def _made(decision: events.SyncPlanned, path: str) -> list[str]:
    return [
        target
        for plan in decision.plans
        for target in plan.target_nodes
        for what in plan.entries
        if what.path == path
    ]
