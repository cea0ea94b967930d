"""Damaged files, as they were found to trouble who reads them."""

from __future__ import annotations

import io
import zipfile


def unreadable_archive() -> bytes:
    """A training set of which a name is said to be UTF-8 and is no text."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("ä.npy", b"\x93NUMPY\x01\x00")
    return made.getvalue().replace("ä".encode(), b"\xff\xff")
