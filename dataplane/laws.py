"""The promises, each as a question to the log: what breaks it, in words.

Pure, and on purpose not built on the views or on the rules of deciding: what is judged must not
judge itself. The demonstration, `dataplane prove` and the simulation ask the same ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from operator import is_not

import msgspec

from projections.trainings import EXPECTED_CHAIN
from streams import events
from streams.codec import Recorded, chain_of_trigger
from streams.events import CHAIN_TRIGGERS
from streams.values import S3_NODE, SMALL_BYTES, DataEntry, SyncPriority, TargetOutcome

_ENDS = (events.DataSyncCompleted, events.DataSyncFailed)
#: A law: all facts of a log, from the first to the last, to what in them breaks it.
Law = Callable[[Sequence[Recorded]], Iterator[str]]


class ChainStory(msgspec.Struct):
    """One chain as the log tells it."""

    id: str
    trigger: str
    config_key: str
    node: str
    triggered_at: float
    completed: int = 0
    failed: int = 0
    announced: int = 0
    #: Whether its plan owes NEW_GAMES_AVAILABLE, if it completes.
    announces: bool = False
    overdue: bool = False
    ended_at: float | None = None
    #: From the trigger to NEW_GAMES_AVAILABLE, by the log's clock.
    latency_s: float | None = None
    #: Why it ended as it did.
    reason: str = ""
    #: It failed, and nothing is missing but in the bucket.
    only_bucket_lacks: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return f"chain {self.id} ({self.trigger} of {self.config_key} on {self.node})"

    @property
    def ends(self) -> int:
        """How often it has ended."""
        return self.completed + self.failed


def chains(facts: Sequence[Recorded]) -> list[ChainStory]:
    """Every chain that a trigger has opened, in order."""
    stories: dict[str, ChainStory] = {}
    seen: set[str] = set()
    for recorded in facts:
        if recorded.event is None or recorded.id in seen:
            continue
        seen.add(recorded.id)
        story = stories.get(recorded.chain)
        if isinstance(recorded.event, CHAIN_TRIGGERS):
            if story is None:
                stories[recorded.chain] = ChainStory(
                    id=recorded.chain,
                    trigger=recorded.type,
                    config_key=recorded.config_key,
                    node=recorded.owner,
                    triggered_at=recorded.time,
                )
        elif story is not None:
            _tell(story, recorded)
    return list(stories.values())


def _tell(story: ChainStory, recorded: Recorded) -> None:
    event = recorded.event
    if isinstance(event, events.SyncPlanned):
        story.announces = story.announces or bool(event.announces)
    elif isinstance(event, events.ChainOverdue):
        story.overdue = True
    elif isinstance(event, _ENDS):
        done = isinstance(event, events.DataSyncCompleted)
        story.completed += done
        story.failed += not done
        story.ended_at, story.reason = recorded.time, event.reason
        if isinstance(event, events.DataSyncFailed) and event.failed and not event.left_out:
            story.only_bucket_lacks = all(one.target == S3_NODE for one in event.failed)
    elif isinstance(event, events.NewGamesAvailable):
        story.announced += 1
        if story.latency_s is None and story.trigger == "SELFPLAY_COMPLETE":
            story.latency_s = round(recorded.time - story.triggered_at, 6)


def every_message_is_understood(facts: Sequence[Recorded]) -> Iterator[str]:
    """What the processes say to each other, all of them understand."""
    for recorded in facts:
        if recorded.event is None:
            yield f"message {recorded.sequence} can't be understood: {recorded.problem}"


def no_fact_is_doubled(facts: Sequence[Recorded]) -> Iterator[str]:
    """No id stands in the log twice."""
    for id, count in repeated_ids(facts).items():
        yield f"event {id} is in the log {count} times"


def repeated_ids(facts: Sequence[Recorded]) -> dict[str, int]:
    """Ids that stand in the log more than once, and how often."""
    counts = Counter(recorded.id for recorded in facts)
    return {id: count for id, count in counts.items() if count > 1}


def every_chain_ends_once(facts: Sequence[Recorded]) -> Iterator[str]:
    """Every trigger has exactly one end (P1)."""
    for story in chains(facts):
        if story.ends == 0:
            yield f"{story.name} has not ended"
        elif story.ends > 1:
            yield f"{story.name} has ended {story.ends} times"


def every_announcement_is_made_once(facts: Sequence[Recorded]) -> Iterator[str]:
    """NEW_GAMES_AVAILABLE exactly once where it is owed, and never else.

    It is owed once the nodes have the games, also where the bucket does not get them. A chain that
    fails later, because a node has lost its copy, may have announced them.
    """
    for story in chains(facts):
        due = int(story.announces and (story.completed > 0 or story.only_bucket_lacks))
        may = int(story.announces and story.failed > 0)
        if story.announced not in (due, max(due, may)):
            yield f"{story.name} announced NEW_GAMES_AVAILABLE {story.announced} times, not {due}"


def every_outcome_is_proven(facts: Sequence[Recorded]) -> Iterator[str]:
    """A completion names nothing that no transfer or observation before it has proven (P3)."""
    for recorded, outcome, known in outcomes(facts):
        if not known:
            yield (
                f"chain {recorded.chain} says that {outcome.target} holds {outcome.path} "
                f"as {outcome.checksum}, and no transfer before it has proven that"
            )


def outcomes(
    facts: Sequence[Recorded],
) -> Iterator[tuple[Recorded, TargetOutcome, bool]]:
    """Every outcome of every completion, and whether the log before it proves it."""
    held: set[tuple[str, str, str]] = set()
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.FilesObserved):
            held |= {(event.node, entry.path, entry.checksum) for entry in event.entries}
        elif isinstance(event, events.TransferSucceeded):
            held.add((event.target, event.entry.path, event.entry.checksum))
        elif isinstance(event, events.DataSyncCompleted):
            for outcome in event.targets:
                known = (outcome.target, outcome.path, outcome.checksum) in held
                yield recorded, outcome, known


def no_games_are_overstated(facts: Sequence[Recorded]) -> Iterator[str]:
    """Nobody speaks of more games than some version of the files holds (P15)."""
    most: dict[str, int] = defaultdict(int)
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.FilesObserved):
            for entry in event.entries:
                most[entry.path] = max(most[entry.path], entry.games or 0)
            continue
        if isinstance(event, events.NewGamesAvailable):
            paths, said = set(event.paths), event.game_count
        elif isinstance(event, events.DataSyncCompleted):
            paths, said = {outcome.path for outcome in event.targets}, event.games_synced
        else:
            continue
        have = sum(most[path] for path in paths)
        if event.left_out:
            # Which did not fit nobody knows; they hold no more than so many of the fullest others.
            others = (games for path, games in most.items() if path not in paths)
            have += sum(sorted(others, reverse=True)[: event.left_out])
        if said > have:
            yield f"chain {recorded.chain} says {said} games in {recorded.type}, there are {have}"


def late_chains_are_named(limit_s: float, slack_s: float) -> Law:
    """The law that no chain grows older than its limit, and the slack of a sweep, unnamed."""

    def law(facts: Sequence[Recorded]) -> Iterator[str]:
        last = max((recorded.time for recorded in facts), default=0.0)
        for story in chains(facts):
            age = (story.ended_at or last) - story.triggered_at
            if age > limit_s + slack_s and not story.overdue:
                yield f"{story.name} was open for {age:.1f} s and CHAIN_OVERDUE was never said"

    return law


def budgets_are_kept(max_total: int, max_per_node: int, small_per_slot: int = 1) -> Law:
    """The law that no more transfers run at once, in all and at each node, than may (K14, K10).

    A critical one always finds one slot more, and so many small ones count as one. The bucket is
    no node: it has no limit of its own.
    """

    def law(facts: Sequence[Recorded]) -> Iterator[str]:
        for recorded, event, running in _assignments(facts):
            extra = int(event.priority is SyncPriority.CRITICAL)
            taken = _taken(running, small_per_slot)
            for where in dict.fromkeys((event.source, event.target, "")):
                if where == S3_NODE:
                    continue
                most = max_per_node if where else max_total
                if taken[where] > (most + extra) * small_per_slot:
                    count, at = taken[where] / small_per_slot, where and f" at {where}"
                    yield f"{count:g} transfers ran{at} at {recorded.sequence}, not {most}"

    return law


def orders_are_limited(host_mb_s: float, total_mb_s: float) -> Law:
    """The law that no order is without a rate, or has more than a node and the cluster have (K14).

    How those that run at once share it, the log does not tell: grants are cut over the bus.
    """
    most = min((limit * 8 for limit in (host_mb_s, total_mb_s) if limit), default=0.0)

    def law(facts: Sequence[Recorded]) -> Iterator[str]:
        for recorded in facts:
            event = recorded.event
            if isinstance(event, events.TransferAssigned) and most:
                rate = event.bandwidth_mbps
                if not 0 < rate <= most:
                    said = f"{rate:g} Mbit/s" if rate else "any rate"
                    yield f"{event.transfer} may use {said} at {recorded.sequence}, not {most:g}"

    return law


def what_is_ahead_leaves_slots(
    share: float, max_total: int, max_per_node: int, small_per_slot: int = 1
) -> Law:
    """The law that what only data ahead of its need takes is no more than may be spared.

    What somebody else has asked for by then is not ahead any more.
    """

    def law(facts: Sequence[Recorded]) -> Iterator[str]:
        needed: set[tuple[str, str, str]] = set()
        ahead: set[str] = set()
        earlier = iter(facts)
        for recorded, event, running in _assignments(facts):
            for fact in takewhile(partial(is_not, recorded), earlier):
                if isinstance(fact.event, events.SyncPlanned):
                    needed |= _wanted(fact.event, spare_only=False)
            if _is_ahead(recorded):
                ahead.add(event.transfer)
            spare = [one for one in running if one.transfer in ahead and _moved(one) not in needed]
            if event not in spare:
                continue
            if event.priority is not SyncPriority.BACKGROUND:
                yield f"what is ahead was assigned as {event.priority} at {recorded.sequence}"
            taken = _taken(spare, small_per_slot)
            for where in dict.fromkeys((event.source, event.target, "")):
                most = int(share * (max_per_node if where else max_total))
                if where != S3_NODE and taken[where] > most * small_per_slot:
                    count, name = taken[where] / small_per_slot, where and f" at {where}"
                    yield f"{count:g} ran ahead{name} at {recorded.sequence}, not {most}"

    return law


def copies_ahead(facts: Sequence[Recorded]) -> tuple[int, int]:
    """Bytes that were moved ahead of a training, and of them those that a start found in place."""
    brought: dict[tuple[str, str, str], int] = {}
    starts: set[str] = set()
    moved = found = 0
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.TrainingStarted):
            starts.add(recorded.chain)
        elif isinstance(event, events.TransferSucceeded) and _is_ahead(recorded):
            moved += event.bytes_transferred
            brought[_moved(event)] = event.bytes_transferred
        elif isinstance(event, events.SyncPlanned) and recorded.chain in starts:
            held = [(one.path, one.checksum, one.target) for one in event.held]
            found += sum(brought.pop(place, 0) for place in held)
    return moved, found


def _is_ahead(recorded: Recorded) -> bool:
    return recorded.chain.startswith(EXPECTED_CHAIN)


def _assignments(
    facts: Sequence[Recorded],
) -> Iterator[tuple[Recorded, events.TransferAssigned, list[events.TransferAssigned]]]:
    """Every order that moves something, with all orders that move something from then on."""
    running: dict[str, events.TransferAssigned] = {}
    brought: set[tuple[str, str, str]] = set()
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.SyncPlanned):
            brought -= _wanted(event)
        elif isinstance(event, events.TransferSucceeded):
            # Whichever attempt of whichever transfer brought it: what is there need not be
            # brought again, and an order that still stands for it, or for a version before
            # it, moves nothing.
            brought.add(_moved(event))
            running = {id: one for id, one in running.items() if not _spared(one, event)}
        elif isinstance(event, events.TransferFailed):
            order = running.get(event.transfer)
            if order is not None and order.attempt == event.attempt:
                del running[event.transfer]
        elif isinstance(event, events.TransferAssigned) and _moved(event) not in brought:
            # One that was decided just before it arrived moves nothing.
            running[event.transfer] = event
            yield recorded, event, list(running.values())


def _taken(running: Iterable[events.TransferAssigned], small_per_slot: int) -> Counter[str]:
    """Parts of slots that are taken, by node and in all under ""."""
    taken: Counter[str] = Counter()
    for one in running:
        takes = 1 if one.entry.size_bytes <= SMALL_BYTES else small_per_slot
        taken.update(dict.fromkeys({one.source, one.target, ""}, takes))
    return taken


def _moved(
    event: events.TransferAssigned | events.TransferSucceeded | events.TransferFailed,
) -> tuple[str, str, str]:
    """What is brought: path, checksum and target."""
    return event.entry.path, event.entry.checksum, event.target


def _spared(order: events.TransferAssigned, arrived: events.TransferSucceeded) -> bool:
    """Whether an order has nothing left to move, now that this has arrived."""
    if order.transfer == arrived.transfer or _moved(order) == _moved(arrived):
        return True
    place = arrived.entry.path, arrived.target
    older = order.entry.version < arrived.entry.version
    return (order.entry.path, order.target) == place and older


def _wanted(event: events.SyncPlanned, *, spare_only: bool = True) -> set[tuple[str, str, str]]:
    """What a plan wants: path, checksum and target; or without what it wants `spare_only`."""
    return {
        (entry.path, entry.checksum, target)
        for plan in event.plans
        if spare_only or not plan.spare_only
        for target in plan.target_nodes
        for entry in plan.entries
    }


def attempts_are_counted(max_retries: int) -> Law:
    """The law that whatever may still succeed is tried again, and nothing is tried for ever (K13).

    So many retries since a chain was planned first, not counting what came before an attempt that
    brought a real share of the file, and kept it.
    """

    def law(facts: Sequence[Recorded]) -> Iterator[str]:
        tries: dict[tuple[str, str, str], _Tries] = {}
        planned: dict[str, int] = {}
        for recorded in facts:
            event = recorded.event
            if isinstance(event, events.SyncPlanned):
                first = planned.setdefault(recorded.chain, recorded.sequence)
                for place in _wanted(event):
                    tries.setdefault(place, _Tries()).asked(recorded.chain, first)
            elif isinstance(event, events.TransferFailed):
                tries.setdefault(_moved(event), _Tries()).fail(event, recorded.sequence)
            elif isinstance(event, events.TransferAssigned):
                vain = tries.setdefault(_moved(event), _Tries()).begin(event)
                if vain > max_retries:
                    yield f"{_moved(event)} was tried again after {vain} attempts in vain"
            elif isinstance(event, events.DataSyncFailed):
                for outcome in event.failed:
                    tried = tries.get((outcome.path, outcome.checksum, outcome.target))
                    if tried is None or outcome.error.startswith("given up"):
                        continue
                    vain = tried.vain.get(recorded.chain, 0)
                    if recorded.chain not in tried.hopeless and vain <= max_retries:
                        yield f"{outcome.path} for {outcome.target}: given up after {vain} in vain"

    return law


class _Tries:
    """What attempts to bring one content to one place came to."""

    def __init__(self) -> None:
        #: By chain that asked for it, those in a row since it was planned that brought nothing on.
        self.vain: dict[str, int] = {}
        #: Where all those in a row are that brought nothing on.
        self._all_vain: list[int] = []
        #: The chains whose last attempt can't be made better.
        self.hopeless: set[str] = set()
        self._attempt = 0
        self._brought = 0

    def asked(self, chain: str, planned: int) -> None:
        """A chain wants it from now on, that was planned first at this sequence."""
        self.vain[chain] = sum(sequence > planned for sequence in self._all_vain)
        self.hopeless.discard(chain)
        self._brought = 0

    def begin(self, event: events.TransferAssigned) -> int:
        """It is tried; how often in vain before."""
        self._attempt = event.attempt
        return min(self.vain.values(), default=0)

    def fail(self, event: events.TransferFailed, sequence: int) -> None:
        """An attempt failed. What comes more than three times is not kept."""
        if event.attempt != self._attempt:
            return
        self._attempt = 0
        brought, size = 0, event.entry.size_bytes
        for result in event.results:
            lost = result.error_class in ("DigestMismatch", "CheckFailed")
            brought = 0 if lost else brought + result.bytes_transferred
        self._brought += brought
        share = min(1 << 20, size / 100)
        on = 0 < brought >= share and self._brought <= 3 * size
        self.vain = {chain: 0 if on else vain + 1 for chain, vain in self.vain.items()}
        self._all_vain = [] if on else [*self._all_vain, sequence]
        self.hopeless = set() if event.retryable else set(self.vain)


def deletions_leave_enough(minimum: int) -> Law:
    """The law that at a deletion so many other copies were proven just before (K22)."""

    def law(facts: Sequence[Recorded]) -> Iterator[str]:
        granted: dict[str, events.DeletionGranted] = {}
        for recorded in facts:
            event = recorded.event
            if isinstance(event, events.DeletionGranted):
                granted[event.request] = event
            elif isinstance(event, events.DeletionDone) and event.deleted:
                grant = granted.get(event.request)
                places = {proof.node for proof in grant.proofs if proof.proven} if grant else set()
                if len(places - {event.node}) < minimum:
                    yield (
                        f"{event.path} was deleted from {event.node} with {len(places)} proven "
                        f"copies elsewhere, not {minimum}"
                    )

    return law


def damage_is_repaired(facts: Sequence[Recorded]) -> Iterator[str]:
    """A received copy that its node said to be damaged comes again while anybody holds its path."""
    held: dict[str, dict[str, DataEntry]] = defaultdict(dict)
    damaged: dict[tuple[str, str], int] = {}
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.FileQuarantined):
            # What was found wrong on its way was never held: its transfer is tried again.
            there = held[event.path].get(event.node)
            if there is not None and there.checksum == event.checksum:
                damaged[event.path, event.node] = recorded.sequence
        _move(held, event)
        # What becomes of a repaired copy later is another matter.
        damaged = {(p, node): at for (p, node), at in damaged.items() if node not in held[p]}
    for (path, node), sequence in damaged.items():
        if held[path]:
            where = ", ".join(sorted(held[path]))
            yield f"{path} on {node}, damaged at {sequence}, was never repaired: {where} has it"


def nothing_is_lost_with(wiped: Collection[str]) -> Law:
    """The law that nodes were wiped only once NODE_DRAINED was said of them, and nothing by that.

    What such a node held then, or a later version of it, is held elsewhere to the end.
    """

    def law(facts: Sequence[Recorded]) -> Iterator[str]:
        held: dict[str, dict[str, DataEntry]] = defaultdict(dict)
        left: dict[str, list[DataEntry]] = {}
        for recorded in facts:
            event = recorded.event
            if isinstance(event, events.NodeDrained):
                at = event.node
                left[at] = [places[at] for places in held.values() if at in places]
            else:
                _move(held, event)
        for node in wiped:
            if node not in left:
                yield f"{node} was wiped, and NODE_DRAINED was never said of it"
            for entry in left.get(node, ()):
                elsewhere = [one for at, one in held[entry.path].items() if at not in wiped]
                if not any(_as_good(one, entry) for one in elsewhere):
                    yield f"{entry.path} as {entry.checksum} was lost with {node}"

    return law


def no_node_that_stays_is_drained(facts: Sequence[Recorded]) -> Iterator[str]:
    """NODE_DRAINED is said of nobody of whom it was said last that it stays."""
    stays: dict[str, int] = {}
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.NodeTerminating):
            stays.pop(event.node, None)
        elif isinstance(event, events.NodeDrainCancelled | events.NodeRecovered):
            stays[event.node] = recorded.sequence
        elif isinstance(event, events.NodeDrained) and event.node in stays:
            yield (
                f"{event.node} stays since {stays[event.node]}, and at {recorded.sequence} it was "
                "said to be drained"
            )


def _move(held: dict[str, dict[str, DataEntry]], event: events.Event | None) -> None:
    """Follow what each place holds, by path and place. Of a deletion its node says what is gone."""
    if isinstance(event, events.FilesObserved):
        for entry in event.entries:
            held[entry.path][event.node] = entry
    elif isinstance(event, events.TransferSucceeded):
        held[event.entry.path][event.target] = event.entry
    elif isinstance(event, events.FilesRemoved):
        for path in event.paths:
            held[path].pop(event.node, None)
    elif isinstance(event, events.FileQuarantined):
        there = held[event.path].get(event.node)
        if there is not None and there.checksum == event.checksum:
            del held[event.path][event.node]


def _as_good(one: DataEntry, wanted: DataEntry) -> bool:
    return one.checksum == wanted.checksum or one.version > wanted.version


def every_deletion_ends_once(facts: Sequence[Recorded]) -> Iterator[str]:
    """Whoever asked for a deletion hears what came of it; and a copy goes once."""
    asked: dict[str, events.DeletionRequested] = {}
    heard: set[str] = set()
    done: Counter[str] = Counter()
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.DeletionRequested):
            asked[chain_of_trigger(recorded.id)] = event
        elif isinstance(event, events.DeletionRefused):
            heard.add(event.request)
        elif isinstance(event, events.DeletionDone):
            heard.add(event.request)
            done[event.request] += 1
    for request, event in asked.items():
        if request not in heard:
            yield f"deletion {request} of {event.path} from {event.node} has not ended"
        elif done[request] > 1:
            yield f"deletion {request} of {event.path} has ended {done[request]} times"


def nothing_acknowledged_is_lost(ids: Sequence[str]) -> Law:
    """The law that what a publisher was told is stored is in the log."""

    def law(facts: Sequence[Recorded]) -> Iterator[str]:
        there = {recorded.id for recorded in facts}
        for id in ids:
            if id not in there:
                yield f"event {id} was acknowledged and is not in the log"

    return law


#: Those that hold of any log whatever was configured.
ALWAYS: tuple[Law, ...] = (
    every_message_is_understood,
    no_fact_is_doubled,
    every_chain_ends_once,
    every_announcement_is_made_once,
    every_outcome_is_proven,
    no_games_are_overstated,
    every_deletion_ends_once,
    no_node_that_stays_is_drained,
)


def broken(facts: Sequence[Recorded], laws: Sequence[Law]) -> list[str]:
    """All that breaks any of `laws`."""
    return [problem for law in laws for problem in law(facts)]
