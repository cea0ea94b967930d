"""Commands that say why: why a file is on a node, and why it is not."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.text import Text

from dataplane.audit.sources import LIVE, open_source
from dataplane.cli import show
from dataplane.cli.app import WHY, Json, app, check_joined, config_of, open_catalog, run
from dataplane.cli.asking import either
from dataplane.evidence import facts_about, span_of
from dataplane.explain import Asked, Explanation, explain
from dataplane.queries import AskWhy
from dataplane.words import clock
from streams.codec import Recorded
from streams.values import S3_NODE

LogicalPath = Annotated[str, typer.Argument(metavar="PATH", help="As the catalog names it.")]


@app.command(rich_help_panel=WHY)
def why(path: LogicalPath, node: str, as_json: Json = False) -> None:
    """Why a file is on a node: who produced it, what asked for it, how it came.

    Exit status 1 if it is not there; then it says why not.
    """
    answer = _answer(path, node)
    _print(answer, as_json)
    raise typer.Exit(0 if answer.there else 1)


@app.command("why-not", rich_help_panel=WHY)
def why_not(path: LogicalPath, node: str, as_json: Json = False) -> None:
    """Why a file is not on a node: which rule, failure or wait keeps it from there.

    Exit status 0 if that is so; 1 if it is there, and then it says why.
    """
    answer = _answer(path, node)
    _print(answer, as_json)
    raise typer.Exit(1 if answer.there else 0)


def _answer(path: str, node: str) -> Explanation:
    found: Explanation = either(lambda: _by_views_here(path, node), "why", AskWhy(path, node))
    return found


def _by_views_here(path: str, node: str) -> Explanation:
    config = config_of()
    with open_catalog() as catalog:
        if not (node == S3_NODE and config.s3_enabled):
            with catalog.view() as view:
                check_joined(view, node)
        with catalog.view() as view:
            span = span_of(view.catalog, path)

        async def history() -> list[Recorded]:
            async with open_source(LIVE, config) as log:
                return await facts_about(log, path, span)

        facts = run(history())
        with catalog.view() as view:
            return explain(Asked(path, node, view, facts, config.policy(), time.time()))


def _print(answer: Explanation, as_json: bool) -> None:
    if as_json:
        show.print_json(answer)
        return
    show.console.print(Text(answer.answer, style="bold"), soft_wrap=True)
    for sentence in answer.sentences:
        place = f"{clock(sentence.time)}  fact {sentence.sequence}" if sentence.sequence else "-"
        show.console.print(Text(f"  {place}  {sentence.text}"), soft_wrap=True)
