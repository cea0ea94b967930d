"""What goes to the bucket, what a chain says of it, and that a backup never holds up training."""

from __future__ import annotations

import pytest

from streams import events
from streams.codec import fact_id
from streams.events import Event
from streams.values import MOST_COUNTED, S3_NODE, Role, SyncPriority, Trait, Transport
from tests.spec import (
    Story,
    answers,
    asked,
    assigned,
    entry,
    failed,
    games_of,
    given,
    model,
    node,
    opens,
    played,
    player,
    policy_of,
    said_what_is_owed,
    says,
    succeeded,
    succeeded_with,
    trainer,
)

BUCKET = policy_of(s3={"enabled": True, "bucket": "backups"}, retries={"max_retries": 0})
GAMES = games_of("gpu-1", games=500)
MODEL = model()
CANDIDATE = entry("models/gpu-1/candidate_hex8_2p.pth", data_type=MODEL.data_type)
STORE = node("store", Role.STORAGE)


def started(*found: object, policy: object = BUCKET) -> Story:
    """A self-play chain whose plan is said and whose transfers are under way."""
    return given(
        trainer(),
        player(),
        opens("c1", played()),
        answers("c1", "gpu-1", *(found or (GAMES,))),  # type: ignore[arg-type]
        said_what_is_owed,
        assigned,
        policy=policy,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("trigger", "holds", "lines"),
    [
        (played(), GAMES, {"gpu-1 -> train-1", "gpu-1 -> s3"}),
        (
            events.TrainingCompleted(config_key="hex8_2p", node="gpu-1", model_path=CANDIDATE.path),
            CANDIDATE,
            {"gpu-1 -> store", "gpu-1 -> s3"},
        ),
        (
            events.ModelPromoted(config_key="hex8_2p", node="gpu-1", model_path=MODEL.path),
            MODEL,
            {"gpu-1 -> gpu-2", "gpu-1 -> s3"},
        ),
        (
            events.OrphanGamesDetected(node="gpu-1", config_key="hex8_2p", orphan_count=1),
            GAMES,
            {"gpu-1 -> store", "gpu-1 -> s3"},
        ),
        (
            events.NodeTerminating(node="gpu-1"),
            GAMES,
            {"gpu-1 -> store", "gpu-1 -> s3", "gpu-1 -> train-1"},
        ),
    ],
)
def test_k19_what_these_triggers_move_goes_to_the_bucket_too(
    trigger: Event, holds: object, lines: set[str]
) -> None:
    """By the transport of the bucket; where there is none, nothing is planned for it."""
    gpu = node("gpu-2", Role.SELFPLAY, traits=[Trait.GPU])
    found = events.FilesObserved(node="gpu-1", entries=(holds,))  # type: ignore[arg-type]
    story = given(trainer(), STORE, gpu, player(), found, policy=BUCKET)
    plans = story.plans(trigger).plans
    assert {f"{p.source_node} -> {t}" for p in plans for t in p.target_nodes} == lines
    [to_bucket] = [plan for plan in plans if plan.target_nodes == (S3_NODE,)]
    assert to_bucket.transport_preference == (Transport.S3,)
    urgent = isinstance(trigger, events.OrphanGamesDetected | events.NodeTerminating)
    assert to_bucket.priority is (SyncPriority.CRITICAL if urgent else SyncPriority.LOW)
    story.under(s3={"enabled": False})
    assert S3_NODE not in {t for plan in story.plans(trigger).plans for t in plan.target_nodes}


def test_k19_self_play_is_backed_up_from_a_hundred_games() -> None:
    """Fewer are refused by name, and hold up nothing."""
    few = games_of("gpu-1", games=99)
    story = given(trainer(), player(), events.FilesObserved(node="gpu-1", entries=(few,)))
    story.under(s3={"enabled": True, "bucket": "b"})
    story.when(played()).then(f"gpu-1 -> train-1: {few.path}", f"s3-min-games: s3 {few.path}")


def test_what_the_bucket_holds_is_not_sent_again() -> None:
    """It is named as held, like any copy."""
    stored = succeeded_with(GAMES, S3_NODE, source="gpu-1")
    story = given(trainer(), player(), events.FilesObserved(node="gpu-1", entries=(GAMES,)))
    story.under(s3={"enabled": True, "bucket": "b"}).tell(stored)
    story.when(played()).then(f"gpu-1 -> train-1: {GAMES.path}", f"s3 holds {GAMES.path}")


