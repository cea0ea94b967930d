"""Thousands of orders in which things can happen, and not one in which a promise is broken.

``python -m tests.simulation --schedules 50000`` runs more of them.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bench import report
from dataplane.coordinator import bridge as bridge_module
from dataplane.coordinator import deleting, drains
from dataplane.coordinator.bridge import Decision, EventBridge
from dataplane.coordinator.deleting import Deleter
from dataplane.coordinator.dispatch import Dispatcher
from dataplane.coordinator.drains import Drains
from dataplane.safety import unsafe
from dataplane.slots import Slots
from projections import trainings
from projections.chains import ChainRow
from projections.transfers import TransferState
from streams import events
from streams.codec import Fact, fact_about
from streams.log import Receipt
from streams.values import DataEntry, Proof
from tests.simulation.__main__ import main
from tests.simulation.clock import VirtualLoop
from tests.simulation.schedule import (
    Schedule,
    Step,
    drawn,
    drawn_in_rhythm,
    drawn_with_custody,
    drawn_with_drains,
)
from tests.simulation.search import Found, search
from tests.simulation.world import run

#: Schedules of each run of the suite; the seeds before them are those of bugs that were found.
SCHEDULES = 120
#: Seeds that once broke a promise, and how.
REGRESSIONS = {
    23211: "an order decided just before its entry arrived moves nothing",
    29772: "the same, with a promotion in between",
    569: "an earlier attempt succeeds after a later one was assigned: the transfer is over then",
    105730: "what an old transfer brings late frees the slot of a new one for the same entry",
}


#: The same where copies come and go.
CUSTODY_REGRESSIONS = {
    1439: "an order whose chain ended while it was decided moves bytes, and takes its slot",
    400294: "an answer that was lost let the copy be deleted that had come again",
}


#: The same where nodes are emptied and wiped.
DRAIN_REGRESSIONS = {
    3004513: "two coordinators asked by one grant, and the second one's word deleted a new copy",
    4001553: "what had arrived on the node, and was not said to have, was counted on elsewhere",
}


def test_no_schedule_breaks_a_promise() -> None:
    """Crashes, pauses, lost words and odd orders: every chain ends once, every view is the fold."""
    found = search(range(SCHEDULES)).found
    assert not found, "\n\n".join(map(str, found))


def test_no_schedule_in_which_copies_come_and_go_breaks_a_promise() -> None:
    """Sweeper and deleter take part: never is a copy deleted without enough others on the disks."""
    found = search(range(SCHEDULES // 3), draw=drawn_with_custody).found
    assert not found, "\n\n".join(map(str, found))


def test_no_schedule_in_which_data_is_brought_ahead_breaks_a_promise() -> None:
    """What is expected ends once, takes only slots to be spared, and each byte counts once."""
    found = search(range(SCHEDULES // 6), draw=drawn_in_rhythm).found
    assert not found, "\n\n".join(map(str, found))


def test_no_schedule_in_which_nodes_are_emptied_breaks_a_promise() -> None:
    """A node is wiped once NODE_DRAINED is the last word on it: nothing it held goes with it."""
    found = search(range(SCHEDULES // 4), draw=drawn_with_drains).found
    assert not found, "\n\n".join(map(str, found))


def test_schedules_that_once_broke_a_promise_break_none() -> None:
    """What was found once must not come back."""
    broken = {seed: run(drawn(seed)).problems for seed in REGRESSIONS}
    broken |= {seed: run(drawn_with_custody(seed)).problems for seed in CUSTODY_REGRESSIONS}
    broken |= {seed: run(drawn_with_drains(seed)).problems for seed in DRAIN_REGRESSIONS}
    assert not any(broken.values()), broken


def test_same_seed_does_the_same() -> None:
    """A finding can be looked at again: facts, steps and virtual time are equal."""
    assert run(drawn(7)) == run(drawn(7))
    assert run(drawn_with_custody(7)) == run(drawn_with_custody(7))
    assert run(drawn_in_rhythm(7)) == run(drawn_in_rhythm(7))
    assert run(drawn_with_drains(7)) == run(drawn_with_drains(7))


def test_schedules_differ_and_do_much() -> None:
    """The share of schedules that would prove nothing is small."""
    summary = search(range(30))
    assert summary.chains > 60 and summary.facts > 600
    assert len({drawn(seed).steps for seed in range(30)}) == 30


def test_starts_in_rhythm_find_what_was_brought_ahead_and_some_come_to_nothing() -> None:
    """A simulation in which nothing is expected would prove nothing of it."""
    outcomes = [run(drawn_in_rhythm(seed)) for seed in range(10)]
    assert sum(found > 0 for _, found in (one.ahead for one in outcomes)) >= 5
    assert any(found < moved for moved, found in (one.ahead for one in outcomes))


# A simulation that can't fail proves nothing: each of these handlers is broken, and found.


def first_found(
    *, shrink: bool = False, draw: Callable[[int], Schedule] = drawn, first: int = 0
) -> Found:
    """The first schedule from a seed on that breaks a promise."""
    (found,) = search(range(first, first + 400), draw=draw, most=1, shrink=shrink).found
    return found


def test_bridge_that_ignores_the_guards_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two coordinators then both decide, each by ids of its own."""

    async def append(self: EventBridge, group: list[Decision]) -> Receipt:
        facts = [_with_id_of_its_own(fact) for decision in group for fact in decision.facts]
        return await self._log.append(facts)

    monkeypatch.setattr(EventBridge, "_append", append)
    found = first_found()
    assert any(" times" in problem for problem in found.problems), found.problems


