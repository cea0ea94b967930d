"""The command that brings games of several databases into one, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from adapters.files.gametables import NotMergeable
from adapters.files.merging import Merged, merge
from adapters.files.sqlite import Locked, Unsound
from adapters.transport import DiskFull
from dataplane.cli import show
from dataplane.cli.app import SAFE, Json, app, config_of


@app.command("merge", rich_help_panel=SAFE)
def merge_command(
    target: Annotated[Path, typer.Argument(help="Where the games go; made if it is not there.")],
    sources: Annotated[list[Path], typer.Argument(help="Game databases; they are only read.")],
    as_json: Json = False,
) -> None:
    """Bring the complete games that a database lacks there from others, with all their rows.

    All of them may be in use. What was merged before is not merged again. Exit status 1 if a
    source was refused; the others are merged all the same.
    """
    complete_from = config_of().policy().quality.complete_from
    done: list[Merged] = []
    refused: dict[str, str] = {}
    for source in sources:
        try:
            done.append(_merged(target, source, complete_from))
        except (NotMergeable, Locked, Unsound, DiskFull, OSError) as error:
            refused[str(source)] = str(error)
    if as_json:
        show.print_json({"merged": msgspec.to_builtins(done), "refused": refused})
    else:
        for one in done:
            show.console.print(_words(one), highlight=False, markup=False)
        for name, reason in refused.items():
            show.errors.print(f"{name}: {reason}", style="red", highlight=False, markup=False)
    raise typer.Exit(1 if refused else 0)


def _merged(target: Path, source: Path, complete_from: Callable[[str], int]) -> Merged:
    with show.errors.status(f"reading {source.name}") as status:

        def tell(games: int, total: int) -> None:
            status.update(f"merging {source.name}: {games} of {total} games")

        return merge(target, source, complete_from, progress=tell)


def _words(one: Merged) -> str:
    """What became of one source, and of what of it did not come over."""
    said = [f"{one.added} games added", f"{one.there} already there"]
    said += [f"{count} left ({reason})" for reason, count in sorted(one.left.items())]
    said += [f"no place for {', '.join(one.no_place)}"] if one.no_place else []
    return f"{one.source}: {'; '.join(said)}"
