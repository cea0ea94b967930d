"""Whether a file is a sound file of its type, and what can be counted in it.

Reads copies at rest. It must never open what somebody may be writing, and never guess a count.
Whatever bytes a file holds, what is said of them is a problem in words, never another error: only
a disk that fails raises one.
"""

from __future__ import annotations

import errno
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from adapters.files import sqlite
from adapters.files.digest import BLOCK_BYTES
from streams.identity import GAME_DATABASE_SUFFIXES

_PICKLE_MAGIC = b"\x80"
_NPY_MAGIC = b"\x93NUMPY"
#: As NumPy writes it: ``{'descr': '<f4', 'fortran_order': False, 'shape': (100, 5), }``.
_SHAPE = re.compile(rb"'shape': ?\( ?([0-9]{1,18})L?[,)]")
_HEAD_BYTES = 1 << 12
#: No file holds more samples; a header that says so is none. What many files say must still add up
#: to a number that can be sent and stored.
_MOST_SAMPLES = 1 << 40
#: What NumPy writes; others can make much of little before one byte of it can be looked at.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: Of the arrays of one file, so much is read to see that it is what was written: as much as takes
#: seconds, however little it was made of.
_MOST_READ_BYTES = 4 << 30
#: What each member of an archive begins with.
_MEMBER_MAGIC = b"PK\x03\x04"
_LOOKED_INTO = {*GAME_DATABASE_SUFFIXES, ".npz", ".pth", ".pt", ".onnx", ".jsonl"}


class Inside(NamedTuple):
    """What was found in a file."""

    #: Why it is no sound file of its type; None if it is.
    problem: str | None = None
    games: int | None = None
    samples: int | None = None


def is_database(name: str) -> bool:
    """Whether a path is named like a SQLite database."""
    return _suffix(name) in GAME_DATABASE_SUFFIXES


def looks_inside(name: str) -> bool:
    """Whether files of this type are read again for what is wrong or can be counted in them."""
    return _suffix(name) in _LOOKED_INTO


def _suffix(name: str) -> str:
    """What a path's name says that it is, as `PurePath.suffix` has it, in lower case."""
    # Asked several times of each file, and ten times as fast as to make a path.
    stem, _, end = name.rpartition("/")[2].rpartition(".")
    return f".{end}".lower() if stem and end else ""


def look_inside(path: Path, name: str) -> Inside:
    """What is wrong with `path` as a file of the type that `name` says, and what it holds.

    Raises `OSError` only, where the disk fails. Blocks.
    """
    if problem := problem_in(path, name):
        return Inside(problem)
    try:
        return Inside(None, *counts_of(path, name))
    except (sqlite.Locked, sqlite.Unsound, sqlite.Unanswered) as error:
        return Inside(f"cannot be counted: {error}")


def problem_in(path: Path, name: str) -> str | None:
    """Why `path` is no sound file of the type that `name` says; None if it is.

    Raises `OSError` only, where the disk fails. Blocks.
    """
    suffix = _suffix(name)
    if is_database(name):
        return _problem_in_database(path)
    if suffix == ".npz":
        return _problem_in_archive(path, _read_arrays)
    if suffix in (".pth", ".pt"):
        return _problem_in_model(path)
    if suffix == ".onnx" and path.stat().st_size == 0:
        return "is empty"
    return None


def counts_of(path: Path, name: str) -> tuple[int | None, int | None]:
    """Games and samples read from the file itself; None for what it does not hold. Blocks.

    Raises `OSError`; of a database also `sqlite.Unsound` or `sqlite.Locked`.
    """
    suffix = _suffix(name)
    if is_database(name):
        return (sqlite.count_games(path) if path.stat().st_size else None), None
    if suffix == ".jsonl":
        return _count_lines(path), None
    if suffix == ".npz":
        return None, _count_samples(path)
    return None, None


def _problem_in_database(path: Path) -> str | None:
    # SQLite makes an empty database an empty file.
    if path.stat().st_size == 0:
        return None
    if not sqlite.is_sqlite(path):
        return "is no SQLite database"
    try:
        return sqlite.check(path)
    except sqlite.Locked as error:
        # Nobody writes a copy at rest: its bytes say that somebody had to repair it first.
        return f"cannot be read: {error}"


def _problem_in_archive(path: Path, look: Callable[[zipfile.ZipFile], None]) -> str | None:
    """What is wrong with an archive; `look` raises if it is something with its members."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            look(archive)
    except Exception as error:
        if _is_of_the_disk(error):
            raise
        return f"is no readable archive: {error}"
    return None if names else "is an archive without arrays"


def _read_arrays(archive: zipfile.ZipFile) -> None:
    """Read the arrays as NumPy does, which checks them against what was written."""
    left = _MOST_READ_BYTES
    for info in archive.infolist():
        if info.compress_type in _COMPRESSIONS and left:
            with archive.open(info) as member:
                while data := member.read(min(left, BLOCK_BYTES)):
                    left -= len(data)


def _find_members(archive: zipfile.ZipFile) -> None:
    """See that members are where the directory says. They are not read: PyTorch can be told to
    write no checksums, and what it writes instead fits nothing.
    """
    with Path(str(archive.filename)).open("rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset)
            if file.read(len(_MEMBER_MAGIC)) != _MEMBER_MAGIC:
                raise zipfile.BadZipFile(f"{info.filename} is not where its directory says")


def _problem_in_model(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(b"PK"):
        return _problem_in_archive(path, _find_members)
    return None if head.startswith(_PICKLE_MAGIC) else "is neither a zip archive nor a pickle"


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def _count_samples(path: Path) -> int | None:
    """The length of the first array that has one, from its header alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type not in _COMPRESSIONS:
                    return None
                with archive.open(info) as member:
                    length = _length_of(member.read(_HEAD_BYTES))
                if length is not None:
                    return length if length <= _MOST_SAMPLES else None
    except Exception as error:
        # Which ones damaged bytes lead to, nobody can list; a disk that fails is not theirs.
        if _is_of_the_disk(error):
            raise
        return None
    return None


def _length_of(head: bytes) -> int | None:
    """The first number of the shape in the head of an ``.npy`` file; None if it has none."""
    if not head.startswith(_NPY_MAGIC) or len(head) < 12:
        return None
    start = 12 if head[6] >= 2 else 10
    found = _SHAPE.search(head, start, start + int.from_bytes(head[8:start], "little"))
    return int(found.group(1)) if found else None


def _is_of_the_disk(error: Exception) -> bool:
    """Whether it says something of the disk and nothing of a file.

    Where the bytes say that something lies before the beginning, it is the system that objects.
    """
    return isinstance(error, OSError) and error.errno != errno.EINVAL
