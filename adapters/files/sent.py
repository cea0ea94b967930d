"""The file that a push sends. It must be exactly as long as its entry, or nothing is sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from adapters.errors import EntryMissing


def opened(file: Path, size_bytes: int) -> BinaryIO:
    """Open it. Raises `EntryMissing` if it can't be read or has another size. Blocks."""
    try:
        handle = file.open("rb", buffering=0)
    except OSError as error:
        raise EntryMissing(f"{file} can't be sent: {error.strerror}") from error
    if os.fstat(handle.fileno()).st_size != size_bytes:
        handle.close()
        raise EntryMissing(f"{file} can't be sent: it has not {size_bytes} bytes")
    return handle
