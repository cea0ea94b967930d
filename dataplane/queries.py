"""What may be asked of the views, and how it is answered: by a command from the views on its
machine, by a coordinator for any client in any language.

    nats req dp.query.missing '{"node": "train-1"}'

Pure: every question is a struct, every answer rows of `rows`, found in one reading. It only reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, TypeVar

import msgspec

from dataplane.config import DataPlaneConfig
from dataplane.explain import Asked, Explanation, explain
from dataplane.health import LAG_LIMIT, HealthCheckResult, cluster_health
from dataplane.held import HeldPage
from dataplane.overview import Overview, overview, with_alerts
from dataplane.planner import SyncPlanner
from dataplane.rows import (
    ChainLine,
    EntryLine,
    LinkLine,
    NodeLine,
    RejectedLine,
    TrainingLine,
    TransferLine,
    chain_line,
    entry_line,
    link_line,
    node_line,
    rejected_line,
    training_line,
)
from dataplane.waiting import transfer_lines
from projections.cluster import ClusterView
from projections.transfers import TransferRow, TransferState
from streams.codec import Recorded
from streams.foreign import Unreadable, from_json
from streams.log import Standing
from streams.micro import ServiceRefusal
from streams.values import S3_NODE, DataType, is_token

T = TypeVar("T")
SERVICE = "dataplane"
#: The version of questions and answers, not of this installation.
VERSION = "1.0.0"
PREFIX = "dp.query"
#: The code of a refusal because what is asked about is not there.
NOT_FOUND = "404"
#: An answer with more lines than this would not fit a message.
MOST_LINES = 1_000
#: Ended chains that are looked at, the newest first, for those of one configuration.
ENDED_LOOKED_AT = 10_000
#: Entries of one page; each is a few hundred bytes.
HELD_PAGE = 400


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of questions: an unknown field is an error, because a misspelt filter lies."""


class AskHealth(Ask, frozen=True):
    """Whether the data plane does its work."""


class AskNodes(Ask, frozen=True):
    """All nodes that ever joined."""


class AskMissing(Ask, frozen=True):
    """What belongs on a node and is not there."""

    node: str
    data_type: DataType | None = None


class AskWhere(Ask, frozen=True):
    """Who holds a path, in which versions, newest first."""

    path: str


class AskCatalog(Ask, frozen=True):
    """Every entry that somebody holds: on a node, of a configuration, of a type, or all."""

    node: str = ""
    config_key: str = ""
    data_type: DataType | None = None


class AskTrainings(Ask, frozen=True):
    """When each node trains what, by its history, and the worth of data brought ahead of that."""

    node: str = ""


class AskPlans(Ask, frozen=True):
    """Transfers that run or wait, in the order in which they go."""


class AskChains(Ask, frozen=True):
    """Open chains, then those that ended last."""

    #: How many ended ones; of one configuration, among the newest of all.
    last: int = 20
    config_key: str = ""


class AskChain(Ask, frozen=True):
    """One chain, by its id or the beginning of it, where only one begins so."""

    id: str


class AskLinks(Ask, frozen=True):
    """How each node can be reached, by each transport, and what is shut for now."""

    node: str = ""


class AskRejected(Ask, frozen=True):
    """What could not be understood or decided, newest first, or what of that is at `sequence`."""

    sequence: int = 0


class AskOverview(Ask, frozen=True):
    """The cluster at a glance: what the page and ``dataplane top`` show."""


class AskWhy(Ask, frozen=True):
    """Why a file is on a node, or why it is not."""

    path: str
    node: str


class AskHeld(Ask, frozen=True):
    """What a node holds by these views, page by page: behind `after`, as the last page named it."""

    node: str
    after: str = ""


class AskPending(Ask, frozen=True):
    """Which of these transfers are still to be done; with `executor`, by that node, now."""

    transfers: tuple[str, ...]
    executor: str = ""
    #: The answer knows the log at least so far.
    sequence: int = 0


class Reading(msgspec.Struct):
    """What a question is answered from: one moment."""

    view: ClusterView
    planner: SyncPlanner
    now: float
    #: Heartbeats by ``role.node``.
    beats: dict[str, dict[str, Any]]
    last_sequence: int
    config: DataPlaneConfig
    #: On how many servers the log stood a moment ago, where that is known.
    standing: Standing | None
    #: What the log says of the path that is asked about; only `why` needs it.
    facts: list[Recorded] = []
    #: Lines that an answer may have; None for any number. More is refused, and not gathered.
    most: int | None = None


