"""Which of a node's addresses answer, and from where: found out by letting others try."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple

from dataplane.agent.asking import try_address
from dataplane.presence import present
from streams.log import Bus, LogError

#: Other agents that are asked, the same ones each time.
ASKED = 16


class Reached(NamedTuple):
    """Whether an address answers, and who could not reach it though others could."""

    #: None if nobody could be asked.
    answers: bool | None = None
    not_from: tuple[str, ...] = ()


class Reaching:
    """What a node has found out of its own addresses."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus = bus
        self._node = node
        self._known: dict[str, Reached] = {}
        self._seen: dict[str, Reached] = {}

    def of(self, address: str) -> Reached:
        """What is known of an address."""
        return self._known.get(address, Reached())

    @property
    def settled(self) -> bool:
        """Whether somebody has tried each address, and the next time would tell nothing more."""
        return all(
            seen.answers is not None and seen == self.of(address)
            for address, seen in self._seen.items()
        )

    async def look(self, addresses: Iterable[str]) -> bool:
        """Let other agents try addresses; whether there is news that others have to know."""
        news = False
        for address in addresses:
            found = await reached(self._bus, self._node, address)
            before, last = self.of(address), self._seen.get(address, Reached())
            self._seen[address] = found
            if found.answers is None:
                continue
            # One that was busy for a moment did not mean it: it has to fail twice.
            lasting = tuple(name for name in found.not_from if name in last.not_from)
            now = self._known[address] = Reached(found.answers, lasting)
            # That it can be reached is what everybody takes for granted.
            news = news or (now != before and {now, before} != {Reached(True), Reached()})
        return news


async def reached(bus: Bus, node: str, address: str) -> Reached:
    """Whether other agents can connect to an address, and who can't."""
    try:
        there = await present(bus)
    except LogError:
        return Reached()
    agents = [key.removeprefix("agent.") for key in there if key.startswith("agent.")]
    others = sorted((name for name in agents if name != node), key=lambda name: _rank(node, name))
    asked = sorted(others[:ASKED])
    answers = await asyncio.gather(*(try_address(bus, name, address) for name in asked))
    if True not in answers:
        return Reached(False if False in answers else None)
    silent = (name for name, answer in zip(asked, answers, strict=True) if answer is False)
    return Reached(True, tuple(silent))


def _rank(node: str, other: str) -> bytes:
    """An order of others that is a node's own, and stays though some come and go."""
    return sha256(f"{node} {other}".encode()).digest()
