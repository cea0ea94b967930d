"""Why a file is on a node and why it is not: the answer names the rule, the wait or the failure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from dataplane.explain import Asked, Explanation, explain, speaks_of_path
from dataplane.prove.whys import ends_in
from streams import events
from streams.values import S3_NODE, DataType, Role, Trait
from tests.spec import (
    Story,
    after,
    answers,
    assigned,
    copied,
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
    ran,
    said_what_is_owed,
    succeeded,
    trainer,
)
from tests.unit.histories import Step, histories, lived

GAMES = games_of("gpu-1")
MODEL = model()
MOVING = (
    trainer(),
    player(),
    opens("c1", played()),
    answers("c1", "gpu-1", GAMES),
    said_what_is_owed,
    assigned,
)
ONE_AT_ONCE = policy_of(bandwidth={"max_per_node": 1}, retries={"max_retries": 1})


def answer(story: Story, path: str = GAMES.path, name: str = "train-1") -> Explanation:
    """What is said of a path and a node."""
    history = [f for f in story.facts if f.event and speaks_of_path(f.event, path)]
    return explain(Asked(path, name, story.view, history, story.policy, story.now))


def check(found: Explanation, *words: str, there: bool = False) -> None:
    """The verdict, and words that the answer or its sentences must hold."""
    text = "\n".join((found.answer, *(sentence.text for sentence in found.sentences)))
    assert found.there is there, text
    for word in words:
        assert word in text, f"{word!r} is not in:\n{text}"


def test_copy_is_explained_from_its_producer_to_its_arrival() -> None:
    """Who produced it, which trigger asked, which plan, which attempt brought it."""
    found = answer(given(*MOVING, succeeded()))
    check(
        found,
        "train-1 holds games/gpu-1/hex8_2p.db (500 games, 1.0 KB",
        "gpu-1 reported it as a file it produced, asked by SELFPLAY_COMPLETE of gpu-1",
        "planned it: self-play games for the training nodes, from gpu-1, normal priority",
        "attempt 1 brought it from gpu-1",
        there=True,
    )
    assert [s.sequence for s in found.sentences] == sorted(s.sequence for s in found.sentences)
    assert all(sentence.sequence for sentence in found.sentences)


def test_copy_that_took_several_attempts_names_each_failure() -> None:
    """What went wrong on the way is part of the way."""
    story = given(*MOVING, failed(error_class="Stalled"), after(5.0), assigned, succeeded())
    check(answer(story), "attempt 1 from gpu-1 failed: Stalled: no byte came", there=True)
    check(answer(story), "attempt 2 brought it from gpu-1", there=True)


def test_copy_in_the_bucket_that_nobody_asked_for_came_by_the_last_push() -> None:
    """A node that is told to end stores what the bucket lacks; that is the end of the answer."""
    story = given(player(), holds("gpu-1", GAMES), copied(GAMES.path, S3_NODE))
    found = answer(story, name=S3_NODE)
    check(
        found,
        "gpu-1 stored it by the rule of the last push, when its agent was to end: 0 bytes",
        there=True,
    )
    assert ends_in(found, story.facts, set()) == "rule"


def test_own_file_of_a_node_needs_no_transfer() -> None:
    """A producer holds what it produced."""
    story = given(trainer(), player(), holds("gpu-1", GAMES))
    check(answer(story, name="gpu-1"), "gpu-1 reported it as a file of its own", there=True)


CASES: dict[str, tuple[tuple[Any, ...], str, str, tuple[str, ...]]] = {
    "a node that never joined": (
        (trainer(), player(), holds("gpu-1", GAMES)),
        GAMES.path,
        "ghost",
        ("no node ghost ever joined; known: gpu-1, train-1",),
    ),
    "a file nobody reported": (
        (trainer(), player()),
        GAMES.path,
        "train-1",
        ("no node ever reported such a file",),
    ),
    "a file whose producer never joined": (
        (trainer(),),
        "games/gpu-9/hex8_2p.db",
        "train-1",
        ("no node gpu-9 ever joined, if that is to be its producer",),
    ),
    "a file that was set aside": (
        (
            trainer(),
            events.FileQuarantined(
                node="gpu-1", path=GAMES.path, checksum=GAMES.checksum, reason="quick_check failed"
            ),
        ),
        GAMES.path,
        "train-1",
        ("set aside on gpu-1", "quick_check failed"),
    ),
    "a file for which the disk has no room": (
        (
            trainer(disk_total_bytes=10**6, disk_free_bytes=500),
            player(),
            opens("c1", played()),
            answers("c1", "gpu-1", GAMES),
            said_what_is_owed,
        ),
        GAMES.path,
        "train-1",
        ("waiting: train-1 has 500 B left, and it takes 1.1 KB",),
    ),
    "a file in flight": (
        MOVING,
        GAMES.path,
        "train-1",
        ("in flight from gpu-1 for 0 s (attempt 1)", "normal priority", "SELFPLAY_COMPLETE"),
    ),
    "a file waiting for its retry": (
        (*MOVING, failed()),
        GAMES.path,
        "train-1",
        ("tried again at", "attempt 1 failed, Stalled: no byte came"),
    ),
    "a file whose last attempt can't be made better": (
        (*MOVING, failed(error_class="EntryMissing", retryable=False)),
        GAMES.path,
        "train-1",
        ("given up after 1 attempts", "EntryMissing"),
    ),
    "a file of a chain that failed": (
        (*MOVING, failed(error_class="Refused", retryable=False), said_what_is_owed),
        GAMES.path,
        "train-1",
        ("all attempts to bring it failed", "attempt 1 from gpu-1 failed: Refused"),
    ),
    "a node that is excluded": (
        (
            trainer(),
            trainer("train-2", traits=[Trait.SKIP_SYNC_RECEIVE]),
            player(),
            opens("c1", played()),
            answers("c1", "gpu-1", GAMES),
            said_what_is_owed,
        ),
        GAMES.path,
        "train-2",
        ("did not plan it by the rule skip-sync-receive: train-2 has skip_sync_receive",),
    ),
    "a node that was offline": (
        (
            trainer(),
            player(),
            events.HostOffline(node="train-1", reason="ping lost"),
            opens("c1", played()),
            answers("c1", "gpu-1", GAMES),
            said_what_is_owed,
        ),
        GAMES.path,
        "train-1",
        ("by the rule offline: train-1 is offline: ping lost",),
    ),
    "a database with too few games": (
        (
            trainer(),
            player(),
            opens("c1", played()),
            answers(
                "c1",
                "gpu-1",
                games_of("gpu-1", games=3),
                entry("games/gpu-1/b_hex8_2p.db", games=50),
            ),
            said_what_is_owed,
        ),
        GAMES.path,
        "train-1",
        ("too-few-games", "has 3 games, worth moving from 10"),
    ),
    "a content of the node's own": (
        (
            trainer(),
            node("gpu-2", Role.SELFPLAY, traits=[Trait.GPU]),
            holds("train-1", MODEL),
            holds("gpu-2", model("its own")),
            opens(
                "c1",
                events.ModelPromoted(config_key="hex8_2p", node="train-1", model_path=MODEL.path),
            ),
            answers("c1", "train-1"),
            said_what_is_owed,
        ),
        MODEL.path,
        "gpu-2",
        ("gpu-2 holds another content under", "by the rule conflict"),
    ),
    "a file that was removed again": (
        (*MOVING, succeeded(), events.FilesRemoved(node="train-1", paths=(GAMES.path,))),
        GAMES.path,
        "train-1",
        ("is not on train-1 any more: it was removed from train-1",),
    ),
    "a file that nobody holds any more": (
        (
            trainer(),
            player(),
            holds("gpu-1", GAMES),
            events.FilesRemoved(node="gpu-1", paths=(GAMES.path,)),
        ),
        GAMES.path,
        "train-1",
        ("no node holds it any more", "it was removed from gpu-1"),
    ),
    "a file that no trigger has asked for": (
        (trainer(), player(), holds("gpu-1", GAMES)),
        GAMES.path,
        "train-1",
        (
            "no trigger has asked for it since it appeared on gpu-1",
            "by selfplay (on SELFPLAY_COMPLETE)",
            "dataplane sync hex8_2p train-1 --type games",
        ),
    ),
    "a kind of data that no rule brings": (
        (trainer(), player(), holds("gpu-1", MODEL)),
        MODEL.path,
        "train-1",
        ("no rule brings models to it: such data goes only to gpu nodes, and train-1 is training",),
    ),
    "a file that is merged": (
        (
            trainer(),
            player(),
            holds("gpu-1", entry("metadata/elo.db", data_type=DataType.METADATA)),
        ),
        "metadata/elo.db",
        "train-1",
        ("never replaced by a copy",),
    ),
    "the bucket where there is none": (
        (trainer(), player(), holds("gpu-1", GAMES)),
        GAMES.path,
        "s3",
        ("there is no bucket, policy.s3.enabled is false",),
    ),
    "a training set that shrank": (
        (
            trainer(),
            player(),
            holds("gpu-1", npz(size_bytes=1_000)),
            copied(npz().path, "train-1"),
            holds("gpu-1", npz("new", size_bytes=500)),
            opens("c1", events.TrainingStarted(config_key="hex8_2p", node="train-1")),
            said_what_is_owed,
        ),
        npz().path,
        "train-1",
        ("by the rule regression", "has 500 bytes, train-1 holds 1000: less than 80%"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_absence_is_explained_by(name: str) -> None:
    """The first reason that holds, in its figures."""
    facts, path, where, words = CASES[name]
    check(answer(given(*facts), path, where), *words)


def test_what_waits_says_behind_what() -> None:
    """A pending transfer names the slot it waits for."""
    other = games_of("gpu-2")
    story = given(trainer(), player(), player("gpu-2"), policy=ONE_AT_ONCE)
    story.tell(opens("c1", played()), answers("c1", "gpu-1", GAMES), said_what_is_owed, assigned)
    story.tell(opens("c2", played("gpu-2")), answers("c2", "gpu-2", other), said_what_is_owed)
    check(answer(story, other.path), "waiting: train-1 has 1 of 1 transfers")


def test_whole_chain_explains_both_ends() -> None:
    """After a chain has ended the way is still told."""
    check(answer(given(trainer(), player(), ran("c1", played(), GAMES))), "brought it", there=True)


@settings(max_examples=40, deadline=None)
@sampled(steps=histories(), path=st.integers(0, 8), where=st.sampled_from(["n0", "n1", "n2", "zz"]))
def test_no_history_leaves_a_question_without_an_answer(
    steps: list[Step], path: int, where: str
) -> None:
    """Whatever happened, any path on any node has an answer, and it is never 'unknown'."""
    story = lived(steps)
    known = sorted({entry.path for entry in story.view.catalog.entries()}) or [GAMES.path]
    found = answer(story, known[path % len(known)], where)
    assert found.answer and "unknown" not in found.answer
    held = story.view.held_by(where, found.path)
    current = story.view.catalog.get(found.path)
    assert found.there == bool(held and current and held.checksum == current.checksum)
    assert found.there or len(found.answer) > len(f"{found.path} is not on {where}: ")
