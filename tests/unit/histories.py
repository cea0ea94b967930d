"""Random but plausible histories, and random events of every type.

A history is a list of small steps. Each takes two small numbers that pick a node, a content, a
chain or a transfer; a step for which there is nothing to pick does nothing, so that hypothesis can
leave out any of them. Events are made from what msgspec knows of their fields.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from streams import events
from streams.events import Event
from streams.identity import escapes
from streams.values import (
    CHECKSUM_PATTERN,
    TOKEN_PATTERN,
    DataType,
    Role,
    SyncPriority,
    Trait,
)
from tests.spec import (
    T0,
    Raw,
    Said,
    Story,
    Tellable,
    after,
    answers,
    assigned,
    checksum,
    entry,
    failed,
    games_of,
    given,
    model,
    node,
    npz,
    opens,
    played,
    player,
    policy_of,
    said_what_is_owed,
    succeeded,
    succeeded_with,
    trainer,
)

Step = tuple[str, int, int]

NAMES = ("n0", "n1", "n2", "n3", "n4")
#: Two trainers, a GPU player, a storage node, and one that joins only by a step.
CLUSTER = (
    trainer("n0"),
    trainer("n1"),
    node("n2", Role.SELFPLAY, traits=[Trait.GPU]),
    node("n3", Role.STORAGE),
)
#: Small enough that transfers wait for each other, and end.
POLICY = policy_of(bandwidth={"max_per_node": 2, "max_total": 3}, retries={"max_retries": 1})
CONTENTS = ("first", "second", "third", "fourth", "fifth")


def _found(name: str, b: int) -> list[Any]:
    """What a node may find: games of its own, or one of the names that everybody shares."""
    content = CONTENTS[b]
    return [games_of(name, content, games=100 * b), npz(content), model(content)]


def _trigger(name: str, b: int, number: int) -> Event:
    triggers: list[Event] = [
        played(name),
        events.TrainingStarted(config_key="hex8_2p", node=name),
        events.TrainingCompleted(config_key="hex8_2p", node=name, model_path=model().path),
        events.ModelPromoted(config_key="hex8_2p", node=name, model_path=model().path),
        events.OrphanGamesDetected(node=name, config_key="hex8_2p", orphan_count=number),
        events.DataNeeded(node=name, config_key="hex8_2p", data_type=DataType.NPZ),
        events.DataSyncRequested(
            data_type=DataType.GAMES,
            config_key="hex8_2p",
            target_nodes=(name, "n0"),
            priority=list(SyncPriority)[b],
            deadline=float(number),
        ),
        events.NodeTerminating(node=name),
        events.TrainingExpected(
            config_key="hex8_2p",
            node=name,
            expected_at=float(number),
            until=T0 + number,
            paths=(npz().path, model().path),
        ),
    ]
    return triggers[number % len(triggers)]


def _open(story: Story, a: int, b: int) -> list[Tellable]:
    number = len(story.facts)
    return [opens(f"c{number}", _trigger(NAMES[a], b, number))]


def _play(story: Story, a: int, b: int) -> list[Tellable]:
    """The commonest chain: games were played, and the node says which."""
    chain, name = f"c{len(story.facts)}", NAMES[a]
    return [opens(chain, played(name)), answers(chain, name, _found(name, b)[0])]


def _answer(story: Story, a: int, b: int) -> list[Tellable]:
    waiting = [row for row in story.view.open_chains() if not row.answered_at]
    if not waiting:
        return []
    row = waiting[a % len(waiting)]
    return [answers(row.id, row.node, _found(row.node, b)[a % 3], last_part=a != 4)]


def _owed_by_one(story: Story, a: int, b: int) -> list[Tellable]:
    owing = [facts for facts in story.owes().values() if facts]
    return list(owing[a % len(owing)]) if owing else []


def _one_result(story: Story, a: int, b: int) -> list[Tellable]:
    rows = story.under_way()
    if not rows:
        return []
    row = rows[a % len(rows)]
    if b < 3:
        return [succeeded(row.target, row.entry.path)]
    classes = {3: "Stalled", 4: "EntryMissing"}
    return [failed(row.target, row.entry.path, error_class=classes[b], retryable=a != 4)]


def _late_result(story: Story, a: int, b: int) -> list[Tellable]:
    """An attempt that was given up comes to its end after all."""
    pending = list(story.view.pending())
    if not pending:
        return []
    row = pending[a % len(pending)]
    return [succeeded_with(row.entry, row.target, source=row.source, transfer=row.id, moved=b)]


def _again(story: Story, a: int, b: int) -> list[Tellable]:
    """A publisher sends a fact a second time, under the same id."""
    if not story.facts:
        return []
    old = story.facts[-1 - (5 * a + b) % len(story.facts)]
    if old.event is None:
        return []
    owner_is_chain = old.subject.startswith("dp.chain.")
    chain = old.owner if owner_is_chain else old.chain
    return [Said(old.event, by=old.owner, id=old.id, chain=chain, cause=old.cause)]


def _garbage(story: Story, a: int, b: int) -> list[Tellable]:
    bodies = (b"", b"[]", b'{"games_count":-1}', b"\xff", b'{"games_count":1}')
    subjects = (
        "dp.node.n0.SELFPLAY_COMPLETE.hex8_2p",
        "dp.node.n0.WHO_KNOWS.hex8_2p",
        "dp.chain.c1.SELFPLAY_COMPLETE.hex8_2p",
        "dp.task.n0.TRANSFER_SUCCEEDED.hex8_2p",
        "dp.node.n1.NODE_TERMINATING",
    )
    return [Raw(subjects[a], bodies[b])]


def _lost(story: Story, a: int, b: int) -> list[Tellable]:
    path = _found(NAMES[a], b)[b % 3].path
    return [events.FilesRemoved(node=NAMES[a], paths=(path, "never/heard/of"))]


def _rotten(story: Story, a: int, b: int) -> list[Tellable]:
    what = _found(NAMES[a], b)[b % 3]
    return [
        events.FileQuarantined(
            node=NAMES[a], path=what.path, checksum=what.checksum, reason="quick_check failed"
        )
    ]


def _said_of_rejected(story: Story, a: int, b: int) -> list[Tellable]:
    return [
        Said(
            events.EventRejected(sequence=row.sequence, subject=row.subject, reason=row.reason),
            chain=f"rejected-{row.sequence}",
        )
        for row in story.view.rejections_unsaid()[:1]
    ]


STEPS: dict[str, Callable[[Story, int, int], Sequence[Tellable]]] = {
    "play": _play,
    "open": _open,
    "answer": _answer,
    "decide": lambda story, a, b: [said_what_is_owed],
    "decide one": _owed_by_one,
    "assign": lambda story, a, b: [assigned],
    "result": _one_result,
    "results": lambda story, a, b: [succeeded()],
    "round": lambda story, a, b: [said_what_is_owed, assigned, succeeded(), said_what_is_owed],
    "give up": lambda story, a, b: [after(700.0), lambda story: story.gives_up()],
    "late": _late_result,
    "stray": lambda story, a, b: [
        succeeded_with(entry(f"stray/{b}.pth", data_type=DataType.MODELS), NAMES[a])
    ],
    "find": lambda story, a, b: [
        events.FilesObserved(node=NAMES[a], entries=tuple(_found(NAMES[a], b)[: 1 + b % 3]))
    ],
    "lose": _lost,
    "rot": _rotten,
    "join": lambda story, a, b: [player(NAMES[a], provider=str(b))],
    "off": lambda story, a, b: [events.HostOffline(node=NAMES[a], reason=str(b))],
    "on": lambda story, a, b: [events.NodeRecovered(node=NAMES[a])],
    "pass": lambda story, a, b: [after(7.0 * a + b)],
    "again": _again,
    "garbage": _garbage,
    "reject": _said_of_rejected,
}
#: The ways of a chain come up more often than what disturbs it; the simplest step stands first.
_WEIGHTED = ["pass", "play", "play", "round", "round", "decide", "assign", "result", *STEPS]


def histories(least: int = 15, most: int = 40) -> st.SearchStrategy[list[Step]]:
    """Lists of steps; `least` makes them long enough to go wrong."""
    small = st.integers(0, 4)
    step = st.tuples(st.sampled_from(_WEIGHTED), small, small)
    return st.lists(step, min_size=least, max_size=most)


def take(story: Story, step: Step) -> Story:
    """One more step of a history."""
    name, a, b = step
    return story.tell(*STEPS[name](story, a, b))


def lived(steps: Sequence[Step]) -> Story:
    """The story in which these steps were taken, in a small cluster."""
    story = given(*CLUSTER, policy=POLICY)
    for step in steps:
        take(story, step)
    return story


# Events of every type

#: Of numbers that have no limit of their own: what JSON of any language carries exactly.
LARGEST = 2**53
#: A few of each, so that events speak of the same things; what does not fit is a test of its own.
_FITTING = {
    TOKEN_PATTERN: ["c1", "n0", "n1", "hex8_2p", "-", "_", "x" * 64],
    CHECKSUM_PATTERN: [checksum(content) for content in CONTENTS[:3]],
}


def any_event(*classes: type[Event]) -> st.SearchStrategy[Event]:
    """An event of one of these classes, or of any, with any values its fields may have."""
    return st.sampled_from(classes or tuple(events.EVENT_TYPES.values())).flatmap(_any_of_class)


@functools.cache
def _any_of_class(cls: type[Any]) -> st.SearchStrategy[Any]:
    found = _any_value(inspect.type_info(cls))
    if cls is events.FilesObserved:
        return found.filter(lambda event: not any(escapes(one.path) for one in event.entries))
    return found


def _any_value(kind: inspect.Type) -> st.SearchStrategy[Any]:
    if isinstance(kind, inspect.StructType):
        fields = {field.encode_name: _any_value(field.type) for field in kind.fields}
        return st.builds(kind.cls, **fields)
    if isinstance(kind, inspect.Metadata):
        return _any_value(kind.type)
    if isinstance(kind, inspect.UnionType):
        return st.one_of(*map(_any_value, kind.types))
    if isinstance(kind, inspect.VarTupleType):
        return st.lists(_any_value(kind.item_type), max_size=2).map(tuple)
    if isinstance(kind, inspect.DictType):
        return st.dictionaries(_any_value(kind.key_type), _any_value(kind.value_type), max_size=2)
    if isinstance(kind, inspect.EnumType):
        return st.sampled_from(kind.cls)
    return _any_plain(kind)


def _any_plain(kind: inspect.Type) -> st.SearchStrategy[Any]:
    if isinstance(kind, inspect.StrType):
        if kind.pattern:
            return st.sampled_from(_FITTING[kind.pattern])
        return st.text(min_size=kind.min_length or 0, max_size=20)
    if isinstance(kind, inspect.IntType):
        most = kind.le or LARGEST
        return st.integers(kind.ge or 0, most) | st.just(most)
    if isinstance(kind, inspect.FloatType) and kind.le is not None:
        return st.floats(kind.ge or 0.0, kind.le)
    plain: dict[type[inspect.Type], st.SearchStrategy[Any]] = {
        inspect.FloatType: st.floats(allow_nan=False, allow_infinity=False),
        inspect.BoolType: st.booleans(),
        inspect.NoneType: st.none(),
    }
    return plain[type(kind)]


def said(event: Event, *, chain: str = "c1") -> Said:
    """An event under an owner that may say it."""
    owner = "somebody" if isinstance(event, events.DataSyncRequested) else ""
    return Said(event, by=owner, chain=chain)


def wire_size(event: Event) -> int:
    """Bytes of an event's body."""
    return len(msgspec.json.encode(event))
