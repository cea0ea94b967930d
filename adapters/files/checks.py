"""Whether a file is a sound file of its type, and what can be counted in it.

Reads copies at rest. It must never open what somebody may be writing, and never guess a count.
"""

from __future__ import annotations

import ast
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from adapters.files import sqlite
from adapters.files.digest import BLOCK_BYTES
from streams.identity import GAME_DATABASE_SUFFIXES

_PICKLE_MAGIC = b"\x80"
_NPY_MAGIC = b"\x93NUMPY"
_LOOKED_INTO = {*GAME_DATABASE_SUFFIXES, ".npz", ".pth", ".pt", ".onnx", ".jsonl"}
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def is_database(name: str) -> bool:
    """Whether a path is named like a SQLite database."""
    # Most names are ruled out without making a path of them.
    return name.lower().endswith(GAME_DATABASE_SUFFIXES) and bool(PurePosixPath(name).suffix)


def looks_inside(name: str) -> bool:
    """Whether files of this type are read again for what is wrong or can be counted in them."""
    return f".{name.rpartition('.')[2]}".lower() in _LOOKED_INTO


def problem_in(path: Path, name: str) -> str | None:
    """Why `path` is no sound file of the type that `name` says; None if it is. Blocks."""
    suffix = PurePosixPath(name).suffix.lower()
    if is_database(name):
        return _problem_in_database(path)
    if suffix == ".npz":
        return _problem_in_archive(path)
    if suffix in (".pth", ".pt"):
        return _problem_in_model(path)
    if suffix == ".onnx" and path.stat().st_size == 0:
        return "is empty"
    return None


def counts_of(path: Path, name: str) -> tuple[int | None, int | None]:
    """Games and samples read from the file itself; None for what it does not hold. Blocks."""
    suffix = PurePosixPath(name).suffix.lower()
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
    return sqlite.check(path)


def _problem_in_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _BROKEN_ZIP as error:
        return f"is no readable archive: {error}"
    return None if names else "is an archive without arrays"


def _problem_in_model(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(b"PK"):
        return _problem_in_archive(path)
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
            for name in archive.namelist():
                with archive.open(name) as member:
                    shape = _shape_of(member.read(1 << 12))
                if shape:
                    return shape[0]
    except (*_BROKEN_ZIP, OSError):
        return None
    return None


def _shape_of(head: bytes) -> tuple[int, ...]:
    """The shape in the head of an ``.npy`` file; () if it has none or is none."""
    if not head.startswith(_NPY_MAGIC) or len(head) < 12:
        return ()
    wide = head[6] >= 2
    start = 12 if wide else 10
    (length,) = struct.unpack("<I" if wide else "<H", head[8:start])
    try:
        header = ast.literal_eval(head[start : start + length].decode("latin-1").strip())
    except (ValueError, SyntaxError):
        return ()
    shape = header.get("shape") if isinstance(header, dict) else None
    sound = isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)
    return shape if sound and shape is not None else ()
