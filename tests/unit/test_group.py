"""Landing many at once: what holds for one file holds for each of a group, whoever is killed."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from adapters.errors import (
    CheckFailed,
    DigestMismatch,
    DiskFailed,
    DiskFull,
    Interrupted,
    NeverReplaced,
    PathEscapes,
    Regression,
    TransportError,
)
from adapters.files import durable, group
from adapters.files.group import FEW, Group, Wanted
from adapters.files.landing import Landed
from adapters.files.leftovers import sweep_partials
from adapters.files.partial import write_all
from tests.unit.test_landing import archive, database, entry_of, files_in, partials_in

MANY = {f"data/{name}/{number}.bin": os.urandom(300) for name in "ab" for number in range(4)}


def begun(root: Path, contents: Mapping[str, bytes]) -> Group:
    """A group of these contents by path."""
    return Group(root, [Wanted(entry_of(data, path), path) for path, data in contents.items()])


def land(root: Path, contents: Mapping[str, bytes]) -> dict[str, Landed | TransportError | None]:
    """Land contents by path; what became of each."""
    together = begun(root, contents)
    for number, data in enumerate(contents.values()):
        together.put([(number, data)])
    together.commit()
    together.close()
    return dict(zip(contents, together.outcomes, strict=True))


def test_all_of_a_group_appear_as_if_each_had_landed_alone(tmp_path: Path) -> None:
    """Bytes, counts, time and mode are those of single landings, and nothing is left aside."""
    mask = os.umask(0o077)
    try:
        given = {**MANY, "npz/x.npz": archive(7), "x.jsonl": b"{}\n{}", "empty.bin": b""}
        wanted = [Wanted(entry_of(d, p, mtime=1_700_000_000.5), p) for p, d in given.items()]
        together = Group(tmp_path, wanted)
        for number, data in reversed(list(enumerate(given.values()))):
            together.put([(number, memoryview(data))])
        together.commit()
        together.close()
    finally:
        os.umask(mask)
    became = dict(zip(given, together.outcomes, strict=True))
    assert became.pop("npz/x.npz") == Landed(bytes=len(given["npz/x.npz"]), samples=7)
    assert became.pop("x.jsonl") == Landed(bytes=5, games=2)
    assert became == {path: Landed(bytes=len(given[path])) for path in became}
    assert files_in(tmp_path) == given
    assert partials_in(tmp_path) == []
    found = (tmp_path / "npz/x.npz").stat()
    assert found.st_mtime == 1_700_000_000.5
    assert stat.S_IMODE(found.st_mode) == 0o644


def test_one_that_is_refused_or_spoiled_keeps_no_other_waiting(tmp_path: Path) -> None:
    """Each has its own outcome, and the others land."""
    (tmp_path / "in-the-way.bin").mkdir()
    (tmp_path / "elo.db").write_bytes(b"merged here")
    (tmp_path / "npz").mkdir()
    (tmp_path / "npz/less.npz").write_bytes(archive(1000))
    before = files_in(tmp_path)
    refused: dict[str, tuple[bytes, type[TransportError]]] = {
        "../out.bin": (b"x", PathEscapes),
        ".dataplane/own.bin": (b"x", PathEscapes),
        "in-the-way.bin": (b"x", NeverReplaced),
        "elo.db": (b"", NeverReplaced),
        "npz/less.npz": (archive(700), Regression),
        "data/unsound.onnx": (b"", CheckFailed),
    }
    became = land(tmp_path, {path: data for path, (data, _) in refused.items()} | MANY)
    found = {path: type(became[path]) for path in refused}
    assert found == {path: error for path, (_, error) in refused.items()}
    assert all(isinstance(became[path], Landed) for path in MANY)
    assert files_in(tmp_path) == before | MANY
    assert partials_in(tmp_path) == []
    assert len(list((tmp_path / ".dataplane/quarantine").iterdir())) == 1


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_file_is_proven_as_it_is_and_moved_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """Only where it lies on another disk its bytes are written once more."""
    root, held = tmp_path / "root", tmp_path / "held"
    root.mkdir()
    held.mkdir()
    files = {path: held / str(number) for number, path in enumerate(MANY)}
    for path, file in files.items():
        file.write_bytes(MANY[path])
    first, *others = MANY
    files[first].write_bytes(b"x" * len(MANY[first]))
    inodes = {path: file.stat().st_ino for path, file in files.items()}
    rename = os.rename

    def on_another_disk(source: Path | str, *args: str, **kwargs: int) -> None:
        if isinstance(source, Path):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, *args, **kwargs)

    if elsewhere:
        monkeypatch.setattr(os, "rename", on_another_disk)
    together = begun(root, MANY)
    for number, file in enumerate(files.values()):
        together.put([(number, file)])
    together.commit()
    together.close()
    assert isinstance(together.outcomes[0], DigestMismatch)
    assert files_in(root) == {path: MANY[path] for path in others}
    assert partials_in(root) == []
    moved = {path: (root / path).stat().st_ino == inodes[path] for path in others}
    assert moved == dict.fromkeys(others, not elsewhere)
    assert {stat.S_IMODE((root / path).stat().st_mode) for path in others} == {0o644}
    assert {path for path, file in files.items() if not file.exists()} == (
        set() if elsewhere else set(others)
    )


def test_a_link_is_no_file_that_a_group_would_take(tmp_path: Path) -> None:
    """Whatever it leads to stays where it is, and has no second name."""
    root, secret, link = tmp_path / "root", tmp_path / "secret", tmp_path / "link"
    root.mkdir()
    secret.write_bytes(b"x")
    link.symlink_to(secret)
    together = begun(root, {"a.bin": b"x"})
    together.put([(0, link)])
    together.commit()
    together.close()
    assert isinstance(together.outcomes[0], DiskFailed)
    assert files_in(root) == {}
    assert secret.read_bytes() == b"x"


def test_p5_a_training_set_of_a_group_replaces_a_smaller_one_and_never_a_much_larger(
    tmp_path: Path,
) -> None:
    """What stands under the name is looked at when the name is given, too."""
    small, large = archive(700), archive(1000)
    (tmp_path / "npz").mkdir()
    (tmp_path / "npz/grows.npz").write_bytes(small)
    together = begun(tmp_path, {"npz/grows.npz": large, "npz/shrinks.npz": small})
    together.put([(0, large)])
    together.put([(1, small)])
    (tmp_path / "npz/shrinks.npz").write_bytes(large)
    together.commit()
    together.close()
    assert together.outcomes[0] == Landed(bytes=len(large), samples=1000)
    assert isinstance(together.outcomes[1], Regression)
    assert files_in(tmp_path) == {"npz/grows.npz": large, "npz/shrinks.npz": large}


def test_a_group_that_is_given_up_leaves_nothing_aside(tmp_path: Path) -> None:
    """What was proven already has no name, and is removed with the rest."""
    together = begun(tmp_path, MANY)
    for number, data in enumerate(list(MANY.values())[:3]):
        together.put([(number, data)])
    assert together.gathered == [0, 1, 2]
    together.close()
    assert files_in(tmp_path) == {}
    assert partials_in(tmp_path) == []


def test_k21_what_the_disk_does_not_take_is_told_for_the_one_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for one content, and has room again for the next."""
    full = iter([True])

    def once(handle: int, data: memoryview, at: int) -> None:
        if next(full, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(handle, data, at)

    monkeypatch.setattr(group, "write_all", once)
    first, *others = land(tmp_path, MANY).values()
    assert isinstance(first, DiskFull)
    assert all(isinstance(one, Landed) for one in others)
    assert partials_in(tmp_path) == []


def test_a_file_whose_time_nobody_told_has_that_of_its_landing(tmp_path: Path) -> None:
    """Not that of 1970, by which it would be the oldest file of its node."""
    land(tmp_path, {"a.bin": b"x"})
    assert (tmp_path / "a.bin").stat().st_mtime > 1_700_000_000


def test_p21_what_is_only_ever_merged_appears_where_nothing_is_and_replaces_nothing(
    tmp_path: Path,
) -> None:
    """Also where the node wrote its own while the group was on its way."""
    data, root = database(tmp_path / "source", 4), tmp_path / "root"
    root.mkdir()
    together = begun(root, {"elo.db": data, "metadata/elo_ratings.db": data})
    assert together.open == [0, 1]
    together.put([(0, data)])
    together.put([(1, data)])
    (root / "metadata").mkdir(exist_ok=True)
    (root / "metadata/elo_ratings.db").write_bytes(b"of its own")
    together.commit()
    together.close()
    assert together.outcomes[0] == Landed(bytes=len(data), games=4)
    assert isinstance(together.outcomes[1], NeverReplaced)
    assert files_in(root) == {"elo.db": data, "metadata/elo_ratings.db": b"of its own"}
    assert partials_in(root) == []


def test_p22_what_is_not_the_entrys_never_appears(tmp_path: Path) -> None:
    """Other bytes of the right number are found out; those that did not come are said to lack."""
    together = begun(tmp_path, MANY)
    contents = list(MANY.values())
    together.put([(0, contents[1])])
    for number in range(2, len(contents)):
        together.put([(number, contents[number])])
    together.commit()
    together.close()
    assert isinstance(together.outcomes[0], DigestMismatch)
    assert isinstance(together.outcomes[1], Interrupted)
    assert files_in(tmp_path) == dict(list(MANY.items())[2:])
    assert partials_in(tmp_path) == []


def test_p7_a_new_database_of_a_group_never_meets_an_old_journal(tmp_path: Path) -> None:
    """What a former database left beside the final name is gone before the new one has it."""
    data = database(tmp_path / "source", 4)
    root = tmp_path / "root"
    (root / "games").mkdir(parents=True)
    (root / "games/x.db-wal").write_bytes(b"of a former database")
    assert land(root, {"games/x.db": data})["games/x.db"] == Landed(bytes=len(data), games=4)
    assert files_in(root) == {"games/x.db": data}


def test_p19_a_directory_swapped_for_a_symlink_meanwhile_leads_nowhere(tmp_path: Path) -> None:
    """Where a path leads is asked again when the files get their names."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (root / "data/a").mkdir(parents=True)
    together = begun(root, MANY)
    for number, data in enumerate(MANY.values()):
        together.put([(number, data)])
    (root / "data/a").rmdir()
    (root / "data/a").symlink_to(outside)
    together.commit()
    together.close()
    found = [type(outcome) for outcome in together.outcomes]
    assert all(issubclass(one, TransportError) for one in found[:4])
    assert found[4:] == [Landed] * 4
    assert list(outside.iterdir()) == []


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a group asks of the disk, in order: the names of the calls."""
    said: list[str] = []

    def noted(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            said.append(name)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(durable.Disk, "sync", noted("sync", durable.Disk.sync))
    monkeypatch.setattr(group, "write_all", noted("write", write_all))
    monkeypatch.setattr(os, "rename", noted("rename", os.rename))
    monkeypatch.setattr(os, "fsync", noted("fsync", os.fsync))
    return said


@pytest.mark.parametrize("trusted", [True, False])
def test_nothing_has_a_name_before_it_is_on_the_disk(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    """All contents, one flush (or one a file, where that can't be trusted), all names, theirs."""
    monkeypatch.setattr(durable, "_is_honest", lambda device: trusted)
    land(tmp_path, MANY)
    written = ["write"] * len(MANY) + ["sync"] if trusted else ["write", "fsync"] * len(MANY)
    directories = ["data/a", "data", "", "data/b"]
    assert steps == [*written, *["rename"] * len(MANY), *["fsync" for _ in directories]]


def test_a_few_do_not_flush_what_others_write(tmp_path: Path, steps: list[str]) -> None:
    """To flush a whole disk only pays for many files."""
    land(tmp_path, dict(list(MANY.items())[:FEW]))
    assert steps[: 2 * FEW] == ["write", "fsync"] * FEW
    assert "sync" not in steps


def test_a_disk_that_lost_something_lands_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the flush fails nothing gets its name, and everybody is told."""

    def failing(disk: durable.Disk) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable, "_is_honest", lambda device: True)
    monkeypatch.setattr(durable.Disk, "sync", failing)
    became = land(tmp_path, MANY)
    assert {type(outcome) for outcome in became.values()} == {DiskFailed}
    assert files_in(tmp_path) == {}
    assert partials_in(tmp_path) == []


def test_names_that_are_not_durable_are_not_said_to_have_landed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a directory can't be flushed, none of its files is announced."""

    def failing(paths: object, highest: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(group, "fsync_above", failing)
    became = land(tmp_path, MANY)
    assert {type(outcome) for outcome in became.values()} == {DiskFailed}


def test_k21_a_group_promises_the_room_it_needs_and_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit beside the open groups is DiskFull, until they are closed."""
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("adapters.files.places.shutil.disk_usage", lambda _: usage())
    first = begun(tmp_path, {"a.bin": b"a" * 300, "b.bin": b"b" * 300})
    second = begun(tmp_path, {"c.bin": b"c" * 400})
    assert [type(outcome) for outcome in second.outcomes] == [DiskFull]
    first.close()
    second.close()
    third = begun(tmp_path, {"c.bin": b"c" * 800})
    assert third.open == [0]
    third.close()


@pytest.mark.parametrize("trusted", [True, False])
def test_p6_whoever_is_killed_at_any_step_leaves_whole_files_or_none(
    tmp_path: Path, trusted: bool
) -> None:
    """SIGKILL before each call to the disk: what has its name has its bytes, the rest comes again.

    What lay aside is swept up later.
    """
    step = 0
    while True:
        root = tmp_path / f"{trusted}-{step}"
        root.mkdir()
        finished = _landed_in_a_child(root, step, trusted)
        assert files_in(root).items() <= MANY.items()
        assert not finished or (files_in(root), partials_in(root)) == (MANY, [])
        assert all(isinstance(one, Landed) for one in land(root, MANY).values())
        assert files_in(root) == MANY
        sweep_partials(root / ".dataplane", now=time.time() + 2 * 3600)
        assert partials_in(root) == []
        if finished:
            break
        step += 1
    assert step > 2 * len(MANY)


def _landed_in_a_child(root: Path, deadly: int, trusted: bool) -> bool:
    """Land in a child that kills itself at its so-manieth step; whether it came to its end."""
    child = os.fork()
    if child == 0:
        left = deadly

        def deadly_one(function: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return function(*args, **kwargs)

            return call

        try:
            durable._is_honest = lambda device: trusted  # type: ignore[assignment]
            durable.Disk.sync = deadly_one(durable.Disk.sync)  # type: ignore[method-assign,assignment]
            for name in ("pwrite", "rename", "fsync", "unlink", "utime", "fchmod"):
                setattr(os, name, deadly_one(getattr(os, name)))
            land(root, MANY)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == 0


def test_a_time_that_no_clock_shows_keeps_no_other_waiting(tmp_path: Path) -> None:
    """Neither the file nor those that came with it are kept out by it."""
    times = {"data/odd.bin": 1e30, "data/odder.bin": float("inf"), "data/usual.bin": 1.7e9}
    wanted = [Wanted(entry_of(b"bytes", path, mtime=at), path) for path, at in times.items()]
    together = Group(tmp_path, wanted)
    for number in range(len(wanted)):
        together.put([(number, b"bytes")])
    together.commit()
    together.close()
    assert together.outcomes == [Landed(bytes=5)] * 3
    assert files_in(tmp_path) == dict.fromkeys(times, b"bytes")


def test_a_disk_that_takes_long_to_flush_keeps_no_other_group_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups write by turns, but one whose files are flushed one by one lets others go on."""
    flushing, others_landed = threading.Event(), threading.Event()
    really = os.fsync

    def slow(handle: int) -> None:
        if threading.current_thread() is few:
            flushing.set()
            assert others_landed.wait(30)
        really(handle)

    monkeypatch.setattr(os, "fsync", slow)
    few = threading.Thread(target=land, args=(tmp_path / "few", {"a.bin": b"alone"}))
    (tmp_path / "few").mkdir()
    few.start()
    assert flushing.wait(30)
    (tmp_path / "many").mkdir()
    outcomes = land(tmp_path / "many", MANY)
    others_landed.set()
    few.join()
    assert all(isinstance(one, Landed) for one in outcomes.values())
    assert (tmp_path / "few" / "a.bin").read_bytes() == b"alone"
