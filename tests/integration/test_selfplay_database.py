"""A self-play process that writes while others copy: every copy holds whole games, in order."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.demo.gamedb import StoredGame, append_games, count_games, open_database
from dataplane.demo.hex import play
from dataplane.demo.selfplay import Options, run
from streams.events import SelfplayComplete

MODULE = "dataplane.demo.selfplay"
CHILD_TABLES = ("game_moves", "game_choices", "history")


def game(number: int) -> StoredGame:
    """Any game, with an id made from its number."""
    return StoredGame(f"game-{number}", play("hex8", random.Random(number)), "gpu-1", 1e9 + number)


def options(data_dir: Path, **changes: object) -> Options:
    """A node that plays two short rounds of both configurations without a pause."""
    given: dict[str, object] = {
        "data_dir": data_dir,
        "node": "gpu-1",
        "config_keys": ("hex8_2p", "square8_2p"),
        "rounds": 2,
        "games_per_round": 4,
        "seed": 1,
        "pause_s": 0.0,
        "live_games": 3,
    }
    return Options(**{**given, **changes})  # type: ignore[arg-type]


@contextlib.contextmanager
def selfplay_process(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A real self-play process that plays until it is told to stop; it has announced one round."""
    command = [sys.executable, "-m", MODULE, "--data-dir", str(data_dir), "--node", "gpu-1"]
    command += ["--config-key", "hex8_2p", "--rounds", "1000000", "--games-per-round", "10"]
    command += ["--seed", "1", "--pause", "0", "--padding-kb", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["games_in_db"] == 10
            yield process
        finally:
            process.kill()


def copied(source: Path, target: Path) -> None:
    """Copy a database with the backup API, read-only at its source."""
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as reader,
        contextlib.closing(sqlite3.connect(target)) as writer,
    ):
        reader.backup(writer)


def committed_prefix(path: Path) -> int:
    """The games in a database, after a check that they are the first ones, whole and sound."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = db.execute("SELECT game_id, total_moves FROM games ORDER BY game_id").fetchall()
        numbers = [int(game_id.rpartition("-")[2]) for game_id, _ in rows]
        assert numbers == list(range(1, len(rows) + 1))
        for table in CHILD_TABLES:
            counts = db.execute(f"SELECT game_id, count(*) FROM {table} GROUP BY 1 ORDER BY 1")
            assert counts.fetchall() == rows, table
    return len(rows)


def test_copy_of_a_live_database_holds_a_committed_prefix(tmp_path: Path) -> None:
    """P7: each copy made while another process commits is sound, whole, and never shrinks."""
    source = tmp_path / "node" / "games" / "hex8_2p.db"
    counts: list[int] = []
    with selfplay_process(tmp_path / "node"):
        while len(set(counts)) < 5:
            copy = tmp_path / f"copy-{len(counts)}.db"
            copied(source, copy)
            counts.append(committed_prefix(copy))
    assert counts == sorted(counts)
    assert counts[0] >= 10


def test_sigterm_ends_the_process_after_a_whole_game(tmp_path: Path) -> None:
    """Told to stop, the process exits with 0 and leaves only whole games."""
    source = tmp_path / "games" / "hex8_2p.db"
    with selfplay_process(tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 0
    assert committed_prefix(source) == count_games(source) >= 10


def test_killed_process_leaves_only_whole_games(tmp_path: Path) -> None:
    """A process killed outright loses at most the game at hand, never a part of one."""
    with selfplay_process(tmp_path) as process:
        process.kill()
        process.communicate(timeout=30)
    assert committed_prefix(tmp_path / "games" / "hex8_2p.db") >= 10


def test_each_round_announces_the_games_since_the_last_one(tmp_path: Path) -> None:
    """Announced counts add up to the games in the file, those between the rounds included."""
    events: list[SelfplayComplete] = []

    def publish(event: SelfplayComplete) -> str:
        events.append(event)
        return f"event-{len(events)}"

    run(options(tmp_path), publish, stopping=lambda: False)
    said = [(event.config_key, event.games_count, event.path) for event in events]
    assert said == [
        ("hex8_2p", 4, "games/hex8_2p.db"),
        ("square8_2p", 4, "games/square8_2p.db"),
        ("hex8_2p", 7, "games/hex8_2p.db"),
        ("square8_2p", 7, "games/square8_2p.db"),
    ]
    assert count_games(tmp_path / "games" / "hex8_2p.db") == 11
    assert count_games(tmp_path / "games" / "square8_2p.db") == 11


def test_each_round_prints_one_line_with_the_event_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a round printed says where the games are, how many, and by which event."""
    one_config = options(tmp_path, config_keys=("hex8_2p",))
    run(one_config, lambda event: "event-1", stopping=lambda: False)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["round"], line["games_in_db"]) for line in lines] == [(1, 4), (2, 11)]
    assert {line["event_id"] for line in lines} == {"event-1"}


def test_restarted_node_goes_on_with_new_games(tmp_path: Path) -> None:
    """A second run with the same seed adds games beside the first ones, none of them twice."""
    for _ in range(2):
        run(options(tmp_path, rounds=1), lambda event: "", stopping=lambda: False)
    assert committed_prefix(tmp_path / "games" / "hex8_2p.db") == 8


def test_padding_makes_a_game_as_large_as_asked(tmp_path: Path) -> None:
    """100 KB of statistics for each game make a file of four games between 0.3 and 0.7 MB."""
    run(options(tmp_path, rounds=1, padding_kb=100), lambda event: "", stopping=lambda: False)
    assert 300_000 < (tmp_path / "games" / "hex8_2p.db").stat().st_size < 700_000


def test_game_that_is_there_already_leaves_no_trace(tmp_path: Path) -> None:
    """A repeated id is refused as a whole; games committed before it stay."""
    path = tmp_path / "hex8_2p.db"
    with contextlib.closing(open_database(path)) as db:
        assert append_games(db, [game(1)]) == 1
        with pytest.raises(sqlite3.IntegrityError):
            append_games(db, [game(2), game(1), game(3)])
    assert committed_prefix(path) == 2


def test_database_is_in_wal_mode_and_a_missing_one_has_no_games(tmp_path: Path) -> None:
    """The mode lasts in the file, and counting creates nothing."""
    path = tmp_path / "hex8_2p.db"
    assert count_games(path) == 0
    assert not path.exists()
    open_database(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
