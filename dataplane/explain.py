"""Why an entry is on a node, or is not: the way from the trigger, or the rule, in sentences.

Pure: it is given one reading of the views, the facts of the log that speak of the path or the node,
the policy and the time. It must never answer that it does not know: where nothing was ever said of
a path or a node, that is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from dataplane.chain import exhausted
from dataplane.planner import SyncPlanner
from dataplane.planner.targets import exclusion
from dataplane.policy import Policy, Rule
from dataplane.slots import Slots
from dataplane.words import clock, counted, size
from projections.cluster import ClusterView
from projections.nodes import NodeRow
from projections.transfers import TransferRow, TransferState, attempts, transfer_id
from streams import events
from streams.codec import Recorded
from streams.events import Event
from streams.identity import Ownership
from streams.values import S3_NODE, DataEntry, Refusal, SyncPlan

#: What `facts_about` reads from the log: everything that can speak of one file on one node.
TELLS: tuple[type[Event], ...] = (
    events.FilesObserved,
    events.FilesRemoved,
    events.FileQuarantined,
    events.SyncPlanned,
    events.TransferAssigned,
    events.TransferSucceeded,
    events.TransferFailed,
    events.DeletionDone,
    events.DeletionRefused,
)


class Sentence(msgspec.Struct, frozen=True):
    """One step of an answer, with the fact it rests on."""

    text: str
    #: Seconds since 1970, and the fact's place in the log; 0 where it rests on the views alone.
    time: float = 0.0
    sequence: int = 0
    chain: str = ""


class Explanation(msgspec.Struct, frozen=True):
    """An answer: the verdict first, then what led to it, oldest first."""

    path: str
    node: str
    #: Whether the node holds the version that counts.
    there: bool
    answer: str
    sentences: tuple[Sentence, ...] = ()


class Asked(msgspec.Struct, frozen=True):
    """A path on a node, with all there is to answer from."""

    path: str
    node: str
    view: ClusterView
    #: Facts of the log that speak of the path, in its order.
    history: Sequence[Recorded]
    policy: Policy
    now: float

    @property
    def planner(self) -> SyncPlanner:
        """What would be planned now."""
        return SyncPlanner(self.policy, self.view, self.now)

    def told(self, *kinds: type[Event]) -> Iterator[tuple[Recorded, Event]]:
        """Facts of these kinds that speak of the path."""
        for fact in self.history:
            if isinstance(fact.event, kinds) and speaks_of_path(fact.event, self.path):
                yield fact, fact.event


def explain(asked: Asked) -> Explanation:
    """Why the path is on the node, or why it is not."""
    current = asked.view.catalog.get(asked.path)
    held = asked.view.held_by(asked.node, asked.path)
    if held is not None and current is not None and held.checksum == current.checksum:
        journey = (*_origin(asked, held), *_journey(asked, held))
        return _explanation(asked, True, _there(asked, held), journey)
    answer, sentences = _why_not(asked, current, held)
    return _explanation(asked, False, answer, sentences)


def speaks_of_path(event: Event, path: str) -> bool:
    """Whether a fact names a path, alone or among others."""
    if isinstance(event, events.FilesObserved):
        return any(entry.path == path for entry in event.entries)
    if isinstance(event, events.FilesRemoved):
        return path in event.paths
    if isinstance(event, events.SyncPlanned):
        planned = any(entry.path == path for plan in event.plans for entry in plan.entries)
        refused = any(path in (one.path, *one.reason.split()) for one in event.refusals)
        return planned or refused or any(held.path == path for held in event.held)
    entry = getattr(event, "entry", None)
    return path == (entry.path if isinstance(entry, DataEntry) else getattr(event, "path", ""))


# It is there


def _there(asked: Asked, held: DataEntry) -> str:
    games = f"{held.games} games, " if held.games is not None else ""
    what = f"{games}{size(held.size_bytes)}, {held.checksum[:14]}…"
    return f"{asked.node} holds {asked.path} ({what}), the version that counts"


def _origin(asked: Asked, held: DataEntry) -> Iterator[Sentence]:
    """Who produced the content: the first that ever reported it."""
    for fact, event in asked.told(events.FilesObserved):
        assert isinstance(event, events.FilesObserved)
        if any(e.path == asked.path and e.checksum == held.checksum for e in event.entries):
            by = " of its own" if event.node == asked.node else ""
            asks = f", asked by {_trigger(asked, fact.chain)}" if fact.chain else " by itself"
            yield _at(fact, f"{event.node} reported it as a file{by or ' it produced'}{asks}")
            return
    node = held.primary_location or "a node"
    yield Sentence(f"{node} is the authority of the path, by a fact before this log began")


def _journey(asked: Asked, held: DataEntry) -> Iterator[Sentence]:
    """The trigger, the plan and the attempts that brought it to the node."""
    arrivals = [
        (fact, event)
        for fact, event in asked.told(events.TransferSucceeded)
        if isinstance(event, events.TransferSucceeded)
        and event.target == asked.node
        and event.entry.checksum == held.checksum
    ]
    if not arrivals:
        return
    arrived, success = arrivals[-1]
    yield from _plans_for(asked, held.checksum, until=arrived.sequence)
    yield from _failures(asked, until=arrived.sequence)
    assert isinstance(success, events.TransferSucceeded)
    how = success.results[-1].transport_used if success.results else "no transport"
    if success.bytes_transferred:
        moved = f"{size(success.bytes_transferred)} over {how} in {success.duration_seconds:.1f} s"
    else:
        moved = "0 bytes: the content was there already"
    who = f"attempt {success.attempt} brought it from {success.source}"
    if success.target == S3_NODE and not arrived.chain:
        who = f"{success.source} stored it by the rule of the last push, when its agent was to end"
    yield _at(arrived, f"{who}: {moved}, proven by digest")


def _plans_for(asked: Asked, checksum: str = "", until: int = 1 << 62) -> Iterator[Sentence]:
    """Triggers and plans that were to bring the path to the node."""
    seen: set[str] = set()
    for fact, event in asked.told(events.SyncPlanned):
        assert isinstance(event, events.SyncPlanned)
        plan = _plan_of(asked, event, checksum)
        if plan is None or fact.sequence > until or fact.chain in seen:
            continue
        seen.add(fact.chain)
        due = f", due {clock(plan.deadline)}" if plan.deadline else ""
        text = f"{_trigger(asked, fact.chain)} planned it: {plan.reason}, "
        text += f"from {plan.source_node}, {plan.priority} priority{due}"
        yield _at(fact, f"{text}{_expectation(asked, fact.chain)}")


def _expectation(asked: Asked, chain: str) -> str:
    """Why data was to be there before anybody asked for it; "" where somebody had."""
    row = asked.view.chain(chain) if chain else None
    event = row.event() if row is not None and row.ahead else None
    if not isinstance(event, events.TrainingExpected):
        return ""
    since = "the last run ended" if event.after_end else "the last one"
    text = f"; {event.node} was expected to train {event.config_key} at {clock(event.expected_at)}"
    text += f", {event.rhythm_s:.0f} s after {since}, with a confidence of {event.confidence:.2f}"
    staged = asked.view.staged_copy(asked.node, asked.path)
    if staged is not None and staged.chain == chain:
        text += ", and has not done so yet"
    return text


def _plan_of(asked: Asked, event: events.SyncPlanned, checksum: str) -> SyncPlan | None:
    for plan in event.plans:
        if asked.node in plan.target_nodes and any(
            entry.path == asked.path and checksum in ("", entry.checksum) for entry in plan.entries
        ):
            return plan
    return None


def _failures(asked: Asked, until: int = 1 << 62) -> Iterator[Sentence]:
    for fact, event in asked.told(events.TransferFailed):
        assert isinstance(event, events.TransferFailed)
        if event.target == asked.node and fact.sequence < until:
            tried = ", ".join(str(result.transport_used) for result in event.results)
            over = f" over {tried}" if tried else ""
            after = f" after {size(event.bytes_transferred)}" if event.bytes_transferred else ""
            text = f"attempt {event.attempt} from {event.source}{over} failed{after}: "
            yield _at(fact, f"{text}{event.error_class}: {event.error}")


# It is not there


def _why_not(
    asked: Asked, current: DataEntry | None, held: DataEntry | None
) -> tuple[str, Sequence[Sentence]]:
    """The first of all reasons that holds, and what led to it."""
    here = f"{asked.path} is not on {asked.node}"
    row = asked.planner.known.node(asked.node)
    if row is None:
        return f"{here}: {_never_joined(asked)}", ()
    if current is None:
        return f"{here}: {_nobody_has_it(asked)}", tuple(_losses(asked))
    if held is not None:
        here = f"{asked.node} holds another content under {asked.path} ({held.checksum[:14]}…)"
    transfer = _open_transfer(asked, current)
    if transfer is not None:
        sentences = (*_origin(asked, current), *_plans_for(asked), *_failures(asked))
        return f"{here} yet: {_under_way(asked, transfer)}", sentences
    if not current.locations:
        return f"{here}: no node holds it any more", (*_origin(asked, current), *_losses(asked))
    refused = _refused(asked)
    tried = [*_plans_for(asked), *_failures(asked)]
    lost = list(_losses(asked, asked.node))
    if lost and (not tried or lost[-1].sequence > tried[-1].sequence):
        return f"{here} any more: {lost[-1].text}", (*tried, *lost)
    if refused is not None and (not tried or refused.sequence > tried[-1].sequence):
        return f"{here}: {refused.text}", (*_origin(asked, current), refused)
    if tried:
        text = f"{here}: all attempts to bring it failed; {_what_now(asked, row, current)}"
        return text, (*_origin(asked, current), *tried)
    return f"{here}: {_what_now(asked, row, current)}", tuple(_origin(asked, current))


def _never_joined(asked: Asked) -> str:
    if asked.node == S3_NODE:
        return "there is no bucket, policy.s3.enabled is false"
    known = ", ".join(node.name for node in asked.view.nodes()) or "none"
    return f"no node {asked.node} ever joined; known: {known}"


def _nobody_has_it(asked: Asked) -> str:
    for fact, event in asked.told(events.FileQuarantined):
        assert isinstance(event, events.FileQuarantined)
        return f"it was set aside on {event.node} at {clock(fact.time)}: {event.reason}"
    nobody = "no node ever reported such a file"
    rules = asked.policy.paths
    producer = rules.producer(asked.path)
    if not producer or asked.view.node(producer) is not None:
        return nobody
    # Only where a node has that name is it known to be a producer, and not just a directory.
    if asked.path.count("/") < 2:
        mine = rules.logical(asked.path, asked.node)
        return f"{nobody}, and it names no producer: what {asked.node} keeps there is {mine}"
    return f"{nobody}, and no node {producer} ever joined, if that is to be its producer"


def _open_transfer(asked: Asked, current: DataEntry) -> TransferRow | None:
    row = asked.view.transfer(transfer_id(current, asked.node))
    if row is not None and row.state in (TransferState.PENDING, TransferState.ASSIGNED):
        return row
    return None


def _under_way(asked: Asked, row: TransferRow) -> str:
    """Where a transfer stands: moving, backing off, behind others, or given up."""
    waits = f"wanted since {clock(row.queued_at)} with {row.priority} priority"
    if row.state is TransferState.ASSIGNED:
        since = max(0.0, asked.now - row.assigned_at)
        return f"in flight from {row.source} for {since:.0f} s (attempt {row.attempt}), {waits}"
    failures = row.failures_since(row.asked_sequence)
    if failures:
        last = failures[-1]
        error = f"attempt {row.attempt} failed, {last.error_class}: {last.error}"
        if exhausted(row, asked.policy, row.asked_sequence):
            return f"given up after {attempts(failures)} attempts; {error}"
        fruitless = max(1, row.fruitless_since(row.asked_sequence))
        at = last.time + asked.policy.retries.backoff_s(row.id, fruitless)
        if at > asked.now:
            return f"tried again at {clock(at)}; {error}"
        waits = f"{waits}; {error}"
    return f"{_behind(asked, row)}, {waits}"


def _behind(asked: Asked, row: TransferRow) -> str:
    """What a pending transfer waits behind, in figures."""
    bandwidth = asked.policy.bandwidth
    slots = Slots(asked.policy, asked.view.in_flight(), asked.view.node)
    here, there = slots.used(asked.node), slots.used(row.source)
    if newer := asked.view.newer_versions(row):
        return f"waiting for the later version {newer[-1].entry.checksum[:14]}…"
    if here >= bandwidth.max_per_node:
        return f"waiting: {asked.node} has {here} of {bandwidth.max_per_node} transfers"
    if there >= bandwidth.max_per_node:
        return f"waiting: {row.source} has {there} of {bandwidth.max_per_node} transfers"
    if slots.used() >= bandwidth.max_total:
        return f"waiting: the cluster has {slots.used()} of {bandwidth.max_total} transfers"
    target = asked.view.node(asked.node)
    if target is not None and not target.online:
        return f"waiting: {asked.node} is offline: {target.reason or 'it said so'}"
    if full := slots.no_room(row):
        return f"waiting: {full.reason}"
    before = 0
    for one in asked.view.pending():
        if one.id == row.id:
            break
        before += 1
    spare = " for slots and rates that nothing else asks for," if row.spare_only else ""
    return f"waiting{spare} behind {counted(before, 'other transfer', 'other transfers')}"


def _refused(asked: Asked) -> Sentence | None:
    """The newest refusal that kept the path from the node."""
    found = None
    for fact in asked.history:
        if not isinstance(fact.event, events.SyncPlanned):
            continue
        for refusal in fact.event.refusals:
            if _concerns(asked, fact.event, refusal):
                text = f"{_trigger(asked, fact.chain)} did not plan it by the rule "
                found = _at(fact, f"{text}{refusal.rule}: {refusal.reason}")
    return found


def _concerns(asked: Asked, event: events.SyncPlanned, refusal: Refusal) -> bool:
    named = refusal.path == asked.path or asked.path in refusal.reason
    if refusal.target == asked.node:
        # Of a node as a whole it counts where the decision was about this path.
        return named or (not refusal.path and speaks_of_path(event, asked.path))
    return not refusal.target and named


def _losses(asked: Asked, node: str = "") -> Iterator[Sentence]:
    """How copies went: removed, set aside, deleted; of one node or of all."""
    kinds = (events.FilesRemoved, events.FileQuarantined, events.DeletionDone)
    for fact, event in asked.told(*kinds):
        where = getattr(event, "node", "")
        if node not in ("", where):
            continue
        if isinstance(event, events.FileQuarantined):
            yield _at(fact, f"{where} set it aside: {event.reason}")
        elif isinstance(event, events.DeletionDone):
            if event.deleted:
                yield _at(fact, f"{where} deleted it on request, proven elsewhere")
        else:
            yield _at(fact, f"it was removed from {where}")


def _what_now(asked: Asked, row: NodeRow, current: DataEntry) -> str:
    """What the rules say of an entry and a node today, though no decision ever did."""
    name = row.name
    kept = exclusion(asked.planner.known, row, asked_for=False)
    if kept is not None:
        return f"by the rule {kept.rule}: {kept.reason}"
    if asked.policy.paths.ownership(current.path) is Ownership.MERGED:
        return "by the rule merged: it is merged, never replaced by a copy"
    holders = ", ".join(current.locations)
    ask = f"`dataplane sync {current.config_key} {name} --type {current.data_type}` would bring it"
    standing = {
        rule_name: rule
        for rule_name, rule in asked.policy.placement.rules.items()
        if rule.enabled and rule.standing and _is_for(rule, current)
    }
    if asked.planner.belongs(current, name):
        rules = ", ".join(standing)
        triggers = ", ".join(dict.fromkeys(on for rule in standing.values() for on in rule.on))
        text = f"no trigger has asked for it since it appeared on {holders}; it belongs there by "
        return f"{text}{rules} (on {triggers or 'request'}), and {ask}"
    kinds = ", ".join((*row.description.roles, *row.description.traits)) or "no role"
    goes_to = sorted({selector for rule in standing.values() for selector in rule.to})
    to = f"only to {', '.join(goes_to)} nodes" if goes_to else "nowhere by itself"
    text = f"no rule brings {current.data_type} to it: such data goes {to}, and {name} is {kinds}"
    return f"{text}; {ask} from {holders}"


def _is_for(rule: Rule, entry: DataEntry) -> bool:
    return entry.data_type in (rule.data or (entry.data_type,)) and rule.takes(entry)


def _trigger(asked: Asked, chain: str) -> str:
    """The trigger of a chain, in words."""
    row = asked.view.chain(chain) if chain else None
    if row is None:
        return f"chain {chain}" if chain else "nobody"
    return f"{row.trigger} of {row.node} at {clock(row.opened_at)} (chain {row.id})"


def _at(fact: Recorded, text: str) -> Sentence:
    return Sentence(text, fact.time, fact.sequence, fact.chain)


def _explanation(
    asked: Asked, there: bool, answer: str, sentences: Sequence[Sentence]
) -> Explanation:
    once = tuple(dict.fromkeys(sentences))
    ordered = tuple(sorted(once, key=lambda sentence: sentence.sequence))
    return Explanation(asked.path, asked.node, there, answer, ordered)
