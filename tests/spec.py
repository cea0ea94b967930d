"""The words in which rules and views are specified: what is given, what happens, what follows.

    given(trainer("train-1"), opens("c1", played("gpu-1")), answers("c1", "gpu-1", GAMES))
        .when(asked("c1"))
        .then(says(events.SyncPlanned), says(events.DataSyncStarted, entries=1))

Every fact goes through `encode` and `decode`, so the wire is in every test, and is folded by
`projections.fold.fold` into a real store. Time stands still unless `after` moves it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from dataplane.admission import Admission, admit, unanswered
from dataplane.chain import owed
from dataplane.coordinator.dispatch import Known
from dataplane.planner import SyncPlanner
from dataplane.policy import Policy
from dataplane.policy.reading import laid_over
from projections.cluster import ClusterView
from projections.fold import TABLES, fold, view_digests
from projections.store import Store
from projections.transfers import TransferRow
from streams import events
from streams.codec import Fact, Recorded, decode, encode
from streams.events import Event
from streams.subjects import Place, place_of, subject_for
from streams.values import (
    DataEntry,
    DataType,
    Endpoint,
    NodeDescription,
    Role,
    SyncPlan,
    Trait,
    Transport,
    TransportResult,
)

#: When every story begins, seconds since 1970.
T0 = 1_700_000_000.0
#: When the log of every story was made.
CREATED = "2023-11-14T22:13:20Z"

# Things


def checksum(content: str) -> str:
    """The digest of a content that is only a word."""
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def entry(
    path: str,
    content: str = "first",
    *,
    data_type: DataType = DataType.GAMES,
    config_key: str = "hex8_2p",
    size_bytes: int = 1_000,
    games: int | None = None,
    quality: float | None = None,
    version: int = 0,
) -> DataEntry:
    """A file with a content that is only a word."""
    return DataEntry(
        path=path,
        data_type=data_type,
        config_key=config_key,
        size_bytes=size_bytes,
        checksum=checksum(f"{path}:{content}"),
        games=games,
        quality=quality,
        version=version,
    )


def games_of(
    node: str, content: str = "first", *, games: int | None = 500, **more: Any
) -> DataEntry:
    """The game database that a node has written."""
    config_key = more.setdefault("config_key", "hex8_2p")
    return entry(f"games/{node}/{config_key}.db", content, games=games, **more)


def npz(content: str = "first", **more: Any) -> DataEntry:
    """The shared training set of a configuration."""
    config_key = more.setdefault("config_key", "hex8_2p")
    return entry(f"npz/{config_key}.npz", content, data_type=DataType.NPZ, **more)


def model(content: str = "first", name: str = "canonical_hex8_2p.pth", **more: Any) -> DataEntry:
    """A model that everybody shares."""
    return entry(f"models/{name}", content, data_type=DataType.MODELS, **more)


def policy_of(**tables: Any) -> Policy:
    """The default policy with these tables laid over it, as in the configuration."""
    return laid_over(Policy(), tables)


# Facts


class After(NamedTuple):
    """Time passes."""

    seconds: float


class Raw(NamedTuple):
    """A message as somebody might have made it by hand."""

    subject: str
    body: bytes = b"{}"
    headers: Mapping[str, str] = {}


class Said(NamedTuple):
    """An event with more of its envelope than the event itself tells."""

    event: Event
    by: str = ""
    id: str = ""
    chain: str = ""
    cause: str = ""


#: What a story may be told. A function gives facts when its turn comes, or one after the other.
Tellable = Event | Said | Fact | Raw | After | Callable[["Story"], Iterable[Any]]


def after(seconds: float) -> After:
    """Time passes."""
    return After(seconds)


def raw(subject: str, body: bytes = b"{}", **headers: str) -> Raw:
    """A message as somebody might have made it by hand."""
    return Raw(subject, body, headers)


def opens(chain: str, trigger: Event, *, by: str = "") -> Said:
    """A trigger whose id, and so whose chain, is `chain`."""
    return Said(trigger, by=by, id=chain)


def answers(chain: str, node: str, *entries: DataEntry, **more: Any) -> Said:
    """What a node says it holds because a trigger asked."""
    event = events.FilesObserved(node=node, entries=entries, **more)
    return Said(event, by=node, chain=chain, cause=chain)


def decided(chain: str, event: Event) -> Said:
    """A decision for a chain."""
    return Said(event, chain=chain)


def node(
    name: str, *roles: Role, traits: Sequence[Trait] = (), **more: Any
) -> events.NodeRegistered:
    """A node joins."""
    description = NodeDescription(
        name=name,
        roles=roles,
        traits=tuple(traits),
        endpoint=Endpoint(node=name, http_url=f"http://{name}:8770"),
        **more,
    )
    return events.NodeRegistered(description=description)


def trainer(name: str = "train-1", **more: Any) -> events.NodeRegistered:
    """A training node joins."""
    return node(name, Role.TRAINING, **more)


def player(name: str = "gpu-1", **more: Any) -> events.NodeRegistered:
    """A self-play node joins."""
    return node(name, Role.SELFPLAY, **more)


def holds(name: str, *entries: DataEntry) -> events.FilesObserved:
    """A node finds files of its own."""
    return events.FilesObserved(node=name, entries=entries)


def played(name: str = "gpu-1", games: int = 500, config_key: str = "hex8_2p") -> Event:
    """A node says that it has played."""
    return events.SelfplayComplete(config_key=config_key, source_node=name, games_count=games)


def copied(path: str, target: str) -> Callable[[Story], Iterable[Event]]:
    """The current version of a path arrives on a node, by a transfer nobody here waits for."""

    def facts(story: Story) -> Iterable[Event]:
        what = story.view.catalog.get(path)
        assert what is not None, f"nobody holds {path}"
        yield succeeded_with(what, target, source=what.primary_location)

    return facts


def succeeded_with(
    what: DataEntry,
    target: str,
    *,
    source: str = "elsewhere",
    transfer: str = "of-nobody",
    moved: int = 0,
) -> events.TransferSucceeded:
    """A transfer has brought an entry to a target."""
    return events.TransferSucceeded(
        transfer=transfer,
        node=target,
        source=source,
        target=target,
        entry=msgspec.structs.replace(what, locations=()),
        attempt=1,
        bytes_transferred=moved,
        games=what.games,
    )


def succeeded(target: str = "", path: str = "", *, moved: int | None = None) -> Callable[..., Any]:
    """Transfers that are under way, all or those to a target or of a path, succeed."""

    def facts(story: Story) -> Iterable[Said]:
        for row in story.under_way(target, path):
            size = row.entry.size_bytes if moved is None else moved
            event = events.TransferSucceeded(
                transfer=row.id,
                node=row.executor,
                source=row.source,
                target=row.target,
                entry=row.entry,
                attempt=row.attempt,
                bytes_transferred=size,
                games=row.entry.games,
            )
            yield Said(event, chain=story.assigned_for(row))

    return facts


def failed(
    target: str = "",
    path: str = "",
    *,
    error_class: str = "Stalled",
    retryable: bool = True,
    moved: int = 0,
) -> Callable[..., Any]:
    """Attempts that are under way, all or those to a target or of a path, fail."""

    def facts(story: Story) -> Iterable[Event]:
        for row in story.under_way(target, path):
            tried = TransportResult(
                success=False,
                transport_used=row.transports[0],
                bytes_transferred=moved,
                duration_seconds=1.0,
                error_class=error_class,
            )
            yield events.TransferFailed(
                transfer=row.id,
                node=row.executor,
                source=row.source,
                target=row.target,
                entry=row.entry,
                attempt=row.attempt,
                error="no byte came",
                error_class=error_class,
                results=(tried,) if moved else (),
                bytes_transferred=moved,
                retryable=retryable,
            )

    return facts


def result(way: Transport, error_class: str = "", **more: Any) -> TransportResult:
    """One try over a transport: 3 MB in half a second, or an error of this class."""
    words = {
        "success": not error_class,
        "transport_used": way,
        "bytes_transferred": 0 if error_class else 3_000_000,
        "duration_seconds": 0.5,
        "error": f"{way}: no way there" if error_class else None,
        "error_class": error_class,
    }
    return TransportResult(**{**words, **more})


def tried(target: str, *results: TransportResult) -> Callable[[Story], Iterable[Said]]:
    """What is under way to a target is tried so; the last result decides."""

    def facts(story: Story) -> Iterable[Said]:
        for row in story.under_way(target):
            words: dict[str, Any] = {
                "transfer": row.id,
                "node": row.executor,
                "source": row.source,
                "target": row.target,
                "entry": row.entry,
                "attempt": row.attempt,
                "results": results,
                "bytes_transferred": sum(one.bytes_transferred for one in results),
                "duration_seconds": 1.0,
            }
            last = results[-1]
            event = (
                events.TransferSucceeded(**words, games=row.entry.games)
                if last.success
                else events.TransferFailed(
                    **words, error=last.error or "", error_class=last.error_class
                )
            )
            yield Said(event, chain=story.assigned_for(row))

    return facts


def assigned(story: Story) -> Iterable[Fact]:
    """The dispatcher hands out what may start now."""
    return story.admits().assignments


def said_what_is_owed(story: Story) -> Iterable[Fact]:
    """The bridge says once what every open chain owes now."""
    return [fact for facts in story.owes().values() for fact in facts]


def ran(chain: str, trigger: Event, *found: DataEntry) -> Callable[[Story], Iterable[Any]]:
    """A whole chain, from its trigger to its end, in which every transfer succeeds."""

    def facts(story: Story) -> Iterable[Any]:
        speaker = events.speaker_of(trigger) or ""
        yield opens(chain, trigger)
        yield answers(chain, speaker, *found)
        yield said_what_is_owed
        for _ in range(20):
            if not story.chain(chain).open:
                return
            yield assigned
            yield succeeded()
            yield said_what_is_owed
        raise AssertionError(f"chain {chain} did not end: {story.chain(chain)}")

    return facts


# What is asked


class Asked(NamedTuple):
    """The bridge asks what one chain owes, or all open ones, now or after some time."""

    chain: str = ""
    seconds: float = 0.0


def asked(chain: str = "", *, after: float = 0.0) -> Asked:
    """The bridge asks what a chain owes, or all open ones, now or after some time."""
    return Asked(chain, after)


class Says(NamedTuple):
    """An event of a type, with some of its fields."""

    type: type[Event]
    fields: Mapping[str, Any]

    def check(self, event: Event) -> None:
        """Fail where the event is another one."""
        assert type(event) is self.type, f"{events.type_name(self.type)} expected, not {event}"
        _same({name: getattr(event, name) for name in self.fields}, dict(self.fields))


def says(type: type[Event], **fields: Any) -> Says:
    """An event of a type, with some of its fields."""
    return Says(type, fields)


class Story:
    """Facts as they happened, folded into a real store, and what the rules say of them."""

    def __init__(self, policy: Policy = Policy()) -> None:  # noqa: B008 - immutable
        self.policy = policy
        self.now = T0
        self.facts: list[Recorded] = []
        self.store, self._directory = _empty_store()
        self._reading = ExitStack()
        self._view: weakref.ref[ClusterView] | None = None
        weakref.finalize(self, _discard, self._reading, self.store, self._directory)

    # Telling

    def tell(self, *facts: Tellable) -> Story:
        """Let these facts happen, one after the other."""
        for fact in facts:
            if isinstance(fact, After):
                self.now += fact.seconds
            elif isinstance(fact, Event | Said | Fact | Raw):
                self._fold([self._recorded(fact)])
            else:
                for one in fact(self):
                    self.tell(one)
        return self

    def tell_again(self, *facts: Recorded) -> Story:
        """Give facts of the log to the fold once more, as they are."""
        self._fold(facts, known=True)
        return self

    def under(self, **tables: Any) -> Story:
        """With another policy from here on: tables as in the configuration."""
        self.policy = laid_over(self.policy, tables)
        return self

    def _recorded(self, fact: Event | Said | Fact | Raw) -> Recorded:
        sequence = len(self.facts) + 1
        if isinstance(fact, Raw):
            return decode(sequence, self.now, fact.subject, fact.headers, fact.body)
        return wired(as_fact(fact, sequence), sequence, self.now)

    def _fold(self, facts: Sequence[Recorded], *, known: bool = False) -> None:
        self._forget()
        self.store.write(lambda tx: fold(tx, facts, CREATED))
        if not known:
            self.facts += facts

    # Reading

    @property
    def view(self) -> ClusterView:
        """All views as they are now; not to be kept over the next `tell`."""
        view = self._view() if self._view else None
        if view is None:
            self._forget()
            reader = self._reading.enter_context(self.store.read())
            # Who looks keeps the story, and so its store, for as long as he looks.
            reader.story = self  # type: ignore[attr-defined]
            view = ClusterView(reader)
            self._view = weakref.ref(view)
        return view

    def _forget(self) -> None:
        self._view = None
        self._reading.close()

    def chain(self, id: str) -> Any:
        """A chain that must be there."""
        row = self.view.whole_chain(id)
        assert row is not None, f"no chain {id}"
        return row

    def under_way(self, target: str = "", path: str = "") -> list[TransferRow]:
        """Transfers in flight, all or those to a target or of a path."""
        return [
            row
            for row in self.view.in_flight()
            if target in ("", row.target) and path in ("", row.entry.path)
        ]

    def assigned_for(self, row: TransferRow) -> str:
        """The chain for which a transfer was assigned the last time."""
        return next(
            fact.chain
            for fact in reversed(self.facts)
            if isinstance(fact.event, events.TransferAssigned) and fact.event.transfer == row.id
        )

    def digests(self) -> dict[str, str]:
        """What the views are, as digests."""
        with self.store.read() as reader:
            return view_digests(reader)

    # Rules

    def plans(self, trigger: Event, opened_at: float = 0.0) -> events.SyncPlanned:
        """What the planner decides for a trigger now."""
        return SyncPlanner(self.policy, self.view, self.now).decide(trigger, opened_at)

    def owes(self, chain: str = "") -> dict[str, list[Fact]]:
        """By chain, what the open ones, or the one that is named, owe now."""
        ids = [chain] if chain else [row.id for row in self.view.open_chains()]
        return {id: self._owed(self.chain(id)) for id in ids}

    def _owed(self, row: Any) -> list[Fact]:
        transfers = {transfer.id: transfer for transfer in self.view.transfers_of(row.id)}
        return owed(row, transfers, self.plans, self.policy, self.now)

    def admits(self) -> Admission:
        """What admission lets start now."""
        view = self.view
        known = Known(view, self.policy, self.now)
        return admit(
            view.pending_fairly(),
            view.in_flight(),
            known,
            self.policy,
            self.now,
            oldest=view.pending_by_age(),
        )

    def gives_up(self) -> list[Fact]:
        """Attempts that nobody has answered in time."""
        return unanswered(self.view.in_flight(), self.view.node, self.policy, self.now, "boss")

    # Specifying

    def when(self, what: Event | Asked | After) -> Outcome:
        """A trigger is planned for, or the bridge asks what is owed."""
        if isinstance(what, Event):
            return Outcome(self, planned=self.plans(what))
        if isinstance(what, After):
            what = Asked(seconds=what.seconds)
        self.now += what.seconds
        facts = [fact for owed in self.owes(what.chain).values() for fact in owed]
        return Outcome(self, facts=facts)

    def project(self) -> Projection:
        """The views of what was told."""
        return Projection(self)


class Outcome:
    """What a rule made of it."""

    def __init__(
        self,
        story: Story,
        *,
        planned: events.SyncPlanned | None = None,
        facts: Sequence[Fact] = (),
    ) -> None:
        self.story = story
        self.planned = planned
        self.facts = list(facts)

    @property
    def events(self) -> list[Event]:
        """The events that are to be said, in order."""
        return [fact.event for fact in self.facts]

    def then(self, *expected: str | Says) -> Story:
        """Exactly this follows: lines of a plan in any order, or events in theirs."""
        if self.planned is not None:
            _same(sorted(lines_of(self.planned)), sorted(map(str, expected)))
            return self.story
        wanted = [events.type_name(e.type) for e in expected if isinstance(e, Says)]
        _same([events.type_name(event) for event in self.events], wanted)
        for event, want in zip(self.events, expected, strict=True):
            assert isinstance(want, Says)
            want.check(event)
        return self.story

    def then_nothing(self) -> Story:
        """Nothing follows."""
        return self.then()


class Projection:
    """The views, and what is expected of them."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.view = story.view

    def expect(self, query: Callable[[ClusterView], Any], *expected: Any) -> Projection:
        """`query` of the views gives `expected`, or holds if nothing is expected."""
        found = query(self.view)
        if expected:
            _same(found, expected[0])
        else:
            assert found, "it does not hold"
        return self


