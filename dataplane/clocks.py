"""A clock that jumps: seen by holding it against one that never does.

Order comes from the log's sequences and no decision compares two machines' clocks, so a jump breaks
no promise; but limits that are counted by it come early or late, and people should know why.
"""

from __future__ import annotations

#: A clock that is set right by less than this is only being kept right.
JUMP_S = 5.0
#: For how long a jump is named.
NAMED_S = 900.0


class ClockWatch:
    """Looks at two clocks now and then."""

    def __init__(self, jump_s: float = JUMP_S) -> None:
        self._jump_s = jump_s
        self._apart: float | None = None
        self._named_until = 0.0
        self._said = ""

    def look(self, wall: float, steady: float) -> str:
        """What is wrong, for a while after a jump; "" if nothing is.

        `wall` is seconds since 1970, `steady` any clock that goes at the same pace and never jumps.
        """
        apart = wall - steady
        jump = 0.0 if self._apart is None else apart - self._apart
        self._apart = apart
        if abs(jump) > self._jump_s:
            way = "ahead" if jump > 0 else "back"
            self._said = f"this machine's clock jumped {abs(jump):.0f} s {way}"
            self._named_until = steady + NAMED_S
        return self._said if steady < self._named_until else ""
