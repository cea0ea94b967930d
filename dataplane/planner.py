"""What must go where: a pure function of what is known, the policy and the trigger.

It says what is to be moved, what is in place already, and for everything else by which rule it is
not moved. It must never return nothing without a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from dataplane.backup import backup
from dataplane.policy import Policy
from dataplane.routes import (
    BELONGS,
    ROUTES,
    TARGET_ROLES,
    TARGET_TRAITS,
    TRANSPORT_CHAINS,
    From,
    Route,
    To,
)
from projections.nodes import NodeRow
from streams import events
from streams.events import EVENT_TYPES, Event
from streams.values import (
    S3_NODE,
    DataEntry,
    DataType,
    Held,
    Refusal,
    Role,
    SyncPlan,
    SyncPriority,
    Trait,
    Transport,
)

#: Of each refusal, as many characters are kept.
REASON_CHARACTERS = 2_000


SAME_MOUNT = "same-nfs"


class PlanningView(Protocol):
    """What a planner must know of the cluster; `projections.cluster.ClusterView` knows it."""

    def nodes(self) -> list[NodeRow]:
        """All nodes that ever registered, by name."""

    def node(self, name: str) -> NodeRow | None:
        """A node by name."""

    def current(
        self, *, node: str, config_key: str, data_type: DataType, authority_only: bool = True
    ) -> list[DataEntry]:
        """Current entries; with `node`, those it is the authority of, or all that it holds."""

    def held_by(self, node: str, path: str) -> DataEntry | None:
        """What a node holds under a path."""

    def was_announced(self, entry: DataEntry) -> bool:
        """Whether exporters were told of this content before."""


class CommandRejected(ValueError):
    """A request that no plan can be made for, with the field or rule that says so."""


class SyncPlanner:
    """Plans for one reading of the cluster."""

    def __init__(self, policy: Policy, view: PlanningView) -> None:
        self._policy = policy
        self._view = view

    def plan_for_event(self, event_type: str, payload: dict[str, Any]) -> list[SyncPlan]:
        """The plans a trigger would cause now, from its wire name and payload.

        Raises CommandRejected, naming the field, where the trigger is none.
        """
        cls = EVENT_TYPES.get(event_type)
        if cls is None or cls not in ROUTES:
            known = ", ".join(events.type_name(trigger) for trigger in ROUTES)
            raise CommandRejected(f"event_type {event_type!r} has no route; known: {known}")
        try:
            event = msgspec.convert(payload, cls)
        except msgspec.ValidationError as error:
            raise CommandRejected(f"{event_type}: {error}") from None
        return list(self.decide(event).plans)

    def decide(self, event: Event) -> events.SyncPlanned:
        """What a trigger moves, what is in place, and what is not moved by which rule."""
        route = ROUTES[type(event)]
        speaker = events.speaker_of(event) or ""
        entries, refusals = self._entries(event, route, speaker)
        targets, refused = self._targets(event, route, speaker, bool(entries))
        refusals += refused
        held: list[Held] = []
        plans: list[SyncPlan] = []
        for source, missing in self._missing(route, speaker, entries, targets, held, refusals):
            plans += self._plans(event, route, source, missing)
        stored = partial(self._view.held_by, S3_NODE)
        to_bucket = backup(event, route, speaker, entries, stored, self._policy)
        plans += to_bucket.plans
        held += to_bucket.held
        refusals += to_bucket.refusals
        return events.SyncPlanned(
            config_key=events.config_key_of(event),
            source_node=speaker if route.source is From.SPEAKER else _only_source(plans),
            plans=tuple(plans),
            held=tuple(held),
            refusals=tuple(_legible(refusal) for refusal in refusals),
            announces=self._unannounced(entries) if _trains(targets) else (),
        )

    def _unannounced(self, entries: Sequence[DataEntry]) -> tuple[str, ...]:
        """Paths whose games exporters were never told of."""
        return tuple(
            entry.path
            for entry in entries
            if entry.data_type is DataType.GAMES
            and bool(entry.games)
            and not self._view.was_announced(entry)
        )

    # What

    def _entries(
        self, event: Event, route: Route, speaker: str
    ) -> tuple[list[DataEntry], list[Refusal]]:
        """The entries a trigger speaks of, by path."""
        types = _wanted_types(event) or route.data_types
        config_key = events.config_key_of(event)
        node = speaker if route.source is From.SPEAKER else ""
        leaves = isinstance(event, events.NodeTerminating)
        found = [
            entry
            for data_type in types
            for entry in self._view.current(
                node=node,
                config_key="" if leaves else config_key,
                data_type=data_type,
                # A node that vanishes takes along what others produced, too.
                authority_only=not leaves,
            )
        ]
        paths = _named_paths(event)
        if paths:
            rules = self._policy.paths
            names = {path for p in paths for path in (p, rules.logical(p, speaker))}
            found = [entry for entry in found if entry.path in names]
        if not found:
            named = f" at {', '.join(paths)}" if paths else ""
            what = f"{config_key} {'/'.join(types)}{named}"
            reason = f"{speaker} holds no {what}" if node else f"nobody holds {what}"
            return [], [Refusal(rule="nothing-held", reason=reason)]
        return sorted(found, key=lambda entry: entry.path), []

    # Where to

    def _targets(
        self, event: Event, route: Route, speaker: str, has_entries: bool
    ) -> tuple[list[NodeRow], list[Refusal]]:
        """Nodes that are to receive, and those that are kept from it by a rule."""
        refusals: list[Refusal] = []
        targets = []
        for node in self._candidates(event, route, speaker, refusals):
            asked_for = route.target in (To.SPEAKER, To.NAMED)
            rule, reason = self._exclusion(node, asked_for=asked_for)
            if rule:
                refusals.append(
                    Refusal(rule=rule, reason=reason, target=node.name, blocking=asked_for)
                )
            else:
                targets.append(node)
        if not targets and has_entries:
            refusals.append(
                Refusal(
                    rule="no-target", reason=f"no {route.target} can receive: {_list(refusals)}"
                )
            )
        return targets, refusals

    def _candidates(
        self, event: Event, route: Route, speaker: str, refusals: list[Refusal]
    ) -> Iterable[NodeRow]:
        if route.target in (To.SPEAKER, To.NAMED):
            names = getattr(event, "target_nodes", ()) if route.target is To.NAMED else (speaker,)
            for name in names:
                node = self._view.node(name)
                if node is None:
                    reason = f"{name} never registered"
                    refusals.append(
                        Refusal(rule="unknown-node", reason=reason, target=name, blocking=True)
                    )
                else:
                    yield node
            return
        yield from (node for node in self._view.nodes() if _is_kind(node, route.target))

    def _exclusion(self, node: NodeRow, *, asked_for: bool) -> tuple[str, str]:
        """The rule that keeps a node from receiving, and its words; ("", "") if none does."""
        description = node.description
        if not node.online:
            return "offline", f"{node.name} is offline: {node.reason or 'it said so'}"
        if self._policy.exclusion.excludes(node.name):
            return "exclude-hosts", f"{node.name} is in exclude_hosts"
        if Trait.SKIP_SYNC_RECEIVE in description.traits:
            return "skip-sync-receive", f"{node.name} has skip_sync_receive"
        only_coordinates = set(description.roles) == {Role.COORDINATOR}
        if only_coordinates and not asked_for and Trait.EXTERNAL_STORAGE not in description.traits:
            return (
                "coordinator-without-storage",
                f"{node.name} is a coordinator without external storage",
            )
        return "", ""

    def belongs(self, entry: DataEntry, node_name: str) -> bool:
        """Whether the routing table would bring an entry to a node without anybody naming it."""
        node = self._view.node(node_name)
        if node is None or self._exclusion(node, asked_for=False)[0]:
            return False
        if self._policy.paths.ownership(entry.path) == "merged":
            return False
        return any(
            entry.data_type in types and _is_kind(node, kind) for kind, types in BELONGS.items()
        )

    # What is missing where

    def _missing(
        self,
        route: Route,
        speaker: str,
        entries: Sequence[DataEntry],
        targets: Sequence[NodeRow],
        held: list[Held],
        refusals: list[Refusal],
    ) -> Iterable[tuple[str, dict[str, list[DataEntry]]]]:
        """By source: target to the entries it lacks. Fills in what is held and what is refused."""
        by_source: dict[str, dict[str, list[DataEntry]]] = {}
        for target in targets:
            for entry in entries:
                there = self._view.held_by(target.name, entry.path)
                if there is not None and there.checksum == entry.checksum:
                    held.append(_held(target.name, there))
                    continue
                if there is not None and there.version > entry.version:
                    refusals.append(_conflict(target.name, entry))
                    continue
                source = self._source(route, speaker, entry, target)
                if isinstance(source, Refusal):
                    refusals.append(source)
                    if source.rule == SAME_MOUNT:
                        # It sees the source's file, so it lacks nothing; it is no second copy.
                        held.append(_held(target.name, entry))
                else:
                    missing = by_source.setdefault(source, {})
                    missing.setdefault(target.name, []).append(entry)
        return by_source.items()

    def _source(
        self, route: Route, speaker: str, entry: DataEntry, target: NodeRow
    ) -> str | Refusal:
        if self._policy.paths.ownership(entry.path) == "merged":
            reason = f"{entry.path} is merged, never replaced by a copy"
            return Refusal(rule="merged", reason=reason, target=target.name, path=entry.path)
        source = speaker
        if route.source is From.HOLDER:
            ranked = self.rank_sources(entry.locations, target)
            if not ranked:
                reason = f"no holder of {entry.path} is online"
                return Refusal(
                    rule="no-source",
                    reason=reason,
                    target=target.name,
                    path=entry.path,
                    blocking=True,
                )
            source = ranked[0]
        if source != target.name and self._one_mount(source, target):
            reason = f"{source} and {target.name} share the mount {target.description.nfs_group}"
            return Refusal(rule=SAME_MOUNT, reason=reason, target=target.name, path=entry.path)
        return source

    def rank_sources(self, holders: Sequence[str], target: NodeRow | None) -> list[str]:
        """Those of `holders` that are online, the best first: storage, same provider, lasting.

        The bucket is asked last. A `target` of None is the bucket.
        """
        target_name = S3_NODE if target is None else target.name
        nodes = [self._view.node(name) for name in holders if name != target_name]
        online = [node for node in nodes if node is not None and node.online]
        ranked = sorted(online, key=lambda n: (-_source_score(n, target), n.name))
        stored = target is not None and self._policy.s3.enabled and S3_NODE in holders
        return [*(node.name for node in ranked), *([S3_NODE] if stored else [])]

    def _one_mount(self, source: str, target: NodeRow) -> bool:
        node = self._view.node(source)
        group = target.description.nfs_group
        return bool(group) and node is not None and node.description.nfs_group == group

    # Plans

    def _plans(
        self, event: Event, route: Route, source: str, missing: dict[str, list[DataEntry]]
    ) -> list[SyncPlan]:
        """One plan for all targets that lack the same entries by the same transports."""
        grouped: dict[tuple[tuple[Transport, ...], tuple[DataEntry, ...]], list[str]] = {}
        for target, entries in missing.items():
            by_chain: dict[tuple[Transport, ...], list[DataEntry]] = {}
            for entry in entries:
                by_chain.setdefault(self.transport_chain(entry, route), []).append(entry)
            for chain, some in by_chain.items():
                grouped.setdefault((chain, tuple(some)), []).append(target)
        return [
            SyncPlan(
                source_node=source,
                target_nodes=tuple(targets),
                entries=tuple(msgspec.structs.replace(e, locations=()) for e in entries),
                priority=_priority(event, route),
                reason=route.reason,
                transport_preference=chain,
                deadline=getattr(event, "deadline", None),
            )
            for (chain, entries), targets in grouped.items()
        ]

    def transport_chain(self, entry: DataEntry, route: Route) -> tuple[Transport, ...]:
        """Transports to try for an entry, in order, of those this installation has."""
        if self._policy.transports.is_large(entry):
            kind = "large_file"
        else:
            kind = "ephemeral_urgent" if route.urgent else "small_file"
        have = self._policy.transports.installed
        return tuple(t for t in TRANSPORT_CHAINS[kind] if t in have) or have


def _trains(targets: Sequence[NodeRow]) -> bool:
    return any(Role.TRAINING in target.description.roles for target in targets)


def _is_kind(node: NodeRow, target: To) -> bool:
    """Whether a node is one of a kind of target, by its roles or traits."""
    description = node.description
    by_role = bool(set(TARGET_ROLES.get(target, ())) & set(description.roles))
    return by_role or TARGET_TRAITS.get(target) in description.traits


def _wanted_types(event: Event) -> tuple[DataType, ...]:
    if isinstance(event, events.TrainingStarted):
        return event.data_types
    if isinstance(event, events.DataNeeded | events.DataSyncRequested):
        return (event.data_type,)
    return ()


def _named_paths(event: Event) -> tuple[str, ...]:
    """Paths a trigger names; a SELFPLAY_COMPLETE's is a hint, the node's answer counts."""
    if isinstance(event, events.ModelPromoted):
        return (event.model_path,)
    if isinstance(event, events.TrainingCompleted):
        return tuple(path for path in (event.model_path, event.checkpoint_path) if path)
    if isinstance(event, events.OrphanGamesDetected | events.DataNeeded):
        return event.paths
    return ()


def _priority(event: Event, route: Route) -> SyncPriority:
    if isinstance(event, events.DataSyncRequested):
        return event.priority
    return route.priority


def _legible(refusal: Refusal) -> Refusal:
    """A refusal whose words, which may repeat what somebody else said, fit into a message."""
    return msgspec.structs.replace(refusal, reason=refusal.reason[:REASON_CHARACTERS])


def _conflict(target: str, entry: DataEntry) -> Refusal:
    """What a target has is younger than the version that counts and never became it."""
    reason = f"{target} holds another content of its own under {entry.path}; both stay"
    return Refusal(rule="conflict", reason=reason, target=target, path=entry.path, blocking=True)


def _held(target: str, there: DataEntry) -> Held:
    return Held(target=target, path=there.path, checksum=there.checksum, games=there.games)


def _source_score(node: NodeRow, target: NodeRow | None) -> int:
    description = node.description
    score = 150 if Trait.EXTERNAL_STORAGE in description.traits else 0
    provider = "" if target is None else target.description.provider
    if provider and description.provider == provider:
        score += 20
    return score - (10 if Trait.EPHEMERAL in description.traits else 0)


def _only_source(plans: Sequence[SyncPlan]) -> str:
    sources = {plan.source_node for plan in plans}
    return sources.pop() if len(sources) == 1 else ""


def _list(refusals: Sequence[Refusal]) -> str:
    return "; ".join(refusal.reason for refusal in refusals) or "none has registered"
