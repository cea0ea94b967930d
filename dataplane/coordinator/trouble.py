"""What could not be decided: how often it was tried, and when it is tried again.

Kept in memory alone. A process that forgets it begins to count anew, which costs time and nothing
else.
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

#: It is set aside when deciding it has failed so often.
MOST_TRIES = 5
_FIRST_S, _MOST_S = 1.0, 60.0


class Trouble(msgspec.Struct, frozen=True):
    """A chain or transfer whose decision raised an error."""

    tries: int
    #: Seconds since 1970.
    again_at: float
    problem: str

    @property
    def hopeless(self) -> bool:
        """Whether it was tried often enough."""
        return self.tries >= MOST_TRIES


class Troubles:
    """What is in trouble, by id. `said` is how one is told, with a place for the id."""

    def __init__(self, said: str) -> None:
        self._said = said
        self._by_id: dict[str, Trouble] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, id: str) -> bool:
        return id in self._by_id

    def items(self) -> list[tuple[str, Trouble]]:
        """All of them as they are now."""
        return list(self._by_id.items())

    def failed(self, id: str, error: Exception, now: float) -> Trouble:
        """Deciding it raised `error`: count that, and wait twice as long as before."""
        before = self._by_id.get(id)
        tries = 1 if before is None else before.tries + 1
        problem = f"{type(error).__name__}: {error}"
        found = self._by_id[id] = Trouble(tries, now + delay_s(tries), problem)
        return found

    def must_wait(self, id: str, now: float) -> bool:
        """Whether it was tried just now."""
        trouble = self._by_id.get(id)
        return trouble is not None and now < trouble.again_at

    def over(self, id: str) -> None:
        """It could be decided, or was set aside."""
        self._by_id.pop(id, None)

    def only(self, open_ids: Container[str]) -> None:
        """Forget those that are not among `open_ids`: somebody else could decide them."""
        self._by_id = {id: one for id, one in self._by_id.items() if id in open_ids}

    def described(self) -> list[str]:
        """One sentence each, for health."""
        return [
            f"{self._said.format(id)} {one.tries} times: {one.problem}"
            for id, one in sorted(self._by_id.items())
        ]


def delay_s(tries: int) -> float:
    """How long to wait after the n-th try: doubling, capped."""
    return min(_FIRST_S * 2.0 ** min(tries - 1, 10), _MOST_S)
