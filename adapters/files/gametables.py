"""The tables of game databases: which belong to a game, and how their rows come from another.

Two databases hang on one connection: the target as ``main``, a private copy of the other one as
``source``. Names decide, never positions: a column that one side lacks does no harm, and a table
belongs to a game if it has a column of the game's id. A table of the target is never altered.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from streams.values import ALL_CONFIGS, config_key_in

GAMES, ID, MOVES = "games", "game_id", "game_moves"
#: Where a database says how long a game is, if it keeps no moves.
_LENGTHS = ("total_moves", "move_count", "num_moves")
#: What is made anew with a target, in this order. Triggers would act on rows that come over.
_MADE = ("table", "index", "view")


class NotMergeable(Exception):
    """These two don't go together. The text names the file and what in it is in the way."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    #: Whether a row must give it a value: it may not be NULL and has no default.
    needed: bool
    #: Whether it is a number that each database gives its rows by itself.
    number: bool


@dataclass(frozen=True)
class Copying:
    """How the rows of some games get into one table of the target."""

    table: str
    columns: tuple[str, ...]
    #: A number that each database gives its rows by itself, so that it is given anew; or "".
    number: str
    #: Columns that name rows of some table by such a number.
    refers: dict[str, str]
    #: A condition in SQL: the target has rows of the game ``batch.id``.
    there: str

    def offset(self, db: sqlite3.Connection) -> int:
        """What to add to the numbers of a batch, so that they come after all that are there."""
        table, number = quoted(self.table), quoted(self.number)
        (last,) = db.execute(f"SELECT max({number}) FROM main.{table}").fetchone()
        (first,) = db.execute(f"SELECT min({number}) FROM source.{table} {_OF_BATCH}").fetchone()
        return 0 if last is None or first is None else max(0, last + 1 - first)

    def copy(self, db: sqlite3.Connection, offsets: dict[str, int]) -> int:
        """Copy the rows of the games in ``batch``; how many there were."""
        table, columns = quoted(self.table), ", ".join(map(quoted, self.columns))
        values = ", ".join(self._value(column, offsets) for column in self.columns)
        return db.execute(
            f"INSERT INTO main.{table} ({columns}) SELECT {values} FROM source.{table} {_OF_BATCH}"
        ).rowcount

    def _value(self, column: str, offsets: dict[str, int]) -> str:
        table = self.table if column == self.number else self.refers.get(column, "")
        shift = offsets.get(table, 0)
        return f"{quoted(column)} + {shift}" if shift else quoted(column)


_OF_BATCH = f"WHERE {ID} IN (SELECT id FROM batch)"


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def judged(db: sqlite3.Connection, source: str) -> str:
    """A query for (id, config, moves) of each game of the source, whose file is called `source`.

    Raises `NotMergeable` if it holds no games that could be told apart and judged.
    """
    columns = {column.name.lower(): column for column in columns_of(db, "source", GAMES)}
    if not columns:
        raise NotMergeable(f"{source} has no table {GAMES}")
    _refuse_numbers(columns.get(ID), source)
    config = f"'{_named(source)}'"
    if "board_type" in columns and "num_players" in columns:
        config = f"coalesce(board_type || '_' || num_players || 'p', {config})"
    elif "config_key" in columns:
        config = f"coalesce(config_key, {config})"
    moves = {column.name.lower() for column in columns_of(db, "source", MOVES)}
    length = next((name for name in _LENGTHS if name in columns), None)
    if ID in moves:
        _index(db, MOVES)
        length = f"(SELECT count(*) FROM source.{MOVES} m WHERE m.{ID} = g.{ID})"
    elif length is None:
        ways = f"no table {MOVES}, and table {GAMES} has none of {', '.join(_LENGTHS)}"
        raise NotMergeable(f"{source} does not say how long its games are: {ways}")
    asked = f"{ID} AS id, {config} AS config, coalesce({length}, 0) AS moves"
    return f"SELECT {asked} FROM source.{GAMES} g"


