"""``python -m bench chain|project|plan|land|load|…``: small, unless ``--big``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from bench import audit as auditing
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
Rounds = Annotated[int, typer.Option(min=0, help="How often; 0 is the default of the size.")]


class Run(NamedTuple):
    """What all benchmarks are told alike."""

    big: Annotated[bool, typer.Option("--big", "--full", help="Enough to claim something.")] = False
    seed: Annotated[int, typer.Option(help="The same seed, the same data.")] = 1
    base: Annotated[
        Path | None, typer.Option("--dir", help="Where to work; else the system's.")
    ] = None


class Shown(NamedTuple):
    """What becomes of what they found."""

    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
    save: Annotated[bool, typer.Option("--save", help="Keep it as bench/results/<name>.json.")] = (
        False
    )


def bench(measure: Callable[..., Report]) -> Callable[..., None]:
    """A benchmark as a command: its own options, then those that all take."""
    of_all = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for group in (Run, Shown)
        for (name, kind), default in zip(
            get_type_hints(group, include_extras=True).items(),
            group._field_defaults.values(),
            strict=True,
        )
    ]
    hints = get_type_hints(measure, include_extras=True)
    own = [
        one.replace(annotation=hints[one.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for one in list(inspect.signature(measure).parameters.values())[1:]
    ]

    @functools.wraps(measure)
    def command(
        big: bool, seed: int, base: Path | None, json: bool, save: bool, **given: Any
    ) -> None:
        _say(measure(Run(big, seed, base), **given), Shown(json, save))

    command.__signature__ = inspect.Signature([*own, *of_all])  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in (*own, *of_all)}
    return app.command()(command)


@bench
def chain(
    run: Run,
    count: Annotated[int, typer.Option("--chains", min=0, help="One after the other.")] = 0,
    rounds: Rounds = 0,
    database_mb: Annotated[float, typer.Option(help="Of the games database.")] = 10.0,
    targets: Annotated[str, typer.Option(help="Training nodes: one run each.")] = "1,3",
) -> Report:
    """Latency of a chain and chains a second, beside the appends they cost."""
    count = count or (chains.BIG_CHAINS if run.big else chains.CHAINS)
    rounds = rounds or (chains.BIG_ROUNDS if run.big else chains.ROUNDS)
    numbers = [int(number) for number in targets.split(",")]
    return chains.run(count, rounds, database_mb, numbers, run.seed, run.base)


@bench
def project(
    run: Run,
    count: Annotated[int, typer.Option("--events", min=0, help="In the log.")] = 0,
    rounds: Rounds = 3,
) -> Report:
    """Events folded a second, beside reading the same log."""
    count = count or (projecting.BIG_EVENTS if run.big else projecting.EVENTS)
    return projecting.run(count, rounds or 3, run.seed, run.base)


@bench
def audit(
    run: Run,
    count: Annotated[int, typer.Option("--events", min=0, help="In the log; 0: of the size.")] = 0,
) -> Report:
    """Archive, restore, rebuild and verify a long log, and go to any moment of its past."""
    count = count or (auditing.BIG_EVENTS if run.big else auditing.EVENTS)
    return auditing.run(count, run.seed, run.base)


@bench
def plan(
    run: Run,
    entries: Annotated[int, typer.Option(min=0, help="In the catalog; 0: of the size.")] = 0,
    nodes: Annotated[int, typer.Option(min=0, help="In the cluster; 0: of the size.")] = 0,
) -> Report:
    """Planning, sweeping and admission over a large catalog, beside SQLite."""
    entries = entries or (planning.BIG_ENTRIES if run.big else planning.ENTRIES)
    nodes = nodes or (planning.BIG_NODES if run.big else planning.NODES)
    return planning.run(entries, nodes, run.seed, run.base)


@bench
def land(
    run: Run,
    size_mib: Annotated[int, typer.Option("--size-mib", min=1)] = landing.SIZE_MIB,
    rounds: Rounds = 0,
    cold: Annotated[bool, typer.Option("--cold", help="Let memory grow cold before each.")] = False,
) -> Report:
    """A file over HTTP with its digest, beside curl."""
    rounds = rounds or (landing.BIG_ROUNDS if run.big else landing.ROUNDS)
    return landing.run(size_mib, rounds, cold, run.seed, run.base)


@bench
def load(
    run: Run,
    rate: Annotated[float, typer.Option(min=0, help="Facts a second; 0: of the size.")] = 0.0,
    seconds: Annotated[float, typer.Option(min=0, help="How long; 0: of the size.")] = 0.0,
    agents: Annotated[int, typer.Option(min=0, help="In the cluster; 0: of the size.")] = 0,
) -> Report:
    """A steady stream of facts: lag of the views, and memory over time."""
    rate = rate or (loading.BIG_RATE if run.big else loading.RATE)
    seconds = seconds or (loading.BIG_SECONDS if run.big else loading.SECONDS)
    agents = agents or (loading.BIG_AGENTS if run.big else loading.AGENTS)
    return loading.run(rate, seconds, agents, run.seed, run.base)


@bench
def broadcast(
    run: Run,
    size_mb: Annotated[int, typer.Option("--size-mb", min=0, help="0: of the size.")] = 0,
    nodes: Annotated[int, typer.Option("--nodes", min=1)] = broadcasting.NODES,
    mbps: Annotated[float, typer.Option("--mbps", min=0, help="Of each link; 0: of the size.")] = 0,
    rounds: Rounds = 0,
) -> Report:
    """A file to many machines at once, in network namespaces; needs root."""
    size_mb = size_mb or (broadcasting.BIG_SIZE_MB if run.big else broadcasting.SIZE_MB)
    mbps = mbps or (broadcasting.BIG_MBPS if run.big else broadcasting.MBPS)
    rounds = rounds or (broadcasting.BIG_ROUNDS if run.big else broadcasting.ROUNDS)
    return broadcasting.run(size_mb, nodes, mbps, rounds, run.seed, run.base)


@bench
def delta(
    run: Run,
    size_mb: Annotated[int, typer.Option("--size-mb", min=0, help="0: of the size.")] = 0,
    rounds: Rounds = 0,
) -> Report:
    """A changed database over its older version, beside rsync; needs root."""
    size_mb = size_mb or (deltas.BIG_SIZE_MB if run.big else deltas.SIZE_MB)
    rounds = rounds or (deltas.BIG_ROUNDS if run.big else deltas.ROUNDS)
    return deltas.run(size_mb, rounds, run.seed, run.base)


@bench
def transfer(
    run: Run,
    size_mib: Annotated[int, typer.Option(min=0, help="Of the large file.")] = 0,
    files: Annotated[int, typer.Option(min=0, help="Small ones, of 20 KiB.")] = 0,
    s3_files: Annotated[int, typer.Option(min=0, help="Small ones through S3.")] = 0,
    memory_mib: Annotated[int, typer.Option(min=0, help="Of the file whose memory counts.")] = 0,
    only: Annotated[str, typer.Option(help="Sides, with commas: http,p2p,rsync,s3 up,…")] = "",
    rounds: Rounds = 0,
) -> Report:
    """Each transport beside curl, rclone, rsync, aws and ssh, and its memory."""
    sizes = transferring.FULL if run.big else transferring.SMALL_RUN
    given = (size_mib, files, s3_files, memory_mib, rounds)
    size, many, through_s3, memory, turns = (
        mine or default for mine, default in zip(given, sizes, strict=True)
    )
    sides = tuple(side.strip() for side in only.split(",") if side.strip())
    return transferring.run(size, many, through_s3, memory, turns, sides, run.seed, run.base)


def _say(report: Report, shown: Shown) -> None:
    if shown.json:
        print(as_json(report))
    else:
        show(report)
    if shown.save:
        path = save(report)
        if not shown.json:
            print(f"kept as {path}")


if __name__ == "__main__":
    app(prog_name="python -m bench")
