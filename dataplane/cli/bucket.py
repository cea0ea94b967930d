"""Commands about the bucket: what goes there now, and what comes back from it alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from adapters.errors import TransportError
from adapters.telling import InAll
from dataplane import rows
from dataplane.api import DataPlane, SyncHandle, SyncResult
from dataplane.cli import show
from dataplane.cli.app import SAFE, Json, app, config_of, run
from dataplane.cli.bars import bars
from dataplane.restoring import open_bucket, restore_catalog
from dataplane.words import counted

restore_app = typer.Typer(no_args_is_help=True, help="Bring back what is in the bucket.")
app.add_typer(restore_app, name="restore", rich_help_panel=SAFE)
To = Annotated[Path, typer.Option("--to", help="Directory; whatever stands there is kept.")]


@app.command(rich_help_panel=SAFE)
def backup(
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the end.")] = 600.0,
    as_json: Json = False,
) -> None:
    """Ask for all that belongs in the bucket and is not there, and wait until it is."""

    async def ask() -> list[SyncResult]:
        async with DataPlane.connect(config=config_of()) as plane:
            handles = await plane.backup_to_s3()
            with bars() as bar:
                in_all = InAll(bar("to the bucket"))
                return list(await asyncio.gather(*(_waited(one, wait, in_all) for one in handles)))

    results = run(ask())
    found: list[dict[str, Any]] = [
        {
            "chain": one.chain,
            "config_key": one.config_key,
            "success": one.success,
            "files": len(one.targets),
            "bytes": one.bytes_transferred,
            "reason": one.reason,
        }
        for one in results
    ]
    columns = ["config_key", "success", "files", "bytes", "reason"]
    show.emit(found, columns, as_json=as_json, empty="the bucket has all that belongs there")
    raise typer.Exit(0 if all(one.success for one in results) else 1)


async def _waited(handle: SyncHandle, timeout_s: float, in_all: InAll) -> SyncResult:
    """The end of one of several chains, which are one bar."""

    def tell(done: int, total: int) -> None:
        in_all.expect(handle.chain, total)
        in_all.tell(handle.chain, done)

    return await handle.wait(timeout_s, progress_callback=tell)


@restore_app.command("ls")
def restore_ls(as_json: Json = False) -> None:
    """What can be restored, from the manifests in the bucket alone."""

    async def read() -> Any:
        async with open_bucket(config_of()) as bucket:
            return await bucket.catalog()

    catalog = run(read())
    found = [msgspec.to_builtins(rows.entry_line(entry)) for entry in catalog.known]
    columns = ["path", "type", "config_key", "size_bytes", "games", "checksum"]
    show.emit(found, columns, as_json=as_json, empty="the bucket is empty")
    _name_unreadable(catalog.unreadable, "what only it names is not listed")


@restore_app.command("file")
def restore_file(path: str, to: To) -> None:
    """Bring back the newest version of one file, proven, to --to/PATH."""

    async def bring() -> Any:
        to.mkdir(parents=True, exist_ok=True)
        async with open_bucket(config_of()) as bucket:
            with bars() as bar:
                return await bucket.restore_file(path, to, progress=bar(path))

    landed, unreadable = run(bring())
    show.console.print(f"{path}: {landed.bytes} bytes, proven", highlight=False)
    _name_unreadable(unreadable, f"it may name a newer version of {path}")


@restore_app.command("node")
def restore_node(node: str, to: To, as_json: Json = False) -> None:
    """Bring back all that a node stored or produced, where that node would keep it below --to."""

    async def bring() -> Any:
        to.mkdir(parents=True, exist_ok=True)
        async with open_bucket(config_of()) as bucket:
            with bars() as bar:
                return await bucket.restore_node(node, to, progress=bar(f"what {node} stored"))

    became, unreadable = run(bring())
    found = [
        {
            "path": path,
            "bytes": None if isinstance(what, TransportError) else what.bytes,
            "error": f"{type(what).__name__}: {what}" if isinstance(what, TransportError) else None,
        }
        for path, what in sorted(became.items())
    ]
    empty = f"nothing is known that {node} stored"
    show.emit(found, ["path", "bytes", "error"], as_json=as_json, empty=empty)
    _name_unreadable(unreadable, f"what only it names of {node} is not brought")
    raise typer.Exit(1 if any(one["error"] for one in found) else 0)


@restore_app.command("catalog")
def restore_the_catalog() -> None:
    """Say in the log what the bucket holds, so that it can be planned with: for a new log."""

    async def say() -> Any:
        config = config_of()
        async with open_bucket(config) as bucket, DataPlane.connect(config=config) as plane:
            return await restore_catalog(bucket, await plane.log())

    catalog = run(say())
    known = counted(len(catalog.known), "entry", "entries")
    show.console.print(f"the log knows of {known} in the bucket", highlight=False)
    _name_unreadable(catalog.unreadable, "what only it names is not told")


def _name_unreadable(unreadable: Sequence[TransportError], lacking: str) -> None:
    """Name the manifests that can't be read, and what is lacking for it; if there are any, it is
    not all well.
    """
    for error in unreadable:
        text = f"dataplane: a manifest can't be read: {error}; {lacking}"
        show.errors.print(text, style="red", highlight=False, markup=False)
    if unreadable:
        raise typer.Exit(1)
