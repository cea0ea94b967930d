"""What a benchmark found: a table for people, JSON for machines, and the machine it was found on.

It must never judge: whether a number is good is said by the ratio beside it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from streams.server import find_binary

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("nats-py", "msgspec", "lmdb", "aiohttp")


class Line(msgspec.Struct, frozen=True):
    """One number, and what it is beside."""

    what: str
    value: float
    unit: str
    #: This number in terms of the one it is measured beside; None where it stands alone.
    ratio: float | None = None
    #: What the ratio is to.
    beside: str = ""
    #: What `value` is the median of, in the order of measuring.
    samples: tuple[float, ...] = ()


class Report(msgspec.Struct):
    """All that one run found."""

    name: str
    seed: int
    parameters: dict[str, Any]
    lines: list[Line] = []
    #: What bounds the numbers, for people.
    notes: list[str] = []
    command: str = ""
    date: str = ""
    machine: dict[str, Any] = {}
    #: Git's name of the source tree that was run; with a ``+`` where files differed from it.
    tree: str = ""

    def add(
        self,
        what: str,
        samples: Sequence[float],
        unit: str,
        ratio: float | None = None,
        to: str = "",
    ) -> None:
        """A number as the median of what was measured."""
        kept = tuple(round(sample, 6) for sample in samples)
        self.lines.append(Line(what, median(samples), unit, ratio, to, kept))


def begin(name: str, seed: int, *, program: str = "bench", **parameters: Any) -> Report:
    """An empty report of a run of ``python -m program`` that begins now, on this machine."""
    command = " ".join([f"python -m {program}", *sys.argv[1:]])
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Report(name, seed, parameters, [], [], command, date, machine(), tree())


def tree() -> str:
    """Git's name of the source tree this runs from; "" where there is no git to say it."""
    here = Path(__file__).parent.parent
    try:
        said = [
            subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD^{tree}"), ("status", "--porcelain", "-uno"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said[0] + ("+" if said[1] else "")


def machine() -> dict[str, Any]:
    """Where this was measured, and how busy it was with other things."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    versions |= {"python": platform.python_version(), "nats-server": _server_version()}
    versions |= {"curl": _first_line("curl", "--version")} if shutil.which("curl") else {}
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "kernel": f"{platform.system()} {platform.release()}",
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": versions,
    }


def median(samples: Sequence[float]) -> float:
    """The middle one."""
    return percentile(samples, 50)


def percentile(samples: Sequence[float], percent: float) -> float:
    """The sample that so many percent are not above, between two of them as far as it lies."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of adjacent measurements: noise that hits both cancels."""
    return median([one / other for one, other in zip(ours, theirs, strict=True)])


def show(report: Report) -> None:
    """Print it for people."""
    table = Table(title=f"bench {report.name}", title_justify="left", title_style="bold")
    table.add_column("what")
    table.add_column("median", justify="right")
    table.add_column("min to max", justify="right", style="dim")
    table.add_column("ratio", justify="right")
    table.add_column("beside")
    for line in report.lines:
        few = len(line.samples) < 2
        spread = "" if few else f"{_short(min(line.samples))} to {_short(max(line.samples))}"
        ratio = "" if line.ratio is None else f"{line.ratio:.2f} x"
        table.add_row(line.what, f"{_short(line.value)} {line.unit}", spread, ratio, line.beside)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table)
    for note in report.notes:
        console.print(f"- {note}")
    where = report.machine
    console.print(
        f"{where['cores']} x {where['processor']}, {where['memory_gib']} GiB, {where['kernel']}, "
        f"load {where['load_average'][0]}; seed {report.seed}; {report.date}",
        style="dim",
    )


def as_json(report: Report) -> str:
    """It for machines."""
    return msgspec.json.format(msgspec.json.encode(report)).decode()


def save(report: Report) -> Path:
    """Keep it under `RESULTS`; where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{report.name}.json"
    path.write_text(as_json(report) + "\n")
    return path


def _short(number: float) -> str:
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}" if abs(number) < 100 else f"{number:.0f}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _server_version() -> str:
    return _first_line(str(find_binary()), "--version").removeprefix("nats-server: ")


def _first_line(*command: str) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0]
