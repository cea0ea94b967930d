"""The views a command looks at: those on this machine, or those of a moment, folded for it.

A moment is a point of a log: of the bus's, an archive's or an exported file's. What is asked of the
log besides the views is read from the same one, and no further than to that point.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

from dataplane.audit.knowing import UpTo, known_at
from dataplane.audit.moments import point_of
from dataplane.audit.sources import LIVE, ReadOnly, open_source
from dataplane.catalog import Catalog
from dataplane.cli.app import config_of, run
from dataplane.evidence import facts_about, span_of
from dataplane.planner import SyncPlanner
from dataplane.queries import QUERIES, Ask, AskWhy, Reading
from streams.codec import Recorded
from streams.log import ReadingLog

T = TypeVar("T")


class Moment(NamedTuple):
    """Where and when a command looks; without a time, at the end of the log there."""

    source: str = LIVE
    time: str = ""


#: Set by ``at`` and ``--from``; None is the present, by the views on this machine.
moment: Moment | None = None


def look_at(*, source: str = LIVE, time: str = "") -> None:
    """From now on commands look there, and as of then; what is not said stays as it is."""
    global moment
    before = moment or Moment()
    wanted = Moment(before.source if source == LIVE else source, time or before.time)
    if wanted != Moment():
        moment = wanted


class Views(Protocol):
    """What a command answers from."""

    def answer(self, name: str, ask: Ask, beats: dict[str, dict[str, Any]]) -> Any:
        """What a question of `dataplane.queries` finds.

        Raises ServiceRefusal, StoreError, and PointNotHeld where the log can't be folded.
        """

    def consult(self, work: Callable[[ReadingLog], Awaitable[T]]) -> T:
        """What is found in the log that the views are folded from. Raises a `LogError`."""


@contextlib.contextmanager
def open_views() -> Iterator[Views]:
    """The views that this command was told to look at. Raises ConfigError and a `LogError`."""
    if moment is None:
        yield _Here()
        return
    with asyncio.Runner() as runner:
        source = open_source(moment.source, config_of())
        log = runner.run(_entered(source))
        try:
            yield _There(log, runner.run(_last_of(log, moment)), runner)
        finally:
            runner.run(_left(source))


class _Here:
    """The present, by the views on this machine."""

    def answer(self, name: str, ask: Ask, beats: dict[str, dict[str, Any]]) -> Any:
        """As `Views.answer`."""
        config = config_of()
        with contextlib.closing(Catalog(config)) as catalog:
            facts: list[Recorded] = []
            if isinstance(ask, AskWhy):
                path = ask.path
                with catalog.view() as view:
                    span = span_of(view.catalog, path)
                facts = self.consult(lambda log: facts_about(log, path, span))
            with catalog.view() as view:
                now, last = time.time(), view.checkpoint.sequence
                planner = SyncPlanner(config.policy(), view, now)
                known = Reading(view, planner, now, beats, last, config, None, facts)
                return QUERIES[name][2](ask, known)

    def consult(self, work: Callable[[ReadingLog], Awaitable[T]]) -> T:
        """As `Views.consult`."""

        async def do() -> T:
            async with open_source(LIVE, config_of()) as log:
                return await work(log)

        found: T = run(do())
        return found


class _There:
    """A moment, by views that are folded for each question."""

    def __init__(self, log: ReadOnly, last: int, runner: asyncio.Runner) -> None:
        self._log, self._last, self._runner = log, last, runner

    def answer(self, name: str, ask: Ask, beats: dict[str, dict[str, Any]]) -> Any:
        """As `Views.answer`; whose hearts beat then is in no log."""

        async def do() -> Any:
            async with known_at(self._log, self._last, config_of()) as then:
                return await then.answer(name, ask)

        return self._runner.run(do())

    def consult(self, work: Callable[[ReadingLog], Awaitable[T]]) -> T:
        """As `Views.consult`."""

        async def do() -> T:
            return await work(UpTo(self._log, self._last))

        return self._runner.run(do())


async def _entered(place: contextlib.AbstractAsyncContextManager[T]) -> T:
    return await place.__aenter__()


async def _left(place: contextlib.AbstractAsyncContextManager[Any]) -> None:
    await place.__aexit__(None, None, None)


async def _last_of(log: ReadOnly, moment: Moment) -> int:
    if moment.time:
        return await point_of(log, moment.time, "TIME")
    return (await log.state()).last_sequence
