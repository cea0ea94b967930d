"""Games of all databases of a node in one, as they come: each once, and said."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters.files import merging, sqlite
from adapters.files.gametables import NotMergeable
from adapters.files.inventory import Inventory
from adapters.files.sqlite import Locked
from dataplane.agent.apart import merge_apart, noting
from dataplane.agent.consolidating import Consolidator
from dataplane.policy import Quality
from streams import events
from streams.codec import Fact
from streams.identity import PathRules
from tests.unit.test_inventory import NODE, settle, told
from tests.unit.test_merging import assert_whole, games_in, opened, played

INTO = "games/canonical_{config}.db"


class Node:
    """A data root, and what is said of merging in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 1_000.0
        self.inventory = Inventory(root, NODE)
        self.said: list[Fact] = []
        self.merges: list[str] = []
        self.fails: Exception | None = None
        self.consolidator = self.anew()

    def anew(self) -> Consolidator:
        """As after a restart."""
        return self.consolidating(merge=self.merge)

    def consolidating(self, **more: Any) -> Consolidator:
        """With what is given besides."""
        return Consolidator(
            self.say,
            NODE,
            self.root,
            self.inventory,
            PathRules(),
            Quality(),
            INTO,
            clock=lambda: self.now,
            **more,
        )

    async def say(self, fact: Fact) -> None:
        """What the agent would send."""
        self.said.append(fact)

    async def merge(
        self, target: Path, source: Path, quality: Quality, note: Path
    ) -> merging.Merged:
        """Merge here: nobody else reads these files."""
        self.merges.append(source.name)
        if self.fails is not None:
            raise self.fails
        return merging.merge(target, source, quality.complete_from, begins=noting(note))

    async def look(self) -> list[events.Event]:
        """Scan, merge what is due, and tell what was said of it."""
        await told(self.inventory)
        before = len(self.said)
        await self.consolidator.look()
        return [fact.event for fact in self.said[before:]]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node without games."""
    (tmp_path / "root/games/gpu-1").mkdir(parents=True)
    node = Node(tmp_path / "root")
    yield node
    await node.inventory.close()


async def test_k20_games_of_all_databases_of_a_configuration_are_merged_and_said(
    node: Node,
) -> None:
    """Its own and those that came; each configuration by itself."""
    played(node.root / "games/hex8_2p.db", ["own"])
    played(node.root / "games/gpu-1/hex8_2p.db", ["a", "b"])
    played(node.root / "games/gpu-1/hex8_2p.db", ["short"], moves=3)
    played(node.root / "games/square8_2p.db", ["other"], board="square8")
    said = await node.look()
    assert games_in(node.root / "games/canonical_hex8_2p.db") == {"own", "a", "b"}
    assert games_in(node.root / "games/canonical_square8_2p.db") == {"other"}
    assert_whole(node.root / "games/canonical_hex8_2p.db")
    first = next(one for one in said if getattr(one, "games_left", 0))
    assert isinstance(first, events.GamesMerged)
    assert (first.path, first.games_added) == ("games/canonical_hex8_2p.db", 2)
    assert len(said) == 3


async def test_what_was_merged_is_not_looked_at_again_and_what_was_added_is(node: Node) -> None:
    """Nor is the consolidated database itself; also after a restart."""
    file = played(node.root / "games/hex8_2p.db", ["a"])
    assert len(await node.look()) == 1
    assert await node.look() == []
    assert node.merges == ["hex8_2p.db"]
    played(file, ["b"])
    settle(file)
    [said] = await node.look()
    assert isinstance(said, events.GamesMerged)
    assert (said.games_added, said.games_there) == (1, 1)


async def test_a_target_that_is_locked_is_tried_again_later(node: Node) -> None:
    """Ever later, and without a word that it was done."""
    played(node.root / "games/hex8_2p.db", ["a"])
    node.fails = Locked("somebody writes")
    assert await node.look() == []
    assert await node.look() == []
    assert len(node.merges) == 1
    node.fails, node.now = None, node.now + 60.0
    assert len(await node.look()) == 1


async def test_a_database_that_can_not_be_merged_is_in_the_way_of_no_other(node: Node) -> None:
    """It is tried again once it has changed."""
    with opened(node.root / "games/a_hex8_2p.db", "CREATE TABLE games (moves TEXT)") as db, db:
        db.execute("INSERT INTO games VALUES ('e4')")
    played(node.root / "games/hex8_2p.db", ["a"])
    assert len(await node.look()) == 1
    assert node.merges == ["a_hex8_2p.db", "hex8_2p.db"]
    assert await node.look() == []
    assert len(node.merges) == 2


async def test_it_merges_in_a_process_of_its_own(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7: here the inventory reads past SQLite, which would drop the locks of who merges."""
    monkeypatch.setattr(sqlite, "writing", None)
    played(node.root / "games/hex8_2p.db", ["a"])
    await told(node.inventory)
    await node.consolidating().look()
    assert games_in(node.root / "games/canonical_hex8_2p.db") == {"a"}
    assert len(node.said) == 1
    node.consolidator = node.anew()
    assert await node.look() == [], "after a restart it is known"


