"""The ``dataplane`` command. It asks, shows and starts; what it shows comes from elsewhere.

Exit status: 0 done; 1 it failed, or what was asked about is not well; 2 the call or the
configuration is wrong; 3 the bus can't be reached; 4 there are no views here; 5 the bus refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import Coroutine, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.logging import RichHandler

from dataplane import show
from dataplane.api import DataPlane, Published, SyncResult
from dataplane.catalog import Catalog
from dataplane.config import CONFIG_FILE, TEMPLATE, ConfigError, DataPlaneConfig, default_node
from dataplane.daemon import Part, run_parts, supervise
from dataplane.replay import chain_history, describe, timeline, verify
from dataplane.schema import asyncapi
from projections.store import StoreError, StoreMissing
from streams.events import CHAIN_TRIGGERS, EVENT_TYPES
from streams.log import LogError, LogUnavailable, PermissionDenied
from streams.subjects import Place, place_of
from streams.values import DataType, SyncPriority

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Where the cluster's data is, where it should go, and what became of it.",
    epilog="Exit status: 0 done, 1 failed or unwell, 2 wrong call or configuration, "
    "3 bus out of reach, 4 no views here, 5 refused by the bus.",
)
catalog_app = typer.Typer(no_args_is_help=True, help="What is where.")
app.add_typer(catalog_app, name="catalog")

Json = Annotated[bool, typer.Option("--json", help="JSON for programs instead of tables.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help=f"Default: {CONFIG_FILE}.")]
Nats = Annotated[str | None, typer.Option("--nats", help="URL(s) of the bus.")]
Node = Annotated[str | None, typer.Option("--node", help="This node's name.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="What is watched and received.")]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Log, views, outbox.")]
TypeOption = Annotated[DataType | None, typer.Option("--type", help="Only this type of data.")]

_arguments: dict[str, Any] = {}


@app.callback()
def common(
    config: ConfigOption = None,
    state_dir: StateDir = None,
    nats: Nats = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Options for every command; each can also stand in the configuration."""
    _arguments.update(path=config, state_dir=state_dir, nats_url=nats)
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(name)s: %(message)s",
        handlers=[RichHandler(console=show.errors, show_path=False)],
    )
    for noisy in ("aiohttp.access", "watchfiles.main", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _config(**more: Any) -> DataPlaneConfig:
    given = {name: value for name, value in more.items() if value is not None}
    return DataPlaneConfig.load(**{**_arguments, **given})


# Processes


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path(CONFIG_FILE),
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Write a commented configuration."""
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; --force overwrites it")
    path.write_text(TEMPLATE.replace("{node}", default_node()))
    show.console.print(f"wrote {path}; next: dataplane up")


@app.command()
def up(node: Node = None, data_dir: DataDir = None) -> None:
    """Run a bus, a coordinator and an agent on this machine, and keep them alive."""
    config = _config(node=node, data_dir=data_dir)
    raise typer.Exit(supervise(config, _as_environment(node=node, data_dir=data_dir)))


@app.command()
def coordinator(node: Node = None) -> None:
    """Run a coordinator. Several may run; they decide each thing once."""
    raise typer.Exit(run_parts(_config(node=node), [Part.COORDINATOR]))


@app.command()
def agent(
    node: Node = None,
    data_dir: DataDir = None,
    nats: Nats = None,
    roles: Annotated[str | None, typer.Option(help="Comma separated: training,selfplay…")] = None,
) -> None:
    """Join as a node: say what it holds, serve it, receive what it should have."""
    config = _config(
        node=node, data_dir=data_dir, nats_url=nats, roles=roles.split(",") if roles else None
    )
    raise typer.Exit(run_parts(config, [Part.AGENT]))


@app.command()
def demo(
    nodes: Annotated[int, typer.Option(min=2, help="Agents; half of them train.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Self-play rounds of each node.")] = 3,
    keep: Annotated[Path | None, typer.Option(help="Keep all files there.")] = None,
    as_json: Json = False,
) -> None:
    """Watch self-play games reach the trainers while processes are killed."""
    from dataplane.demo.run import run_demo

    raise typer.Exit(run_demo(nodes=nodes, rounds=rounds, keep=keep, as_json=as_json))


def _as_environment(**arguments: Any) -> dict[str, str]:
    """Arguments for child processes, which read the environment."""
    config_path = _arguments.get("path")
    given = {"state_dir": _arguments.get("state_dir"), "config": config_path, **arguments}
    return {f"DATAPLANE_{k.upper()}": str(v) for k, v in given.items() if v is not None}


# Saying and asking


@app.command()
def publish(
    type_name: Annotated[str, typer.Argument(metavar="TYPE", help="Such as SELFPLAY_COMPLETE.")],
    payload: Annotated[str, typer.Argument(help="JSON; - reads standard input.")] = "{}",
    node: Node = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the chain's end.")] = 0.0,
    id: Annotated[str | None, typer.Option(help="The same id is stored once.")] = None,
    as_json: Json = False,
) -> None:
    """Say that something happened."""
    cls = EVENT_TYPES.get(type_name)
    if cls is None or place_of(cls) is not Place.NODE:
        known = ", ".join(name for name, c in EVENT_TYPES.items() if place_of(c) is Place.NODE)
        raise ConfigError(f"TYPE {type_name!r} can't be published; known: {known}")
    config = _config(node=node)
    text = sys.stdin.read() if payload == "-" else payload
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
        for name in ("node", "source_node"):
            if name in {field.name for field in msgspec.structs.fields(cls)}:
                fields.setdefault(name, config.node)
        event = msgspec.convert(fields, cls)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ConfigError(f"payload of {type_name}: {error}") from None

    async def say() -> tuple[Published, SyncResult | None]:
        async with DataPlane.connect(config=config) as plane:
            published = await plane.publish(event, id=id)
            if wait <= 0 or published.queued or not isinstance(event, CHAIN_TRIGGERS):
                return published, None
            return published, await (await plane.handle(published)).wait(wait)

    published, result = _run(say())
    if as_json:
        show.print_json({"published": published, "queued": published.queued, "result": result})
    else:
        where = "in the outbox" if published.queued else f"at sequence {published.sequence}"
        show.console.print(f"{type_name} {published.id} {where}", highlight=False)
        if result is not None:
            _print_result(result)
    raise typer.Exit(0 if result is None or result.success else 1)


@app.command()
def sync(
    config_key: Annotated[str, typer.Argument(help="Such as hex8_2p.")],
    targets: Annotated[list[str], typer.Argument(help="Nodes that are to get it.")],
    data_type: Annotated[DataType, typer.Option("--type")] = DataType.GAMES,
    priority: SyncPriority = SyncPriority.NORMAL,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the end.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Ask for data on nodes, and wait until it is there."""

    async def ask() -> tuple[str, SyncResult | None]:
        async with DataPlane.connect(config=_config()) as plane:
            handle = await plane.request_sync(data_type, config_key, targets, priority)
            return handle.chain, await handle.wait(wait) if wait > 0 else None

    chain_id, result = _run(ask())
    if as_json:
        show.print_json({"chain": chain_id, "result": result})
    elif result is None:
        show.console.print(f"asked; dataplane chain {chain_id}", highlight=False)
    else:
        _print_result(result)
    raise typer.Exit(0 if result is None or result.success else 1)


def _print_result(result: SyncResult) -> None:
    verdict = "completed" if result.success else "failed"
    show.console.print(
        f"{verdict}: {result.reason} ({result.games_synced} games, "
        f"{show.size(result.bytes_transferred)}, {result.duration_seconds:.2f} s)",
        highlight=False,
    )
    for outcome in result.failed:
        show.console.print(f"  {outcome.target}: {outcome.path}: {outcome.error}")


# Looking


@contextlib.contextmanager
def _catalog() -> Iterator[Catalog]:
    catalog = Catalog(_config())
    try:
        yield catalog
    finally:
        catalog.close()


@app.command()
def status(as_json: Json = False) -> None:
    """Whether the data plane does its work. Exit status 1 if it does not."""

    async def check() -> Any:
        async with DataPlane.connect(config=_config()) as plane:
            return await plane.health_check()

    health = _run(check())
    if as_json:
        show.print_json(health)
    else:
        show.console.print(f"{health.status}: {health.message}", highlight=False)
        for name, value in health.details.items():
            text = (
                ", ".join(f"{k} {v}" for k, v in value.items())
                if isinstance(value, dict)
                else value
            )
            show.console.print(f"  {name:<14} {text}", highlight=False)
    raise typer.Exit(0 if health.healthy else 1)


@app.command()
def nodes(as_json: Json = False) -> None:
    """All nodes that ever joined, and when they were last heard."""
    from dataplane.presence import present

    async def beats() -> dict[str, dict[str, Any]]:
        with contextlib.suppress(LogError):
            async with DataPlane.connect(config=_config()) as plane:
                return await present((await plane.log()).bus)
        return {}

    heard = _run(beats())
    with _catalog() as catalog, catalog.view() as view:
        rows = [show.node_row(row, heard.get(f"agent.{row.name}")) for row in view.nodes()]
    columns = [
        "node",
        "roles",
        "traits",
        "planned_for",
        "seen_s_ago",
        "disk_free_bytes",
        "http_url",
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
    with _catalog() as catalog:
        found = catalog.entries(node=node, config_key=config_key, data_type=data_type)
    _print_entries([show.entry_row(entry) for entry in found], as_json)


@app.command()
def where(path: str, as_json: Json = False) -> None:
    """Who holds a file, and which version."""
    with _catalog() as catalog:
        rows = [show.entry_row(entry) for entry in catalog.where(path)]
    _print_entries(rows, as_json, empty=f"nobody holds {path}")
    raise typer.Exit(0 if rows else 1)


@app.command()
def missing(node: str, data_type: TypeOption = None, as_json: Json = False) -> None:
    """What belongs on a node and is not there."""
    with _catalog() as catalog:
        with catalog.view() as view:
            if view.node(node) is None:
                known = ", ".join(row.name for row in view.nodes()) or "none"
                raise ConfigError(f"NODE {node!r} never joined; known: {known}")
        found = catalog.get_missing_on_node(node, data_type)
    rows = [show.entry_row(entry) for entry in found]
    _print_entries(rows, as_json, empty=f"{node} has all that belongs there")


def _print_entries(rows: list[dict[str, Any]], as_json: bool, empty: str = "nothing") -> None:
    columns = ["path", "type", "config_key", "size_bytes", "games", "locations", "version"]
    show.emit(rows, columns, as_json=as_json, empty=empty)


@app.command()
def plans(as_json: Json = False) -> None:
    """Transfers that wait or run, in the order in which they go."""
    with _catalog() as catalog, catalog.view() as view:
        rows = [show.transfer_row(row) for row in (*view.in_flight(), *view.pending())]
    columns = [
        "state",
        "priority",
        "path",
        "source",
        "target",
        "size_bytes",
        "attempts",
        "last_error",
    ]
    show.emit(rows, columns, as_json=as_json, empty="nothing is pending")


@app.command()
def chains(
    last: Annotated[int, typer.Option(help="How many ended ones.")] = 20, as_json: Json = False
) -> None:
    """Open chains, then those that ended last."""
    with _catalog() as catalog, catalog.view() as view:
        ended = [row for row, _ in zip(view.ended_chains(), range(last), strict=False)]
        rows = [show.chain_row(row) for row in (*view.open_chains(), *ended)]
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


@app.command()
def chain(id: str, as_json: Json = False) -> None:
    """One chain: what caused what, and when."""

    async def history() -> Any:
        async with DataPlane.connect(config=_config()) as plane:
            return await chain_history(await plane.log(), id)

    facts = _run(history())
    row = None
    with _catalog() as catalog, contextlib.suppress(StoreMissing), catalog.view() as view:
        row = view.chain(id)
    if not facts and row is None:
        raise ConfigError(f"there is no chain {id!r}")
    if as_json:
        summary = None if row is None else show.chain_row(row)
        show.print_json({"chain": summary, "facts": [describe(fact) for fact in facts]})
    else:
        show.console.print(show.chain_tree(row, facts, id))


@app.command()
def rejected(as_json: Json = False) -> None:
    """Messages in the log that could not be understood, and why."""
    with _catalog() as catalog, catalog.view() as view:
        rows = [msgspec.structs.asdict(row) for row in view.rejected()]
    show.emit(rows, ["sequence", "time", "subject", "reason"], as_json=as_json, empty="none")


@app.command()
def replay(
    since: Annotated[str, typer.Option(help="10m, 2h, a date and time, or a sequence.")] = "",
    type_name: Annotated[str, typer.Option("--type", help="Such as TRANSFER_FAILED.")] = "",
    chain: Annotated[str, typer.Option(help="Only this chain's own facts.")] = "",
    node: Annotated[str, typer.Option(help="Only what a node said, did or was told.")] = "",
    config_key: Annotated[str, typer.Option("--config-key")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on for ever.")] = False,
    as_json: Json = False,
) -> None:
    """The log as a timeline."""
    if type_name and type_name not in EVENT_TYPES:
        raise ConfigError(f"--type {type_name!r} is none of {', '.join(EVENT_TYPES)}")
    start = _moment(since)

    async def read() -> None:
        async with DataPlane.connect(config=_config()) as plane:
            facts = timeline(
                await plane.log(),
                since=start,
                type_name=type_name,
                chain=chain,
                node=node,
                config_key=config_key,
                follow=follow,
            )
            async with contextlib.aclosing(facts):
                async for recorded in facts:
                    show.print_timeline(recorded, as_json=as_json)

    _run(read())


@app.command("verify")
def verify_command(as_json: Json = False) -> None:
    """Refold the log into a fresh store and compare it with the views. Status 1 if they differ."""

    async def check() -> Any:
        config = _config()
        async with DataPlane.connect(config=config) as plane:
            return await verify(await plane.log(), config.views_dir)

    verdict = _run(check())
    if as_json:
        show.print_json(
            {"same": verdict.same, "sequence": verdict.sequence, "digests": verdict.digests}
        )
    elif verdict.same:
        show.console.print(f"the views are the fold of the log up to {verdict.sequence}")
    else:
        show.console.print(f"these views differ from the log: {', '.join(verdict.different)}")
    raise typer.Exit(0 if verdict.same else 1)


@app.command()
def schema() -> None:
    """AsyncAPI 3 document with the JSON Schemas of all events."""
    print(json.dumps(asyncapi(), indent=2))


_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _moment(text: str) -> float:
    """Seconds since 1970 of ``10m`` ago or of an ISO date and time; 0 for nothing."""
    if not text:
        return 0.0
    ago = _AGO.fullmatch(text)
    if ago:
        return time.time() - float(ago[1]) * _UNITS[ago[2]]
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        raise ConfigError(
            f"--since {text!r} is neither like 10m nor like 2026-01-31T14:00"
        ) from None


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, 2),
    (PermissionDenied, 5),
    (LogUnavailable, 3),
    (StoreMissing, 4),
    (LogError, 1),
    (StoreError, 1),
    (TimeoutError, 1),
    (OSError, 1),
    (ValueError, 2),
)


def main() -> None:
    """Run the command; what goes wrong for a known reason is one line and a status."""
    try:
        app()
    except tuple(kind for kind, _ in _STATUS) as error:
        text = str(error) or type(error).__name__
        show.errors.print(f"dataplane: {text}", style="red", highlight=False, markup=False)
        raise SystemExit(next(code for kind, code in _STATUS if isinstance(error, kind))) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
