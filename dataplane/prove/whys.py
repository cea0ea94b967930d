"""Why is this here, and why not there: asked of the log a proof leaves, for files at random.

What an answer rests on is looked up in the log again, not believed: every answer must end in what
triggered it, in a rule, in a fault, or in a node's own report. One that ends in nothing breaks a
promise.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dataplane.explain import TELLS, Asked, Explanation, explain, speaks_of_path
from dataplane.policy import Policy
from projections.cluster import ClusterView
from projections.fold import TABLES, fold
from projections.store import Store
from streams import events
from streams.codec import Recorded
from streams.events import CHAIN_TRIGGERS
from streams.values import S3_NODE

QUESTIONS = 500
#: What went wrong, or was taken away.
_FAULTS = (
    events.TransferFailed,
    events.FileQuarantined,
    events.FilesRemoved,
    events.DeletionDone,
)
_OF_RULES = ("by the rule", "no rule brings", "no trigger has asked")


class Whys(msgspec.Struct, frozen=True):
    """What the answers ended in."""

    asked: int = 0
    #: How many asked why a file is there; the others, why it is not.
    there: int = 0
    trigger: int = 0
    rule: int = 0
    fault: int = 0
    #: A node found the file by itself and said so.
    report: int = 0
    #: Answers that end in nothing, each with its question.
    unknown: tuple[str, ...] = ()


def ask_why(
    facts: Sequence[Recorded], policy: Policy, seed: int, questions: int = QUESTIONS
) -> Whys:
    """Ask for files and nodes at random, from views folded anew. Blocks; belongs in a thread."""
    with tempfile.TemporaryDirectory(prefix="dataplane-whys-") as place:
        store = Store.open(Path(place), TABLES, durable=False)
        try:
            store.write(lambda tx: fold(tx, facts, "whys"))
            with store.read() as reader:
                return _answered(facts, ClusterView(reader), policy, seed, questions)
        finally:
            store.close()


def _answered(
    facts: Sequence[Recorded], view: ClusterView, policy: Policy, seed: int, questions: int
) -> Whys:
    rng = random.Random(f"why {seed}")
    telling = [fact for fact in facts if isinstance(fact.event, TELLS)]
    paths = sorted(_paths(telling))
    if not paths:
        return Whys()
    nodes = [*(row.name for row in view.nodes()), *([S3_NODE] if policy.s3.enabled else ())]
    now = max(fact.time for fact in facts)
    triggered = {fact.chain for fact in facts if isinstance(fact.event, CHAIN_TRIGGERS)}
    histories: dict[str, list[Recorded]] = {}
    ends: Counter[str] = Counter()
    unknown = []
    for _ in range(questions):
        path, node = rng.choice(paths), rng.choice(nodes)
        if path not in histories:
            histories[path] = [f for f in telling if f.event and speaks_of_path(f.event, path)]
        answer = explain(Asked(path, node, view, histories[path], policy, now))
        end = ends_in(answer, histories[path], triggered)
        ends[end] += 1
        ends["there"] += answer.there
        if not end:
            unknown.append(f"{path} on {node}: {answer.answer}")
    return Whys(
        asked=questions,
        there=ends["there"],
        trigger=ends["trigger"],
        rule=ends["rule"],
        fault=ends["fault"],
        report=ends["report"],
        unknown=tuple(unknown),
    )


def ends_in(answer: Explanation, history: Sequence[Recorded], triggered: set[str]) -> str:
    """What an answer rests on at last; "" if on nothing that the log holds.

    `history` is what the log says of the path, `triggered` the chains whose triggers it holds.
    """
    by_sequence = {fact.sequence: fact for fact in history}
    rests_on = [by_sequence.get(one.sequence) for one in answer.sentences if one.sequence]
    if any(fact is None for fact in rests_on):
        return ""
    last = rests_on[-1] if rests_on else None
    if not answer.there and any(words in answer.answer for words in _OF_RULES):
        return "rule"
    if last is None:
        return ""
    if not answer.there and isinstance(last.event, _FAULTS):
        return "fault"
    if any(fact is not None and fact.chain in triggered for fact in rests_on):
        return "trigger"
    pushed = isinstance(last.event, events.TransferSucceeded) and last.event.target == S3_NODE
    if pushed and not last.chain:
        return "rule"  # what a node stores when its agent is to end, nobody has asked for
    return "report" if isinstance(last.event, events.FilesObserved) and answer.there else ""


def _paths(telling: Sequence[Recorded]) -> set[str]:
    """Every path that any node ever reported."""
    return {
        entry.path
        for fact in telling
        if isinstance(fact.event, events.FilesObserved)
        for entry in fact.event.entries
    }
