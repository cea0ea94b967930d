"""How much there is of each configuration and type, in how many copies, and how much on each node.

Counted as the facts come, so that who looks at the cluster reads a few rows, however many entries
there are. Only versions that count and that somebody holds are counted. Kept by the catalog's fold,
which knows what changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from projections.store import Reader, Writer
from projections.view import text_key

#: Under configuration and type what there is; under these and a node what it holds of that.
TABLE = "tallies"


class Countable(Protocol):
    """What is counted of an entry."""

    @property
    def config_key(self) -> str: ...
    @property
    def data_type(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def games(self) -> int | None: ...


class Amount(NamedTuple):
    """So many entries of so many bytes."""

    entries: int
    bytes: int


class Tally(NamedTuple):
    """All of one configuration and type."""

    config_key: str
    data_type: str
    #: In those entries where somebody has counted them; None where nobody has.
    games: int | None
    #: By how many nodes hold an entry, from 1 on.
    by_copies: dict[int, Amount]
    by_node: dict[str, Amount]

    @property
    def entries(self) -> int:
        """How many there are."""
        return sum(amount.entries for amount in self.by_copies.values())

    def lacks(self, node: str) -> bool:
        """Whether there are entries that a node does not hold."""
        return node not in self.by_node or self.by_node[node].entries < self.entries

    def fewer(self, copies: int) -> int:
        """How many entries have fewer copies."""
        return sum(amount.entries for have, amount in self.by_copies.items() if have < copies)


def tallies(reader: Reader) -> Iterator[Tally]:
    """Every configuration and type of which there is something, in order."""
    found: Tally | None = None
    for key, value in reader.scan(TABLE):
        config_key, data_type, *node = key[:-1].decode().split("\x00")
        if node:
            assert found is not None  # a node's row stands behind that of all nodes
            found.by_node[node[0]] = Amount(*_numbers(value))
            continue
        if found is not None:
            yield found
        group = _group(value)
        games = group.games if group.counted else None
        found = Tally(config_key, data_type, games, group.by_copies, {})
    if found is not None:
        yield found


def moved(tx: Writer, entry: Countable, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    """Other nodes than before hold an entry that counts, or it counts only now, or no more."""
    place = text_key(entry.config_key, entry.data_type)
    group = _group(tx.get(TABLE, place))
    for nodes, sign in ((before, -1), (after, 1)):
        if nodes:
            group.add(entry, len(nodes), sign)
    _put(tx, place, group.numbers())
    for sign, names in ((-1, set(before) - set(after)), (1, set(after) - set(before))):
        for name in names:
            key = text_key(entry.config_key, entry.data_type, name)
            entries, size_bytes = _numbers(tx.get(TABLE, key)) or (0, 0)
            _put(tx, key, [entries + sign, size_bytes + sign * entry.size_bytes])


class _Group:
    """The row of a configuration and type."""

    def __init__(self, games: int, counted: int, by_copies: dict[int, Amount]) -> None:
        self.games = games
        #: Entries in which somebody has counted the games.
        self.counted = counted
        self.by_copies = by_copies

    def add(self, entry: Countable, copies: int, sign: int) -> None:
        """Count an entry with so many copies, or with -1 count it no more."""
        if entry.games is not None:
            self.games += sign * entry.games
            self.counted += sign
        have = self.by_copies.get(copies, Amount(0, 0))
        left = Amount(have.entries + sign, have.bytes + sign * entry.size_bytes)
        self.by_copies[copies] = left
        if not left.entries:
            del self.by_copies[copies]

    def numbers(self) -> list[int]:
        """As it is stored; nothing where nothing is left."""
        if not self.by_copies:
            return []
        rows = (number for at in sorted(self.by_copies) for number in (at, *self.by_copies[at]))
        return [self.games, self.counted, *rows]


def _group(value: bytes | None) -> _Group:
    games, counted, *rows = _numbers(value) or (0, 0)
    each = zip(rows[::3], rows[1::3], rows[2::3], strict=True)
    return _Group(games, counted, {at: Amount(entries, size) for at, entries, size in each})


def _put(tx: Writer, key: bytes, numbers: list[int]) -> None:
    if any(numbers):
        tx.put(TABLE, key, " ".join(map(str, numbers)).encode())
    else:
        tx.delete(TABLE, key)


def _numbers(value: bytes | None) -> list[int]:
    """Digits, for a sum of sizes may be larger than any number that MessagePack holds."""
    return [int(digits) for digits in (value or b"").split()]
