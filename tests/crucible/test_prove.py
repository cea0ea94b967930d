"""The guarantee under fire, small: ``dataplane prove`` runs longer, and on three servers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_doubled_and_no_byte_is_wrong_under_fire(tmp_path: Path) -> None:
    """A quarter of a minute of kills, pauses, cuts and damage, then the log and the disks speak."""
    command = [sys.executable, "-m", "dataplane", "prove", "--minutes", "0.25", "--seed", "11"]
    done = subprocess.run(
        [*command, "--kills", "3", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    report = json.loads(done.stdout)
    figures = report["verdict"]["figures"]
    assert (figures["lost"], figures["doubled"], figures["wrong_bytes"]) == (0, 0, 0)
    assert figures["chains"] > 0 and figures["kills_at_work"] > 0
    assert report["verdict"]["problems"] == []
    assert figures["with_bucket"] and figures["stored_checked"] > 0
    whys = figures["whys"]
    answered = whys["trigger"] + whys["rule"] + whys["fault"] + whys["report"]
    assert (answered, whys["unknown"]) == (500, [])
