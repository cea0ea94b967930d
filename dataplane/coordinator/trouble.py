"""What could not be decided: how often each chain was tried, and when it is tried again.

Kept in memory alone. A process that forgets it begins to count anew, which costs time and nothing
else.
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

#: A chain is set aside when deciding it has failed so often.
MOST_TRIES = 5
_FIRST_S, _MOST_S = 1.0, 60.0


class Trouble(msgspec.Struct, frozen=True):
    """A chain whose decision raised an error."""

    tries: int
    #: Seconds since 1970.
    again_at: float
    problem: str

    @property
    def hopeless(self) -> bool:
        """Whether it was tried often enough."""
        return self.tries >= MOST_TRIES


class Troubles:
    """Chains in trouble, by id."""

    def __init__(self) -> None:
        self._chains: dict[str, Trouble] = {}

    def __len__(self) -> int:
        return len(self._chains)

    def __contains__(self, chain: str) -> bool:
        return chain in self._chains

    def failed(self, chain: str, error: Exception, now: float) -> Trouble:
        """Deciding it raised `error`: count that, and wait twice as long as before."""
        before = self._chains.get(chain)
        tries = 1 if before is None else before.tries + 1
        problem = f"{type(error).__name__}: {error}"
        found = self._chains[chain] = Trouble(tries, now + delay_s(tries), problem)
        return found

    def must_wait(self, chain: str, now: float) -> bool:
        """Whether it was tried just now."""
        trouble = self._chains.get(chain)
        return trouble is not None and now < trouble.again_at

    def over(self, chain: str) -> None:
        """It could be decided, or was set aside."""
        self._chains.pop(chain, None)

    def only(self, open_chains: Container[str]) -> None:
        """Forget those that are not among `open_chains`: somebody else could decide them."""
        self._chains = {id: one for id, one in self._chains.items() if id in open_chains}

    def described(self) -> list[str]:
        """One sentence each, for health."""
        return [
            f"chain {chain} could not be decided {one.tries} times: {one.problem}"
            for chain, one in sorted(self._chains.items())
        ]


def delay_s(tries: int) -> float:
    """How long to wait after the n-th try: doubling, capped."""
    return min(_FIRST_S * 2.0 ** min(tries - 1, 10), _MOST_S)
