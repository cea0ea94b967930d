"""Grants over the bus: the coordinator tells executors how fast they may go, and they keep to it.

A grant lasts for a while; an executor that hears no more falls back to the floor by itself. Nothing
here is a fact: what was assigned is in the log, what is granted meanwhile is worked out anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import msgspec
from msgspec.structs import replace

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
#: How long an executor waits for who moves its bytes: less than is waited for it.
PASSED_ON_S = 3.0
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


def _part_subject(node: str) -> str:
    """Where a node that does a part of another's transfer is told what that may use."""
    return f"dp.rpc.{node}.grant"


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
    """The executor's side: what each of its transfers may use, and until when.

    Where another node moves the bytes, as for a relay, it is told what its executor is told, and
    nothing is confirmed that it does not confirm.
    """

    def __init__(self, bus: Bus, node: str, set_bandwidth: Callable[[str, float], None]) -> None:
        self._bus = bus
        self._node = node
        self._set = set_bandwidth
        #: By claim, until when by the monotonic clock.
        self._granted: dict[str, Grant] = {}
        self._running: Counter[str] = Counter()
        #: By claim, whoever carries out parts of it now.
        self._movers: dict[str, Counter[str]] = {}
        self._answering: list[Answering] = []

    async def start(self) -> None:
        """Listen to what is granted: by the coordinator, and by who lets this node do a part."""
        for subject in (grant_subject(self._node), _part_subject(self._node)):
            self._answering.append(await self._bus.answer(subject, self._told))

    async def run(self) -> None:
        """Let grants run out, for ever."""
        while True:
            await asyncio.sleep(_EXPIRY_LOOK_S)
            self.expire(time.monotonic())

    async def stop(self) -> None:
        """Listen no more."""
        for answering in self._answering:
            await answering.close()

    @contextlib.contextmanager
    def running(self, order: events.TransferAssigned, claim: str = "") -> Iterator[None]:
        """A transfer, or under `claim` a part of one, begins with what its assignment grants, or
        with what its claim has already; after this it uses nothing any more.
        """
        claim = claim or claim_of_order(order)
        self._running[claim] += 1
        self._granted.setdefault(claim, _assigned(order))
        try:
            yield
        finally:
            self._running[claim] -= 1
            if self._running[claim] <= 0:
                del self._running[claim]
                del self._granted[claim]

    @contextlib.contextmanager
    def moved_by(self, node: str, claim: str) -> Iterator[None]:
        """Another node moves the bytes of a claim, or some of them."""
        movers = self._movers.setdefault(claim, Counter())
        movers[node] += 1
        try:
            yield
        finally:
            movers[node] -= 1
            if not +movers:
                self._movers.pop(claim, None)

    def as_granted(self, part: events.TransferAssigned, claim: str) -> events.TransferAssigned:
        """A part with what its claim may use now, for as long as it may without another word."""
        grant = self._granted.get(claim)
        if grant is None:
            return part
        left_s = grant.until - time.monotonic()
        if left_s <= 0:
            grant, left_s = Grant(FLOOR_MBPS, math.inf), math.inf
        return replace(
            part, bandwidth_mbps=grant.mbps, grant_s=0.0 if math.isinf(left_s) else left_s
        )

    def expire(self, now: float) -> None:
        """Those whose grants have run out go on at the floor."""
        for claim, grant in self._granted.items():
            if grant.until <= now:
                self._granted[claim] = Grant(FLOOR_MBPS, math.inf)
                self._set(claim, FLOOR_MBPS)

    async def _told(self, subject: str, body: bytes) -> bytes:
        """Keep to what is said of transfers that run here; which those are."""
        told = from_json(body, GrantsTold)
        mine = {claim: mbps for claim, mbps in told.mbps.items() if claim in self._granted}
        for claim, mbps in mine.items():
            self._set(claim, mbps)
            # What nothing limits needs no renewal.
            until = time.monotonic() + told.lasts_s if mbps else math.inf
            self._granted[claim] = Grant(mbps, until)
        kept = await self._passed_on(replace(told, mbps=mine))
        return msgspec.json.encode(kept)

    async def _passed_on(self, told: GrantsTold) -> list[str]:
        """Tell whoever moves the bytes of these claims; those that all of them keep to."""
        by_node: dict[str, dict[str, float]] = {}
        for claim, mbps in told.mbps.items():
            for node in +self._movers.get(claim, Counter()):
                by_node.setdefault(node, {})[claim] = mbps
        asked = [self._keeps(node, replace(told, mbps=some)) for node, some in by_node.items()]
        lost = set().union(*await asyncio.gather(*asked))
        return [claim for claim in told.mbps if claim not in lost]

    async def _keeps(self, node: str, told: GrantsTold) -> set[str]:
        """Tell a node that moves what is granted; what it does not keep to."""
        try:
            body = msgspec.json.encode(told)
            answer = await self._bus.request(_part_subject(node), body, PASSED_ON_S)
            return set(told.mbps) - set(from_json(answer, list[str]))
        except (LogError, Unreadable) as error:
            logger.debug("%s was not told what is granted to its part: %s", node, error)
            return set(told.mbps)


def _assigned(order: events.TransferAssigned) -> Grant:
    """What an assignment grants."""
    limited = order.grant_s and order.bandwidth_mbps
    until = time.monotonic() + order.grant_s if limited else math.inf
    return Grant(order.bandwidth_mbps, until)
