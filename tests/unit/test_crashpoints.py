"""The named points at which processes are killed are those that there are."""

from __future__ import annotations

import re
from pathlib import Path

import dataplane
from dataplane.crashpoints import POINTS


def test_every_point_that_a_process_comes_by_is_one_at_which_it_can_be_told_to_die() -> None:
    """Those that no list names, nobody under fire would ever die at."""
    sources = Path(dataplane.__file__).parent.rglob("*.py")
    reached = {one for file in sources for one in re.findall(r'reach\("(.+?)"\)', file.read_text())}
    assert reached == set(POINTS)
