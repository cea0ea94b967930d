"""Merging game databases: every complete game once and whole, whoever writes or dies meanwhile."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from adapters.files import merging
from adapters.files.gametables import NotMergeable
from adapters.files.merging import Merged, merge
from adapters.files.sqlite import Locked, Unsound, check
from dataplane.cli.app import app
from dataplane.policy import Quality
from tests.unit.test_sqlite import trace

complete_from = Quality().complete_from
CHILDREN = ("game_moves", "game_players", "game_choices", "choice_options")
SCHEMA = """
CREATE TABLE IF NOT EXISTS games (
    game_id TEXT PRIMARY KEY, board_type TEXT, num_players INTEGER, total_moves INTEGER);
CREATE TABLE IF NOT EXISTS game_moves (
    game_id TEXT, move_number INTEGER, position TEXT, PRIMARY KEY (game_id, move_number));
CREATE TABLE IF NOT EXISTS game_players (game_id TEXT, player INTEGER);
CREATE TABLE IF NOT EXISTS game_choices (
    id INTEGER PRIMARY KEY AUTOINCREMENT, game_id TEXT NOT NULL, chosen TEXT);
CREATE TABLE IF NOT EXISTS choice_options (
    id INTEGER PRIMARY KEY, game_id TEXT, choice_id INTEGER REFERENCES game_choices (id));
CREATE TABLE IF NOT EXISTS schema_metadata (key TEXT PRIMARY KEY, value TEXT);
INSERT OR IGNORE INTO schema_metadata VALUES ('version', '7');
"""


def add_game(db: sqlite3.Connection, id: str, moves: int = 20, board: str = "hex8") -> None:
    """One game with rows in all tables, in one transaction."""
    with db:
        db.execute("INSERT INTO games VALUES (?, ?, 2, ?)", (id, board, moves))
        lines = [(id, move, f"{id}-{move}") for move in range(moves)]
        db.executemany("INSERT INTO game_moves VALUES (?, ?, ?)", lines)
        db.executemany("INSERT INTO game_players VALUES (?, ?)", [(id, 1), (id, 2)])
        said = "INSERT INTO game_choices (game_id, chosen) VALUES (?, ?)"
        choice = db.execute(said, (id, f"{id} chose")).lastrowid
        said = "INSERT INTO choice_options (game_id, choice_id) VALUES (?, ?)"
        db.executemany(said, [(id, choice), (id, choice)])


def opened(path: Path, schema: str = SCHEMA) -> contextlib.closing[sqlite3.Connection]:
    """A database in WAL mode, made if needed."""
    db = sqlite3.connect(path, timeout=30)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(schema)
    return contextlib.closing(db)


def played(path: Path, ids: Iterable[str], moves: int = 20, board: str = "hex8") -> Path:
    """A database with these games."""
    with opened(path) as db:
        for id in ids:
            add_game(db, id, moves, board)
    return path


def asked(path: Path, query: str) -> list[tuple[object, ...]]:
    """What a query answers."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as db:
        return db.execute(query).fetchall()


def games_in(path: Path) -> set[object]:
    """Ids of the games, of which none may be there twice."""
    ids = [row[0] for row in asked(path, "SELECT game_id FROM games")]
    assert len(ids) == len(set(ids))
    return set(ids)


def assert_whole(path: Path) -> None:
    """The database is sound, and each game has all rows of its own and no row is without one."""
    assert check(path) is None
    for table in CHILDREN:
        assert not asked(
            path, f"SELECT * FROM {table} WHERE game_id NOT IN (SELECT game_id FROM games)"
        )
    per_game = """SELECT g.game_id, g.total_moves,
        (SELECT count(*) FROM game_moves m WHERE m.game_id = g.game_id
            AND m.position = g.game_id || '-' || m.move_number),
        (SELECT count(*) FROM game_players p WHERE p.game_id = g.game_id),
        (SELECT count(*) FROM choice_options o JOIN game_choices c ON c.id = o.choice_id
            WHERE o.game_id = g.game_id AND c.game_id = g.game_id
            AND c.chosen = g.game_id || ' chose')
        FROM games g"""
    for id, total, moves, players, options in asked(path, per_game):
        assert (moves, players, options) == (total, 2, 2), id


