"""Commands that say why: why a file is on a node, and why it is not."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from dataplane.audit.sources import LIVE
from dataplane.cli import show, views
from dataplane.cli.app import WHY, From, Json, app
from dataplane.cli.asking import answered
from dataplane.explain import Explanation
from dataplane.queries import AskWhy
from dataplane.words import clock

LogicalPath = Annotated[str, typer.Argument(metavar="PATH", help="As the catalog names it.")]


@app.command(rich_help_panel=WHY)
def why(path: LogicalPath, node: str, source: From = LIVE, as_json: Json = False) -> None:
    """Why a file is on a node: who produced it, what asked for it, how it came.

    Exit status 1 if it is not there; then it says why not.
    """
    answer = _answer(path, node, source)
    _print(answer, as_json)
    raise typer.Exit(0 if answer.there else 1)


@app.command("why-not", rich_help_panel=WHY)
def why_not(path: LogicalPath, node: str, source: From = LIVE, as_json: Json = False) -> None:
    """Why a file is not on a node: which rule, failure or wait keeps it from there.

    Exit status 0 if that is so; 1 if it is there, and then it says why.
    """
    answer = _answer(path, node, source)
    _print(answer, as_json)
    raise typer.Exit(1 if answer.there else 0)


def _answer(path: str, node: str, source: str) -> Explanation:
    views.look_at(source=source)
    found: Explanation = answered("why", AskWhy(path, node))
    return found


def _print(answer: Explanation, as_json: bool) -> None:
    if as_json:
        show.print_json(answer)
        return
    show.console.print(Text(answer.answer, style="bold"), soft_wrap=True)
    for sentence in answer.sentences:
        place = f"{clock(sentence.time)}  fact {sentence.sequence}" if sentence.sequence else "-"
        show.console.print(Text(f"  {place}  {sentence.text}"), soft_wrap=True)
