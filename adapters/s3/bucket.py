"""What a bucket holds as a whole: manifests, and what can be restored from them alone.

A manifest is written only after the objects it names. **Nothing here deletes an object or drops an
entry**: that a file is absent on a node says nothing about its backup.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from adapters.errors import EntryMissing, Overtaken, TransportError
from adapters.files.digest import checksum_of
from adapters.files.landing import Landed, Landing
from adapters.files.leftovers import tidy
from adapters.files.places import confined
from adapters.s3 import layout
from adapters.s3.flow import Flow
from adapters.s3.layout import Manifest, ManifestEntry, ManifestUnreadable
from adapters.s3.transport import S3Transport
from adapters.telling import InAll, Onward
from adapters.throttle import Throttle
from adapters.transport import Progress
from adapters.workers import each, finish
from streams.identity import PathRules
from streams.values import S3_NODE, DataEntry, Proof

#: Questions about objects that are asked at once.
_ASKED_AT_ONCE = 16
_RESTORED_AT_ONCE = 4
#: How often another writer may win before the attempt ends.
_RACES = 16


class _Named(NamedTuple):
    """What manifests name, by path and checksum."""

    entries: Mapping[tuple[str, str], ManifestEntry]
    #: Which can't be read, and why.
    doubt: str


class Catalog(NamedTuple):
    """What can be restored, as far as manifests can be read."""

    entries: tuple[ManifestEntry, ...]
    #: Those that can't: what only they name, and what they know newer, is not among the entries.
    unreadable: tuple[ManifestUnreadable, ...]

    @property
    def known(self) -> tuple[DataEntry, ...]:
        """The entries, each with the key that it is sealed with."""
        return tuple(
            replace(stored.entry, sealed_with=layout.sealed_with(stored.key))
            for stored in self.entries
        )

    @property
    def doubt(self) -> str:
        """What to add where something is not found: which manifests can't be read, and why."""
        return "".join(f"; can't be read: {error}" for error in self.unreadable)


class Restored(NamedTuple):
    """A file that was brought back."""

    landed: Landed
    #: The manifests that can't be read: one of them may name a newer version.
    unreadable: tuple[ManifestUnreadable, ...]