def _few_enough(found: Iterable[T], known: Reading) -> list[T]:
    """All of it. Refused with 413 where that is more than an answer may have."""
    if known.most is None:
        return list(found)
    lines = list(islice(found, known.most + 1))
    if len(lines) > known.most:
        raise ServiceRefusal(f"more than {known.most} lines: ask for less", "413")
    return lines


def health(ask: AskHealth, known: Reading) -> HealthCheckResult:
    """The verdict with its details, and the alerts of the page."""
    verdict = cluster_health(
        known.view,
        now=known.now,
        last_sequence=known.last_sequence,
        present=known.beats,
        standing=known.standing,
        policy=known.config.policy(),
    )
    return with_alerts(verdict, glance(AskOverview(), known))


def nodes(ask: AskNodes, known: Reading) -> list[NodeLine]:
    """By name."""
    beats = known.beats
    return [node_line(row, beats.get(f"agent.{row.name}"), known.now) for row in known.view.nodes()]


def missing(ask: AskMissing, known: Reading) -> list[EntryLine]:
    """By path; refused for a node that never joined."""
    check_joined(known, ask.node)
    lacking = known.view.catalog.lacking(
        ask.node,
        ask.data_type,
        kinds=known.planner.kinds_for(ask.node),
        wanted=lambda entry: known.planner.belongs(entry, ask.node),
    )
    found = _few_enough(lacking, known)
    return [entry_line(entry) for entry in sorted(found, key=lambda entry: entry.path)]


def check_joined(known: Reading, node: str) -> None:
    """Refuse, with 404, a node that never joined."""
    if known.view.node(node) is None:
        names = ", ".join(row.name for row in known.view.nodes()) or "none"
        raise ServiceRefusal(f"node {node!r} never joined; known: {names}", NOT_FOUND)


def catalog(ask: AskCatalog, known: Reading) -> list[EntryLine]:
    """By path; refused for a node that never joined."""
    if ask.node:
        check_joined(known, ask.node)
    entries = known.view.catalog.entries(
        node=ask.node, config_key=ask.config_key, data_type=ask.data_type
    )
    found = _few_enough(entries, known)
    return [entry_line(entry) for entry in sorted(found, key=lambda entry: entry.path)]


def trainings(ask: AskTrainings, known: Reading) -> list[TrainingLine]:
    """By node and configuration; refused for a node that never joined."""
    if ask.node:
        check_joined(known, ask.node)
    rows = known.view.trainings()
    return [training_line(row, known.now) for row in rows if ask.node in ("", row.node)]


def where(ask: AskWhere, known: Reading) -> list[EntryLine]:
    """Refused with 404 if nobody holds it."""
    found = known.view.catalog.versions(ask.path)
    if not found:
        raise ServiceRefusal(f"nobody holds {ask.path!r}", NOT_FOUND)
    return [entry_line(entry) for entry in found]


def plans(ask: AskPlans, known: Reading) -> list[TransferLine]:
    """Running ones first; those that wait say why."""
    return list(
        islice(transfer_lines(known.view, known.planner.known.policy, known.now), MOST_LINES)
    )


def chains(ask: AskChains, known: Reading) -> list[ChainLine]:
    """Oldest open one first; then the ended ones, newest first."""
    lines: list[ChainLine] = []
    for row in known.view.open_chains():
        if len(lines) < MOST_LINES and ask.config_key in ("", row.config_key):
            lines.append(chain_line(row, known.now))
    wanted = max(0, min(ask.last, MOST_LINES))
    ended = islice(known.view.ended_chains(), ENDED_LOOKED_AT)
    rows = (row for row in ended if ask.config_key in ("", row.config_key))
    return lines + [chain_line(row, known.now) for row in islice(rows, wanted)]


def chain(ask: AskChain, known: Reading) -> ChainLine:
    """Refused with 404 if there is none, or more than one."""
    row = known.view.chain(ask.id)
    if row is None:
        ids = list(islice(known.view.chain_ids(ask.id), 2))
        if len(ids) > 1:
            raise ServiceRefusal(f"more than one chain begins with {ask.id!r}", NOT_FOUND)
        row = known.view.chain(ids[0]) if ids else None
    if row is None:
        raise ServiceRefusal(f"there is no chain {ask.id!r}", NOT_FOUND)
    return chain_line(row, known.now)


