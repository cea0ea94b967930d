"""One merge of game databases in a process of its own, which can be killed at any time.

The agent's own process reads databases past SQLite, and closing such a file drops the locks that a
merge there would hold.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from adapters.errors import DiskFull
from adapters.files.gametables import NotMergeable
from adapters.files.merging import Merged, merge
from adapters.files.sqlite import Locked, Unsound
from dataplane.policy import Quality

_ERRORS: tuple[type[Exception], ...] = (NotMergeable, Unsound, Locked, DiskFull, OSError)


class Answer(msgspec.Struct, frozen=True):
    """What came of it: a result, or an error by its class and in words."""

    merged: Merged | None = None
    error_class: str = ""
    error: str = ""


async def merge_apart(target: Path, source: Path, quality: Quality, note: Path) -> Merged:
    """`merging.merge` elsewhere; if it is cancelled, what has been merged are whole games.

    What it had before the first of them came is noted in `note`, unless a merge that was killed has
    noted it before.

    Raises what that raises, and OSError if the process died.
    """
    words = (str(target), str(source), msgspec.json.encode(quality).decode(), str(note))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, *words), stdout=asyncio.subprocess.PIPE
    )
    try:
        said, _ = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    try:
        answer = msgspec.json.decode(said, type=Answer)
    except msgspec.DecodeError:
        raise OSError(f"the merge of {source.name} ended with {process.returncode}") from None
    if answer.merged is not None:
        return answer.merged
    kinds = {kind.__name__: kind for kind in _ERRORS}
    raise kinds.get(answer.error_class, OSError)(answer.error)


def noting(note: Path) -> Callable[[int], None]:
    """Notes once, so that it outlives a killed process, how many games were there before."""

    def begins(there: int) -> None:
        if not note.exists():
            fresh = note.with_suffix(".new")
            fresh.write_text(str(there))
            fresh.replace(note)

    return begins


def noted(note: Path) -> int | None:
    """How many games were there before; None where nothing was noted, or nothing legible."""
    with suppress(OSError, ValueError):
        return int(note.read_text())
    return None


def _answer(target: str, source: str, quality: str, note: str) -> Answer:
    complete_from = msgspec.json.decode(quality, type=Quality).complete_from
    try:
        begins = noting(Path(note))
        return Answer(merge(Path(target), Path(source), complete_from, begins=begins))
    except _ERRORS as error:
        kind = next(kind for kind in _ERRORS if isinstance(error, kind))
        return Answer(error_class=kind.__name__, error=str(error))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_answer(*sys.argv[1:])))
