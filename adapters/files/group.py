"""Many small files that appear together: each proven by itself, all made durable at once.

What holds for a `Landing` holds for every file of a group: under its final name it is whole, has
the digest of its entry, passed the check of its type, and was on the disk before it had the name.
One that is refused or spoiled keeps no other waiting. Nothing here opens a connection, nothing
retries, and everything blocks: it belongs in threads, one call at a time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from adapters.errors import (
    CheckFailed,
    DigestMismatch,
    Interrupted,
    NeverReplaced,
    TransportError,
)
from adapters.files import checks, sqlite
from adapters.files.digest import hex_of, named
from adapters.files.durable import Disk, fsync_above, set_mtime
from adapters.files.landing import Landed, appear, may_be_refused, refuse_replacement
from adapters.files.leftovers import GROUP_PREFIX
from adapters.files.partial import disk_error, disk_errors, write_all
from adapters.files.places import Confinement, Reservation, same_disk_directory
from adapters.workers import turn
from streams.identity import Ownership, PathRules
from streams.values import DataEntry

#: So few are flushed one by one: to flush a disk takes along what others wrote to it.
FEW = 4
Content = bytes | bytearray | memoryview
_MODE = 0o644
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Wanted(NamedTuple):
    """An entry, and where it is to appear, relative to the data root."""

    entry: DataEntry
    local: str


class _Place:
    """What the files of one directory share: where they lead, and where they are gathered."""

    def __init__(self, root: Path, above: str, directory: Path, size_bytes: int) -> None:
        """For so many bytes. Raises `DiskFull` or `OSError`."""
        #: Relative to the data root, as entries name it; and where that led.
        self.above = above
        self.directory = directory
        self.partials = same_disk_directory(root, directory / "any", "partial")
        self.reservation = Reservation(self.partials, size_bytes)
        try:
            self.disk = Disk(self.partials)
        except BaseException:
            self.reservation.release()
            raise
        #: Whether new files lack the mode that was asked for; None until there is one.
        self.masks_modes: bool | None = None

    def leads(self, confined: Confinement) -> Path:
        """Where the directory leads now. Raises `PathEscapes` or `Interrupted` if elsewhere."""
        if confined.directory(f"{self.above}/any" if self.above else "any") != self.directory:
            raise Interrupted(f"{self.above} leads elsewhere than it did")
        return self.directory

    def close(self) -> None:
        """Let go of it."""
        self.disk.close()
        self.reservation.release()


class Group:
    """Small entries on their way into a data root. Make it, `put` them, `commit`, then `close`."""

    def __init__(
        self, root: Path, wanted: Sequence[Wanted], rules: PathRules | None = None
    ) -> None:
        """Begin. What may not appear has its outcome at once, as `Landing.open` would raise it."""
        self.root = root.resolve()
        self.wanted = wanted
        #: What became of each entry; None while that is open.
        self.outcomes: list[Landed | TransportError | None] = [None] * len(wanted)
        self._rules = rules or PathRules()
        self._places: list[_Place] = []
        self._place_of: dict[int, _Place] = {}
        #: Which may have to yield to what has their final names.
        self._may_yield: set[int] = set()
        #: Proven contents that have no names yet, and what will be said of them.
        self._asides: dict[int, Landed] = {}
        # Nobody else ever writes a file of this name.
        self._group = f"{GROUP_PREFIX}{os.getpid()}-{os.urandom(8).hex()}"
        try:
            with turn():
                self._begin()
        except BaseException:
            self.close()
            raise

    @property
    def open(self) -> list[int]:
        """Numbers of the entries whose outcome is open."""
        return [number for number, outcome in enumerate(self.outcomes) if outcome is None]

    @property
    def gathered(self) -> list[int]:
        """Numbers of the entries that are proven and wait for their names."""
        return list(self._asides)

    def put(self, some: Iterable[tuple[int, Content | Path]]) -> None:
        """Prove contents and set them aside; what is wrong with one is its entry's outcome.

        A file that holds one, and that nobody writes, is moved where it can be: it is gone then.
        Best called in a `turn`.
        """
        for number, data in some:
            if self.outcomes[number] is None and number not in self._asides:
                try:
                    self._put(number, data)
                except TransportError as error:
                    self.outcomes[number] = error
                except (OSError, sqlite3.DatabaseError) as error:
                    self.outcomes[number] = disk_error(error)

    def fail(self, number: int, error: TransportError) -> None:
        """This entry will not come."""
        if self.outcomes[number] is None and number not in self._asides:
            self.outcomes[number] = error

    def withdraw(self, number: int, error: TransportError) -> None:
        """This entry has come, and is not to appear any more."""
        self._end([number], error)

    def commit(self) -> None:
        """Give those that came their final names, durably; those that did not are `Interrupted`."""
        for number in self.open:
            self.fail(number, Interrupted(f"{self.wanted[number].entry.path} did not come"))
        try:
            with disk_errors():
                self._make_durable()
        except TransportError as error:
            self._end(list(self._asides), error)
        self._publish()

    def close(self) -> None:
        """Let go of everything; what has no final name is removed. May be called twice."""
        for number in list(self._asides):
            self._drop(number)
        for place in self._places:
            place.close()
        self._places.clear()

    # Before there are bytes

    def _begin(self) -> None:
        confined, numbers_in = Confinement(self.root), dict[str, list[int]]()
        for number, (entry, local) in enumerate(self.wanted):
            if may_be_refused(local, self._rules.ownership(entry.path)):
                self._may_yield.add(number)
            try:
                self._refuse_replacement(confined.directory(local), number)
            except TransportError as error:
                self.outcomes[number] = error
            else:
                numbers_in.setdefault(local.rpartition("/")[0], []).append(number)
        for above, numbers in numbers_in.items():
            size_bytes = sum(self.wanted[number].entry.size_bytes for number in numbers)
            directory = confined.directory(self.wanted[numbers[0]].local)
            try:
                with disk_errors():
                    place = _Place(self.root, above, directory, size_bytes)
            except TransportError as error:
                self._end(numbers, error)
            else:
                self._places.append(place)
                self._place_of |= dict.fromkeys(numbers, place)

    def _refuse_replacement(self, directory: Path, number: int) -> None:
        """Raise if what stands under a final name may not be replaced."""
        if number in self._may_yield:
            entry, local = self.wanted[number]
            refuse_replacement(directory / _name(local), entry, self._rules)

    # One content

    def _put(self, number: int, data: Content | Path) -> None:
        entry, place = self.wanted[number].entry, self._place_of[number]
        aside = self._aside(number)
        try:
            if isinstance(data, Path):
                handle = self._moved(data, entry, place, aside)
            else:
                handle = self._written(data, entry, place, aside)
            try:
                self._settle(handle, place, entry.mtime)
            finally:
                os.close(handle)
            landed = self._looked_into(number, place)
        except BaseException:
            self._remove(number)
            raise
        place.reservation.used(entry.size_bytes)
        self._asides[number] = landed

    def _aside(self, number: int) -> str:
        """The name of a content aside."""
        return f"{self._group}.{number}.partial"

    def _written(self, data: Content, entry: DataEntry, place: _Place, aside: str) -> int:
        """A content aside, open."""
        _prove(entry, data)
        handle = os.open(aside, _FLAGS, _MODE, dir_fd=place.disk.handle)
        try:
            write_all(handle, memoryview(data), 0)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _moved(self, file: Path, entry: DataEntry, place: _Place, aside: str) -> int:
        """As `_written`, of a file's content."""
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with contextlib.ExitStack() as unless_moved:
            unless_moved.callback(os.close, handle)
            data = os.read(handle, entry.size_bytes + 1)
            _prove(entry, data)
            try:
                os.rename(file, aside, dst_dir_fd=place.disk.handle)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                return self._written(data, entry, place, aside)
            unless_moved.pop_all()
        return handle

    def _settle(self, handle: int, place: _Place, mtime: float) -> None:
        """Give a file its mode and time; flush it, unless all are flushed together."""
        if place.masks_modes is None:
            place.masks_modes = os.fstat(handle).st_mode & 0o777 != _MODE
        if place.masks_modes:
            # Only then: to set what is set already costs a turn of the disk's journal.
            os.fchmod(handle, _MODE)
        set_mtime(handle, mtime)
        if not self._syncs(place.disk):
            os.fsync(handle)

    def _looked_into(self, number: int, place: _Place) -> Landed:
        """What is counted in a content. Raises `CheckFailed`, and then it is in quarantine."""
        entry, local = self.wanted[number]
        games = samples = None
        if checks.looks_inside(entry.path):
            aside = place.partials / self._aside(number)
            problem, games, samples = checks.look_inside(aside, entry.path)
            if problem:
                name = f"{hex_of(entry.checksum)}{Path(local).suffix[:32]}"
                directory = same_disk_directory(self.root, place.directory / "any", "quarantine")
                raise CheckFailed(f"{entry.path} {problem}; see {aside.replace(directory / name)}")
        return Landed(bytes=entry.size_bytes, games=games, samples=samples)

    # All of them

    def _syncs(self, disk: Disk) -> bool:
        return disk.can_sync and len(self.wanted) > FEW

    def _gathered_in(self) -> dict[_Place, list[int]]:
        """Numbers of those that wait for their names, by place."""
        numbers_in: dict[_Place, list[int]] = {}
        for number in self._asides:
            numbers_in.setdefault(self._place_of[number], []).append(number)
        return numbers_in

    def _make_durable(self) -> None:
        for disk in {place.partials: place.disk for place in self._gathered_in()}.values():
            if self._syncs(disk):
                disk.sync()

    def _publish(self) -> None:
        """Give names, then make those durable; only then is anything said to have landed."""
        # Somebody may have moved directories or written files since the group was begun.
        confined, published = Confinement(self.root), dict[Path, dict[int, Landed]]()
        for place, numbers in self._gathered_in().items():
            try:
                with disk_errors():
                    appeared = self._give_names(place.leads(confined), place, numbers)
            except TransportError as error:
                self._end(numbers, error)
            else:
                published.setdefault(place.directory / "any", {}).update(appeared)
        try:
            with disk_errors():
                fsync_above(published, self.root)
        except TransportError as error:
            self._end([number for landed in published.values() for number in landed], error)
        for landed in published.values():
            for number, said in landed.items():
                self.outcomes[number] = self.outcomes[number] or said

    def _give_names(
        self, directory: Path, place: _Place, numbers: Sequence[int]
    ) -> dict[int, Landed]:
        """Those of one directory; what appeared there."""
        appeared: dict[int, Landed] = {}
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with turn():
                for number in numbers:
                    try:
                        self._give_name(number, place, handle)
                        appeared[number] = self._asides.pop(number)
                    except TransportError as error:
                        self._end([number], error)
                    except OSError as error:
                        self._end([number], disk_error(error))
        finally:
            os.close(handle)
        return appeared

    def _give_name(self, number: int, place: _Place, handle: int) -> None:
        entry, local = self.wanted[number]
        aside, name = self._aside(number), _name(local)
        self._refuse_replacement(place.directory, number)
        if checks.is_database(entry.path):
            # First these: a crash in between must not leave a new database with an old journal.
            sqlite.remove_side_files(place.directory / name)
        if number in self._may_yield and self._rules.ownership(entry.path) is Ownership.MERGED:
            appear(place.partials / aside, place.directory / name)
            return
        try:
            os.rename(aside, name, src_dir_fd=place.disk.handle, dst_dir_fd=handle)
        except IsADirectoryError:
            raise NeverReplaced(f"{name} is a directory") from None

    def _end(self, numbers: Sequence[int], error: TransportError) -> None:
        for number in numbers:
            self.outcomes[number] = error
            self._drop(number)

    def _drop(self, number: int) -> None:
        if self._asides.pop(number, None) is not None:
            self._remove(number)

    def _remove(self, number: int) -> None:
        """Remove a content aside, if it is there."""
        with contextlib.suppress(OSError):
            (self._place_of[number].partials / self._aside(number)).unlink()


def _prove(entry: DataEntry, data: Content) -> None:
    if (found := named(hashlib.sha256(data))) != entry.checksum:
        raise DigestMismatch(f"{entry.path}: got {found}")


def _name(local: str) -> str:
    return local.rpartition("/")[2]
