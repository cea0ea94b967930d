"""Which file is on which node: entries, replicas, and the version of each path that counts.

An entry is a path and a digest. A node holds at most one entry under a path. The authority of a
path is the node whose claim came first and that still holds a claim, or whose model was promoted;
its newest claim is the current version. Another node's different content under the same path is
kept, and is a conflict.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

import msgspec
from msgspec.structs import replace

from projections import standing, tallies
from projections.store import Reader, Writer
from projections.view import Handler, Row, digest_key, text_key, unpacker
from streams import events
from streams.codec import Recorded
from streams.values import S3_NODE, DataEntry, DataType, Transport


class EntryRow(Row, frozen=True):
    """Table ``entries``: entry key to what is known of the entry."""

    path: str
    data_type: DataType
    config_key: str
    size_bytes: int
    checksum: str
    mtime: float
    games: int | None
    samples: int | None
    version: int
    quality: float | None = None
    #: How the bucket has it, where it does.
    sealed_with: str = ""


class PathRow(Row, frozen=True):
    """Table ``paths``: path key to the version that counts."""

    path: str
    current: bytes
    authority: str
    version: int


_ENTRY = unpacker(EntryRow)
_PATH = unpacker(PathRow)


def entry_key(path: str, checksum: str) -> bytes:
    """The key of an entry: 16 bytes of its path and digest."""
    return digest_key(path, checksum)


class CatalogView:
    """Folds observations, removals and arrivals."""

    name = "catalog"
    version = 9
    tables = (
        "entries",
        "paths",
        "path_entries",
        "holders",
        "held",
        "node_path",
        "by_config",
        standing.TABLE,
        tallies.TABLE,
    )

    def __init__(self) -> None:
        self.folds: dict[type[events.Event], Handler] = {
            events.FilesObserved: self._observe,
            events.TransferSucceeded: self._arrive,
            events.TransferFailed: self._fall_short,
            events.FilesRemoved: self._remove,
            events.FileQuarantined: self._quarantine,
            events.ModelPromoted: self._promote,
            events.SyncPlanned: self._take,
        }

    def _observe(self, tx: Writer, event: events.FilesObserved, recorded: Recorded) -> None:
        for entry in event.entries:
            self._claim(tx, event.node, entry, recorded)

    def _claim(self, tx: Writer, node: str, entry: DataEntry, recorded: Recorded) -> None:
        """A node says that it has, of its own, this content under this path."""
        path_key, key = digest_key(entry.path), entry_key(entry.path, entry.checksum)
        row, sequence = _path_row(tx, path_key), recorded.sequence
        # The bucket produces nothing: it stands in until somebody claims what it restored.
        stands_in = row is not None and row.authority == S3_NODE != node
        may_claim = (
            row is None
            or row.authority == node
            or stands_in
            or not self._holds(tx, row.authority, path_key)
        )
        if row is None or stands_in or (may_claim and row.current != key):
            before, row = row, PathRow(entry.path, key, node, sequence)
            tx.put("paths", path_key, row)
            if before is not None:
                self._forget_if_lost(tx, path_key, before.current)
            self._count(tx, path_key, key, entry, recorded.time)
        version = row.version if row.current == key else sequence
        self._hold(tx, node, path_key, key, entry, version, recorded.time)
        stored = _entry_row(tx, key)
        if stored is not None and stored.version != version and row.current == key:
            # An old content came back as the newest: it must outrank what replaced it.
            tx.put("entries", key, replace(stored, version=version))

    @staticmethod
    def _count(tx: Writer, path_key: bytes, key: bytes, entry: DataEntry, time: float) -> None:
        """Another content of a path counts; one that was there before may have holders."""
        known = _entry_row(tx, key) is not None
        nodes = tuple(k[16:].decode() for k, _ in tx.scan("holders", key)) if known else ()
        games = entry.data_type is DataType.GAMES and entry.games != 0
        standing.counts(tx, path_key, key, nodes, time, games=games, what=_entry_row)

    def _take(self, tx: Writer, event: events.SyncPlanned, recorded: Recorded) -> None:
        """A chain moves these, or found them in place."""
        if recorded.chain.startswith(standing.SWEEP_CHAIN):
            # Another copy for safety's sake brings games to nobody who waits for them.
            return
        named = [(entry.path, entry.checksum) for plan in event.plans for entry in plan.entries]
        named += [(held.path, held.checksum) for held in event.held]
        for path, checksum in named:
            standing.taken(tx, digest_key(path), entry_key(path, checksum))

    def _arrive(self, tx: Writer, event: events.TransferSucceeded, recorded: Recorded) -> None:
        """A transfer put this content under this path on a node."""
        self._arrive_at(tx, event.target, event.entry, recorded)
        self._pass_through(tx, event, recorded)

    def _fall_short(self, tx: Writer, event: events.TransferFailed, recorded: Recorded) -> None:
        """It did not get to its target, but maybe half-way."""
        self._pass_through(tx, event, recorded)

    def _pass_through(
        self,
        tx: Writer,
        event: events.TransferSucceeded | events.TransferFailed,
        recorded: Recorded,
    ) -> None:
        """What its holder sent by way of the bucket stays there, named in its manifest."""
        sent = any(
            one.success and one.transport_used is Transport.S3 and one.remote == S3_NODE
            for one in event.results
        )
        if sent and event.node == event.source:
            self._arrive_at(tx, S3_NODE, event.entry, recorded)

    def _arrive_at(self, tx: Writer, node: str, entry: DataEntry, recorded: Recorded) -> None:
        path_key, key = digest_key(entry.path), entry_key(entry.path, entry.checksum)
        self._hold(tx, node, path_key, key, entry, entry.version, recorded.time)

    def _hold(
        self,
        tx: Writer,
        node: str,
        path_key: bytes,
        key: bytes,
        entry: DataEntry,
        version: int,
        time: float,
    ) -> None:
        place = text_key(node) + path_key
        before = tx.get("node_path", place)
        if node == S3_NODE:
            self._seal(tx, key, entry.sealed_with, again=before == key)
        if before == key:
            return
        if before is not None:
            self._drop(tx, node, before, time)
        row = _entry_row(tx, key)
        if row is None:
            row = _row_of(entry, version)
            tx.put("entries", key, row)
            tx.put("path_entries", path_key + key)
        tx.put("by_config", text_key(row.config_key, row.data_type) + key)
        tx.put("node_path", place, key)
        tx.put("holders", key + node.encode())
        # By the entry's own word: another node may call the same content by another type.
        tx.put("held", text_key(node, row.config_key, row.data_type) + key)
        standing.came(tx, path_key, key, row, node)

    @staticmethod
    def _seal(tx: Writer, key: bytes, sealed_with: str, *, again: bool) -> None:
        """How the bucket has a content: plain, once anybody has stored it so."""
        row = _entry_row(tx, key)
        plain = again and row is not None and not row.sealed_with
        if row is not None and row.sealed_with != sealed_with and not plain:
            tx.put("entries", key, replace(row, sealed_with=sealed_with))

    def _promote(self, tx: Writer, event: events.ModelPromoted, recorded: Recorded) -> None:
        """The node whose model won becomes the authority of its path, with what it holds there."""
        path_key = digest_key(event.model_path)
        row = _path_row(tx, path_key)
        if row is None or row.authority == event.node:
            return
        key = tx.get("node_path", text_key(event.node) + path_key) or row.current
        version = row.version if key == row.current else recorded.sequence
        tx.put("paths", path_key, replace(row, current=key, authority=event.node, version=version))
        if key != row.current:
            self._forget_if_lost(tx, path_key, row.current)
            stored = _entry_row(tx, key)
            if stored is not None:
                tx.put("entries", key, replace(stored, version=version))
                self._count(tx, path_key, key, _bare(stored), recorded.time)

    def _remove(self, tx: Writer, event: events.FilesRemoved, recorded: Recorded) -> None:
        for path in event.paths:
            self._leave(tx, event.node, digest_key(path), recorded.time)

    def _leave(self, tx: Writer, node: str, path_key: bytes, time: float) -> None:
        place = text_key(node) + path_key
        key = tx.get("node_path", place)
        if key is not None:
            tx.delete("node_path", place)
            self._drop(tx, node, key, time)

    def _quarantine(self, tx: Writer, event: events.FileQuarantined, recorded: Recorded) -> None:
        path_key = digest_key(event.path)
        held = tx.get("node_path", text_key(event.node) + path_key)
        if held == entry_key(event.path, event.checksum):
            self._leave(tx, event.node, path_key, recorded.time)

    @staticmethod
    def _drop(tx: Writer, node: str, key: bytes, time: float) -> None:
        """A node no longer holds an entry. One that nobody holds is only named, while it counts."""
        row = _entry_row(tx, key)
        tx.delete("holders", key + node.encode())
        if row is None:
            return
        standing.went(tx, digest_key(row.path), key, row, node, time)
        tx.delete("held", text_key(node, row.config_key, row.data_type) + key)
        if not tx.any("holders", key):
            tx.delete("by_config", text_key(row.config_key, row.data_type) + key)
            path_key = digest_key(row.path)
            path_row = _path_row(tx, path_key)
            if path_row is None or path_row.current != key:
                _forget(tx, path_key, key)

    @staticmethod
    def _forget_if_lost(tx: Writer, path_key: bytes, key: bytes) -> None:
        """A version that was replaced and that nobody holds is of no use to anybody."""
        if not tx.any("holders", key):
            _forget(tx, path_key, key)

    @staticmethod
    def _holds(tx: Writer, node: str, path_key: bytes) -> bool:
        return tx.get("node_path", text_key(node) + path_key) is not None


class DataCatalog:
    """Where the cluster's data is, as one reading of the views tells it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def get(self, path: str) -> DataEntry | None:
        """The current version of a path, with the nodes that hold exactly it; None if unknown.

        A version whose every holder is gone is still named, with no locations.
        """
        row = _path_row(self._reader, digest_key(path))
        return None if row is None else self._entry(row.current)

    def versions(self, path: str) -> list[DataEntry]:
        """All contents that some node holds under a path, newest first; conflicts among them."""
        keys = [key[16:] for key, _ in self._reader.scan("path_entries", digest_key(path))]
        found = [entry for key in keys if (entry := self._entry(key)) is not None]
        return sorted(found, key=lambda entry: -entry.version)

    def entries(
        self, *, node: str = "", config_key: str = "", data_type: DataType | None = None
    ) -> Iterator[DataEntry]:
        """Entries that somebody holds: on one node, of one configuration, of one type, or all."""
        for key in self._keys(node, config_key, data_type):
            entry = self._entry(key)
            if entry is not None and data_type in (None, entry.data_type):
                yield entry

    def _keys(self, node: str, config_key: str, data_type: DataType | None) -> Iterator[bytes]:
        table, prefix = ("held", text_key(node)) if node else ("by_config", b"")
        if config_key:
            prefix += text_key(config_key)
            if data_type:
                prefix += text_key(data_type)
        return (key[-16:] for key, _ in self._reader.scan(table, prefix))

    def held_page(
        self, node: str, after: bytes, enough: Callable[[], bool]
    ) -> tuple[list[DataEntry], bytes | None]:
        """Some of what a node holds, from behind `after` on; and where to go on, None at the end.

        `enough` is asked after each entry.
        """
        found = []
        prefix = text_key(node)
        for key, _ in self._reader.scan("held", prefix, start=after + b"\x00" if after else b""):
            entry = self._entry(key[-16:])
            if entry is not None:
                found.append(entry)
            if enough():
                return found, key
        return found, None

    def lacking_page(
        self,
        node: str,
        config_key: str,
        data_type: DataType,
        after: bytes,
        enough: Callable[[], bool],
    ) -> tuple[list[DataEntry], bytes | None]:
        """As `held_page`: current entries of a configuration and type that a node does not hold."""
        found = []
        prefix, here = text_key(config_key, data_type), text_key(node)
        for key, _ in self._reader.scan(
            "by_config", prefix, start=after + b"\x00" if after else b""
        ):
            row = _entry_row(self._reader, key[-16:])
            path_key = digest_key(row.path) if row is not None else b""
            if self._reader.get("node_path", here + path_key) != key[-16:]:
                entry = self._entry(key[-16:])
                if entry is not None and self.is_current(entry):
                    found.append(entry)
            if enough():
                return found, key
        return found, None

    def current(
        self,
        *,
        node: str = "",
        config_key: str = "",
        data_type: DataType | None = None,
        authority: str = "",
    ) -> Iterator[DataEntry]:
        """As `entries`, but only versions that count; with `authority`, of paths that are its."""
        for key in self._keys(node, config_key, data_type):
            row = _entry_row(self._reader, key)
            if row is None or data_type not in (None, row.data_type):
                continue
            path_row = _path_row(self._reader, digest_key(row.path))
            # Who holds it is read last: most of what does not count is passed over before.
            counts = path_row is not None and path_row.current == key
            if path_row is not None and counts and authority in ("", path_row.authority):
                yield self._whole(key, row, path_row)

    def tallied(self) -> Iterator[tallies.Tally]:
        """How much there is of each configuration and type: of `current`, counted already."""
        return tallies.tallies(self._reader)

    def is_current(self, entry: DataEntry) -> bool:
        """Whether an entry is the version of its path that counts."""
        row = _path_row(self._reader, digest_key(entry.path))
        return row is not None and row.current == entry_key(entry.path, entry.checksum)

    def holders(self, path: str, checksum: str) -> tuple[str, ...]:
        """Nodes with a verified copy of an entry, by name."""
        key = entry_key(path, checksum)
        return tuple(found[16:].decode() for found, _ in self._reader.scan("holders", key))

    def at(self, key: bytes) -> DataEntry | None:
        """An entry by its key."""
        return self._entry(key)

    def held_by(self, node: str, path: str) -> DataEntry | None:
        """What a node holds under a path."""
        key = self._reader.get("node_path", text_key(node) + digest_key(path))
        return None if key is None else self._entry(key)

    def holds(self, node: str, entry: DataEntry) -> bool:
        """Whether a node holds exactly this content under its path; by one look."""
        held = self._reader.get("node_path", text_key(node) + digest_key(entry.path))
        return held == entry_key(entry.path, entry.checksum)

    def get_replication_factor(self, path: str) -> int:
        """How many nodes hold the current version of a path; 0 for a path nobody knows."""
        entry = self.get(path)
        return 0 if entry is None else len(entry.locations)

    def get_missing_on_node(
        self,
        node_id: str,
        data_type: DataType | None = None,
        *,
        kinds: Container[DataType] = frozenset(DataType),
        wanted: Callable[[DataEntry], bool] = lambda entry: True,
    ) -> list[DataEntry]:
        """Current entries that `wanted` says belong on a node and that aren't there, by path."""
        found = self.lacking(node_id, data_type, kinds=kinds, wanted=wanted)
        return sorted(found, key=lambda entry: entry.path)

    def lacking(
        self,
        node: str,
        data_type: DataType | None = None,
        *,
        kinds: Container[DataType] = frozenset(DataType),
        wanted: Callable[[DataEntry], bool] = lambda entry: True,
    ) -> Iterator[DataEntry]:
        """The same as they are found.

        Of no other types than `kinds` anything is looked at, nor of a configuration and type of
        which the node holds all.
        """
        for tally in self.tallied():
            kind = DataType(tally.data_type)
            if kind in kinds and data_type in (None, kind) and tally.lacks(node):
                for key, nodes in self.standing(tally.config_key, kind):
                    entry = None if nodes is None or node in nodes else self._entry(key[-16:])
                    if entry is not None and wanted(entry):
                        yield entry

    def standing(
        self, config_key: str, data_type: str, *, node: str = "", after: bytes = b""
    ) -> Iterator[tuple[bytes, tuple[str, ...] | None]]:
        """Entries of a configuration and type that somebody holds, or this node, behind `after`.

        A key that ends with the entry's, and who holds it by name: None of one that does not count.
        """
        place, here = text_key(config_key, data_type), text_key(node) if node else b""
        start = here + after + b"\x00" if after else b""
        for found, _ in self._reader.scan(
            "held" if node else "by_config", here + place, start=start
        ):
            key = found[-16:]
            row = _entry_row(self._reader, key)
            stands = row and standing.standing_of(self._reader, digest_key(row.path))
            yield place + key, stands.nodes if stands and stands.entry == key else None

    def counts(self) -> dict[str, int]:
        """How many paths were ever known, and how many entries and replicas there are."""
        return {
            "paths": self._reader.count("paths"),
            "entries": self._reader.count("by_config"),
            "replicas": self._reader.count("holders"),
        }

    def _entry(self, key: bytes) -> DataEntry | None:
        row = _entry_row(self._reader, key)
        if row is None:
            return None
        return self._whole(key, row, _path_row(self._reader, digest_key(row.path)))

    def _whole(self, key: bytes, row: EntryRow, path_row: PathRow | None) -> DataEntry:
        return DataEntry(
            **msgspec.structs.asdict(row),
            primary_location=path_row.authority if path_row else "",
            locations=tuple(k[16:].decode() for k, _ in self._reader.scan("holders", key)),
        )


def _forget(tx: Writer, path_key: bytes, key: bytes) -> None:
    tx.delete("entries", key)
    tx.delete("path_entries", path_key + key)


def _row_of(entry: DataEntry, version: int) -> EntryRow:
    return EntryRow(
        entry.path,
        entry.data_type,
        entry.config_key,
        entry.size_bytes,
        entry.checksum,
        entry.mtime,
        entry.games,
        entry.samples,
        version,
        entry.quality,
        entry.sealed_with,
    )


def _bare(row: EntryRow) -> DataEntry:
    return DataEntry(**msgspec.structs.asdict(row))


def row_held_by(reader: Reader, node: str, path: str) -> EntryRow | None:
    """What a node holds under a path, without who else holds it."""
    key = reader.get("node_path", text_key(node) + digest_key(path))
    return None if key is None else _entry_row(reader, key)


def _entry_row(reader: Reader, key: bytes) -> EntryRow | None:
    return reader.row("entries", key, _ENTRY)


def _path_row(reader: Reader, path_key: bytes) -> PathRow | None:
    return reader.row("paths", path_key, _PATH)
