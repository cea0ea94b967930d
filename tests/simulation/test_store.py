"""The store in memory answers as LMDB does, whatever is asked in whatever order."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from projections.store import Store
from tests.simulation.store import MemoryStore

TABLES = ("a", "b")
KEYS = st.binary(min_size=1, max_size=3)
WORDS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(TABLES), KEYS, st.binary(max_size=3)),
    st.tuples(st.just("add"), st.sampled_from(TABLES), KEYS, st.binary(max_size=3)),
    st.tuples(st.just("delete"), st.sampled_from(TABLES), KEYS),
    st.tuples(st.just("get"), st.sampled_from(TABLES), KEYS),
    st.tuples(st.just("count"), st.sampled_from(TABLES)),
    st.tuples(st.just("scan"), st.sampled_from(TABLES), st.binary(max_size=2)),
    st.tuples(st.just("any"), st.sampled_from(TABLES), st.binary(max_size=2)),
    st.tuples(st.just("back"), st.sampled_from(TABLES), st.binary(max_size=2)),
    st.tuples(st.just("from"), st.sampled_from(TABLES), KEYS),
)


def answer(place: object, word: tuple[object, ...]) -> object:
    """What a reading or a transaction says to one word."""
    name, *rest = word
    if name == "scan":
        return list(place.scan(*rest))  # type: ignore[attr-defined]
    if name == "back":
        return list(place.scan(*rest, reverse=True))  # type: ignore[attr-defined]
    if name == "from":
        return list(place.scan(rest[0], start=rest[1]))  # type: ignore[attr-defined]
    return getattr(place, str(name))(*rest)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(WORDS, max_size=12), max_size=5))
def test_store_in_memory_answers_as_lmdb_does(batches: list[list[tuple[object, ...]]]) -> None:
    """Within transactions and between them, and their digests are equal."""
    memory = MemoryStore(TABLES)
    with tempfile.TemporaryDirectory() as directory:
        real = Store.open(Path(directory), TABLES, durable=False)
        try:
            for batch in batches:
                said = memory.write(lambda tx, batch=batch: [answer(tx, word) for word in batch])
                assert said == real.write(
                    lambda tx, batch=batch: [answer(tx, word) for word in batch]
                )
                reads = [word for word in batch if word[0] not in ("put", "add", "delete")]
                with memory.read() as mine, real.read() as theirs:
                    assert [answer(mine, w) for w in reads] == [answer(theirs, w) for w in reads]
                    assert mine.digest(TABLES) == theirs.digest(TABLES)
        finally:
            real.close()
