"""The projector: views that were damaged or exchanged are folded anew, never gone on with."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from projections import projector as module
from projections.fold import checkpoint
from projections.projector import Projector
from projections.store import StoreCorrupt, StoreMissing
from streams.memory import MemoryLog
from tests.conftest import eventually
from tests.spec import as_fact, opens, played


async def log_of(count: int) -> MemoryLog:
    """A log of so many triggers."""
    log = MemoryLog()
    for number in range(count):
        await log.publish(as_fact(opens(f"chain-{number}", played("gpu-1")), number))
    return log


async def folded(log: MemoryLog, root: Path) -> Path:
    """Fold a log, and end; where its views are."""
    projector = Projector(log, root)
    await projector.start()
    path = projector.store.path
    await projector.close()
    return path


async def test_views_that_were_cut_short_are_folded_anew(tmp_path: Path) -> None:
    """To read them would end each process that is started, by a signal."""
    log = await log_of(200)
    path = await folded(log, tmp_path)
    os.truncate(path / "data.mdb", (path / "data.mdb").stat().st_size // 2)
    assert await folded(log, tmp_path) != path


async def test_views_that_end_each_who_opens_them_are_folded_anew(tmp_path: Path) -> None:
    """Of damage that ends a process by a signal nobody can tell the next one."""
    log = await log_of(3)
    path = await folded(log, tmp_path)
    killed = []
    for _ in range(module.MOST_ENDED):
        projector = Projector(log, tmp_path)
        await projector.start()
        assert projector.store.path == path
        killed.append(projector)
        projector.store.close()  # as a kill does: without a word
    assert await folded(log, tmp_path) != path


async def test_views_in_which_damage_was_met_are_folded_anew_by_the_next(tmp_path: Path) -> None:
    """Opening them does not show it; who met it has said so, and remembers."""
    log = await log_of(300)
    path = await folded(log, tmp_path)
    content = bytearray((path / "data.mdb").read_bytes())
    content[4 * 4096 :] = bytes(len(content) - 4 * 4096)
    projector = Projector(log, tmp_path)
    await projector.start()
    (path / "data.mdb").write_bytes(content)
    with pytest.raises(StoreCorrupt), projector.store.read() as reader:
        checkpoint(reader)
    await projector.close()
    assert await folded(log, tmp_path) != path


async def test_who_works_for_a_while_or_ends_in_peace_leaves_no_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is started again."""
    monkeypatch.setattr(module, "SOON_S", 0.0)
    log = await log_of(3)
    path = await folded(log, tmp_path)
    for _ in range(2 * module.MOST_ENDED):
        projector = Projector(log, tmp_path)
        await projector.start()
        projector.check_in_place()
        projector.store.close()
        assert await folded(log, tmp_path) == path


async def test_views_in_the_place_of_the_open_ones_are_noticed(tmp_path: Path) -> None:
    """What is folded on nobody else would see."""
    log = await log_of(3)
    other = await folded(await log_of(9), tmp_path / "other")
    projector = Projector(log, tmp_path / "views")
    await projector.start()
    projector.check_in_place()
    (other / "data.mdb").replace(projector.store.path / "data.mdb")
    with pytest.raises(StoreMissing, match="others put in their place"):
        projector.check_in_place()
    await projector.close()


async def test_views_that_somebody_else_changes_are_not_folded_on(tmp_path: Path) -> None:
    """Facts that they seem to have seen would be passed over, without a word."""
    log = await log_of(3)
    other = await folded(await log_of(9), tmp_path / "other")
    projector = Projector(log, tmp_path / "views")
    await projector.start()
    shutil.copyfile(other / "data.mdb", projector.store.path / "data.mdb")
    await log.publish(as_fact(opens("late", played("gpu-1")), 3))
    running = asyncio.create_task(projector.run())
    await eventually(running.done)
    with pytest.raises(StoreCorrupt, match="folded up to 3, and are at 9 now"):
        await running
    await projector.close()
