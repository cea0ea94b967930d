"""The views of the past: the same as they were then, however one gets there."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from dataplane.audit.causes import where_time_went
from dataplane.audit.comparing import changes, picture
from dataplane.audit.moments import moment_of
from dataplane.audit.replay import timeline, verify
from dataplane.audit.sources import ReadOnly
from projections.cluster import ClusterView
from projections.fold import TABLES, fold, view_digests
from projections.projector import Projector
from projections.snapshot import KEEP_NEWEST, Snapshots, superfluous
from projections.store import Store, StoreDirectory
from projections.travel import PointNotHeld, past, sequence_at
from streams import events
from streams.codec import Recorded
from streams.log import Log
from tests.kept import archive, stored
from tests.spec import (
    CREATED,
    T0,
    Story,
    after,
    games_of,
    given,
    opens,
    played,
    player,
    ran,
    trainer,
)
from tests.unit.histories import Step, histories, lived

GAMES = games_of("gpu-1", "first", games=30)


def told() -> Story:
    """Two nodes, one chain that moves a database, and one that waits."""
    return given(
        trainer("train-1"),
        player("gpu-1"),
        after(10.0),
        ran("c1", played("gpu-1"), GAMES),
        after(10.0),
        opens("c2", played("gpu-1")),
    )


@settings(max_examples=25, deadline=None)
@sampled(steps=histories(), where=st.integers(0, 400), start=st.integers(0, 400))
async def test_the_past_is_what_the_views_were(steps: list[Step], where: int, start: int) -> None:
    """At any point, from nothing or gone on from an earlier one, the digests are those of then."""
    story = lived(steps)
    log, _ = archive(stored(story.facts))
    point = where % (len(story.facts) + 1)
    earlier = start % (point + 1)
    then = Story().tell_again(*[fact async for fact in timeline(log, until=point)])
    async with past(log, earlier) as there:
        await there.go_on(point)
        assert view_digests(there.reader) == then.digests()
        assert there.checkpoint.sequence == point


async def test_moments_are_found_by_the_logs_clock() -> None:
    """The last fact at or before a time; none before the log begins."""
    story = told()
    log, _ = archive(stored(story.facts))
    assert await sequence_at(log, T0 - 1) == 0
    assert await sequence_at(log, T0) == 2
    assert await sequence_at(log, T0 + 10) == len(story.facts) - 1
    assert await sequence_at(log, T0 + 1e6) == len(story.facts)


async def test_a_point_that_the_log_does_not_hold_is_refused() -> None:
    """Beyond the end, or behind the beginning of a log that lacks its start."""
    messages = stored(told().facts)
    whole, _ = archive(messages)
    with pytest.raises(PointNotHeld, match="ends at"):
        async with past(whole, len(messages) + 1):
            pass
    tail, _ = archive(messages[3:])
    with pytest.raises(PointNotHeld, match="begins at 4"):
        async with past(tail, len(messages)):
            pass


async def test_a_difference_names_what_was_and_what_is() -> None:
    """Between before and after a chain: its entry on both nodes, itself, and nothing twice."""
    story = told()
    log, _ = archive(stored(story.facts))
    async with past(log, 2) as there:
        since = there.checkpoint.time
        before = picture(ClusterView(there.reader))
        await there.go_on(len(story.facts))
        found = list(changes(before, picture(ClusterView(there.reader), since)))
    assert {(c.section, c.kind) for c in found} == {("catalog", "added"), ("chains", "added")}
    [entry] = [c for c in found if c.section == "catalog"]
    assert entry.after is not None
    assert list(entry.after["locations"]) == ["gpu-1", "train-1"]
    assert {c.key: c.after["status"] for c in found if c.section == "chains" and c.after} == {
        "c1": "completed",
        "c2": "waiting for files",
    }


async def test_verify_names_the_first_row_that_is_not_the_fold(tmp_path: Path) -> None:
    """A changed row is found with its view, its key, what it is and what it should be."""
    story = told()
    log, _ = archive(stored(story.facts))
    projector = Projector(log, tmp_path / "views")
    await projector.start()
    await projector.close()
    assert (await verify(log, tmp_path / "views")).same
    current = StoreDirectory(tmp_path / "views").current()
    assert current is not None
    store = Store.open(current, TABLES)
    store.write(lambda tx: tx.put("chains", b"c0", b"\x91\xa1x"))
    store.close()
    verdict = await verify(log, tmp_path / "views")
    assert verdict.different == ["chains"]
    assert verdict.difference is not None
    named = (verdict.difference.view, verdict.difference.table, verdict.difference.key)
    assert named == ("chains", "chains", "c0")
    assert (verdict.difference.left, verdict.difference.right) == (["x"], None)


async def test_a_snapshot_is_used_only_where_the_log_is_the_one_it_was_taken_of(
    tmp_path: Path,
) -> None:
    """The newest at or before the point; none of another log, of a rewritten one, or unreadable."""
    story = told()
    messages = stored(story.facts)
    log, _ = archive(messages)
    snapshots = Snapshots(tmp_path / "snapshots", budget_bytes=1 << 40)
    for point in (3, 6):
        store = Store.open(tmp_path / f"views-{point}", TABLES)
        store.write(lambda tx, upto=point: fold(tx, story.facts[:upto], CREATED))  # type: ignore[misc]
        assert snapshots.take(store) == point
        store.close()
    there = tmp_path / "there"
    there.mkdir()
    assert await snapshots.bring(log, 8, there) == 6
    assert await snapshots.bring(log, 5, there) == 3
    assert await snapshots.bring(log, 2, there) == 0
    rewritten, _ = archive([*messages[:5], messages[6]._replace(sequence=6), *messages[6:]])
    assert await snapshots.bring(rewritten, 8, there) == 3
    packed = snapshots.path(6) / "data.mdb.zst"
    packed.write_bytes(packed.read_bytes()[:-20] + b"x" * 20)
    assert await snapshots.bring(log, 8, there) == 3
    async with past(log, len(messages), snapshots) as then:
        assert view_digests(then.reader) == story.digests()
    async with past(log, 3, snapshots) as then:
        assert then.checkpoint.sequence == 3, "what was tried on a snapshot is not in it"


class Counting(ReadOnly):
    """Counts the messages that are read of a log."""

    read_messages = 0

    async def read(self, **narrowed: Any) -> AsyncGenerator[list[Recorded], None]:
        async for batch in super().read(**narrowed):
            self.read_messages += len(batch)
            yield batch


async def test_lost_views_come_back_from_a_snapshot_and_the_tail(tmp_path: Path) -> None:
    """Only what lies behind the newest snapshot is folded again, and the views are the same."""
    story = told()
    log, _ = archive(stored(story.facts))
    snapshots = Snapshots(tmp_path / "snapshots", every=4, budget_bytes=1 << 40)
    half, _ = archive(stored(story.facts[:6]))
    for part, root in ((half, "one"), (log, "two")):
        counting = Counting(part)
        projector = Projector(counting, tmp_path / root, snapshots)
        await projector.start()
        with projector.store.read() as reader:
            digests = view_digests(reader)
        await projector.close()
    assert digests == story.digests()
    assert counting.read_messages == len(story.facts) - 6
    assert snapshots.sequences() == [6, len(story.facts)]


async def test_snapshots_of_another_log_are_deleted_before_a_rebuild(tmp_path: Path) -> None:
    """They would stand where new ones are due."""
    snapshots = Snapshots(tmp_path / "snapshots", every=4, budget_bytes=1 << 40)
    for facts in (told().facts, told().facts[2:]):
        messages = [m._replace(sequence=n) for n, m in enumerate(stored(facts), 1)]
        log, _ = archive(messages)
        projector = Projector(log, tmp_path / "views", snapshots)
        await projector.start()
        await projector.close()
    assert snapshots.sequences() == [len(told().facts) - 2]
    assert await snapshots.bring(log, 1000, tmp_path) == len(told().facts) - 2


@sampled(
    sizes=st.dictionaries(st.integers(1, 10**6), st.integers(1, 100), max_size=30),
    budget=st.integers(0, 1000),
)
def test_snapshots_are_thinned_out_to_the_budget_and_the_newest_stay(
    sizes: dict[int, int], budget: int
) -> None:
    """What is left fits, or is only the newest; they are never among what goes."""
    gone = superfluous(sizes, budget)
    left = sorted(set(sizes) - set(gone))
    assert len(gone) == len(set(gone))
    assert sum(sizes[s] for s in left) <= budget or len(left) <= KEEP_NEWEST
    assert sorted(sizes)[-KEEP_NEWEST:] == left[-KEEP_NEWEST:]


def test_snapshots_are_thinned_out_evenly() -> None:
    """Of many at equal distances every second one goes, not all of the old ones."""
    sizes = dict.fromkeys(range(100, 2100, 100), 1)
    left = sorted(set(sizes) - set(superfluous(sizes, 11)))
    gaps = [b - a for a, b in itertools.pairwise(left)]
    assert max(gaps) <= 300, left


async def test_where_the_time_went_is_the_line_of_causes_to_the_end() -> None:
    """The steps add up to the whole way, from the trigger to the end."""
    story = told()
    facts = [fact for fact in story.facts if fact.chain == "c1"]
    steps = where_time_went(facts)
    assert steps[0].cause.type == "SELFPLAY_COMPLETE"
    assert isinstance(steps[-1].effect.event, events.DataSyncCompleted)
    assert sum(step.seconds for step in steps) == steps[-1].effect.time - steps[0].cause.time


def test_nothing_that_writes_is_left_of_a_log_that_is_read() -> None:
    """`ReadOnly` has every reading method, and none of those by which a log can be changed."""
    writing = {"append", "publish", "consume"}
    assert writing <= set(dir(Log))
    members = {name for name, _ in inspect.getmembers(ReadOnly) if not name.startswith("_")}
    assert members == {"state", "read", "messages", "get", "close"}


def clock_of(moment: float) -> str:
    """A moment as the clock on the wall shows it."""
    return datetime.fromtimestamp(moment).strftime("%H:%M")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("10m", 400.0),
        ("1.5h", -4400.0),
        ("#12", 12),
        ("12", 12),
        ("1970-01-01T00:00:05+00:00", 5.0),
        (clock_of(900.0), 900.0),
        (clock_of(900.0).removeprefix("0"), 900.0),
    ],
)
def test_a_moment_is_a_time_or_a_sequence(text: str, moment: float) -> None:
    """``10m`` ago, a date and time, a sequence."""
    found = moment_of(text, "TIME", now=1000.0)
    assert (found, type(found)) == (moment, type(moment))
