"""What is said to rsync, and what it says: words on its command line, progress, exit codes. Pure.

A final name is never among the words, and the far end's shell never splits or expands a path.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from adapters.errors import DiskFailed, EntryMissing, Interrupted, Refused, Stalled, TransportError
from adapters.files.checks import is_database
from adapters.ssh.aside import Aside
from adapters.ssh.connections import address
from adapters.ssh.push import Place
from adapters.ssh.shell import meaning
from adapters.transport import Request
from streams.values import SMALL_BYTES, Endpoint

#: Below this rsync compares whole contents, above it size and time.
CHECKSUM_BELOW_BYTES = 100_000_000
#: Pages of SQLite; larger files would need too many digests of blocks.
DATABASE_BLOCK_BYTES = 4096
DATABASE_BLOCKS_BELOW_BYTES = 2 << 30
#: rsync itself speaks once a second.
SHORTEST_STALL_S = 2.0
_PROGRESS = re.compile(rb"(?:^|[\r\n])\s*(\d{1,18})\s+\d+%")
LITERAL = re.compile(rb"Literal data: (\d{1,18})")


def common_words(request: Request, shell: list[str], bytes_per_s: float) -> list[str]:
    """The words that every rsync of ours is started with."""
    words = [
        "--protect-args",
        "--copy-links",
        "--times",
        "--chmod=F644",
        "--inplace",
        "--outbuf=L",
        "--no-human-readable",
        "--info=progress2,stats2,flist0",
        f"--timeout={math.ceil(max(request.stall_s, SHORTEST_STALL_S)) + 1}",
        f"--rsh={quoted(shell)}",
    ]
    if bytes_per_s:
        words.append(f"--bwlimit={max(1, round(bytes_per_s / 1024))}")
    return words


def _checksum_words(request: Request) -> list[str]:
    return ["--checksum"] if request.entry.size_bytes < CHECKSUM_BELOW_BYTES else []


def pull_words(request: Request, shell: list[str], bytes_per_s: float, aside: Aside) -> list[str]:
    """The words that fetch one file, whose name is said on stdin, into a directory of ours.

    Names on the command line would be patterns to the far end. A file of another size than the
    entry's is not even begun.
    """
    size = request.entry.size_bytes
    words = common_words(request, shell, bytes_per_s) + _checksum_words(request)
    words += ["--files-from=-", "--from0", "--no-relative", "--no-dirs", "--no-implied-dirs"]
    words += [f"--min-size={size}b", f"--max-size={size}b"]
    if aside.basis is not None and not aside.file.exists():
        # Whatever its size and time are, it is no copy.
        words += ["--no-whole-file", f"--copy-dest={aside.basis}", "--ignore-times"]
        if is_database(request.entry.path) and size < DATABASE_BLOCKS_BELOW_BYTES:
            words.append(f"--block-size={DATABASE_BLOCK_BYTES}")
    else:
        words.append("--append")
    return [*words, "--", f"{_host(request.source)}:/", f"{aside.directory}/"]


def many_words(request: Request, shell: list[str], directory: Path) -> list[str]:
    """The words that fetch small files, whose names are said on stdin, under their own names into
    a directory of ours.
    """
    words = common_words(request, shell, 0)
    words += ["--files-from=-", "--from0", "--relative", "--no-dirs", "--no-implied-dirs"]
    words += [f"--max-size={SMALL_BYTES}b"]
    return [*words, "--", f"{_host(request.source)}:/", f"{directory}/"]


def push_words(
    request: Request, shell: list[str], bytes_per_s: float, file: Path, place: Place
) -> list[str]:
    """The words that send one file to where it gathers, from where it was."""
    words = common_words(request, shell, bytes_per_s) + _checksum_words(request)
    words.append("--append" if place.have else "--whole-file")
    # The far end would take a path for a pattern.
    there = re.sub(r"([][*?\\])", r"\\\1", place.path)
    return [*words, "--", str(file.absolute()), f"{_host(request.target)}:{there}"]


def quoted(words: list[str]) -> str:
    """Words as rsync splits them for its remote shell: a quote within quotes is doubled."""
    return " ".join("'" + word.replace("'", "''") + "'" for word in words)


def _host(endpoint: Endpoint) -> str:
    host = address(endpoint)
    return f"[{host}]" if ":" in host else host


def progress_in(said: bytes) -> int | None:
    """The last number of bytes done that rsync speaks of; None if it speaks of none."""
    found = _PROGRESS.findall(said)
    return int(found[-1]) if found else None


_BY_STATUS: dict[int, type[TransportError]] = {
    1: Refused,
    2: Refused,
    3: DiskFailed,
    4: Refused,
    5: Refused,
    6: Refused,
    11: DiskFailed,
    13: Refused,
    14: Refused,
    22: Refused,
    24: EntryMissing,
    30: Stalled,
    35: Stalled,
    124: Refused,
    125: Refused,
    126: Refused,
    127: Refused,
}
#: A file that became shorter while it was read, or can't be read to its end, is of no use either.
_MISSING = re.compile(
    r"\[sender\].*(No such file|Not a directory)|has vanished|read errors mapping", re.DOTALL
)
_UNREADABLE = re.compile(r"(?:send_files failed to open|link_stat|change_dir).*Permission denied")


def failure(status: int, said: str, who: str, holder: str = "") -> TransportError:
    """The error that an exit code of rsync and its last words mean; `holder` sends if not `who`."""
    if status in (23, 24) and _MISSING.search(said):
        holder = holder or who
        return EntryMissing(f"{holder} does not hold this content any more: {said.strip()}")
    if status == 23:
        kind: type[TransportError] = Refused if _UNREADABLE.search(said) else DiskFailed
        return meaning(said, who, kind)
    return meaning(said, who, _BY_STATUS.get(status, Interrupted))
