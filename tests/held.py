"""A call that is held up in its thread until a test lets it go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest


class Held:
    """The first call of a method that `which` speaks of; all others go through."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        owner: type,
        method: str,
        which: Callable[..., bool],
    ) -> None:
        self._reached, self._goes_on = threading.Event(), threading.Event()
        original = getattr(owner, method)

        def held(*arguments: Any) -> Any:
            if not self._reached.is_set() and which(*arguments):
                self._reached.set()
                # A test that fails does not let it go on: no thread may outlive it for ever.
                self._goes_on.wait(30)
            return original(*arguments)

        monkeypatch.setattr(owner, method, held)

    async def reached(self) -> None:
        """Wait until it is held up."""
        await asyncio.to_thread(self._reached.wait)

    def let_go(self) -> None:
        """Let it go on."""
        self._goes_on.set()
