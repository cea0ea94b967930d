"""``python -m tests.simulation --schedules 50000``: many schedules, and what breaks a promise."""

from __future__ import annotations

import argparse
import concurrent.futures
import sys
import time
from collections.abc import Sequence
from functools import partial

from bench.report import begin, save
from tests.simulation.schedule import (
    drawn,
    drawn_in_rhythm,
    drawn_with_custody,
    drawn_with_drains,
)
from tests.simulation.search import Summary, search

_PIECE = 250
#: By the option that asks for them.
_KINDS = {"custody": drawn_with_custody, "ahead": drawn_in_rhythm, "drains": drawn_with_drains}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; exit status 1 if any breaks a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--custody", action="store_true", help="copies come and go: sweeper and deleter take part"
    )
    parser.add_argument("--ahead", action="store_true", help="data is brought ahead of trainings")
    parser.add_argument(
        "--drains", action="store_true", help="nodes are emptied, then wiped; some stay after all"
    )
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results")
    given = parser.parse_args(arguments)
    kind, draw = next((kind for kind in _KINDS.items() if getattr(given, kind[0])), ("", drawn))
    report = begin(
        f"simulation-{kind}".rstrip("-"),
        given.seed,
        program="tests.simulation",
        schedules=given.schedules,
        processes=given.processes,
    )
    began = time.monotonic()
    pieces = [
        range(start, min(start + _PIECE, given.seed + given.schedules))
        for start in range(given.seed, given.seed + given.schedules, _PIECE)
    ]
    total, found = Summary(0, 0, 0, 0, 0.0, []), []
    with concurrent.futures.ProcessPoolExecutor(given.processes) as pool:
        for one in pool.map(partial(search, draw=draw), pieces):
            total = Summary(
                total.schedules + one.schedules,
                total.chains + one.chains,
                total.facts + one.facts,
                total.steps + one.steps,
                0.0,
                [],
            )
            found += one.found
            for finding in one.found:
                print(finding, flush=True)
            took = time.monotonic() - began
            print(f"{total.schedules} schedules, {took:.0f} s, {len(found)} found", file=sys.stderr)
    took = time.monotonic() - began
    print(
        f"{total.schedules} schedules, {total.chains} chains, {total.facts} facts, {total.steps} "
        f"steps in {took:.0f} s on {given.processes} processes; {len(found)} break a promise"
    )
    for what in ("schedules", "chains", "facts", "steps"):
        report.add(what, [getattr(total, what)], "")
    report.add("schedules that break a promise", [len(found)], "")
    report.add("duration", [took], "s")
    if given.save:
        save(report)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
