"""The planner: what each trigger moves from where to where, and what not, by which rule.

The cases cite the behaviours they keep (K…), forbid (P…), or the row of the routing table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from dataplane.planner import CommandRejected, SyncPlanner
from dataplane.planner.deciding import SAME_MOUNT
from dataplane.policy import MEGABYTE, Policy
from dataplane.policy.reading import TRIGGERS as TRIGGERS_BY_NAME
from streams import events
from streams.events import Event
from streams.values import DataEntry, DataType, Held, Role, SyncPriority, Trait, Transport
from tests.spec import (
    T0,
    Tellable,
    copied,
    entry,
    games_of,
    given,
    holds,
    lines_of,
    model,
    node,
    npz,
    only_plan,
    opens,
    played,
    player,
    policy_of,
    ran,
    trainer,
)
from tests.unit.triggers import (
    BOSS,
    BOSS_WITH_DISK,
    CANDIDATE,
    CHECKPOINT,
    ELO,
    GAMES,
    GAMES_PATH,
    GPUS,
    PLAYERS_WITH_GAMES,
    TRAINERS,
    VAULT,
    completed,
    expected,
    needed,
    offline,
    orphaned,
    promoted,
    requested,
    started,
    terminating,
)


class Case(NamedTuple):
    """One row of the specification."""

    rule: str
    given: tuple[Tellable, ...]
    when: Event
    then: tuple[str, ...]
    policy: dict[str, Any] = {}


CASES = [
    # SELFPLAY_COMPLETE: games of the speaker to the training nodes.
    Case(
        "route: self-play games go to every training node",
        (*TRAINERS, player(), holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}", f"gpu-1 -> train-2: {GAMES_PATH}"),
    ),
    Case(
        "route: self-play games go to no other kind of node",
        (trainer(), VAULT, BOSS_WITH_DISK, *GPUS, holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "route: self-play moves games of its own configuration only",
        (
            trainer(),
            player(),
            holds("gpu-1", GAMES, games_of("gpu-1", config_key="hexagonal_2p")),
            holds("gpu-1", games_of("gpu-1", config_key="hex8_3p")),
        ),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "route: self-play moves games, not the models and sets beside them",
        (trainer(), player(), holds("gpu-1", GAMES, model(), npz())),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "route: self-play moves the speaker's games, not those of other players",
        (
            trainer(),
            player(),
            player("gpu-2"),
            holds("gpu-1", GAMES),
            holds("gpu-2", games_of("gpu-2")),
        ),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "route: a copy the speaker received is not the speaker's to send on",
        (
            trainer(),
            player("gpu-2"),
            player("gpu-1"),
            holds("gpu-2", games_of("gpu-2")),
            copied("games/gpu-2/hex8_2p.db", "gpu-1"),
        ),
        played("gpu-1"),
        ("nothing-held: all",),
    ),
    Case(
        "P17: every file of the configuration moves, not only the one that was named",
        (
            trainer(),
            player(),
            holds("gpu-1", GAMES, entry("games/gpu-1/more/hex8_2p.jsonl", games=3)),
        ),
        events.SelfplayComplete(
            config_key="hex8_2p", source_node="gpu-1", games_count=1, path="hex8_2p.db"
        ),
        (
            f"gpu-1 -> train-1: {GAMES_PATH}",
            "gpu-1 -> train-1: games/gpu-1/more/hex8_2p.jsonl",
        ),
    ),
    Case(
        "P15: what a target holds already does not move again",
        (*TRAINERS, player(), holds("gpu-1", GAMES), copied(GAMES_PATH, "train-1")),
        played(),
        (f"train-1 holds {GAMES_PATH}", f"gpu-1 -> train-2: {GAMES_PATH}"),
    ),
    Case(
        "P22: the same size is not the same content: a newer version moves",
        (
            trainer(),
            player(),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "train-1"),
            holds("gpu-1", games_of("gpu-1", "second")),
        ),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "route: a trainer that plays holds its own games",
        (trainer("train-1"), holds("train-1", games_of("train-1"))),
        played("train-1"),
        ("train-1 holds games/train-1/hex8_2p.db",),
    ),
    Case(
        "P4: two producers' databases of one name both reach the trainer that holds the other",
        (
            trainer(),
            player(),
            player("gpu-2"),
            holds("gpu-2", games_of("gpu-2")),
            copied("games/gpu-2/hex8_2p.db", "train-1"),
            holds("gpu-1", GAMES),
        ),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "P2: a speaker that holds nothing is a refusal, not an empty plan",
        (trainer(), player()),
        played(),
        ("nothing-held: all",),
    ),
    Case(
        "P2: games that were removed are a refusal, not an empty plan",
        (
            trainer(),
            player(),
            holds("gpu-1", GAMES),
            events.FilesRemoved(node="gpu-1", paths=(GAMES_PATH,)),
        ),
        played(),
        ("nothing-held: all",),
    ),
    Case(
        "P2: no training node at all is a refusal",
        (player(), holds("gpu-1", GAMES)),
        played(),
        ("no-target: all",),
    ),
    Case(
        "P2: an unknown speaker is a refusal",
        (trainer(),),
        played("never-seen"),
        ("nothing-held: all",),
    ),
    # TRAINING_STARTED and DATA_NEEDED: from the best holder to the node that asks.
    Case(
        "route: a training run gets games and training sets, and no models",
        (trainer(), player(), holds("gpu-1", GAMES, npz(), model())),
        started(),
        (f"gpu-1 -> train-1: {GAMES_PATH}", "gpu-1 -> train-1: npz/hex8_2p.npz"),
    ),
    Case(
        "route: a training run gets only the kinds it names",
        (trainer(), player(), holds("gpu-1", GAMES, npz())),
        started("train-1", DataType.NPZ),
        ("gpu-1 -> train-1: npz/hex8_2p.npz",),
    ),
    Case(
        "route: a training run is for its own node, not for all trainers",
        (*TRAINERS, player(), holds("gpu-1", GAMES)),
        started("train-2"),
        (f"gpu-1 -> train-2: {GAMES_PATH}",),
    ),
    Case(
        "K7: a holder with external storage is asked before the producer",
        (trainer(), player(), BOSS_WITH_DISK, holds("gpu-1", GAMES), copied(GAMES_PATH, "boss")),
        started(),
        (f"boss -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "K7: a holder of the same provider is asked before the others",
        (
            trainer(provider="lambda"),
            player(provider="vast"),
            holds("gpu-1", GAMES),
            node("z-gpu", Role.SELFPLAY, provider="lambda"),
            copied(GAMES_PATH, "z-gpu"),
        ),
        started(),
        (f"z-gpu -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "K7: an ephemeral holder is asked last",
        (
            trainer(),
            player(traits=[Trait.EPHEMERAL]),
            node("z-gpu", Role.SELFPLAY),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "z-gpu"),
        ),
        started(),
        (f"z-gpu -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "K11: an offline holder is not asked",
        (
            trainer(),
            player(),
            VAULT,
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "vault"),
            offline("gpu-1"),
        ),
        started(),
        (f"vault -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "P2: data whose holders are all offline is a refusal for that entry",
        (trainer(), player(), holds("gpu-1", GAMES), offline("gpu-1")),
        started(),
        (f"no-source: train-1 {GAMES_PATH}",),
    ),
    Case(
        "P2: a node that never registered can't be served, and that is said",
        (player(), holds("gpu-1", GAMES)),
        started("ghost"),
        ("unknown-node: ghost", "no-target: all"),
    ),
    Case(
        "route: a node that needs named files gets those alone",
        (trainer(), *PLAYERS_WITH_GAMES),
        needed(paths=("games/gpu-2/hex8_2p.db",)),
        ("gpu-2 -> train-1: games/gpu-2/hex8_2p.db",),
    ),
    Case(
        "route: DATA_NEEDED moves the one kind that is asked for",
        (trainer(), player(), holds("gpu-1", GAMES, npz(), model())),
        needed(data_type=DataType.MODELS),
        ("gpu-1 -> train-1: models/canonical_hex8_2p.pth",),
    ),
    Case(
        "P2: DATA_NEEDED that nobody can meet says that nobody holds it",
        (trainer(), player()),
        needed(),
        ("nothing-held: all",),
    ),
    Case(
        "K11: a node that asks while it is offline is refused",
        (trainer(), player(), holds("gpu-1", GAMES), offline("train-1")),
        needed(),
        ("offline: train-1", "no-target: all"),
    ),
    Case(
        "route: a node that asks for what it holds is told so",
        (trainer(), player(), holds("gpu-1", GAMES), copied(GAMES_PATH, "train-1")),
        needed(),
        (f"train-1 holds {GAMES_PATH}",),
    ),
    # TRAINING_COMPLETED: candidate and checkpoint leave the trainer.
    Case(
        "P16: candidate and checkpoint leave the trainer for the storage nodes",
        (trainer(), VAULT, BOSS_WITH_DISK, holds("train-1", CANDIDATE, CHECKPOINT, model())),
        completed(CANDIDATE.path, CHECKPOINT.path),
        (
            f"train-1 -> boss: {CANDIDATE.path}",
            f"train-1 -> boss: {CHECKPOINT.path}",
            f"train-1 -> vault: {CANDIDATE.path}",
            f"train-1 -> vault: {CHECKPOINT.path}",
        ),
    ),
    Case(
        "P16: the trainer may name its candidate as it knows it, without its own name",
        (trainer(), VAULT, holds("train-1", CANDIDATE)),
        completed("models/candidate_hex8_2p.pth"),
        (f"train-1 -> vault: {CANDIDATE.path}",),
    ),
    Case(
        "P2: a candidate that is not where it was said to be is a refusal",
        (trainer(), VAULT, holds("train-1", CANDIDATE)),
        completed("models/other.pth"),
        ("nothing-held: all",),
    ),
    # MODEL_PROMOTED: a broadcast.
    Case(
        "route: a promoted model goes to every GPU node",
        (trainer(), *GPUS, VAULT, player("cpu-1"), holds("train-1", model())),
        promoted(),
        (
            "train-1 -> gpu-1: models/canonical_hex8_2p.pth",
            "train-1 -> gpu-2: models/canonical_hex8_2p.pth",
        ),
    ),
    Case(
        "route: other models stay where they are when one is promoted",
        (trainer(), GPUS[0], holds("train-1", model(), model(name="hex8_2p_old.pth"))),
        promoted(),
        ("train-1 -> gpu-1: models/canonical_hex8_2p.pth",),
    ),
    Case(
        "route: a GPU node with the old model gets the new one",
        (
            trainer(),
            GPUS[0],
            holds("train-1", model()),
            copied("models/canonical_hex8_2p.pth", "gpu-1"),
            holds("train-1", model("second")),
        ),
        promoted(),
        ("train-1 -> gpu-1: models/canonical_hex8_2p.pth",),
    ),
    # ORPHAN_GAMES_DETECTED
    Case(
        "route: orphaned games go to the storage nodes, not to the trainers",
        (trainer(), VAULT, player(), holds("gpu-1", GAMES)),
        orphaned(),
        (f"gpu-1 -> vault: {GAMES_PATH}",),
    ),
    Case(
        "route: of orphaned games only those that are named move",
        (VAULT, player(), holds("gpu-1", GAMES, entry("games/gpu-1/b_hex8_2p.db", games=1))),
        orphaned("games/b_hex8_2p.db"),
        ("gpu-1 -> vault: games/gpu-1/b_hex8_2p.db",),
    ),
    # DATA_SYNC_REQUESTED
    Case(
        "route: a requested sync goes to the nodes it names and to no other",
        (*TRAINERS, VAULT, player(), holds("gpu-1", GAMES)),
        requested("vault"),
        (f"gpu-1 -> vault: {GAMES_PATH}",),
    ),
    Case(
        "P2: of named nodes the unknown one is refused and the others are served",
        (trainer(), player(), holds("gpu-1", GAMES)),
        requested("train-1", "ghost"),
        (f"gpu-1 -> train-1: {GAMES_PATH}", "unknown-node: ghost"),
    ),
    Case(
        "route: a holder that is named as a target holds it",
        (trainer(), player(), holds("gpu-1", GAMES)),
        requested("train-1", "gpu-1"),
        (f"gpu-1 -> train-1: {GAMES_PATH}", f"gpu-1 holds {GAMES_PATH}"),
    ),
    # NODE_TERMINATING
    Case(
        "K9: a node that vanishes sends all kinds and configurations to safety",
        (VAULT, player(), holds("gpu-1", GAMES, model(), games_of("gpu-1", config_key="hex8_4p"))),
        terminating(),
        (
            f"gpu-1 -> vault: {GAMES_PATH}",
            "gpu-1 -> vault: games/gpu-1/hex8_4p.db",
            "gpu-1 -> vault: models/canonical_hex8_2p.pth",
            "fewer-than-minimum: all",
        ),
    ),
    Case(
        "K9: a node that vanishes also saves the last copies of what others produced",
        (
            VAULT,
            player(),
            trainer(),
            holds("gpu-1", GAMES),
            copied(GAMES_PATH, "train-1"),
            events.FilesRemoved(node="gpu-1", paths=(GAMES_PATH,)),
        ),
        terminating("train-1"),
        (f"train-1 -> vault: {GAMES_PATH}", "fewer-than-minimum: all"),
    ),
    Case(
        "K9: what is safe already does not leave a vanishing node again",
        (VAULT, player(), holds("gpu-1", GAMES), copied(GAMES_PATH, "vault")),
        terminating(),
        (f"vault holds {GAMES_PATH}", "fewer-than-minimum: all"),
    ),
    # Who never receives
    Case(
        "K5: a node in exclude_hosts never receives",
        (*TRAINERS, player(), holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> train-2: {GAMES_PATH}", "exclude-hosts: train-1"),
        {"exclusion": {"exclude_hosts": ["train-1"]}},
    ),
    Case(
        "K5: exclude_hosts takes globs",
        (*TRAINERS, player(), holds("gpu-1", GAMES)),
        played(),
        ("exclude-hosts: train-1", "exclude-hosts: train-2", "no-target: all"),
        {"exclusion": {"exclude_hosts": ["train-*"]}},
    ),
    Case(
        "K5: an excluded node does not receive what it asks for either",
        (trainer(), player(), holds("gpu-1", GAMES)),
        needed(),
        ("exclude-hosts: train-1", "no-target: all"),
        {"exclusion": {"exclude_hosts": ["train-1"]}},
    ),
    Case(
        "K5: a node with skip_sync_receive never receives",
        (
            trainer(traits=[Trait.SKIP_SYNC_RECEIVE]),
            trainer("train-2"),
            player(),
            holds("gpu-1", GAMES),
        ),
        played(),
        (f"gpu-1 -> train-2: {GAMES_PATH}", "skip-sync-receive: train-1"),
    ),
    Case(
        "K5: a coordinator without external storage is no target",
        (BOSS, VAULT, player(), holds("gpu-1", GAMES)),
        orphaned(),
        (f"gpu-1 -> vault: {GAMES_PATH}", "coordinator-without-storage: boss"),
    ),
    Case(
        "K5: a coordinator with external storage receives",
        (BOSS_WITH_DISK, player(), holds("gpu-1", GAMES)),
        orphaned(),
        (f"gpu-1 -> boss: {GAMES_PATH}",),
    ),
    Case(
        "K5: a coordinator that is a storage node too receives",
        (node("boss", Role.COORDINATOR, Role.STORAGE), player(), holds("gpu-1", GAMES)),
        orphaned(),
        (f"gpu-1 -> boss: {GAMES_PATH}",),
    ),
    Case(
        "K5: a coordinator that is named gets what was asked for",
        (BOSS, player(), holds("gpu-1", GAMES)),
        requested("boss"),
        (f"gpu-1 -> boss: {GAMES_PATH}",),
    ),
    Case(
        "K5: nodes of one NFS group never sync among themselves",
        (
            trainer(nfs_group="rack"),
            trainer("train-2", nfs_group="other"),
            player(nfs_group="rack"),
            holds("gpu-1", GAMES),
        ),
        played(),
        (
            f"gpu-1 -> train-2: {GAMES_PATH}",
            f"same-nfs: train-1 {GAMES_PATH}",
            f"train-1 holds {GAMES_PATH}",
        ),
    ),
    Case(
        "K5: nodes without an NFS group share none",
        (trainer(), player(), holds("gpu-1", GAMES)),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "K11: an offline target is refused, the others are served",
        (*TRAINERS, player(), holds("gpu-1", GAMES), offline("train-1")),
        played(),
        (f"gpu-1 -> train-2: {GAMES_PATH}", "offline: train-1"),
    ),
    Case(
        "K11: a recovered node is planned for again",
        (
            trainer(),
            player(),
            holds("gpu-1", GAMES),
            offline("train-1"),
            events.NodeRecovered(node="train-1"),
        ),
        played(),
        (f"gpu-1 -> train-1: {GAMES_PATH}",),
    ),
    Case(
        "K11: a recovered node has its own policy back, not a default one",
        (
            trainer(traits=[Trait.SKIP_SYNC_RECEIVE]),
            player(),
            holds("gpu-1", GAMES),
            offline("train-1"),
            events.NodeRecovered(node="train-1"),
        ),
        played(),
        ("skip-sync-receive: train-1", "no-target: all"),
    ),
    # What is never copied
    Case(
        "P21: a metadata database that is merged is never replaced by a copy",
        (trainer(), player(), holds("gpu-1", ELO)),
        requested("train-1", data_type=DataType.METADATA),
        (f"merged: train-1 {ELO.path}",),
    ),
    Case(
        "P4: another content under a shared path is a conflict, not a later version",
        (trainer(), *GPUS, holds("train-1", model()), holds("gpu-1", model("its own"))),
        promoted(),
        (
            "train-1 -> gpu-2: models/canonical_hex8_2p.pth",
            "conflict: gpu-1 models/canonical_hex8_2p.pth",
        ),
    ),
]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.rule) if isinstance(case, Case) else case for case in CASES],
)
def test_plan_follows_the_routing_table_and_the_rules(case: Case) -> None:
    """Exactly these entries move, these are held, and these rules refuse the rest."""
    given(*case.given).under(**case.policy).when(case.when).then(*case.then)


@pytest.mark.parametrize(
    ("trigger", "priority"),
    [
        (played(), SyncPriority.NORMAL),
        (started(), SyncPriority.HIGH),
        (orphaned(), SyncPriority.CRITICAL),
        (terminating(), SyncPriority.CRITICAL),
        (needed("vault"), SyncPriority.HIGH),
        (requested("vault"), SyncPriority.NORMAL),
        (requested("vault", priority=SyncPriority.LOW), SyncPriority.LOW),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Event) else value,
)
def test_priority_is_that_of_the_route_or_of_the_request(
    trigger: Event, priority: SyncPriority
) -> None:
    """The table says how urgent a trigger is; only a request says it itself."""
    story = given(trainer(), VAULT, player(), holds("gpu-1", GAMES))
    assert only_plan(story.plans(trigger)).priority is priority


def test_every_trigger_that_opens_a_chain_has_a_route() -> None:
    """No trigger can be accepted that no plan can be made for (P1)."""
    answered = {name for name in TRIGGERS_BY_NAME if [*Policy().placement.rules_on(name)]}
    assert answered == set(TRIGGERS_BY_NAME)


@pytest.mark.parametrize("size_mb", [30, 300])
def test_promoted_model_is_spread_peer_to_peer(size_mb: int) -> None:
    """However large it is: the source is to send it about once, not once a node."""
    large = model(size_bytes=size_mb * MEGABYTE)
    story = given(trainer(), GPUS[0]).under(transports={"installed": list(Transport)})
    story.tell(holds("train-1", large))
    chain = only_plan(story.plans(promoted())).transport_preference
    assert " ".join(chain) == "p2p rsync http base64"


@pytest.mark.parametrize(
    ("size_mb", "trigger", "transports"),
    [
        (100, played(), "p2p http base64"),
        (101, played(), "rsync http base64"),
        (100, orphaned(), "rsync base64"),
        (101, orphaned(), "rsync http base64"),
    ],
)
def test_transports_follow_size_and_urgency(size_mb: int, trigger: Event, transports: str) -> None:
    """K12: small p2p → http → base64; above 100 MB rsync first; urgent ones skip slow starts."""
    story = given(trainer(), VAULT, player()).under(transports={"installed": list(Transport)})
    story.tell(holds("gpu-1", games_of("gpu-1", size_bytes=size_mb * MEGABYTE)))
    assert " ".join(only_plan(story.plans(trigger)).transport_preference) == transports


def test_transports_are_cut_down_to_those_that_are_installed() -> None:
    """What this installation has not got is not tried; the order stays."""
    story = given(trainer(), player(), holds("gpu-1", GAMES))
    story.under(transports={"installed": ["base64", "http"]})
    plan = only_plan(story.plans(played()))
    assert plan.transport_preference == (Transport.HTTP_FETCH, Transport.BASE64_SSH)


def test_chain_of_which_nothing_is_installed_uses_what_is_there() -> None:
    """An empty list of transports would never move anything."""
    story = given(trainer(), player(), holds("gpu-1", GAMES)).under(
        transports={"installed": ["s3"]}
    )
    assert only_plan(story.plans(played())).transport_preference == (Transport.S3,)


def test_targets_that_lack_the_same_entries_share_a_plan() -> None:
    """A broadcast is one plan, so that its source is read once."""
    story = given(*TRAINERS, player(), holds("gpu-1", GAMES))
    assert only_plan(story.plans(played())).target_nodes == ("train-1", "train-2")


def test_entries_of_other_transports_are_plans_of_their_own() -> None:
    """A large file beside a small one does not force its transports on it."""
    large = entry("games/gpu-1/large_hex8_2p.db", size_bytes=101 * MEGABYTE, games=90)
    story = given(trainer(), player(), holds("gpu-1", GAMES, large))
    story.under(transports={"installed": list(Transport)})
    firsts = {p.entries[0].path: p.transport_preference[0] for p in story.plans(played()).plans}
    assert firsts == {GAMES_PATH: Transport.P2P_GOSSIP, large.path: Transport.RSYNC}


def test_deadline_of_the_trigger_is_that_of_the_plan() -> None:
    """Who says until when data is needed is heard down to each transfer."""
    story = given(trainer(), player(), holds("gpu-1", GAMES))
    wanted = events.TrainingStarted(config_key="hex8_2p", node="train-1", deadline=123.5)
    assert only_plan(story.plans(wanted)).deadline == 123.5
    assert only_plan(story.plans(played())).deadline is None


def test_plan_carries_the_version_of_what_it_moves() -> None:
    """The version tells old from new at the target; holders do not travel with the entry."""
    story = given(trainer(), player(), holds("gpu-1", GAMES))
    (planned,) = only_plan(story.plans(played())).entries
    assert (planned.version, planned.primary_location, planned.locations) == (3, "gpu-1", ())


def test_source_is_named_where_there_is_one() -> None:
    """With several sources no single one is named."""
    story = given(trainer(), player(), player("gpu-2"), holds("gpu-1", GAMES))
    assert story.plans(played()).source_node == "gpu-1"
    assert story.plans(started()).source_node == "gpu-1"
    story.tell(holds("gpu-2", games_of("gpu-2")))
    assert story.plans(started()).source_node == ""


def test_whose_data_a_decision_is_about_is_named_also_where_nothing_moves() -> None:
    """Who spoke, and of which configuration."""
    decision = given(trainer(), player(), holds("gpu-1", GAMES), offline("train-1")).plans(played())
    assert not decision.plans
    assert (decision.source_node, decision.config_key) == ("gpu-1", "hex8_2p")


def test_plans_come_in_the_order_of_what_they_move() -> None:
    """By path, whoever sends it: not by the names of those who do."""
    first, second = entry("games/1/hex8_2p.db", games=50), entry("games/2/hex8_2p.db", games=50)
    story = given(trainer(), player("z"), player("a"), holds("z", first), holds("a", second))
    plans = story.plans(started()).plans
    assert [(plan.source_node, plan.entries[0].path) for plan in plans] == [
        ("z", first.path),
        ("a", second.path),
    ]


def test_plan_says_why_in_the_words_of_its_rule() -> None:
    """What an operator reads of a transfer is what the policy says of it."""
    story = given(trainer(), player(), holds("gpu-1", GAMES))
    assert only_plan(story.plans(played())).reason == "self-play games for the training nodes"


def test_what_is_held_is_named_with_its_content_and_its_games() -> None:
    """So that what is announced of it, and who trains with it, is about this content."""
    story = given(trainer(), player(), holds("gpu-1", GAMES), copied(GAMES_PATH, "train-1"))
    assert story.plans(needed()).held == (Held("train-1", GAMES_PATH, GAMES.checksum, GAMES.games),)


# Announcements


def test_games_that_were_never_announced_are_announced() -> None:
    """New games for a training node owe NEW_GAMES_AVAILABLE."""
    assert given(trainer(), player(), holds("gpu-1", GAMES)).plans(played()).announces


def test_games_are_announced_whatever_other_rules_move_beside_them() -> None:
    """Each rule adds what it brings to training nodes."""
    sets = {"on": ["SELFPLAY_COMPLETE"], "data": ["npz"], "to": ["training"]}
    story = given(trainer(), player(), holds("gpu-1", GAMES, npz()))
    story.under(placement={"rules": {"sets": sets}})
    assert story.plans(played()).announces == (GAMES_PATH,)


def test_p15_games_that_were_announced_are_not_announced_again() -> None:
    """A second trigger without new games has nothing to announce."""
    story = given(trainer(), player(), ran("c1", played(), GAMES))
    assert not story.plans(played()).announces


def test_p15_files_without_games_are_not_announced() -> None:
    """A database in which no game was counted is no news, however often it moves."""
    story = given(trainer(), player(), holds("gpu-1", games_of("gpu-1", games=0)))
    assert not story.plans(played()).announces


def test_games_that_go_to_storage_only_are_not_announced() -> None:
    """Exporters read on training nodes; a rescue to storage is no news for them."""
    story = given(trainer(), VAULT, player(), holds("gpu-1", GAMES))
    assert not story.plans(orphaned()).announces


# Nothing without a reason


ROLES = st.sets(st.sampled_from(Role), max_size=2).map(tuple)
TRAITS = st.sets(st.sampled_from(Trait), max_size=2).map(tuple)
NAMES = ("n0", "n1", "n2", "n3")
ENTRIES: tuple[DataEntry, ...] = (
    games_of("n0"),
    games_of("n1"),
    npz(),
    model(),
    model(name="candidate_hex8_2p.pth"),
    ELO,
)
TRIGGERS = st.sampled_from(
    [
        *(played(name) for name in NAMES),
        *(started(name) for name in NAMES),
        promoted(name="n0"),
        completed("models/candidate_hex8_2p.pth", name="n0"),
        orphaned(name="n1"),
        needed("n2", DataType.METADATA),
        requested(*NAMES),
        requested("n1", "ghost"),
        requested(),
        terminating("n0"),
        *(expected(name) for name in NAMES),
    ]
)
CLUSTERS = st.lists(
    st.one_of(
        st.builds(
            lambda name, roles, traits, group: node(name, *roles, traits=traits, nfs_group=group),
            st.sampled_from(NAMES),
            ROLES,
            TRAITS,
            st.sampled_from(["", "rack"]),
        ),
        st.builds(holds, st.sampled_from(NAMES), st.sampled_from(ENTRIES)),
        st.builds(offline, st.sampled_from(NAMES)),
    ),
    max_size=10,
)


@settings(max_examples=80, deadline=None)
@sampled(facts=CLUSTERS, trigger=TRIGGERS)
def test_p2_no_plan_without_a_refusal_that_says_why(facts: list[Event], trigger: Event) -> None:
    """Whatever the cluster, a decision moves something, finds it in place, or says the rule."""
    decision = given(*facts).plans(trigger)
    assert lines_of(decision)
    assert all(refusal.rule and refusal.reason for refusal in decision.refusals)


@settings(max_examples=80, deadline=None)
@sampled(facts=CLUSTERS, trigger=TRIGGERS)
def test_entry_and_target_are_accounted_for_once(facts: list[Event], trigger: Event) -> None:
    """No entry is planned twice for one target, nor planned where it is held or refused."""
    decision = given(*facts).plans(trigger)
    places = [
        (target, what.path)
        for plan in decision.plans
        for target in plan.target_nodes
        for what in plan.entries
    ]
    places += [(held.target, held.path) for held in decision.held]
    refused = [refusal for refusal in decision.refusals if refusal.rule != SAME_MOUNT]
    places += [(refusal.target, refusal.path) for refusal in refused if refusal.path]
    assert len(places) == len(set(places))


@settings(max_examples=80, deadline=None)
@sampled(facts=CLUSTERS, trigger=TRIGGERS)
def test_nothing_moves_from_a_node_to_itself_or_to_one_that_may_not_receive(
    facts: list[Event], trigger: Event
) -> None:
    """K5, K11: whatever the cluster, no plan names a target that a rule excludes."""
    story = given(*facts)
    for plan in story.plans(trigger).plans:
        for target in plan.target_nodes:
            row = story.view.node(target)
            assert row is not None and row.online
            assert Trait.SKIP_SYNC_RECEIVE not in row.description.traits
            assert target != plan.source_node


# The questions of users


def test_plan_for_event_takes_the_wire_name_and_a_payload() -> None:
    """The planner answers what a trigger would cause now, before anybody publishes it."""
    story = given(trainer(), player(), holds("gpu-1", GAMES))
    planner = SyncPlanner(story.policy, story.view)
    payload = {"config_key": "hex8_2p", "source_node": "gpu-1", "games_count": 1}
    (plan,) = planner.plan_for_event("SELFPLAY_COMPLETE", payload)
    assert (plan.source_node, plan.target_nodes) == ("gpu-1", ("train-1",))


def test_plan_for_event_counts_a_rules_deadline_from_now() -> None:
    """As for a trigger that somebody says this very moment."""
    story = given(trainer(), player(), holds("gpu-1", GAMES))
    story.under(placement={"rules": {"training-start": {"deadline_s": 90}}})
    planner = SyncPlanner(story.policy, story.view, T0)
    payload = {"config_key": "hex8_2p", "node": "train-1"}
    (plan,) = planner.plan_for_event("TRAINING_STARTED", payload)
    assert plan.deadline == T0 + 90


@pytest.mark.parametrize(
    ("event_type", "payload", "text"),
    [
        ("SELFPLAY_DONE", {}, "known: SELFPLAY_COMPLETE, TRAINING_COMPLETED"),
        ("HOST_OFFLINE", {"node": "gpu-1"}, "has no route"),
        ("SELFPLAY_COMPLETE", {"config_key": "hex8_2p"}, r"`source_node`"),
        (
            "SELFPLAY_COMPLETE",
            {"config_key": "hex8 2p", "source_node": "g", "games_count": 1},
            r"\$\.config_key",
        ),
    ],
)
def test_plan_for_event_names_what_is_wrong(
    event_type: str, payload: dict[str, Any], text: str
) -> None:
    """A type without a route and a payload without a field are rejected by name (P14)."""
    story = given()
    with pytest.raises(CommandRejected, match=text):
        SyncPlanner(story.policy, story.view).plan_for_event(event_type, payload)


def test_what_belongs_on_a_node_is_what_the_table_would_bring_there() -> None:
    """`dataplane missing` asks by kind of node, and leaves out what no rule would bring."""
    story = given(
        trainer("train-1"),
        trainer("train-2", traits=[Trait.SKIP_SYNC_RECEIVE]),
        GPUS[0],
        VAULT,
        opens("c", played()),
    )
    planner = SyncPlanner(story.policy, story.view)
    wanted = {
        name: {what.path for what in (GAMES, npz(), model(), ELO) if planner.belongs(what, name)}
        for name in ("train-1", "train-2", "gpu-1", "vault", "ghost")
    }
    assert wanted == {
        "train-1": {GAMES.path, npz().path},
        "train-2": set(),
        "gpu-1": {model().path},
        "vault": set(),
        "ghost": set(),
    }


def test_a_standing_rule_for_all_kinds_brings_all_but_to_whom_it_must_not() -> None:
    """A rule without kinds takes each of them; a coordinator without storage keeps none."""
    to_all = {"standing": True, "on": ["SELFPLAY_COMPLETE"], "data": [], "to": ["name:*"]}
    policy = policy_of(placement={"rules": {"everywhere": to_all}})
    story = given(BOSS, VAULT, opens("c", played()))
    planner = SyncPlanner(policy, story.view)
    wanted = {
        name: {what.path for what in (GAMES, npz(), model(), ELO) if planner.belongs(what, name)}
        for name in ("boss", "vault")
    }
    assert wanted == {"boss": set(), "vault": {GAMES.path, npz().path, model().path}}
