"""A proof from its start to its verdict.

Exit status: 0 every promise was kept; 1 one was not, or the run could not go on; 130 interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from adapters.files.digest import checksum_of
from dataplane.cli.show import console, errors, print_json
from dataplane.crashpoints import POINTS
from dataplane.demo.children import Layout
from dataplane.demo.s3_server import S3ServerFailed
from dataplane.prove import bundle
from dataplane.prove.adversary import Adversary, Flip
from dataplane.prove.cluster import COORDINATORS, ProveCluster
from dataplane.prove.scene import Scene, Watcher
from dataplane.prove.verdict import Figures, Seen, Verdict, judge
from dataplane.prove.workload import Workload
from dataplane.words import size
from streams.jetstream import JetStreamLog
from streams.log import LogError
from streams.server import ServerFailed

_START_LIMIT_S = 120.0
_SETTLE_LIMIT_S = 600.0
#: How long the log must have been silent to count as settled.
_QUIET_S = 2.0
_PLAYER_PAUSE_S = 2.5
_GAMES = 2
_NO_SMALL_DISK = "            no disk was filled: only root, on Linux, can mount one that is small"


class Options(msgspec.Struct, frozen=True):
    """What to prove, and for how long."""

    minutes: float = 1.0
    seed: int = 1
    #: Go on until so many chains were begun, however long that takes; 0: only the time counts.
    chains: int = 0
    #: And until so many processes were killed.
    kills: int = 0
    nodes: int = 5
    cluster: bool = False
    #: Seconds between two things the adversary does, about.
    gap_s: float = 1.0
    #: Whether copies on disks are damaged.
    damage: bool = True

    @property
    def command(self) -> str:
        """The command that runs this."""
        words = ["dataplane prove", f"--seed {self.seed}", f"--minutes {self.minutes:g}"]
        words += [f"--chains {self.chains}"] if self.chains else []
        words += [f"--kills {self.kills}"] if self.kills else []
        words += [f"--nodes {self.nodes}"] if self.nodes != 5 else []
        words += ["--cluster"] if self.cluster else []
        return " ".join(words)


class Report(msgspec.Struct, frozen=True):
    """How a proof ended."""

    passed: bool
    command: str
    seed: int
    replicas: int
    verdict: Verdict
    under_fire_s: float
    settled_after_s: float
    machine: str
    #: Where what is needed to look into a failure was written; "" if nothing failed.
    bundle: str = ""


class ProofFailed(Exception):
    """The run could not go on; the text says why."""


def run_proof(
    options: Options, *, as_json: bool = False, keep: Path | None = None, save: Path | None = None
) -> int:
    """Run a proof, print its verdict, and return the exit status."""
    with _directory(keep) as directory:
        try:
            report = asyncio.run(_interruptible(options, directory, keep, quiet=as_json))
        except (ProofFailed, ServerFailed, S3ServerFailed, LogError, OSError) as error:
            errors.print(f"the proof can't go on: {error}", style="red", markup=False)
            return 1
        except asyncio.CancelledError:
            errors.print("interrupted; every process was stopped", highlight=False)
            return 130
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    if as_json:
        print_json(report)
    else:
        print_report(report)
    return 0 if report.passed else 1


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    directory = Path(tempfile.mkdtemp(prefix="dataplane-prove-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _interruptible(
    options: Options, directory: Path, keep: Path | None, *, quiet: bool
) -> Report:
    """Run, and stop in order at Ctrl-C and SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    layout = Layout(directory)
    replicas = 3 if options.cluster else 1
    cluster = ProveCluster(layout, replicas=replicas, nodes=options.nodes, kills=options.kills)
    async with cluster:
        log = await JetStreamLog.connect(cluster.url.split(","), name="prove", deadline_s=60.0)
        try:
            await log.ensure_topology(replicas=replicas)
            return await _prove(options, cluster, log, keep, quiet=quiet)
        finally:
            await log.close()


