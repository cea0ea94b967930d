"""Commands that look back say the same of a bus, an archive and exported files.

Whoever looks at a file has nothing else: neither a bus nor views on his machine.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from adapters.blobs import DirectoryBlobs
from dataplane.audit.archive import extend
from dataplane.audit.exporting import export_log, import_log
from dataplane.cli import views
from dataplane.cli.app import EXIT_STATUS, arguments, main
from dataplane.config import DataPlaneConfig
from projections.projector import Projector
from tests.conftest import Server, empty_log, wipe
from tests.kept import archive, stored
from tests.spec import after, games_of, given, played, player, ran, trainer

YES, NO, WRONG, NOBODY = EXIT_STATUS
FIRST, SECOND = games_of("gpu-1", "first", games=30), games_of("gpu-1", "second", games=60)
PATH = FIRST.path
NOWHERE = "nats://127.0.0.1:1"


class Said(NamedTuple):
    """What a command answered."""

    status: int
    text: str


class Place(NamedTuple):
    """One log by all its names, and the point between its two chains."""

    sources: dict[str, str]
    between: str
    #: Where a machine with views has them.
    state_dir: Path
    url: str


@pytest.fixture
def place(nats_server: Server, tmp_path: Path) -> Place:
    """Two chains that brought two versions to a trainer; on a bus, archived and exported."""
    story = given(
        trainer("train-1"),
        player("gpu-1"),
        ran("chain-one", played("gpu-1", 30), FIRST),
        after(60.0),
        ran("chain-two", played("gpu-1", 60), SECOND),
    )
    kept, _ = archive(stored(story.facts))
    first = next(fact.sequence for fact in story.facts if fact.chain == "chain-two")
    sources = {
        "nats": "nats",
        "archive": str(tmp_path / "archive"),
        "jsonl": str(tmp_path / "log.jsonl"),
        "parquet": str(tmp_path / "log.parquet"),
    }
    state_dir = tmp_path / "state"

    async def make() -> None:
        await export_log(kept, Path(sources["jsonl"]))
        async with empty_log(nats_server.url) as log:
            await wipe(log)
            await import_log(Path(sources["jsonl"]), log)
            await export_log(log, Path(sources["parquet"]))
            await extend(DirectoryBlobs(Path(sources["archive"])), log)
            config = DataPlaneConfig.load(state_dir=state_dir, node="here")
            projector = Projector(log, config.views_dir)
            await projector.start(until=len(story.facts))
            await projector.close()

    asyncio.run(make())
    return Place(sources, f"#{first - 1}", state_dir, nats_server.url)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Said]]:
    """Runs ``dataplane`` in this process."""

    def run(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["dataplane", *words])
        monkeypatch.setattr(views, "moment", None)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        caught = capsys.readouterr()
        status = ended.value.code
        assert status is None or isinstance(status, int)
        return Said(status or 0, caught.out + caught.err)

    before = dict(arguments)
    yield run
    arguments.clear()
    arguments.update(before)


def machine(place: Place, source: str, tmp_path: Path) -> list[str]:
    """Options of a machine that has the bus and the views, or nothing but the file."""
    return ["--state-dir", str(place.state_dir if source == "nats" else tmp_path / "nothing")]


#: Commands, where --from stands in them, and what they must say: a status and words.
QUESTIONS: list[tuple[str, int, str]] = [
    ("replay FROM --type NEW_GAMES_AVAILABLE", YES, "chain-two"),
    ("replay FROM --node train-1 --until BETWEEN", YES, "TRANSFER_ASSIGNED"),
    ("replay FROM --chain chain-o", YES, "DATA_SYNC_COMPLETED"),
    ("replay FROM --node tran-1", WRONG, "did you mean 'train-1'"),
    ("chain FROM chain-o", YES, "chain chain-one: completed"),
    ("chain FROM chain-t --tree", YES, "SYNC_PLANNED"),
    ("chain FROM chain-three", WRONG, "there is no chain 'chain-three'"),
    ("why FROM PATH train-1", YES, "(60 games"),
    ("why FROM PATH train-9", WRONG, "'train-9' never joined; known: gpu-1, train-1"),
    ("why-not FROM PATH train-1", NO, "(60 games"),
    ("at FROM BETWEEN where PATH", YES, "30"),
    ("at BETWEEN FROM where PATH", YES, "30"),
    ("at BETWEEN FROM why PATH train-1", YES, "(30 games"),
    ("at BETWEEN why PATH train-1 FROM", YES, "(30 games"),
    ("at BETWEEN FROM why-not PATH train-1", NO, "(30 games"),
    ("at #3 FROM why PATH train-1", NO, "no node ever reported such a file"),
    ("at BETWEEN FROM chain chain-one", YES, "completed"),
    ("at BETWEEN FROM chain chain-two", WRONG, "there is no chain"),
    ("at BETWEEN FROM nodes", YES, "train-1"),
    ("diff FROM BETWEEN 0s", YES, "chain-two"),
    ("whatif FROM --policy RULES", YES, "2 decisions"),
    ("export FROM NEW", YES, "messages in"),
]


@pytest.mark.parametrize("source", ["nats", "archive", "jsonl", "parquet"])
def test_what_looks_back_says_the_same_of_every_source(
    place: Place,
    command: Callable[..., Said],
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each command with ``--from``, at a moment and at the end; and what it refuses."""
    monkeypatch.setenv("DATAPLANE_NATS_URL", place.url if source == "nats" else NOWHERE)
    rules = tmp_path / "rules.toml"
    rules.write_text("")
    for number, (question, status, words) in enumerate(QUESTIONS):
        asked: list[str] = []
        for word in question.split():
            meant: dict[str, list[str]] = {
                "FROM": ["--from", place.sources[source]],
                "BETWEEN": [place.between],
                "PATH": [PATH],
                "RULES": [str(rules)],
                "NEW": [str(tmp_path / f"{number}.jsonl")],
            }
            asked += meant.get(word, [word])
        said = command(*machine(place, source, tmp_path), *asked)
        assert said.status == status, (question, said)
        assert words in " ".join(said.text.split()), (question, said)

    same = command("--state-dir", str(place.state_dir), "verify", "--from", place.sources[source])
    assert (same.status, "the fold of the log" in same.text) == (YES, True), same
    if source != "nats":
        said = command("replay", "--from", place.sources[source], "--follow")
        assert (said.status, "--follow" in said.text) == (WRONG, True), said


