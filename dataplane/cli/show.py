"""How answers look: the same rows as JSON for programs and as tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from dataplane.audit.causes import Step
from dataplane.audit.replay import describe
from dataplane.rows import ChainLine, plain
from dataplane.words import clock, size, summary
from streams.codec import Recorded

Row = Mapping[str, Any]
#: Where nobody looks at a screen, lines are as long as they need to be.
_WIDTH_OF_PIPES = 240
console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_PIPES)
errors = Console(stderr=True, width=None if sys.stderr.isatty() else _WIDTH_OF_PIPES)


def emit(
    lines: Sequence[Row | msgspec.Struct], columns: Sequence[str], *, as_json: bool, empty: str
) -> None:
    """Print rows: all their fields as JSON, or these columns as a table."""
    rows = [line if isinstance(line, Mapping) else plain(line) for line in lines]
    if as_json:
        print_json(rows)
        return
    if not rows:
        console.print(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = bool(rows) and isinstance(rows[0].get(column), int | float)
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(column, row.get(column))) for column in columns))
    console.print(table)


def words(value: Any) -> str:
    """A value that may hold others, in words: ``used 12 %, tier free``; "-" for nothing."""
    if isinstance(value, Mapping):
        return ", ".join(_named(name, inner) for name, inner in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value)) or "-"
    return "-" if value is None or value == "" else str(value)


def lines(name: str, value: Any) -> Iterator[str]:
    """A value with its name before it; of several sentences each has a line."""
    several = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
    if not (several and value):
        is_size = name.endswith("_bytes") and isinstance(value, int)
        value = [size(value) if is_size else words(value)]
    for number, text in enumerate(value):
        yield f"{'' if number else name:<14} {text}"


def _named(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{name.removesuffix('_bytes')} {size(value)}"
    return f"{name} ({words(value)})" if isinstance(value, Mapping) else f"{name} {words(value)}"


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=False))


def print_timeline(recorded: Recorded, *, as_json: bool) -> None:
    """One fact of a timeline; as JSON, one object a line."""
    if as_json:
        print(json.dumps(describe(recorded), ensure_ascii=False), flush=True)
        return
    line = Text()
    line.append(f"{recorded.sequence:>8} ", style="dim")
    line.append(f"{clock(recorded.time)} ", style="dim")
    line.append(f"{recorded.type:<26} ", style=_STYLES.get(recorded.type, "cyan"))
    line.append(f"{recorded.owner:<20.20} {recorded.config_key:<12} ")
    line.append(summary(recorded))
    console.print(line, soft_wrap=True)


def chain_tree(chain: ChainLine | None, history: Iterable[Recorded], id: str) -> Tree:
    """A chain's facts under what caused them, with the time since the trigger."""
    facts = list(history)
    start = facts[0].time if facts else 0.0
    tree = Tree(chain_title(chain, id))
    branches: dict[str, Tree] = {}
    for recorded in facts:
        line = Text(f"+{recorded.time - start:8.3f} s  ", style="dim")
        line.append(recorded.type, style=_STYLES.get(recorded.type, "cyan"))
        line.append(f"  {recorded.owner}", style="bold")
        line.append(f"  {summary(recorded)}", style="default")
        branches[recorded.id] = branches.get(recorded.cause, tree).add(line)
    return tree


def chain_title(chain: ChainLine | None, id: str) -> Text:
    """A chain and how it ended, in one line."""
    title = f"chain {id}" if chain is None else f"chain {id}: {chain.status}. {chain.reason}"
    return Text(title, style="bold")


def step_line(step: Step) -> Text:
    """One step of the way from a trigger to an end: how long it took, and who took so long."""
    line = Text(f"{step.seconds:9.3f} s ", style="bold")
    line.append(f"{step.share:4.0%}  ", style="dim")
    line.append(f"{step.cause.type} → {step.effect.type}")
    return line.append(f"  {step.effect.owner}", style="dim")


_STYLES = {
    "DATA_SYNC_COMPLETED": "bold green",
    "NEW_GAMES_AVAILABLE": "bold green",
    "TRANSFER_SUCCEEDED": "green",
    "DATA_SYNC_FAILED": "bold red",
    "TRANSFER_FAILED": "red",
    "EVENT_REJECTED": "bold red",
    "CHAIN_OVERDUE": "yellow",
}


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column.endswith("bytes"):
        return size(value)
    if isinstance(value, float) and (column.endswith("_at") or column in ("time", "mtime")):
        return clock(value)
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
