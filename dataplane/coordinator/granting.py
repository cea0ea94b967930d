"""Grants over the bus: the coordinator tells executors how fast they may go, and they keep to it.

A grant lasts for a while; an executor that hears no more falls back to the floor by itself. Nothing
here is a fact: what was assigned is in the log, what is granted meanwhile is worked out anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from dataplane.admission import shares_of
from dataplane.budget import (
    FLOOR_MBPS,
    GRANT_S,
    Grant,
    Grants,
    changes,
    claim_in_flight,
    claim_of_order,
    limits_of,
    most_granted,
)
from dataplane.policy import Policy
from projections.nodes import NodeRow
from projections.transfers import TransferRow
from streams import events
from streams.foreign import Unreadable, from_json
from streams.log import Answering, Bus, LogError

logger = logging.getLogger(__name__)
ANSWER_S = 5.0
#: An executor counts from when it hears of a grant: for so much longer it may still be using it.
LATE_S = 15.0
_EXPIRY_LOOK_S = 1.0


class GrantsTold(msgspec.Struct, frozen=True):
    """What an executor's transfers may use, by claim, in Mbit/s; 0 means unlimited."""

    mbps: dict[str, float]
    #: For how many seconds from now.
    lasts_s: float = GRANT_S


def grant_subject(node: str) -> str:
    """Where an executor is told what its transfers may use."""
    return f"dp.grant.{node}"


class Granter:
    """The coordinator's side. It asks nobody to wait: executors are told in the background."""

    def __init__(self, bus: Bus, policy: Policy, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._policy = policy
        self._clock = clock
        self._telling: dict[str, asyncio.Task[None]] = {}
        #: Called when somebody has given something back.
        self.on_change: Callable[[], None] = lambda: None
        self.grants = Grants()
        #: Until then grants of a leader before this one may be in force.
        self._inherits_until = 0.0

    def begin(self) -> None:
        """This process begins to lead: what it knew is old, and another may have granted since."""
        self.grants = Grants()
        self._inherits_until = self._clock() + GRANT_S + LATE_S

    def see(self, in_flight: Iterable[TransferRow], node: Callable[[str], NodeRow | None]) -> None:
        """Take note of what is under way now."""
        rows: dict[str, TransferRow] = {}
        for row in sorted(in_flight, key=lambda row: row.bandwidth_mbps or math.inf):
            # Of those that share a claim, what was assigned at most counts.
            rows[claim_in_flight(row)] = row
        self.grants.forget_others(rows)
        new = [row for claim, row in rows.items() if claim not in self.grants]
        for row in new:
            # Until it confirms anything else, its assignment is what it may be using.
            self.grants.adopt(claim_in_flight(row), Grant(row.bandwidth_mbps, math.inf))
        if self._clock() < self._inherits_until:
            limits = limits_of(self._policy.bandwidth, node)
            for share in shares_of(new, self._policy, node):
                # Who led before may have raised it, or cut it, which is in no log.
                for mbps in (most_granted(share, limits), FLOOR_MBPS):
                    self.grants.told(share.id, Grant(mbps, self._inherits_until))

    def divide(self, in_flight: list[TransferRow], node: Callable[[str], NodeRow | None]) -> None:
        """Divide anew among what is under way, and tell whoever is to change."""
        shares = shares_of(in_flight, self._policy, node)
        limits = limits_of(self._policy.bandwidth, node)
        told = changes(shares, limits, self.grants, self._clock())
        self._telling = {name: task for name, task in self._telling.items() if not task.done()}
        by_executor: dict[str, dict[str, float]] = {}
        for row in in_flight:
            claim = claim_in_flight(row)
            if claim in told and row.executor not in self._telling:
                by_executor.setdefault(row.executor, {})[claim] = told[claim]
        for executor, mbps in by_executor.items():
            self._telling[executor] = asyncio.create_task(self._tell(executor, mbps))

    async def close(self) -> None:
        """Tell nobody any more."""
        tasks = list(self._telling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, executor: str, mbps: dict[str, float]) -> None:
        until = self._clock() + GRANT_S + LATE_S
        grants = {id: Grant(rate, until) for id, rate in mbps.items()}
        for id, grant in grants.items():
            self.grants.told(id, grant)
        body = msgspec.json.encode(GrantsTold({id: round(rate, 3) for id, rate in mbps.items()}))
        try:
            answer = await self._bus.request(grant_subject(executor), body, ANSWER_S)
            kept = from_json(answer, list[str])
        except (LogError, Unreadable) as error:
            logger.debug("%s was not told its grants: %s", executor, error)
            return
        for id in kept:
            if id in grants:
                self.grants.confirmed(id, grants[id])
        if kept:
            self.on_change()


class GrantKeeper:
    """The executor's side: what each of its transfers may use, and until when."""

    def __init__(self, bus: Bus, node: str, set_bandwidth: Callable[[str, float], None]) -> None:
        self._bus = bus
        self._node = node
        self._set = set_bandwidth
        self._until: dict[str, float] = {}
        self._running: Counter[str] = Counter()
        self._answering: Answering | None = None

    async def start(self) -> None:
        """Listen to what is granted."""
        self._answering = await self._bus.answer(grant_subject(self._node), self._told)

    async def run(self) -> None:
        """Let grants run out, for ever."""
        while True:
            await asyncio.sleep(_EXPIRY_LOOK_S)
            self.expire(time.monotonic())

    async def stop(self) -> None:
        """Listen no more."""
        if self._answering is not None:
            await self._answering.close()

    def began(self, order: events.TransferAssigned) -> None:
        """A transfer begins with what its assignment grants, or with what its claim has already."""
        claim = claim_of_order(order)
        self._running[claim] += 1
        if claim in self._until:
            return
        if order.grant_s and order.bandwidth_mbps:
            self._until[claim] = time.monotonic() + order.grant_s
        else:
            self._until[claim] = math.inf

    def ended(self, order: events.TransferAssigned) -> None:
        """It uses nothing any more."""
        claim = claim_of_order(order)
        self._running[claim] -= 1
        if self._running[claim] <= 0:
            del self._running[claim]
            self._until.pop(claim, None)

    def expire(self, now: float) -> None:
        """Those whose grants have run out go on at the floor."""
        for claim, until in self._until.items():
            if until <= now:
                self._until[claim] = math.inf
                self._set(claim, FLOOR_MBPS)

    async def _told(self, subject: str, body: bytes) -> bytes:
        """Keep to what is said of transfers that run here; which those are."""
        told = from_json(body, GrantsTold)
        kept = [id for id in told.mbps if id in self._until]
        for id in kept:
            self._set(id, told.mbps[id])
            # What nothing limits needs no renewal.
            self._until[id] = time.monotonic() + told.lasts_s if told.mbps[id] else math.inf
        return msgspec.json.encode(kept)
