"""Files of others and of this node, as a damaged disk or a killed writer leaves them."""

from __future__ import annotations

import io
import os
import sqlite3
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec
from hypothesis import strategies as st

from adapters.files import checks, sqlite
from adapters.files.reading import Reader
from adapters.files.walk import print_of
from streams.identity import PathRules
from tests.fuzz.spoiling import spoiled

_MEMBERS = st.sampled_from(["x.npy", "policy.npy", "spielfläche.npy", "archive/data.pkl"])
_SHAPES = st.sampled_from(
    ["(3,)", "(3, 2)", "()", "(0,)", f"({10**30},)", f"({2**62}, 1)", "(-1,)"]
)
_COMPRESSIONS = st.sampled_from(
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)


@st.composite
def _archives(draw: st.DrawFn) -> bytes:
    """Arrays as NumPy saves them, some of them with heads that nobody would write."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", draw(_COMPRESSIONS)) as archive:
        for name in draw(st.lists(_MEMBERS, max_size=3, unique=True)):
            shape = draw(_SHAPES)
            head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
            wide = draw(st.booleans())
            start = b"\x93NUMPY" + (b"\x02\x00" if wide else b"\x01\x00")
            length = struct.pack("<I" if wide else "<H", len(head))
            archive.writestr(name, start + length + draw(spoiled(st.just(head))) + bytes(24))
    return made.getvalue()


def _database(quality: object, mode: int, page_bytes: int) -> bytes:
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute(f"PRAGMA page_size = {page_bytes}")
        db.execute("CREATE TABLE games (id TEXT PRIMARY KEY, moves TEXT, quality)")
        db.execute("CREATE INDEX by_quality ON games (quality)")
        rows = [(f"g{number}", "e2e4" * number, quality) for number in range(30)]
        db.executemany("INSERT INTO games VALUES (?, ?, ?)", rows)
        db.commit()
        data = bytearray(db.serialize())
    # How it is to be written and read: with a journal, or as after a checkpoint of its WAL.
    data[18:20] = bytes([mode, mode])
    return bytes(data)


_DATABASES = st.builds(
    _database,
    st.sampled_from([None, 0.5, "nan", "inf", "good", b"\xff", 2**62]),
    st.sampled_from([1, 2]),
    st.sampled_from([512, 4096]),
)


@st.composite
def _overwritten(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of which some are others, as a disk damages a file: its length stays."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 6)) if data else 0):
        at = draw(st.integers(0, min(300, len(data) - 1)) | st.integers(0, len(data) - 1))
        new = draw(st.binary(min_size=1, max_size=4))
        data[at : at + len(new)] = new[: len(data) - at]
    return bytes(data)


def damaged(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return spoiled(whole) | _overwritten(whole) | st.binary(max_size=60)


@contextmanager
def _file(name: str, data: bytes) -> Iterator[Path]:
    """A file that has lain there for a while."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_bytes(data)
        os.utime(path, (1.7e9, 1.7e9))
        yield path


def look_inside(name: str, data: bytes) -> None:
    """As of a copy that came, and as of a file of this node's own."""
    with _file(name, data) as path:
        found = checks.look_inside(path, name)
        assert found.problem or found.samples is None or found.samples <= 1 << 40
        with suppress(sqlite.Unsound, sqlite.Unanswered):
            row = Reader(path.parent, "gpu-1", PathRules(), lambda: False)._row(
                name, print_of(path), None, None
            )
            msgspec.msgpack.encode(row)
            msgspec.json.encode(row)


def read_database(data: bytes) -> None:
    """Each way on its own: what one of them refuses must not keep it from the others."""
    with _file("hex8_2p.db", data) as path:
        for read in (
            sqlite.check,
            sqlite.count_games,
            sqlite.mean_quality,
            lambda path: sqlite.snapshot(path, path.with_suffix(".copy")),
        ):
            with suppress(sqlite.Unsound, sqlite.Unanswered):
                read(path)


ARCHIVES = damaged(_archives())
DATABASES = damaged(_DATABASES)
