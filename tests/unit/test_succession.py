"""A machine that takes over the name of one that was to go, and one that only begins anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.agent import machine
from dataplane.agent.machine import marks
from dataplane.agent.succession import began_empty, is_another, take_over
from projections.nodes import LEAVING_S
from streams import events
from streams.memory import MemoryLog
from tests.spec import as_fact, player

OLD, NEW = ("installation-1", "boot-1"), ("installation-2", "boot-2")
GOES, STAYS = events.NodeTerminating(node="gpu-1"), events.NodeDrainCancelled(node="gpu-1")
BACK = events.NodeRecovered(node="gpu-1")


def joins(machine: str, boot: str, *, changed: bool = False) -> events.NodeRegistered:
    """gpu-1 joins, or tells what changed, on this machine."""
    return events.NodeRegistered(player("gpu-1").description, changed, machine, boot)


async def taken_over(
    *before: events.Event, by: tuple[str, str] = NEW, later_s: float = 0.0
) -> list[str]:
    """What is said once all this was, in order; "forgets" for what was held before."""
    log, said = MemoryLog(lambda: 1_000.0), []
    for number, event in enumerate(before, 1):
        await log.publish(as_fact(event, number))

    async def forget() -> None:
        said.append("forgets")

    count = (await log.state()).last_sequence
    done = await take_over(log, "gpu-1", joins(*by), forget, lambda: 1_000.0 + later_s)
    async for batch in log.read(after=count, until=(await log.state()).last_sequence):
        said += [fact.type for fact in batch]
    assert done is bool(said)
    return said


async def test_another_machine_with_nothing_on_it_stays() -> None:
    """What the one before it held is no longer here: only then what it holds counts."""
    assert await taken_over(joins(*OLD), GOES) == ["forgets", "NODE_DRAIN_CANCELLED"]
    changed = joins(*OLD, changed=True)
    assert await taken_over(joins(*OLD), STAYS, GOES, changed) == [
        "forgets",
        "NODE_DRAIN_CANCELLED",
    ]


@pytest.mark.parametrize(
    ("before", "by"),
    [
        ((), NEW),
        ((GOES,), NEW),
        ((joins(*OLD), GOES), OLD),
        ((joins(*OLD), GOES), (OLD[0], NEW[1])),
        ((joins(*OLD), GOES), (NEW[0], OLD[1])),
        ((joins(*OLD), GOES), ("", NEW[1])),
        ((joins("", OLD[1]), GOES), NEW),
        ((joins("", ""), GOES), NEW),
        ((joins(*OLD),), NEW),
        ((joins(*OLD), GOES, STAYS), NEW),
        ((joins(*OLD), GOES, BACK), NEW),
    ],
    ids=[
        "nobody before",
        "never joined",
        "the same",
        "booted once more",
        "a container made anew on it",
        "can't tell now",
        "could not tell then",
        "of an older version",
        "was not to go",
        "was taken back",
        "is back",
    ],
)
async def test_nothing_is_taken_back_where_it_may_be_the_same_machine(
    before: tuple[events.Event, ...], by: tuple[str, str]
) -> None:
    """Or where nothing is to be taken back."""
    assert await taken_over(*before, by=by) == []


async def test_what_was_said_a_day_ago_needs_no_taking_back() -> None:
    """By then it stays for everybody."""
    assert await taken_over(joins(*OLD), GOES, later_s=LEAVING_S + 1) == []


def test_a_directory_is_empty_but_for_what_is_not_data(tmp_path: Path) -> None:
    """A disk that was moved to another machine brings its files along."""
    data = tmp_path / "data"
    assert began_empty(data)
    (data / ".dataplane").mkdir(parents=True)
    assert began_empty(data)
    (data / "games").mkdir()
    assert not began_empty(data)


def test_a_machine_says_what_tells_it_from_others_and_not_what_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same each time; nothing where the system does not say."""
    installation, boot = tmp_path / "machine-id", tmp_path / "boot_id"
    monkeypatch.setattr(machine, "_INSTALLATION", installation)
    monkeypatch.setattr(machine, "_BOOT", boot)
    assert marks() == ("", "")
    installation.write_text("uninitialized\n")
    boot.write_text("\n")
    assert marks() == ("", "")
    installation.write_text("3d1219c7c4c5404aaa1f6d2a48adfda4\n")
    boot.write_text("c86f1451-22da-4597-8523-8e2352b068e5\n")
    one, other = marks()
    assert (one, other) == marks() and one != other
    assert "3d1219c7" not in one and "c86f1451" not in other
    assert not is_another(joins(one, other), joins(one, other))
