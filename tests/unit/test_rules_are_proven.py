"""Each thing that must be impossible has a test that names it: this is the table of contents."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
#: What each rule forbids, in short; behind it the tests that fail without it are found by its id.
IMPOSSIBLE = {
    "P1": "a chain that breaks",
    "P2": "an exception that is swallowed",
    "P3": "completed although not every target has every byte",
    "P4": "two files with one name counted as two copies",
    "P5": "a smaller or older file in the place of a newer one",
    "P6": "a partial or mixed file under its final name",
    "P7": "a live database copied raw or changed by its copier",
    "P8": "a deletion because something is absent elsewhere",
    "P9": "a sampled digest taken for a whole one",
    "P10": "a manifest that names what is not there",
    "P11": "plans or history lost by a restart",
    "P12": "memory or processes in proportion to what is asked",
    "P13": "backpressure that starves training",
    "P14": "names that drift, or an invalid event that is dropped",
    "P15": "bytes or games that were not moved, told as moved",
    "P16": "candidates that never leave their node",
    "P17": "games or models that no scan finds",
    "P18": "standstill that looks like health",
    "P19": "a path that leaves the data root",
    "P20": "an event loop that is held up",
    "P21": "a merged database that is replaced",
    "P22": "same size taken for same content",
}


def cited() -> dict[str, set[str]]:
    """The files whose tests name each rule: in their names, their docstrings or their cases."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in sorted(TESTS.rglob("test_*.py")):
        if file == Path(__file__):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            said = ""
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                said = node.name.replace("_", " ") if node.name.startswith("test_") else ""
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said = node.value
            for rule in re.findall(r"\b[pP](\d{1,2})\b", said):
                found[f"P{rule}"].add(file.relative_to(TESTS).as_posix())
    return found


CITED = cited()


@pytest.mark.parametrize("rule", IMPOSSIBLE)
def test_what_must_be_impossible_is_proven_by_a_test(rule: str) -> None:
    """At least one test fails without the rule, and says so by its id."""
    assert CITED[rule], f"no test names {rule}: {IMPOSSIBLE[rule]}"


def test_no_test_names_a_rule_that_there_is_not() -> None:
    """A mistyped id would prove nothing to whoever looks for it."""
    assert sorted(set(CITED) - set(IMPOSSIBLE)) == []
