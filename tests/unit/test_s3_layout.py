"""The layout of a bucket: keys, and manifests that never lose an entry."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.s3 import layout
from adapters.s3.layout import Manifest, ManifestEntry, ManifestUnreadable
from streams.values import DataEntry, DataType

HEX = "ab" + "0" * 62
CHECKSUM = f"sha256:{HEX}"
KEY_ID = "0123456789abcdef"


def stored(path: str = "games/gpu-7/x.db", version: int = 1, **known: Any) -> ManifestEntry:
    """An entry and its plain object."""
    checksum = known.pop("checksum", CHECKSUM)
    entry = DataEntry(
        path=path,
        data_type=DataType.GAMES,
        config_key="hex8_2p",
        size_bytes=10,
        checksum=checksum,
        version=version,
        **known,
    )
    return ManifestEntry(entry=entry, key=layout.object_key(checksum), stored_bytes=10)


def manifest(*entries: ManifestEntry, node: str = "gpu-7") -> Manifest:
    """A node's manifest."""
    return layout.manifest_of(node, entries, 1.0)


def paths(of: Manifest) -> list[str]:
    """What a manifest names."""
    return [one.entry.path for one in of.entries]


ENTRIES = st.builds(
    stored,
    path=st.sampled_from(["a/x.db", "b/y.npz", "c/ü.pth"]),
    version=st.integers(0, 3),
    mtime=st.sampled_from([0.0, 1.0, 2.0]),
    checksum=st.sampled_from([f"sha256:{digit * 64}" for digit in "abc"]),
)
MANIFESTS = st.lists(st.builds(lambda all_: manifest(*all_), st.lists(ENTRIES)), max_size=4)


def test_a_key_is_the_digest_of_its_content() -> None:
    """The same data is stored once."""
    assert layout.object_key(CHECKSUM) == f"objects/sha256/ab/{HEX}"


def test_plain_and_sealed_never_mix_nor_do_two_keys() -> None:
    """What one key sealed is never taken for what another did."""
    sealed = layout.sealed_key(CHECKSUM, KEY_ID)
    assert sealed == f"sealed/{KEY_ID}/sha256/ab/{HEX}"
    assert layout.sealed_with(sealed) == KEY_ID
    assert layout.sealed_with(layout.object_key(CHECKSUM)) == ""


def test_manifests_are_beside_the_trees() -> None:
    """One for each node, and a consolidated one."""
    assert layout.manifest_key("gpu-7") == "nodes/gpu-7/manifest.json"
    assert layout.manifest_key("") == "consolidated/manifest.json"
    assert layout.node_in("nodes/gpu-7/") == "gpu-7"
    for node in ("gpu-7", "consolidated", "unreadable", ""):
        assert layout.aside_of(layout.aside_key(node, "0" * 64)) == node
    for key in ("unreadable/x", "unreadable/nodes/a b/0123456789abcdef.json", "nodes/a/b.json"):
        assert layout.aside_of(key) is None


@pytest.mark.parametrize("prefix", ["", "a", "clusters/a"])
def test_keys_of_a_cluster_begin_with_its_prefix(prefix: str) -> None:
    """And are its own without it; a neighbour's whose name begins alike are not touched."""
    key = layout.object_key(CHECKSUM)
    there = layout.under(prefix, key)
    assert there == (f"{prefix}/{key}" if prefix else key)
    assert layout.within(prefix, there) == key
    assert layout.within("a", f"ab/{key}") == f"ab/{key}"


@pytest.mark.parametrize("name", ["..", "a/b", "a b", "x" * 65])
def test_what_is_no_node_gets_no_manifest(name: str) -> None:
    """A name is a part of a key."""
    with pytest.raises(ValueError, match="node's name"):
        layout.manifest_key(name)
    assert layout.node_in(f"nodes/{name}/") == ""


@given(MANIFESTS)
def test_the_order_of_manifests_is_no_matter(manifests: list[Manifest]) -> None:
    """All who merge the same manifests in any order have the same."""
    merged = layout.merged("", manifests, 1.0)
    assert all(
        layout.merged("", order, 1.0) == merged
        for order in itertools.islice(itertools.permutations(manifests), 6)
    )


@given(MANIFESTS)
def test_p8_no_path_is_ever_dropped(manifests: list[Manifest]) -> None:
    """That one manifest does not name a path is no reason to forget it."""
    merged = layout.merged("", manifests, 1.0)
    assert paths(merged) == sorted({path for one in manifests for path in paths(one)})


