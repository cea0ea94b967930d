"""Commands that show what is known now; they work while no daemon runs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from dataplane.api import DataPlane
from dataplane.audit.causes import where_time_went
from dataplane.audit.replay import chain_history, describe
from dataplane.audit.sources import LIVE
from dataplane.cli import show, views
from dataplane.cli.app import (
    LOOK,
    From,
    Json,
    TypeOption,
    app,
    config_of,
    run,
)
from dataplane.cli.asking import answered, either, elsewhere
from dataplane.config import ConfigError
from dataplane.health import HealthCheckResult
from dataplane.queries import (
    NOT_FOUND,
    AskCatalog,
    AskChain,
    AskChains,
    AskHealth,
    AskMissing,
    AskNodes,
    AskPlans,
    AskWhere,
)
from dataplane.rows import ChainLine, EntryLine
from projections.store import StoreMissing
from projections.travel import PointNotHeld
from streams.codec import Recorded
from streams.log import LogError, LogUnavailable
from streams.micro import ServiceRefusal

catalog_app = typer.Typer(no_args_is_help=True, help="What is where.")
app.add_typer(catalog_app, name="catalog", rich_help_panel=LOOK)


@app.command(rich_help_panel=LOOK)
def status(as_json: Json = False) -> None:
    """Whether the data plane does its work. Exit status 1 if it does not."""

    async def check() -> HealthCheckResult:
        async with DataPlane.connect(config=config_of()) as plane:
            return await plane.health_by_views()

    health: HealthCheckResult = either(lambda: run(check()), "health", AskHealth())
    if as_json:
        show.print_json(health)
    else:
        show.console.print(f"{health.status}: {health.message}", highlight=False)
        for name, value in health.details.items():
            for line in show.lines(name, value):
                show.console.print(f"  {line}", highlight=False, markup=False)
    raise typer.Exit(0 if health.healthy else 1)


@app.command(rich_help_panel=LOOK)
def nodes(as_json: Json = False) -> None:
    """All nodes that ever joined, and when they were last heard."""
    from dataplane.presence import present

    async def beats() -> dict[str, dict[str, Any]]:
        with contextlib.suppress(LogError):
            async with DataPlane.connect(config=config_of()) as plane:
                return await present((await plane.log()).bus)
        return {}

    heard = {} if views.moment or elsewhere() else run(beats())
    rows = answered("nodes", AskNodes(), heard)
    columns = [
        "node",
        "roles",
        "traits",
        "planned_for",
        "leaving",
        "seen_s_ago",
        "disk_free_bytes",
        "http_url",
        "reachable",
        "ssh_reachable",
        "not_from",
    ]
    show.emit(rows, columns, as_json=as_json, empty="no node has joined yet")


@catalog_app.command("ls")
def catalog_ls(
    node: Annotated[str, typer.Option(help="Only what this node holds.")] = "",
    config_key: Annotated[str, typer.Option("--config-key", help="Only this one.")] = "",
    data_type: TypeOption = None,
    as_json: Json = False,
) -> None:
    """Every entry that somebody holds."""
    _print_entries(answered("catalog", AskCatalog(node, config_key, data_type)), as_json)


@app.command(rich_help_panel=LOOK)
def where(path: str, as_json: Json = False) -> None:
    """Who holds a file, and which version."""
    rows: list[EntryLine] = []
    try:
        rows = answered("where", AskWhere(path))
    except ServiceRefusal as refusal:
        if refusal.code != NOT_FOUND:
            raise
    _print_entries(rows, as_json, empty=f"nobody holds {path}")
    raise typer.Exit(0 if rows else 1)


@app.command(rich_help_panel=LOOK)
def missing(node: str, data_type: TypeOption = None, as_json: Json = False) -> None:
    """What belongs on a node and is not there."""
    rows = answered("missing", AskMissing(node, data_type))
    _print_entries(rows, as_json, empty=f"{node} has all that belongs there")


def _print_entries(rows: Sequence[EntryLine], as_json: bool, empty: str = "nothing") -> None:
    columns = ["path", "type", "config_key", "size_bytes", "games", "locations", "version"]
    show.emit(rows, columns, as_json=as_json, empty=empty)


@app.command(rich_help_panel=LOOK)
def plans(as_json: Json = False) -> None:
    """Transfers that wait or run, in the order in which they go, and why each waits."""
    rows = answered("plans", AskPlans())
    columns = [
        "state",
        "priority",
        "path",
        "source",
        "target",
        "size_bytes",
        "attempts",
        "waits_for",
        "last_error",
    ]
    show.emit(rows, columns, as_json=as_json, empty="nothing is pending")


@app.command(rich_help_panel=LOOK)
def chains(
    last: Annotated[int, typer.Option(min=0, help="How many ended ones.")] = 20,
    as_json: Json = False,
) -> None:
    """Open chains, then those that ended last."""
    rows = answered("chains", AskChains(last))
    columns = [
        "chain",
        "trigger",
        "config_key",
        "node",
        "status",
        "games",
        "bytes",
        "seconds",
        "reason",
    ]
    show.emit(rows, columns, as_json=as_json, empty="no chain yet")


@app.command(rich_help_panel=LOOK)
def chain(
    id: str,
    tree: Annotated[bool, typer.Option("--tree", help="What caused what, fact by fact.")] = False,
    source: From = LIVE,
    as_json: Json = False,
) -> None:
    """One chain: how it ended and where its time went; with --tree what caused what.

    The beginning of an id is enough where only one chain begins so.
    """
    views.look_at(source=source)
    row = row_of(id)
    if row is not None:
        id = row.chain
    facts: list[Recorded] = []
    try:
        with views.open_views() as found:
            facts = found.consult(lambda log: chain_history(log, id))
    except LogUnavailable as error:
        if row is None:
            raise
        show.errors.print(f"its facts can't be read: {error}", markup=False)
    if not facts and row is None:
        raise ConfigError(f"there is no chain {id!r}")
    if as_json:
        show.print_json({"chain": row, "facts": [describe(fact) for fact in facts]})
        return
    show.console.print(show.chain_tree(row, facts, id) if tree else show.chain_title(row, id))
    for step in where_time_went(facts):
        show.console.print(show.step_line(step), soft_wrap=True)


def row_of(beginning: str) -> ChainLine | None:
    """The one chain whose id begins so; None if it is none or many, or nobody can be asked."""
    with contextlib.suppress(StoreMissing, ServiceRefusal, LogUnavailable, PointNotHeld):
        found: ChainLine = answered("chain", AskChain(beginning))
        return found
    return None
