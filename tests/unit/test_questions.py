"""Asking one of several: who stands still keeps nobody from an answer."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from dataplane import questions
from dataplane.questions import ask_any
from streams.log import Bus, LogUnavailable
from streams.micro import ServiceRefusal


class _Several:
    """Those who answer, in the order in which the bus picks them."""

    def __init__(self, *answers: bytes | Exception | None) -> None:
        self._answers = list(answers)
        self.asked = 0
        self.asking = 0

    async def request(self, subject: str, body: bytes, timeout_s: float = 5.0) -> bytes:
        """An answer, an error, or with None nothing until the time is up."""
        answer = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        self.asking += 1
        try:
            if answer is None:
                await asyncio.sleep(timeout_s)
                raise LogUnavailable(f"{subject}: no answer in {timeout_s:g} s")
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            self.asking -= 1


async def _ask(several: _Several, timeout_s: float = 5.0) -> bytes:
    return await ask_any(cast(Bus, several), "dp.query.health", b"", timeout_s)


async def test_who_answers_is_asked_alone() -> None:
    """A question costs no more than it did."""
    several = _Several(b"well")
    assert await _ask(several) == b"well"
    assert several.asked == 1


async def test_who_stands_still_keeps_nobody_from_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A paused coordinator is picked by the bus like any other, also twice."""
    monkeypatch.setattr(questions, "PATIENCE_S", 0.01)
    several = _Several(None, None, b"well")
    assert await _ask(several) == b"well"
    assert (several.asked, several.asking) == (3, 0)


async def test_where_nobody_answers_that_is_said_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """After as long as one question may take, however many were asked."""
    monkeypatch.setattr(questions, "PATIENCE_S", 0.01)
    several = _Several(None)
    with pytest.raises(LogUnavailable, match="no answer"):
        async with asyncio.timeout(1.0):
            await _ask(several, 0.2)
    assert several.asked == questions.MOST_ASKED


@pytest.mark.parametrize(
    "error", [LogUnavailable("nobody listens"), ServiceRefusal("no such node")]
)
async def test_a_refusal_is_an_answer(error: Exception) -> None:
    """Nobody else is asked."""
    several = _Several(error)
    with pytest.raises(type(error), match=str(error)):
        await _ask(several)
    assert several.asked == 1
