"""What a chain says besides its ends: quorum, drained, who must play, which contents conflict."""

from __future__ import annotations

from typing import Any

import pytest

from dataplane.chain import owed
from dataplane.coordinator.bridge import _goes_on, _moved_on
from dataplane.policy import Policy
from streams import events
from streams.codec import fact_id
from streams.events import Event
from streams.values import DataType, Role, Trait
from tests.spec import (
    Story,
    Tellable,
    answers,
    as_fact,
    asked,
    assigned,
    copied,
    decided,
    entry,
    failed,
    games_of,
    given,
    holds,
    model,
    node,
    npz,
    opens,
    played,
    player,
    policy_of,
    said_what_is_owed,
    says,
    succeeded,
    trainer,
    wired,
)

ROOMY = {"max_total": 100, "max_per_node": 100}
MODEL = model()
GAMES, OTHER = games_of("gpu-1"), games_of("gpu-1", config_key="square8_2p")
VAULT = node("vault", Role.STORAGE)
PROMOTED = events.ModelPromoted(config_key="hex8_2p", node="train-1", model_path=MODEL.path)
TERMINATING = events.NodeTerminating(node="gpu-1")


def gpus(count: int) -> list[Event]:
    """So many GPU nodes."""
    return [node(f"gpu-{n:02}", Role.SELFPLAY, traits=[Trait.GPU]) for n in range(count)]


def promoting(count: int, **tables: Any) -> Any:
    """A promotion whose model is on its way to so many GPU nodes."""
    story = given(trainer(), *gpus(count), policy=policy_of(bandwidth=ROOMY, **tables))
    story.tell(opens("c1", PROMOTED), answers("c1", "train-1", MODEL), said_what_is_owed)
    return story.tell(assigned)


def test_distribution_is_complete_at_the_quorum_of_ten_and_once() -> None:
    """Nine GPU nodes are not enough, the tenth is, and the rest go on until the chain's end."""
    story = promoting(12)
    story.tell(*(succeeded(f"gpu-{n:02}") for n in range(9)))
    story.when(asked("c1")).then_nothing()
    story.tell(succeeded("gpu-09")).when(asked("c1")).then(
        says(
            events.ModelDistributionComplete,
            model_path=MODEL.path,
            checksum=MODEL.checksum,
            targets=tuple(f"gpu-{n:02}" for n in range(10)),
        )
    )
    story.tell(said_what_is_owed).when(asked("c1")).then_nothing()
    story.tell(succeeded()).when(asked("c1")).then(says(events.DataSyncCompleted))


def test_distribution_to_few_nodes_is_complete_when_all_have_it() -> None:
    """Ten, or all there are; who holds it already counts."""
    story = promoting(3)
    story.tell(succeeded("gpu-00"), succeeded("gpu-01")).when(asked("c1")).then_nothing()
    story.tell(succeeded("gpu-02")).when(asked("c1")).then(
        says(events.ModelDistributionComplete), says(events.DataSyncCompleted)
    )


def test_quorum_is_a_number_of_the_policy() -> None:
    """Changed in one place."""
    story = promoting(3, placement={"rules": {"promotion": {"quorum": 1}}})
    story.tell(succeeded("gpu-01")).when(asked("c1")).then(
        says(events.ModelDistributionComplete, targets=("gpu-01",))
    )


def test_the_bucket_is_none_of_the_targets_that_make_a_quorum() -> None:
    """However slow a backup is, the model is distributed once all who play with it have it."""
    story = promoting(1, s3={"enabled": True, "bucket": "b"})
    assert {row.target for row in story.under_way()} == {"gpu-00", "s3"}
    story.tell(succeeded("gpu-00")).when(asked("c1")).then(
        says(events.ModelDistributionComplete, targets=("gpu-00",))
    )


