"""Commands that read the log again: as a timeline, and as a fold to hold the views against."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Annotated

import typer

from dataplane.audit.moments import FORMS, moment_of, point_of
from dataplane.audit.replay import Verdict, timeline, verify
from dataplane.audit.sources import LIVE, open_source
from dataplane.cli import show, views
from dataplane.cli.app import BACK, From, Json, app, config_of, run
from dataplane.cli.looking import row_of
from dataplane.config import ConfigError
from dataplane.schema import asyncapi
from dataplane.typos import meant
from streams.events import EVENT_TYPES
from streams.log import ReadingLog
from streams.values import TOKEN_PATTERN


@app.command(rich_help_panel=BACK)
def replay(
    since: Annotated[str, typer.Option(help=f"From then on: {FORMS}.")] = "",
    until: Annotated[str, typer.Option(help="Up to then; the same forms.")] = "",
    type_name: Annotated[str, typer.Option("--type", help="Such as TRANSFER_FAILED.")] = "",
    chain: Annotated[str, typer.Option(help="Only this chain's own facts.")] = "",
    node: Annotated[str, typer.Option(help="Only what a node said, did or was told.")] = "",
    config_key: Annotated[
        str, typer.Option("--config-key", "--config", help="Only this one.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on for ever.")] = False,
    source: From = LIVE,
    as_json: Json = False,
) -> None:
    """The log as a timeline."""
    if type_name and type_name not in EVENT_TYPES:
        raise ConfigError(f"--type {type_name!r} is none; {meant(type_name, 'known', EVENT_TYPES)}")
    if follow and until:
        raise ConfigError("--follow goes on for ever: it takes no --until")
    if follow and source != LIVE:
        raise ConfigError(
            f"--follow waits for what the bus hears next: it takes no --from {source}"
        )
    if chain:
        views.look_at(source=source)
        row = row_of(chain)
        chain = chain if row is None else row.chain
    for text, what in ((since, "--since"), (until, "--until")):
        if text:
            moment_of(text, what)

    async def read() -> int:
        shown = 0
        async with open_source(source, config_of(), growing=follow) as log:
            facts = timeline(
                log,
                after=await _before(log, since) if since else 0,
                until=await point_of(log, until, "--until") if until else None,
                type_name=type_name,
                chain=chain,
                node=node,
                config_key=config_key,
                follow=follow,
            )
            async with contextlib.aclosing(facts):
                async for recorded in facts:
                    show.print_timeline(recorded, as_json=as_json)
                    shown += 1
            if node and not shown:
                await _check_known(log, node)
        return shown

    if not run(read()):
        if chain:
            raise ConfigError(f"--chain {chain!r}: this stretch of the log has no such chain")
        show.errors.print("no such fact in this stretch of the log")


async def _check_known(log: ReadingLog, node: str) -> None:
    """Raises ConfigError, naming those that did, for a node that neither joined nor spoke."""
    last, joined = (await log.state()).last_sequence, set[str]()
    if not last:
        return
    subjects = ["dp.node.*.NODE_REGISTERED.>"]
    if re.fullmatch(TOKEN_PATTERN, node):
        subjects.append(f"dp.node.{node}.>")
    async with contextlib.aclosing(log.read(until=last, subjects=subjects)) as batches:
        async for batch in batches:
            joined |= {fact.owner for fact in batch}
    if node not in joined:
        known = meant(node, "known", sorted(joined)) if joined else "no node has"
        raise ConfigError(f"--node {node!r} never joined; {known}")


async def _before(log: ReadingLog, since: str) -> int:
    """The sequence behind which a timeline begins: a sequence that is named is shown itself."""
    point = await point_of(log, since, "--since")
    return point - 1 if isinstance(moment_of(since, "--since"), int) else point


@app.command("verify", rich_help_panel=BACK)
def verify_command(source: From = LIVE, as_json: Json = False) -> None:
    """Refold the log into a fresh store and compare it with the views. Status 1 if they differ."""

    async def check() -> Verdict:
        config = config_of()
        async with open_source(source, config) as log:
            return await verify(log, config.views_dir)

    verdict = run(check())
    if as_json:
        show.print_json(verdict)
    elif verdict.same:
        show.console.print(f"the views are the fold of the log up to {verdict.sequence}")
    else:
        show.console.print(f"these views differ from the log: {', '.join(verdict.different)}")
        if found := verdict.difference:
            show.console.print(
                f"the first difference is in view {found.view}, table {found.table}, key "
                f"{found.key}\n  the views have {found.left}\n  the log gives {found.right}",
                markup=False,
            )
    raise typer.Exit(0 if verdict.same else 1)


@app.command(rich_help_panel=BACK)
def schema() -> None:
    """AsyncAPI 3 document with the JSON Schemas of all events."""
    print(json.dumps(asyncapi(), indent=2))
