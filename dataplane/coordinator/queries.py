"""Answers `dataplane.queries` from a coordinator's views, as a service of the bus.

The JSON Schemas of questions and answers stand in the service's metadata. Of several coordinators
one answers each question.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from dataplane.config import DataPlaneConfig
from dataplane.evidence import facts_about, span_of
from dataplane.planner import SyncPlanner
from dataplane.presence import present
from dataplane.queries import (
    MOST_LINES,
    PREFIX,
    QUERIES,
    SERVICE,
    VERSION,
    Ask,
    AskWhy,
    Reading,
    understand,
)
from projections.cluster import ClusterView
from projections.projector import Projector
from streams.codec import Recorded
from streams.log import Bus, Log, ReadingLog, Standing
from streams.micro import Question, Service, ServiceRefusal

T = TypeVar("T")


class Queries:
    """Answers questions from the views of this coordinator."""

    def __init__(
        self,
        log: Log,
        bus: Bus,
        projector: Projector,
        config: DataPlaneConfig,
        *,
        whole: ReadingLog | None = None,
    ) -> None:
        """`whole` is the log from its first fact on, where that is no longer on the bus."""
        self._whole: ReadingLog = whole or log
        self._log, self._bus, self._projector = log, bus, projector
        self._config, self._policy = config, config.policy()
        #: Asked now and then by whoever has these: it may take seconds.
        self.standing: Standing | None = None

    async def ask(self, name: str, body: bytes) -> bytes:
        """The answer's JSON. Raises ServiceRefusal, and a `LogError` if the bus is away."""
        answer = await self.answer(name, understand(name, body), most=MOST_LINES)
        if isinstance(answer, list) and len(answer) > MOST_LINES:
            raise ServiceRefusal(f"more than {MOST_LINES} lines: ask for less", "413")
        return msgspec.json.encode(answer)

    async def answer(self, name: str, ask: Ask, *, most: int | None = None) -> Any:
        """The answer as a struct or a list of them, of no more than `most`."""
        respond = QUERIES[name][2]
        facts: list[Recorded] = []
        if isinstance(ask, AskWhy):
            span = await self.read(lambda known: span_of(known.view.catalog, ask.path))
            facts = await facts_about(self._whole, ask.path, span)
        return await self.read(lambda known: respond(ask, known), facts, most=most)

    async def read(
        self,
        work: Callable[[Reading], T],
        facts: Sequence[Recorded] = (),
        *,
        most: int | None = None,
    ) -> T:
        """Do `work` on one reading of all that is known, in a thread: the loop has other work."""
        beats = await present(self._bus)
        state = await self._log.state()

        def do() -> T:
            with self._projector.store.read() as reader:
                view = ClusterView(reader)
                now, last = time.time(), state.last_sequence
                planner = SyncPlanner(self._policy, view, now)
                known = Reading(view, planner, now, beats, last, self._config, self.standing)
                known.facts, known.most = list(facts), most
                return work(known)

        return await asyncio.to_thread(do)

    def service(self) -> Service:
        """All questions as a service of the bus."""
        return Service(
            name=SERVICE,
            version=VERSION,
            description="Where the cluster's data is, where it should go, and what became of it.",
            questions=tuple(self._question(name) for name in QUERIES),
            metadata={"node": self._config.node},
        )

    def _question(self, name: str) -> Question:
        async def answer(body: bytes) -> bytes:
            return await self.ask(name, body)

        asks, answers, _ = QUERIES[name]
        bound: Callable[[bytes], Awaitable[bytes]] = answer
        return Question(
            name=name,
            subject=f"{PREFIX}.{name}",
            answer=bound,
            metadata={
                "description": asks.__doc__ or "",
                "request_schema": _schema(asks),
                "response_schema": _schema(answers),
            },
        )


def _schema(kind: Any) -> str:
    return msgspec.json.encode(msgspec.json.schema(kind)).decode()
