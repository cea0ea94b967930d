"""Each benchmark runs at its smallest size and says what it found; what it found is no test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from bench.__main__ import app

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
ROOT = Path(__file__).parents[2]
SMALLEST = {
    "chain": ("--chains", "1", "--rounds", "1", "--database-mb", "0.2", "--targets", "1"),
    "project": ("--events", "300", "--rounds", "1"),
    "audit": ("--events", "300"),
    "plan": ("--entries", "600", "--nodes", "20"),
    "load": ("--rate", "20", "--seconds", "2", "--agents", "3"),
    "land": ("--size-mib", "1", "--rounds", "1"),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_smallest_benchmark_prints_its_json(name: str, tmp_path: Path) -> None:
    """It ends well, names its machine, and has a positive number on every line."""
    command = [sys.executable, "-m", "bench", name, *SMALLEST[name], "--json"]
    done = subprocess.run(
        [*command, "--dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["name"] == name
    assert report["machine"]["cores"] > 0
    assert report["lines"] and all(line["value"] > 0 for line in report["lines"])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_benchmark_accepts_what_it_takes_for_granted(name: str) -> None:
    """An option left out stands within the limits that it sets for others."""
    for option in COMMANDS[name].params:
        least = getattr(option, "min", None)
        assert least is None or option.default >= least, option.name
