"""Many small files by one rsync: fetched under their own names into a directory of ours, then read.

What of them came before rsync ended is handed on, however it ended. Nothing here is believed, and
nothing outside that directory is written or read.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from adapters.errors import EntryMissing, PathEscapes, TransportError
from adapters.ssh.connections import source_file
from adapters.ssh.rsync_run import Run, through
from adapters.ssh.rsync_words import failure, many_words
from adapters.throttle import Throttle
from adapters.transport import Request, Take
from adapters.workers import finish
from streams.identity import PathRules, escapes

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


async def fetch_small(
    rsync: str, shell: list[str], requests: Sequence[Request], rules: PathRules, take: Take
) -> list[TransportError | None]:
    """As `FetchesMany.fetch_many`."""
    failed: list[TransportError | None] = [None] * len(requests)
    names: dict[int, str] = {}
    for number, request in enumerate(requests):
        try:
            names[number] = _name(request, rules)
        except TransportError as error:
            failed[number] = error
    if not names:
        return failed
    with tempfile.TemporaryDirectory(prefix="dataplane-") as place:
        ended = await _run(rsync, shell, requests[0], sorted(set(names.values())), place)
        await finish(lambda: _hand_on(Path(place), requests, names, ended, failed, take))
    return failed


async def _run(
    rsync: str, shell: list[str], request: Request, names: Sequence[str], place: str
) -> TransportError | None:
    """Let rsync bring these files; what it ended with."""

    async def begin(limit: float) -> Run:
        said = "\0".join(names).encode(errors="surrogateescape") + b"\0"
        return await Run.begin([rsync, *many_words(request, shell, place)], said)

    async def follow(run: Run) -> int:
        return run.done or 0

    try:
        # What a grant allows was waited for before so little is asked for.
        run = await through(begin, request, Throttle(), follow)
    except TransportError as error:
        return error
    return failure(run.status, run.said, request.source.node) if run.status else None


def _name(request: Request, rules: PathRules) -> str:
    """A file at the source as rsync is told of it, relative to the root of all."""
    name = source_file(request, rules).removeprefix("/")
    if escapes(name):
        raise PathEscapes(f"{name!r} is no clean path")
    return name


def _hand_on(
    place: Path,
    requests: Sequence[Request],
    names: dict[int, str],
    ended: TransportError | None,
    failed: list[TransportError | None],
    take: Take,
) -> None:
    for number, name in names.items():
        request = requests[number]
        data = _read(place / name, request.entry.size_bytes)
        if data is not None:
            take(number, data)
        elif ended is not None:
            failed[number] = type(ended)(str(ended))
        else:
            failed[number] = EntryMissing(
                f"{request.source.node} holds no file of {request.entry.size_bytes} bytes there"
            )


def _read(file: Path, size: int) -> bytes | None:
    """A file that came, if it has this size."""
    try:
        handle = os.open(file, _FLAGS)
    except OSError:
        return None
    try:
        data = os.read(handle, size + 1)
        return data if len(data) == size else None
    except OSError:
        return None
    finally:
        os.close(handle)
