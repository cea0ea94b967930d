"""A few foreign bytes against every decoder; many more by ``python -m tests.fuzz``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

from bench import report
from tests.fuzz.__main__ import main
from tests.fuzz.running import feed, pelt
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_foreign_bytes_are_a_value_or_the_declared_error(target: Target) -> None:
    """Nothing else comes out of a decoder, whatever comes in."""
    feed(target, 40)
    pelt(target, 200)


def test_a_decoder_that_crashes_is_found() -> None:
    """What is fed finds an error that is not declared."""

    def crash(data: bytes) -> None:
        if b"\x00" in data:
            raise KeyError(data)

    broken = Target("broken", st.binary(), crash, (ValueError,))
    with pytest.raises(KeyError):
        feed(broken, 300)
    with pytest.raises(KeyError):
        pelt(broken, 3000)


def test_what_was_fed_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever reads the figures can make them again."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    name = TARGETS[0].name
    main(["--inputs", "20", "--seed", "3", "--only", name, "--save"])
    kept = json.loads((tmp_path / f"fuzz-{name}.json").read_text())
    assert (kept["seed"], kept["parameters"]) == (3, {"inputs": 20, "processes": 1})
    assert kept["command"].startswith("python -m tests.fuzz") and kept["tree"] == report.tree()
    assert {line["what"]: line["value"] for line in kept["lines"]}["all"] == 20
    assert any(line["what"] == "duration" and line["value"] > 0 for line in kept["lines"])