def test_promotion_that_no_rule_answers_ends_without_a_distribution() -> None:
    """It is said which rules are missing."""
    off = {"promotion": {"enabled": False}, "promotion-backup": {"enabled": False}}
    story = given(trainer(), *gpus(1), policy=policy_of(placement={"rules": off}))
    story.tell(opens("c1", PROMOTED), answers("c1", "train-1", MODEL))
    story.when(asked("c1")).then(
        says(events.SyncPlanned),
        says(events.DataSyncFailed, reason="no rule of the policy answers MODEL_PROMOTED"),
    )


def test_model_that_everybody_holds_is_distributed() -> None:
    """Nothing has to move, and it is said all the same."""
    story = given(trainer(), *gpus(2), holds("train-1", MODEL))
    story.tell(copied(MODEL.path, "gpu-00"), copied(MODEL.path, "gpu-01"))
    story.tell(opens("c1", PROMOTED), answers("c1", "train-1"))
    story.when(asked("c1")).then(
        says(events.SyncPlanned),
        says(events.ModelDistributionComplete, targets=("gpu-00", "gpu-01")),
        says(events.DataSyncCompleted),
    )


def test_distribution_below_the_quorum_is_never_complete() -> None:
    """Where a node of a few fails for good, the chain fails and distribution is not claimed."""
    story = promoting(2, retries={"max_retries": 0})
    story.tell(succeeded("gpu-00"), failed("gpu-01"))
    story.when(asked("c1")).then(says(events.DataSyncFailed))


def emptied() -> Story:
    """All that gpu-1 holds has arrived elsewhere."""
    story = given(VAULT, player(), opens("c1", TERMINATING), answers("c1", "gpu-1", GAMES))
    story.tell(said_what_is_owed, assigned).when(asked("c1")).then_nothing()
    assert story.view.drains() == []
    story.tell(succeeded()).when(asked("c1")).then(says(events.DataSyncCompleted))
    return story.tell(said_what_is_owed)


@pytest.mark.parametrize(
    "what",
    [
        decided("c1", events.NodeDrained(node="gpu-1", entries=1)),
        events.NodeDrainCancelled(node="gpu-1"),
        events.NodeRecovered(node="gpu-1"),
        opens("c2", TERMINATING),
    ],
    ids=["it is said", "the node stays after all", "it is well again", "it is emptied anew"],
)
def test_k9_an_emptied_node_is_to_be_proven_drained_until(what: Tellable) -> None:
    """From the completion of its chain on; the catalog's word is not enough for NODE_DRAINED."""
    story = emptied()
    assert [row.id for row in story.view.drains()] == ["c1"]
    assert story.tell(what).view.drains() == []


STAYS = events.NodeDrainCancelled(node="gpu-1")


@pytest.mark.parametrize("answered", [False, True], ids=["waiting for files", "ready"])
def test_k9_what_was_not_planned_when_its_node_stayed_is_not(answered: bool) -> None:
    """Its chain has one end, at once."""
    story = given(VAULT, player(), opens("c1", TERMINATING))
    story.tell(*([answers("c1", "gpu-1", GAMES)] if answered else []), STAYS)
    story.when(asked("c1")).then(says(events.DataSyncFailed, reason="gpu-1 stays after all"))
    [end] = owed(story.chain("c1"), {}, story.plans, story.policy, story.now, "because")
    assert end.cause == "because"
    story.tell(said_what_is_owed).when(asked("c1")).then_nothing()


def test_k9_what_has_not_left_a_node_that_stays_is_given_up() -> None:
    """What has arrived is told; nothing waits or is assigned for the chain any more."""
    story = given(VAULT, player(), opens("c1", TERMINATING))
    story.tell(answers("c1", "gpu-1", GAMES, OTHER), said_what_is_owed, assigned)
    story.tell(succeeded(path=GAMES.path), STAYS)
    [fact] = story.owes()["c1"]
    assert isinstance(fact.event, events.DataSyncFailed)
    assert fact.event.reason == "gpu-1 stays after all: 1 of 2 copies are missing on vault"
    assert [one.path for one in fact.event.arrived] == [GAMES.path]
    assert [one.error for one in fact.event.failed] == ["given up: gpu-1 stays after all"]
    story.tell(said_what_is_owed)
    assert (list(story.view.pending()), story.view.drains()) == ([], [])


