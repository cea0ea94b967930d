"""Which entries a trigger moves by a rule, and which it leaves, with the figures.

A trigger names kinds and paths or leaves that to the rule. Gates (K3, K19) keep out what is not
worth moving yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dataplane.planner.known import Known
from dataplane.policy import Rule, Source
from streams import events
from streams.events import Event
from streams.identity import GAME_DATABASE_SUFFIXES
from streams.values import S3_NODE, DataEntry, DataType, Refusal

#: Triggers that name all that they are about.
FOUND = events.SweepDue | events.TrainingExpected


class CommandRejected(ValueError):
    """A request that no plan can be made for, with the field or rule that says so."""


def trigger_name(event: Event) -> str:
    """What rules call a trigger: its wire name, a sweep's with its kind."""
    name = events.type_name(event)
    return f"{name}/{event.kind}" if isinstance(event, events.SweepDue) else name


def entries_for(
    known: Known, event: Event, rule: Rule, speaker: str
) -> tuple[list[DataEntry], list[Refusal]]:
    """The entries a trigger speaks of, by path, and those that a gate keeps back."""
    found = list(_found(known, event, rule, speaker))
    if not found:
        return [], [_nothing(event, rule, speaker)]
    refusals: list[Refusal] = []
    taken = []
    few = _of_few_games(known, found)
    for entry in sorted(found, key=lambda entry: entry.path):
        refusal = _kept_back(known, rule, entry, too_few=entry in few)
        if refusal is None:
            taken.append(entry)
        else:
            refusals.append(refusal)
    return taken, refusals


def samples_lacking(event: Event, entries: Sequence[DataEntry]) -> list[Refusal]:
    """Whether all there is of what was asked for is less than was asked for; games are samples."""
    if not isinstance(event, events.DataNeeded) or not event.min_samples or not entries:
        return []
    found = sum(entry.samples or entry.games or 0 for entry in entries)
    if found >= event.min_samples:
        return []
    reason = f"{found} of {event.min_samples} samples of {event.config_key} exist"
    return [Refusal(rule="too-few-samples", reason=reason)]


def named_paths(event: Event) -> tuple[str, ...]:
    """Paths a trigger names; a SELFPLAY_COMPLETE's is a hint, the node's answer counts."""
    if isinstance(event, events.ModelPromoted):
        return (event.model_path,)
    if isinstance(event, events.TrainingCompleted):
        return tuple(path for path in (event.model_path, event.checkpoint_path) if path)
    if isinstance(event, events.OrphanGamesDetected | events.DataNeeded | FOUND):
        return event.paths
    return ()


def _found(known: Known, event: Event, rule: Rule, speaker: str) -> Iterable[DataEntry]:
    if rule.source is Source.SPEAKER and not speaker:
        return ()
    if isinstance(event, FOUND):
        entries, types = map(known.view.current_at, event.paths), _types(event, rule)
        return (
            entry
            for entry in entries
            if entry is not None and entry.data_type in types and rule.takes(entry)
        )
    node = speaker if rule.source is Source.SPEAKER else ""
    leaves = isinstance(event, events.NodeTerminating)
    found: Iterable[DataEntry] = (
        entry
        for data_type in _types(event, rule)
        for entry in known.view.current(
            node=node,
            config_key="" if leaves else events.config_key_of(event),
            data_type=data_type,
            # A node that vanishes takes along what others produced, too.
            authority_only=not leaves,
        )
    )
    found = (entry for entry in found if rule.takes(entry))
    paths = named_paths(event)
    if paths:
        rules = known.policy.paths
        names = {path for p in paths for path in (p, rules.logical(p, speaker))}
        found = (entry for entry in found if entry.path in names)
    return found


def _types(event: Event, rule: Rule) -> tuple[DataType, ...]:
    if isinstance(event, events.TrainingStarted | events.TrainingExpected) and event.data_types:
        return event.data_types
    if isinstance(event, events.DataNeeded | events.DataSyncRequested):
        return (event.data_type,)
    return rule.data or tuple(DataType)


def _nothing(event: Event, rule: Rule, speaker: str) -> Refusal:
    paths = named_paths(event)
    named = f" at {', '.join(paths)}" if paths else ""
    what = f"{events.config_key_of(event)} {'/'.join(_types(event, rule))}{named}"
    holds = "nobody holds"
    if rule.source is Source.SPEAKER:
        holds = f"{speaker} holds no" if speaker else "no node speaks that would hold"
    return Refusal(rule="nothing-held", reason=f"{holds} {what}")


def _of_few_games(known: Known, found: Sequence[DataEntry]) -> list[DataEntry]:
    """Databases with too few games to be worth moving beside others.

    None where there are no others: who says that it has played is taken at its word.
    """
    least = known.policy.quality.min_games
    few = [
        entry
        for entry in found
        if entry.path.endswith(GAME_DATABASE_SUFFIXES)
        and entry.games is not None
        and entry.games < least
    ]
    return few if len(few) < len(found) else []


def _kept_back(known: Known, rule: Rule, entry: DataEntry, *, too_few: bool) -> Refusal | None:
    """Why an entry is not worth moving by a rule; None if it is."""
    if rule.quality_gate and entry.data_type is DataType.GAMES:
        quality = known.policy.quality
        if too_few:
            reason = f"{entry.path} has {entry.games} games, worth moving from {quality.min_games}"
            return Refusal(rule="too-few-games", reason=reason, path=entry.path)
        judged = entry.games is None or entry.games >= quality.judged_from_games
        if judged and entry.quality is not None and entry.quality < quality.min_mean:
            reason = f"{entry.path} has a mean quality of {entry.quality:.2f}"
            reason += f", worth moving from {quality.min_mean:.2f}"
            return Refusal(rule="low-quality", reason=reason, path=entry.path)
    if rule.backup_gate:
        s3 = known.policy.s3
        if not s3.takes(entry):
            reason = f"{entry.path} is of no kind that is backed up"
            return Refusal(rule="s3-kind", reason=reason, target=S3_NODE, path=entry.path)
        if entry.games is not None and entry.games < s3.min_games:
            reason = f"{entry.path} has {entry.games} games, backed up from {s3.min_games}"
            return Refusal(rule="s3-min-games", reason=reason, target=S3_NODE, path=entry.path)
    return None