@given(MANIFESTS, MANIFESTS)
def test_to_merge_again_changes_nothing(before: list[Manifest], after: list[Manifest]) -> None:
    """Merged step by step or at once, and twice."""
    step = layout.merged("", [layout.merged("", before, 1.0), *after, *before], 1.0)
    assert step == layout.merged("", [*before, *after], 1.0)


def test_the_newest_version_of_a_path_wins() -> None:
    """By the catalog's count, whatever the clocks say."""
    old, new = stored(version=1, mtime=9.0), stored(version=2, mtime=1.0)
    assert manifest(old, new).entries == (new,)


def test_where_no_version_is_known_the_later_clock_wins() -> None:
    """Version 0 is that of an entry the catalog does not know."""
    old, new = stored(version=0, mtime=1.0), stored(version=0, mtime=2.0)
    assert manifest(new, old).entries == (new,)


def test_a_manifest_does_not_say_where_copies_are_today() -> None:
    """It would be wrong tomorrow."""
    assert manifest(stored(locations=("gpu-7",))).entries == (stored(),)


@given(MANIFESTS)
def test_a_manifest_is_read_as_it_was_written(manifests: list[Manifest]) -> None:
    """With every field."""
    for one in manifests:
        assert layout.parsed(layout.encoded(one), "gpu-7") == one


def test_a_manifest_names_all_that_a_restore_needs() -> None:
    """Key, size, digest, path, configuration and type, in fields of their own."""
    (one,) = json.loads(layout.encoded(manifest(stored(games=7))))["entries"]
    assert one == {
        "key": layout.object_key(CHECKSUM),
        "stored_bytes": 10,
        "entry": {
            "path": "games/gpu-7/x.db",
            "data_type": "games",
            "config_key": "hex8_2p",
            "size_bytes": 10,
            "checksum": CHECKSUM,
            "games": 7,
            "version": 1,
        },
    }


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("key", "objects/sha256/cd/" + HEX, "`$.entries[0].key`"),
        ("key", layout.sealed_key("sha256:" + "1" * 64, KEY_ID), "`$.entries[0].key`"),
        ("stored_bytes", -1, "`$.entries[0].stored_bytes`"),
        ("stored_bytes", 11, "`$.entries[0].stored_bytes`"),
        ("entry.path", "../x.db", "`$.entries[0].entry.path`"),
        ("entry.path", "/etc/x.db", "`$.entries[0].entry.path`"),
        ("entry.size_bytes", "10", "`$.entries[0].entry.size_bytes`"),
        ("entry.checksum", "md5:1", "`$.entries[0].entry.checksum`"),
        ("entry.data_type", "films", "`$.entries[0].entry.data_type`"),
    ],
)
def test_an_error_names_the_field(field: str, value: object, named: str) -> None:
    """Who repairs a manifest by hand must find the place."""
    broken = json.loads(layout.encoded(manifest(stored())))
    *way, last = field.split(".")
    place = broken["entries"][0]
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(ManifestUnreadable) as caught:
        layout.parsed(json.dumps(broken).encode(), "gpu-7")
    assert named in str(caught.value)
    assert "nodes/gpu-7/manifest.json" in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b"\xff", b'{"version": 1}', b'{"version": 1, "node": "\xff"}']
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    """It is never taken for an empty one, which would be written over."""
    with pytest.raises(ManifestUnreadable):
        layout.parsed(data, "gpu-7")


def test_a_manifest_of_a_later_release_is_refused() -> None:
    """To merge into it would drop what this release does not know."""
    later = msgspec.structs.replace(manifest(stored()), version=layout.MANIFEST_VERSION + 1)
    with pytest.raises(ManifestUnreadable, match="later release"):
        layout.parsed(layout.encoded(later), "gpu-7")


def test_a_manifest_of_another_node_is_refused() -> None:
    """It was copied to where it does not belong."""
    with pytest.raises(ManifestUnreadable, match=r"\$\.node"):
        layout.parsed(layout.encoded(manifest(stored(), node="gpu-8")), "gpu-7")


@given(st.integers(0, 5 << 40))
def test_an_upload_never_has_too_many_parts(size: int) -> None:
    """Parts grow with the object, up to the largest that S3 takes."""
    part = layout.part_size(size, 16 << 20)
    assert part >= 16 << 20
    assert -(-size // part) <= layout.MOST_PARTS


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 20))
def test_spans_cover_everything_once(start: int, length: int, span: int) -> None:
    """In order, each as long as it may be but the last."""
    pieces = layout.spans(start, start + length, span)
    covered = [at for begin, count in pieces for at in range(begin, begin + count)]
    assert covered == list(range(start, start + length))
