"""What a bucket holds as a whole: manifests, and what can be restored from them alone.

A manifest is written only after the objects it names. **Nothing here deletes an object or drops an
entry**: that a file is absent on a node says nothing about its backup.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from adapters.errors import EntryMissing, NeverReplaced, TransportError
from adapters.files.digest import checksum_of
from adapters.files.landing import Landed, Landing
from adapters.files.leftovers import tidy
from adapters.files.partial import disk_errors
from adapters.files.places import confined
from adapters.s3 import layout
from adapters.s3.flow import Flow
from adapters.s3.layout import Manifest, ManifestEntry, ManifestUnreadable
from adapters.s3.manifests import Manifests
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


class _Named(NamedTuple):
    """What manifests name, by path and checksum."""

    entries: Mapping[tuple[str, str], ManifestEntry]
    #: Which can't be read, and why.
    doubt: str


class Catalog(NamedTuple):
    """What can be restored, as far as manifests can be read."""

    entries: tuple[ManifestEntry, ...]
    #: Those that can't: what only they name, and what they know newer, is not among the entries.
    unreadable: Sequence[ManifestUnreadable]

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
    unreadable: Sequence[ManifestUnreadable]


class RestoredNode(NamedTuple):
    """What was brought back of a node."""

    #: What became of each path.
    became: Mapping[str, Landed | TransportError]
    #: The manifests of it that can't be read: what only they name is not among the paths.
    unreadable: Sequence[ManifestUnreadable]


class S3Bucket:
    """What a bucket holds as a whole: its manifests, and what can be restored from it alone.

    Manifests are written only after the objects they name, and conditionally, so that of several
    writers none loses what another wrote. No entry is ever dropped from one.
    """

    def __init__(self, transport: S3Transport, *, clock: Callable[[], float] = time.time) -> None:
        self._transport = transport
        self._store = transport.store
        self._clock = clock
        self._written = Manifests(self._store, clock)
        self._reading = asyncio.Lock()
        self._next: asyncio.Task[_Named] | None = None

    async def write_manifest(
        self, node: str, manifest: Manifest, pushed: Collection[str] = ()
    ) -> Manifest:
        """Add to what a node's manifest names; return what it names now.

        Raises `EntryMissing`, and writes nothing, unless each object is there with its size and
        digest; those with the keys in `pushed`, which the server has just taken, are not asked for
        again. What the node's manifest named before, it still names, or a newer version of it. One
        that can't be read is put aside; of a later release it is let be: `LaterRelease`.
        """
        unproven = [stored for stored in manifest.entries if stored.key not in pushed]
        await each(unproven, self._check_stored, _ASKED_AT_ONCE)
        grown, _ = await self._written.grow(node, [manifest])
        return grown

    async def read_manifest(self, node: str) -> Manifest:
        """A node's manifest, or the consolidated one for "". Raises `EntryMissing` if there is
        none, `ManifestUnreadable` if it is none.
        """
        return await self._written.read(node)

    async def nodes(self) -> list[str]:
        """The nodes that have a manifest."""
        return await self._written.nodes()

    async def consolidate(self, nodes: Sequence[str] | None = None) -> Manifest:
        """Add what the manifests of `nodes`, or of all, name to the consolidated one; return it.

        A node without a manifest, or whose can't be read, is passed over, and nothing is dropped
        for it. A consolidated one that can't be read is put aside and begun anew, from all nodes'.
        """
        known = await self._written.readable(nodes)
        manifest, begun = await self._written.grow("", known.manifests)
        return manifest if not begun or nodes is None else await self.consolidate()

    async def catalog(self) -> Catalog:
        """All that can be restored, whether it was consolidated yet or not. It writes nothing.

        A manifest that can't be read keeps none of what the others name from being restored.
        """
        known, unreadable = await self._written.readable()
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

        Raises `EntryMissing` if no manifest names it, `NeverReplaced` if another content is there,
        and as `Fetches.fetch`. Nothing stays below
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
    ) -> RestoredNode:
        """Bring all that a node's manifest names under `root`, where that node would keep it, and
        what others name that this node produced: where it could not store a file itself, who had
        a copy did.

        Returns what became of each path: one that fails holds up no other. What is there already
        is left as it is, so that it can be called again; where it is another content, that is what
        became of it. `progress` is told of all as of one.
        Nothing stays below `root` but the files, or what of them came. Raises `EntryMissing` if
        there is no manifest of it, and none names anything of it.
        """
        known = rules or PathRules()
        became: dict[str, Landed | TransportError] = {}
        named, unreadable = await self._stored_by(node, known)
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
        return RestoredNode(became, unreadable)

    async def _stored_by(
        self, node: str, rules: PathRules
    ) -> tuple[Sequence[ManifestEntry], Sequence[ManifestUnreadable]]:
        """What a node has stored, and its manifests, or those of others, that may name more."""
        own, unreadable = await self._written.readable([node])
        catalog = await self.catalog()
        entries = [one for manifest in own for one in manifest.entries]
        entries += [one for one in catalog.entries if rules.producer(one.entry.path) == node]
        if not (entries or own or unreadable):
            await self.read_manifest(node)
        return layout.manifest_of(node, entries, self._clock()).entries, catalog.unreadable

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
        if await finish(lambda: _there(root, local, stored.entry)):
            onward.arrived()
            return Landed(bytes=stored.entry.size_bytes)
        transfer = f"restore {stored.entry.path}"
        landing = await Landing.open(root, stored.entry, transfer, local, rules=rules)
        try:
            await self.restore(stored, landing, throttle, onward)
            await landing.prove()
            # Whoever has begun to write there meanwhile goes on.
            await finish(lambda: _there(root, local, stored.entry))
            landed = await landing.publish()
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


def _there(root: Path, local: str, entry: DataEntry) -> bool:
    """Whether a file is where it belongs, with its digest.

    Raises `NeverReplaced` if another content is there: it may be newer than what was stored, or a
    database that is written just now. Whoever means it moves that away first.
    """
    path = confined(root, local)
    if not os.path.lexists(path):
        return False
    with disk_errors():
        if path.stat().st_size == entry.size_bytes and checksum_of(path) == entry.checksum:
            return True
    raise NeverReplaced(f"{local} is there with another content: move it away to restore it")
