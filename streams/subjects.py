"""Where a fact lives on the bus: three prefixes, and who may speak under each.

    dp.node.<node>.<TYPE>.<config_key>       what a node says
    dp.chain.<chain>.<TYPE>.<config_key>     what is decided for a chain, or about a node
    dp.task.<executor>.<TYPE>.<config_key>   what a node is asked to do

Paths never go into a subject. Progress (``dp.progress.<transfer>``) is not a fact and is kept by
no stream.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

from streams import events
from streams.values import ALL_CONFIGS, is_token

ROOT = "dp"
#: What the log's stream listens to. Not ``dp.>``: that would store every progress message.
LOG_SUBJECTS = ("dp.node.>", "dp.chain.>", "dp.task.>")
PROGRESS_SUBJECTS = "dp.progress.>"


class Place(enum.StrEnum):
    """Under which prefix a fact lives, which is also who may say it."""

    NODE = "node"
    CHAIN = "chain"
    TASK = "task"


_DECISIONS: frozenset[type[events.Event]] = frozenset(
    {
        events.SyncPlanned,
        events.DataSyncStarted,
        events.DataSyncCompleted,
        events.DataSyncFailed,
        events.NewGamesAvailable,
        events.ModelDistributionComplete,
        events.NodeDrained,
        events.SelfplayNeeded,
        events.FileConflict,
        events.ChainOverdue,
        events.DeadlineAtRisk,
        events.ReplicationAlert,
        events.S3BackupCompleted,
        events.DeletionReserved,
        events.DeletionGranted,
        events.DeletionRefused,
        events.DeletionDone,
        events.EventRejected,
        events.EventSetAside,
        events.EventRetried,
    }
)


def place_of(event_class: type[events.Event]) -> Place:
    """The prefix under which events of this class live."""
    if event_class is events.TransferAssigned:
        return Place.TASK
    return Place.CHAIN if event_class in _DECISIONS else Place.NODE


class Subject(NamedTuple):
    """A parsed subject: `owner` is the node, the chain or the executor."""

    place: Place
    owner: str
    type: str
    config_key: str

    def __str__(self) -> str:
        return f"{ROOT}.{self.place}.{self.owner}.{self.type}.{self.config_key}"


def subject_for(event: events.Event, owner: str) -> str:
    """The subject of `event` under `owner`, a node, chain or executor by the event's place.

    Raises ValueError, naming the token, where `owner` or the config key can't stand in a subject.
    """
    config_key = events.config_key_of(event)
    for name, token in (("owner", owner), ("config_key", config_key)):
        if not is_token(token):
            raise ValueError(f"{name} {token!r} is not 1 to 64 characters of A-Z a-z 0-9 _ -")
    return f"{ROOT}.{place_of(type(event))}.{owner}.{events.type_name(event)}.{config_key}"


def parse_subject(subject: str) -> Subject:
    """Take a subject apart; the config key may be absent. Raises ValueError with the reason."""
    found = _SUBJECT.fullmatch(subject)
    if found is None:
        raise ValueError(_what_is_wrong(subject))
    place, owner, type_name, config_key = found.groups()
    return Subject(_PLACES[place], owner, type_name, config_key or ALL_CONFIGS)


_PLACES = {str(place): place for place in Place}
_SUBJECT = re.compile(
    rf"{ROOT}\.({'|'.join(_PLACES)})\.([\w-]{{1,64}})\.([\w-]{{1,64}})(?:\.([\w-]{{1,64}}))?",
    re.ASCII,
)


def _what_is_wrong(subject: str) -> str:
    tokens = subject.split(".")
    if len(tokens) not in (4, 5) or tokens[0] != ROOT:
        return f"subject {subject!r} is not dp.<place>.<owner>.<TYPE>.<config_key>"
    if tokens[1] not in _PLACES:
        return f"subject {subject!r} begins with none of {', '.join(LOG_SUBJECTS)}"
    token = next(token for token in tokens[2:] if not is_token(token))
    return f"token {token!r} of subject {subject!r} is not [A-Za-z0-9_-]{{1,64}}"


def chain_filter(chain: str) -> str:
    """All facts decided for one chain; also what guards its decisions."""
    return f"{ROOT}.{Place.CHAIN}.{chain}.>"


def about_filter(node: str) -> str:
    """All that a node says, is asked to do, and that is decided about it; also what guards that."""
    return f"{ROOT}.*.{node}.>"


def node_filter(node: str, event_class: type[events.Event]) -> str:
    """All facts of one class that are said by, or of, a node."""
    return f"{ROOT}.{Place.NODE}.{node}.{events.TYPE_NAMES[event_class]}.>"


def type_filter(event_class: type[events.Event], config_key: str = "") -> str:
    """All facts of one class, of one configuration if it is given, whoever owns them."""
    name = events.TYPE_NAMES[event_class]
    return f"{ROOT}.{place_of(event_class)}.*.{name}.{config_key or '>'}"


def matches(subject: str, pattern: str) -> bool:
    """Whether a subject falls under a NATS filter with ``*`` and ``>``."""
    have, want = subject.split("."), pattern.split(".")
    for index, token in enumerate(want):
        if token == ">":
            return len(have) > index
        if index >= len(have) or token not in ("*", have[index]):
            return False
    return len(have) == len(want)
