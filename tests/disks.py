"""Small disks of their own, mounted for a test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, size_mib: int) -> Iterator[Path]:
    """A disk of so much, mounted at `place`, which is made if needed, unless it is gone before."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", str(place)]
    subprocess.run(words, check=True)
    try:
        yield place
    finally:
        # Lazily: something of the test may still look at it. The test may have taken it away.
        if place.is_mount():
            subprocess.run(["umount", "--lazy", str(place)], check=True)