def test_k9_chain_of_a_node_that_stays_completes_if_all_has_arrived() -> None:
    """It says what is true, and the node is not drained."""
    story = given(VAULT, player(), opens("c1", TERMINATING), answers("c1", "gpu-1", GAMES))
    story.tell(said_what_is_owed, assigned, STAYS, succeeded())
    story.when(asked("c1")).then(says(events.DataSyncCompleted))
    assert story.tell(said_what_is_owed).view.drains() == []


def test_k9_node_that_could_not_be_drained_is_not_said_to_be() -> None:
    """A copy that did not arrive, or a file no node could take, is no drained node."""
    story = given(VAULT, player(), policy=policy_of(retries={"max_retries": 0}))
    story.tell(opens("c1", TERMINATING), answers("c1", "gpu-1", GAMES), said_what_is_owed)
    story.tell(assigned, failed()).when(asked("c1")).then(says(events.DataSyncFailed))
    story.tell(said_what_is_owed)
    assert story.view.drains() == []
    story = given(player(), opens("c1", TERMINATING), answers("c1", "gpu-1", GAMES))
    story.when(asked("c1")).then(says(events.SyncPlanned), says(events.DataSyncFailed))


def test_k9_node_that_holds_nothing_is_drained_at_once() -> None:
    """Nothing can be lost: the chain completes."""
    story = given(VAULT, player(), opens("c1", TERMINATING), answers("c1", "gpu-1"))
    story.when(asked("c1")).then(
        says(events.SyncPlanned),
        says(events.DataSyncCompleted),
    )
    story.tell(said_what_is_owed)
    assert [row.node for row in story.view.drains()] == ["gpu-1"]


def test_data_that_exists_but_not_enough_of_it_must_be_played_and_moves() -> None:
    """SELFPLAY_NEEDED for what lacks, and the rest is sent meanwhile."""
    needed = events.DataNeeded(
        node="train-1", config_key="hex8_2p", data_type=DataType.GAMES, min_samples=501
    )
    story = given(trainer(), player(), holds("gpu-1", GAMES), opens("c1", needed))
    story.when(asked("c1")).then(
        says(events.SyncPlanned),
        says(events.SelfplayNeeded, min_samples=501),
        says(events.DataSyncStarted),
    )


def test_data_that_somebody_has_and_nobody_can_send_need_not_be_played() -> None:
    """An offline holder is no reason to play it again."""
    needed = events.DataNeeded(node="train-1", config_key="hex8_2p", data_type=DataType.GAMES)
    story = given(trainer(), player(), holds("gpu-1", GAMES), opens("c1", needed))
    story.tell(events.HostOffline(node="gpu-1"))
    story.when(asked("c1")).then(says(events.SyncPlanned), says(events.DataSyncFailed))


def test_p4_conflict_is_a_fact_with_what_the_node_keeps() -> None:
    """FILE_CONFLICT names node, path and content, once, beside the plan."""
    own = model("its own")
    story = given(trainer(), *gpus(1), holds("train-1", MODEL), holds("gpu-00", own))
    story.tell(opens("c1", PROMOTED), answers("c1", "train-1"))
    story.when(asked("c1")).then(
        says(events.SyncPlanned),
        says(events.FileConflict, node="gpu-00", path=MODEL.path, checksum=own.checksum),
        says(events.DataSyncFailed),
    )


