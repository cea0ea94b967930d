"""The turn of those who make many short calls to the system."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from adapters import workers
from adapters.workers import turn


def test_turns_come_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is at it while one has the turn."""
    monkeypatch.setattr(workers, "_TURN_S", 60.0)
    at_it = most = 0

    def work() -> None:
        nonlocal at_it, most
        for _ in range(200):
            with turn():
                at_it += 1
                most = max(most, at_it)
                # A call to the system: others may run meanwhile.
                threading.Event().wait(1e-6)
                at_it -= 1

    with ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(work) for _ in range(4)]:
            job.result()
    assert most == 1


def test_whoever_holds_the_turn_for_long_holds_up_nobody() -> None:
    """He may be waiting for bytes of a slow source; and he gives back no turn but his own."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with turn():
            entered.set()
            assert leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        assert entered.wait(60)
        with turn():
            pass
        assert workers._turn.locked()
        leave.set()
        held.result()
    assert not workers._turn.locked()
