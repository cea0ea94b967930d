"""Any question after a life with faults: why is this on that node, or why not."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from dataplane.explain import Asked, Explanation, Sentence, explain, speaks_of_path
from dataplane.prove.whys import ask_why, ends_in
from streams import events
from streams.events import CHAIN_TRIGGERS, Event
from tests.spec import Story
from tests.unit.histories import NAMES, STEPS, Step, lived

QUESTIONS = 500
#: What an answer may end in: a trigger, a decision with its rules, or what a node found or failed.
ENDS: tuple[type[Event], ...] = (
    *CHAIN_TRIGGERS,
    events.SyncPlanned,
    events.FilesObserved,
    events.FilesRemoved,
    events.FileQuarantined,
    events.TransferAssigned,
    events.TransferSucceeded,
    events.TransferFailed,
)


def a_life(seed: int) -> Story:
    """Chains that run, and everything that disturbs them, in random order."""
    rng = random.Random(seed)
    often = [*STEPS, *["round"] * 10, *["play"] * 6]
    steps: list[Step] = [
        (rng.choice(often), rng.randrange(len(NAMES)), rng.randrange(5)) for _ in range(250)
    ]
    return lived(steps)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_why_ends_in_a_trigger_a_rule_or_a_fault(seed: int) -> None:
    """500 random files and nodes: no answer is empty, and each rests on facts of the log."""
    story, rng = a_life(seed), random.Random(seed)
    paths = sorted(
        {
            entry.path
            for fact in story.facts
            if isinstance(fact.event, events.FilesObserved)
            for entry in fact.event.entries
        }
    )
    joined = [row.name for row in story.view.nodes()]
    assert len(paths) > 4
    for _ in range(QUESTIONS):
        path, node = rng.choice(paths), rng.choice([*joined, "never-seen"])
        told = [f for f in story.facts if f.event is not None and speaks_of_path(f.event, path)]
        answer = explain(Asked(path, node, story.view, told, story.policy, story.now))
        assert answer.answer
        assert "unknown" not in answer.answer
        if node == "never-seen":
            assert "ever joined" in answer.answer
            continue
        rests_on = [story.facts[s.sequence - 1].event for s in answer.sentences if s.sequence]
        assert rests_on, answer
        assert all(isinstance(event, ENDS) for event in rests_on), answer


@pytest.mark.parametrize("seed", [1, 2])
def test_what_answers_end_in_is_counted_from_the_log_alone(seed: int) -> None:
    """As a proof does it after its run: each of 500 ends in one kind, none in nothing."""
    story = a_life(seed)
    found = ask_why(story.facts, story.policy, seed, QUESTIONS)
    assert found.unknown == ()
    assert found.trigger + found.rule + found.fault + found.report == found.asked == QUESTIONS
    assert 0 < found.there < QUESTIONS
    assert min(found.trigger, found.rule, found.fault) > 0


def test_answer_that_rests_on_nothing_ends_in_nothing() -> None:
    """Neither words alone, nor a fact that the log does not hold, are an end."""
    story = a_life(1)
    last = next(fact for fact in reversed(story.facts) if fact.type == "TRANSFER_SUCCEEDED")
    on_it = Explanation("p", "n", True, "it is there", (Sentence("came", 1.0, last.sequence),))
    assert ends_in(on_it, [last], {last.chain}) == "trigger"
    assert ends_in(on_it, [last], set()) == ""
    assert ends_in(on_it, [replace(last, chain="")], set()) == ""
    assert ends_in(on_it, [], {last.chain}) == ""
    assert ends_in(replace(on_it, sentences=()), [last], {last.chain}) == ""
    assert ends_in(replace(on_it, there=False, sentences=()), [last], {last.chain}) == ""
