"""The decision about one trigger: each rule of the table that answers it, applied in turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from dataplane.planner.entries import (
    CommandRejected,
    entries_for,
    samples_lacking,
    trigger_name,
)
from dataplane.planner.known import Known, PlanningView
from dataplane.planner.sources import on_one_mount, rank_sources, transport_chain
from dataplane.planner.targets import exclusion, targets_for
from dataplane.policy import Policy, Rule, Source, Strategy, selects
from dataplane.sealed import opens
from dataplane.words import counted
from projections.nodes import NodeRow
from streams import events
from streams.events import CHAIN_TRIGGERS, EVENT_TYPES, Event
from streams.identity import Ownership
from streams.values import (
    S3_NODE,
    DataEntry,
    DataType,
    Held,
    Refusal,
    Role,
    SyncPlan,
    SyncPriority,
    Transport,
)

#: Of each refusal, as many characters are kept.
REASON_CHARACTERS = 2_000
#: Of paths that share a refusal, as many are named.
PATHS_NAMED = 20
SAME_MOUNT = "same-nfs"
#: Rules by which a target keeps a content of its own: FILE_CONFLICT is said of it.
CONFLICTS = ("conflict", "regression")


class SyncPlanner:
    """Plans for one reading of the cluster at one time."""

    def __init__(self, policy: Policy, view: PlanningView, now: float = 0.0) -> None:
        self._known = Known(policy, view, now)
        self._policy = policy

    def plan_for_event(self, event_type: str, payload: dict[str, Any]) -> list[SyncPlan]:
        """The plans a trigger would cause now, from its wire name and payload.

        Raises CommandRejected, naming the field, where the trigger is none.
        """
        cls = EVENT_TYPES.get(event_type)
        if cls is None or cls not in CHAIN_TRIGGERS:
            known = ", ".join(events.type_name(trigger) for trigger in CHAIN_TRIGGERS)
            raise CommandRejected(f"event_type {event_type!r} has no route; known: {known}")
        try:
            event = msgspec.convert(payload, cls)
        except msgspec.ValidationError as error:
            raise CommandRejected(f"{event_type}: {error}") from None
        return list(self.decide(event, self._known.now).plans)

    def decide(self, event: Event, opened_at: float = 0.0) -> events.SyncPlanned:
        """What a trigger moves, what is in place, and what is not moved by which rule.

        `opened_at` is when the trigger was said, from which a rule's own deadline counts.
        """
        draft = Draft(self._known, event, opened_at)
        rules = [
            rule
            for _, rule in self._policy.placement.rules_on(trigger_name(event))
            if self._policy.s3.enabled or set(rule.to) != {S3_NODE}
        ]
        for rule in rules:
            draft.apply(rule)
        if not rules:
            reason = f"no rule of the policy answers {trigger_name(event)}"
            draft.refusals.append(Refusal(rule="no-rule", reason=reason))
        return draft.planned()

    def belongs(self, entry: DataEntry, node_name: str) -> bool:
        """Whether a standing rule would bring an entry to a node without anybody naming it."""
        row = self._known.node(node_name)
        if row is None or exclusion(self._known, row, asked_for=False) is not None:
            return False
        if self._policy.paths.ownership(entry.path) is Ownership.MERGED:
            return False
        return any(
            rule.takes(entry)
            and entry.data_type in (rule.data or tuple(DataType))
            and any(selects(selector, row.description) for selector in rule.to)
            for rule in self._policy.placement.standing()
        )

    def kinds_for(self, node_name: str) -> frozenset[DataType]:
        """Types of which standing rules bring a node something: nothing else `belongs` there."""
        row = self._known.node(node_name)
        if row is None or exclusion(self._known, row, asked_for=False) is not None:
            return frozenset()
        rules = (
            rule
            for rule in self._policy.placement.standing()
            if any(selects(selector, row.description) for selector in rule.to)
        )
        return frozenset(kind for rule in rules for kind in rule.data or tuple(DataType))

    @property
    def known(self) -> Known:
        """The cluster as this planner sees it."""
        return self._known

    def rank_sources(
        self, holders: Sequence[str], target: NodeRow, entry: DataEntry | None = None
    ) -> list[str]:
        """Those of `holders` that can be asked for a copy, the best first."""
        return rank_sources(self._known, holders, target, entry)


class Draft:
    """A decision that is being made, rule by rule; each target gets an entry by one rule only."""

    def __init__(self, known: Known, event: Event, opened_at: float) -> None:
        self._known = known
        self._event = event
        self._opened_at = opened_at
        self._speaker = events.speaker_of(event) or ""
        self._settled: set[tuple[str, str]] = set()
        self._on_mounts: dict[tuple[str, str], str] = {}
        #: By path, to whom a rule sends it.
        self._coming: dict[str, list[str]] = {}
        self._announced: dict[str, None] = {}
        self._of_speaker = False
        #: Paths that will have so many copies of so many.
        self._short: dict[tuple[int, int], list[str]] = {}
        self.plans: list[SyncPlan] = []
        self.held: list[Held] = []
        self.refusals: list[Refusal] = []

    def apply(self, rule: Rule) -> None:
        """Plan what one rule moves."""
        known, speaker = self._known, self._speaker
        self._of_speaker = self._of_speaker or rule.source is Source.SPEAKER
        speaking = known.node(speaker)
        _, strategy = known.policy.placement.strategy(
            rule, speaking.description if speaking else None
        )
        entries, refusals = entries_for(known, self._event, rule, speaker)
        refusals += samples_lacking(self._event, entries)
        targets, refused = targets_for(known, self._event, rule, strategy, speaker)
        if entries and not targets:
            reason = f"no {'/'.join(rule.to)} node can receive: {_list(refused)}"
            refused.append(Refusal(rule="no-target", reason=reason))
        self.refusals += refusals + refused
        wanted: list[tuple[int, str, DataEntry, NodeRow]] = []
        for entry in entries:
            wanted += self._wanted(rule, entry, targets)
        self._plan(rule, strategy, wanted)
        if any(Role.TRAINING in target.description.roles for target in targets):
            self._announced |= dict.fromkeys(self._unannounced(entries))

    def planned(self) -> events.SyncPlanned:
        """The decision."""
        self.refusals += [_too_few(*copies, paths) for copies, paths in self._short.items()]
        once = dict.fromkeys(_legible(refusal) for refusal in self.refusals)
        sources = {plan.source_node for plan in self.plans}
        return events.SyncPlanned(
            config_key=events.config_key_of(self._event),
            source_node=self._speaker
            if self._of_speaker
            else (sources.pop() if len(sources) == 1 else ""),
            plans=tuple(self.plans),
            held=tuple(self.held),
            refusals=tuple(once),
            announces=tuple(self._announced),
        )

    def _unannounced(self, entries: Iterable[DataEntry]) -> Iterable[str]:
        """Paths whose games exporters were never told of."""
        return (
            entry.path
            for entry in entries
            if entry.data_type is DataType.GAMES
            and bool(entry.games)
            and not self._known.view.was_announced(entry)
        )

    # Which of the targets lack an entry, and from whom they get it

    def _wanted(
        self, rule: Rule, entry: DataEntry, targets: Sequence[NodeRow]
    ) -> list[tuple[int, str, DataEntry, NodeRow]]:
        """(how much less precious, source, entry, target) of each copy that is to be made."""
        known = self._known
        holding = {target.name for target in targets if known.view.holds(target.name, entry)}
        have, most, precious = len(holding), rule.copies or len(targets), 0
        lasting: list[str] = []
        if rule.only_endangered:
            without = self._speaker if rule.source is Source.SPEAKER else ""
            sealed = entry.sealed_with
            lasting = known.lasting(entry.locations, without, sealed_with=sealed)
            coming = self._coming.get(entry.path, ())
            places = (*entry.locations, *coming)
            have = len(known.lasting(places, without, sealed_with=sealed))
            most = known.policy.replication.minimum
            precious = _less_precious(entry, len(lasting))
            self._hold_where_it_lasts(entry, lasting[:most], targets)
        chosen: list[tuple[int, str, DataEntry, NodeRow]] = []
        passed_over = []
        for target in targets:
            if (target.name, entry.path) in self._settled:
                continue
            if target.name in holding:
                self._settled.add((target.name, entry.path))
                self.held.append(_held(target.name, entry))
            elif have + len(chosen) >= most:
                passed_over.append(target.name)
            elif source := self._settle(rule, entry, target, last_copy=not lasting):
                chosen.append((precious, source, entry, target))
        self._say_how_many(rule, entry, have + len(chosen), most, passed_over)
        self._coming.setdefault(entry.path, []).extend(target.name for *_, target in chosen)
        return chosen

    def _hold_where_it_lasts(
        self, entry: DataEntry, lasting: Sequence[str], targets: Sequence[NodeRow]
    ) -> None:
        """Copies that count although no rule would have made them there."""
        among = {target.name for target in targets}
        for name in lasting:
            if name not in among and (name, entry.path) not in self._settled:
                self._settled.add((name, entry.path))
                self.held.append(_held(name, entry))

    def _say_how_many(
        self, rule: Rule, entry: DataEntry, have: int, most: int, passed_over: Sequence[str]
    ) -> None:
        if passed_over:
            names = ", ".join(passed_over)
            reason = f"{entry.path} has {have} of {most} copies; none for {names}"
            self.refusals.append(Refusal(rule="enough-copies", reason=reason, path=entry.path))
        elif rule.only_endangered and have < most:
            self._short.setdefault((have, most), []).append(entry.path)

    def _settle(self, rule: Rule, entry: DataEntry, target: NodeRow, *, last_copy: bool) -> str:
        """From whom a target gets an entry it lacks; "" if a rule refuses, which is noted."""
        self._settled.add((target.name, entry.path))
        there = self._known.view.held_by(target.name, entry.path)
        refusal = _keeps_its_own(self._known, target.name, there, entry)
        merged = self._known.policy.paths.ownership(entry.path) is Ownership.MERGED
        # In the bucket every content lies beside all others: nothing is replaced there.
        if refusal is None and merged and target.name != S3_NODE:
            refusal = Refusal(
                rule="merged",
                reason=f"{entry.path} is merged, never replaced by a copy",
                target=target.name,
                path=entry.path,
                blocking=rule.only_endangered and last_copy,
            )
        if refusal is not None:
            self.refusals.append(refusal)
            return ""
        if self._sees_it(rule, entry, target):
            return ""
        source = self._source(rule, entry, target)
        group = target.description.nfs_group
        if source and group:
            self._on_mounts[group, entry.path] = target.name
        return source

    def _sees_it(self, rule: Rule, entry: DataEntry, target: NodeRow) -> bool:
        """Whether a target sees the file of another node through a mount they share (K5).

        Then it lacks nothing; it is no second copy.
        """
        group = target.description.nfs_group
        sender = self._speaker if rule.source is Source.SPEAKER else ""
        other = on_one_mount(self._known, entry.locations, target, sender)
        other = other or self._on_mounts.get((group, entry.path), "")
        if not other:
            return False
        reason = f"{other} and {target.name} share the mount {group}"
        self.refusals.append(
            Refusal(rule=SAME_MOUNT, reason=reason, target=target.name, path=entry.path)
        )
        self.held.append(_held(target.name, entry))
        return True

    def _source(self, rule: Rule, entry: DataEntry, target: NodeRow) -> str:
        if rule.source is Source.SPEAKER:
            return self._speaker
        ranked = rank_sources(self._known, entry.locations, target, entry)
        if ranked:
            return ranked[0]
        holders = ", ".join(entry.locations)
        reason = f"no holder of {entry.path} is online; held by {holders}"
        if S3_NODE in entry.locations and not opens(target, entry.sealed_with):
            reason += f", there only with the key {entry.sealed_with}, which {target.name} has not"
        self.refusals.append(
            Refusal(
                rule="no-source", reason=reason, target=target.name, path=entry.path, blocking=True
            )
        )
        return ""

    # Plans

    def _plan(
        self,
        rule: Rule,
        strategy: Strategy,
        wanted: Sequence[tuple[int, str, DataEntry, NodeRow]],
    ) -> None:
        """One plan for all targets that lack the same entries from one source the same way."""
        by_target: dict[tuple[int, str, tuple[Transport, ...], str], list[DataEntry]] = {}
        for precious, source, entry, target in wanted:
            chain = transport_chain(self._known, entry, rule, strategy, source, target.name)
            by_target.setdefault((precious, source, chain, target.name), []).append(entry)
        # All targets are given the same objects: they are compared by what they are, not by what
        # is in them, of which there may be very much.
        grouped: dict[tuple[Any, ...], tuple[list[DataEntry], list[str]]] = {}
        for (precious, source, chain, name), entries in by_target.items():
            key = (precious, source, chain, tuple(map(id, entries)))
            grouped.setdefault(key, (entries, []))[1].append(name)
        # The most precious first; else as the rules and entries came.
        ordered = sorted(grouped.items(), key=lambda item: item[0][0])
        for (precious, source, chain, _), (entries, names) in ordered:
            self.plans.append(
                SyncPlan(
                    source_node=source,
                    target_nodes=tuple(names),
                    entries=tuple(replace(one, locations=(), sealed_with="") for one in entries),
                    priority=self._priority(rule, strategy, precious),
                    reason=rule.reason,
                    transport_preference=chain,
                    deadline=self._deadline(rule),
                    spare_only=rule.spare_only,
                )
            )

    def _priority(self, rule: Rule, strategy: Strategy, precious: int) -> SyncPriority:
        if isinstance(self._event, events.DataSyncRequested):
            return self._event.priority
        rank = min(rule.priority.rank, strategy.at_least.rank) + precious
        return tuple(SyncPriority)[min(rank, SyncPriority.BACKGROUND.rank)]

    def _deadline(self, rule: Rule) -> float | None:
        said: float | None = getattr(self._event, "deadline", None)
        if said is None and rule.deadline_s and self._opened_at:
            return self._opened_at + rule.deadline_s
        return said


def _less_precious(entry: DataEntry, other_copies: int) -> int:
    """0 for what would be lost for good, 1 for what could be made again, 2 for what has a copy."""
    if other_copies:
        return 2
    return 1 if entry.data_type is DataType.NPZ else 0


def _keeps_its_own(
    known: Known, target: str, there: DataEntry | None, entry: DataEntry
) -> Refusal | None:
    """Why what a target holds under a path is not replaced; None if it may be (P4, P5)."""
    if there is None:
        return None
    if there.version > entry.version:
        # Younger than the version that counts, and it never became it.
        reason = f"{target} holds another content of its own under {entry.path}; both stay"
        return Refusal(
            rule="conflict",
            reason=reason,
            target=target,
            path=entry.path,
            blocking=target != S3_NODE,
            checksum=there.checksum,
        )
    if target == S3_NODE:
        # Objects there are content-addressed: nothing is replaced.
        return None
    share = known.policy.placement.regression.get(entry.data_type, 0.0)
    counts_games = entry.data_type is DataType.GAMES
    new = entry.games if counts_games else entry.size_bytes
    old = there.games if counts_games else there.size_bytes
    if new is None or old is None or new >= share * old:
        return None
    unit = "games" if counts_games else "bytes"
    reason = f"{entry.path} has {new} {unit}, {target} holds {old}: less than {share:.0%}"
    return Refusal(
        rule="regression",
        reason=reason,
        target=target,
        path=entry.path,
        blocking=True,
        checksum=there.checksum,
    )


def _too_few(have: int, most: int, paths: Sequence[str]) -> Refusal:
    named = ", ".join(paths[:PATHS_NAMED]) + (", …" if len(paths) > PATHS_NAMED else "")
    reason = (
        f"{counted(len(paths), 'entry', 'entries')} will have {have} of {most} lasting copies, "
    )
    reason += f"because no other node can receive: {named}"
    return Refusal(rule="fewer-than-minimum", reason=reason, blocking=have == 0)


def _legible(refusal: Refusal) -> Refusal:
    """A refusal whose words, which may repeat what somebody else said, fit into a message."""
    return replace(refusal, reason=refusal.reason[:REASON_CHARACTERS])


def _held(target: str, entry: DataEntry) -> Held:
    return Held(target=target, path=entry.path, checksum=entry.checksum, games=entry.games)


def _list(refusals: Sequence[Refusal]) -> str:
    return "; ".join(refusal.reason for refusal in refusals) or "none has registered"
