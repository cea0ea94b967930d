"""How a bucket is laid out: keys, manifests and how they are merged. Pure: no bucket is touched.

    objects/sha256/<2 hex>/<hex>            a content, once, whoever stores it
    sealed/<key id>/sha256/<2 hex>/<hex>    a content sealed with one key; never mixed with plain
    nodes/<node>/manifest.json              what a node has stored, written after its objects
    consolidated/manifest.json              all nodes' entries, the newest of each path
    unreadable/nodes/<node>/<16 hex>.json   a manifest in whose place another was begun, as it was
    unreadable/consolidated/<16 hex>.json   the same of the consolidated one

Several clusters can share a bucket: each has a prefix that all its keys begin with. Manifests name
keys without it, so that what was copied to another bucket is complete there.

A manifest only ever grows or moves on to newer versions. That a file is absent somewhere, or that a
manifest does not name it, is never a reason to drop an entry.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

import msgspec

from adapters.errors import TransportError
from adapters.files.digest import hex_of
from streams.identity import escapes
from streams.values import Count, DataEntry, Value, is_token

MANIFEST_VERSION = 1
CONSOLIDATED_KEY = "consolidated/manifest.json"
NODES_PREFIX = "nodes/"
#: Manifests that could not be read are kept under this, and nothing else is.
ASIDE_PREFIX = "unreadable/"
#: All objects are under these, and nothing else is.
OBJECT_PREFIXES = ("objects/", "sealed/")
#: What S3 takes of one multipart upload.
MOST_PARTS = 10_000
#: The smallest part S3 takes, save for the last.
SMALLEST_PART_BYTES = 5 << 20
_MIB = 1 << 20
_NAME = "manifest.json"
_MEND = "mend it there, or put an earlier version of it in its place"
_ASIDE_KEY = re.compile(ASIDE_PREFIX + "(.*/)[0-9a-f]{16}[.]json")
_SEALED_KEY = re.compile(r"sealed/([0-9a-f]{16})/(sha256/.+)")


class ManifestUnreadable(TransportError):
    """A manifest is not one, or not of a version known here. The text names it and the field."""

    retryable = False


class LaterRelease(ManifestUnreadable):
    """A manifest is of a version that is not known here: this release may only read around it."""


class ManifestEntry(Value, frozen=True):
    """An entry, and the object that holds its content."""

    entry: DataEntry
    #: The object's key; it names the digest, and the key it is sealed with if it is.
    key: str
    #: The object's own size: more than the entry's if it is sealed.
    stored_bytes: Count


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What can be restored: one entry per path, sorted by path."""

    version: int
    #: Whose it is; "" for the consolidated one.
    node: str
    #: Seconds since 1970, by the clock of whoever wrote it.
    written_at: float
    entries: tuple[ManifestEntry, ...]


def under(prefix: str, key: str) -> str:
    """Where a key of a cluster is in a bucket that others use, too. "" is no prefix."""
    return f"{prefix}/{key}" if prefix else key


def within(prefix: str, key: str) -> str:
    """A cluster's own key, from where it is in the bucket."""
    return key.removeprefix(f"{prefix}/") if prefix else key


def object_key(checksum: str) -> str:
    """Where a content is stored."""
    return f"objects/{_addressed(checksum)}"


def sealed_key(checksum: str, key_id: str) -> str:
    """Where a content is stored that was sealed with a key."""
    return f"sealed/{key_id}/{_addressed(checksum)}"


def sealed_with(key: str) -> str:
    """The id of the key that an object is sealed with; "" if it is plain."""
    found = _SEALED_KEY.fullmatch(key)
    return found[1] if found else ""


def manifest_key(node: str) -> str:
    """Where a node's manifest is; the consolidated one for ""."""
    if not node:
        return CONSOLIDATED_KEY
    if not is_token(node):
        raise ValueError(f"{node!r} cannot be a node's name")
    return f"{NODES_PREFIX}{node}/{_NAME}"


def aside_key(node: str, digits: str) -> str:
    """Where a manifest with the SHA-256 `digits` is kept once another is to take its place."""
    return f"{ASIDE_PREFIX}{manifest_key(node).removesuffix(_NAME)}{digits[:16]}.json"