def create_missing(db: sqlite3.Connection, target: str) -> list[str]:
    """Make what the target has no table for, so that whole games fit in.

    A target that is empty begins as the source is, without its games. Returns what of the source
    has no place there. Raises `NotMergeable` if the target holds something else.
    """
    known = set(tables_of(db, "main"))
    if GAMES not in known and known:
        raise NotMergeable(f"{target} has no table {GAMES}: it is another kind of database")
    wanted = [name for name in tables_of(db, "source") if name not in known]
    if known:
        wanted = [name for name in wanted if _has_id(db, "source", name)]
    no_place = make_tables(db, wanted, target, new=not known)
    for name in wanted:
        if not _has_id(db, "source", name):
            db.execute(f"INSERT INTO main.{quoted(name)} SELECT * FROM source.{quoted(name)}")
    return no_place


def make_tables(db: sqlite3.Connection, wanted: list[str], target: str, *, new: bool) -> list[str]:
    """Make these tables of the source in the target, empty, with their indexes.

    A `new` target gets the source's views and what it says of itself too. Returns what of the
    source has no place there. Raises `NotMergeable` if something can't be made.
    """
    for kind in _MADE:
        for name, of_table, sql in _made_by(db, kind):
            if of_table in wanted or (kind == "view" and new):
                _run(db, sql, f"{target}: {kind} {name}")
    if not new:
        return []
    for pragma in ("user_version", "application_id"):
        (value,) = db.execute(f"PRAGMA source.{pragma}").fetchone()
        db.execute(f"PRAGMA main.{pragma} = {value}")
    return [f"trigger {name}" for name, _, _ in _made_by(db, "trigger")]


def copyings(db: sqlite3.Connection, target: str) -> tuple[list[Copying], list[str]]:
    """How rows get into each table of a game, the games first; and what has no place there.

    Raises `NotMergeable` if a row would lack what the target must have.
    """
    names = [GAMES, *(name for name in tables_of(db, "source") if name != GAMES)]
    tables = [name for name in names if _has_id(db, "source", name)]
    found, nowhere = [], []
    for name in tables:
        if not _has_id(db, "main", name):
            raise NotMergeable(f"{target}: table {name} has no column {ID}")
        theirs = {column.name.lower(): column for column in columns_of(db, "source", name)}
        ours = {column.name.lower(): column for column in columns_of(db, "main", name)}
        for lower, column in ours.items():
            if column.needed and lower not in theirs:
                needs = f"column {column.name}, which must have a value"
                raise NotMergeable(f"{target}: table {name} has a {needs}, and there is none")
        nowhere += [f"{name}.{theirs[lower].name}" for lower in theirs if lower not in ours]
        number = next((one.name for one in ours.values() if one.number), "")
        _index(db, name)
        found.append(
            Copying(
                table=name,
                columns=tuple(ours[lower].name for lower in theirs if lower in ours),
                number=number if number.lower() in theirs else "",
                refers=dict(references_of(db, name, tables)),
                there=_there(db, name),
            )
        )
    return found, nowhere


def tables_of(db: sqlite3.Connection, schema: str) -> list[str]:
    """Plain tables, in lower case as SQLite compares them; neither virtual ones nor its own."""
    found = db.execute(
        "SELECT lower(name) FROM pragma_table_list WHERE schema = ? AND type = 'table'"
        " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY 1",
        (schema,),
    )
    return [str(name) for (name,) in found]


def columns_of(db: sqlite3.Connection, schema: str, table: str) -> list[Column]:
    """Columns that rows are given, without generated ones; none if there is no such table."""
    found = db.execute(
        'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_xinfo(?, ?)'
        " WHERE hidden = 0",
        (table, schema),
    ).fetchall()
    keys = sum(pk > 0 for *_, pk in found)
    alias = _has_row_ids(db, schema, table) and keys == 1
    columns = []
    for name, kind, not_null, default, pk in found:
        number = bool(alias and pk and str(kind).upper() == "INTEGER")
        columns.append(Column(str(name), bool(not_null and default is None), number))
    return columns


