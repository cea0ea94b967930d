"""The command that empties a node, and says whether it may be killed."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Annotated, NoReturn

import typer

from dataplane import draining
from dataplane.api import DataPlane
from dataplane.audit.moments import moment_of
from dataplane.cli import show
from dataplane.cli.app import SAFE, Json, app, check_joined, config_of, run
from dataplane.config import ConfigError
from dataplane.draining import Cancelled, Drain, Verdict
from dataplane.words import clock, size


@app.command(rich_help_panel=SAFE)
def drain(
    node: Annotated[str, typer.Argument(help="The node that is to go.")],
    wait: Annotated[bool, typer.Option("--wait", help="Until it may go, or can't.")] = False,
    timeout: Annotated[
        float, typer.Option(min=0, help="With --wait: at most so many seconds.")
    ] = 3600.0,
    deadline: Annotated[
        str, typer.Option(help="When it goes: 10m from now, or a time; the earliest counts.")
    ] = "",
    copies: Annotated[int, typer.Option(min=1, help="Other places that must hold all.")] = 1,
    ask: Annotated[
        bool, typer.Option("--ask", help="Only ask: nothing is said, and nothing begins.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="It stays after all: what it holds counts again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Begin to empty NODE. May it be killed now? Status 0: yes, proven; 1: no.

    Others get copies of what too few others hold. From now on NODE's own copies count for nobody,
    for a day or until `--cancel`: no restart and no heartbeat of it changes that. `--ask` begins
    nothing: it says how much is not proven elsewhere, and never yes of a node that is not to go.
    """
    when = _ahead(deadline) if deadline else None
    if cancel:
        if ask or wait or when:
            raise ConfigError("--cancel goes with no other option than --json")
        _cancel(node, as_json)
    if ask and (wait or when):
        raise ConfigError("--ask goes with --copies and --json alone: it begins nothing")

    async def work() -> Verdict:
        async with DataPlane.connect(config=config_of()) as plane:
            with plane.catalog.view() as view:
                check_joined(view, node)
            one = Drain(plane, node, copies=copies, deadline=when)
            if ask:
                return await one.ask()
            try:
                return await (_waited(one, node, timeout) if wait else one.look())
            except asyncio.CancelledError:
                if one.chain:
                    text = f"{node} is being emptied all the same; dataplane drain {node} --ask"
                    show.errors.print(text, highlight=False)
                raise

    verdict = run(work())
    if as_json:
        show.print_json(verdict)
    else:
        _print(verdict)
    raise typer.Exit(0 if verdict.may_go else 1)


def _cancel(node: str, as_json: bool) -> NoReturn:
    async def work() -> Cancelled:
        async with DataPlane.connect(config=config_of()) as plane:
            with plane.catalog.view() as view:
                check_joined(view, node)
            return await draining.cancel(plane, node)

    done = run(work())
    if as_json:
        show.print_json(done)
    else:
        show.console.print(done.reason, highlight=False, markup=False)
    raise typer.Exit(0 if done.cancelled else 1)


async def _waited(one: Drain, node: str, timeout_s: float) -> Verdict:
    with show.errors.status(f"emptying {node}") as line:
        return await one.wait(timeout_s, lambda so_far: line.update(_so_far(so_far)))


def _ahead(text: str) -> float:
    """A time to come; ``10m`` is from now on."""
    now = time.time()
    moment = moment_of(text, "--deadline", now)
    if isinstance(moment, int):
        raise ConfigError(f"--deadline {text!r} is neither like 10m nor like 2026-01-31T14:00")
    try:
        datetime.fromisoformat(text)
    except ValueError:
        moment = 2 * now - moment
    if moment < now:
        raise ConfigError(f"--deadline {text!r} has passed")
    return moment


def _so_far(verdict: Verdict) -> str:
    moving = f"{size(verdict.bytes_left)} of {verdict.node} left"
    pace = f" at about {size(verdict.rate)}/s" if verdict.rate and verdict.bytes_left else ""
    done = f", done about {clock(verdict.done_at)}" if verdict.done_at else ""
    return f"{moving}{pace}{done}"


def _print(verdict: Verdict) -> None:
    answer = "yes" if verdict.may_go else "no"
    style = "bold green" if verdict.may_go else "bold red"
    show.console.print(f"may {verdict.node} be killed now? ", end="", highlight=False)
    show.console.print(answer, style=style, end="")
    show.console.print(f": {verdict.reason}", highlight=False, markup=False)
    if verdict.bytes_left:
        show.console.print(f"  {_so_far(verdict)}", highlight=False)
    if verdict.last_moment is not None:
        late = " (too late for all of it)" if verdict.last_moment < time.time() else ""
        show.console.print(f"  last safe moment to begin: {clock(verdict.last_moment)}{late}")
    show.console.print(f"  rests on: {verdict.rests_on}", highlight=False, markup=False)
    for one in verdict.left:
        show.console.print(
            f"  {one.path}  {size(one.size_bytes)}  {one.why}", highlight=False, markup=False
        )
