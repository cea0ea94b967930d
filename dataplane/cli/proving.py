"""The guarantee, run against real processes: `prove`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from dataplane.cli import show
from dataplane.cli.app import RUN, Json, app


@app.command(rich_help_panel=RUN)
def prove(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long it is under fire.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed does the same things.")] = 1,
    chains: Annotated[int, typer.Option(min=0, help="Go on until so many chains were begun.")] = 0,
    kills: Annotated[int, typer.Option(min=0, help="Go on until so many were killed.")] = 0,
    nodes: Annotated[int, typer.Option(min=4, help="Agents.")] = 5,
    cluster: Annotated[bool, typer.Option("--cluster", help="Three nats-servers.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Keep all files there.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the figures there, as JSON.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Judge a failure's bundle again.")] = None,
    as_json: Json = False,
) -> None:
    """Kill, pause, cut off and damage a real cluster, then count what is lost, doubled or wrong."""
    from dataplane.prove import bundle
    from dataplane.prove.run import Options, run_proof
    from streams.log import LogError

    if replay is not None:
        try:
            again = asyncio.run(bundle.judge_again(replay))
        except (ValueError, OSError, LogError) as error:
            show.errors.print(f"{replay} can't be judged: {error}", style="red", markup=False)
            raise typer.Exit(2) from None
        show.print_json(again)
        raise typer.Exit(0 if again.acquits else 1)
    options = Options(
        minutes=minutes, seed=seed, chains=chains, kills=kills, nodes=nodes, cluster=cluster
    )
    raise typer.Exit(run_proof(options, as_json=as_json, keep=keep, save=save))