class S3Bucket:
    """What a bucket holds as a whole: its manifests, and what can be restored from it alone.

    Manifests are written only after the objects they name, and conditionally, so that of several
    writers none loses what another wrote. No entry is ever dropped from one.
    """

    def __init__(self, transport: S3Transport, *, clock: Callable[[], float] = time.time) -> None:
        self._transport = transport
        self._store = transport.store
        self._clock = clock
        self._reading = asyncio.Lock()
        self._next: asyncio.Task[_Named] | None = None

    async def write_manifest(
        self, node: str, manifest: Manifest, pushed: Collection[str] = ()
    ) -> Manifest:
        """Add to what a node's manifest names; return what it names now.

        Raises `EntryMissing`, and writes nothing, unless each object is there with its size and
        digest; those with the keys in `pushed`, which the server has just taken, are not asked for
        again. What the node's manifest named before, it still names, or a newer version of it.
        """
        unproven = [stored for stored in manifest.entries if stored.key not in pushed]
        await each(unproven, self._check_stored, _ASKED_AT_ONCE)
        return await self._grow(node, [manifest])

    async def read_manifest(self, node: str) -> Manifest:
        """A node's manifest, or the consolidated one for "". Raises `EntryMissing` if there is
        none, `ManifestUnreadable` if it is none.
        """
        manifest, _ = await self._read(node)
        if manifest is None:
            raise EntryMissing(f"there is no {self._store.name(layout.manifest_key(node))}")
        return manifest

    async def nodes(self) -> list[str]:
        """The nodes that have a manifest."""
        found = await self._store.listed(
            "list_objects_v2",
            "CommonPrefixes",
            Flow(),
            Prefix=layout.NODES_PREFIX,
            Delimiter="/",
        )
        names = (layout.node_in(one["Prefix"]) for one in found)
        return sorted(name for name in names if name)

    async def consolidate(self, nodes: Sequence[str] | None = None) -> Manifest:
        """Add what the manifests of `nodes`, or of all, name to the consolidated one; return it.

        A node without a manifest is passed over, and nothing is dropped for it.
        """
        names = await self.nodes() if nodes is None else nodes
        return await self._grow("", await self._manifests(names))

    async def catalog(self) -> Catalog:
        """All that can be restored, whether it was consolidated yet or not. It writes nothing.

        A manifest that can't be read keeps none of what the others name from being restored.
        """
        known, unreadable = list[Manifest](), list[ManifestUnreadable]()
        for node in ["", *await self.nodes()]:
            try:
                known += await self._manifests([node])
            except ManifestUnreadable as error:
                unreadable.append(error)
        newest = await finish(lambda: layout.merged("", known, self._clock()))
        return Catalog(newest.entries, tuple(unreadable))

    async def restore(
        self,
        stored: ManifestEntry,
        landing: Landing,
        throttle: Throttle | None = None,
        progress: Progress = lambda *_: None,
    ) -> int:
        """Bring one entry of a manifest; as `Fetches.fetch`, the caller commits."""
        flow = Flow(stored.entry.size_bytes, throttle, progress)
        return await self._transport.bring(stored.key, landing, flow)

    async def restore_file(
        self,
        path: str,
        root: Path,
        *,
        rules: PathRules | None = None,
        throttle: Throttle | None = None,
        progress: Progress = lambda *_: None,
    ) -> Restored:
        """Bring the newest version of one logical path that the bucket knows, to `root`/`path`.

        Raises `EntryMissing` if no manifest names it, and as `Fetches.fetch`. Nothing stays below
        `root` but the file, or what of it came.
        """
        try:
            return await self._restore_newest(path, root, rules or PathRules(), throttle, progress)
        finally:
            await finish(lambda: tidy(root))

    async def _restore_newest(
        self,
        path: str,
        root: Path,
        rules: PathRules,
        throttle: Throttle | None,
        progress: Progress,
    ) -> Restored:
        catalog = await self.catalog()
        for stored in catalog.entries:
            if stored.entry.path == path:
                landed = await self._restore_file(stored, root, path, rules, throttle, progress)
                return Restored(landed, catalog.unreadable)
        raise EntryMissing(f"no manifest of {self._store.name()} names {path}{catalog.doubt}")

    async def restore_node(
        self,
        node: str,
        root: Path,
        *,
        rules: PathRules | None = None,
        throttle: Throttle | None = None,
        progress: Progress = lambda *_: None,
    ) -> dict[str, Landed | TransportError]:
        """Bring all that a node's manifest names under `root`, where that node would keep it.

        Returns what became of each path: one that fails holds up no other. What is there already
        is left as it is, so that it can be called again. `progress` is told of all as of one.
        Nothing stays below `root` but the files, or what of them came.
        """
        known = rules or PathRules()
        became: dict[str, Landed | TransportError] = {}
        named = (await self.read_manifest(node)).entries
        in_all = InAll(progress)
        for stored in named:
            in_all.expect(stored.entry.path, stored.entry.size_bytes)

        async def restore_one(stored: ManifestEntry) -> None:
            path = stored.entry.path
            try:
                local = known.local(path, node)
                became[path] = await self._restore_file(
                    stored, root, local, known, throttle, lambda done, _: in_all.tell(path, done)
                )
            except TransportError as error:
                became[path] = error

        try:
            await each(named, restore_one, _RESTORED_AT_ONCE)
        finally:
            await finish(lambda: tidy(root))
        return became

    async def _restore_file(
        self,
        stored: ManifestEntry,
        root: Path,
        local: str,
        rules: PathRules,
        throttle: Throttle | None,
        progress: Progress,
    ) -> Landed:
        onward = Onward(progress, stored.entry.size_bytes)
        if await finish(lambda: _stands(root, local, stored.entry)):
            onward.arrived()
            return Landed(bytes=stored.entry.size_bytes)
        transfer = f"restore {stored.entry.path}"
        landing = await Landing.open(root, stored.entry, transfer, local, rules=rules)
        try:
            await self.restore(stored, landing, throttle, onward)
            landed = await landing.commit()
            onward.arrived()
            return landed
        finally:
            await landing.abort()

    async def prove(self, path: str, checksum: str) -> Proof:
        """Whether a manifest names this content under this path, and the bucket holds the object.

        The digest is the object's own as the server keeps it, or where that does not know one of
        the whole, as of one stored in parts, what was said of it when it was stored; its bytes are
        not fetched.
        """

        def unproven(reason: str) -> Proof:
            return Proof(node=S3_NODE, proven=False, reason=reason)

        try:
            known = await self._named()
            named = known.entries.get((path, checksum))
            if named is None:
                return unproven(f"no manifest names this content of {path}{known.doubt}")
            found = await self._store.head(named.key, Flow())
        except TransportError as error:
            return unproven(f"{type(error).__name__}: {error}")
        if found is None:
            return unproven(f"{named.key} is gone")
        if not found.holds(named):
            return unproven(f"{named.key} is another content")
        return Proof(
            node=S3_NODE,
            proven=True,
            checksum=checksum,
            size_bytes=named.entry.size_bytes,
            sealed_with=layout.sealed_with(named.key),
        )

    async def _named(self) -> _Named:
        """All that manifests name, by path and checksum, from a reading that begins after this.

        All who ask before it begins share it: a node that is to go asks for thousands of files.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._read_named())
        return await asyncio.shield(self._next)

    async def _read_named(self) -> _Named:
        async with self._reading:
            self._next = None
            found = await self.catalog()
        entries = await finish(
            lambda: {(one.entry.path, one.entry.checksum): one for one in found.entries}
        )
        return _Named(entries, found.doubt)

    async def _check_stored(self, stored: ManifestEntry) -> None:
        found = await self._store.head(stored.key, Flow())
        if found is None or not found.holds(stored):
            name, path = self._store.name(stored.key), stored.entry.path
            raise EntryMissing(f"{name} of {path} is not stored: not named")

    async def _manifests(self, nodes: Iterable[str]) -> list[Manifest]:
        return [found for node in nodes if (found := (await self._read(node))[0]) is not None]

    async def _read(self, node: str) -> tuple[Manifest | None, str]:
        try:
            async with self._store.got(layout.manifest_key(node), Flow()) as (said, pieces):
                data = b"".join([piece async for piece in pieces])
        except EntryMissing:
            return None, ""
        # Thousands of files are named by each: that is no work for the event loop.
        return await finish(lambda: layout.parsed(data, node)), said.object.etag

    async def _grow(self, node: str, manifests: list[Manifest]) -> Manifest:
        """Merge manifests into one that others may be writing too."""
        for _ in range(_RACES):
            known, etag = await self._read(node)
            wanted = layout.merged(node, [known, *manifests] if known else manifests, self._clock())
            if known is not None and known.entries == wanted.entries:
                return known
            only = {"If-Match": etag} if known is not None else {"If-None-Match": "*"}
            key, data = layout.manifest_key(node), layout.encoded(wanted)
            with contextlib.suppress(Overtaken):
                await self._store.send(key, data, hashlib.sha256(data).digest(), Flow(), only)
                return wanted
        name = self._store.name(layout.manifest_key(node))
        raise Overtaken(f"{name}: others wrote it {_RACES} times meanwhile")


def _stands(root: Path, local: str, entry: DataEntry) -> bool:
    """Whether a file is where it belongs, with its digest."""
    path = confined(root, local)
    try:
        return path.stat().st_size == entry.size_bytes and checksum_of(path) == entry.checksum
    except OSError:
        return False