def _with_id_of_its_own(fact: Fact) -> Fact:
    return replace(fact, id=f"{fact.id[:20]}{uuid.uuid4().hex[:12]}")


def test_dispatcher_that_ignores_its_guard_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them fill the same slots."""

    async def assign(self: Dispatcher, assignments: Sequence[Fact], guard: object) -> None:
        for fact in assignments:
            await self._log.publish(fact)

    monkeypatch.setattr(Dispatcher, "_assign", assign)
    found = first_found()
    assert any("transfers ran at" in problem for problem in found.problems)


def test_bridge_that_forgets_what_it_could_not_append_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It acknowledges before it appends, and no sweep asks again."""
    real = EventBridge._handle

    async def handle(self: EventBridge, deliveries: list[Any]) -> None:
        await asyncio.gather(*(delivery.ack() for delivery in deliveries))
        await real(self, deliveries)

    async def sweep(self: EventBridge) -> None:
        """Nothing."""

    monkeypatch.setattr(EventBridge, "_handle", handle)
    monkeypatch.setattr(EventBridge, "sweep", sweep)
    found = first_found()
    assert any("has not ended" in problem for problem in found.problems)


def test_end_that_is_said_without_looking_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain is called complete while its copies are still on their way."""
    real = bridge_module.owed

    def owed(chain: Any, transfers: Any, *rest: Any) -> list[Fact]:
        arrived = {id: _as_if_arrived(row) for id, row in transfers.items()}
        return real(chain, arrived, *rest)

    monkeypatch.setattr(bridge_module, "owed", owed)
    found = first_found(shrink=True)
    assert any("no transfer before it has proven that" in one for one in found.problems)
    # The report is small enough to be read: one trigger, and no fault at all.
    assert len(found.smallest.steps) == 1 and found.smallest.share == 0.0


def test_late_chain_of_which_nothing_is_said_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulation in which no chain is ever late would prove nothing of it."""
    owed = bridge_module.owed

    def silent(*args: Any, **how: Any) -> list[Fact]:
        facts = owed(*args, **how)
        return [fact for fact in facts if not isinstance(fact.event, events.ChainOverdue)]

    monkeypatch.setattr(bridge_module, "owed", silent)
    found = first_found()
    assert any("CHAIN_OVERDUE was never said" in problem for problem in found.problems)


def test_deleter_that_believes_the_catalog_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks nobody for a proof: what the log says is fine, what is on the disks is not."""

    async def prove_all(bus: object, nodes: Sequence[str], entry: DataEntry) -> list[Proof]:
        return [Proof(node=node, proven=True, checksum=entry.checksum) for node in nodes]

    monkeypatch.setattr(deleting, "prove_all", prove_all)
    found = first_found(draw=drawn_with_custody)
    assert any("of the others only" in problem for problem in found.problems), found.problems


def test_deleter_that_ignores_its_guards_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies of an entry then go at once, each on the word of the other."""

    async def append(self: Deleter, facts: Sequence[Fact], guard: object) -> None:
        receipt = await self._log.append([_with_id_of_its_own(fact) for fact in facts])
        await self._projector.wait_for(receipt.sequence)

    monkeypatch.setattr(Deleter, "_append", append)
    found = first_found(draw=drawn_with_custody)
    assert any("deleted" in one or "has ended" in one for one in found.problems), found.problems


