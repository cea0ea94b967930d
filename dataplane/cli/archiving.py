"""Commands that carry the log elsewhere and back: the archive, and exported files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from adapters.blobs import Blobs, blobs_at
from dataplane.api import open_log
from dataplane.audit.archive import bring_back, extend, prove
from dataplane.audit.exporting import export_log, import_log
from dataplane.audit.moments import FORMS, point_of
from dataplane.audit.sources import LIVE, open_source
from dataplane.cli import show
from dataplane.cli.app import BACK, From, Json, app, config_of, run
from dataplane.config import ConfigError, DataPlaneConfig
from dataplane.words import counted, size

archive_app = typer.Typer(no_args_is_help=True, help="The archive of the log.")
app.add_typer(archive_app, name="archive", rich_help_panel=BACK)
Place = Annotated[
    str, typer.Option("--at", help="A directory or s3://bucket/prefix; default: `archive`.")
]


@archive_app.command("run")
def archive_run(place: Place = "", as_json: Json = False) -> None:
    """Archive all that the log holds and the archive does not."""

    async def work() -> None:
        config = config_of()
        log = await open_log(config)
        with _blobs(place, config) as blobs:
            try:
                done = await extend(blobs, log)
            finally:
                await log.close()
                await blobs.close()
        if as_json:
            show.print_json(done)
        else:
            show.console.print(
                f"{counted(done.messages, 'new message', 'new messages')}; {done.where} holds "
                f"all up to {done.last_sequence} in {done.segments} segments",
                highlight=False,
            )

    run(work())


@archive_app.command("verify")
def archive_verify(place: Place = "", as_json: Json = False) -> None:
    """Read the whole archive and prove every segment. Status 1, naming it, if one is damaged."""

    async def work() -> None:
        with _blobs(place, config_of()) as blobs:
            try:
                proven = await prove(blobs)
            finally:
                await blobs.close()
        if as_json:
            show.print_json(proven)
        else:
            show.console.print(
                f"{proven.where} is whole: {proven.first_sequence} to {proven.last_sequence} in "
                f"{proven.segments} segments, {size(proven.size_bytes)}",
                highlight=False,
            )

    run(work())


@archive_app.command("restore")
def archive_restore(place: Place = "", as_json: Json = False) -> None:
    """Put the archived log back onto an empty bus, under the same sequences.

    Stop agents and coordinators first, and start them again afterwards.
    """

    async def work() -> None:
        config = config_of()
        log = await open_log(config)
        with _blobs(place, config) as blobs:
            try:
                bounded = config.log_max_age_seconds > 0
                state = await bring_back(blobs, log, replicas=config.replicas, bounded=bounded)
            finally:
                await log.close()
                await blobs.close()
        if as_json:
            show.print_json(state)
        else:
            show.console.print(
                f"restored {state.first_sequence} to {state.last_sequence}", highlight=False
            )

    run(work())


@contextlib.contextmanager
def _blobs(place: str, config: DataPlaneConfig) -> Iterator[Blobs]:
    where = place or config.archive
    if not where:
        raise ConfigError("no place is named: give --at, or set `archive` in the configuration")
    yield blobs_at(where, endpoint_url=config.s3_endpoint, region=config.s3_region)


@app.command("export", rich_help_panel=BACK)
def export_command(
    path: Annotated[Path, typer.Argument(help="Such as log.jsonl or log.parquet.")],
    since: Annotated[str, typer.Option(help=f"From then on: {FORMS}.")] = "",
    until: Annotated[str, typer.Option(help="Up to then; the same forms.")] = "",
    source: From = LIVE,
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
    as_json: Json = False,
) -> None:
    """Write the log, or a stretch of it, into a file."""
    if path.exists() and not force:
        raise ConfigError(f"PATH {path} is there already; --force writes over it")

    async def work() -> None:
        async with open_source(source, config_of()) as log:
            after = await point_of(log, since, "--since") if since else 0
            end = await point_of(log, until, "--until") if until else None
            done = await export_log(log, path, after=after, until=end)
        if as_json:
            show.print_json(done)
        else:
            show.console.print(
                f"{counted(done.messages, 'message', 'messages')} in {path}", highlight=False
            )

    run(work())


@app.command("import", rich_help_panel=BACK)
def import_command(
    path: Annotated[Path, typer.Argument(help="What `dataplane export` wrote, whole.")],
    as_json: Json = False,
) -> None:
    """Put an exported log onto an empty bus, with its sequences, ids, headers and times."""
    if not path.is_file():
        raise ConfigError(f"PATH {path}: there is no such file")

    async def work() -> None:
        config = config_of()
        log = await open_log(config)
        try:
            state = await import_log(path, log, replicas=config.replicas)
        finally:
            await log.close()
        if as_json:
            show.print_json(state)
        else:
            show.console.print(
                f"imported {state.first_sequence} to {state.last_sequence}", highlight=False
            )

    run(work())
