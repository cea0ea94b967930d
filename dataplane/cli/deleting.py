"""Commands that take something away; they ask, and the rules of deletion decide."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

import typer

from dataplane.api import DataPlane, Published
from dataplane.cli import show
from dataplane.cli.app import SAFE, Json, app, check_joined, config_of, run
from dataplane.words import size
from projections.store import StoreMissing
from streams import events
from streams.codec import chain_of_trigger
from streams.log import Log
from streams.subjects import type_filter

_ENDS = [type_filter(events.DeletionRefused), type_filter(events.DeletionDone)]
End = events.DeletionRefused | events.DeletionDone


@app.command(rich_help_panel=SAFE)
def delete(
    path: Annotated[str, typer.Argument(help="Logical path, as `where` shows it.")],
    node: Annotated[str, typer.Argument(help="The node whose copy is to go.")],
    checksum: Annotated[str, typer.Option(help="Only if it holds exactly this.")] = "",
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "asked for by an operator",
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the end.")] = 120.0,
    as_json: Json = False,
) -> None:
    """Delete a copy, if enough others are proven. Exit status 1 if it stays."""

    async def ask() -> tuple[Published, End | None]:
        async with DataPlane.connect(config=config_of()) as plane:
            # Where there are no views here, who has some refuses it.
            with contextlib.suppress(StoreMissing), plane.catalog.view() as view:
                check_joined(view, node)
            event = events.DeletionRequested(
                path=path,
                node=node,
                checksum=checksum,
                reason=reason,
                requester=plane.config.node,
            )
            published = await plane.publish(event)
            if published.sequence is None or wait <= 0:
                return published, None
            log = await plane.log()
            return published, await _end(log, published.id, published.sequence, wait)

    published, end = run(ask())
    gone = isinstance(end, events.DeletionDone) and end.deleted
    if as_json:
        show.print_json({"request": published.id, "deleted": gone, "end": end})
    elif end is None:
        show.console.print(f"asked, no end yet: request {published.id}", highlight=False)
    elif isinstance(end, events.DeletionRefused):
        show.console.print(f"kept ({end.rule}): {end.reason}", highlight=False)
    else:
        said = f"deleted, {size(end.freed_bytes)} free" if gone else f"kept: {end.reason}"
        show.console.print(said, highlight=False)
    raise typer.Exit(0 if gone or (end is None and wait <= 0) else 1)


async def _end(log: Log, id: str, after: int, wait: float) -> End | None:
    """How a deletion ended; None if it has not within `wait` seconds."""
    request = chain_of_trigger(id)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait):
            async with contextlib.aclosing(log.read(after=after, subjects=_ENDS)) as batches:
                async for batch in batches:
                    for recorded in batch:
                        if isinstance(recorded.event, End) and recorded.event.request == request:
                            return recorded.event
    return None