async def _prove(
    options: Options, cluster: ProveCluster, log: JetStreamLog, keep: Path | None, *, quiet: bool
) -> Report:
    watcher = Watcher(log)
    workload = Workload(cluster, watcher, log, options.seed)
    adversary = Adversary(
        cluster, watcher.scene, log, options.seed, gap_s=options.gap_s, damage=options.damage
    )
    following = asyncio.create_task(watcher.follow())
    tending: asyncio.Task[None] | None = None
    began = time.monotonic()
    try:
        await cluster.start_data_plane()
        tending = asyncio.create_task(cluster.tend())
        everybody = cluster.roles.keys()
        if not await watcher.until(lambda s: s.registered.keys() >= everybody, _START_LIMIT_S):
            raise ProofFailed(f"not all agents have joined:\n{cluster.complaints()}")
        adversary.suit(time.monotonic() - began)
        await cluster.start_players(options.seed, _PLAYER_PAUSE_S, _GAMES)
        began = time.monotonic()
        await _under_fire(
            options, cluster, watcher.scene, workload, adversary, (following, tending), quiet=quiet
        )
        fire_s = time.monotonic() - began
        await adversary.undo()
        await cluster.stop_players()
        settled = await _settle(watcher, cluster, adversary)
        settled_s = time.monotonic() - began - fire_s
    finally:
        for task in (following, tending):
            if task is not None:
                task.cancel()
    await cluster.stop_children()
    acknowledged = [*workload.acknowledged, *cluster.published()]
    seen = Seen(
        options.seed,
        acknowledged,
        adversary.deeds,
        adversary.flips,
        "" if settled else f"the cluster did not come to rest within {_SETTLE_LIMIT_S:g} s",
    )
    verdict = await judge(log, cluster, seen)
    where = ""
    if not verdict.passed:
        where = await _keep(options, cluster, log, verdict, seen, keep)
    return Report(
        passed=verdict.passed,
        command=options.command,
        seed=options.seed,
        replicas=cluster.replicas,
        verdict=verdict,
        under_fire_s=round(fire_s, 1),
        settled_after_s=round(settled_s, 1),
        machine=f"{platform.machine()}, Python {platform.python_version()}",
        bundle=where,
    )


async def _under_fire(
    options: Options,
    cluster: ProveCluster,
    scene: Scene,
    workload: Workload,
    adversary: Adversary,
    besides: Sequence[asyncio.Task[None]],
    *,
    quiet: bool,
) -> None:
    """Work and attack at once, until the time is over and the counts are reached.

    It ends too, by their error, where one of the tasks `besides` ends.
    """
    end = time.monotonic() + options.minutes * 60
    working = [asyncio.create_task(workload.run()), asyncio.create_task(adversary.run())]
    told = 0.0
    try:
        while (
            time.monotonic() < end
            or scene.chains < options.chains
            or len(cluster.kills) < options.kills
        ):
            done, _ = await asyncio.wait([*working, *besides], timeout=0.5)
            for task in done:
                task.result()
            if not quiet and time.monotonic() - told > 10:
                told = time.monotonic()
                kills = len(cluster.kills)
                text = f"{scene.chains} chains, {len(scene.open)} open, {kills} kills"
                errors.print(f"{max(0, end - told):4.0f} s left: {text}", highlight=False)
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


async def _settle(watcher: Watcher, cluster: ProveCluster, adversary: Adversary) -> bool:
    """Wait until nothing is owed any more; whether that came about in time."""
    end = time.monotonic() + _SETTLE_LIMIT_S
    while time.monotonic() < end:
        calm = await watcher.until(lambda scene: scene.calm, end - time.monotonic())
        before = watcher.scene.sequence
        await asyncio.sleep(_QUIET_S)
        damage_known = not await asyncio.to_thread(_unseen, watcher.scene, cluster, adversary.flips)
        if calm and damage_known and before == watcher.scene.sequence and not cluster.unsent():
            return True
    return False


def _unseen(scene: Scene, cluster: ProveCluster, flips: Sequence[Flip]) -> list[Flip]:
    """Damaged copies that nobody has reported, and that no good copy has replaced. Blocks."""
    return [
        flip
        for flip in flips
        if scene.copies.get((flip.node, flip.path)) == flip.checksum
        and (flip.node, flip.path, flip.checksum) not in scene.damaged
        and _is_damaged(cluster.copy(flip.node, flip.path), flip.checksum)
    ]


def _is_damaged(file: Path, checksum: str) -> bool:
    """Whether a file holds something else. One that was landed again since holds what it should."""
    try:
        return checksum_of(file) != checksum
    except OSError:
        return True


