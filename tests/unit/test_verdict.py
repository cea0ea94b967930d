"""The verdict on a proof: each thing that may be wrong is looked for, and fails it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from dataplane.cli.app import app
from dataplane.crashpoints import POINTS
from dataplane.demo.children import Child, Layout
from dataplane.demo.disks import checksum_of
from dataplane.policy.reading import laid_over
from dataplane.prove import bundle, verdict
from dataplane.prove.cluster import COORDINATORS, Ending, Kill, ProveCluster
from dataplane.prove.run import Report, print_report
from dataplane.prove.verdict import Seen, Verdict, judge, without_proof
from dataplane.prove.whys import Whys
from projections.fold import TABLES, fold
from projections.projector import Projector
from projections.store import Store
from streams import events
from streams.codec import Fact, fact_id, node_fact
from streams.memory import MemoryLog
from streams.values import DataEntry
from tests.kept import archive, stored
from tests.spec import games_of, given, played, player, ran, trainer

AT_WORK = Kill("train-1", "agent", "random", "receiving games", 0.0)


class Aftermath:
    """A cluster after its run: one chain whose games lie on the trainer, and views of it."""

    def __init__(self, root: Path) -> None:
        self.cluster = ProveCluster(Layout(root), replicas=1, nodes=4, kills=0)
        self.cluster.bucket = None
        self.cluster.kills = [AT_WORK]
        self.log = MemoryLog()
        self.entry = self._write_games()
        self.seen = Seen(seed=1)

    def _write_games(self) -> DataEntry:
        entry = games_of("gpu-1", games=3)
        self.file = self.cluster.copy("train-1", entry.path)
        self.file.parent.mkdir(parents=True)
        with closing(sqlite3.connect(self.file)) as db, db:
            db.execute("CREATE TABLE games (number)")
            db.executemany("INSERT INTO games VALUES (?)", [(number,) for number in range(3)])
        size = self.file.stat().st_size
        return replace(entry, checksum=checksum_of(self.file), size_bytes=size)

    async def happen(self, *more: events.Event) -> None:
        """Say the whole chain, and `more`, and fold the views."""
        story = given(trainer(), player(), ran("c1", played(games=3), self.entry))
        for one in story.facts:
            assert one.event is not None
            await self.log.publish(Fact(one.event, one.subject, one.id, one.chain, one.cause))
        for number, event in enumerate(more):
            await self.log.publish(node_fact(event, "train-1", fact_id("more", number)))
        for name in COORDINATORS:
            await self._fold_views(name)

    async def _fold_views(self, name: str) -> None:
        projector = Projector(self.log, self.cluster.layout.state(name) / "views")
        await projector.start(until=(await self.log.state()).last_sequence)
        await projector.close()

    async def fold_another_story(self, name: str) -> None:
        """Put views in a coordinator's place that are the fold of something else."""
        state = await self.log.state()
        (facts,) = [batch async for batch in self.log.read(until=state.last_sequence)]
        other = [
            replace(one, event=replace(one.event, target="train-9"))
            if isinstance(one.event, events.TransferSucceeded)
            else one
            for one in facts
        ]
        (views,) = (self.cluster.layout.state(name) / "views").glob("gen-*")
        shutil.rmtree(views)
        store = Store.open(views, TABLES)
        store.write(lambda tx: fold(tx, other, state.created))
        store.close()

    async def judged(self) -> Verdict:
        """The verdict on it."""
        return await judge(self.log, self.cluster, self.seen)


@pytest.fixture
def aftermath(tmp_path: Path) -> Aftermath:
    """Nothing has happened yet."""
    return Aftermath(tmp_path)


async def test_run_in_which_every_promise_was_kept_passes(aftermath: Aftermath) -> None:
    """What is right is not accused."""
    await aftermath.happen()
    found = await aftermath.judged()
    assert found.problems == [] and found.passed
    assert (found.figures.completed, found.figures.copies_checked) == (1, 1)


