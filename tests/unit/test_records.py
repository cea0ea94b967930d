"""Merging small databases without games: no row is lost or there twice, the later one stays."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from adapters.files.gametables import NotMergeable
from adapters.files.merging import merge_records
from adapters.files.sqlite import check
from dataplane.cli.app import app

ELO = """
CREATE TABLE IF NOT EXISTS ratings (player TEXT PRIMARY KEY, elo REAL, updated_at REAL);
CREATE TABLE IF NOT EXISTS matches (
    id INTEGER PRIMARY KEY AUTOINCREMENT, white TEXT, black TEXT, played_at REAL);
CREATE TABLE IF NOT EXISTS results (
    match_id INTEGER REFERENCES matches (id), player TEXT, score REAL);
CREATE TABLE IF NOT EXISTS generations (generation INTEGER PRIMARY KEY, model TEXT);
CREATE INDEX IF NOT EXISTS by_player ON results (player);
"""


def made(path: Path, *statements: str, schema: str = ELO) -> Path:
    """A database with a schema and what the statements put into it."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(schema)
        for statement in statements:
            db.execute(statement)
    return path


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    """What a query answers."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def test_p21_rows_of_both_sides_are_there_and_the_later_of_two_stays(tmp_path: Path) -> None:
    """P21: nobody is the last writer of the whole file; merged again, nothing changes."""
    here = made(
        tmp_path / "elo.db",
        "INSERT INTO ratings VALUES ('a', 1500, 10), ('old', 1000, 10), ('new', 1100, 30)",
    )
    there = made(
        tmp_path / "theirs.db",
        "INSERT INTO ratings VALUES ('b', 1600, 20), ('old', 1010, 20), ('new', 1090, 20)",
    )
    done = merge_records(here, there)
    assert (done.unit, done.added, done.newer, done.there) == ("rows", 1, 1, 0)
    assert done.left == {"ratings: another is there that is not older": 1}
    found = [("a", 1500.0), ("b", 1600.0), ("new", 1100.0), ("old", 1010.0)]
    assert rows(here, "SELECT player, elo FROM ratings ORDER BY 1") == found
    again = merge_records(here, there)
    assert (again.added, again.newer, again.there) == (0, 0, 2)
    assert check(here) is None


def test_either_order_gives_the_same_rows(tmp_path: Path) -> None:
    """Two nodes that merge each other's database end with the same."""
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    for path, elo, at in ((one, 1200, 5), (two, 1300, 6)):
        made(path, f"INSERT INTO ratings VALUES ('a', {elo}, {at})")
        made(path, f"INSERT INTO matches (white, black, played_at) VALUES ('a', 'b', {at})")
    merge_records(one, two)
    merge_records(two, one)
    for query in (
        "SELECT * FROM ratings ORDER BY 1",
        "SELECT white, black, played_at FROM matches ORDER BY 3",
    ):
        assert rows(one, query) == rows(two, query)
    assert len(rows(one, "SELECT 1 FROM matches")) == 2


def test_numbers_that_each_database_gives_are_given_anew(tmp_path: Path) -> None:
    """Match 1 of one node is another match than match 1 of the other; its results go with it."""
    match = "INSERT INTO matches (white, black, played_at) VALUES"
    here = made(
        tmp_path / "elo.db",
        f"{match} ('a', 'b', 1), ('both', 'both', 3)",
        "INSERT INTO results VALUES (1, 'a', 1.0), (2, 'both', 0.5)",
    )
    there = made(
        tmp_path / "theirs.db",
        f"{match} ('c', 'd', 2), ('both', 'both', 3)",
        "INSERT INTO results VALUES (1, 'c', 0.0), (1, 'd', 1.0), (2, 'both', 0.5), (NULL, 'e', 0)",
    )
    assert merge_records(here, there).rows == {
        "generations": 0,
        "matches": 1,
        "ratings": 0,
        "results": 3,
    }
    joined = "SELECT white, player, score FROM results r LEFT JOIN matches m ON m.id = match_id"
    assert sorted(rows(here, joined), key=str) == sorted(
        [
            ("a", "a", 1.0),
            ("both", "both", 0.5),
            ("c", "c", 0.0),
            ("c", "d", 1.0),
            (None, "e", 0.0),
        ],
        key=str,
    )
    assert merge_records(here, there).added == 0


