"""The store: transactions, growth, generations, and several users of one path."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from projections import store as module
from projections.store import (
    Reader,
    Store,
    StoreCorrupt,
    StoreDirectory,
    StoreError,
    StoreMissing,
    StoreReader,
    Writer,
)

TABLES = ("one", "two")


class Kept(msgspec.Struct):
    """A row."""

    word: str


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    opened = Store.open(tmp_path / "store", TABLES, durable=False)
    yield opened
    opened.close()


@pytest.fixture
def small_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first map so small that a test can fill it."""
    monkeypatch.setattr(module, "_FIRST_MAP_BYTES", 1 << 18)


def put(store: Store, *keys: bytes, value: bytes = b"", table: str = "one") -> None:
    """Write keys."""

    def work(tx: Writer) -> None:
        for key in keys:
            tx.put(table, key, value)

    store.write(work)


def keys(store: Store, table: str = "one", prefix: bytes = b"", **how: object) -> list[bytes]:
    """Keys under a prefix."""
    with store.read() as reader:
        return [key for key, _ in reader.scan(table, prefix, **how)]  # type: ignore[arg-type]


def count(reader: StoreReader) -> int:
    """How many keys a reader finds."""
    with reader.read() as reading:
        return reading.count("one")


# Reading and writing


def test_write_is_all_or_nothing(store: Store) -> None:
    """Work that raises leaves nothing behind, and the next write goes on."""

    def half(tx: Writer) -> None:
        tx.put("one", b"a")
        tx.delete("one", b"before")
        raise RuntimeError("power cut")

    put(store, b"before")
    with pytest.raises(RuntimeError, match="power cut"):
        store.write(half)
    put(store, b"after")
    assert keys(store) == [b"after", b"before"]