def given(*facts: Tellable, policy: Policy = Policy()) -> Story:  # noqa: B008 - immutable
    """A story in which these facts have happened."""
    return Story(policy).tell(*facts)


def lines_of(decision: events.SyncPlanned) -> list[str]:
    """A plan as lines: what moves, what is held, and what is refused by which rule."""
    moves = [
        f"{plan.source_node} -> {target}: {what.path}"
        for plan in decision.plans
        for target in plan.target_nodes
        for what in plan.entries
    ]
    held = [f"{held.target} holds {held.path}" for held in decision.held]
    refused = [
        f"{refusal.rule}: {refusal.target or 'all'}" + (f" {refusal.path}" if refusal.path else "")
        for refusal in decision.refusals
    ]
    return [*moves, *held, *refused]


def only_plan(decision: events.SyncPlanned) -> SyncPlan:
    """The plan of a decision that makes one."""
    (plan,) = decision.plans
    return plan


# Machinery


def as_fact(fact: Event | Said | Fact, sequence: int) -> Fact:
    """A fact with an envelope: who says it follows from the event, its id from its place."""
    if isinstance(fact, Fact):
        return fact
    said = fact if isinstance(fact, Said) else Said(fact)
    place = place_of(type(said.event))
    if place is Place.CHAIN:
        owner = said.chain or "no-chain"
    elif isinstance(said.event, events.TransferAssigned):
        owner = said.event.executor
    else:
        owner = said.by or getattr(said.event, "node", "") or _speaker(said.event)
    id = said.id or f"fact-{sequence}"
    return Fact(said.event, subject_for(said.event, owner), id, said.chain, said.cause, owner)


def wired(fact: Fact, sequence: int, time: float) -> Recorded:
    """A fact as it comes back from the log; it must have survived."""
    headers, body = encode(fact, time)
    recorded = decode(sequence, time, fact.subject, headers, body)
    assert recorded.event == fact.event, recorded.problem
    return recorded


def _same(have: object, expected: object) -> None:
    assert have == expected, f"\n    have: {have}\nexpected: {expected}"


def _speaker(event: Event) -> str:
    return events.speaker_of(event) or "somebody"


def _empty_store() -> tuple[Store, Path]:
    directory = Path(tempfile.mkdtemp(prefix="dataplane-spec-"))
    return Store.open(directory, TABLES, durable=False), directory


def _discard(reading: ExitStack, store: Store, directory: Path) -> None:
    reading.close()
    store.close()
    shutil.rmtree(directory, ignore_errors=True)
