"""``python -m bench chain|project|plan|land|load|…``: small, unless ``--big``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench import broadcast as broadcasting
from bench import chain as chains
from bench import delta as deltas
from bench import land as landing
from bench import load as loading
from bench import plan as planning
from bench import project as projecting
from bench import transfer as transferring
from bench.report import Report, as_json, save, show

app = typer.Typer(
    help="Speed and memory, each number beside a limit or a peer.", no_args_is_help=True
)
Big = Annotated[bool, typer.Option("--big", help="Enough repetitions to claim something.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Save = Annotated[bool, typer.Option("--save", help="Keep it as bench/results/<name>.json.")]
Seed = Annotated[int, typer.Option(help="The same seed, the same data.")]
Base = Annotated[Path | None, typer.Option("--dir", help="Where to work; else the system's.")]
Rounds = Annotated[int, typer.Option(min=0, help="How often; 0 is the default of the size.")]


@app.command()
def chain(
    count: Annotated[int, typer.Option("--chains", min=0, help="One after the other.")] = 0,
    rounds: Rounds = 0,
    database_mb: Annotated[float, typer.Option(help="Of the games database.")] = 10.0,
    targets: Annotated[str, typer.Option(help="Training nodes: one run each.")] = "1,3",
    big: Big = False,
    json: Json = False,
    keep: Save = False,
    seed: Seed = 1,
    base: Base = None,
) -> None:
    """Latency of a chain and chains a second, beside the appends they cost."""
    count = count or (chains.BIG_CHAINS if big else chains.CHAINS)
    rounds = rounds or (chains.BIG_ROUNDS if big else chains.ROUNDS)
    numbers = [int(number) for number in targets.split(",")]
    _say(chains.run(count, rounds, database_mb, numbers, seed, base), json, keep)


@app.command()
def project(
    count: Annotated[int, typer.Option("--events", min=0, help="In the log.")] = 0,
    rounds: Rounds = 3,
    big: Big = False,
    json: Json = False,
    keep: Save = False,
    seed: Seed = 1,
    base: Base = None,
) -> None:
    """Events folded a second, beside reading the same log."""
    count = count or (projecting.BIG_EVENTS if big else projecting.EVENTS)
    _say(projecting.run(count, rounds or 3, seed, base), json, keep)


@app.command()
def plan(
    entries: Annotated[int, typer.Option(min=0, help="In the catalog; 0: of the size.")] = 0,
    nodes: Annotated[int, typer.Option(min=0, help="In the cluster; 0: of the size.")] = 0,
    full: Annotated[bool, typer.Option("--full", "--big", help="A million entries.")] = False,
    json: Json = False,
    keep: Save = False,
    seed: Seed = 1,
    base: Base = None,
) -> None:
    """Planning, sweeping and admission over a large catalog, beside SQLite."""
    entries = entries or (planning.BIG_ENTRIES if full else planning.ENTRIES)
    nodes = nodes or (planning.BIG_NODES if full else planning.NODES)
    _say(planning.run(entries, nodes, seed, base), json, keep)


@app.command()
def land(
    size_mib: Annotated[int, typer.Option("--size-mib", min=1)] = landing.SIZE_MIB,
    rounds: Rounds = 0,
    cold: Annotated[bool, typer.Option("--cold", help="Let memory grow cold before each.")] = False,
    big: Big = False,
    json: Json = False,
    keep: Save = False,
    seed: Seed = 1,
    base: Base = None,
) -> None:
    """A file over HTTP with its digest, beside curl."""
    rounds = rounds or (landing.BIG_ROUNDS if big else landing.ROUNDS)
    _say(landing.run(size_mib, rounds, cold, seed, base), json, keep)


@app.command()
def load(
    rate: Annotated[float, typer.Option(min=0, help="Facts a second; 0: of the size.")] = 0.0,
    seconds: Annotated[float, typer.Option(min=0, help="How long; 0: of the size.")] = 0.0,
    agents: Annotated[int, typer.Option(min=0, help="In the cluster; 0: of the size.")] = 0,
    big: Annotated[
        bool, typer.Option("--big", help="200 a second, 20 minutes, 50 agents.")
    ] = False,
    json: Json = False,
    keep: Save = False,
    seed: Seed = 1,
    base: Base = None,
) -> None:
    """A steady stream of facts: lag of the views, and memory over time."""
    rate = rate or (loading.BIG_RATE if big else loading.RATE)
    seconds = seconds or (loading.BIG_SECONDS if big else loading.SECONDS)
    agents = agents or (loading.BIG_AGENTS if big else loading.AGENTS)
    _say(loading.run(rate, seconds, agents, seed, base), json, keep)


@app.command()
def broadcast(
    size_mb: Annotated[int, typer.Option("--size-mb", min=0, help="0: of the size.")] = 0,
    nodes: Annotated[int, typer.Option("--nodes", min=1)] = broadcasting.NODES,
    mbps: Annotated[float, typer.Option("--mbps", min=0, help="Of each link; 0: of the size.")] = 0,
    rounds: Rounds = 0,
    big: Big = False,
    json: Json = False,
    keep: Save = False,
    seed: Seed = 1,
    base: Base = None,
) -> None:
    """A file to many machines at once, in network namespaces; needs root."""
    size_mb = size_mb or (broadcasting.BIG_SIZE_MB if big else broadcasting.SIZE_MB)
    mbps = mbps or (broadcasting.BIG_MBPS if big else broadcasting.MBPS)
    rounds = rounds or (broadcasting.BIG_ROUNDS if big else broadcasting.ROUNDS)
    _say(broadcasting.run(size_mb, nodes, mbps, rounds, seed, base), json, keep)


@app.command()
def delta(
    size_mb: Annotated[int, typer.Option("--size-mb", min=0, help="0: of the size.")] = 0,
    rounds: Rounds = 0,
    big: Big = False,
    json: Json = False,
    keep: Save = False,
    seed: Seed = 1,
    base: Base = None,
) -> None:
    """A changed database over its older version, beside rsync; needs root."""
    size_mb = size_mb or (deltas.BIG_SIZE_MB if big else deltas.SIZE_MB)
    rounds = rounds or (deltas.BIG_ROUNDS if big else deltas.ROUNDS)
    _say(deltas.run(size_mb, rounds, seed, base), json, keep)


@app.command()
def transfer(
    size_mib: Annotated[int, typer.Option(min=1, help="Of the large file.")] = 0,
    files: Annotated[int, typer.Option(min=0, help="Small ones, of 20 KiB.")] = 0,
    s3_files: Annotated[int, typer.Option(min=0, help="Small ones through S3.")] = 0,
    memory_mib: Annotated[int, typer.Option(min=0, help="Of the file whose memory counts.")] = 0,
    only: Annotated[str, typer.Option(help="Sides, with commas: http,p2p,rsync,s3 up,…")] = "",
    rounds: Rounds = 0,
    big: Annotated[bool, typer.Option("--big", "--full", help="1 GiB, 10,000, 5 GiB.")] = False,
    json: Json = False,
    keep: Save = False,
    seed: Seed = 1,
    base: Base = None,
) -> None:
    """Each transport beside curl, rclone, rsync, aws and ssh, and its memory."""
    sizes = transferring.FULL if big else transferring.SMALL_RUN
    given = (size_mib, files, s3_files, memory_mib, rounds)
    size, many, through_s3, memory, turns = (
        mine or default for mine, default in zip(given, sizes, strict=True)
    )
    sides = tuple(side.strip() for side in only.split(",") if side.strip())
    report = transferring.run(size, many, through_s3, memory, turns, sides, seed, base)
    _say(report, json, keep)


def _say(report: Report, json: bool, keep: bool) -> None:
    if json:
        print(as_json(report))
    else:
        show(report)
    if keep:
        path = save(report)
        if not json:
            print(f"kept as {path}")


if __name__ == "__main__":
    app(prog_name="python -m bench")