def test_what_refers_to_a_row_that_stayed_behind_stays_behind_with_it(tmp_path: Path) -> None:
    """A result of a match that is not there would be a result of nothing; it is said."""
    schema = """
    CREATE TABLE m (id INTEGER PRIMARY KEY, name TEXT UNIQUE, place TEXT UNIQUE);
    CREATE TABLE r (m_id INTEGER NOT NULL REFERENCES m (id), score REAL);
    """
    here = made(tmp_path / "a.db", "INSERT INTO m VALUES (1, 'ours', 'taken')", schema=schema)
    there = made(
        tmp_path / "b.db",
        "INSERT INTO m VALUES (1, 'theirs', 'taken'), (2, 'free', 'free')",
        "INSERT INTO r VALUES (1, 0.5), (2, 1.0), (9, 0.0)",
        schema=schema,
    )
    done = merge_records(here, there)
    assert done.left == {
        "m: a rule of the target's table refuses it": 1,
        "m: a row of r refers to one that is not there": 2,
    }
    assert rows(here, "SELECT name, score FROM r JOIN m ON m.id = m_id") == [("free", 1.0)]
    assert rows(here, "SELECT count(*) FROM r") == [(1,)]


def test_a_later_row_that_the_target_refuses_is_said_to_be_refused(tmp_path: Path) -> None:
    """It is newer, and still may not come: another of its columns is taken."""
    schema = "CREATE TABLE t (k TEXT PRIMARY KEY, name TEXT UNIQUE, updated_at INT)"
    here = made(
        tmp_path / "a.db", "INSERT INTO t VALUES ('1', 'a', 1), ('2', 'b', 1)", schema=schema
    )
    there = made(tmp_path / "b.db", "INSERT INTO t VALUES ('1', 'b', 2)", schema=schema)
    done = merge_records(here, there)
    assert (done.newer, done.left) == (0, {"t: a rule of the target's table refuses it": 1})
    assert rows(here, "SELECT name FROM t WHERE k = '1'") == [("a",)]


def test_a_number_that_means_something_is_a_key(tmp_path: Path) -> None:
    """Generation 7 is generation 7 everywhere; and without a time the target's word stays."""
    here = made(tmp_path / "registry.db", "INSERT INTO generations VALUES (7, 'ours')")
    there = made(tmp_path / "theirs.db", "INSERT INTO generations VALUES (7, 'other'), (8, 'next')")
    done = merge_records(here, there)
    assert rows(here, "SELECT * FROM generations") == [(7, "ours"), (8, "next")]
    ((reason, count),) = done.left.items()
    assert count == 1
    assert reason.startswith("generations: another is there, and no column tells which is newer")


def test_a_target_that_is_not_there_begins_as_the_source_is(tmp_path: Path) -> None:
    """With its tables, indexes and views; triggers would act on rows that come over."""
    there = made(
        tmp_path / "theirs.db",
        "INSERT INTO ratings VALUES ('a', 1, 1)",
        "CREATE VIEW best AS SELECT max(elo) FROM ratings",
        "CREATE TRIGGER doubles AFTER INSERT ON ratings BEGIN DELETE FROM matches; END",
        "PRAGMA user_version = 4",
    )
    done = merge_records(tmp_path / "elo.db", there)
    assert done.no_place == ("trigger doubles",)
    assert rows(tmp_path / "elo.db", "SELECT * FROM best") == [(1.0,)]
    assert rows(tmp_path / "elo.db", "PRAGMA user_version") == [(4,)]


