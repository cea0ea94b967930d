"""Whether the log is still the one that this node has said its files to.

What was said once is not said again: where the log was rolled back by a restored backup, or made
anew, the node must find out by itself that less is known of it. It never decides what to say.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from streams.codec import Fact
from streams.log import Log, LogState, Receipt

_NAME = "footing"


class _Fact(msgspec.Struct, frozen=True):
    """A fact that the log had; 0: none."""

    sequence: int = 0
    id: str = ""


class _Known(msgspec.Struct, frozen=True):
    """What the log was like."""

    #: `LogState.origin`; "" if it was never looked at.
    origin: str = ""
    #: Its end when it was looked at.
    end: _Fact = _Fact()
    #: What this node said last since then.
    said: _Fact = _Fact()


class Footing:
    """The last that one node knows of the log; kept in `directory` over restarts."""

    def __init__(self, log: Log, directory: Path) -> None:
        self._log = log
        self._file = directory / _NAME
        self._known = _read(self._file)

    def is_behind(self, sequence: int) -> bool:
        """Whether a message from there comes again, or is of another log than the one known."""
        return sequence <= max(self._known.end.sequence, self._known.said.sequence)

    async def look(self) -> tuple[str, LogState]:
        """Why this is not the log of last time, "" if it is, and how far it goes now.

        Raises a `LogError`.
        """
        known, state = self._known, await self._log.state()
        if not known.origin:
            return "to which log it was said is not known", state
        if known.origin != state.origin:
            return "this is another log", state
        for fact in (known.end, known.said):
            if fact.sequence > state.last_sequence:
                back = f"the log was rolled back from {fact.sequence} to {state.last_sequence}"
                return back, state
            # What has left the log since can't be compared.
            if fact.sequence >= max(1, state.first_sequence):
                recorded = await self._log.get(fact.sequence)
                if recorded is None or recorded.id != fact.id:
                    text = f"the log holds another fact at {fact.sequence}: it was rolled back"
                    return text, state
        return "", state

    async def stand(self, state: LogState) -> None:
        """All is said to the log as it was at `state`. Raises a `LogError`."""
        recorded = await self._log.get(state.last_sequence) if state.last_sequence else None
        end = _Fact(recorded.sequence, recorded.id) if recorded else _Fact()
        self._keep(_Known(state.origin, end))

    def said(self, receipt: Receipt, last: Fact) -> None:
        """Something was said; `last` is the last fact of it."""
        if not receipt.duplicate:
            said = _Fact(receipt.sequence, last.id)
            self._keep(msgspec.structs.replace(self._known, said=said))

    def _keep(self, known: _Known) -> None:
        if known == self._known:
            return
        self._known = known
        fresh = self._file.with_name(self._file.name + ".new")
        # What is forgotten over a restart costs one comparison of log and disk.
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(msgspec.json.encode(known))
            fresh.replace(self._file)


def _read(file: Path) -> _Known:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Known)
    except (OSError, msgspec.DecodeError):
        return _Known()