def test_a_holder_is_asked_to_push_to_the_bucket() -> None:
    """Nobody runs in the bucket: the source executes."""
    story = started()
    executors = {row.target: row.executor for row in story.under_way()}
    assert executors == {"train-1": "train-1", S3_NODE: "gpu-1"}


def test_a_chain_says_that_it_is_backed_up_and_completes() -> None:
    """S3_BACKUP_COMPLETED once the bucket has all; games are announced for nodes, never for it."""
    story = started().tell(succeeded())
    story.when(asked("c1")).then(
        says(
            events.S3BackupCompleted,
            bucket="backups",
            manifest_key="nodes/gpu-1/manifest.json",
            entries=1,
            size_bytes=GAMES.size_bytes,
            config_key="hex8_2p",
        ),
        says(events.DataSyncCompleted, games_synced=500),
        says(events.NewGamesAvailable, targets=("train-1",), game_count=500),
    )


def test_only_what_the_bucket_was_to_have_is_backed_up_under_its_prefix() -> None:
    """However many nodes get it; each source that backs up for a chain says so for itself."""
    policy = policy_of(s3={"enabled": True, "bucket": "backups", "prefix": "cluster-a"})
    story = given(trainer("train-2"), policy=policy)
    story.tell(trainer(), player(), opens("c1", played()), answers("c1", "gpu-1", GAMES))
    story.tell(said_what_is_owed, assigned, succeeded(S3_NODE))
    [fact] = story.owes("c1")["c1"]
    assert isinstance(fact.event, events.S3BackupCompleted)
    assert (fact.event.entries, fact.event.size_bytes) == (1, GAMES.size_bytes)
    assert fact.event.manifest_key == "cluster-a/nodes/gpu-1/manifest.json"
    assert fact.id == fact_id("c1", "S3_BACKUP_COMPLETED", "gpu-1")


def test_p1_backup_of_the_largest_sizes_can_be_said() -> None:
    """Their sum is a number that a message holds."""
    huge = [entry(f"games/gpu-1/{n}.db", size_bytes=MOST_COUNTED, games=500) for n in "ab"]
    story = started(*huge).tell(succeeded())
    backed_up = story.when(asked("c1")).events[0]
    assert isinstance(backed_up, events.S3BackupCompleted)
    assert (backed_up.entries, backed_up.size_bytes) == (2, MOST_COUNTED)


def test_p13_a_slow_bucket_does_not_hold_up_training() -> None:
    """Games are announced once the trainers have them, and once only."""
    story = started().tell(succeeded("train-1"))
    story.when(asked("c1")).then(says(events.NewGamesAvailable, targets=("train-1",)))
    story.tell(said_what_is_owed).when(asked("c1")).then_nothing()
    story.tell(succeeded(S3_NODE)).when(asked("c1")).then(
        says(events.S3BackupCompleted), says(events.DataSyncCompleted)
    )


def test_p13_a_bucket_that_is_away_fails_the_backup_and_not_the_announcement() -> None:
    """The chain's end says what is missing where; exporters are told all the same."""
    story = started().tell(succeeded("train-1"), failed(S3_NODE, error_class="Unreachable"))
    story.when(asked("c1")).then(
        says(events.DataSyncFailed, reason="1 of 2 copies are missing on s3"),
        says(events.NewGamesAvailable, targets=("train-1",)),
    )


def test_a_trainer_that_lacks_games_is_not_announced_because_the_bucket_has_them() -> None:
    """The bucket trains nothing."""
    story = started().tell(succeeded(S3_NODE))
    story.when(asked("c1")).then(says(events.S3BackupCompleted))
    story.tell(said_what_is_owed).when(asked("c1")).then_nothing()
    story.tell(failed("train-1")).when(asked("c1")).then(says(events.DataSyncFailed))


def test_the_bucket_has_no_slots_of_its_own() -> None:
    """Transfers to it are limited by those who push, not by one place for all."""
    nodes = [f"gpu-{number}" for number in range(8)]
    facts = [x for n in nodes for x in (player(n), opens(n, played(n)), answers(n, n, games_of(n)))]
    limits = policy_of(s3={"enabled": True, "bucket": "b"}, bandwidth={"max_per_node": 1})
    story = given(*facts, said_what_is_owed, assigned, policy=limits)
    assert len(story.under_way(S3_NODE)) == len(nodes)
