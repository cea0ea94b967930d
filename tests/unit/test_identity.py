"""Whose file a path is, what it is called elsewhere, and what it holds."""

from __future__ import annotations

import pytest
from hypothesis import given as sampled
from hypothesis import settings
from hypothesis import strategies as st

from streams.identity import Ownership, PathRules, data_type_of, escapes
from streams.values import DataType

RULES = PathRules()
OWNED, SHARED, MERGED = Ownership.OWNED, Ownership.SHARED, Ownership.MERGED
NODES = st.sampled_from(["gpu-7", "gpu-8", "a"])
NAMES = st.sampled_from(
    ["games", "x", "hex8_2p.db", "a.jsonl", "candidate_1.pth", "model.pth", "set.npz", "deep"]
)
LOCAL = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize(
    ("path", "ownership"),
    [
        ("games/hex8_2p.db", OWNED),
        ("games/gpu-7/hex8_2p.db", OWNED),
        ("hex8_2p.db", OWNED),
        ("games/deep/er/hex8_2p.sqlite3", OWNED),
        ("games/hex8_2p.jsonl", OWNED),
        ("games/notes.txt", OWNED),
        ("checkpoints/last.pt", OWNED),
        ("models/candidate_hex8_2p.pth", OWNED),
        ("models/canonical_hex8_2p.pth", SHARED),
        ("models/hex8_2p_best_v3.pth", SHARED),
        ("games/canonical_hex8_2p.db", SHARED),
        ("npz/hex8_2p.npz", SHARED),
        ("hex8_2p.npz", SHARED),
        ("metadata/elo_ratings.db", MERGED),
        ("elo.db", MERGED),
        ("metadata/hex8_elo_v2.db", MERGED),
        ("metadata/model_registry.db", MERGED),
        ("elo_ratings.txt", SHARED),
        ("metadata/elo_ratings.DB", MERGED),
        ("data/hex8_2p.JSONL", OWNED),
        ("a.B/hex8_2p", SHARED),
    ],
)
def test_default_rules_say_whose_each_kind_of_file_is(path: str, ownership: Ownership) -> None:
    """Games, checkpoints and candidates are their producer's; Elo and registries are merged."""
    assert RULES.ownership(path) is ownership


def test_suffix_is_also_matched_as_it_is_written() -> None:
    """A rule of one's own may name one kind of writing and leave the other to the next."""
    rules = PathRules(globs=(("*.DB", MERGED), ("*.db", OWNED)))
    assert (rules.ownership("a.DB"), rules.ownership("a.db")) == (MERGED, OWNED)


def test_first_glob_that_matches_decides() -> None:
    """The order of the configuration is the order of precedence."""
    rules = PathRules(globs=(("a/*.db", SHARED), ("a/**", MERGED), ("**/*.db", OWNED)))
    assert rules.ownership("a/x.db") is SHARED
    assert rules.ownership("a/b/x.db") is MERGED
    assert rules.ownership("b/x.db") is OWNED
    assert rules.ownership("b/x.txt") is SHARED


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("*.db", "a.db", True),
        ("*.db", "b/a.db", False),
        ("**/*.db", "a.db", True),
        ("**/*.db", "b/c/a.db", True),
        ("games/**", "games/a/b.db", True),
        ("games/**", "gamesa/b.db", False),
        ("games/**", "games/a/b\nc.db", True),
        ("**/elo*.db", "b\nc/elo1.db", True),
        ("**/elo*.db", "elo/b.db", False),
        ("**/x**", "a/xb/c", True),
        ("**/a/*.db", "a/b/a/c.db", True),
        ("**/a/*.db", "a/b/c.db", False),
        ("?.db", "a.db", True),
        ("?.db", "ab.db", False),
        ("a.db", "aXdb", False),
        ("[a].db", "[a].db", True),
        ("**/*.db", "b\nc/a.db", True),
        ("games/**", "games/a\nb.db", True),
        ("?.db", "\n.db", True),
    ],
)
def test_globs_mean_what_the_configuration_says(glob: str, path: str, matches: bool) -> None:
    """`*` within a directory, `**` across them, everything else is itself."""
    rules = PathRules(globs=((glob, MERGED),))
    assert (rules.ownership(path) is MERGED) is matches


