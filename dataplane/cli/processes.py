"""Commands that start processes: a whole machine, one role of it, the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dataplane.cli import show
from dataplane.cli.app import RUN, DataDir, Json, Nats, Node, app, arguments, config_of
from dataplane.config import CONFIG_FILE, TEMPLATE, ConfigError, DataPlaneConfig, default_node
from dataplane.daemon import Part, run_parts, supervise


@app.command(rich_help_panel=RUN)
def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path(CONFIG_FILE),
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Write a commented configuration."""
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; --force overwrites it")
    path.write_text(TEMPLATE.replace("{node}", default_node()))
    show.console.print(f"wrote {path}; next: dataplane up")


@app.command(rich_help_panel=RUN)
def up(node: Node = None, data_dir: DataDir = None) -> None:
    """Run a bus, a coordinator and an agent on this machine, and keep them alive."""
    config = config_of(node=node, data_dir=data_dir)
    for line in about_to_run(config):
        show.errors.print(line, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(supervise(config, _as_environment(node=node, data_dir=data_dir)))


@app.command(rich_help_panel=RUN)
def coordinator(node: Node = None) -> None:
    """Run a coordinator. Several may run; they decide each thing once."""
    raise typer.Exit(run_parts(config_of(node=node), [Part.COORDINATOR]))


@app.command(rich_help_panel=RUN)
def agent(
    node: Node = None,
    data_dir: DataDir = None,
    nats: Nats = None,
    roles: Annotated[str | None, typer.Option(help="Comma separated: training,selfplay…")] = None,
    traits: Annotated[str | None, typer.Option(help="Comma separated: gpu,ephemeral…")] = None,
) -> None:
    """Join as a node: say what it holds, serve it, receive what it should have."""
    config = config_of(
        node=node,
        data_dir=data_dir,
        nats_url=nats,
        roles=roles.split(",") if roles else None,
        traits=traits.split(",") if traits else None,
    )
    raise typer.Exit(run_parts(config, [Part.AGENT]))


@app.command(rich_help_panel=RUN)
def demo(
    nodes: Annotated[int, typer.Option(min=2, help="Agents; half of them train.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Self-play rounds of each node.")] = 3,
    keep: Annotated[Path | None, typer.Option(help="Keep all files there.")] = None,
    as_json: Json = False,
) -> None:
    """Watch self-play games reach the trainers while processes are killed."""
    from dataplane.demo.run import run_demo

    raise typer.Exit(run_demo(nodes=nodes, rounds=rounds, keep=keep, as_json=as_json))


def about_to_run(config: DataPlaneConfig) -> list[str]:
    """What `up` is going to listen to and to write, before it does."""
    port = config.nats_port or "a free port"
    bus = config.nats_url.rpartition("@")[2] or f"one of its own on 127.0.0.1:{port}"
    page = f"{config.web_host}:{config.web_port or 'a free port'}"
    lines = [
        f"node {config.node} ({', '.join(config.roles)})",
        f"bus: {bus}; page: {page if config.web_enabled else 'none'}",
        f"log, views and outbox in {config.state_dir.resolve()}",
        f"games, models and the like in {config.data_dir.resolve()}",
    ]
    if arguments.get("path") is None and not Path(CONFIG_FILE).exists():
        lines.append(f"no {CONFIG_FILE} here, so all this is default; dataplane init writes one")
    return lines


def _as_environment(**own: Any) -> dict[str, str]:
    """Arguments for child processes, which read the environment."""
    config_path = arguments.get("path")
    given = {"state_dir": arguments.get("state_dir"), "config": config_path, **own}
    return {f"DATAPLANE_{k.upper()}": str(v) for k, v in given.items() if v is not None}