async def test_wrong_byte_on_a_disk_fails_the_proof(aftermath: Aftermath) -> None:
    """Only the disk shows it, and so this run alone."""
    await aftermath.happen()
    aftermath.file.write_bytes(b"\0" + aftermath.file.read_bytes()[1:])
    found = await aftermath.judged()
    (problem,) = found.problems
    assert "on train-1: the file on the disk is" in problem
    assert found.seen_only == [problem] and found.figures.wrong_bytes == 1


async def test_deleted_copy_that_still_lies_there_fails_the_proof(aftermath: Aftermath) -> None:
    """Whatever else was right with its deletion."""
    done = events.DeletionDone(
        path=aftermath.entry.path,
        node="train-1",
        request="r",
        checksum=aftermath.entry.checksum,
        deleted=True,
    )
    same = {"path": done.path, "node": done.node, "request": "r", "checksum": done.checksum}
    await aftermath.happen(events.DeletionGranted(**same), done)
    assert any("still lies there" in one for one in (await aftermath.judged()).seen_only)


async def test_node_that_was_wiped_is_not_looked_at_but_what_it_had_is(
    aftermath: Aftermath, tmp_path: Path
) -> None:
    """Its copies are gone with it; the run's bundle knows that, too."""
    await aftermath.happen(events.NodeDrained(node="train-1", entries=1))
    aftermath.cluster.wiped = ["train-1"]
    aftermath.file.unlink()
    assert (await aftermath.judged()).problems == []
    aftermath.cluster.wiped = ["train-1", "gpu-1"]
    found = await aftermath.judged()
    assert len(found.problems) == 2 and found.figures.wiped == ["train-1", "gpu-1"]
    assert "never said of it" in found.problems[1] and "was lost with train-1" in found.problems[0]
    await kept(aftermath, tmp_path / "b")
    assert (await bundle.judge_again(tmp_path / "b")).problems == found.problems


@pytest.mark.parametrize("name", COORDINATORS)
async def test_views_that_are_not_the_fold_fail_the_proof(aftermath: Aftermath, name: str) -> None:
    """Those of any coordinator; they are kept, so they can be looked at again."""
    await aftermath.happen()
    await aftermath.fold_another_story(name)
    found = await aftermath.judged()
    (problem,) = found.problems
    assert name in problem and "are not the fold of the log" in problem
    assert found.seen_only == []


async def test_views_that_nobody_can_read_fail_the_proof(aftermath: Aftermath) -> None:
    """Instead of ending it without a verdict."""
    await aftermath.happen()
    shutil.rmtree(aftermath.cluster.layout.state(COORDINATORS[0]) / "views")
    (problem,) = (await aftermath.judged()).problems
    assert COORDINATORS[0] in problem