def test_what_one_side_does_not_know_stays_or_is_named(tmp_path: Path) -> None:
    """A table more comes whole, a column more of the source is said, one of the target's stays."""
    here = made(
        tmp_path / "elo.db",
        "INSERT INTO t VALUES ('a', 'kept', 1)",
        schema="CREATE TABLE t (k TEXT UNIQUE, ours TEXT, updated_at INT)",
    )
    there = made(
        tmp_path / "theirs.db",
        "INSERT INTO t VALUES ('a', 2, 'x')",
        "INSERT INTO more VALUES ('row')",
        schema="CREATE TABLE t (k TEXT, updated_at INT, theirs TEXT); CREATE TABLE more (x TEXT)",
    )
    done = merge_records(here, there)
    assert done.no_place == ("t.theirs",)
    assert (done.newer, done.added) == (1, 1)
    assert rows(here, "SELECT * FROM t") == [("a", "kept", 2)]
    assert rows(here, "SELECT * FROM more") == [("row",)]


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ("CREATE TABLE a (x)", "CREATE TABLE b (x)", "no table in common"),
        (
            "CREATE TABLE a (k TEXT PRIMARY KEY, must TEXT NOT NULL)",
            "CREATE TABLE a (k TEXT)",
            "elo.db: table a has a column must, which must have a value",
        ),
        (
            "CREATE TABLE a (x)",
            "CREATE TABLE a (x); CREATE TABLE b (id INTEGER PRIMARY KEY, c REFERENCES c (id));"
            "CREATE TABLE c (id INTEGER PRIMARY KEY, b REFERENCES b (id))",
            "refer to each other by numbers",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_changes(
    tmp_path: Path, ours: str, theirs: str, said: str
) -> None:
    """The text names the file and the table; the target is as it was."""
    here = made(tmp_path / "elo.db", schema=ours)
    there = made(tmp_path / "theirs.db", schema=theirs)
    schema = "SELECT sql FROM sqlite_master"
    before = rows(here, schema)
    with pytest.raises(NotMergeable, match=said):
        merge_records(here, there)
    assert rows(here, schema) == before


def test_another_rule_of_the_table_keeps_a_row_out_and_is_said(tmp_path: Path) -> None:
    """A second unique column: the row stays where it was, the others come."""
    schema = "CREATE TABLE t (k TEXT PRIMARY KEY, name TEXT UNIQUE)"
    here = made(tmp_path / "a.db", "INSERT INTO t VALUES ('1', 'taken')", schema=schema)
    there = made(
        tmp_path / "b.db", "INSERT INTO t VALUES ('2', 'taken'), ('3', 'free')", schema=schema
    )
    done = merge_records(here, there)
    assert (done.added, done.left) == (1, {"t: a rule of the target's table refuses it": 1})
    assert rows(here, "SELECT * FROM t ORDER BY 1") == [("1", "taken"), ("3", "free")]


def test_a_killed_merge_has_changed_all_or_nothing(tmp_path: Path) -> None:
    """It is one transaction: a kill in the middle of it leaves the target as it was."""
    here = made(tmp_path / "elo.db", "INSERT INTO ratings VALUES ('a', 1, 1)")
    there = made(tmp_path / "theirs.db", "INSERT INTO ratings VALUES ('b', 1, 1), ('c', 1, 1)")
    script = (
        "import os, signal, sys; from pathlib import Path; from adapters.files import records\n"
        "renumber = records._Table._renumber\n"
        "def dies(table):\n"
        "    if table._name == 'ratings': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    renumber(table)\n"
        "records._Table._renumber = dies\n"
        "from adapters.files.merging import merge_records\n"
        "merge_records(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(here), str(there)], check=False)
    assert ended.returncode == -9
    assert rows(here, "SELECT player FROM ratings") == [("a",)]
    assert merge_records(here, there).added == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".merging-")]


_rating = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=6
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_rating, min_size=1, max_size=3))
def test_no_row_is_lost_whatever_is_merged(databases: list[dict[str, tuple[int, int]]]) -> None:
    """Every key of any source is there, with a value that somebody had and none had later."""
    with tempfile.TemporaryDirectory() as base:
        target = Path(base) / "all.db"
        for number, held in enumerate(databases):
            values = ", ".join(f"('{key}', {elo}, {at})" for key, (elo, at) in held.items())
            said = [f"INSERT INTO ratings VALUES {values}"] if held else []
            merge_records(target, made(Path(base) / f"{number}.db", *said))
        found = {key: (elo, at) for key, elo, at in rows(target, "SELECT * FROM ratings")}
    assert set(found) == {key for held in databases for key in held}
    for key, value in found.items():
        theirs = [held[key] for held in databases if key in held]
        assert value in theirs
        assert value[1] == max(at for _, at in theirs)


def test_the_command_merges_ratings_as_rows(tmp_path: Path) -> None:
    """What came, in words, and where a row stayed behind, why."""
    here = made(tmp_path / "elo.db", "INSERT INTO ratings VALUES ('a', 1, 9)")
    there = made(tmp_path / "theirs.db", "INSERT INTO ratings VALUES ('a', 2, 1), ('b', 1, 1)")
    said = CliRunner().invoke(app, ["merge", str(here), str(there)])
    assert said.exit_code == 0, said.output
    assert (
        "1 rows added; 0 already there; 1 left (ratings: another is there that is not older)"
        in (" ".join(said.stdout.split()))
    )