def test_k20_complete_games_come_over_with_all_their_rows(tmp_path: Path) -> None:
    """K20: only new ids, all child tables; what is merged again adds nothing."""
    target = played(tmp_path / "all.db", ["a", "both"])
    source = played(tmp_path / "one.db", ["both", "b", "c"])
    played(source, ["short"], moves=19)
    first = merge(target, source, complete_from)
    assert (first.added, first.there) == (2, 1)
    assert first.left == {"hex8_2p: fewer than 20 moves": 1}
    assert first.rows["game_moves"] == 40
    again = merge(target, source, complete_from)
    assert (again.added, again.there, sum(again.rows.values())) == (0, 3, 0)
    assert games_in(target) == {"a", "both", "b", "c"}
    assert_whole(target)


def test_a_target_that_is_not_there_begins_as_the_source_is(tmp_path: Path) -> None:
    """With its indexes, and with what its tables say of themselves."""
    source = played(tmp_path / "one.db", ["a"])
    with opened(source) as db:
        db.executescript("CREATE INDEX by_board ON games (board_type); PRAGMA user_version = 9")
    target = tmp_path / "new/all.db"
    assert merge(target, source, complete_from).added == 1
    assert asked(target, "SELECT * FROM schema_metadata") == [("version", "7")]
    assert asked(target, "PRAGMA user_version") == [(9,)]
    assert asked(target, "SELECT name FROM sqlite_master WHERE name LIKE 'by%'") == [("by_board",)]
    assert_whole(target)


def test_the_source_is_only_read(tmp_path: Path) -> None:
    """P7: nothing in it or beside it changes, also where a writer has it open."""
    source = tmp_path / "here/one.db"
    source.parent.mkdir()
    with opened(source) as writer:
        add_game(writer, "a")
        before = trace(source)
        assert merge(tmp_path / "all.db", source, complete_from).added == 1
        assert trace(source) == before
    assert not list(tmp_path.glob(".merging-*"))


@pytest.mark.parametrize(
    ("board", "moves", "comes"),
    [
        ("hex8", 20, 1),
        ("square19", 49, 0),
        ("square19", 50, 1),
        ("hexagonal", 49, 0),
        ("hex9", 5, 1),
    ],
)
def test_k4_a_game_is_complete_from_its_configurations_moves(
    tmp_path: Path, board: str, moves: int, comes: int
) -> None:
    """K4: by the game's own board and players, and moves that are really there."""
    source = played(tmp_path / "hex8_4p.db", ["a"], moves, board)
    assert merge(tmp_path / "all.db", source, complete_from).added == comes


def test_k4_the_moves_that_are_there_count_not_those_that_are_claimed(tmp_path: Path) -> None:
    """A game that says it has moves and lost them is not complete."""
    source = played(tmp_path / "one.db", ["a", "b"])
    with opened(source) as db, db:
        db.execute("DELETE FROM game_moves WHERE game_id = 'b' AND move_number > 3")
    assert merge(tmp_path / "all.db", source, complete_from).added == 1


def test_k20_columns_are_matched_by_name(tmp_path: Path) -> None:
    """In another order, with some that one side lacks, and with a table that the target lacks."""
    target = tmp_path / "all.db"
    games = "games (extra TEXT DEFAULT 'none', total_moves INT, GAME_ID TEXT PRIMARY KEY)"
    with opened(target, f"CREATE TABLE {games}"):
        pass
    source = played(tmp_path / "hex8_2p.db", ["a"])
    done = merge(target, source, complete_from)
    assert done.no_place == ("games.board_type", "games.num_players")
    assert asked(target, "SELECT extra, total_moves, game_id FROM games") == [("none", 20, "a")]
    assert_whole(target)


def test_a_target_without_keys_and_with_games_without_ids_takes_games_once(tmp_path: Path) -> None:
    """K20: what SQL does not know is neither there nor new."""
    target = tmp_path / "all.db"
    with opened(target, "CREATE TABLE games (game_id TEXT, total_moves INT)") as db, db:
        db.execute("INSERT INTO games VALUES (NULL, 20)")
    source = played(tmp_path / "hex8_2p.db", ["a"])
    with opened(source) as db, db:
        db.execute("INSERT INTO games (total_moves) VALUES (20)")
    first, again = (merge(target, source, complete_from) for _ in range(2))
    assert (first.added, first.left) == (1, {"no game_id": 1})
    assert (again.added, again.there) == (0, 1)


