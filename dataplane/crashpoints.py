"""Named points at which a process can be made to die, to prove that dying there loses nothing.

``DATAPLANE_KILL_AT=agent.landed`` kills the process with SIGKILL the first time it reaches that
point; ``agent.landed:3`` the third time. Without the variable a point costs a dictionary look-up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

#: Each place in a chain's way where a process holds something that is not yet said.
POINTS = (
    "agent.observed",
    "agent.fetching",
    "agent.gathered",
    "agent.landed",
    "agent.reported",
    "agent.pushing",
    "agent.stored",
    "agent.pushed",
    "agent.deleted",
    "agent.merged",
    "agent.relaying",
    "coordinator.decided",
    "coordinator.appended",
    "coordinator.admitted",
)
_reached: Counter[str] = Counter()


def reach(point: str) -> None:
    """Die here if the environment says so."""
    wanted = os.environ.get("DATAPLANE_KILL_AT")
    if not wanted:
        return
    name, _, count = wanted.partition(":")
    if name != point:
        return
    _reached[point] += 1
    if _reached[point] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
