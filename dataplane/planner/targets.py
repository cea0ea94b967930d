"""Who is to receive by a rule, the best first, and who is kept from it, in figures (K5–K7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dataplane.planner.known import Known
from dataplane.policy import GIGABYTE, Rule, Strategy, selects
from dataplane.policy.placement import NAMED, SPEAKER
from projections.nodes import NodeRow
from streams import events
from streams.events import Event
from streams.values import S3_NODE, DataType, Refusal, Role, Trait


def targets_for(
    known: Known, event: Event, rule: Rule, strategy: Strategy, speaker: str
) -> tuple[list[NodeRow], list[Refusal]]:
    """Nodes that are to receive, the best first, and those that a rule keeps from it."""
    refusals: list[Refusal] = []
    targets: dict[str, tuple[tuple[float, ...], NodeRow]] = {}
    selectors = strategy.collect_to or (*rule.to, *strategy.also_to)
    for preference, selector in enumerate(selectors):
        asked_for = selector in (SPEAKER, NAMED) and not _unasked(event)
        for row in _candidates(known, event, selector, speaker, refusals):
            if row.name in targets or any(one.target == row.name for one in refusals):
                continue
            refusal = exclusion(known, row, asked_for=asked_for)
            if refusal is None and not asked_for and row.name != S3_NODE:
                refusal = _ineligible(known, row, rule, strategy)
            if refusal is None:
                rank = _rank(known, row, rule, strategy)
                # Only where not all of them get it does the order of the selectors matter.
                first = float(preference) if rule.copies or rule.only_endangered else 0.0
                targets[row.name] = ((first, *rank), row)
            else:
                refusals.append(refusal)
    ordered = sorted(targets.values(), key=lambda ranked: (ranked[0], ranked[1].name))
    return [row for _, row in ordered], refusals


def exclusion(known: Known, row: NodeRow, *, asked_for: bool) -> Refusal | None:
    """The rule that keeps a node from receiving, blocking if it asked; None if none does."""
    name, description = row.name, row.description
    if not row.online:
        rule, reason = "offline", f"{name} is offline: {row.reason or 'it said so'}"
    elif known.policy.exclusion.excludes(name):
        globs = ", ".join(known.policy.exclusion.exclude_hosts)
        rule, reason = "exclude-hosts", f"{name} is in exclude_hosts ({globs})"
    elif Trait.SKIP_SYNC_RECEIVE in description.traits:
        rule, reason = "skip-sync-receive", f"{name} has skip_sync_receive"
    elif not asked_for and _only_coordinates(known, row):
        rule = "coordinator-without-storage"
        reason = f"{name} is a coordinator without external storage"
    else:
        return None
    return Refusal(rule=rule, reason=reason, target=name, blocking=asked_for)


def target_score(known: Known, row: NodeRow, data_types: Iterable[DataType]) -> float:
    """How much a node is worth serving first (K7)."""
    scores, description = known.policy.placement.scores, row.description
    score = scores.target_base
    if row.training:
        score += scores.training_active
    feeds_training = {DataType.GAMES, DataType.NPZ} & set(data_types)
    if Role.TRAINING in description.roles and feeds_training:
        score += scores.training_node
    if any(selects(f"name:{glob}", description) for glob in scores.priority_hosts):
        score += scores.priority_host
    if known.is_ephemeral(row):
        score += scores.ephemeral_target
    used = _share_used(row)
    if used is not None and used < scores.roomy_below:
        score += scores.roomy_disk
    elif used is not None and used > scores.full_above:
        score += scores.full_disk
    if not row.received_at:
        return score + scores.never_synced
    hours = max(0.0, known.now - row.received_at) / 3600
    return score + min(hours * scores.stale_per_hour, scores.stale_most)


def _candidates(
    known: Known, event: Event, selector: str, speaker: str, refusals: list[Refusal]
) -> Iterable[NodeRow]:
    if selector in (SPEAKER, NAMED):
        names: Sequence[str] = (speaker,)
        if selector == NAMED:
            names = tuple(dict.fromkeys(getattr(event, "target_nodes", ())))
        for name in names:
            row = known.node(name)
            if row is None:
                reason = f"{name} never registered"
                if name == S3_NODE:
                    reason = "there is no bucket: policy.s3.enabled is false"
                blocking = not _unasked(event)
                refusals.append(
                    Refusal(rule="unknown-node", reason=reason, target=name, blocking=blocking)
                )
            else:
                yield row
    elif selector == S3_NODE:
        bucket = known.node(S3_NODE)
        yield from (bucket,) if bucket else ()
    else:
        leaving = speaker if isinstance(event, events.NodeTerminating) else ""
        yield from (
            row
            for row in known.nodes()
            if selects(selector, row.description) and row.name != leaving
        )


def _unasked(event: Event) -> bool:
    """Whether a trigger speaks for a node that has asked for nothing yet."""
    return isinstance(event, events.TrainingExpected)


def _only_coordinates(known: Known, row: NodeRow) -> bool:
    return (
        known.policy.exclusion.coordinator_needs_storage
        and set(row.description.roles) == {Role.COORDINATOR}
        and Trait.EXTERNAL_STORAGE not in row.description.traits
    )


def _ineligible(known: Known, row: NodeRow, rule: Rule, strategy: Strategy) -> Refusal | None:
    """Why a node that may receive gets nothing by this rule, in figures; None if it does."""
    name, description = row.name, row.description
    if rule.lasting_only and known.is_ephemeral(row):
        reason = f"{name} is ephemeral: what is to last does not go there"
        return Refusal(rule="ephemeral-target", reason=reason, target=name)
    if rule.lasting_only and row.is_leaving(known.now):
        reason = f"{name} is to go: what is to last does not go there"
        return Refusal(rule="leaving-target", reason=reason, target=name)
    used, limit = _share_used(row), known.policy.disk.stop_background_from
    if rule.spare_only and used is not None and used >= limit:
        reason = f"{name}'s disk is {used:.0%} full: nothing that may be spared from {limit:.0%} on"
        return Refusal(rule="disk-tier", reason=reason, target=name)
    if not strategy.eligible_only:
        return None
    broadcast = known.policy.placement.broadcast
    free_gb = description.disk_free_bytes / GIGABYTE
    if description.disk_total_bytes and free_gb < broadcast.min_free_disk_gb:
        reason = f"{name} has {free_gb:.1f} GB free, {broadcast.min_free_disk_gb:g} GB are needed"
        return Refusal(rule="broadcast-disk", reason=reason, target=name)
    if description.memory_total_bytes and description.memory_free_bytes is not None:
        free = description.memory_free_bytes / description.memory_total_bytes
        if free < broadcast.min_free_memory:
            reason = f"{name} has {free:.0%} of its memory free"
            reason += f", {broadcast.min_free_memory:.0%} are needed"
            return Refusal(rule="broadcast-memory", reason=reason, target=name)
    return None


def _rank(known: Known, row: NodeRow, rule: Rule, strategy: Strategy) -> tuple[float, ...]:
    if strategy.eligible_only:
        return (-float(row.description.disk_free_bytes),)
    return (-target_score(known, row, rule.data or tuple(DataType)),)


def _share_used(row: NodeRow) -> float | None:
    total = row.description.disk_total_bytes
    return 1 - row.description.disk_free_bytes / total if total else None