def _refuse_numbers(id: Column | None, source: str) -> None:
    """Only ids that mean the same everywhere can say whether a game is there already."""
    if id is None:
        raise NotMergeable(f"{source}: table {GAMES} has no column {ID}")
    if id.number:
        reason = f"{ID} is a number that each database gives anew"
        raise NotMergeable(f"{source}: table {GAMES} can't be told from others: {reason}")


def _named(source: str) -> str:
    """The configuration a file's name speaks of; "" if none."""
    config = config_key_in(source)
    return "" if config == ALL_CONFIGS else config


def _has_id(db: sqlite3.Connection, schema: str, table: str) -> bool:
    return any(column.name.lower() == ID for column in columns_of(db, schema, table))


def _has_row_ids(db: sqlite3.Connection, schema: str, table: str) -> bool:
    found = db.execute(
        "SELECT wr FROM pragma_table_list WHERE schema = ? AND lower(name) = lower(?)",
        (schema, table),
    ).fetchone()
    return found is not None and not found[0]


def _made_by(db: sqlite3.Connection, kind: str) -> list[tuple[str, str, str]]:
    """(name, table, statement) of what the source's schema has of a kind, in its order."""
    found = db.execute(
        "SELECT name, lower(tbl_name), sql FROM source.sqlite_master"
        " WHERE type = ? AND sql IS NOT NULL ORDER BY rowid",
        (kind,),
    )
    return [(str(name), str(table), str(sql)) for name, table, sql in found]


def references_of(
    db: sqlite3.Connection, table: str, tables: list[str]
) -> Iterator[tuple[str, str]]:
    """(column, table) where a table of the source names rows of another by a number."""
    found = db.execute(
        'SELECT "from", lower("table"), "to" FROM pragma_foreign_key_list(?, ?)',
        (table, "source"),
    )
    for column, other, to in found.fetchall():
        numbers = [one.name for one in columns_of(db, "main", other) if one.number]
        if other in tables and numbers and (to is None or to.lower() == numbers[0].lower()):
            yield str(column), str(other)


def _there(db: sqlite3.Connection, table: str) -> str:
    if _indexed(db, "main", table):
        return f"EXISTS (SELECT 1 FROM main.{quoted(table)} t WHERE t.{ID} = batch.id)"
    # A row without an id would make the answer unknown for all others.
    return f"(batch.id IN (SELECT {ID} FROM main.{quoted(table)} WHERE {ID} IS NOT NULL))"


def _index(db: sqlite3.Connection, table: str) -> None:
    """See to it that the rows of a game are found in the source, which is a private copy."""
    if not _indexed(db, "source", table):
        index = quoted(f"merging of {table}")
        db.execute(f"CREATE INDEX IF NOT EXISTS source.{index} ON {quoted(table)} ({ID})")


def _indexed(db: sqlite3.Connection, schema: str, table: str) -> bool:
    """Whether a table has an index that begins with the game's id."""
    found = db.execute(
        "SELECT 1 FROM pragma_index_list(?1, ?2) i, pragma_index_info(i.name, ?2) c"
        " WHERE c.seqno = 0 AND lower(c.name) = ?3 AND NOT i.partial",
        (table, schema, ID),
    ).fetchone()
    return found is not None


def _run(db: sqlite3.Connection, sql: str, what: str) -> None:
    try:
        db.execute(sql)
    except sqlite3.OperationalError as error:
        if (getattr(error, "sqlite_errorcode", 0) & 0xFF) != sqlite3.SQLITE_ERROR:
            raise
        raise NotMergeable(f"{what} can't be made: {error}") from error
