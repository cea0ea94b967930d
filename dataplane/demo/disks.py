"""What lies on the nodes' disks, held against what the log says lies there.

It asks no view and no process, and reads files with nothing but hashlib and sqlite3: what is
audited must not audit itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from streams import events
from streams.codec import Recorded
from streams.identity import PathRules
from streams.values import S3_NODE, DataEntry, DataType


class CopyAudit(msgspec.Struct):
    """The newest version of a file that a node received, as it lies on that node's disk."""

    target: str
    path: str
    checksum: str
    size_bytes: int
    games: int | None
    data_type: DataType = DataType.GAMES
    #: What is wrong with it; "" if it is the same byte for byte, sound, and counted right.
    problem: str = ""


def copies(facts: Sequence[Recorded], *, stored: bool = False) -> list[CopyAudit]:
    """What each node must hold now of what it received: the newest version of each path.

    What a node said to be damaged or gone since then is not among them. What is in the bucket,
    which lies on no disk, is among them if `stored`.
    """
    newest: dict[tuple[str, str], DataEntry] = {}
    catalogued: dict[tuple[str, str], DataEntry] = {}
    games: dict[tuple[str, str], int | None] = {}
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.FilesObserved):
            catalogued |= {(entry.path, entry.checksum): entry for entry in event.entries}
            for entry in event.entries:
                # It has written one of its own there: that is no copy any more.
                newest.pop((event.node, entry.path), None)
        elif isinstance(event, events.TransferSucceeded):
            place = event.target, event.entry.path
            before = newest.get(place)
            if (stored or event.target != S3_NODE) and (
                before is None or event.entry.version >= before.version
            ):
                newest[place], games[place] = event.entry, event.games
        elif isinstance(event, events.FilesRemoved):
            for path in event.paths:
                newest.pop((event.node, path), None)
        elif isinstance(event, events.FileQuarantined):
            held = newest.get((event.node, event.path))
            if held is not None and held.checksum == event.checksum:
                del newest[event.node, event.path]
    found = []
    for (target, path), entry in sorted(newest.items()):
        source = catalogued.get((path, entry.checksum))
        copy = CopyAudit(
            target, path, entry.checksum, entry.size_bytes, games[target, path], entry.data_type
        )
        if source is None:
            copy.problem = f"{entry.checksum} is in no catalogue: nobody ever held it"
        elif (source.size_bytes, source.games) != (copy.size_bytes, copy.games):
            copy.problem = f"the log says {source.games} games at its source, {copy.games} here"
        found.append(copy)
    return found


def examined(copy: CopyAudit, data_dir: Path) -> CopyAudit:
    """The same, with what is wrong with the file on the disk. Blocks; belongs in a thread."""
    if not copy.problem:
        local = data_dir / PathRules().local(copy.path, copy.target)
        try:
            copy.problem = _problem_with(local, copy)
        except OSError as error:
            copy.problem = f"can't be read: {error}"
        except sqlite3.Error as error:
            copy.problem = f"is no sound database: {error}"
    return copy


def gone(facts: Sequence[Recorded], data_dir: Callable[[str], Path]) -> list[str]:
    """Copies that were deleted, that nobody brought again, and that still lie there."""
    deleted: dict[tuple[str, str], str] = {}
    #: What came, or may have come, since its deletion was granted or its node said it is gone.
    again: set[tuple[str, str]] = set()
    for recorded in facts:
        event = recorded.event
        if isinstance(event, events.DeletionDone) and event.deleted:
            # It may be said long after the node has deleted: by then a copy may be there again.
            if (event.node, event.path) not in again:
                deleted[event.node, event.path] = event.checksum
            continue
        if isinstance(event, events.TransferSucceeded | events.TransferAssigned):
            # Of one that was only assigned the bytes may lie there, and nobody counts on them.
            came = {(event.target, event.entry.path)}
        elif isinstance(event, events.FilesObserved):
            came = {(event.node, entry.path) for entry in event.entries}
        else:
            if isinstance(event, events.DeletionGranted):
                again.discard((event.node, event.path))
            elif isinstance(event, events.FilesRemoved):
                again -= {(event.node, path) for path in event.paths}
            continue
        again |= came
        for place in came:
            deleted.pop(place, None)
    return [
        f"{path} on {node} was deleted, and still lies there"
        for (node, path), checksum in deleted.items()
        if _lies(data_dir(node) / PathRules().local(path, node), checksum)
    ]


def _lies(local: Path, checksum: str) -> bool:
    try:
        return checksum_of(local) == checksum
    except OSError:
        return False


def checksum_of(file: Path) -> str:
    """A file's checksum as the catalog writes it."""
    with file.open("rb") as opened:
        return "sha256:" + hashlib.file_digest(opened, "sha256").hexdigest()


def _problem_with(local: Path, copy: CopyAudit) -> str:
    checksum = checksum_of(local)
    if checksum != copy.checksum:
        return f"the file on the disk is {checksum}, not {copy.checksum}"
    if copy.data_type is not DataType.GAMES:
        return ""
    uri = f"{local.resolve().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
        sound = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
        counted = int(db.execute("SELECT count(*) FROM games").fetchone()[0])
    if sound != ["ok"]:
        return f"integrity_check: {'; '.join(sound[:3])}"
    if counted != copy.games:
        return f"{counted} games are in the file, {copy.games} in the log"
    return ""