async def _keep(
    options: Options,
    cluster: ProveCluster,
    log: JetStreamLog,
    verdict: Verdict,
    seen: Seen,
    keep: Path | None,
) -> str:
    """Write what is needed to look into a failure; where that is."""
    place = keep or Path.cwd()
    directory = place / f"prove-failed-{options.seed}-{int(time.time())}"
    seed = bundle.seed_of(options.command, verdict, seen, cluster.wiped, cluster.policy())
    views = [(name, cluster.layout.state(name) / "views") for name in COORDINATORS]
    await bundle.write(directory, log, seed, views)
    shutil.copytree(cluster.layout.root / "logs", directory / "logs", dirs_exist_ok=True)
    return str(directory)


def print_report(report: Report) -> None:
    """How it ended, for people."""
    figures = report.verdict.figures
    whys = figures.whys
    failures = ", ".join(f"{count} {why}" for why, count in figures.failures.items())
    servers = "3 nats-servers" if report.replicas > 1 else "1 nats-server"
    lines = [
        f"under fire  {report.under_fire_s:.0f} s on {servers}, seed {report.seed}; settled after "
        f"{report.settled_after_s:.1f} s",
        f"chains      {figures.chains}: {figures.completed} completed, {figures.failed} failed"
        + (f" ({failures})" if failures else "")
        + f", {figures.overdue} said to be overdue",
        f"            {figures.lost} lost, {figures.doubled} doubled, "
        f"{figures.wrong_bytes} copies with wrong bytes of {figures.copies_checked} checked",
        "transfers   "
        + ", ".join(f"{count} {way}" for way, count in sorted(figures.ways.items()))
        + (f"; nobody reaches {', '.join(figures.blocked)}" if figures.blocked else ""),
        f"latency     {_seconds(figures.latency_p50_s)} p50, {_seconds(figures.latency_p99_s)} p99 "
        f"from SELFPLAY_COMPLETE to NEW_GAMES_AVAILABLE ({figures.announced})",
        f"kills       {figures.kills}, {figures.kills_at_work} of them at work: "
        + ", ".join(f"{count} {kind}" for kind, count in sorted(figures.kills_by_kind.items()))
        + f"; at {len(set(POINTS) & figures.kills_by_place.keys())} of {len(POINTS)} named points",
        *(f"            {count:4} {place}" for place, count in figures.kills_by_place.items()),
        *(f"by itself   {ending}" for ending in figures.ended_by_themselves),
        "besides     " + ", ".join(f"{count} {what}" for what, count in figures.deeds.items()),
        *([] if figures.small_disk else [_NO_SMALL_DISK]),
        f"damage      {figures.flips} copies damaged: {figures.flips_reported} reported, "
        f"{figures.flips_repaired} of them repaired; {figures.flips_replaced} replaced before that",
        f"drained     {len(figures.wiped)} rented nodes were wiped once that was said of them",
        f"deletions   {figures.deletions} asked for: {figures.deleted} deleted, kept "
        + (", ".join(f"{count} {rule}" for rule, count in figures.kept.items()) or "none"),
        _bucket_line(figures),
        f"ahead       {size(figures.ahead_bytes)} were brought before a training began, "
        f"{size(figures.ahead_found_bytes)} of them it found in place",
        f"why         {whys.asked} files on nodes: {whys.trigger} answers end in a trigger, "
        f"{whys.rule} in a rule, {whys.fault} in a fault, {whys.report} in a node's report, "
        f"{len(whys.unknown)} in nothing",
        f"log         {figures.facts} facts, {figures.acknowledged} acknowledged ones all there"
        + (f"; {figures.store_damage} words of unreadable stores" if figures.store_damage else ""),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for problem in report.verdict.problems:
        console.print(f"  {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
    if report.passed:
        console.print("passed: nothing lost, nothing doubled, no wrong byte", style="bold green")
    else:
        console.print(f"FAILED; to look into it: {report.bundle}", style="bold red")


def _bucket_line(figures: Figures) -> str:
    if not figures.with_bucket:
        return "bucket      none: pip install 'dataplane[demo]' brings an S3 server"
    return f"bucket      {figures.stored_checked} of the copies checked lie there"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
