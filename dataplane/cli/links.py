"""Commands about the ways between nodes: how well each works, and what is moving now."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import Annotated

import msgspec
import typer
from rich.progress import TaskID

from dataplane.agent.progress import ProgressMessage
from dataplane.api import DataPlane
from dataplane.cli import show
from dataplane.cli.app import LOOK, Json, app, config_of, run
from dataplane.cli.asking import answered
from dataplane.cli.bars import shown
from dataplane.queries import AskLinks
from dataplane.rows import plain
from streams.foreign import Unreadable, from_json
from streams.subjects import PROGRESS_SUBJECTS

#: Whoever fetches by itself is reached by nobody.
_NOBODY_ASKED = "nothing was brought to {0} or fetched from it yet; what {0} itself fetches stands \
under the nodes it comes from"


@app.command(rich_help_panel=LOOK)
def links(
    node: Annotated[str, typer.Option(help="Only this one.")] = "", as_json: Json = False
) -> None:
    """How each node can be reached, by each transport: outcomes, speed, and what is shut for now.

    "(as a whole)" is the node by whatever transport: while that is open nothing is tried at all.
    """
    rows = [plain(line) for line in answered("links", AskLinks(node))]
    if not as_json:
        rows = [{**row, "transport": row["transport"] or "(as a whole)"} for row in rows]
    columns = [
        "node",
        "transport",
        "state",
        "successes",
        "failures",
        "mbit_per_s",
        "last_error",
        "opens_again_in_s",
    ]
    show.emit(
        rows,
        columns,
        as_json=as_json,
        empty=_NOBODY_ASKED.format(node) if node else "nothing has moved yet",
    )


@app.command(rich_help_panel=LOOK)
def watch(
    node: Annotated[str, typer.Option(help="Only to or from this node.")] = "",
    seconds: Annotated[float, typer.Option(min=0, help="End after so long; 0 goes on.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Transfers as they move, until Ctrl-C: how far, how fast, how long yet."""

    async def follow() -> None:
        bars = Bars(as_json=as_json)
        async with DataPlane.connect(config=config_of()) as plane:
            heard = (await plane.log()).bus.listen(PROGRESS_SUBJECTS)
            if not as_json:
                show.console.print("what moves is shown here; dataplane plans says what waits")
            with bars.shown, suppress(TimeoutError):
                async with asyncio.timeout(seconds or None), aclosing(heard) as messages:
                    async for _, body in messages:
                        try:
                            message = from_json(body, ProgressMessage)
                        except Unreadable:
                            continue
                        if node in ("", message.source, message.target):
                            bars.tell(message)

    run(follow())


class Bars:
    """One bar for each transfer that moves; as JSON, one line for each message."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._bars: dict[str, TaskID] = {}
        self.shown = shown(transient=False, disable=as_json)

    def tell(self, message: ProgressMessage) -> None:
        """Show how far a transfer is; a finished one leaves a line and its bar goes."""
        if self._as_json:
            print(msgspec.json.encode(message).decode(), flush=True)
            return
        what = f"{message.path}  {message.source} → {message.target}"
        bar = self._bars.get(message.transfer)
        if bar is None:
            bar = self._bars[message.transfer] = self.shown.add_task(what, total=message.total)
        self.shown.update(bar, completed=message.done)
        if message.done >= message.total:
            self.shown.console.print(f"{what}  done", highlight=False, markup=False)
            self.shown.remove_task(self._bars.pop(message.transfer))
