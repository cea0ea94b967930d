"""Commands that say something to the data plane, and may wait for what becomes of it."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated, Any

import msgspec
import typer

from dataplane.api import DataPlane, Published, SyncResult
from dataplane.cli import show
from dataplane.cli.app import SAY, Json, Node, app, config_of, run
from dataplane.cli.bars import bars
from dataplane.config import ConfigError
from dataplane.queries import PREFIX
from dataplane.questions import ask_any
from dataplane.typos import meant
from dataplane.words import size
from projections.store import StoreMissing
from streams.codec import lift, unknown_fields
from streams.events import CHAIN_TRIGGERS, EVENT_TYPES, FILE_TRIGGERS, Event, speaker_of
from streams.log import LogError
from streams.subjects import Place, place_of
from streams.values import ALL_CONFIGS, DataType, SyncPriority

#: How long a coordinator may take to say who joined.
_ASK_S = 2.0


@app.command(rich_help_panel=SAY)
def publish(
    type_name: Annotated[str, typer.Argument(metavar="TYPE", help="Such as SELFPLAY_COMPLETE.")],
    payload: Annotated[str, typer.Argument(help="JSON; - reads standard input.")] = "{}",
    node: Node = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the chain's end.")] = 0.0,
    id: Annotated[str | None, typer.Option(help="The same id is stored once.")] = None,
    traceparent: Annotated[str, typer.Option(help="W3C trace context it is part of.")] = "",
    as_json: Json = False,
) -> None:
    """Say that something happened."""
    cls = EVENT_TYPES.get(type_name)
    if cls is None or place_of(cls) is not Place.NODE:
        known = [name for name, c in EVENT_TYPES.items() if place_of(c) is Place.NODE]
        raise ConfigError(
            f"TYPE {type_name!r} can't be published; {meant(type_name, 'known', known)}"
        )
    config = config_of(node=node)
    text = sys.stdin.read() if payload == "-" else payload
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
        # On the wire an unknown field is tolerated; at a prompt it is a typing error.
        if unknown := unknown_fields(cls, fields):
            known = [field.name for field in msgspec.structs.fields(cls)]
            hint = meant(unknown[0], "known", known)
            raise ConfigError(f"payload of {type_name}: unknown {unknown[0]!r}; {hint}")
        event = lift(cls, config.node, ALL_CONFIGS, text.encode())
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ConfigError(f"payload of {type_name}: {error}") from None

    async def say() -> tuple[Published, SyncResult | None]:
        async with DataPlane.connect(config=config) as plane:
            published = await plane.publish(event, id=id, traceparent=traceparent)
            await _warn_if_nobody_answers(plane, event)
            if wait <= 0 or published.queued or not isinstance(event, CHAIN_TRIGGERS):
                return published, None
            return published, await (await plane.handle(published)).wait(wait)

    published, result = run(say())
    if as_json:
        show.print_json({"published": published, "queued": published.queued, "result": result})
    else:
        where = "in the outbox" if published.queued else f"at sequence {published.sequence}"
        show.console.print(f"{type_name} {published.id} {where}", highlight=False)
        if result is not None:
            _print_result(result)
    raise typer.Exit(0 if result is None or result.success else 1)


async def _warn_if_nobody_answers(plane: DataPlane, event: Event) -> None:
    """Say at once that a chain waits for a node that never joined, which it does to its limit."""
    node = speaker_of(event)
    if type(event) not in FILE_TRIGGERS or not node:
        return
    joined = await _joined(plane)
    if joined is not None and node not in joined:
        limit = plane.config.answer_limit_seconds
        show.errors.print(
            f"warning: no node {node} ever joined (known: {', '.join(joined) or 'none'}); the "
            f"chain waits {limit:.0f} s for it to say what it holds, and then fails",
            style="yellow",
            highlight=False,
            markup=False,
        )


async def _joined(plane: DataPlane) -> list[str] | None:
    """Who ever joined, by the views here, else by a coordinator; None if nobody can be asked."""
    with contextlib.suppress(StoreMissing), plane.catalog.view() as view:
        return [row.name for row in view.nodes()]
    with contextlib.suppress(LogError):
        bus = (await plane.log()).bus
        answer = msgspec.json.decode(await ask_any(bus, f"{PREFIX}.nodes", b"", _ASK_S))
        return [row["node"] for row in answer]
    return None


@app.command(rich_help_panel=SAY)
def sync(
    config_key: Annotated[str, typer.Argument(help="Such as hex8_2p.")],
    targets: Annotated[list[str], typer.Argument(help="Nodes that are to get it.")],
    data_type: Annotated[DataType, typer.Option("--type")] = DataType.GAMES,
    priority: SyncPriority = SyncPriority.NORMAL,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the end.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Ask for data on nodes, and wait until it is there."""

    async def ask() -> tuple[str, SyncResult | None]:
        async with DataPlane.connect(config=config_of()) as plane:
            handle = await plane.request_sync(data_type, config_key, targets, priority)
            if wait <= 0:
                return handle.chain, None
            with bars() as bar:
                told = bar(f"{config_key} {data_type}")
                return handle.chain, await handle.wait(wait, progress_callback=told)

    chain_id, result = run(ask())
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
        f"{size(result.bytes_transferred)}, {result.duration_seconds:.2f} s)",
        highlight=False,
    )
    for outcome in result.failed:
        show.console.print(f"  {outcome.target}: {outcome.path}: {outcome.error}")