def test_what_is_being_written_is_not_closed_under_its_hands(tmp_path: Path) -> None:
    """A thread that writes can't be stopped: whoever closes waits until it has."""
    store = Store.open(tmp_path / "closing", TABLES)
    writes, may_end = threading.Event(), threading.Event()

    def work(tx: Writer) -> None:
        writes.set()
        assert may_end.wait(60)
        tx.put("one", b"key")

    writing = threading.Thread(target=store.write, args=(work,))
    writing.start()
    assert writes.wait(60)
    closing = threading.Thread(target=store.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    may_end.set()
    for thread in (writing, closing):
        thread.join(60)
    again = Store.open(tmp_path / "closing", TABLES)
    assert keys(again) == [b"key"]
    again.close()


def test_transaction_reads_what_it_wrote(store: Store) -> None:
    """A fold may ask for what the fact before in the same batch put there."""

    def work(tx: Writer) -> tuple[bytes | None, bool, bool, bool, bool, int]:
        tx.put("one", b"a", b"1")
        added, again = tx.add("one", b"b"), tx.add("one", b"a", b"2")
        return tx.get("one", b"a"), added, again, tx.delete("one", b"a"), tx.delete("one", b"a"), 7

    assert store.write(work) == (b"1", True, False, True, False, 7)
    assert keys(store) == [b"b"]


def test_reading_is_of_one_moment(store: Store) -> None:
    """What is committed meanwhile is not seen half."""
    put(store, b"a")
    with store.read() as reader:
        put(store, b"b")
        assert [key for key, _ in reader.scan("one")] == [b"a"]
    assert keys(store) == [b"a", b"b"]


def test_tables_are_apart(store: Store) -> None:
    """The same key in two tables is two keys."""
    put(store, b"a", value=b"1")
    put(store, b"a", value=b"2", table="two")
    with store.read() as reader:
        assert (reader.get("one", b"a"), reader.get("two", b"a")) == (b"1", b"2")
        assert reader.get("one", b"nothing") is None


def test_scan_gives_keys_under_a_prefix_in_byte_order(store: Store) -> None:
    """All of them, those from a key on, or the last one first."""
    put(store, b"a", b"b\x00", b"b\x01", b"b\xff", b"b\xff\xff", b"c")
    assert keys(store) == [b"a", b"b\x00", b"b\x01", b"b\xff", b"b\xff\xff", b"c"]
    assert keys(store, prefix=b"b") == [b"b\x00", b"b\x01", b"b\xff", b"b\xff\xff"]
    assert keys(store, prefix=b"b", start=b"b\x01") == [b"b\x01", b"b\xff", b"b\xff\xff"]
    assert keys(store, prefix=b"b", start=b"b\x02") == [b"b\xff", b"b\xff\xff"]
    assert keys(store, prefix=b"x") == []
    assert keys(store, reverse=True)[:2] == [b"c", b"b\xff\xff"]
    assert keys(store, prefix=b"b", reverse=True)[:2] == [b"b\xff\xff", b"b\xff"]
    assert keys(store, prefix=b"c", reverse=True) == [b"c"]
    assert keys(store, prefix=b"x", reverse=True) == []
    assert keys(store, prefix=b"0", reverse=True) == []


def test_scan_of_an_empty_table_is_empty(store: Store) -> None:
    """Forwards, backwards, and under a prefix."""
    assert keys(store) == keys(store, reverse=True) == keys(store, prefix=b"a") == []
    assert keys(store, prefix=b"a", reverse=True) == []


def test_any_key_under_a_prefix_is_seen_in_and_after_the_transaction(store: Store) -> None:
    """One that is put is there at once, and one that is deleted no more; nor is its neighbour."""
    put(store, b"a", b"c")

    def work(tx: Writer) -> list[bool]:
        before = tx.any("one", b"b")
        tx.put("one", b"bb")
        there = tx.any("one", b"b")
        tx.delete("one", b"bb")
        return [before, there, tx.any("one", b"b"), tx.any("one", b"c"), tx.any("two", b"")]

    assert store.write(work) == [False, True, False, True, False]
    with store.read() as reader:
        found = [reader.any("one", prefix) for prefix in (b"a", b"b", b"c", b"d", b"")]
    assert found == [True, False, True, False, True]


def test_row_that_waits_in_the_transaction_counts_as_there(store: Store) -> None:
    """It is not added again, and deleting says whether there was one, packed or not."""

    def work(tx: Writer) -> list[bool]:
        tx.put("one", b"row", Kept("first"))
        again = tx.add("one", b"row", b"other")
        gone = tx.delete("one", b"row")
        return [again, gone, tx.delete("one", b"row"), tx.add("one", b"row", b"second")]

    assert store.write(work) == [False, True, False, True]
    with store.read() as reader:
        assert reader.get("one", b"row") == b"second"


# Digests


def test_digest_is_of_keys_and_values_and_tells_where_one_ends(store: Store) -> None:
    """Equal contents have equal digests; moving a byte from key to value does not."""
    digests = set()
    contents = [(b"ab", b"c"), (b"a", b"bc"), (b"abc", b""), (b"ab", b"d")]
    for key, value in contents:
        store.write(lambda tx: [tx.delete("one", old) for old, _ in list(tx.scan("one"))])
        put(store, key, value=value)
        with store.read() as reader:
            digests.add(reader.digest(TABLES))
            assert reader.digest(TABLES) == reader.digest(TABLES)
    assert len(digests) == len(contents)


def test_digest_does_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    """A view rebuilt in other batches is the same view."""
    digests = set()
    for name, order in (("x", (b"a", b"b")), ("y", (b"b", b"a"))):
        opened = Store.open(tmp_path / name, TABLES, durable=False)
        put(opened, *order)
        with opened.read() as reader:
            digests.add(reader.digest(TABLES))
        opened.close()
    assert len(digests) == 1


# Growth


@pytest.mark.usefixtures("small_map")
def test_full_map_grows_and_the_write_is_done_once(store: Store) -> None:
    """Whoever writes does not notice, and nothing is stored twice."""
    calls = 0

    def work(tx: Writer) -> None:
        nonlocal calls
        calls += 1
        for n in range(200):
            tx.put("one", b"%04d" % (tx.count("one") + n), b"x" * 4_000)

    store.write(work)
    assert calls > 1
    assert len(keys(store)) == len(set(keys(store))) == 200


@pytest.mark.usefixtures("small_map")
def test_store_that_has_grown_can_be_opened_again(tmp_path: Path) -> None:
    """A restart begins with a small map and finds a large file."""
    for n in range(3):
        opened = Store.open(tmp_path / "store", TABLES, durable=False)
        put(opened, *(b"%d-%04d" % (n, m) for m in range(200)), value=b"x" * 4_000)
        assert len(keys(opened)) == 200 * (n + 1)
        opened.close()


@pytest.mark.usefixtures("small_map")
def test_reader_follows_growth_by_another_process(store: Store) -> None:
    """Its map was made for a smaller file."""
    assert keys(store) == []
    script = (
        "import sys; from pathlib import Path; from projections import store\n"
        "opened = store.Store.open(Path(sys.argv[1]), ('one', 'two'), durable=False)\n"
        "opened.write(lambda tx: [tx.put('one', b'%05d' % n, b'x' * 4000) for n in range(900)])\n"
        "opened.close()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(store.path)], check=True, timeout=60)
    assert len(keys(store)) == 900
    put(store, b"mine")
    assert len(keys(store)) == 901


@pytest.mark.usefixtures("small_map")
def test_reading_survives_growth_by_the_writing_thread(store: Store) -> None:
    """The bridge reads on the event loop while the projector's thread fills the map."""
    put(store, *(b"%02d" % n for n in range(50)))
    with store.read() as reader:
        scanned = reader.scan("one")
        next(scanned)
        fill = [b"more-%04d" % n for n in range(200)]
        writer = threading.Thread(target=put, args=(store, *fill), kwargs={"value": b"x" * 4_000})
        writer.start()
        assert len(list(scanned)) == 49
    writer.join(timeout=30)
    assert len(keys(store)) == 250


# Several users of one path


def test_same_path_twice_in_a_process_is_one_store(store: Store) -> None:
    """LMDB allows one environment a process: the second user shares the first one's."""
    other = Store.open(store.path, TABLES)
    reading = Store.open(store.path, TABLES, writable=False)
    put(other, b"a")
    assert keys(store) == keys(other) == keys(reading) == [b"a"]
    other.close()
    reading.close()
    put(store, b"b")
    assert keys(store) == [b"a", b"b"]


def test_path_by_another_name_is_the_same_store(store: Store, tmp_path: Path) -> None:
    """`current` is a symlink to the generation that is written."""
    link = tmp_path / "link"
    link.symlink_to(store.path.name)
    other = Store.open(link, TABLES, writable=False)
    put(store, b"a")
    assert keys(other) == [b"a"]
    other.close()


def test_last_user_closes_the_files(tmp_path: Path) -> None:
    """After that the path can be opened anew, also for writing what was opened for reading."""
    first, second = (Store.open(tmp_path / "store", TABLES, durable=False) for _ in range(2))
    put(first, b"a")
    first.close()
    assert keys(second) == [b"a"]
    second.close()
    reading = Store.open(tmp_path / "store", TABLES, writable=False)
    reading.close()
    again = Store.open(tmp_path / "store", TABLES)
    put(again, b"b")
    assert keys(again) == [b"a", b"b"]
    again.close()


def test_store_open_for_reading_can_not_be_written_in_the_same_process(tmp_path: Path) -> None:
    """It is refused with what to do, not discovered later."""
    path = tmp_path / "store"
    Store.open(path, TABLES, durable=False).close()
    reading = Store.open(path, TABLES, writable=False)
    with pytest.raises(StoreError, match="open for reading in this process; close it first"):
        Store.open(path, TABLES)
    reading.close()


def test_file_that_is_no_store_is_corrupt(tmp_path: Path) -> None:
    """Whoever folds deletes the directory and refolds."""
    (tmp_path / "data.mdb").write_bytes(b"not a store" * 1_000)
    with pytest.raises(StoreCorrupt, match=str(tmp_path)):
        Store.open(tmp_path, TABLES)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("writable", [True, False])
def test_file_that_was_cut_short_is_corrupt(tmp_path: Path, share: float, writable: bool) -> None:
    """To read what is not there would end the process by a signal, whenever it is started."""
    path = tmp_path / "store"
    store = Store.open(path, TABLES)
    put(store, *(b"%05d" % n for n in range(5_000)), value=b"v" * 100)
    store.close()
    os.truncate(path / "data.mdb", int((path / "data.mdb").stat().st_size * share))
    with pytest.raises(StoreCorrupt, match=f"{path} are damaged .*cut short by .*folds them anew"):
        Store.open(path, TABLES, writable=writable)


def test_file_that_is_cut_short_in_use_is_not_grown_over_the_gap(tmp_path: Path) -> None:
    """The zeros in it would be taken for pages."""
    path = tmp_path / "store"
    store = Store.open(path, TABLES)
    put(store, *(b"%05d" % n for n in range(5_000)), value=b"v" * 100)
    os.truncate(path / "data.mdb", (path / "data.mdb").stat().st_size // 2)
    with pytest.raises(StoreCorrupt, match="cut short"):
        put(store, b"more")
    store.close()


def test_damage_that_opening_does_not_show_is_said_where_it_is_met(tmp_path: Path) -> None:
    """In words that say what to do, and the store knows."""
    path = tmp_path / "store"
    store = Store.open(path, TABLES)
    put(store, *(b"%05d" % n for n in range(5_000)), value=b"v" * 100)
    store.close()
    content = bytearray((path / "data.mdb").read_bytes())
    for begin in range(0, len(content), 4096):
        if b"02500" in content[begin : begin + 4096]:
            content[begin : begin + 4096] = bytes(4096)
    (path / "data.mdb").write_bytes(content)
    store = Store.open(path, TABLES)
    assert not store.damaged
    with pytest.raises(StoreCorrupt, match="folds them anew"), store.read() as reader:
        reader.get("one", b"02500")
    assert store.damaged
    store.close()


def test_file_in_the_place_of_the_open_one_is_not_it(tmp_path: Path) -> None:
    """Others would read what is folded on by nobody."""
    path = tmp_path / "store"
    store = Store.open(path, TABLES)
    put(store, b"a")
    store.copy(tmp_path / "copy")
    assert store.in_place
    (tmp_path / "copy" / "data.mdb").replace(path / "data.mdb")
    assert not store.in_place
    store.close()


def test_missing_store_says_what_is_missing(tmp_path: Path) -> None:
    """The text is read by an operator on a machine where no coordinator ran."""
    hint = r"no views at .*: has a coordinator run with this directory\?.*only an agent has none"
    with pytest.raises(StoreMissing, match=hint):
        Store.open(tmp_path / "nothing", TABLES, writable=False)
    with pytest.raises(StoreMissing, match=hint), StoreReader(tmp_path / "no", TABLES).read():
        pass
    assert not (tmp_path / "nothing").exists()


def test_copy_is_the_store_at_one_moment(store: Store, tmp_path: Path) -> None:
    """A snapshot with its own checkpoint."""
    put(store, b"a", value=b"1")
    store.copy(tmp_path / "copy")
    put(store, b"b")
    copied = Store.open(tmp_path / "copy", TABLES)
    assert keys(copied) == [b"a"]
    copied.close()


# Generations


def generation(directory: StoreDirectory, *content: bytes) -> Path:
    """A new generation with these keys, not yet current."""
    path = directory.next()
    opened = Store.open(path, TABLES, durable=False)
    put(opened, *content)
    opened.close()
    return path


def test_generation_is_current_only_after_the_switch(tmp_path: Path) -> None:
    """A rebuild that dies half-way leaves the old views as they were."""
    directory = StoreDirectory(tmp_path)
    assert directory.current() is None
    first = generation(directory, b"a")
    assert directory.current() is None
    directory.switch(first)
    assert directory.current() == first
    generation(directory, b"half")
    assert directory.current() == first


def test_stale_generations_are_removed_and_their_numbers_not_used_again(tmp_path: Path) -> None:
    """A reader that still has the old one open never finds other views under its path."""
    directory = StoreDirectory(tmp_path)
    directory.switch(generation(directory))
    generation(directory)
    last = generation(directory)
    directory.switch(last)
    directory.remove_others()
    assert [path.name for path in tmp_path.glob("gen-*")] == [last.name] == ["gen-3"]
    assert directory.next().name == "gen-4"


def test_reader_follows_a_switch(tmp_path: Path) -> None:
    """Readers in other processes see the old views or the new ones, never neither."""
    directory, reader = StoreDirectory(tmp_path), StoreReader(tmp_path, TABLES)
    directory.switch(generation(directory, b"a"))
    assert count(reader) == 1
    directory.switch(generation(directory, b"a", b"b", b"c"))
    assert count(reader) == 3
    directory.remove_others()
    assert count(reader) == 3
    reader.close()
    assert count(reader) == 3
    reader.close()


def test_reading_that_is_under_way_outlives_the_switch(tmp_path: Path) -> None:
    """The files of the old generation are gone, its pages are not."""
    directory, reader = StoreDirectory(tmp_path), StoreReader(tmp_path, TABLES)
    directory.switch(generation(directory, b"a"))
    with reader.read() as reading:
        directory.switch(generation(directory, b"a", b"b"))
        directory.remove_others()
        assert [key for key, _ in reading.scan("one")] == [b"a"]
    assert count(reader) == 2
    reader.close()


def test_reader_sees_what_the_writer_of_this_process_commits(tmp_path: Path) -> None:
    """The daemon's own pages are read through the same environment."""
    directory, reader = StoreDirectory(tmp_path), StoreReader(tmp_path, TABLES)
    directory.switch(generation(directory))
    current = directory.current()
    assert current is not None
    writing = Store.open(current, TABLES)
    put(writing, b"a")
    assert count(reader) == 1
    reader.close()
    writing.close()


def test_reader_is_a_reader() -> None:
    """Nothing that only reads can write."""
    assert not hasattr(Reader, "put")
    assert not hasattr(Reader, "delete")
