"""Many small files by one rsync: fetched under their own names into a directory of ours, then taken
from there.

What of them came before rsync ended is handed on, however it ended. Nothing here is believed, and
nothing outside that directory is written or read.
"""

from __future__ import annotations

import shutil
import stat
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from adapters.errors import EntryMissing, PathEscapes, TransportError
from adapters.files.partial import disk_errors
from adapters.files.places import OWN_DIRECTORY
from adapters.ssh.aside import sweep
from adapters.ssh.connections import source_file
from adapters.ssh.rsync_run import Run, through
from adapters.ssh.rsync_words import failure, many_words
from adapters.throttle import Throttle
from adapters.transport import Brought, Request, Take
from adapters.workers import finish, turn
from streams.identity import PathRules, escapes


async def fetch_small(
    rsync: str,
    shell: list[str],
    requests: Sequence[Request],
    rules: PathRules,
    take: Take,
    root: Path,
) -> list[TransportError | None]:
    """As `FetchesMany.fetch_many`, by way of the disk of this data root."""
    failed: list[TransportError | None] = [None] * len(requests)
    names: dict[int, str] = {}
    for number, request in enumerate(requests):
        try:
            names[number] = _name(request, rules)
        except TransportError as error:
            failed[number] = error
    if not names:
        return failed
    place = root / OWN_DIRECTORY / "rsync" / uuid.uuid4().hex
    try:
        await finish(lambda: _make(place))
        asked = [requests[number] for number in names]
        ended = await _run(rsync, shell, asked, sorted(set(names.values())), place)
        await finish(lambda: _hand_on(place, requests, names, ended, failed, take))
    finally:
        await finish(lambda: shutil.rmtree(place, ignore_errors=True))
    return failed


def _make(place: Path) -> None:
    """Make a directory of ours."""
    with disk_errors():
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place)
        place.mkdir()


async def _run(
    rsync: str, shell: list[str], requests: Sequence[Request], names: Sequence[str], place: Path
) -> TransportError | None:
    """Let rsync bring these files; what it ended with."""
    request, others = requests[0], len(requests) - 1
    who, what = request.source.node, request.entry.path
    if others:
        what += f" and {others} other{'s' * (others > 1)}"

    async def begin(limit: float) -> Run:
        said = "\0".join(names).encode(errors="surrogateescape") + b"\0"
        return await Run.begin([rsync, *many_words(request, shell, place)], said)

    async def follow(run: Run) -> int:
        return run.done or 0

    try:
        # What a grant allows was waited for before so little is asked for.
        run = await through(begin, who, what, request, Throttle(), follow)
    except TransportError as error:
        return error
    return failure(run.status, run.said, f"{who}, asked for {what}") if run.status else None


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
    # A content may be wanted under several paths, but its file can be moved only once.
    left = Counter(names.values())
    came = list[tuple[int, Brought]]()
    for number, name in names.items():
        file, size = place / name, requests[number].entry.size_bytes
        left[name] -= 1
        if _came(file, size) and left[name]:
            take([(number, file.read_bytes())])
        elif _came(file, size):
            came.append((number, file))
        elif ended is not None:
            failed[number] = type(ended)(str(ended))
        else:
            who, what = requests[number].source.node, requests[number].entry.path
            failed[number] = EntryMissing(f"{who} has no {what} of {size} bytes")
    if came:
        with turn():
            take(came)


def _came(file: Path, size: int) -> bool:
    """Whether a file came, and has this size."""
    try:
        found = file.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size