def links(ask: AskLinks, known: Reading) -> list[LinkLine]:
    """By node; a line without a transport is the node as a whole. Refused for one that never
    joined."""
    if ask.node:
        check_joined(known, ask.node)
    rows = known.view.links()
    return [link_line(row, known.now) for row in rows if ask.node in ("", row.node)]


def rejected(ask: AskRejected, known: Reading) -> list[RejectedLine]:
    """Of very many the newest; refused with 404 where nothing was at `sequence`."""
    if not ask.sequence:
        return [rejected_line(row) for row in islice(known.view.rejected(), known.most)]
    row = known.view.rejected_at(ask.sequence) if ask.sequence > 0 else None
    if row is None:
        text = f"message {ask.sequence} was neither rejected nor set aside"
        raise ServiceRefusal(text, NOT_FOUND)
    return [rejected_line(row)]


def glance(ask: AskOverview, known: Reading) -> Overview:
    """Alerts first."""
    return overview(
        known.view,
        now=known.now,
        beats=known.beats,
        last_sequence=known.last_sequence,
        standing=known.standing,
        policy=known.config.policy(),
    )


def why(ask: AskWhy, known: Reading) -> Explanation:
    """The verdict, then what led to it, oldest first, each with the fact it rests on.

    Refused for a node that never joined; the bucket is a place like one.
    """
    if not (ask.node == S3_NODE and known.config.s3_enabled):
        check_joined(known, ask.node)
    policy = known.config.policy()
    return explain(Asked(ask.path, ask.node, known.view, known.facts, policy, known.now))


def held(ask: AskHeld, known: Reading) -> HeldPage:
    """A page of entries, and the point of the log at which that is so."""
    found = 0

    def enough() -> bool:
        nonlocal found
        found += 1
        return found >= HELD_PAGE

    try:
        begin = bytes.fromhex(ask.after)
    except ValueError:
        raise ServiceRefusal(f"held: after {ask.after!r} was named by no page", "400") from None
    entries, after = known.view.catalog.held_page(ask.node, begin, enough)
    return HeldPage(
        known.view.checkpoint.sequence, tuple(entries), "" if after is None else after.hex()
    )


def pending(ask: AskPending, known: Reading) -> list[str]:
    """Their ids, of those that are ids; refused with 503 while the views are far behind the log."""
    folded = known.view.checkpoint.sequence
    if known.last_sequence - folded > LAG_LIMIT or folded < ask.sequence:
        raise ServiceRefusal("pending: the views are far behind the log", "503")
    found = ((id, known.view.transfer(id)) for id in ask.transfers if is_token(id))
    return [id for id, row in found if row is not None and _is_pending(row, ask.executor)]


def _is_pending(row: TransferRow, executor: str) -> bool:
    if not executor:
        return not row.ended
    return row.state is TransferState.ASSIGNED and row.executor == executor


Answer = Callable[[Any, Reading], Any]
#: Endpoint to the class of its question, of its answer, and who answers it.
QUERIES: dict[str, tuple[type[Ask], Any, Answer]] = {
    "health": (AskHealth, HealthCheckResult, health),
    "nodes": (AskNodes, list[NodeLine], nodes),
    "missing": (AskMissing, list[EntryLine], missing),
    "where": (AskWhere, list[EntryLine], where),
    "catalog": (AskCatalog, list[EntryLine], catalog),
    "trainings": (AskTrainings, list[TrainingLine], trainings),
    "plans": (AskPlans, list[TransferLine], plans),
    "chains": (AskChains, list[ChainLine], chains),
    "chain": (AskChain, ChainLine, chain),
    "links": (AskLinks, list[LinkLine], links),
    "rejected": (AskRejected, list[RejectedLine], rejected),
    "overview": (AskOverview, Overview, glance),
    "held": (AskHeld, HeldPage, held),
    "pending": (AskPending, list[str], pending),
    "why": (AskWhy, Explanation, why),
}


def understand(name: str, said: bytes | dict[str, str]) -> Ask:
    """A question's struct from JSON or from words; nothing at all asks with defaults.

    Raises ServiceRefusal.
    """
    asks = QUERIES[name][0]
    try:
        if isinstance(said, dict):
            return msgspec.convert(said, asks, strict=False)
        return from_json(said or b"{}", asks)
    except (msgspec.ValidationError, Unreadable) as error:
        raise ServiceRefusal(f"{name}: {error}", "400") from None
