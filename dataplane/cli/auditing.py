"""Commands that read the log again: as a timeline, and as a fold to hold the views against."""

from __future__ import annotations

import contextlib
import json
import re
import time
from datetime import datetime
from typing import Annotated, Any

import typer

from dataplane.api import DataPlane
from dataplane.cli import show
from dataplane.cli.app import Json, app, config_of, run
from dataplane.config import ConfigError
from dataplane.replay import timeline, verify
from dataplane.schema import asyncapi
from streams.events import EVENT_TYPES


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
        async with DataPlane.connect(config=config_of()) as plane:
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

    run(read())


@app.command("verify")
def verify_command(as_json: Json = False) -> None:
    """Refold the log into a fresh store and compare it with the views. Status 1 if they differ."""

    async def check() -> Any:
        config = config_of()
        async with DataPlane.connect(config=config) as plane:
            return await verify(await plane.log(), config.views_dir)

    verdict = run(check())
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
