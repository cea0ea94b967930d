"""The demo as people see it: a live picture on a terminal, lines elsewhere. It changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from rich.console import Console, Group, JustifyMethod
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dataplane.demo.children import Child
from dataplane.demo.cluster import COORDINATOR, DemoCluster
from dataplane.demo.picture import ChainLine, Picture, TransferLine
from dataplane.words import short, size

_REFRESH_S = 0.25
#: Rows of each of chains, transfers and journal, where the terminal is high enough.
_MOST_ROWS = 8
#: Rows that are always there, besides one for each node.
_OTHER_ROWS = 10
_STYLES = {
    "running": "green",
    "killed": "bold red",
    "completed": "green",
    "failed": "bold red",
    "moving": "cyan",
}


@contextlib.asynccontextmanager
async def shown(
    console: Console, cluster: DemoCluster, picture: Picture, *, live: bool
) -> AsyncIterator[None]:
    """Show the demo while the context lasts; at its end everything said so far is shown."""
    drawing = _Live(console, cluster, picture) if live else _Lines(console, picture)
    with drawing:
        task = asyncio.create_task(_refresh(drawing))
        try:
            yield
        finally:
            task.cancel()
            drawing.draw()


async def _refresh(drawing: _Live | _Lines) -> None:
    while True:
        drawing.draw()
        await asyncio.sleep(_REFRESH_S)


class _Lines:
    """The journal, a line each."""

    def __init__(self, console: Console, picture: Picture) -> None:
        self._console, self._picture = console, picture
        self._told = 0

    def __enter__(self) -> None:
        """Nothing is to be prepared."""

    def __exit__(self, *_: object) -> None:
        """Nothing is to be cleared."""

    def draw(self) -> None:
        """Print what is new."""
        lines = self._picture.journal
        for at, text in lines[self._told :]:
            self._console.print(_line(at, text), soft_wrap=True)
        self._told = len(lines)


class _Live:
    """Nodes, chains and transfers, drawn again and again in one place."""

    def __init__(self, console: Console, cluster: DemoCluster, picture: Picture) -> None:
        self._cluster, self._picture = cluster, picture
        self._height = console.height
        # Without a thread of its own: it reads what the event loop changes.
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def draw(self) -> None:
        """Draw it as it is now."""
        rows = (self._height - _OTHER_ROWS - len(self._cluster.roles)) // 3
        rows = max(2, min(_MOST_ROWS, rows))
        picture = draw(self._cluster, self._picture, time.time(), rows)
        self._live.update(picture, refresh=True)


def draw(cluster: DemoCluster, picture: Picture, now: float, rows: int) -> Group:
    """The whole picture at `now`, seconds since 1970, with at most so many `rows` of each kind."""
    chains = picture.chains.values()
    ended = [chain for chain in chains if not chain.open]
    title = Text(f"dataplane demo  {now - picture.started_at:.1f} s", "bold", no_wrap=True)
    title.append(
        f"   {len(chains)} of {cluster.expected_chains} chains, {len(ended)} ended, "
        f"{picture.copies} copies, {size(picture.bytes_moved)}",
        style="default",
    )
    journal = [_line(at, text) for at, text in picture.journal[-rows:]]
    return Group(
        title,
        Text(),
        _nodes(cluster, picture),
        Text(),
        _chains(picture, ended, now, rows),
        Text(),
        _transfers(picture, rows),
        Text(),
        *journal,
    )


def _nodes(cluster: DemoCluster, picture: Picture) -> Table:
    children = {child.name: child for child in cluster.children()}
    kills = {kill.name: kill.during for kill in cluster.kills}
    table = _table("node", "process", "state", "games", "", flexible="")
    for name in (COORDINATOR, *cluster.roles):
        child = children.get(name)
        player = children.get(f"{name}.player")
        state = child.status if child else "not started"
        games = "" if name == COORDINATOR else str(picture.games_on(name))
        table.add_row(
            name,
            str(child.pid if child else ""),
            _styled(state),
            games,
            _cut(_remark(player, kills.get(name, ""))),
        )
    return table


def _remark(player: Child | None, killed_during: str) -> str:
    if killed_during:
        return f"was killed while {killed_during}"
    if player is None:
        return ""
    return "plays" if player.status == "running" else "has played"


def _chains(picture: Picture, ended: list[ChainLine], now: float, rows: int) -> Table:
    table = _table("chain", "config", "node", "state", "games", "seconds")
    latest = picture.open_chains()[:rows]
    latest += sorted(ended, key=lambda chain: -chain.ended_at)[: rows - len(latest)]
    for chain in latest:
        table.add_row(
            short(chain.id),
            chain.config_key,
            chain.node,
            _styled(chain.status),
            str(chain.games or ""),
            f"{(chain.ended_at or now) - chain.opened_at:.1f}",
        )
    return table


def _transfers(picture: Picture, rows: int) -> Table:
    table = _table("transfer", "to", "progress", "", "size", flexible="transfer")
    for line in list(picture.transfers.values())[:rows]:
        table.add_row(
            _cut(line.path), line.target, _bar(line), f"{line.share:4.0%}", size(line.total)
        )
    return table


def _bar(line: TransferLine) -> ProgressBar:
    return ProgressBar(total=max(1, line.total), completed=line.done, width=20)


def _table(*columns: str, flexible: str | None = None) -> Table:
    """A table of which `flexible` is the column that gives way on a narrow terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in columns:
        right = column in ("games", "seconds", "process", "size")
        justify: JustifyMethod = "right" if right else "left"
        table.add_column(column, justify=justify, no_wrap=column != flexible)
    return table


def _cut(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _styled(state: str) -> Text:
    return Text(state, style=_STYLES.get(state, "default"))


def _line(at: float, text: str) -> Text:
    line = Text(f"{at:6.1f} s  ", style="dim", no_wrap=True, overflow="ellipsis")
    return line.append(text, style="default")