def aside_of(key: str) -> str | None:
    """Whose manifest was put aside there; "" for the consolidated one, None if it is none."""
    found = _ASIDE_KEY.fullmatch(key)
    if found is None:
        return None
    return "" if f"{found[1]}{_NAME}" == CONSOLIDATED_KEY else node_in(found[1]) or None


def node_in(prefix: str) -> str:
    """The node whose tree ``nodes/<node>/`` is; "" if no node can be called so."""
    name = prefix.removeprefix(NODES_PREFIX).rstrip("/")
    return name if is_token(name) else ""


def manifest_of(node: str, entries: Iterable[ManifestEntry], written_at: float) -> Manifest:
    """A manifest in its one form: the newest entry of each path, sorted by path."""
    newest: dict[str, ManifestEntry] = {}
    for entry in entries:
        # Where a copy is today is for the catalog to say; a manifest outlives that.
        bare = msgspec.structs.replace(
            entry, entry=msgspec.structs.replace(entry.entry, locations=(), sealed_with="")
        )
        known = newest.setdefault(bare.entry.path, bare)
        if _age(bare) > _age(known):
            newest[bare.entry.path] = bare
    ordered = tuple(newest[path] for path in sorted(newest))
    return Manifest(version=MANIFEST_VERSION, node=node, written_at=written_at, entries=ordered)


def merged(node: str, manifests: Iterable[Manifest], written_at: float) -> Manifest:
    """All entries of all manifests, the newest of each path. The order of them is no matter."""
    every = (entry for manifest in manifests for entry in manifest.entries)
    return manifest_of(node, every, written_at)


def encoded(manifest: Manifest) -> bytes:
    """A manifest as it is stored: JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def parsed(data: bytes, node: str, name: str = "") -> Manifest:
    """A node's manifest, or the consolidated one for "". Raises `ManifestUnreadable`, in the words
    of `name`.
    """
    where = name or manifest_key(node)
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version > MANIFEST_VERSION:
            raise LaterRelease(f"{where}: version {version} is of a later release; upgrade this")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ManifestUnreadable(f"{where}: {error}; {_MEND}") from error
    if manifest.node != node:
        problem = f"it says it is of {manifest.node!r} - at `$.node`"
        raise ManifestUnreadable(f"{where}: {problem}; {_MEND}")
    for index, entry in enumerate(manifest.entries):
        if wrong := _problem_in(entry):
            problem = f"{wrong[1]} - at `$.entries[{index}].{wrong[0]}`"
            raise ManifestUnreadable(f"{where}: {problem}; {_MEND}")
    return manifest


def part_size(size_bytes: int, part_bytes: int) -> int:
    """How large the parts of an object are: `part_bytes`, or more if there would be too many."""
    needed = -(-size_bytes // MOST_PARTS)
    return max(part_bytes, -(-needed // _MIB) * _MIB)


def spans(start: int, end: int, span_bytes: int) -> list[tuple[int, int]]:
    """``start`` to ``end`` in pieces of (offset, length)."""
    return [(at, min(span_bytes, end - at)) for at in range(start, end, span_bytes)]


def digest(data: bytes | memoryview) -> str:
    """SHA-256 as S3 writes it."""
    return in_base64(hashlib.sha256(data).digest())


def in_base64(sha256: bytes) -> str:
    """A digest that is known already, as S3 writes it."""
    return base64.b64encode(sha256).decode()


class _Version(msgspec.Struct):
    version: int


def _addressed(checksum: str) -> str:
    digits = hex_of(checksum)
    return f"sha256/{digits[:2]}/{digits}"


def _age(entry: ManifestEntry) -> tuple[int, float, str, str]:
    """Later versions are larger; by the catalog's count, then by the clock, then in any order."""
    return entry.entry.version, entry.entry.mtime, entry.entry.checksum, entry.key


def _problem_in(stored: ManifestEntry) -> tuple[str, str] | None:
    """Which field is wrong, and why."""
    if escapes(stored.entry.path):
        return "entry.path", f"{stored.entry.path!r} would leave the data directory"
    key_id = sealed_with(stored.key)
    checksum = stored.entry.checksum
    if stored.key != (sealed_key(checksum, key_id) if key_id else object_key(checksum)):
        return "key", f"{stored.key!r} is not where {checksum} is stored"
    if not key_id and stored.stored_bytes != stored.entry.size_bytes:
        return "stored_bytes", f"{stored.stored_bytes} is not the entry's size"
    return None