@pytest.mark.parametrize(
    ("local", "logical"),
    [
        ("games/hex8_2p.db", "games/gpu-7/hex8_2p.db"),
        ("games/deep/hex8_2p.db", "games/gpu-7/deep/hex8_2p.db"),
        ("hex8_2p.db", "gpu-7/hex8_2p.db"),
        ("checkpoints/last.pt", "checkpoints/gpu-7/last.pt"),
        ("models/canonical_hex8_2p.pth", "models/canonical_hex8_2p.pth"),
        ("npz/hex8_2p.npz", "npz/hex8_2p.npz"),
        ("metadata/elo.db", "metadata/elo.db"),
    ],
)
def test_owned_path_carries_its_producer_everywhere_else(local: str, logical: str) -> None:
    """Shared and merged ones are called the same on every node."""
    assert RULES.logical(local, "gpu-7") == logical
    assert RULES.local(logical, "gpu-7") == local
    assert RULES.local(logical, "train-1") == logical


def test_p4_two_producers_never_write_one_name() -> None:
    """The same local path of two nodes is two logical paths."""
    local = "games/hex8_2p.db"
    assert RULES.logical(local, "gpu-7") != RULES.logical(local, "gpu-8")


@settings(max_examples=200, deadline=None)
@sampled(local=LOCAL, node=NODES)
def test_producer_finds_its_own_file_again(local: str, node: str) -> None:
    """Local to logical and back is the same file, whatever its directories are called."""
    logical = RULES.logical(local, node)
    assert RULES.local(logical, node) == local
    assert RULES.ownership(logical) is RULES.ownership(local)
    assert RULES.producer(logical) == (node if RULES.ownership(local) is OWNED else "")


@settings(max_examples=200, deadline=None)
@sampled(one=LOCAL, other=LOCAL, node=NODES, elsewhere=NODES)
def test_p4_copies_and_own_files_never_share_a_place(
    one: str, other: str, node: str, elsewhere: str
) -> None:
    """Two files of the cluster have two places on every node, if no directory is called as one."""
    first, second = RULES.logical(one, node), RULES.logical(other, elsewhere)
    if first != second:
        assert RULES.local(first, node) != RULES.local(second, node)


@pytest.mark.parametrize(
    ("path", "data_type"),
    [
        ("games/hex8_2p.db", DataType.GAMES),
        ("games/hex8_2p.SQLITE", DataType.GAMES),
        ("games/a.sqlite3", DataType.GAMES),
        ("games/a.jsonl", DataType.GAMES),
        ("npz/a.npz", DataType.NPZ),
        ("models/a.pth", DataType.MODELS),
        ("models/a.pt", DataType.MODELS),
        ("models/a.onnx", DataType.MODELS),
        ("checkpoints/a.pt", DataType.CHECKPOINT),
        ("train/checkpoints/run/a.pth", DataType.CHECKPOINT),
        ("checkpoints", None),
        ("checkpoints/log.txt", None),
        ("games/a.db-wal", None),
        ("games/a", None),
        ("", None),
    ],
)
def test_p17_kind_of_a_file_follows_from_its_name(path: str, data_type: DataType | None) -> None:
    """No directory has to be listed for its files to be seen; a live database's tail is none."""
    assert data_type_of(path) is data_type


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/etc/passwd", "..", "../a", "a/../../b", "a/..", "a/../b", ".", "./a", "a/."),
        *("a//b", "a/", "a\x00b", "a\\b", "..\\a", "//a"),
    ],
)
def test_p19_path_that_leaves_the_data_root_is_refused(path: str) -> None:
    """Also what is merely not clean: two spellings of one file would be two."""
    assert escapes(path)


@pytest.mark.parametrize("path", ["a", "a/b.db", "..a/b", "a/...", "a b/c", "é/ü.db", "a/.hidden"])
def test_clean_relative_path_is_taken(path: str) -> None:
    """Names may be strange, as long as they stay inside."""
    assert not escapes(path)


@settings(max_examples=200, deadline=None)
@sampled(local=LOCAL, node=NODES)
def test_p19_logical_paths_of_clean_paths_are_clean(local: str, node: str) -> None:
    """The rules themselves never lead out of the root."""
    assert not escapes(RULES.logical(local, node))