async def test_lost_event_restlessness_and_unanswered_whys_fail_the_proof(
    aftermath: Aftermath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in its own words."""
    await aftermath.happen()
    aftermath.seen = Seen(seed=1, acknowledged=["gone"], restless="it did not come to rest")
    monkeypatch.setattr(verdict, "ask_why", lambda *_: Whys(unknown=("x on y: nobody knows",)))
    assert (await aftermath.judged()).problems == [
        "event gone was acknowledged and is not in the log",
        "why has no answer: x on y: nobody knows",
        "it did not come to rest",
    ]


async def test_proof_without_a_kill_at_work_fails(aftermath: Aftermath) -> None:
    """It would prove nothing."""
    await aftermath.happen()
    aftermath.cluster.kills = [replace(AT_WORK, during="")]
    (problem,) = (await aftermath.judged()).problems
    assert problem == "no kill has hit anything at work: this run proves nothing"


@pytest.mark.parametrize(("status", "problems"), [(3, 0), (1, 1), (0, 1), (-9, 1), (-11, 1)])
async def test_process_that_ends_by_an_error_of_its_own_fails_the_proof(
    aftermath: Aftermath, status: int, problems: int
) -> None:
    """It is started again, and the guarantee holds; but nobody had killed it."""
    await aftermath.happen()
    aftermath.cluster.endings = [Ending("train-1", status, "KeyError: 'x'")]
    found = await aftermath.judged()
    said = f"train-1 ended with status {status}: KeyError: 'x'"
    assert found.problems == found.seen_only == [f"by itself {said}"] * problems
    assert found.figures.ended_by_themselves == [said]


async def test_process_that_ends_by_itself_is_kept_with_its_last_words(tmp_path: Path) -> None:
    """Of its last life alone, and started again; one that was armed was killed."""
    cluster = ProveCluster(Layout(tmp_path), replicas=1, nodes=4, kills=0)
    code = "import sys; print('ready'); sys.exit('boom')"
    child = Child("agent-1", ["_ends"], tmp_path, tmp_path / "agent-1.log", dict(os.environ))
    (tmp_path / "_ends.py").write_text(code)
    cluster.children["agent-1"] = child
    await child.start()
    tending = asyncio.create_task(cluster.tend())
    try:
        async with asyncio.timeout(60):
            while not cluster.endings:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        tending.cancel()
        await child.stop()
    assert cluster.endings[0] == Ending("agent-1", 1, "boom")
    assert cluster.kills == []


async def test_process_that_is_retired_is_never_started_again(tmp_path: Path) -> None:
    """Also by whoever is just starting it."""
    (tmp_path / "_sleeps.py").write_text("import time; time.sleep(600)")
    child = Child("spot-1", ["_sleeps"], tmp_path, tmp_path / "spot-1.log", dict(os.environ))
    starting = asyncio.create_task(child.start())
    await asyncio.sleep(0)
    await child.retire()
    await starting
    await child.finish()
    assert child.status == "killed"
    await child.start()
    assert child.status == "killed"


def kills(kind: str, count: int, during: str = "at work") -> list[Kill]:
    """So many of a kind."""
    return [Kill(f"{kind}-1", kind, "random", during, 0.0)] * count


@pytest.mark.parametrize(
    ("said", "missed"),
    [
        (kills("agent", 3), []),
        (kills("agent", 12), ["coordinator", "nats-server"]),
        ([*kills("agent", 10), *kills("coordinator", 1), *kills("nats-server", 1)], []),
        (
            [*kills("agent", 11), *kills("coordinator", 1), *kills("nats-server", 5, "")],
            ["nats-server"],
        ),
        (
            [kill for kind in verdict.VITAL for kill in kills(kind, 3)]
            + kills("s3-server", 10, "")
            + kills("player", 10, ""),
            ["s3-server"],
        ),
    ],
    ids=["few", "one kind", "each", "never at work", "bucket never at work"],
)
def test_every_kind_of_process_must_have_been_hit_at_work(
    said: Sequence[Kill], missed: list[str]
) -> None:
    """In a run that is long enough; what a player does, nobody of the data plane waits for."""
    problems = list(without_proof(said))
    assert len(problems) == len(missed)
    assert all(kind in problem for kind, problem in zip(missed, problems, strict=True))


async def kept(aftermath: Aftermath, directory: Path) -> bundle.Seed:
    """What was found, in a bundle."""
    found, cluster = await aftermath.judged(), aftermath.cluster
    command, seen, policy = "dataplane prove --seed 1", aftermath.seen, cluster.policy()
    seed = bundle.seed_of(command, found, seen, cluster.wiped, policy)
    state = await aftermath.log.state()
    (facts,) = [batch async for batch in aftermath.log.read(until=state.last_sequence)]
    log, _ = archive(stored(facts))
    views = [(name, cluster.layout.state(name) / "views") for name in COORDINATORS]
    await bundle.write(directory, log, seed, views)
    return seed


async def test_bundle_is_judged_again_as_its_run_was(aftermath: Aftermath, tmp_path: Path) -> None:
    """What the log shows is found in it again; with all of it in order there is nothing."""
    await aftermath.happen()
    seed = await kept(aftermath, tmp_path / "good")
    again = await bundle.judge_again(tmp_path / "good")
    assert again.acquits and again.problems == [] and "catalog" in again.digests
    assert bundle.seed_in(tmp_path / "good") == seed
    aftermath.seen = Seen(seed=1, acknowledged=["gone"])
    await kept(aftermath, tmp_path / "bad")
    again = await bundle.judge_again(tmp_path / "bad")
    assert again.problems == ["event gone was acknowledged and is not in the log"]
    assert not again.acquits


async def test_what_only_the_run_could_see_stands_when_it_is_judged_again(
    aftermath: Aftermath, tmp_path: Path
) -> None:
    """The disks are gone by then: a wrong byte is not acquitted by that."""
    await aftermath.happen()
    aftermath.file.write_bytes(b"\0" + aftermath.file.read_bytes()[1:])
    aftermath.cluster.kills = []
    seed = await kept(aftermath, tmp_path / "b")
    again = await bundle.judge_again(tmp_path / "b")
    assert again.problems == [] and not again.acquits
    assert again.seen_then == seed.problems and len(seed.problems) == 2


async def test_views_in_a_bundle_are_held_against_its_log_again(
    aftermath: Aftermath, tmp_path: Path
) -> None:
    """They were kept for that."""
    await aftermath.happen()
    await aftermath.fold_another_story(COORDINATORS[1])
    await kept(aftermath, tmp_path / "b")
    (problem,) = (await bundle.judge_again(tmp_path / "b")).problems
    assert COORDINATORS[1] in problem and "are not the fold of the log" in problem


async def test_bundle_is_judged_by_what_its_processes_decided_by(
    aftermath: Aftermath, tmp_path: Path
) -> None:
    """And asks again why, by the same rules."""
    policy = laid_over(aftermath.cluster.policy(), {"bandwidth": {"max_per_node": 1}})
    aftermath.cluster.policy = lambda: policy  # type: ignore[method-assign]
    order = events.TransferAssigned(
        transfer="t1",
        executor="n1",
        source="n2",
        target="n1",
        entry=replace(aftermath.entry, size_bytes=10**9),
        transports=(),
    )
    await aftermath.happen(order, replace(order, transfer="t2", entry=games_of("n2")))
    seed = await kept(aftermath, tmp_path / "b")
    assert any("transfers ran at n1" in one for one in seed.problems)
    assert (await bundle.judge_again(tmp_path / "b")).problems == seed.problems


def test_replay_of_a_bundle_fails_as_long_as_anything_stands(
    aftermath: Aftermath, tmp_path: Path
) -> None:
    """By its exit status, for scripts."""
    asyncio.run(aftermath.happen())
    asyncio.run(kept(aftermath, tmp_path / "good"))
    done = CliRunner().invoke(app, ["prove", "--replay", str(tmp_path / "good")])
    assert done.exit_code == 0, done.output
    aftermath.cluster.kills = []
    asyncio.run(kept(aftermath, tmp_path / "bad"))
    done = CliRunner().invoke(app, ["prove", "--replay", str(tmp_path / "bad")])
    assert done.exit_code == 1 and "this run proves nothing" in done.output
    done = CliRunner().invoke(app, ["prove", "--replay", str(tmp_path)])
    assert done.exit_code == 2


async def test_report_says_what_could_not_be_done_to_the_cluster(
    aftermath: Aftermath, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no disk could be filled, nobody is to believe that one was."""
    await aftermath.happen()
    aftermath.cluster.endings = [Ending("train-1", 3, "no bus")]
    found = await aftermath.judged()
    print_report(report_of(found))
    said = capsys.readouterr().out
    assert "no disk was filled" in said and "at 0 of" in said
    assert "train-1 ended with status 3: no bus" in said
    aftermath.cluster.small_disk = "train-1"
    aftermath.cluster.kills = [*aftermath.cluster.kills, replace(AT_WORK, place=POINTS[0])]
    print_report(report_of(await aftermath.judged()))
    said = capsys.readouterr().out
    assert "no disk was filled" not in said and f"at 1 of {len(POINTS)} named points" in said


def report_of(found: Verdict) -> Report:
    """How a run with this verdict ended."""
    return Report(
        passed=found.passed,
        command="dataplane prove",
        seed=1,
        replicas=1,
        verdict=found,
        under_fire_s=60.0,
        settled_after_s=1.0,
        machine="here",
    )