async def test_errors_of_another_process_are_raised_as_what_they_are(tmp_path: Path) -> None:
    """With their words; and one that died is told from one that refused."""
    source = played(tmp_path / "hex8_2p.db", ["a"])
    (tmp_path / "text.db").write_text("no database")
    with pytest.raises(NotMergeable, match=r"text\.db is no SQLite database"):
        await merge_apart(tmp_path / "text.db", source, Quality(), tmp_path / "note")
    with pytest.raises(OSError, match="does not exist"):
        await merge_apart(tmp_path / "all.db", tmp_path / "none.db", Quality(), tmp_path / "note")


# Killed in between


_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.unit import test_consolidating as tests
from adapters.files import merging

root, batch, point = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
merging._FIRST_BATCH = merging._MOST = batch


class Killed(tests.Node):
    async def merge(self, target, source, quality, note):
        def progress(done, total):
            if point == "merging":
                os.kill(os.getpid(), signal.SIGKILL)
        return merging.merge(
            target, source, quality.complete_from, begins=tests.noting(note), progress=progress
        )

    async def say(self, fact):
        if point == "saying":
            os.kill(os.getpid(), signal.SIGKILL)
        Path(sys.argv[4]).write_text(fact.id)
        if point == "said":
            os.kill(os.getpid(), signal.SIGKILL)


asyncio.run(Killed(root).look())
"""


@pytest.mark.parametrize("point", ["merging", "agent.merged", "saying", "said"])
async def test_games_that_a_killed_process_has_merged_are_said_all_the_same(
    point: str, tmp_path: Path
) -> None:
    """Once, and all of them: those that came before it was killed, and those that come after."""
    (tmp_path / "root/games/gpu-1").mkdir(parents=True)
    played(tmp_path / "root/games/canonical_hex8_2p.db", ["old"])
    played(tmp_path / "root/games/z_hex8_2p.db", ["old", "a", "b", "c", "d"])
    said = tmp_path / "said"
    words = (_KILLED, str(tmp_path / "root"), "2", point, str(said))
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", *words, env={**os.environ, "DATAPLANE_KILL_AT": point}
    )
    assert await killed.wait() == -signal.SIGKILL
    # Another brings the same games meanwhile, and stands before it by name.
    played(tmp_path / "root/games/a_hex8_2p.db", ["c", "e"])
    node = Node(tmp_path / "root")
    try:
        told_ = await node.look()
        assert await node.look() == []
    finally:
        await node.inventory.close()
    assert games_in(tmp_path / "root/games/canonical_hex8_2p.db") == {"old", *"abcde"}
    found = [(e.source, e.games_added, e.games_there) for e in told_]  # type: ignore[attr-defined]
    assert found == [("games/gpu-7/z_hex8_2p.db", 4, 1), ("games/gpu-7/a_hex8_2p.db", 1, 1)]
    if point == "said":
        assert said.read_text() == node.said[0].id
    assert not list((tmp_path / "root/.dataplane").glob("merging-*"))
