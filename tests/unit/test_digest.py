"""Digests are of whole contents, however large a file is."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from adapters.files.digest import checksum_of, checksum_on_disk

SIZE = 24 << 20


@pytest.mark.parametrize("at", [0, 1, 4095, 1_234_567, SIZE // 2, SIZE - 4097, SIZE - 1])
def test_p9_one_byte_anywhere_makes_another_digest(tmp_path: Path, at: int) -> None:
    """Nothing is sampled: neither the first nor the last megabyte, nor every so many blocks."""
    file, other = tmp_path / "a", tmp_path / "b"
    for path in (file, other):
        path.touch()
        os.truncate(path, SIZE)
    with other.open("r+b") as changed:
        changed.seek(at)
        changed.write(b"x")
    assert checksum_of(file) == checksum_on_disk(file)
    assert checksum_of(file) != checksum_of(other)
    assert checksum_on_disk(file) != checksum_on_disk(other)


def test_p9_the_digest_is_that_of_any_other_tool(tmp_path: Path) -> None:
    """So that whoever has only the file and its name in a manifest can prove it."""
    file = tmp_path / "a"
    file.write_bytes(data := os.urandom(9_000_001))
    assert checksum_of(file) == f"sha256:{hashlib.sha256(data).hexdigest()}"