OTHERS: Mapping[str, tuple[str, str]] = {
    "another kind of database": ("CREATE TABLE elo (id TEXT)", "one.db has no table games"),
    "no ids": ("CREATE TABLE games (moves TEXT)", "one.db: table games has no column game_id"),
    "numbers for ids": (
        "CREATE TABLE games (game_id INTEGER PRIMARY KEY, total_moves INT)",
        "one.db: table games can't be told from others",
    ),
    "no moves": ("CREATE TABLE games (game_id TEXT)", "one.db does not say how long"),
    "ids twice": (
        "CREATE TABLE games (game_id TEXT, total_moves INT);"
        "INSERT INTO games VALUES ('a', 20), ('a', 20)",
        "one.db: table games has game_id 'a' more than once",
    ),
}


@pytest.mark.parametrize(("schema", "words"), OTHERS.values(), ids=OTHERS.keys())
def test_what_is_no_game_database_is_refused_by_name(
    tmp_path: Path, schema: str, words: str
) -> None:
    """The file and the table are named, and the target stays as it is."""
    target = played(tmp_path / "all.db", ["a"])
    with opened(tmp_path / "one.db", schema):
        pass
    with pytest.raises(NotMergeable, match=words):
        merge(target, tmp_path / "one.db", complete_from)
    assert games_in(target) == {"a"}


def test_a_target_of_another_kind_is_refused(tmp_path: Path) -> None:
    """P21: no games get into a database that holds something else, nor beside what it must have."""
    source = played(tmp_path / "one.db", ["a"])
    with opened(tmp_path / "elo.db", "CREATE TABLE ratings (name TEXT)"):
        pass
    with pytest.raises(NotMergeable, match=r"elo\.db has no table games"):
        merge(tmp_path / "elo.db", source, complete_from)
    with opened(tmp_path / "all.db", "CREATE TABLE games (game_id TEXT, engine TEXT NOT NULL)"):
        pass
    with pytest.raises(NotMergeable, match=r"all\.db: table games has a column engine"):
        merge(tmp_path / "all.db", source, complete_from)
    (tmp_path / "text.db").write_text("no database")
    for pair in ((tmp_path / "text.db", source), (source, tmp_path / "text.db")):
        with pytest.raises(NotMergeable, match=r"text\.db is no SQLite database"):
            merge(*pair, complete_from)
    with pytest.raises(NotMergeable, match="into itself"):
        merge(source, source, complete_from)
    with pytest.raises(FileNotFoundError):
        merge(tmp_path / "all.db", tmp_path / "none.db", complete_from)