def test_each_conflict_of_a_chain_is_said_for_it_under_an_id_of_its_own() -> None:
    """By node and path, or all but the first would be taken for it; caused by what was asked."""
    models = [model(), model(name="canonical_hex8_2p_large.pth")]
    own = [model("its own"), model("its own", name="canonical_hex8_2p_large.pth")]
    wanted = events.DataSyncRequested(
        data_type=DataType.MODELS, config_key="hex8_2p", target_nodes=("gpu-00", "gpu-01")
    )
    story = given(trainer(), *gpus(2), holds("train-1", *models))
    story.tell(holds("gpu-00", *own), holds("gpu-01", *own), opens("c1", wanted))
    facts = story.when(asked("c1")).facts
    found = {fact.id: fact for fact in facts if isinstance(fact.event, events.FileConflict)}
    places = [(node, what.path) for node in ("gpu-00", "gpu-01") for what in models]
    assert set(found) == {fact_id("c1", "FILE_CONFLICT", *place) for place in places}
    assert {(fact.chain, fact.cause) for fact in found.values()} == {("c1", "c1")}


def test_p5_regression_is_a_conflict_in_which_both_stay() -> None:
    """A training set that shrank is told as FILE_CONFLICT."""
    story = given(trainer(), player(), holds("gpu-1", npz(size_bytes=1_000)))
    story.tell(copied(npz().path, "train-1"), holds("gpu-1", npz("new", size_bytes=799)))
    story.tell(opens("c1", events.TrainingStarted(config_key="hex8_2p", node="train-1")))
    story.when(asked("c1")).then(
        says(events.SyncPlanned), says(events.FileConflict), says(events.DataSyncFailed)
    )


def test_chain_of_many_files_is_not_read_at_each_arrival() -> None:
    """More under way means nothing is owed; the last arrival, and a counted one, is looked at."""
    many = [entry(f"games/gpu-1/{n:03}_hex8_2p.db", games=10) for n in range(30)]
    story = given(trainer(), player(), policy=policy_of(bandwidth=ROOMY))
    story.tell(opens("c1", played()), answers("c1", "gpu-1", *many), said_what_is_owed, assigned)
    assert _goes_on(story.view, "c1", "train-1", story.policy)
    story.tell(*(succeeded(path=one.path) for one in many[:-1]))
    assert _goes_on(story.view, "c1", "train-1", story.policy)
    story.tell(succeeded())
    assert not _goes_on(story.view, "c1", "train-1", story.policy)
    assert not _goes_on(promoting(30).view, "c1", "gpu-00", story.policy)


def test_arrival_that_leaves_only_the_bucket_waiting_is_looked_at() -> None:
    """P13: games are announced as soon as the nodes have them, however slow the bucket is."""
    story = given(trainer(), player(), policy=policy_of(s3={"enabled": True, "bucket": "b"}))
    story.tell(opens("c1", played()), answers("c1", "gpu-1", GAMES), said_what_is_owed, assigned)
    assert _goes_on(story.view, "c1", "s3", story.policy)
    story.tell(succeeded("train-1"))
    assert not _goes_on(story.view, "c1", "train-1", story.policy)


def test_failure_moves_a_chain_on_only_where_it_is_the_last_of_the_last() -> None:
    """What is tried again ends nothing, nor does what is given up while more is under way."""
    two = [entry(f"games/gpu-1/{n}_hex8_2p.db", games=10) for n in range(2)]
    policy = policy_of(bandwidth=ROOMY, retries={"max_retries": 0})
    patient = policy_of(bandwidth=ROOMY, retries={"max_retries": 1})
    story = given(trainer(), player(), policy=policy)
    story.tell(opens("c1", played()), answers("c1", "gpu-1", *two), said_what_is_owed, assigned)

    def moved_on_by_the_failure_of(path: str, policy: Policy) -> list[str]:
        [event] = failed(path=path)(story)
        story.tell(event)
        return _moved_on(story.view, wired(as_fact(event, 1), 1, 0.0), policy)

    assert moved_on_by_the_failure_of(two[0].path, policy) == []
    [event] = failed(path=two[1].path)(story)
    assert moved_on_by_the_failure_of(two[1].path, policy) == ["c1"]
    assert _moved_on(story.view, wired(as_fact(event, 1), 1, 0.0), patient) == []