def test_whatif_prints_what_would_be_different(
    place: Place, command: Callable[..., Said], tmp_path: Path
) -> None:
    """A table of both policies side by side, then each chain with what it would have lacked."""
    rules = tmp_path / "rules.toml"
    rules.write_text('[policy.exclusion]\nexclude_hosts = ["train-1"]\n')
    said = command("whatif", "--from", place.sources["jsonl"], "--policy", str(rules))
    lines = [line.split() for line in said.text.splitlines()]
    assert "2 decisions; today's policy takes 2 of them as they were recorded" in said.text
    assert ["today", "then"] in lines
    moved = str(FIRST.size_bytes + SECOND.size_bytes)
    for row in (["plans", "2", "0"], ["copies", "2", "0"], ["bytes", moved, "0"]):
        assert row in lines, said.text
    # Neither policy has a third node; without the trainer there is not even a second copy.
    for row in (["deadlines_missed", "0", "0"], ["below_minimum", "2", "2"], ["blocked", "0", "0"]):
        assert row in lines, said.text
    for chain in ("chain-one", "chain-two"):
        at = lines.index(["chain", chain, "(SELFPLAY_COMPLETE", "of", "gpu-1)"])
        assert lines[at + 1] == ["-", PATH, "to", "train-1"]


def test_a_file_is_not_written_over_unless_that_is_said(
    place: Place, command: Callable[..., Said], tmp_path: Path
) -> None:
    """A second export names the file and how to go on; the first one is still there."""
    file, source = tmp_path / "again.jsonl", place.sources["jsonl"]
    file.write_text("mine")
    refused = command("export", str(file), "--from", source)
    assert (refused.status, "is there already; --force" in refused.text) == (WRONG, True), refused
    assert file.read_text() == "mine"
    assert command("export", str(file), "--from", source, "--force").status == YES
    assert file.read_bytes() == Path(source).read_bytes()


def test_a_place_that_is_no_archive_is_said_to_be_none(
    command: Callable[..., Said], tmp_path: Path
) -> None:
    """Whichever command is pointed at it."""
    for words in (("replay",), ("verify",), ("diff", "1h")):
        said = command(*words, "--from", str(tmp_path))
        assert said.status == WRONG, said
        assert "is no archive: it has no manifest.json" in " ".join(said.text.split())
    said = command("archive", "verify", "--at", str(tmp_path))
    assert "is no archive" in " ".join(said.text.split())
