"""What a chain still owes: the one function that makes chains complete.

`owed` is asked after every event, after every restart and by the sweep. Asked again it gives the
same facts with the same ids, so that being asked twice, or by two coordinators, does no harm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from adapters.s3.layout import manifest_key, under
from dataplane.duties import distributed, may_end_empty, of_no_use, said_of_the_plan
from dataplane.policy import Policy
from projections.chains import Chain, ChainStatus, Need, advanced, part_of, with_parts
from projections.transfers import ENTRY_MISSING, TransferRow, TransferState, attempts, transfer_id
from streams import events
from streams.codec import LIST_BYTES, Fact, chain_fact, split_entries
from streams.values import S3_NODE, DataEntry, Held, Refusal, SyncPlan, TargetOutcome, added

T = TypeVar("T")
#: Outcomes named in an end, and the characters of each error: an end must fit into a message. A
#: chain of more outcomes says how many were left out.
OUTCOMES_NAMED = 400
ERROR_CHARACTERS = 1_000
#: What nobody holds any more is planned again as what has taken its place, so many versions long: a
#: file that changes faster than it can be fetched must not keep its chain open for ever.
MOST_VERSIONS = 5
#: A chain that ends so soon after its limit is not said to be overdue: it ends by its limit.
ENDED_IN_TIME_S = 30.0

_ENDS = (events.DataSyncCompleted, events.DataSyncFailed)
Plan = Callable[[events.Event, float], events.SyncPlanned]


def owed(
    chain: Chain,
    transfers: Mapping[str, TransferRow],
    plan: Plan,
    policy: Policy,
    now: float,
    cause: str = "",
) -> list[Fact]:
    """The facts that are due for a chain now; empty if it must wait, or owes nothing.

    `transfers` holds the rows of `chain.needs` by id; `plan` is asked at most once, with the
    trigger and when it was said; `cause` is the id of the event that makes us ask. All facts
    are for one atomic append, guarded by the last sequence of the chain's subjects.
    """
    cause = cause or chain.trigger_id
    facts = _due(chain, transfers, plan, policy, now, cause)
    return _said_late(facts, chain, policy, now, cause, "a coordinator to end it")


def _due(
    chain: Chain,
    transfers: Mapping[str, TransferRow],
    plan: Plan,
    policy: Policy,
    now: float,
    cause: str,
) -> list[Fact]:
    if chain.cancelled_at and chain.status in (ChainStatus.WAITING_FOR_FILES, ChainStatus.READY):
        return [_failure(chain, [], [], now, of_no_use(chain, policy, now), cause)]
    if chain.status is ChainStatus.WAITING_FOR_FILES:
        if now - max(chain.opened_at, chain.reading_at) < policy.chains.answer_limit_s:
            return _overdue(chain, policy, now, cause, f"{chain.node} to say what it holds")
        reason = f"{chain.node} gave no answer within {policy.chains.answer_limit_s:g} s"
        return [_failure(chain, [], [], now, reason, cause)]
    if chain.status is ChainStatus.READY:
        return _plan(chain, plan(chain.event(), chain.opened_at), policy, now, cause)
    if chain.status is ChainStatus.MOVING:
        again = [] if chain.cancelled_at else _planned_again(chain, transfers, plan, cause)
        return again or _end(chain, transfers, policy, now, cause)
    if chain.status is ChainStatus.COMPLETED and not chain.announced_at:
        # Written together with the end; owed alone only if an older program wrote the end.
        return _announcement(chain, [], policy, cause)
    return []


def set_aside(
    chain: Chain, tries: int, problem: str, policy: Policy, now: float, cause: str
) -> list[Fact]:
    """The end of a chain that could not be decided, and the word that it was set aside.

    It asks little but the row: whatever went wrong in `owed` can't go wrong here.
    """
    event = events.EventSetAside(
        sequence=chain.opened_sequence,
        trigger=chain.trigger,
        reason=problem[:ERROR_CHARACTERS],
        tries=tries,
        config_key=chain.config_key,
    )
    reason = f"set aside after {tries} tries: {problem[:ERROR_CHARACTERS]}"
    facts = [chain_fact(event, chain.id, cause), _failure(chain, [], [], now, reason, cause)]
    return _said_late(facts, chain, policy, now, cause, "somebody who can decide it")


def exhausted(transfer: TransferRow, policy: Policy, since: int) -> bool:
    """Whether the attempts since a plan are used up, or the last one can't be made better.

    Those before one that made headway are not counted: it goes on from where that one ended.
    """
    failures = transfer.failures_since(since)
    if not failures:
        return False
    fruitless = transfer.fruitless_since(since)
    return not failures[-1].retryable or fruitless > policy.retries.max_retries


def _plan(
    chain: Chain, decision: events.SyncPlanned, policy: Policy, now: float, cause: str
) -> list[Fact]:
    parts = _parts(_unsaid(chain, decision))
    facts = [
        chain_fact(part, chain.id, cause, index) for index, part in enumerate(parts, chain.parts)
    ]
    said = [part_of(part) for part in parts]
    chain = with_parts(chain, said)
    for part, row in zip(parts, said, strict=True):
        chain = advanced(chain, part, row, now)
    facts += said_of_the_plan(chain, cause)
    if not chain.needs:
        return facts + _end(chain, {}, policy, now, cause)
    # Two targets of one entry are one file that starts to move.
    sizes = {(need.path, need.checksum): need.size_bytes for need in chain.needs}
    started = events.DataSyncStarted(
        config_key=chain.config_key,
        source_node=chain.source_node,
        targets=tuple(sorted({need.target for need in chain.needs})),
        entries=len(sizes),
        size_bytes=added(*sizes.values()),
    )
    return [*facts, chain_fact(started, chain.id, cause)]


def _planned_again(
    chain: Chain, transfers: Mapping[str, TransferRow], plan: Plan, cause: str
) -> list[Fact]:
    """SYNC_PLANNED of what has taken the place of contents that a source holds no more.

    It is planned for the targets that wait for them and for nothing else. Empty where nothing has:
    then another holder is asked, or the transfer fails in the end.
    """
    lost = {
        (need.target, need.path)
        for need in _last_of_each_place(chain.needs)
        if _is_lost(transfers.get(need.transfer), chain)
    }
    lost -= {place for place, n in Counter(map(_place, chain.needs)).items() if n >= MOST_VERSIONS}
    if not lost:
        return []
    decision = plan(chain.event(), chain.opened_at)
    known = {need.transfer for need in chain.needs}
    plans = _plans_of(
        decision,
        lambda entry, target: (
            (target, entry.path) in lost and transfer_id(entry, target) not in known
        ),
    )
    if not plans:
        return []
    to_nodes = [one for one in plans if one.target_nodes != (S3_NODE,)]
    paths = {entry.path for one in to_nodes for entry in one.entries} - set(chain.announces)
    announces = tuple(path for path in decision.announces if path in paths)
    again = events.SyncPlanned(
        config_key=chain.config_key,
        source_node=chain.source_node,
        plans=tuple(plans),
        announces=announces,
    )
    return [
        chain_fact(part, chain.id, cause, "again", len(chain.needs), index)
        for index, part in enumerate(_parts(again))
    ]


def _unsaid(chain: Chain, decision: events.SyncPlanned) -> events.SyncPlanned:
    """What the parts of a plan that were said before its decider died leave to be said.

    What they said stands: who decides again sees another cluster, and may decide otherwise.
    """
    if not chain.parts:
        return decision
    known = {need.transfer for need in chain.needs}
    settled = {_place(need) for need in chain.needs}
    settled |= {(held.target, held.path) for held in chain.held}
    refused, announced = set(chain.refusals), set(chain.announces)
    return replace(
        decision,
        plans=tuple(
            _plans_of(decision, lambda entry, target: transfer_id(entry, target) not in known)
        ),
        held=tuple(one for one in decision.held if (one.target, one.path) not in settled),
        refusals=tuple(one for one in decision.refusals if one not in refused),
        announces=tuple(path for path in decision.announces if path not in announced),
    )


def _plans_of(
    decision: events.SyncPlanned, wanted: Callable[[DataEntry, str], bool]
) -> list[SyncPlan]:
    """The plans of a decision, one for each target, of the entries that are wanted there."""
    return [
        replace(one, target_nodes=(target,), entries=entries)
        for one in decision.plans
        for target in one.target_nodes
        if (entries := tuple(entry for entry in one.entries if wanted(entry, target)))
    ]


def _is_lost(transfer: TransferRow | None, chain: Chain) -> bool:
    """Whether the last attempt at a transfer found that its source holds the content no more."""
    if transfer is None or transfer.state is not TransferState.PENDING:
        return False
    failures = transfer.failures_since(chain.planned_sequence)
    return bool(failures) and failures[-1].error_class == ENTRY_MISSING


def _place(need: Need) -> tuple[str, str]:
    return need.target, need.path


def _last_of_each_place(needs: Sequence[Need]) -> list[Need]:
    """What is still meant of a plan that was made again: of each place the version named last."""
    return list({_place(need): need for need in needs}.values())


def _parts(decision: events.SyncPlanned) -> list[events.SyncPlanned]:
    """A plan cut so that each part fits into a message; the last one completes it."""
    plans = [
        replace(plan, entries=entries)
        for plan in decision.plans
        for entries in split_entries(plan.entries)
    ]
    pieces = split_entries((*plans, *decision.held, *decision.refusals, *decision.announces))
    parts = [
        replace(
            decision,
            plans=tuple(item for item in piece if isinstance(item, SyncPlan)),
            held=tuple(item for item in piece if isinstance(item, Held)),
            refusals=tuple(item for item in piece if isinstance(item, Refusal)),
            announces=tuple(item for item in piece if isinstance(item, str)),
            last_part=False,
        )
        for piece in pieces
    ]
    return [*parts[:-1], replace(parts[-1], last_part=True)]


def _end(
    chain: Chain,
    transfers: Mapping[str, TransferRow],
    policy: Policy,
    now: float,
    cause: str,
) -> list[Fact]:
    """The end of a planned chain, once each of its needs is met or given up.

    Games are announced once the nodes have them: a bucket that is slow, or away, holds up nobody
    who trains.
    """
    needs = _last_of_each_place(chain.needs)
    outcomes = [(need, _outcome(chain, need, transfers, policy)) for need in needs]
    if why := of_no_use(chain, policy, now):
        outcomes = [(need, outcome or _given_up(need, why)) for need, outcome in outcomes]
    open_needs = [need for need, outcome in outcomes if outcome is None]
    arrived = [outcome for _, outcome in outcomes if outcome is not None and not outcome.error]
    failed = [outcome for _, outcome in outcomes if outcome is not None and outcome.error]
    blocking = [refusal.reason for refusal in chain.refusals if refusal.blocking]
    lacking = {one.target for one in open_needs} | {one.target for one in failed}
    stored = [
        *distributed(chain, arrived, policy, cause),
        *_stored(chain, arrived, transfers, policy, cause),
    ]
    announced: list[Fact] = []
    if not blocking and lacking <= {S3_NODE}:
        announced = _announcement(chain, arrived, policy, cause)
    if open_needs:
        waiting = f"{open_needs[0].path} on {open_needs[0].target}"
        return [*stored, *announced, *_overdue(chain, policy, now, cause, waiting)]
    if failed:
        names = ", ".join(sorted({outcome.target for outcome in failed}))
        reason = f"{len(failed)} of {len(needs)} copies are missing on {names}"
        reason = f"{chain.node} stays after all: {reason}" if chain.cancelled_at else reason
        return [*stored, _failure(chain, arrived, failed, now, reason, cause), *announced]
    if blocking:
        return [*stored, _failure(chain, arrived, [], now, "; ".join(blocking), cause)]
    if not arrived and not chain.held and not may_end_empty(chain):
        why = "; ".join(refusal.reason for refusal in chain.refusals) or "nothing was planned"
        return [_failure(chain, [], [], now, why, cause)]
    completion = _completion(chain, arrived, now, cause)
    return [*stored, completion, *announced]


def _stored(
    chain: Chain,
    arrived: Sequence[TargetOutcome],
    transfers: Mapping[str, TransferRow],
    policy: Policy,
    cause: str,
) -> list[Fact]:
    """S3_BACKUP_COMPLETED, once all that the chain wanted in the bucket is there and is named."""
    needs = _last_of_each_place(chain.needs)
    wanted = [need for need in needs if need.target == S3_NODE]
    there = [outcome for outcome in arrived if outcome.target == S3_NODE]
    if chain.backed_up_at or not wanted or len(there) < len(wanted):
        return []
    by_source: dict[str, list[Need]] = {}
    for need in wanted:
        by_source.setdefault(transfers[need.transfer].source, []).append(need)
    facts = []
    for source, needs in sorted(by_source.items()):
        event = events.S3BackupCompleted(
            bucket=policy.s3.bucket,
            manifest_key=under(policy.s3.prefix, manifest_key(source)),
            entries=len(needs),
            size_bytes=added(*(need.size_bytes for need in needs)),
            config_key=chain.config_key,
        )
        facts.append(chain_fact(event, chain.id, cause, source))
    return facts


def _outcome(
    chain: Chain, need: Need, transfers: Mapping[str, TransferRow], policy: Policy
) -> TargetOutcome | None:
    """What became of a need; None while it is open."""
    transfer = transfers.get(need.transfer)
    if transfer is None:
        return None
    if transfer.ended:
        return TargetOutcome(
            target=need.target,
            path=need.path,
            checksum=transfer.arrived_checksum,
            size_bytes=need.size_bytes,
            games=transfer.games,
            bytes_transferred=transfer.bytes_transferred,
        )
    if transfer.state is TransferState.PENDING and exhausted(
        transfer, policy, chain.planned_sequence
    ):
        last = transfer.failures[-1]
        count = attempts(transfer.failures)
        tries = f" (attempt {count})" if count > 1 else ""
        return TargetOutcome(
            target=need.target,
            path=need.path,
            checksum=need.checksum,
            size_bytes=need.size_bytes,
            bytes_transferred=transfer.bytes_transferred,
            error=f"{last.error_class}: {last.error[:ERROR_CHARACTERS]}{tries}",
        )
    return None


def _given_up(need: Need, why: str) -> TargetOutcome:
    return TargetOutcome(
        target=need.target,
        path=need.path,
        checksum=need.checksum,
        size_bytes=need.size_bytes,
        error=f"given up: {why}",
    )


def _completion(chain: Chain, arrived: list[TargetOutcome], now: float, cause: str) -> Fact:
    moved = added(*(outcome.bytes_transferred for outcome in arrived))
    there = [*arrived, *map(_in_place, chain.held)]
    reason = "every target holds every byte"
    if not arrived:
        reason = "nothing had to move: every target held every byte"
    named = _that_fit(there, LIST_BYTES)
    event = events.DataSyncCompleted(
        config_key=chain.config_key,
        source_node=chain.source_node,
        targets=named,
        left_out=len(there) - len(named),
        games_synced=_games(arrived),
        bytes_transferred=moved,
        duration_seconds=round(max(0.0, now - chain.opened_at), 6),
        reason=reason,
    )
    return chain_fact(event, chain.id, cause, "end")


def _failure(
    chain: Chain,
    arrived: list[TargetOutcome],
    failed: list[TargetOutcome],
    now: float,
    reason: str,
    cause: str,
) -> Fact:
    arrived_named = _that_fit(arrived, LIST_BYTES // 4)
    failed_named = _that_fit(failed, LIST_BYTES // 2)
    event = events.DataSyncFailed(
        config_key=chain.config_key,
        source_node=chain.source_node or chain.node,
        arrived=arrived_named,
        failed=failed_named,
        left_out=len(arrived) + len(failed) - len(arrived_named) - len(failed_named),
        refusals=_that_fit(chain.refusals, LIST_BYTES // 4),
        games_synced=_games(arrived),
        bytes_transferred=added(*(one.bytes_transferred for one in (*arrived, *failed))),
        duration_seconds=round(max(0.0, now - chain.opened_at), 6),
        reason=reason[:4000],
    )
    return chain_fact(event, chain.id, cause, "end")


def _announcement(
    chain: Chain, arrived: list[TargetOutcome], policy: Policy, cause: str
) -> list[Fact]:
    """NEW_GAMES_AVAILABLE, where games were never announced before."""
    if not chain.announces or not policy.chains.announce or chain.announced_at:
        return []
    new = set(chain.announces)
    there = [*(arrived or map(_wanted, chain.needs)), *map(_in_place, chain.held)]
    there = [one for one in there if one.path in new and one.target != S3_NODE]
    games = _games(there)
    if games == 0:
        return []
    paths = sorted({outcome.path for outcome in there})
    named = _that_fit(paths, LIST_BYTES, most=None)
    event = events.NewGamesAvailable(
        config_key=chain.config_key,
        game_count=games,
        source_node=chain.source_node,
        targets=tuple(sorted({outcome.target for outcome in there})),
        paths=named,
        left_out=len(paths) - len(named),
    )
    return [chain_fact(event, chain.id, cause)]


def _said_late(
    facts: list[Fact], chain: Chain, policy: Policy, now: float, cause: str, waited_for: str
) -> list[Fact]:
    """`facts`, before them CHAIN_OVERDUE if they end a chain long after its limit.

    Nobody was there to say it before.
    """
    late = now - chain.opened_at >= policy.chains.limit_s + ENDED_IN_TIME_S
    if late and any(isinstance(fact.event, _ENDS) for fact in facts):
        return [*_overdue(chain, policy, now, cause, waited_for), *facts]
    return facts


def _overdue(chain: Chain, policy: Policy, now: float, cause: str, waiting_for: str) -> list[Fact]:
    """CHAIN_OVERDUE, once; the chain goes on."""
    age = now - chain.opened_at
    if chain.overdue_at or age < policy.chains.limit_s:
        return []
    event = events.ChainOverdue(
        config_key=chain.config_key, age_seconds=round(age, 3), waiting_for=waiting_for
    )
    return [chain_fact(event, chain.id, cause)]


def _that_fit(items: Sequence[T], limit: int, most: int | None = OUTCOMES_NAMED) -> tuple[T, ...]:
    """As many of the first items as may be named, and as fit into `limit` bytes of a message."""
    first = split_entries(tuple(items[:most]), limit)[0]
    alone_too_large = len(first) == 1 and len(msgspec.json.encode(first[0])) > limit
    return () if alone_too_large else first


def _games(outcomes: Sequence[TargetOutcome]) -> int:
    """Games in files, each file counted once however many targets have it.

    A target may have got a later version than another: those are one file, counted as the later.
    """
    by_path: dict[str, int] = {}
    for outcome in outcomes:
        by_path[outcome.path] = max(by_path.get(outcome.path, 0), outcome.games or 0)
    return added(*by_path.values())


def _in_place(held: Held) -> TargetOutcome:
    return TargetOutcome(
        target=held.target, path=held.path, checksum=held.checksum, games=held.games
    )


def _wanted(need: Need) -> TargetOutcome:
    return TargetOutcome(
        target=need.target, path=need.path, checksum=need.checksum, games=need.games
    )