def test_drain_that_believes_the_catalog_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks nobody for a proof, and what was taken away elsewhere is lost with the node."""

    async def not_safe(bus: object, read: Any, copies: int) -> Any:
        found = await read()
        return found, unsafe(found.node, found.held, found.elsewhere, copies)

    monkeypatch.setattr(drains, "not_safe", not_safe)
    found = first_found(draw=drawn_with_drains)
    assert any("was lost" in one or "was wiped" in one for one in found.problems), found.problems


def test_drain_that_ignores_who_says_that_the_node_stays_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NODE_DRAINED is then said behind the word that takes it back."""

    async def say(self: Drains, row: ChainRow, held: list[DataEntry]) -> None:
        event = events.NodeDrained(node=row.node, entries=len(held), size_bytes=0)
        await self._log.publish(fact_about(event, row.node, row.id, row.trigger_id))

    monkeypatch.setattr(Drains, "_say", say)
    found = first_found(draw=drawn_with_drains)
    assert any("was said to be drained" in one for one in found.problems), found.problems


def test_data_ahead_that_takes_any_slot_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is free then is not left for what somebody needs."""
    monkeypatch.setattr(Slots, "_no_spare", lambda self, transfer, name: None)
    found = first_found(draw=drawn_in_rhythm)
    assert any("ran ahead" in problem for problem in found.problems), found.problems


def test_copy_that_counts_for_each_start_that_finds_it_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fold that forgets to forget: hits are then more than what was brought."""
    real = trainings._drop

    def drop(tx: Any, key: bytes, *, wasted: bool) -> None:
        staged = tx.get("staged", key)
        real(tx, key, wasted=wasted)
        if staged is not None and not wasted:
            tx.put("staged", key, staged)

    monkeypatch.setattr(trainings, "_drop", drop)
    found = first_found(draw=drawn_in_rhythm)
    assert any("brought ahead" in problem for problem in found.problems), found.problems


def _as_if_arrived(row: Any) -> Any:
    return replace(row, state=TransferState.SUCCEEDED, arrived_checksum=row.entry.checksum)


# The clock


def test_time_jumps_to_what_is_due_and_what_is_ready_runs_in_any_order() -> None:
    """An hour takes no time; ten tasks that are ready at once come in more than one order."""

    async def order_of_ten() -> tuple[int, ...]:
        order: list[int] = []

        async def note(number: int) -> None:
            await asyncio.sleep(3600.0)
            order.append(number)

        await asyncio.gather(*(note(number) for number in range(10)))
        assert asyncio.get_running_loop().time() == 3600.0
        return tuple(order)

    orders = set()
    for seed in range(5):
        loop = VirtualLoop(random.Random(seed))
        orders.add(loop.run_until_complete(order_of_ten()))
        loop.close()
    assert len(orders) == 5


def test_schedule_is_written_so_that_it_can_be_run_again() -> None:
    """The report of a finding names every step."""
    schedule = Schedule(3, 0.1, (Step(1.5, "plays", "gpu-1", "hex8_2p"),))
    assert str(schedule) == "seed 3, faults 0.10\n    1.5 s  plays gpu-1 hex8_2p"


def test_what_was_run_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever reads the figures can make them again."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert main(["--schedules", "2", "--seed", "5", "--custody", "--save"]) == 0
    kept = json.loads((tmp_path / "simulation-custody.json").read_text())
    assert (kept["seed"], kept["parameters"]) == (5, {"schedules": 2, "processes": 1})
    assert kept["command"].startswith("python -m tests.simulation")
    assert kept["tree"] == report.tree()
    figures = {line["what"]: line["value"] for line in kept["lines"]}
    assert figures["schedules"] == 2 and figures["schedules that break a promise"] == 0
    assert figures["facts"] > 0 and figures["duration"] > 0
