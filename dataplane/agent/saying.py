"""Results on their way to the log: those that are ready at the same time are said in one append.

Nothing is said twice, for each has an id of its own; and what can't be said now is stored, and sent
by whoever drains the outbox. It must never say that something was said before the log has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from adapters.workers import finish
from dataplane.outbox import Outbox
from streams.codec import Fact
from streams.log import Log, LogError, LogFull, LogUnavailable

#: Facts of one append.
MOST = 200


class Saying:
    """What this node has to say of its tasks. Lives on one event loop."""

    def __init__(self, log: Log, outbox: Outbox) -> None:
        self._log = log
        self._outbox = outbox
        self._waiting: list[tuple[Fact, asyncio.Future[None]]] = []
        self._draining: asyncio.Task[None] | None = None

    async def say(self, fact: Fact) -> None:
        """Return once the log has it.

        Raises what the log raises. If it can't be reached or is full the fact is stored by then,
        and the caller may as well do all again: it is said once.
        """
        said: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((fact, said))
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())
        await said

    async def close(self) -> None:
        """What was not said yet will not be."""
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.gather(self._draining, return_exceptions=True)

    async def _drain(self) -> None:
        """One append after the other, until nothing waits to be said."""
        # Let those come who are ready at the same moment.
        await asyncio.sleep(0)
        while self._waiting:
            some, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            # Carried out twice at once, a task has the same result twice: it is one fact.
            facts = {fact.id: fact for fact, _ in some}
            unsaid: BaseException = LogUnavailable("this process stopped before it was said")
            problems = dict.fromkeys(facts, unsaid)
            try:
                problems = await self._say(list(facts.values()))
            finally:
                for fact, said in some:
                    problem = problems.get(fact.id)
                    if not said.done():
                        said.set_exception(problem) if problem else said.set_result(None)

    async def _say(self, facts: Sequence[Fact]) -> dict[str, BaseException]:
        """Say these; what it ended with for those that could not be said."""
        if len(facts) > 1:
            try:
                await self._log.append(facts, [])
                return {}
            except (LogUnavailable, LogFull) as error:
                await asyncio.gather(*(self._store(fact) for fact in facts))
                return dict.fromkeys((fact.id for fact in facts), error)
            except (LogError, ValueError):
                # One of them was said before, or can't be said: the others still can.
                pass
        said = await asyncio.gather(*(self._publish(one) for one in facts), return_exceptions=True)
        ends = zip(facts, said, strict=True)
        return {fact.id: end for fact, end in ends if end is not None}

    async def _publish(self, fact: Fact) -> None:
        try:
            await self._log.publish(fact)
        except (LogUnavailable, LogFull):
            await self._store(fact)
            raise

    async def _store(self, fact: Fact) -> None:
        await finish(lambda: self._outbox.store(fact))
