"""The command that brings what several databases hold into one, in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from adapters.errors import DiskFull
from adapters.files.gametables import NotMergeable
from adapters.files.merging import Merged, merge, merge_records
from adapters.files.sqlite import Locked, Unsound, count_games, is_sqlite
from dataplane.cli import show
from dataplane.cli.app import SAFE, Json, app, config_of


@app.command("merge", rich_help_panel=SAFE)
def merge_command(
    target: Annotated[Path, typer.Argument(help="Where all goes; made if it is not there.")],
    sources: Annotated[list[Path], typer.Argument(help="SQLite databases; they are only read.")],
    as_json: Json = False,
) -> None:
    """Bring the complete games that a database lacks there from others, with all their rows.

    Of databases that hold no games, such as ratings and registries, every row comes that is lacking
    there, and of two with one key the one that was changed last stays. All of them may be in use.
    What was merged before is not merged again. Exit status 1 if a source was refused; the others
    are merged all the same.
    """
    complete_from = config_of().policy().quality.complete_from
    # One kind for all: what holds no games must not be where games are to go.
    games = any(_holds_games(path) for path in (target, *sources))
    done: list[Merged] = []
    refused: dict[str, str] = {}
    for source in sources:
        try:
            if games:
                done.append(_merged(target, source, complete_from))
            else:
                done.append(merge_records(target, source))
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


def _holds_games(path: Path) -> bool:
    # What can't be read says so when it is merged.
    with contextlib.suppress(Locked, Unsound, OSError):
        return path.exists() and is_sqlite(path) and count_games(path) is not None
    return False


def _words(one: Merged) -> str:
    """What became of one source, and of what of it did not come over."""
    said = [f"{one.added} {one.unit} added", f"{one.there} already there"]
    said += [f"{one.newer} changed to what is newer"] if one.newer else []
    said += [f"{count} left ({reason})" for reason, count in sorted(one.left.items())]
    said += [f"no place for {', '.join(one.no_place)}"] if one.no_place else []
    return f"{one.source}: {'; '.join(said)}"
