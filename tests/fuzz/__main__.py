"""``python -m tests.fuzz --inputs 1000000``: so many inputs, spread over all decoders."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

from bench.report import begin, save
from tests.fuzz.running import feed, pelt
from tests.fuzz.targets import TARGETS

#: So many of the inputs are made by hypothesis, so many a target at most.
_MADE, _MOST_MADE = 0.05, 1_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Feed all targets, or one."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="one target, by name")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results")
    asked = parser.parse_args(arguments)
    targets = [target for target in TARGETS if asked.only in ("", target.name)]
    name = f"fuzz-{asked.only}" if asked.only else "fuzz"
    report = begin(name, asked.seed, program="tests.fuzz", inputs=asked.inputs, processes=1)
    began = time.monotonic()
    whole, total = sum(target.weight for target in targets), 0
    for target in targets:
        started = time.monotonic()
        each = math.ceil(asked.inputs * target.weight / whole)
        made = max(1, min(round(each * _MADE), _MOST_MADE))
        total += each
        feed(target, made, asked.seed)
        pelt(target, each - made, asked.seed)
        took = time.monotonic() - started
        report.add(target.name, [each], "inputs")
        print(f"{target.name:<24} {each:>8} inputs  {took:7.1f} s", flush=True)
    report.add("all", [total], "inputs without a crash or a hang, in bounded memory")
    report.add("duration", [time.monotonic() - began], "s")
    if asked.save:
        save(report)
    print(f"{total} inputs, seed {asked.seed}: no crash, no hang, memory bounded")


if __name__ == "__main__":
    main()
