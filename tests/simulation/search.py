"""Many runs, and of one that breaks a promise the smallest that still breaks it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from tests.simulation.schedule import Schedule, drawn
from tests.simulation.world import Outcome, run

Run = Callable[[Schedule], Outcome]
#: Orders in which a smaller schedule is tried before it counts as harmless.
_ORDERS = 12


class Found(msgspec.Struct, frozen=True):
    """A schedule that breaks a promise, and the smallest made of it."""

    seed: int
    smallest: Schedule
    problems: list[str]

    def __str__(self) -> str:
        problems = "\n".join(f"  {problem}" for problem in self.problems[:10])
        return f"seed {self.seed} breaks a promise:\n{problems}\nsmallest:\n{self.smallest}"


class Summary(msgspec.Struct, frozen=True):
    """Runs in numbers."""

    schedules: int
    chains: int
    facts: int
    steps: int
    seconds: float
    found: list[Found]


def search(
    seeds: Iterable[int],
    *,
    draw: Callable[[int], Schedule] = drawn,
    run_one: Run = run,
    most: int = 3,
    shrink: bool = True,
) -> Summary:
    """Run a schedule for each seed; stop after `most` that break a promise."""
    began = time.monotonic()
    schedules = chains = facts = steps = 0
    found: list[Found] = []
    for seed in seeds:
        schedule = draw(seed)
        outcome = judged(schedule, run_one)
        schedules += 1
        chains += outcome.chains
        facts += outcome.facts
        steps += outcome.steps
        if outcome.problems:
            small = shrunk(schedule, outcome, run_one) if shrink else (schedule, outcome.problems)
            found.append(Found(seed, *small))
            if len(found) >= most:
                break
    seconds = time.monotonic() - began
    return Summary(schedules, chains, facts, steps, round(seconds, 2), found)


def judged(schedule: Schedule, run_one: Run) -> Outcome:
    """The outcome of a run; a process that ends by a surprise breaks a promise, too."""
    try:
        return run_one(schedule)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        text = _innermost(error)
        return Outcome([f"a process ended: {type(text).__name__}: {text}"], 0, 0, 0, 0.0)


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def shrunk(schedule: Schedule, outcome: Outcome, run_one: Run) -> tuple[Schedule, list[str]]:
    """The schedule without any step that it needs not to break a promise, and what it breaks.

    Without a step everything after it happens in another order, so some orders are tried.
    """
    smallest, problems = schedule, outcome.problems
    again = True
    while again:
        again = False
        for candidate in _smaller(smallest):
            broken = _breaks(candidate, run_one)
            if broken is not None:
                smallest, problems = broken
                again = True
                break
    return smallest, problems


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    if schedule.share:
        yield msgspec.structs.replace(schedule, share=0.0)
    for index in range(len(schedule.steps)):
        steps = schedule.steps[:index] + schedule.steps[index + 1 :]
        yield msgspec.structs.replace(schedule, steps=steps)


def _breaks(schedule: Schedule, run_one: Run) -> tuple[Schedule, list[str]] | None:
    for order in range(_ORDERS):
        candidate = msgspec.structs.replace(schedule, seed=schedule.seed + order * 1_000_003)
        problems = judged(candidate, run_one).problems
        if problems:
            return candidate, problems
    return None
