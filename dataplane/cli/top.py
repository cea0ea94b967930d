"""``dataplane top``: the cluster at a glance on a terminal, drawn again and again.

It asks a coordinator over the bus, so it runs on any machine that reaches the bus.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dataplane.api import DataPlane
from dataplane.catalog import Catalog
from dataplane.cli import show
from dataplane.cli.app import LOOK, Json, app, config_of, run
from dataplane.config import DataPlaneConfig
from dataplane.motion import Motion, Moving, Traffic
from dataplane.overview import Overview, Severity, overview
from dataplane.queries import PREFIX
from dataplane.questions import ask_any
from dataplane.rows import ChainLine, TransferLine
from dataplane.words import counted, rate, short, size, span
from streams.log import Bus, LogUnavailable

#: Lines of each kind where a terminal tells no height.
_ROWS = 12
_ASK_S = 10.0
_HEAR_S = 0.7
_NODE_STYLES = {"in": "green", "to go": "yellow", "silent": "bold red", "out": "bold red"}
_STYLES = {
    "healthy": "bold green",
    "degraded": "bold yellow",
    "unhealthy": "bold red",
    "completed": "green",
    "failed": "bold red",
    "moving": "cyan",
    "closed": "green",
    "open": "bold red",
    "half-open": "yellow",
}


@app.command(rich_help_panel=LOOK)
def top(
    once: Annotated[bool, typer.Option("--once", help="Draw it once and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Watch the cluster: alerts, nodes, what moves, open chains. Ctrl-C ends it.

    Where no coordinator answers it shows what the views on this machine last knew.
    """
    config = config_of()
    try:
        run(_watch(config, once or as_json, interval, as_json))
    except LogUnavailable as error:
        known = last_known(config)
        show.errors.print(f"no coordinator answers: {error}", markup=False, highlight=False)
        if as_json:
            show.print_json(known)
        else:
            show.console.print(draw(known, None, _ROWS))


def last_known(config: DataPlaneConfig) -> Overview:
    """The picture by this machine's own views. Raises StoreMissing where there are none."""
    catalog = Catalog(config)
    try:
        with catalog.view() as view:
            return overview(
                view, now=time.time(), beats={}, last_sequence=None, policy=config.policy()
            )
    finally:
        catalog.close()


async def _watch(config: DataPlaneConfig, once: bool, interval: float, as_json: bool) -> None:
    async with DataPlane.connect(config=config) as plane:
        bus = (await plane.log()).bus
        if as_json:
            show.print_json(await glance(bus))
            return
        motion = Motion(bus)
        listening = asyncio.create_task(motion.run())
        try:
            if once:
                # Long enough for whoever moves something to say so.
                await asyncio.sleep(_HEAR_S)
                show.console.print(draw(await glance(bus), motion, _ROWS))
            else:
                await _follow(bus, motion, interval)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def glance(bus: Bus) -> Overview:
    """Ask a coordinator. Raises LogUnavailable if none is there."""
    answer = await ask_any(bus, f"{PREFIX}.overview", b"", _ASK_S)
    return msgspec.json.decode(answer, type=Overview)


async def _follow(bus: Bus, motion: Motion, interval: float) -> None:
    console = show.console
    # A screen of its own, without a thread: it is drawn from this loop alone.
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            rows = max(3, (console.height - 14) // 4)
            drawn: RenderableType
            try:
                drawn = draw(await glance(bus), motion, rows)
            except LogUnavailable as error:
                drawn = Text(f"no coordinator answers: {error}", "bold red")
            live.update(drawn, refresh=True)
            await asyncio.sleep(interval)


def draw(seen: Overview, motion: Motion | None, rows: int) -> Group:
    """The whole picture, with at most so many `rows` of each kind."""
    moving = motion.now() if motion else {}
    traffic = motion.traffic() if motion else {}
    parts: list[RenderableType] = [_title(seen)]
    for alert in seen.alerts[:rows]:
        style = "bold red" if alert.severity is Severity.CRITICAL else "yellow"
        parts.append(_cut(f"  {alert.severity}: {alert.text}", style))
    if len(seen.alerts) > rows:
        parts.append(Text(f"  and {len(seen.alerts) - rows} more", "yellow"))
    parts += [Text(), _nodes(seen, traffic, rows)]
    if seen.transfers:
        parts += [Text(), _transfers(seen.transfers, moving, rows)]
    if seen.chains:
        parts += [Text(), _chains(seen.chains, seen.time, rows)]
    return Group(*parts)


def _title(seen: Overview) -> Text:
    totals = seen.totals
    title = Text("dataplane ", "bold").append(seen.status, _STYLES[seen.status])
    title.append(
        f"  {totals.nodes_online}/{totals.nodes} nodes, "
        f"{counted(totals.entries, 'entry', 'entries')}, {size(totals.bytes)}, "
        f"{totals.under_replicated} with too few copies; "
        f"{totals.chains_open} chains open, {totals.transfers_in_flight} transfers run, "
        f"{totals.transfers_pending} wait; fact {totals.sequence}, lag {totals.lag}"
    )
    return title


def _nodes(seen: Overview, traffic: dict[str, Traffic], rows: int) -> Table:
    table = _table(
        *("node", "state", "disk", "free", "in", "out", "roles"),
        right=("free", "in", "out"),
        gives_way="roles",
    )
    # Who has trouble or is busy stands first; the rest is counted.
    order = sorted(
        seen.nodes,
        key=lambda n: (n.state == "in", n.node not in traffic, n.node),
    )
    for node in order[:rows]:
        used = node.disk_total_bytes - node.disk_free_bytes
        moves = traffic.get(node.node, Traffic())
        table.add_row(
            node.node,
            Text(node.state, _NODE_STYLES[node.state]),
            f"{used / node.disk_total_bytes:4.0%}" if node.disk_total_bytes else "-",
            size(node.disk_free_bytes),
            rate(moves.received) if moves.received else "-",
            rate(moves.sent) if moves.sent else "-",
            _cut(", ".join((*node.roles, *node.traits))),
        )
    if len(order) > rows:
        table.add_row(f"and {len(order) - rows} more")
    return table


def _transfers(lines: tuple[TransferLine, ...], moving: dict[str, Moving], rows: int) -> Table:
    table = _table(
        *("transfer", "from", "to", "progress", "", "rate", "size"),
        right=("", "rate", "size"),
        gives_way="transfer",
    )
    for line in lines[:rows]:
        one = moving.get(line.transfer)
        share = one.share if one else 0.0
        state = "waits" if line.state == "pending" else f"{share:4.0%}"
        table.add_row(
            _cut(line.path),
            line.source,
            line.target,
            ProgressBar(total=100, completed=100 * share, width=18),
            state,
            rate(one.rate) if one and one.rate else "-",
            size(line.size_bytes),
        )
    if len(lines) > rows:
        table.add_row(f"and {len(lines) - rows} more")
    return table


def _chains(lines: tuple[ChainLine, ...], now: float, rows: int) -> Table:
    table = _table(
        *("chain", "trigger", "config", "node", "state", "took", ""), right=("took",), gives_way=""
    )
    for line in lines[:rows]:
        took = (line.ended_at or now) - line.opened_at
        table.add_row(
            short(line.chain),
            line.trigger,
            line.config_key,
            line.node,
            Text(line.status, _STYLES.get(line.status, "yellow")),
            span(max(0.0, took)),
            _cut(line.reason),
        )
    return table


def _table(*columns: str, right: tuple[str, ...], gives_way: str) -> Table:
    """Where there is too little room, the column that `gives_way` is cut before any other."""
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column != gives_way,
        )
    return table


def _cut(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")
