"""A store in memory with the real store's readings and transactions, for folds without a disk.

Only the tables are another thing; ``test_store`` holds them to what LMDB does.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from projections.store import Reader, Writer

T = TypeVar("T")


class Table:
    """Keys in order, and their values."""

    __slots__ = ("_order", "_sorted", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._order: list[bytes] = []
        self._sorted = True

    def order(self) -> list[bytes]:
        """All keys, in byte order; a new list after each change."""
        if not self._sorted:
            self._order, self._sorted = sorted(self.values), True
        return self._order

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.values:
            self._sorted = False
        self.values[key] = value

    def delete(self, key: bytes) -> bool:
        self._sorted = self._sorted and key not in self.values
        return self.values.pop(key, None) is not None


class _Cursor:
    """As much of an LMDB cursor as `Reader` uses."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._order = table.order()
        self._at = -1

    def __enter__(self) -> _Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def first(self) -> bool:
        self._at = 0
        return bool(self._order)

    def last(self) -> bool:
        self._at = len(self._order) - 1
        return bool(self._order)

    def prev(self) -> bool:
        self._at -= 1
        return self._at >= 0

    def set_range(self, key: bytes) -> bool:
        self._at = bisect.bisect_left(self._order, key)
        return self._at < len(self._order)

    def key(self) -> bytes:
        return self._order[self._at]

    def iternext(self) -> Iterator[tuple[bytes, bytes]]:
        return self._from(self._order[self._at :])

    def iterprev(self) -> Iterator[tuple[bytes, bytes]]:
        return self._from(self._order[self._at :: -1] if self._at >= 0 else [])

    def _from(self, keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        values = self._table.values
        return ((key, values[key]) for key in keys if key in values)


class _Transaction:
    """As much of an LMDB transaction as `Reader` and `Writer` use."""

    def get(self, key: bytes, *, db: Table) -> bytes | None:
        return db.values.get(key)

    def put(self, key: bytes, value: bytes, *, db: Table) -> None:
        db.put(key, value)

    def delete(self, key: bytes, *, db: Table) -> bool:
        return db.delete(key)

    def stat(self, db: Table) -> dict[str, Any]:
        return {"entries": len(db.values)}

    def cursor(self, *, db: Table) -> _Cursor:
        return _Cursor(db)


class MemoryStore:
    """Tables that survive the process that uses them, as a disk does."""

    def __init__(self, tables: Sequence[str]) -> None:
        self._tables = {name: Table() for name in tables}

    @contextlib.contextmanager
    def read(self) -> Iterator[Reader]:
        """A short reading; never across an await."""
        yield Reader(_Transaction(), self._tables)

    def write(self, work: Callable[[Writer], T]) -> T:
        """Run `work` and keep what it wrote. No process dies within it: it never awaits."""
        writer = Writer(_Transaction(), self._tables)
        result = work(writer)
        writer.flush()
        return result

    def close(self) -> None:
        """Nothing is held."""