def test_a_damaged_source_is_refused_whole(tmp_path: Path) -> None:
    """K16: no game of it comes over, not even a sound one."""
    source = played(tmp_path / "one.db", [f"game {n}" for n in range(200)])
    pages = bytearray(source.read_bytes())
    pages[len(pages) // 2 : len(pages) // 2 + 4096] = b"\xff" * 4096
    source.write_bytes(pages)
    target = played(tmp_path / "all.db", ["a"])
    with pytest.raises(Unsound, match=r"one\.db"):
        merge(target, source, complete_from)
    assert games_in(target) == {"a"}


def test_a_locked_target_is_neither_broken_nor_waited_for_endlessly(tmp_path: Path) -> None:
    """K16: locked is not corrupt; asked again later, it succeeds."""
    target = played(tmp_path / "all.db", ["a"])
    source = played(tmp_path / "one.db", ["b"])
    with opened(target) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(Locked, match=r"all\.db"):
            merge(target, source, complete_from, patience_s=0.1)
        writer.execute("ROLLBACK")
    assert merge(target, source, complete_from).added == 1


def test_a_game_whose_rows_are_there_without_it_stays_behind(tmp_path: Path) -> None:
    """A writer may be about to add it: no rows of two games are ever mixed."""
    target = played(tmp_path / "all.db", ["a"])
    source = played(tmp_path / "one.db", ["b", "c"])
    with opened(target) as db, db:
        db.execute("INSERT INTO game_moves VALUES ('b', 0, 'another')")
    done = merge(target, source, complete_from)
    assert done.added == 1
    assert done.left == {"the target has rows of it in game_moves without the game": 1}
    assert asked(target, "SELECT position FROM game_moves WHERE game_id = 'b'") == [("another",)]


GAMES = st.dictionaries(st.sampled_from("abcdefghij"), st.integers(18, 22), max_size=6)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(here=GAMES, others=st.lists(GAMES, min_size=1, max_size=4), data=st.data())
def test_k20_the_target_is_the_union_of_complete_games(
    here: dict[str, int], others: list[dict[str, int]], data: st.DataObject
) -> None:
    """K20: in whatever order and however often; what it had stays; no duplicate and no orphan."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "all.db"
        sources = []
        for number, games in enumerate([here, *others]):
            path = played(Path(directory) / f"{number}.db" if number else target, ())
            with opened(path) as db:
                for id, moves in games.items():
                    add_game(db, id, moves)
            sources += [path] if number else []
        for source in data.draw(st.lists(st.sampled_from(sources), max_size=3)) + sources:
            merge(target, source, complete_from)
        complete = {id for games in others for id, moves in games.items() if moves >= 20}
        assert games_in(target) == here.keys() | complete
        assert_whole(target)
        assert dict(asked(target, "SELECT game_id, total_moves FROM games")).items() >= here.items()


#: Plays games for ever, each written in a transaction, and gives up where it can't within 5 s.
WRITER = """
import sys, time
from tests.unit.test_merging import Path, SCHEMA, add_game, sqlite3
db = sqlite3.connect(sys.argv[1], timeout=5)
db.execute("PRAGMA foreign_keys = ON")
for number in range(1_000_000):
    add_game(db, f"live {number}")
    print(flush=True)
    time.sleep(0.1)
"""
MERGER = """
import sys
from adapters.files import merging
from tests.unit.test_merging import Path, complete_from
merging._MOST = 16
source, target = map(Path, sys.argv[1:])
merging.merge(target, source, complete_from, progress=lambda *n: print(flush=True))
"""


def started(code: str, *arguments: Path) -> subprocess.Popen[bytes]:
    """A Python process that runs `code`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_writer_of_the_target_goes_on_and_a_killed_merge_is_completed(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle, it leaves whole games only; the next one adds the rest, each once."""
    monkeypatch.setattr(merging, "_MOST", 16)
    target = played(tmp_path / "all.db", ["a"])
    with contextlib.closing(sqlite3.connect(target)) as db:
        assert db.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode.lower(),)
    source = played(tmp_path / "one.db", [f"from {number}" for number in range(96)])
    with started(WRITER, target) as writer:
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            with started(MERGER, source, target) as merger:
                assert merger.stdout is not None
                merger.stdout.readline()
                merger.kill()
            assert_whole_of(target)
            assert 0 < len(merged_of(target)) < 96, "it was killed in the middle"
            merge(target, source, complete_from)
            assert writer.poll() is None, "its writer never waited too long"
            writer.stdout.readline()
        finally:
            writer.kill()
    assert len(merged_of(target)) == 96
    assert merge(target, source, complete_from).added == 0
    assert_whole(target)
    assert not list(tmp_path.glob(".merging-*"))
    assert asked(target, "PRAGMA journal_mode") == [(mode.lower(),)]


def merged_of(target: Path) -> set[object]:
    """Games that came from the source."""
    return {id for id in games_in(target) if str(id).startswith("from")}


def assert_whole_of(target: Path) -> None:
    """Every game that came over is whole, while its writer writes."""
    rows = asked(
        target,
        "SELECT g.game_id, count(*) FROM games g JOIN game_moves m USING (game_id) GROUP BY 1",
    )
    assert {moves for _, moves in rows} == {20}


def test_a_merge_says_how_far_it_is(tmp_path: Path) -> None:
    """In games, up to all."""
    source = played(tmp_path / "one.db", [f"game {n}" for n in range(40)])
    told: list[tuple[int, int]] = []
    done: Merged = merge(
        tmp_path / "all.db", source, complete_from, progress=lambda *n: told.append(n)
    )
    assert done.added == 40
    assert told[-1] == (40, 40)
    assert told == sorted(told)


def test_the_command_says_what_came_and_what_did_not(tmp_path: Path) -> None:
    """K20: added, there already, left and why; a refused source does not stop the others."""
    target = tmp_path / "all.db"
    sources = [played(tmp_path / "one.db", ["a"]), played(tmp_path / "two.db", ["a", "b"])]
    played(sources[1], ["short"], moves=3)
    with opened(tmp_path / "elo.db", "CREATE TABLE ratings (name TEXT)"):
        pass
    command = ["merge", str(target), str(tmp_path / "elo.db"), *map(str, sources)]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 1
    assert "two.db: 1 games added; 1 already there; 1 left (hex8_2p: fewer than 20 moves)" in (
        " ".join(said.stdout.split())
    )
    assert "elo.db has no table games" in " ".join(said.output.split())
    assert games_in(target) == {"a", "b"}
