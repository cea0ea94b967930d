"""What of a trigger's entries goes to the bucket besides: a pure function (K19).

It must never take anything out of the bucket, and never hold up what trains: a backup that nothing
urgent asks for goes behind other work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from dataplane.policy import Policy
from dataplane.routes import Route
from streams import events
from streams.events import Event
from streams.values import (
    S3_NODE,
    DataEntry,
    Held,
    Refusal,
    SyncPlan,
    SyncPriority,
    Transport,
)


class Backup(msgspec.Struct, frozen=True):
    """What is to be stored, what is stored, and what is not worth it yet."""

    plans: tuple[SyncPlan, ...] = ()
    held: tuple[Held, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def backup(
    event: Event,
    route: Route,
    source: str,
    entries: Sequence[DataEntry],
    stored: Callable[[str], DataEntry | None],
    policy: Policy,
) -> Backup:
    """The part of a plan that speaks of the bucket; `stored` is what it holds under a path."""
    if not (route.backup and policy.s3.enabled):
        return Backup()
    missing: list[DataEntry] = []
    held: list[Held] = []
    refusals: list[Refusal] = []
    for entry in entries:
        there = stored(entry.path)
        if there is not None and there.version >= entry.version:
            if there.checksum == entry.checksum:
                held.append(_held(entry))
        elif refusal := _not_worth_it(event, entry, policy):
            refusals.append(refusal)
        else:
            missing.append(msgspec.structs.replace(entry, locations=()))
    plan = SyncPlan(
        source_node=source,
        target_nodes=(S3_NODE,),
        entries=tuple(missing),
        priority=route.priority if route.urgent else SyncPriority.LOW,
        reason=f"backup: {route.reason}",
        transport_preference=(Transport.S3,),
        deadline=getattr(event, "deadline", None),
    )
    return Backup((plan,) if missing else (), tuple(held), tuple(refusals))


def _held(entry: DataEntry) -> Held:
    return Held(target=S3_NODE, path=entry.path, checksum=entry.checksum, games=entry.games)


def _not_worth_it(event: Event, entry: DataEntry, policy: Policy) -> Refusal | None:
    games, least = entry.games or 0, policy.s3.min_games
    if not isinstance(event, events.SelfplayComplete) or games >= least:
        return None
    reason = f"{games} games in {entry.path}, a backup begins at {least}"
    return Refusal(rule="s3-min-games", reason=reason, target=S3_NODE, path=entry.path)
