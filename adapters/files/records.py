"""The rows of small databases that are no games, such as ratings and registries, from another one.

Two databases hang on one connection: the target as ``main``, a private copy of the other one as
``source``. Rows are told apart by their table's key. What the target lacks comes over; of two rows
with one key the one that was changed last stays, as far as a column tells; no row ever goes.

Rows of a table without a key are told apart by all they hold. A number that each database gives
its rows by itself is no key: it is given anew, and so is what refers to it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter

from adapters.files.gametables import (
    NotMergeable,
    columns_of,
    make_tables,
    quoted,
    references_of,
    tables_of,
)

#: Columns that say when a row was changed last, the best first.
TIMES = ("updated_at", "last_updated", "modified_at", "last_modified", "updated", "timestamp")
#: What a number that each database gives by itself is called, unless its table says so.
_ID = "id"


@dataclass
class Tally:
    """What became of the rows of one table."""

    added: int = 0
    #: Rows that the target had.
    there: int = 0
    #: Rows of the target that a later one of the source took the place of.
    newer: int = 0
    #: Rows that stayed behind, by the reason.
    left: dict[str, int] = field(default_factory=dict)


def merge_tables(
    db: sqlite3.Connection, source: str, target: str
) -> tuple[dict[str, Tally], list[str]]:
    """Bring every table's rows over; what became of them, and what has no place in the target.

    In the caller's transaction. Raises `NotMergeable`, which names the files as `source` and
    `target` do, if the two have no table in common or a row would lack what the target must have.
    """
    known = set(tables_of(db, "main"))
    theirs = tables_of(db, "source")
    if known and not known.intersection(theirs):
        raise NotMergeable(f"{source} and {target} have no table in common")
    no_place = make_tables(
        db, [name for name in theirs if name not in known], target, new=not known
    )
    found = {}
    for name in _in_order(db, theirs, source):
        table = _Table(db, name, target)
        found[name] = table.merge()
        no_place += table.no_place
    return found, no_place


def _in_order(db: sqlite3.Connection, tables: list[str], source: str) -> list[str]:
    """Tables after those that they refer to by a number that is given anew."""
    refers = {name: [other for _, other in _given_anew(db, name, tables)] for name in tables}
    try:
        return list(TopologicalSorter(refers).static_order())
    except CycleError as error:
        names = ", ".join(dict.fromkeys(error.args[1]))
        reason = f"refer to each other by numbers that each database gives anew: {names}"
        raise NotMergeable(f"{source}: tables {reason}") from None


def _given_anew(db: sqlite3.Connection, table: str, tables: list[str]) -> Iterator[tuple[str, str]]:
    for column, other in references_of(db, table, tables):
        if _number_of(db, other):
            yield column, other


def _number_of(db: sqlite3.Connection, table: str) -> str:
    """The column of a table of the target that is numbered by each database alone; "" if none."""
    number = next((one.name for one in columns_of(db, "main", table) if one.number), "")
    (sql,) = db.execute(
        "SELECT sql FROM main.sqlite_master WHERE type = 'table' AND lower(name) = ?", (table,)
    ).fetchone()
    own = number.lower() == _ID or "autoincrement" in str(sql).lower()
    return number if own else ""


class _Table:
    """One table that both have, or that was made after the source's."""

    def __init__(self, db: sqlite3.Connection, name: str, target: str) -> None:
        self._db = db
        self._name = name
        theirs = {one.name.lower(): one for one in columns_of(db, "source", name)}
        ours = {one.name.lower(): one for one in columns_of(db, "main", name)}
        for lower, column in ours.items():
            if column.needed and lower not in theirs:
                needs = f"column {column.name}, which must have a value"
                raise NotMergeable(f"{target}: table {name} has a {needs}, and there is none")
        self.no_place = [f"{name}.{theirs[lower].name}" for lower in theirs if lower not in ours]
        self._number = _number_of(db, name)
        common = [ours[lower].name for lower in theirs if lower in ours]
        self._columns = [column for column in common if column != self._number]
        self._tally = Tally()

    def merge(self) -> Tally:
        """Bring its rows over, and let those who refer to them by number know the new ones."""
        if not self._columns:
            return self._tally
        if self._key:
            self._merge_by_key()
        else:
            self._merge_by_content()
        others = self._tally.added + self._tally.newer + sum(self._tally.left.values())
        self._tally.there = self._count(f"FROM source.{self._quoted}") - others
        self._renumber()
        return self._tally

    @cached_property
    def _key(self) -> list[str]:
        """The columns that tell its rows apart in every database; none if there are none such."""
        found = self._db.execute(
            "SELECT i.name FROM pragma_index_list(?, 'main') i"
            # Of several keys the one that was declared first, which SQLite lists last.
            ' WHERE i."unique" AND NOT i.partial'
            " ORDER BY i.origin <> 'pk', i.origin <> 'u', i.seq DESC",
            (self._name,),
        ).fetchall()
        keys = [self._columns_of_index(index) for (index,) in found]
        natural = [one.name for one in columns_of(self._db, "main", self._name) if one.number]
        if natural and not self._number:
            keys.insert(0, natural)
        return next((key for key in keys if key and set(key) <= set(self._columns)), [])

    def _columns_of_index(self, index: str) -> list[str]:
        found = self._db.execute("SELECT name FROM pragma_index_info(?, 'main')", (index,))
        return [str(name) for (name,) in found if name is not None]

    def _merge_by_key(self) -> None:
        db, columns = self._db, ", ".join(map(quoted, self._columns))
        same = " AND ".join(f"m.{quoted(one)} IS s.{quoted(one)}" for one in self._key)
        other = " OR ".join(f"m.{quoted(one)} IS NOT s.{quoted(one)}" for one in self._columns)
        both = f"FROM source.{self._quoted} s JOIN main.{self._quoted} m ON {same}"
        lacking = f"FROM source.{self._quoted} s WHERE NOT EXISTS ({self._there(same)})"
        wanted = self._count(lacking)
        refused = 0
        reason = f"another is there, and no column tells which is newer ({', '.join(TIMES)})"
        if later := self._later():
            self._tally.newer = self._take(same, later)
            reason = "another is there that is not older"
            refused = self._count(f"{both} AND ({other}) AND {later}")
        self._leave(reason, self._count(f"{both} AND ({other})") - refused)
        self._tally.added = db.execute(
            f"INSERT OR IGNORE INTO main.{self._quoted} ({columns}) SELECT {columns} {lacking}"
        ).rowcount
        refused += wanted - self._tally.added
        self._leave("a rule of the target's table refuses it", refused)

    def _there(self, same: str) -> str:
        return f"SELECT 1 FROM main.{self._quoted} m WHERE {same}"

    def _later(self) -> str:
        """A condition in SQL: the source's row was changed after the target's; "" if none tells."""
        named = {column.lower(): column for column in self._columns}
        time = next((quoted(named[one]) for one in TIMES if one in named), "")
        return f"typeof(s.{time}) = typeof(m.{time}) AND s.{time} > m.{time}" if time else ""

    def _take(self, same: str, later: str) -> int:
        """Put the source's later rows in the place of the target's."""
        values = ", ".join(f"{quoted(one)} = s.{quoted(one)}" for one in self._columns)
        return self._db.execute(
            f"UPDATE OR IGNORE main.{self._quoted} AS m SET {values}"
            f" FROM source.{self._quoted} s WHERE {same} AND {later}"
        ).rowcount

    def _merge_by_content(self) -> None:
        columns = ", ".join(map(quoted, self._columns))
        lacking = (
            f"SELECT {columns} FROM source.{self._quoted}"
            f" EXCEPT SELECT {columns} FROM main.{self._quoted}"
        )
        self._tally.added = self._db.execute(
            f"INSERT INTO main.{self._quoted} ({columns}) {lacking}"
        ).rowcount

    def _renumber(self) -> None:
        """In the source, give what refers to its rows the numbers that they have in the target."""
        db = self._db
        tables = tables_of(db, "source")
        referring = [
            (table, column)
            for table in tables
            for column, other in references_of(db, table, tables)
            if other == self._name
        ]
        if not self._number or not referring:
            return
        key = self._key or self._columns
        columns = ", ".join(map(quoted, key))
        db.execute("DROP TABLE IF EXISTS temp.numbered")
        db.execute(
            "CREATE TEMP TABLE numbered AS"
            f" SELECT min({quoted(self._number)}) AS number, {columns}"
            f" FROM main.{self._quoted} GROUP BY {columns}"
        )
        db.execute(f"CREATE INDEX temp.by_content ON numbered ({columns})")
        same = " AND ".join(f"n.{quoted(one)} IS t.{quoted(one)}" for one in key)
        for table, column in referring:
            refers = quoted(column)
            anew = (
                f"SELECT n.number FROM source.{self._quoted} t JOIN numbered n ON {same}"
                f" WHERE t.{quoted(self._number)} = r.{refers}"
            )
            # What refers to a row that stayed behind, or never was, would refer to nothing.
            alone = db.execute(
                f"DELETE FROM source.{quoted(table)} AS r"
                f" WHERE {refers} IS NOT NULL AND NOT EXISTS ({anew})"
            ).rowcount
            self._leave(f"a row of {table} refers to one that is not there", alone)
            db.execute(
                f"UPDATE source.{quoted(table)} AS r SET {refers} = ({anew})"
                f" WHERE {refers} IS NOT NULL"
            )

    @property
    def _quoted(self) -> str:
        return quoted(self._name)

    def _count(self, rows: str) -> int:
        return int(self._db.execute(f"SELECT count(*) {rows}").fetchone()[0])

    def _leave(self, reason: str, count: int) -> None:
        if count:
            self._tally.left[f"{self._name}: {reason}"] = count
