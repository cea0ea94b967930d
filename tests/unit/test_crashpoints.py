"""The named points at which processes are killed are those that there are."""

from __future__ import annotations

import re
from pathlib import Path

import dataplane
from dataplane.crashpoints import POINTS


def test_every_point_that_a_process_comes_by_is_one_at_which_it_can_be_told_to_die() -> None:
    """Those that no list names, nobody under fire would ever die at."""
    reached: set[str] = set()
    for file in Path(dataplane.__file__).parent.rglob("*.py"):
        # Called, or handed over to be called: ``reach("…")``, ``partial(reach, "…")``.
        reached |= set(re.findall(r'\breach[(,]\s*"([a-z.]+)"', file.read_text()))
    assert reached == set(POINTS)
