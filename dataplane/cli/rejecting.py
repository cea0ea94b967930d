"""What went wrong in the log: `rejected`, `rejected retry`, and the server's own `advisories`."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import typer

from dataplane.api import DataPlane
from dataplane.cli import show
from dataplane.cli.app import LOOK, Json, app, config_of, run
from dataplane.cli.asking import answered
from dataplane.planner import CommandRejected
from dataplane.queries import AskRejected
from dataplane.retry import Retried, retry
from streams.foreign import Unreadable, from_json
from streams.topology import ADVISORIES, is_news

rejected_app = typer.Typer(help="What could not be understood or decided, and why.")
app.add_typer(rejected_app, name="rejected", rich_help_panel=LOOK)


@rejected_app.callback(invoke_without_command=True)
def rejected(context: typer.Context, as_json: Json = False) -> None:
    """List what could not be understood or decided, and why."""
    if context.invoked_subcommand is not None:
        return
    rows = answered("rejected", AskRejected())
    columns = ["sequence", "time", "subject", "chain", "tries", "reason", "retried_as"]
    show.emit(rows, columns, as_json=as_json, empty="none")


@rejected_app.command("retry")
def retry_command(
    sequence: Annotated[int, typer.Argument(help="As `dataplane rejected` lists it.")],
    as_json: Json = False,
) -> None:
    """Say a message anew, once its cause is mended; it opens a chain of its own."""
    (row,) = answered("rejected", AskRejected(sequence))
    if row.retried_as:
        raise CommandRejected(f"message {sequence} was said anew as {row.retried_as}")

    async def say() -> Retried:
        async with DataPlane.connect(config=config_of()) as plane:
            return await retry(await plane.log(), sequence)

    said = run(say())
    if as_json:
        show.print_json(said)
    else:
        chain = f", chain {said.chain}" if said.chain else ""
        show.console.print(f"said anew as {said.id}{chain}", highlight=False)


@app.command(rich_help_panel=LOOK)
def advisories(
    last: Annotated[int, typer.Option(min=1, help="How many.")] = 20, as_json: Json = False
) -> None:
    """What the bus noticed: refusals, deliveries given up, lost quorums, new leaders."""

    async def ask() -> list[tuple[str, bytes]]:
        async with DataPlane.connect(config=config_of()) as plane:
            return await (await plane.log()).bus.recent(ADVISORIES, last, is_news)

    rows = [_advisory(subject, body) for subject, body in run(ask())]
    columns = ["time", "what", "stream", "consumer", "sequence", "deliveries"]
    show.emit(rows, columns, as_json=as_json, empty="nothing")


def _advisory(subject: str, body: bytes) -> dict[str, Any]:
    said: dict[str, Any] = {}
    with suppress(Unreadable):
        said = from_json(body, dict[str, Any])
    return {
        "time": said.get("timestamp", ""),
        "what": ".".join(subject.split(".")[3:5]),
        "stream": said.get("stream", ""),
        "consumer": said.get("consumer", ""),
        "sequence": said.get("stream_seq", ""),
        "deliveries": said.get("deliveries", ""),
    }
